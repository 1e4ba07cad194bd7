// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
)

const (
	// searchLimit is how many records search shows unless it is told otherwise.
	searchLimit = 1000
	// maxSearch is how many of the newest records can be asked for: they are held in memory.
	maxSearch = 100_000
	// followEvery is how often following looks for more.
	followEvery = time.Second
)

// records is where records come from: a service, or a folder.
type records interface {
	page(ctx context.Context, q audit.Query) (*audit.Page, error)
	Close()
}

// served are the records that a service shows.
type served struct{ operators }

func (s served) page(ctx context.Context, q audit.Query) (*audit.Page, error) {
	query := url.Values{}
	for name, value := range map[string]string{
		"client": q.Client, "actor": q.Actor, "thumbprint": q.Thumbprint, "jti": q.TokenID, "serial": q.Serial, "event": q.Event,
		"outcome": q.Outcome, "reason": q.Reason, "correlation": q.Correlation,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			query.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if q.Refusals {
		query.Set("refusals", "true")
	}
	if q.Forward {
		query.Set("after", strconv.FormatUint(q.After, 10))
	} else if q.Before > 0 {
		query.Set("before", strconv.FormatUint(q.Before, 10))
	}
	if q.Limit > 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	var answer admin.AuditPage
	if err := s.Do(ctx, http.MethodGet, "/audit?"+query.Encode(), nil, &answer); err != nil {
		return nil, err
	}
	page := &audit.Page{Next: answer.Next, Done: answer.Done}
	for _, record := range answer.Records {
		e, err := audit.ParseEntry(record)
		if err != nil {
			return nil, err
		}
		page.Entries = append(page.Entries, e)
	}
	return page, nil
}

// stored are the records of a folder. What is sealed stays so: the keys are the service's.
type stored struct{ audit.Reader }

func (s stored) page(ctx context.Context, q audit.Query) (*audit.Page, error) {
	return s.Search(ctx, q)
}

func (s stored) Close() {}

// lookup is what search and export have in common.
type lookup struct {
	c      *cli
	filter audit.Filter
	since  string
	until  string
	data   string
	limit  int
	follow bool
}

func (c *cli) lookupFlags(cmd *cobra.Command) *lookup {
	l := &lookup{c: c}
	c.operatorFlags(cmd, false)
	socket := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if l.data != "" && (c.profile != "" || c.socket != "") {
			return usagef("leave one of the two out", "--data asks no service")
		}
		return cmp.Or(socket(cmd, args), notEmpty(cmd), l.check(time.Now()))
	}
	flags := cmd.Flags()
	flags.StringVar(&l.filter.Client, "client", "", "about this client")
	flags.StringVar(&l.filter.Actor, "actor", "", "asked for by this client")
	flags.StringVar(&l.filter.Thumbprint, "thumbprint", "", "with the certificate of this thumbprint (x5t#S256)")
	flags.StringVar(&l.filter.TokenID, "jti", "", "the token of this id")
	flags.StringVar(&l.filter.Serial, "serial", "", "the certificate of this serial number, decimal")
	flags.StringVar(&l.filter.Event, "event", "", "of this name, such as token, cert.revoke; client.* is all that begin with client.")
	flags.StringVar(&l.filter.Outcome, "outcome", "", "granted or refused")
	flags.StringVar(&l.filter.Reason, "reason", "", "refused for this reason")
	flags.StringVar(&l.filter.Correlation, "correlation", "", "of the request whose answer had this X-Correlation-Id")
	flags.StringVar(&l.since, "since", "", "not before this time: 2026-11-23T12:00:00Z, 2026-11-23, or 90m, 1h, 7d ago")
	flags.StringVar(&l.until, "until", "", "before this time")
	flags.BoolVar(&l.filter.Refusals, "refusals", false, "look through the refusals of strangers, which are counted and kept apart")
	flags.BoolVar(&l.follow, "follow", false, "go on with what is recorded from now on, until interrupted")
	flags.StringVar(&l.data, "data", "", "look through this data folder, or a copy of its folder audit, and ask no service")
	return l
}

// notEmpty refuses a flag with nothing in it, such as a variable that a script did not set: left out, it would mean all.
func notEmpty(cmd *cobra.Command) error {
	names := []string{"client", "actor", "thumbprint", "jti", "serial", "event", "outcome", "reason", "correlation", "since", "until", "data"}
	for _, name := range names {
		if f := cmd.Flag(name); f.Changed && f.Value.String() == "" {
			return usagef("leave it out to look through all", "--%s is empty", name)
		}
	}
	return nil
}

// check reads what the flags say. What no record can have is a mistake, and not a search that finds nothing.
func (l *lookup) check(now time.Time) error {
	if err := clientFlag("--client", l.filter.Client); err != nil {
		return err
	}
	if s := l.filter.Serial; strings.Trim(s, "0123456789") != "" {
		return usagef("write it in decimal, as certbound cert list does", "--serial %q is no serial number", s)
	}
	if t := l.filter.Thumbprint; t != "" {
		if raw, err := base64.RawURLEncoding.Strict().DecodeString(t); err != nil || len(raw) != sha256.Size {
			return usagef("it is the SHA-256 of a certificate in base64url, 43 characters", "--thumbprint %q is no thumbprint", t)
		}
	}
	if o := l.filter.Outcome; o != "" && o != audit.Granted && o != audit.Refused {
		return usagef("use granted or refused", "%q is no outcome", o)
	}
	var err error
	if l.filter.Since, err = moment("--since", l.since, now); err != nil {
		return err
	}
	if l.filter.Until, err = moment("--until", l.until, now); err != nil {
		return err
	}
	if u := l.filter.Until; l.follow && !u.IsZero() && !u.After(now) {
		return usagef("leave one of the two out", "--follow goes on with what is recorded from now on, and --until is over")
	}
	if l.limit < 0 || l.limit > maxSearch {
		return usagef("use 1 to "+strconv.Itoa(maxSearch)+", or 0 for all", "--limit %d is too many or too few", l.limit)
	}
	return nil
}

// moment reads a time, or how long ago it was.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, usagef("write it as 2026-11-23T12:00:00Z, 2026-11-23, 90m, 1h or 7d", "%s: %q is no time", flag, text)
}

func (l *lookup) open() (records, error) {
	if l.data != "" {
		return stored{audit.Reader{Dir: audit.Dir(l.data)}}, nil
	}
	op, err := l.c.operator()
	if err != nil {
		return nil, err
	}
	return served{op}, nil
}

// run gives emit every record that is looked for, in their order: the newest ones up to the limit, or all where that is 0,
// and with follow what comes after them.
func (l *lookup) run(ctx context.Context, emit func(*audit.Entry) error) error {
	from, err := l.open()
	if err != nil {
		return err
	}
	defer from.Close()
	var last uint64
	found := false
	show := emit
	emit = func(e *audit.Entry) error {
		found = true
		return show(e)
	}
	if l.limit > 0 {
		last, err = l.tail(ctx, from, emit)
	} else {
		last, err = l.forward(ctx, from, 0, emit)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf("name the data folder of the service, or a copy of its audit folder, with --data", "there is no journal in %s", l.data)
	case err != nil:
		return err
	}
	if !found && l.filter.Correlation != "" && !l.filter.Refusals {
		l.c.note("note: refusals of strangers are kept apart, and one stands for all that are alike within a second: --refusals looks there")
	}
	if !l.follow {
		return nil
	}
	return l.following(ctx, from, last, emit)
}

// tail gives emit the newest records up to the limit, and returns the number of the newest there was.
func (l *lookup) tail(ctx context.Context, from records, emit func(*audit.Entry) error) (uint64, error) {
	// What comes after that one is followed, so it is found out first.
	last, err := l.end(ctx, from)
	if err != nil {
		return 0, err
	}
	newest, more, err := l.newest(ctx, from, last)
	if err != nil {
		return 0, err
	}
	if more {
		l.c.note("note: these are the newest %d; --limit 0 shows all", l.limit)
	}
	for _, e := range newest {
		if err := emit(e); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// end is the number of the newest record there is, whatever it is about.
func (l *lookup) end(ctx context.Context, from records) (uint64, error) {
	q := audit.Query{Filter: audit.Filter{Refusals: l.filter.Refusals}, Limit: 1}
	for {
		page, err := from.page(ctx, q)
		if err != nil {
			return 0, err
		}
		if n := len(page.Entries); n > 0 {
			return page.Entries[n-1].Seq, nil
		}
		if page.Done {
			return 0, nil
		}
		q.Before = page.Next
	}
}

// newest collects the newest records up to the limit and up to last, and says whether there are older ones.
func (l *lookup) newest(ctx context.Context, from records, last uint64) ([]*audit.Entry, bool, error) {
	var pages [][]*audit.Entry
	count := 0
	q := audit.Query{Filter: l.filter, Before: last + 1}
	for {
		q.Limit = min(l.limit+1-count, audit.MaxPage) // one more tells whether there are more
		page, err := from.page(ctx, q)
		if err != nil {
			return nil, false, err
		}
		pages, count = append(pages, page.Entries), count+len(page.Entries)
		if page.Done || count > l.limit {
			break
		}
		q.Before = page.Next
	}
	slices.Reverse(pages)
	entries := slices.Concat(pages...)
	if count > l.limit {
		return entries[count-l.limit:], true, nil
	}
	return entries, false, nil
}

// forward gives emit all records after one, and returns where it ended.
func (l *lookup) forward(ctx context.Context, from records, after uint64, emit func(*audit.Entry) error) (uint64, error) {
	q := audit.Query{Filter: l.filter, Forward: true, After: after}
	for {
		page, err := from.page(ctx, q)
		if err != nil {
			return q.After, err
		}
		for _, e := range page.Entries {
			if err := emit(e); err != nil {
				return q.After, err
			}
		}
		q.After = page.Next
		if page.Done {
			return q.After, nil
		}
	}
}

// following goes on until it is interrupted. A service that is restarted meanwhile is waited for.
func (l *lookup) following(ctx context.Context, from records, last uint64, emit func(*audit.Entry) error) error {
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	away := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var unseen error
		next, err := l.forward(ctx, from, last, func(e *audit.Entry) error {
			unseen = emit(e)
			last = e.Seq // so that none comes twice when the next page fails
			return unseen
		})
		last = max(last, next)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			away = false
		case unseen != nil || !passing(err):
			return err
		case !away:
			away = true
			l.c.note("note: the service does not answer, and is waited for: %s", oneLine(err.Error()))
		}
	}
}

// passing says whether an error is one that may be over when the service is back.
func passing(err error) bool {
	if api, ok := errors.AsType[*profile.APIError](err); ok {
		return api.Status >= 500 || api.Status == http.StatusTooManyRequests
	}
	_, lapsed := errors.AsType[*profile.LapsedError](err)
	return !lapsed
}

func (c *cli) auditSearchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "search", Short: "Look through the journal of decisions", Args: arguments(0, 0),
		Long: "Look through the journal of decisions: what was granted or refused, to whom and why, oldest first. All that is asked\n" +
			"for has to fit. A search through the service is recorded itself, because it shows addresses of callers; one through a\n" +
			"folder (--data) shows them only as they are sealed.\n\n" +
			"Each replica has a journal of its own, and answers from that. What one recorded for another that had died may be in both,\n" +
			"with the same id: it is one event.\n\n" +
			"Segments that are wholly older than --since or younger than --until are not read; all others are, at some hundred\n" +
			"megabytes a second.",
	}
	l := c.lookupFlags(cmd)
	cmd.Flags().IntVar(&l.limit, "limit", searchLimit, "how many of the newest records, 0 for all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		emit, end := c.listing(l.follow)
		if err := l.run(cmd.Context(), emit); err != nil {
			return err
		}
		return end()
	}
	return cmd
}

// listing prints records: as lines of text, as a JSON array, or, where there is no end, as lines of JSON.
func (c *cli) listing(endless bool) (emit func(*audit.Entry) error, end func() error) {
	if !c.json {
		return func(e *audit.Entry) error {
			_, err := io.WriteString(c.stdout, describe(e)+"\n")
			return err
		}, func() error { return nil }
	}
	if endless {
		return func(e *audit.Entry) error {
			_, err := fmt.Fprintf(c.stdout, "%s\n", e.Line)
			return err
		}, func() error { return nil }
	}
	before := "[\n  "
	return func(e *audit.Entry) error {
			_, err := fmt.Fprintf(c.stdout, "%s%s", before, bytes.TrimSpace(e.Line))
			before = ",\n  "
			return err
		}, func() error {
			if before == "[\n  " {
				_, err := io.WriteString(c.stdout, "[]\n")
				return err
			}
			_, err := io.WriteString(c.stdout, "\n]\n")
			return err
		}
}

// describe is a record in one line for people: what a caller wrote into it does not steer their terminal.
func describe(e *audit.Entry) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %s", stamp(e.Time), e.Seq, visible(e.Name))
	if e.Outcome != "" {
		b.WriteString(" " + visible(e.Outcome))
	}
	add := func(name, value string) {
		if value != "" {
			b.WriteString(" " + visible(name) + "=" + visible(value))
		}
	}
	add("reason", e.Reason)
	if e.Count > 0 {
		add("count", strconv.Itoa(e.Count))
	}
	add("client", e.Client)
	add("actor", e.Actor)
	add("address", e.Address)
	add("scope", strings.Join(e.Scope, " "))
	add("aud", strings.Join(e.Audience, " "))
	add("resource", e.Resource)
	add("jti", e.TokenID)
	add("serial", e.Serial)
	if !e.Expires.IsZero() {
		add("expires", e.Expires.UTC().Format(time.RFC3339))
	}
	for _, members := range []map[string]string{e.Detail, e.Personal} {
		for _, name := range slices.Sorted(maps.Keys(members)) {
			add(name, members[name])
		}
	}
	add("x5t#S256", e.Thumbprint)
	add("correlation", e.Correlation)
	if e.Sealed != "" {
		add("sealed", sealedText(e.Sealed))
	}
	return b.String()
}

// sealedText says that something is there and cannot be read here.
func sealedText(sealed string) string {
	switch sealed {
	case "erased", "none":
		return sealed
	}
	return "yes"
}

// visible quotes a value that is more than one plain word.
func visible(s string) string {
	plain := func(r rune) bool { return r > ' ' && r < 0x7f && r != '"' && r != '\\' }
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return strconv.QuoteToASCII(s)
}

func (c *cli) auditExportCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "export --format json|ocsf|cef", Short: "Print the journal for other systems, one record a line", Args: arguments(0, 0),
		Long: "Print the journal for other systems, one record a line, oldest first: as the journal has it (json), as events of the Open\n" +
			"Cybersecurity Schema Framework " + audit.OCSFVersion + " (ocsf: tokens are Authentication, changes of clients Account Change, all else\n" +
			"API Activity), or in the Common Event Format (cef). An export through the service is recorded itself.\n\n" +
			"Each replica has a journal of its own: export all of them. Records of the same id in two journals are one event.",
	}
	l := c.lookupFlags(cmd)
	cmd.Flags().StringVar(&format, "format", string(audit.FormatJSON), "json, ocsf or cef")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(audit.Formats(), audit.Format(format)) {
			return usagef("use json, ocsf or cef", "unknown format %q", format)
		}
		var line []byte
		return l.run(cmd.Context(), func(e *audit.Entry) error {
			var err error
			if line, err = audit.Format(format).Append(line[:0], e, version); err != nil {
				return err
			}
			_, err = c.stdout.Write(line)
			return err
		})
	}
	return cmd
}
