// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// hostile is what a caller might send as any of its names.
const hostile = "a|b=c\\d\ne\rf\x1bg\u2028h\"} CEF:0|x|y suser=admin \\\\= <&>"

func exported(t testing.TB) []*Entry {
	t.Helper()
	j := newTestJournal(t)
	for _, members := range []struct{ event, text string }{
		{"token", `"outcome":"granted","client":"payments","x5t#S256":"tHuMb","correlation":"c1","jti":"j1","scope":["ledger:read","ledger:write"],"aud":["https://ledger.example"],"expires":"2026-11-23T12:10:00.000000Z","address":"192.0.2.7"`},
		{"token", `"outcome":"refused","reason":"unknown_client","client":"nobody","address":"[2001:db8::7]:4711","detail":{"count":"3"}`},
		{"client.add", `"outcome":"granted","client":"payments","actor":"alice","address":"::ffff:192.0.2.9"`},
		{"client.disable", `"outcome":"granted","client":"payments","actor":"break-glass:0","address":"socket uid=0"`},
		{"client.suspend", `"outcome":"granted","client":"payments"`},
		{"renew.fork", `"outcome":"granted","client":"payments","serial":"1234","sealed":"c.AAAA"`},
		{"cert.revoke", `"id":"ev1","outcome":"granted","client":"payments","actor":"alice","serial":"1234","detail":{"reason":"keyCompromise"}`},
		{"trust.add", `"outcome":"refused","reason":"insufficient_scope","actor":"bob","personal":{"dn":"CN=Bob"}`},
		{"audit.read", `"outcome":"granted","actor":"alice"`},
		{"token", `"outcome":"refused","reason":"no_certificate","correlation":"c2","count":4711,"address":"192.0.2.8"`},
		{"journal.stop", ``},
	} {
		j.add(&j.main, members.event, members.text)
	}
	w := encoder{b: []byte{'{'}}
	for _, name := range []string{"outcome", "reason", "client", "actor", "x5t#S256", "address", "correlation", "jti", "serial", "resource"} {
		w.string(name, hostile)
	}
	w.list("scope", []string{hostile})
	w.list("aud", []string{hostile})
	w.object("detail", map[string]string{hostile: hostile})
	name, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	line := append([]byte(`{"seq":99,"time":"2026-11-23T12:00:00.000001Z","event":`), name...)
	line = append(append(append(line, ','), w.b[1:]...), '}')
	var entries []*Entry
	for text := range bytes.Lines(j.main.open) {
		e, err := ParseEntry(bytes.TrimSuffix(text, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	e, err := ParseEntry(line)
	if err != nil {
		t.Fatal(err)
	}
	return append(entries, e)
}

func TestExportGolden(t *testing.T) {
	t.Parallel()
	for _, format := range []Format{FormatOCSF, FormatCEF} {
		var out []byte
		for _, e := range exported(t) {
			var err error
			if out, err = format.Append(out, e, "v1.2.3"); err != nil {
				t.Fatal(err)
			}
		}
		golden := filepath.Join("testdata", "export", string(format)+".golden")
		if *update {
			if err := os.WriteFile(golden, out, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(out)); diff != "" {
			t.Errorf("%s: %s", format, diff)
		}
	}
}

func TestExportJSONIsTheRecord(t *testing.T) {
	t.Parallel()
	for _, e := range exported(t) {
		out, err := FormatJSON.Append(nil, e, "")
		if err != nil || string(out) != string(e.Line)+"\n" {
			t.Errorf("%v %s", err, out)
		}
	}
	if _, err := Format("xml").Append(nil, &Entry{}, ""); err == nil {
		t.Error("an unknown format")
	}
}

// Whatever a caller calls itself stays within its own value, of its own line.
func TestExportHostile(t *testing.T) {
	t.Parallel()
	entries := exported(t)
	e := entries[len(entries)-1]
	line, err := FormatCEF.Append(nil, e, "v1|2")
	if err != nil {
		t.Fatal(err)
	}
	header, extension := splitCEF(t, strings.TrimSuffix(string(line), "\n"))
	if len(header) != 7 || header[3] != "v1|2" || header[0] != "CEF:0" || header[6] != "3" {
		t.Errorf("%q", header)
	}
	clean := strings.NewReplacer("\x1b", " ", "\u2028", " ").Replace(hostile)
	for _, key := range []string{"outcome", "reason", "suser", "duser", "shost", "cs1", "cs2", "cs3", "cs4", "cs5", "cs6"} {
		if extension[key] != clean {
			t.Errorf("%s: %q, want %q", key, extension[key], clean)
		}
	}
	if len(extension) != 21 {
		t.Errorf("%d keys: %q", len(extension), extension)
	}
	line, err = FormatOCSF.Append(nil, e, "v1")
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		Actor struct {
			User struct{ Name string }
		}
		ClassUID int            `json:"class_uid"`
		Unmapped map[string]any `json:"unmapped"`
	}
	if err := json.Unmarshal(line, &o); err != nil || bytes.Count(line, []byte("\n")) != 1 || o.Actor.User.Name != hostile || o.ClassUID != 6003 {
		t.Errorf("%v %s", err, line)
	}
}

// splitCEF reads a line as a receiver does.
func splitCEF(t *testing.T, line string) (header []string, extension map[string]string) {
	t.Helper()
	if strings.ContainsAny(line, "\n\r\x1b\u2028") {
		t.Errorf("a line has an end within: %q", line)
	}
	field, at := strings.Builder{}, 0
	for ; at < len(line) && len(header) < 7; at++ {
		switch {
		case line[at] == '\\':
			at++
			field.WriteByte(line[at])
		case line[at] == '|':
			header = append(header, field.String())
			field.Reset()
		default:
			field.WriteByte(line[at])
		}
	}
	// The key of a value is the word before an equals sign that is not escaped.
	extension = map[string]string{}
	rest := line[at:]
	var starts [][2]int // of keys, and of their values
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case '=':
			starts = append(starts, [2]int{strings.LastIndexByte(rest[:i], ' ') + 1, i + 1})
		}
	}
	for i, s := range starts {
		end := len(rest)
		if i+1 < len(starts) {
			end = starts[i+1][0] - 1
		}
		value := strings.NewReplacer(`\\`, `\`, `\=`, `=`, `\n`, "\n", `\r`, "\r").Replace(rest[s[1]:end])
		extension[rest[s[0]:s[1]-1]] = value
	}
	return header, extension
}

// Every event has what its class requires.
func TestExportOCSFRequired(t *testing.T) {
	t.Parallel()
	for _, e := range exported(t) {
		line, err := FormatOCSF.Append(nil, e, "v1")
		if err != nil {
			t.Fatal(err)
		}
		var o map[string]any
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		required := []string{"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
		switch o["class_uid"].(float64) {
		case 3001:
			required = append(required, "user")
		case 3002:
			required = append(required, "user", "service")
		case 6003:
			required = append(required, "actor", "api", "src_endpoint")
		default:
			t.Errorf("%s is of no class", e.Name)
		}
		for _, name := range required {
			if o[name] == nil {
				t.Errorf("%s has no %s: %s", e.Name, name, line)
			}
		}
		if o["type_uid"].(float64) != o["class_uid"].(float64)*100+o["activity_id"].(float64) {
			t.Errorf("%s: %s", e.Name, line)
		}
	}
}
