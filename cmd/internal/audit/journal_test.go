// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// testJournal writes a journal by the rules of the format alone, so that its readers are not held to its writer.
type testJournal struct {
	t        testing.TB
	dir      string
	id       Identity
	now      time.Time
	main     testStream
	refusals testStream
	keys     int // how many keys were made
	key      ed25519.PrivateKey
	firstKey string
	previous string // head of the last checkpoint
	anchors  []Anchor
	fill     int    // newlines behind each segment
	loss     string // member "loss" of the next run's first record
}

type testStream struct {
	name    string
	head    Head
	segment string // file name
	text    []byte // of the segment
	open    []byte // batch that has no frame yet
	records int
	first   bool
	synced  uint64
	ended   bool // the segment was trimmed
}

func newTestJournal(t testing.TB) *testJournal { return newTestReplica(t, "r1") }

func newTestReplica(t testing.TB, replica string) *testJournal {
	j := &testJournal{
		t: t, dir: t.TempDir(), id: Identity{Installation: "inst", Replica: replica},
		now:  time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		main: testStream{name: streamMain}, refusals: testStream{name: streamRefusals}, fill: 1,
	}
	j.begin()
	return j
}

// begin begins an incarnation, in both streams.
func (j *testJournal) begin() {
	j.id.Incarnation++
	j.key, j.previous = j.newKey(), ""
	j.firstKey = publicText(j.key)
	for _, s := range []*testStream{&j.main, &j.refusals} {
		if s.segment != "" {
			j.end(s)
		}
		previous := s.head
		s.ended = false
		s.segment, s.text, s.first = segmentName(s.name, j.id.Incarnation, s.head.Seq+1), nil, true
		s.head.Chain = j.id.genesis(s.name, previous)
		j.header(s, eventStart, previous)
		j.frame(s)
	}
}

func (j *testJournal) newKey() ed25519.PrivateKey {
	j.keys++
	seed := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(j.dir), uint64(j.keys)))
	return ed25519.NewKeyFromSeed(seed[:])
}

func publicText(key ed25519.PrivateKey) string {
	return base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

func (j *testJournal) header(s *testStream, event string, previous Head) {
	key := publicText(j.key)
	if s.name == streamRefusals {
		key = ""
	}
	loss := ""
	if j.loss != "" && s.name == streamMain {
		loss, j.loss = `,"loss":`+j.loss, ""
	}
	j.add(s, event, fmt.Sprintf(`"journal":{"installation":%q,"replica":%q,"incarnation":%d,"previous":{"seq":%d,"chain":%q},"key":%q%s}`,
		j.id.Installation, j.id.Replica, j.id.Incarnation, previous.Seq, chainString(previous.Chain), key, loss))
}

// add appends a record, of which members are the text behind event.
func (j *testJournal) add(s *testStream, event, members string) uint64 {
	j.now = j.now.Add(time.Millisecond)
	start := len(s.open)
	s.open = fmt.Appendf(s.open, `{"seq":%d,"time":"%s","event":%q`, s.head.Seq+1, j.now.Format(timeFormat), event)
	if members != "" {
		s.open = append(append(s.open, ','), members...)
	}
	s.open, s.head.Chain = appendChain(s.open, start, s.head.Chain)
	s.head.Seq++
	s.records++
	return s.head.Seq
}

// frame closes the batch.
func (j *testJournal) frame(s *testStream) {
	if s.records == 0 {
		return
	}
	f := Frame{Seq: s.head.Seq, Records: s.records, Bytes: len(s.open), Synced: s.synced, Chain: s.head.Chain}
	s.text = appendFrame(append(s.text, s.open...), &f, s.open)
	s.open, s.records, s.synced = nil, 0, s.head.Seq
	j.write(s)
}

func (j *testJournal) write(s *testStream) {
	fill := j.fill
	if s.ended {
		fill = 0
	}
	text := append(slices.Clone(s.text), bytes.Repeat([]byte("\n"), fill)...)
	if err := os.WriteFile(filepath.Join(j.dir, s.segment), text, 0o600); err != nil {
		j.t.Fatal(err)
	}
}

// tokens records n tokens in one batch.
func (j *testJournal) tokens(n int) {
	for range n {
		j.add(&j.main, "token.issue", fmt.Sprintf(`"outcome":"granted","client":"payments","jti":"j%d"`, j.main.head.Seq+1))
	}
	j.frame(&j.main)
}

func (j *testJournal) strangers(n int) {
	for range n {
		j.add(&j.refusals, "token.issue", `"outcome":"refused","reason":"unknown_client","detail":{"count":"1"}`)
	}
	j.frame(&j.refusals)
}

// headMember is a member that holds a head.
func headMember(name string, h Head) string {
	return fmt.Sprintf(`%q:{"seq":%d,"chain":%q}`, name, h.Seq, chainString(h.Chain))
}

// checkpoint signs where the journal stands, and states where the refusals do.
func (j *testJournal) checkpoint() { j.checkpointWith(func(*Checkpoint) {}) }

// checkpointWith changes the checkpoint before it is signed.
func (j *testJournal) checkpointWith(change func(*Checkpoint)) {
	j.add(&j.main, eventRefusals, headMember("refusals", j.refusals.head))
	next := j.newKey()
	c := Checkpoint{
		Journal: j.id.String(), Seq: j.main.head.Seq, Head: chainString(j.main.head.Chain), Previous: j.previous,
		Time: j.now, Key: publicText(j.key), Next: publicText(next),
	}
	change(&c)
	c.sign(j.key)
	j.key, j.previous = next, c.Head
	text, err := json.Marshal(c)
	if err != nil {
		j.t.Fatal(err)
	}
	j.add(&j.main, eventCheckpoint, `"checkpoint":`+string(text))
	j.frame(&j.main)
	j.anchors = append(j.anchors, Anchor{Identity: j.id, FirstKey: j.firstKey, Checkpoint: c})
}

// witness records where another journal stands.
func (j *testJournal) witness(other *testJournal) {
	j.now = maxTime(j.now, other.now)
	j.witnessHead(other.id, other.firstKey, other.main.head)
}

func (j *testJournal) witnessHead(id Identity, key string, head Head) {
	text, err := json.Marshal(witnessMember{id, key, head.Seq == 0, head, j.now})
	if err != nil {
		j.t.Fatal(err)
	}
	j.add(&j.main, eventWitness, `"witness":`+string(text))
	j.frame(&j.main)
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// rotate begins a segment.
func (j *testJournal) rotate(s *testStream) {
	j.checkpoint()
	j.end(s)
	s.ended = false
	s.segment, s.text = segmentName(s.name, j.id.Incarnation, s.head.Seq+1), nil
	j.header(s, eventSegment, s.head)
	j.frame(s)
}

// stop ends an incarnation in order.
func (j *testJournal) stop() {
	j.add(&j.main, eventStop, "")
	j.checkpoint()
	j.end(&j.main)
	j.end(&j.refusals)
}

// end trims a segment.
func (j *testJournal) end(s *testStream) {
	s.ended = true
	j.write(s)
}

// story is a journal with everything in it: incarnations, segments, checkpoints and refusals.
func story(t testing.TB) *testJournal { return storyOf(t, "r1") }

func storyOf(t testing.TB, replica string) *testJournal {
	j := newTestReplica(t, replica)
	j.tokens(3)
	j.strangers(2)
	j.checkpoint()
	j.tokens(1)
	j.rotate(&j.main)
	j.tokens(4)
	j.strangers(1)
	j.rotate(&j.refusals)
	j.tokens(2)
	j.strangers(2)
	j.stop()
	j.begin()
	j.tokens(2)
	j.rotate(&j.main)
	j.tokens(3)
	j.strangers(3)
	j.checkpoint()
	j.tokens(2)
	j.checkpoint()
	return j
}

func (j *testJournal) files() []string {
	names, err := filepath.Glob(filepath.Join(j.dir, "*.jsonl"))
	if err != nil {
		j.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// edit changes a file of the journal.
func edit(t testing.TB, name string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// known is the newest head that an operator could have seen, of each incarnation.
func (j *testJournal) known() []Anchor {
	newest := map[Identity]Anchor{}
	for _, a := range j.anchors {
		newest[a.Identity] = a
	}
	var known []Anchor
	for _, a := range newest {
		known = append(known, a)
	}
	return known
}

// newKeyOf makes a checkpoint one of a new key.
func (j *testJournal) newKeyOf(c *Checkpoint) ed25519.PrivateKey {
	key := j.newKey()
	c.Key = publicText(key)
	return key
}
