// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// VerifyOptions is what VerifyAll is told.
type VerifyOptions struct {
	Known []Anchor // heads that somebody kept
	// AcceptLoss has losses that a start was told to accept noted only. Otherwise they are findings: the journal is not all
	// that was written.
	AcceptLoss bool
	// Only says that some of the installation's journals are left out on purpose: those missing are noted only.
	Only bool
	// CopiedWithin says that the folders were copied, within that time, while the services ran: what one journal says in the
	// last of that time of another which goes further than that one's copy is noted only. Zero: they were not.
	CopiedWithin time.Duration

	several bool                            // the journal is one of several
	reached func(segment string, open bool) // told of each segment before and after it is opened; for tests
}

// VerifyAll verifies the journals of an installation's replicas together: each folder as Verify does, and each journal by
// what the others say of it as well. A journal that another one speaks of and that is in no folder is a finding when there
// are several folders, since whoever names several means all, and a note when there is one. It returns a report for each
// folder, in their order, whose Findings say what is wrong; its error is one of reading.
func VerifyAll(dirs []string, opt VerifyOptions) ([]*Report, error) {
	opt.several = len(dirs) > 1 || opt.Only
	reports := make([]*Report, len(dirs))
	for i, dir := range dirs {
		if err := verifyInto(reports, i, dir, opt.Known, opt); err != nil {
			return nil, err
		}
	}
	for i, r := range reports {
		if said := saidOf(reports, i, opt.CopiedWithin); len(said) > 0 && r.Replica != "" {
			if err := verifyInto(reports, i, dirs[i], slices.Concat(opt.Known, said), opt); err != nil {
				return nil, err
			}
		}
	}
	compareFolders(reports, dirs)
	missingJournals(reports, opt)
	doubtWitnesses(reports)
	return reports, nil
}

func verifyInto(reports []*Report, i int, dir string, known []Anchor, opt VerifyOptions) error {
	report, err := verify(dir, known, opt)
	if report == nil {
		return err
	}
	reports[i] = report
	return nil
}

// saidOf is what the other journals say of one.
func saidOf(reports []*Report, of int, copied time.Duration) []Anchor {
	id := reports[of]
	var said []Anchor
	for i, r := range reports {
		if i == of || r.Replica == id.Replica {
			continue
		}
		for _, a := range r.witnessed {
			if a.Installation != id.Installation || a.Replica != id.Replica {
				continue
			}
			seen := *a.Seen
			seen.late = copied > 0 && !seen.recorded.Before(r.Records.LastTime.Add(-copied))
			a.Seen = &seen
			said = append(said, a)
		}
	}
	return said
}

// compareFolders finds journals of different installations, and notes what is given twice.
func compareFolders(reports []*Report, dirs []string) {
	for i, r := range reports {
		for j, before := range reports[:i] {
			switch {
			case r.Installation == "" || before.Installation == "":
			case r.Installation != before.Installation:
				r.Findings = append(r.Findings, Finding{What: fmt.Sprintf("this is a journal of the installation %s, and that in %s of %s", r.Installation, dirs[j], before.Installation)})
			case r.Replica == before.Replica:
				r.Notes = append(r.Notes, Finding{What: fmt.Sprintf("the journal in %s is of the same replica, %s", dirs[j], r.Replica)})
			default:
				continue
			}
			break
		}
	}
}

// missingJournals names the replicas whose journals are spoken of and are not there.
func missingJournals(reports []*Report, opt VerifyOptions) {
	type missed struct {
		Anchor
		in *Report
	}
	newest := map[string]missed{}
	for _, r := range reports {
		for _, a := range slices.Concat(r.witnessed, r.elsewhere) {
			given := func(other *Report) bool { return other.Installation == a.Installation && other.Replica == a.Replica }
			before, ok := newest[a.Replica]
			if slices.ContainsFunc(reports, given) || ok && cmp.Or(cmp.Compare(before.Incarnation, a.Incarnation), cmp.Compare(before.seq(), a.seq())) >= 0 {
				continue
			}
			newest[a.Replica] = missed{a, r}
		}
	}
	replicas := make([]string, 0, len(newest))
	for name := range newest {
		replicas = append(replicas, name)
	}
	slices.Sort(replicas)
	for _, name := range replicas {
		m := newest[name]
		seq, _, at := m.Head()
		who := "as a known head says"
		if m.Seen != nil {
			who = "as " + m.source() + " says"
		}
		stood := fmt.Sprintf("stood at record %d in run %d", seq, m.Incarnation)
		if m.begun() {
			stood = fmt.Sprintf("began run %d", m.Incarnation)
		}
		f := m.accuse(Finding{Record: seq, Missing: name, What: fmt.Sprintf("the journal of replica %s is not given, but %s on %s, %s",
			printable(name), stood, at.UTC().Format(time.RFC3339), who)})
		if len(reports) == 1 || opt.Only {
			m.in.Notes = append(m.in.Notes, f)
		} else {
			m.in.Findings = append(m.in.Findings, f)
		}
	}
}

// doubtWitnesses has findings say that the journal they rest on is not what was written itself.
func doubtWitnesses(reports []*Report) {
	doubtful := map[string]bool{}
	for _, r := range reports {
		own := func(f Finding) bool { return f.by == "" && f.File != "" }
		doubtful[r.Replica] = doubtful[r.Replica] || slices.ContainsFunc(r.Findings, own)
	}
	for _, r := range reports {
		for i := range r.Findings {
			if f := &r.Findings[i]; f.by != "" && doubtful[f.by] {
				f.What += " (but that journal is not what was written itself)"
			}
		}
	}
}
