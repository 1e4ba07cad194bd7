// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"encoding/json"
	"fmt"
	"time"
)

// witnessEvery is how often the head of another replica's journal is recorded, at most.
const witnessEvery = 30 * time.Second

// sighting is what was last recorded of another replica's journal.
type sighting struct {
	incarnation, seq uint64
	at               time.Time
	begun            uint64 // the newest incarnation that it was recorded to have begun
}

// witnessMember is the member "witness" of a record that says where another replica's journal stood.
type witnessMember struct {
	Identity
	FirstKey string    `json:"first_key,omitempty"`
	Begun    bool      `json:"begun,omitempty"` // and nothing that it said was known yet: there is no head
	Head     Head      `json:"head,omitzero"`
	Time     time.Time `json:"time"` // when whoever keeps it was told, or when it was begun
}

// says reports whether the record says something.
func (w *witnessMember) says() bool {
	return w != nil && (w.Begun && w.Head == Head{} || !w.Begun && w.Head.Seq > 0)
}

// Witness records where other replicas' journals stand, so that each of them can be held to what the others say: those that
// have moved since they were recorded last, each at most every 30 seconds, and at once those that are in an incarnation of
// which nothing was recorded. One without a head is recorded to have begun. It does not wait for the disk. What there is no
// room for now is for the next call. Anchors of this replica are passed over. It returns how many it recorded, and what the
// caller should raise an alarm for: heads that went back.
func (l *Log) Witness(heads []Anchor) (recorded int, alarms []string) {
	s := l.main
	if l.cfg.Reserve.Full() != nil {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := l.cfg.Now()
	for i := range heads {
		h := &heads[i]
		if h.Seen == nil || h.Replica == l.cfg.Replica {
			continue
		}
		last, known := l.witnessed[h.Replica]
		seq := h.Seen.Head.Seq
		switch since := now.Sub(last.at); {
		case seq == 0 && h.Incarnation <= max(last.incarnation, last.begun):
			continue
		case seq == 0:
		case h.Incarnation < last.incarnation, h.Incarnation == last.incarnation && seq < last.seq:
			alarms = append(alarms, fmt.Sprintf("the journal %s stands at record %d now, but run %d of it stood at %d", h.Identity, seq, last.incarnation, last.seq))
			continue
		case h.Incarnation == last.incarnation && seq == last.seq:
			continue
		case known && h.Incarnation <= max(last.incarnation, last.begun) && since >= 0 && since < witnessEvery:
			continue
		}
		text, err := json.Marshal(struct {
			Witness witnessMember `json:"witness"`
		}{witnessMember{h.Identity, h.FirstKey, h.begun(), h.Seen.Head, h.Seen.Time.UTC().Truncate(time.Microsecond)}})
		if err != nil || s.ended() != nil || !s.roomForNotes() {
			return recorded, alarms
		}
		l.idle = true
		s.note(eventWitness, text[1:len(text)-1])
		l.idle = false
		if l.witnessed == nil {
			l.witnessed = make(map[string]sighting)
		}
		if last.at = now; seq == 0 {
			last.begun = h.Incarnation
		} else {
			last.incarnation, last.seq = h.Incarnation, seq
		}
		l.witnessed[h.Replica] = last
		recorded++
	}
	if recorded > 0 {
		s.flushIn(lazyFlush)
	}
	return recorded, alarms
}

// Witnesses reports whether a record that is durable says that an incarnation of another replica's journal was begun, or where
// it stood. It has the disk take what there is.
func (l *Log) Witnesses(id Identity) bool {
	s := l.main
	s.mu.Lock()
	defer s.mu.Unlock()
	last := l.witnessed[id.Replica]
	return id.Incarnation > 0 && (last.begun == id.Incarnation || last.incarnation == id.Incarnation) && s.reaches(s.head.Seq)
}
