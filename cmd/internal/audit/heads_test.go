// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHeadsNeverGoBack(t *testing.T) {
	t.Parallel()
	j := story(t)
	first, last := j.anchors[0], j.anchors[len(j.anchors)-1]
	other := newTestJournal(t) // the same identity, other keys
	other.tokens(3)
	other.checkpoint()
	for range 30 {
		other.tokens(1)
		other.checkpoint()
	}
	stranger := newTestJournal(t)
	stranger.id.Installation = "elsewhere"
	stranger.checkpoint()
	early := other.anchors[0]
	early.Incarnation = 3
	early.Checkpoint.Journal = early.Identity.String()
	early.Checkpoint.sign(other.newKeyOf(&early.Checkpoint))
	sameFirst := other.anchors[0]
	sameFirst.FirstKey = first.FirstKey
	rewritten := first
	rewritten.Checkpoint.Head = last.Checkpoint.Head
	rewritten.Checkpoint.sign(other.newKeyOf(&rewritten.Checkpoint))
	forged := last
	forged.Checkpoint.Seq += 5
	middle := j.anchors[2] // of the first incarnation
	for _, tt := range []struct {
		name        string
		kept, shown []Anchor
		alarm       string
		want        []Anchor
	}{
		{"the first", nil, []Anchor{first}, "", []Anchor{first}},
		{"the same", []Anchor{first}, []Anchor{first}, "", []Anchor{first}},
		{"newer", []Anchor{first}, []Anchor{middle}, "", []Anchor{middle}},
		{"the next incarnation", []Anchor{middle}, []Anchor{last}, "", []Anchor{last, middle}},
		{"nothing", []Anchor{last}, nil, "", []Anchor{last}},
		{"older", []Anchor{middle}, []Anchor{first}, "its journal was put back", []Anchor{middle}},
		{"an older incarnation", []Anchor{last}, []Anchor{first}, "stood at record", []Anchor{last}},
		{"a later incarnation that begins too early", []Anchor{last}, []Anchor{early}, "stood at record", []Anchor{last}},
		{"another first key", []Anchor{first}, other.anchors[20:21], "another first key", []Anchor{first}},
		{"another chain", []Anchor{first}, []Anchor{rewritten}, "another chain", []Anchor{first}},
		{"another installation", []Anchor{first}, stranger.anchors, "it was replaced", []Anchor{first}},
		{"forged", []Anchor{first}, []Anchor{forged}, "not what it signed", []Anchor{first}},
	} {
		merged, alarms := KnownHeads{Heads: tt.kept}.Merge(tt.shown)
		if got := strings.Join(alarms, "; "); (got == "") != (tt.alarm == "") || !strings.Contains(got, tt.alarm) {
			t.Errorf("%s: alarms %q, want %q", tt.name, alarms, tt.alarm)
		}
		if diff := cmp.Diff(tt.want, merged.Heads); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestParseHeads(t *testing.T) {
	t.Parallel()
	k := KnownHeads{Heads: story(t).known()}
	text, err := k.Text()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseHeads(text)
	if diff := cmp.Diff(k, read); err != nil || diff != "" {
		t.Error(err, diff)
	}
	// What audit heads prints is an array, and has heads that are not signed.
	k.Heads = append(k.Heads, seenOf("b", 2, 7))
	if text, err = json.Marshal(k.Heads); err != nil {
		t.Fatal(err)
	}
	read, err = ParseHeads(text)
	if diff := cmp.Diff(k, read, cmp.AllowUnexported(Sighting{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if text, err = k.Text(); err != nil { // for what follows
		t.Fatal(err)
	}
	// Of what nobody signed nothing is kept.
	if merged, alarms := (KnownHeads{}).Merge(k.Heads[len(k.Heads)-1:]); len(merged.Heads) != 0 || len(alarms) != 0 {
		t.Errorf("%+v, %q", merged, alarms)
	}
	if none, err := ParseHeads(nil); err != nil || len(none.Heads) != 0 {
		t.Error(none, err)
	}
	const seen = `[{"installation":"i","replica":"b","incarnation":1,"seen":`
	chain := chainString([32]byte{1})
	signed, err := json.Marshal(k.Heads[0].Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"x", `{"heads":[{}]}`, `[{}]`, "[", seen + `{}}]`, seen + `{"by":"b","head":{"seq":0,"chain":"` + chain + `"}}}]`,
		seen + `{"head":{"seq":1,"chain":"` + chain + `"}}}]`, seen + `{"by":"b","head":{"seq":1,"chain":"x"}}}]`,
		seen + `{"by":"b","head":{"seq":1,"chain":"` + chain + `"}},"checkpoint":` + string(signed) + `}]`,
		strings.Replace(string(text), `"seq": `, `"seq": 1`, 1),
	} {
		if _, err := ParseHeads([]byte(bad)); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
}

func TestHeadsAreBounded(t *testing.T) {
	t.Parallel()
	j := newTestJournal(t)
	k := KnownHeads{}
	for range maxHeads + 5 {
		j.checkpoint()
		var alarms []string
		if k, alarms = k.Merge(j.anchors[len(j.anchors)-1:]); len(alarms) > 0 {
			t.Fatal(alarms)
		}
		j.begin()
	}
	if len(k.Heads) != maxHeads || k.Heads[0].Incarnation != maxHeads+5 {
		t.Errorf("%d heads, the newest of %d", len(k.Heads), k.Heads[0].Incarnation)
	}
}
