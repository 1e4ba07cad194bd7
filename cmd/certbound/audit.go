// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
)

// dataFolder is where serve keeps its data unless it is told otherwise.
const dataFolder = "./certbound-data"

func (c *cli) auditCommand() *cobra.Command {
	heads := c.auditHeadsCommand()
	c.operatorFlags(heads, true)
	erase := c.auditEraseCommand()
	c.operatorFlags(erase, false)
	return group("audit", "Verify the journal of decisions, look through it, or hand it to other systems",
		c.auditVerifyCommand(), c.auditSearchCommand(), c.auditExportCommand(), heads, erase)
}

// verdict is what audit verify prints.
type verdict struct {
	Valid bool   `json:"valid"`
	Dir   string `json:"dir"`
	*audit.Report
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	var data, headsFile string
	var opt audit.VerifyOptions
	cmd := &cobra.Command{
		Use: "verify [DIR]… [--data DIR] [--heads FILE] [--only] [--accept-loss] [--copied-within TIME]", Short: "Verify that the journal is what was written",
		Args: cobra.ArbitraryArgs,
		Long: "Verify that the journal is what was written: every record by its chain, every checkpoint by its signature, and all of\n" +
			"it by the heads that operators' verbs keep in the operator's profile. Nothing is changed, and no service is asked: the\n" +
			"folder may be a copy, made while the service ran, on another machine.\n\n" +
			"Where replicas share a database, name the folders of all of them, of those that are gone too: each journal is held to what\n" +
			"the others say of it as well, and one that they speak of and that is not given is found missing. With one folder that is\n" +
			"noted only: naming several means all, unless --only says that some are left out. A file that audit heads -o json printed brings in what the database knew.\n" +
			"An event that a replica recorded for another one that had died may be on record in both, under the same id: it is one.\n\n" +
			"Found are records that were changed, removed, put in another order or added, segments that are missing, and a journal\n" +
			"that ends before a known head or contradicts it. Not found is what was cut off or put back after the newest known head.\n" +
			"Exit code 0: it is what was written; 1: it is not, or could not be read; 2: a folder that was named is not there.",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && cmd.Flags().Changed("data"):
				return usagef("name all folders without --data", "--data names one more folder")
			case slices.Contains(args, ""):
				return usagef("name the folders of the journals", "the name of a folder is empty")
			case opt.CopiedWithin < 0:
				return usagef("write it as 10m", "--copied-within is negative")
			}
			folders := args
			if len(folders) == 0 {
				folders = []string{data}
			}
			return c.auditVerify(folders, cmd.Flags().Changed("heads"), headsFile, opt)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&data, "data", dataFolder, "data folder of the service, or a copy of its folder audit")
	flags.StringVar(&headsFile, "heads", "", "file of known heads; empty: none (else heads.json of the operator's profile)")
	flags.BoolVar(&opt.Only, "only", false, "journals of other replicas that these speak of are left out on purpose")
	flags.BoolVar(&opt.AcceptLoss, "accept-loss", false, "records that serve --accept-journal-loss went on without are noted, and not found missing")
	flags.DurationVar(&opt.CopiedWithin, "copied-within", 0,
		"the folders were copied within this time of each other while the services ran: what one says that late of another is noted")
	c.profileFlag(cmd, operatorProfile)
	return cmd
}

// auditVerify verifies the journals in folders and prints what it found: one verdict for one folder, a list for several.
func (c *cli) auditVerify(folders []string, named bool, headsFile string, opt audit.VerifyOptions) error {
	// Where heads are known, a folder that was mistyped would else be a journal that somebody deleted.
	for _, folder := range folders {
		if _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) {
			return usagef("name the data folder of the service, or a copy of its audit folder", "there is no folder %s", folder)
		}
	}
	var err error
	if opt.Known, err = c.knownHeads(named, headsFile, folders[0]); err != nil {
		return err
	}
	dirs := make([]string, len(folders))
	for i, folder := range folders {
		dirs[i] = audit.Dir(folder)
	}
	reports, err := audit.VerifyAll(dirs, opt)
	switch {
	case (errors.Is(err, audit.ErrNoJournal) || errors.Is(err, os.ErrNotExist)) && len(dirs) == 1:
		return failf("name the data folder of the service, or a copy of its audit folder, with --data", "there is no journal in %s", dirs[0])
	case err != nil:
		return failf("look whether the folder can be read", "%v", err)
	}
	verdicts := make([]verdict, len(reports))
	var wrong *failure
	for i, r := range reports {
		verdicts[i] = verdict{Valid: len(r.Findings) == 0, Dir: dirs[i], Report: r}
		if !verdicts[i].Valid && wrong == nil {
			wrong = &failure{exit: exitFailed, code: "journal_damaged",
				description: fmt.Sprintf("the journal in %s is not what was written: %v", dirs[i], &audit.TamperError{Findings: r.Findings}),
				hint:        "keep the folder as it is and copy it away; if it is a copy that was made while the service ran, copy it again"}
			if !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Missing == "" }) {
				wrong.description = "a journal is missing: " + r.Findings[0].String()
				wrong.hint = "name the folders of all replicas, of those that are gone too; --only says that some are left out on purpose"
			}
		}
	}
	var doc any = verdicts
	if len(verdicts) == 1 {
		doc = verdicts[0]
	}
	err = c.print(doc, func(w io.Writer) {
		for i := range verdicts {
			if i > 0 {
				fmt.Fprintln(w)
			}
			showVerdict(w, &verdicts[i], time.Now())
		}
	})
	if err == nil && wrong != nil {
		return wrong
	}
	return err
}

// knownHeads reads the heads that the journal is held to: of the file that was named, or of the operator's profile, or of
// the one in the data folder.
func (c *cli) knownHeads(named bool, file, data string) ([]audit.Anchor, error) {
	var text []byte
	var err error
	switch {
	case named && file == "":
		return nil, nil
	case named:
		if text, err = os.ReadFile(file); err != nil {
			return nil, failf("name the file heads.json of an operator's profile", "the known heads could not be read: %v", err)
		}
	default:
		dir := c.profileDir("")
		if text, err = profile.Heads(cmp.Or(dir, operatorProfile)); err == nil && text == nil && dir == "" {
			text, err = profile.Heads(filepath.Join(data, "admin"))
		}
		if err != nil {
			return nil, err
		}
	}
	known, err := audit.ParseHeads(text)
	if err != nil {
		return nil, failf("restore the file from a backup, or verify without it: --heads ''", "%v", err)
	}
	return known.Heads, nil
}

func showVerdict(w io.Writer, v *verdict, now time.Time) {
	incarnations := fmt.Sprintf("%s/%s, %d runs of the service", v.Installation, v.Replica, v.Incarnations)
	if v.Incarnations == 1 {
		incarnations = fmt.Sprintf("%s/%s, 1 run of the service", v.Installation, v.Replica)
	}
	if v.Closed {
		incarnations += ", the last one ended in order"
	}
	checkpoint, covered := "none", ""
	if p := v.Checkpoint; p != nil {
		checkpoint = fmt.Sprintf("signs up to record %d at %s, %s ago; %d in all", p.Seq, stamp(p.Time), age(now, p.Time), v.Checkpoints)
	}
	if n := v.Report.Records.Uncovered; n > 0 {
		covered = fmt.Sprintf("the last %d records", n)
	}
	if n := v.Refusals.Uncovered; n > 0 {
		covered += join(covered) + fmt.Sprintf("the last %d refusals of strangers", n)
	}
	known := "none: that the end was cut off, or all of it replaced, would not be seen"
	if !v.Anchor.IsZero() {
		known = fmt.Sprintf("the newest that agrees is of %s, %s ago", stamp(v.Anchor), age(now, v.Anchor))
	} else if v.Known > 0 {
		known = fmt.Sprintf("none of %d agrees", v.Known)
	}
	result := "the journal is what was written"
	if !v.Valid {
		result = "the journal is NOT what was written"
	}
	fields(w, "verdict", result, "folder", v.Dir, "journal", incarnations, "records", stream(&v.Records), "refusals", stream(&v.Refusals),
		"checkpoints", checkpoint, "not covered", covered, "known heads", known)
	for _, a := range v.Anchors {
		agrees := "and the journal agrees"
		if !a.Agrees {
			agrees = "and the journal does NOT agree"
		}
		fmt.Fprintf(w, "anchor: %s saw %s at record %d on %s, %s ago, %s\n", visible(a.By), visible(a.Journal), a.Record, stamp(a.Time), age(now, a.Time), agrees)
	}
	for _, f := range v.Findings {
		fmt.Fprintf(w, "wrong: %s\n", f)
	}
	for _, f := range v.Notes {
		fmt.Fprintf(w, "note: %s\n", f)
	}
}

func join(before string) string {
	if before == "" {
		return ""
	}
	return ", "
}

func stream(s *audit.StreamReport) string {
	if s.Records == 0 {
		return "none"
	}
	text := fmt.Sprintf("%d (%d to %d) in %d segments, %s to %s", s.Records, s.First, s.Last, s.Segments, stamp(s.FirstTime), stamp(s.LastTime))
	if s.Removed > 0 {
		text += fmt.Sprintf("; those up to %d were removed, as the journal says", s.Removed)
	}
	return text
}

// age is how long ago something was, as people say it.
func age(now, t time.Time) string {
	d := now.Sub(t)
	if d < 48*time.Hour {
		return d.Round(time.Second).String()
	}
	return strconv.Itoa(int(d.Hours()/24)) + " days"
}

func (c *cli) auditHeadsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "heads", Short: "Show how far the journals are signed and on the disk", Args: arguments(0, 0),
		Long: "Show how far the journal of the service that answers is signed and on the disk, and where the database knows those of all\n" +
			"replicas to stand. Every operator's verb that may see this keeps the newest one that is signed in heads.json of its\n" +
			"profile, where audit verify looks, and warns when the service shows an older one. What -o json prints is what audit\n" +
			"verify --heads reads, so that the database's heads are of use also where it cannot be reached.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			heads, err := call[admin.AuditHeads](cmd.Context(), c, http.MethodGet, "/audit/heads", nil)
			if err != nil {
				return err
			}
			all := slices.Concat(heads.Heads, heads.Known)
			return c.print(all, func(w io.Writer) {
				rows := make([][]string, 0, len(all))
				for i := range all {
					h := &all[i]
					seq, head, at := h.Head()
					by := "signed"
					if h.Seen != nil {
						by = visible(h.Seen.By)
					}
					rows = append(rows, []string{visible(h.Identity.String()), strconv.FormatUint(seq, 10), by, stamp(at), head})
				}
				table(w, "JOURNAL RECORD BY TIME HEAD", rows)
			})
		},
	}
}
