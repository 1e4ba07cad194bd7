// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"sync"
	"time"
)

// Tickets owns the keys that seal the session tickets of one listener. Whoever has such a key can forge a session that
// resumes as any client whose certificate he has seen (RFC 5077, Section 5.5), so the keys are random, live in this
// process only, are never written, logged or handed out, and are the listener's own: a session of one listener is
// unknown to all others, those of other processes included, and costs its client a full handshake there. Set alone
// brings in others.
//
// A resumed session shows the certificate it began with. It is judged at every request all the same; Reset is for what
// no judgement would see, such as keys that may have been read. Connections that are open stay open.
//
// It is safe for concurrent use.
type Tickets struct {
	cfg *tls.Config

	mu      sync.Mutex
	current [32]byte
}

// NewTickets takes over the session ticket keys of cfg, the very value that is given to NewListener, beginning with a
// new one. The rotation that crypto/tls does by itself, which would accept a key for seven days, is off from then on: a
// key stays until Rotate or Reset. Two Tickets of one cfg would work against each other.
func NewTickets(cfg *tls.Config) *Tickets {
	t := &Tickets{cfg: cfg}
	t.Reset()
	return t
}

// Rotate seals from now on with a new key. Tickets under the key before it are still accepted, older ones no more.
func (t *Tickets) Rotate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.current
	t.current = newTicketKey()
	t.cfg.SetSessionTicketKeys([][32]byte{t.current, before})
}

// Set seals from now on with the first of keys, accepts tickets under any of them, and drops all others. It is for servers
// that resume each other's sessions: whoever calls it answers for all that is said of the keys above, that no two listeners
// have the same and that each is dropped in time by a Set without it. Without keys it is Reset; so is a key of zeros, which
// nobody has drawn. Run must not be running.
func (t *Tickets) Set(keys ...[32]byte) {
	if len(keys) == 0 || slices.Contains(keys, [32]byte{}) {
		t.Reset()
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current = keys[0]
	t.cfg.SetSessionTicketKeys(keys)
}

// Reset seals from now on with a new key and drops all others, so that no session begun before can be resumed.
func (t *Tickets) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current = newTicketKey()
	t.cfg.SetSessionTicketKeys([][32]byte{t.current})
}

func newTicketKey() [32]byte {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process before it would
	return key
}

// Run calls Rotate at every interval, which must be positive, until ctx is done, and then returns. A ticket is accepted
// for at most twice the interval.
func (t *Tickets) Run(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			t.Rotate()
		}
	}
}
