// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxHeads is how many incarnations' heads are kept of each replica. The newest covers what the others do.
const maxHeads = 100

// Anchor is what somebody else keeps of a journal, to hold it to that later: a checkpoint of it that was durable, or, where
// no signatures are kept, what was seen of one.
type Anchor struct {
	Identity
	FirstKey   string     `json:"first_key,omitempty"` // public key of the incarnation's first checkpoint, base64url
	Checkpoint Checkpoint `json:"checkpoint,omitzero"`
	Seen       *Sighting  `json:"seen,omitempty"` // nil: it is the checkpoint that is kept
}

// Sighting is where somebody saw a journal stand.
type Sighting struct {
	By   string    `json:"by"`   // who keeps it: "database", or the replica whose journal says so
	Head Head      `json:"head"` // zero: its incarnation was begun, and nothing that it said was seen yet
	Time time.Time `json:"time"`

	record   uint64    // of the journal that says so, and its time
	recorded time.Time //
	late     bool      // it may have been seen after the other journal was copied
}

// ByDatabase is who keeps the heads that replicas leave in the database.
const ByDatabase = "database"

// Head is where the journal stood, its chain in base64url, and when.
func (a *Anchor) Head() (seq uint64, chain string, at time.Time) {
	if a.Seen != nil {
		return a.Seen.Head.Seq, chainString(a.Seen.Head.Chain), a.Seen.Time
	}
	return a.Checkpoint.Seq, a.Checkpoint.Head, a.Checkpoint.Time
}

func (a *Anchor) seq() uint64 {
	seq, _, _ := a.Head()
	return seq
}

// begun reports whether nothing was seen but that the incarnation was begun.
func (a *Anchor) begun() bool { return a.Seen != nil && a.Seen.Head.Seq == 0 }

// keeper is who keeps the head.
func (a *Anchor) keeper() string {
	if a.Seen == nil {
		return "operator"
	}
	return a.Seen.By
}

// source is who says what is no checkpoint.
func (a *Anchor) source() string {
	if a.Seen.record == 0 {
		return "the " + printable(a.Seen.By)
	}
	return fmt.Sprintf("record %d of replica %s", a.Seen.record, printable(a.Seen.By))
}

// who is the head in a sentence.
func (a *Anchor) who() string {
	if a.Seen == nil {
		return "the known head of " + a.Identity.String()
	}
	if a.begun() {
		return fmt.Sprintf("the beginning of %s that %s names", printable(a.Identity.String()), a.source())
	}
	return fmt.Sprintf("the head of %s that %s names", printable(a.Identity.String()), a.source())
}

// accuse has a finding say whose journal it rests on.
func (a *Anchor) accuse(f Finding) Finding {
	if a.Seen != nil && a.Seen.record > 0 {
		f.by = a.Seen.By
	}
	return f
}

// check refuses a head that nobody could have been shown.
func (a *Anchor) check() error {
	if a.Seen != nil {
		if a.Seen.By == "" || a.begun() && a.Seen.record == 0 || a.Checkpoint != (Checkpoint{}) {
			return fmt.Errorf("what was seen of %s is malformed", a.Identity)
		}
		return nil
	}
	if a.Checkpoint.Journal != a.Identity.String() {
		return fmt.Errorf("the checkpoint of %s is another journal's", a.Identity)
	}
	if _, ok := parseChain([]byte(a.Checkpoint.Head)); !ok {
		return fmt.Errorf("the checkpoint of %s is malformed", a.Identity)
	}
	if err := a.Checkpoint.Verify(); err != nil {
		return fmt.Errorf("%s: %w", a.Identity, err)
	}
	return nil
}

// KnownHeads is what an operator keeps of journals: the newest checkpoint seen of each incarnation.
type KnownHeads struct {
	Heads []Anchor `json:"heads"`
}

// ParseHeads reads what KnownHeads.Text wrote, or a bare JSON array of anchors; nothing is none.
func ParseHeads(text []byte) (KnownHeads, error) {
	var k KnownHeads
	if len(text) == 0 {
		return k, nil
	}
	into := any(&k)
	if text[0] == '[' {
		into = &k.Heads
	}
	if err := json.Unmarshal(text, into); err != nil {
		return k, errors.New("the known heads are not valid JSON")
	}
	for i := range k.Heads {
		if err := k.Heads[i].check(); err != nil {
			return k, fmt.Errorf("the known heads: %w", err)
		}
	}
	return k, nil
}

// Text is the form in which the heads are kept.
func (k KnownHeads) Text() ([]byte, error) {
	text, err := json.MarshalIndent(k, "", "  ")
	return append(text, '\n'), err
}

// Merge returns the heads with those that a service shows now. A head never goes back: where the service shows less than
// was seen, or something else, what was seen stays, and alarms say what does not fit.
func (k KnownHeads) Merge(shown []Anchor) (merged KnownHeads, alarms []string) {
	merged.Heads = slices.Clone(k.Heads)
	for i := range shown {
		if alarm := merged.see(&shown[i]); alarm != "" {
			alarms = append(alarms, alarm)
		}
	}
	merged.prune()
	return merged, alarms
}

// see takes one head, or says why not.
func (k *KnownHeads) see(shown *Anchor) string {
	if shown.Seen != nil {
		return "" // of what is not signed nothing is kept
	}
	if err := shown.check(); err != nil {
		return "the service shows a head that is not what it signed: " + err.Error()
	}
	var newest *Anchor // of the same replica
	for i := range k.Heads {
		have := &k.Heads[i]
		switch {
		case have.Identity == shown.Identity:
			return have.advance(shown)
		case have.Installation != shown.Installation:
			return fmt.Sprintf("the service shows the journal %s, but had the journal %s: it was replaced", shown.Identity, have.Identity)
		case have.Replica == shown.Replica && (newest == nil || have.Incarnation > newest.Incarnation):
			newest = have
		}
	}
	if newest != nil && (shown.Incarnation < newest.Incarnation || shown.Checkpoint.Seq <= newest.Checkpoint.Seq) {
		return fmt.Sprintf("the service shows record %d of %s, but %s", shown.Checkpoint.Seq, shown.Identity, newest.seen())
	}
	k.Heads = append(k.Heads, *shown)
	return ""
}

// advance takes a newer head of the same incarnation, or says why it is none.
func (a *Anchor) advance(shown *Anchor) string {
	switch {
	case shown.FirstKey != a.FirstKey:
		return fmt.Sprintf("the service shows %s with another first key than before: its journal was made anew", shown.Identity)
	case shown.Checkpoint.Seq < a.Checkpoint.Seq:
		return fmt.Sprintf("the service shows record %d of %s, but %s: its journal was put back", shown.Checkpoint.Seq, shown.Identity, a.seen())
	case shown.Checkpoint.Seq == a.Checkpoint.Seq && shown.Checkpoint.Head != a.Checkpoint.Head:
		return fmt.Sprintf("the service shows another chain at record %d of %s than before: its journal was rewritten", shown.Checkpoint.Seq, shown.Identity)
	}
	*a = *shown
	return ""
}

func (a *Anchor) seen() string {
	return fmt.Sprintf("%s stood at record %d on %s", a.Identity, a.Checkpoint.Seq, a.Checkpoint.Time.UTC().Format(time.RFC3339))
}

// prune keeps the newest incarnations of each replica.
func (k *KnownHeads) prune() {
	slices.SortStableFunc(k.Heads, func(a, b Anchor) int {
		return cmp.Or(cmp.Compare(a.Installation, b.Installation), cmp.Compare(a.Replica, b.Replica), cmp.Compare(b.Incarnation, a.Incarnation))
	})
	kept := map[[2]string]int{}
	k.Heads = slices.DeleteFunc(k.Heads, func(a Anchor) bool {
		of := [2]string{a.Installation, a.Replica}
		kept[of]++
		return kept[of] > maxHeads
	})
}
