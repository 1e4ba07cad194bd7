// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// ratchet signs checkpoints, each with a key that is wiped after it. Keys are in memory only.
type ratchet struct {
	key      ed25519.PrivateKey
	previous string // head of the last checkpoint
}

func newRatchet() (*ratchet, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a checkpoint's key: %w", err)
	}
	return &ratchet{key: key}, nil
}

// public is the key of the next checkpoint, base64url.
func (r *ratchet) public() string {
	return base64.RawURLEncoding.EncodeToString(r.key.Public().(ed25519.PublicKey))
}

// checkpoint signs where the journal stands and goes on to the next key.
func (r *ratchet) checkpoint(i Identity, h Head, now time.Time) (Checkpoint, error) {
	_, next, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("make a checkpoint's key: %w", err)
	}
	c := Checkpoint{
		Journal: i.String(), Seq: h.Seq, Head: chainString(h.Chain), Previous: r.previous,
		Time: now.UTC().Truncate(time.Microsecond), Key: r.public(),
		Next: base64.RawURLEncoding.EncodeToString(next.Public().(ed25519.PublicKey)),
	}
	c.sign(r.key)
	clear(r.key) // whoever takes this machine now cannot sign what was before
	r.key, r.previous = next, c.Head
	return c, nil
}

// proposal is a checkpoint whose record is not durable yet.
type proposal struct {
	seq    uint64
	anchor Anchor
	head   *Head // nil: it is not given out
}

// checkpoint puts a checkpoint of all that was recorded into the main stream, behind the head of the refusals when that
// has moved. The stream is locked.
func (l *Log) checkpoint(s *stream) {
	if refusals := l.refusals.position(); refusals != l.anchored {
		text, err := json.Marshal(struct {
			Refusals Head `json:"refusals"`
		}{refusals})
		if err == nil {
			s.note(eventRefusals, text[1:len(text)-1])
			l.anchored = refusals
		}
	}
	head := s.head
	c, err := l.ratchet.checkpoint(l.identity, head, l.cfg.Now())
	if err != nil {
		l.cfg.Logger.Error("the journal could not be signed", "error", err)
		return
	}
	text, err := json.Marshal(struct {
		Checkpoint Checkpoint `json:"checkpoint"`
	}{c})
	if err != nil {
		l.cfg.Logger.Error("the journal could not be signed", "error", err)
		return
	}
	p := proposal{anchor: Anchor{Identity: l.identity, FirstKey: l.firstKey, Checkpoint: c}}
	if l.moved {
		p.head = &head
	}
	s.note(eventCheckpoint, text[1:len(text)-1])
	p.seq = s.head.Seq
	l.proposed = append(l.proposed, p)
	l.unsigned, l.moved = false, false
}

// touched is told of every record of the main stream, which is locked: it is covered by a checkpoint within a second.
func (l *Log) touched() {
	l.moved = l.moved || !l.idle
	if !l.unsigned {
		l.unsigned = true
		l.signer.Reset(checkpointEvery)
	}
}

// durable is told how far the main stream is durable, which is locked.
func (l *Log) durable(seq uint64) {
	for len(l.proposed) > 0 && l.proposed[0].seq <= seq {
		l.anchor.Store(&l.proposed[0].anchor)
		if head := l.proposed[0].head; head != nil {
			l.signed.Store(head)
		}
		l.proposed = l.proposed[1:]
	}
}

// signDue runs when a checkpoint is due.
func (l *Log) signDue() {
	l.refusalsMoved.Store(false)
	s := l.main
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended() != nil:
	case !s.roomForNotes():
		l.signer.Reset(checkpointEvery)
	case l.unsigned || l.refusals.position() != l.anchored:
		l.checkpoint(s)
		s.flushIn(lazyFlush)
	}
}
