// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scene is a book with one of everything, and the lines of a journal and an inventory that agree with it.
func scene() (*book, []string, *inventory) {
	b := newBook()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.tokens = []token{{id: "t1", client: "c"}, {id: "t2", client: "c"}}
	b.certs = []certificate{
		{thumbprint: "x1", serial: "1", client: "c", event: enrollEvent},
		{thumbprint: "x2", serial: "2", client: "c", event: renewEvent},
	}
	b.changes = []change{
		{event: addEvent, client: "c", correlation: "k1", records: 1},
		{event: revokeEvent, client: "c", correlation: "k2", records: 2},
		{event: addEvent, client: "d", records: 1},
	}
	b.losses = []*loss{{client: "c", thumbprint: "x1", at: at.Add(8 * time.Second)}}
	b.revoked["x1"], b.revoked["x2"] = true, true
	b.state["c"], b.state["d"], b.state["e"] = "enabled", "disabled", "removed"
	lines := []string{
		`{"seq":1,"time":"2026-01-02T03:04:06.000000Z","id":"e1","event":"client.add","outcome":"granted","client":"c","correlation":"k1"}`,
		`{"seq":2,"time":"2026-01-02T03:04:07.000000Z","id":"e2","event":"cert.enroll","outcome":"granted","client":"c","x5t#S256":"x1","serial":"1"}`,
		`{"seq":3,"time":"2026-01-02T03:04:08.000000Z","event":"token","outcome":"granted","client":"c","x5t#S256":"x1","jti":"t1"}`,
		`{"frame":{"seq":3,"records":3}}`, ``, ``,
		`{"seq":4,"time":"2026-01-02T03:04:09.000000Z","id":"e3","event":"cert.renew","outcome":"granted","client":"c","x5t#S256":"x2","serial":"2"}`,
		`{"seq":5,"time":"2026-01-02T03:04:09.500000Z","event":"cert.renew","outcome":"granted","reason":"repeated","client":"c","x5t#S256":"x2","serial":"2"}`,
		`{"seq":6,"time":"2026-01-02T03:04:10.000000Z","event":"token","outcome":"granted","client":"c","x5t#S256":"x1","jti":"t2"}`,
		`{"seq":7,"time":"2026-01-02T03:04:11.000000Z","id":"e4","event":"cert.revoke","outcome":"granted","client":"c","correlation":"k2","serial":"1"}`,
		`{"seq":8,"time":"2026-01-02T03:04:11.000000Z","id":"e5","event":"cert.revoke","outcome":"granted","client":"c","correlation":"k2","serial":"2"}`,
		`{"seq":9,"time":"2026-01-02T03:04:12.000000Z","event":"cert.revoke","outcome":"granted","client":"c","correlation":"k3","serial":"1","detail":{"changed":"nothing"}}`,
		`{"seq":10,"time":"2026-01-02T03:04:13.000000Z","event":"client.add","outcome":"granted","client":"d"}`,
		`{"seq":11,"time":"2026-01-02T03:04:14.000000Z","event":"client.add","outcome":"refused","client":"d"}`,
		`{"seq":12,"time":"2026-01-02T03:04:15.000000Z","event":"token","outcome":"refused","client":"c","x5t#S256":"x1"}`,
	}
	inv := &inventory{
		clients: map[string]bool{"operator": false, "c": false, "d": true},
		certs: []inventoryCertificate{
			{Serial: "1", Thumbprint: "x1", Client: "c", Status: "revoked"}, {Serial: "2", Thumbprint: "x2", Client: "c", Status: "revoked"},
		},
	}
	return b, lines, inv
}

// read writes lines into two segments and reads them back.
func read(t *testing.T, lines []string) (*journal, error) {
	t.Helper()
	dir := t.TempDir()
	for name, part := range map[string][]string{"audit-00000001-1.jsonl": lines[:len(lines)/2], "audit-00000001-2.jsonl": lines[len(lines)/2:]} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(part, "\n")+"\n\n\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return readJournal(dir)
}

// Whatever does not agree is found, and nothing is found where all agrees.
func TestJudge(t *testing.T) {
	t.Parallel()
	edit := func(old, with string) func(*book, []string, *inventory) {
		return func(_ *book, lines []string, _ *inventory) {
			for i := range lines {
				lines[i] = strings.Replace(lines[i], old, with, 1)
			}
		}
	}
	for name, tt := range map[string]struct {
		change func(*book, []string, *inventory)
		want   string // part of the complaint; empty: none
	}{
		"all agrees":             {func(*book, []string, *inventory) {}, ""},
		"a bad answer":           {func(b *book, _ []string, _ *inventory) { b.problem("it hiccuped") }, "it hiccuped"},
		"a gap":                  {edit(`"seq":12`, `"seq":13`), "record 13 follows record 11"},
		"a token twice":          {edit(`"jti":"t2"`, `"jti":"t1"`), "token t1 of c is on record 2 times"},
		"a token of another":     {func(b *book, _ []string, _ *inventory) { b.tokens[1].client = "z" }, "token t2 of z is on record for c"},
		"a token after the loss": {edit(`03:04:10.000000Z"`, `03:04:13.500000Z"`), "token t2 was given to c 500ms after"},
		"a token after it came back": {func(b *book, lines []string, _ *inventory) {
			b.losses[0].until = b.losses[0].at.Add(time.Millisecond)
			edit(`03:04:10.000000Z"`, `03:04:13.500000Z"`)(b, lines, nil)
		}, ""},
		"an event twice":            {edit(`"id":"e2"`, `"id":"e1"`), "event e1 is on record 2 times"},
		"a change not on record":    {edit(`"correlation":"k1"`, `"correlation":"k9"`), `client.add of c, correlation "k1", was done and is on record 0 times`},
		"a change refused":          {edit(`"granted","client":"d"`, `"refused","client":"d"`), "client.add of d"},
		"half a revocation":         {edit(`"correlation":"k2","serial":"2"`, `"correlation":"k9","serial":"2"`), "on record 1 times, want 2"},
		"an unrecorded certificate": {edit(`"serial":"2"`, `"serial":"9"`), "certificate 2 of c is in the inventory and on record 0 times"},
		"a certificate twice":       {edit(`"reason":"repeated",`, ``), "certificate 2 of c is in the inventory and on record 2 times"},
		"a certificate otherwise":   {func(b *book, _ []string, _ *inventory) { b.certs[1].event = enrollEvent }, "is not on record as cert.enroll"},
		"a certificate not there":   {func(_ *book, _ []string, inv *inventory) { inv.certs = inv.certs[1:] }, "certificate 1, which c received, is not in the inventory"},
		"a revocation undone":       {func(_ *book, _ []string, inv *inventory) { inv.certs[0].Status = "valid" }, "certificate 1 of c was revoked, is valid"},
		"a revocation without word": {edit(`"granted","client":"c","correlation":"k2","serial":"1"`, `"granted","client":"c","correlation":"k2","serial":"7"`), "that is on record 0 times"},
		"a client without record":   {func(_ *book, _ []string, inv *inventory) { inv.clients["f"] = false }, "client f is there, and its registration is on record 0 times"},
		"a client enabled":          {func(_ *book, _ []string, inv *inventory) { inv.clients["d"] = false }, "client d is enabled, and somebody was told disabled"},
		"a client removed":          {func(_ *book, _ []string, inv *inventory) { delete(inv.clients, "d") }, "client d is removed, and somebody was told disabled"},
		"a client still there": {func(b *book, lines []string, inv *inventory) {
			b.state["d"] = "removed"
		}, "client d is disabled, and somebody was told removed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, lines, inv := scene()
			tt.change(b, lines, inv)
			j, err := read(t, lines)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := b.judge(j, inv); err != nil {
				got = err.Error()
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("it says %q, want %q", got, tt.want)
			}
			if lost := b.missing(j); name == "all agrees" && len(lost) != 0 {
				t.Errorf("%d tokens are missing", len(lost))
			}
		})
	}
}

// A token that nobody recorded is missed, and how near to a kill it was received is told.
func TestMissing(t *testing.T) {
	t.Parallel()
	b, lines, _ := scene()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.ends = []time.Time{at, at.Add(time.Minute)}
	b.tokens = append(b.tokens,
		token{id: "t3", life: 0, received: at.Add(-3 * time.Millisecond)},
		token{id: "t4", life: 1, received: at.Add(5 * time.Millisecond)})
	j, err := read(t, lines)
	if err != nil {
		t.Fatal(err)
	}
	lost := b.missing(j)
	if len(lost) != 2 || lost[0].id != "t3" || lost[1].id != "t4" {
		t.Fatalf("missing are %+v", lost)
	}
	if got := b.beside(lost); got != 5*time.Millisecond {
		t.Errorf("beside a kill by %v", got)
	}
	if got := b.beside([]token{{life: 2, received: at.Add(2 * time.Minute)}}); got != time.Minute {
		t.Errorf("after the last kill by %v", got)
	}
}

// A line that is no record is an error wherever it is: the program has put its journal in order when it started again.
func TestReadJournalTorn(t *testing.T) {
	t.Parallel()
	_, lines, _ := scene()
	lines[1] = lines[1][:40]
	if _, err := read(t, lines); err == nil || !strings.Contains(err.Error(), "audit-00000001-1.jsonl, line 2") {
		t.Errorf("half a line: %v", err)
	}
	if _, err := readJournal(t.TempDir()); err == nil {
		t.Error("a folder without a journal is read")
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	const name = "/x/audit-00000001-7.jsonl"
	for text, want := range map[string]bool{
		"error: audit/audit-00000001-7.jsonl, byte 100200: damaged": true,
		"error: audit/audit-00000001-7.jsonl, byte 100201: damaged": false, // behind the damage
		"error: audit/audit-00000001-7.jsonl, byte 20: damaged":     false, // far before it
		"error: audit/audit-00000001-8.jsonl, byte 100200: damaged": false,
		"byte 100200 of audit-00000001-7.jsonl":                     false,
		"":                                                          false,
	} {
		if got := (place{[]string{name}, 100200}).in(text); got != want {
			t.Errorf("%q names the place: %v", text, got)
		}
	}
	missing := place{[]string{"/x/audit-00000001-6.jsonl", name}, -1}
	if !missing.in("audit-00000001-7.jsonl: what is before it is missing") || missing.in("audit-00000001-8.jsonl is missing") {
		t.Error("a missing file is named by itself or by the one beside it, and by no other")
	}
}

// A copy has everything but sockets, and damage is where it is said to be.
func TestCopyAndDamage(t *testing.T) {
	t.Parallel()
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	text := strings.Repeat(`{"event":"token"}`+"\n", 100) + strings.Repeat("\n", 500)
	if err := os.MkdirAll(filepath.Join(from, "audit"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.jsonl", "b.jsonl"} {
		if err := os.WriteFile(filepath.Join(from, "audit", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("audit", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, to); err != nil {
		t.Fatal(err)
	}
	if name, err := os.Readlink(filepath.Join(to, "link")); err != nil || name != "audit" {
		t.Errorf("the link points to %q, %v", name, err)
	}
	flipped, err := flip(filepath.Join(to, "audit", "a.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	cutOff, err := cut(filepath.Join(to, "audit", "b.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := contents(filepath.Join(to, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := string(got["a.jsonl"]), string(got["b.jsonl"])
	at, end := flipped.offset, cutOff.offset
	if len(a) != len(text) || a[:at] != text[:at] || a[at] == text[at] || a[at+1:] != text[at+1:] {
		t.Errorf("another byte than %d is changed", at)
	}
	if b != text[:end] || end == 0 || end >= int64(100*len(`{"event":"token"}`+"\n")) {
		t.Errorf("cut at %d to %d bytes", end, len(b))
	}
}
