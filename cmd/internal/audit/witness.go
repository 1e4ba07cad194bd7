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
}

// witnessMember is the member "witness" of a record that says where another replica's journal stood.
type witnessMember struct {
	Identity
	FirstKey string    `json:"first_key,omitempty"`
	Head     Head      `json:"head"`
	Time     time.Time `json:"time"` // when whoever keeps it was told
}

// Witness records where other replicas' journals stand, so that each of them can be held to what the others say: those that
// have moved since they were recorded last, each at most every 30 seconds. It does not wait for the disk. What there is no
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
		case known && (h.Incarnation < last.incarnation || h.Incarnation == last.incarnation && seq < last.seq):
			alarms = append(alarms, fmt.Sprintf("the journal %s stands at record %d now, but run %d of it stood at %d", h.Identity, seq, last.incarnation, last.seq))
			continue
		case known && h.Incarnation == last.incarnation && seq == last.seq, known && since >= 0 && since < witnessEvery:
			continue
		}
		text, err := json.Marshal(struct {
			Witness witnessMember `json:"witness"`
		}{witnessMember{h.Identity, h.FirstKey, h.Seen.Head, h.Seen.Time.UTC().Truncate(time.Microsecond)}})
		if err != nil || s.ended() != nil || !s.roomForNotes() {
			return recorded, alarms
		}
		l.idle = true
		s.note(eventWitness, text[1:len(text)-1])
		l.idle = false
		if l.witnessed == nil {
			l.witnessed = make(map[string]sighting)
		}
		l.witnessed[h.Replica] = sighting{h.Incarnation, seq, now}
		recorded++
	}
	if recorded > 0 {
		s.flushIn(lazyFlush)
	}
	return recorded, alarms
}
