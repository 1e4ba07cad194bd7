// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/mtls"
)

const (
	// maxDenialText bounds the text of a Denial in bytes: no token has a longer claim that it could be compared with.
	maxDenialText = 8 << 10
	// maxDenyBytes bounds a DenyList's memory, about: some 400,000 thumbprints.
	maxDenyBytes = 64 << 20
	// denialBytes is about what one entry takes beside its text, the room that its map keeps free included.
	denialBytes = 160
)

// ErrDenyListFull says that a DenyList has no room: what it was given last it does not deny. Whoever depends on it must
// accept nothing until it has.
var ErrDenyListFull = errors.New("tokens: the deny list is full")

// Denial says which access tokens are refused although they have not expired. Exactly one of TokenID, Thumbprint,
// ClientID and KeyID is set.
type Denial struct {
	TokenID      string          // the "jti" of one token
	Thumbprint   mtls.Thumbprint // of a certificate: every token that is bound to it
	ClientID     string          // every token of this client that was issued before IssuedBefore
	IssuedBefore time.Time       // set with ClientID alone; compared with "iat", which has whole seconds
	KeyID        string          // of a signing key: every token that it signed

	// Until is when nothing that the Denial stands for could be accepted anyway, so that it may be forgotten; required.
	Until time.Time
}

// Check returns an error when d is not one of the four kinds, or has no end.
func (d *Denial) Check() error {
	kinds := 0
	for _, set := range [...]bool{d.TokenID != "", !d.Thumbprint.IsZero(), d.ClientID != "", d.KeyID != ""} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return errors.New("tokens: a denial names exactly one of token, thumbprint, client and key")
	case (d.ClientID != "") == d.IssuedBefore.IsZero():
		return errors.New("tokens: a denial says before when tokens were issued with a client, and only then")
	case d.Until.IsZero():
		return errors.New("tokens: a denial has no end")
	case len(d.TokenID)+len(d.ClientID)+len(d.KeyID) > maxDenialText:
		return fmt.Errorf("tokens: a denial's text is longer than %d bytes", maxDenialText)
	}
	return nil
}

// Denies reports whether d stands for a token with these claims that the key keyID signed. It does not look at Until.
func (d *Denial) Denies(c *Claims, keyID string) bool {
	return d.TokenID != "" && d.TokenID == c.ID ||
		d.Thumbprint.Equal(c.Thumbprint) ||
		d.ClientID == c.ClientID && c.IssuedAt.Before(d.IssuedBefore) || // the zero time is before all
		d.KeyID != "" && d.KeyID == keyID
}

// DenyList is the tokens of one issuer that are refused although they have not expired. The zero DenyList denies nothing.
// It is safe for concurrent use; no method blocks but for other calls. It only grows until Prune: what is denied once is
// denied until its Denial ends. Its memory is bounded, see ErrDenyListFull.
type DenyList struct {
	entries atomic.Int64 // so that an empty list costs one load

	callMu sync.Mutex
	calls  []func()

	mu          sync.RWMutex
	bytes       int
	tokens      map[string]time.Time // until when
	thumbprints map[mtls.Thumbprint]time.Time
	clients     map[string]deniedClient
	keys        map[string]time.Time
}

type deniedClient struct{ before, until time.Time }

// Add denies more tokens. Of two Denials for the same it keeps whatever denies more, for longer. It adds all that it can
// and returns the first error: of Denial.Check, or ErrDenyListFull.
func (l *DenyList) Add(denials ...Denial) error {
	err := l.addAll(denials)
	if len(denials) > 0 {
		l.callMu.Lock()
		calls := l.calls
		l.callMu.Unlock()
		for _, call := range calls {
			call()
		}
	}
	return err
}

// OnAdd has call called after each Add of anything from now on, before Add returns: for whoever has accepted tokens whose
// use goes on. It is kept as long as the list, may be called by several goroutines at once, and must not block.
func (l *DenyList) OnAdd(call func()) {
	l.callMu.Lock()
	defer l.callMu.Unlock()
	l.calls = append(slices.Clip(l.calls), call)
}

func (l *DenyList) addAll(denials []Denial) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var failed error
	for i := range denials {
		if err := l.add(&denials[i]); failed == nil {
			failed = err
		}
	}
	l.entries.Store(int64(l.count()))
	return failed
}

func (l *DenyList) add(d *Denial) error {
	if err := d.Check(); err != nil {
		return err
	}
	switch {
	case d.TokenID != "":
		return extend(l, &l.tokens, d.TokenID, len(d.TokenID), d.Until)
	case d.KeyID != "":
		return extend(l, &l.keys, d.KeyID, len(d.KeyID), d.Until)
	case d.ClientID != "":
		return l.addClient(d)
	}
	return extend(l, &l.thumbprints, d.Thumbprint, 0, d.Until)
}

// extend denies key until then, or longer when it is denied longer already.
func extend[K comparable](l *DenyList, m *map[K]time.Time, key K, text int, until time.Time) error {
	old, there := (*m)[key]
	if !old.Before(until) { // the zero time is
		return nil
	}
	if !there && !l.take(text) {
		return ErrDenyListFull
	}
	if *m == nil {
		*m = make(map[K]time.Time)
	}
	(*m)[key] = until
	return nil
}

func (l *DenyList) addClient(d *Denial) error {
	c, there := l.clients[d.ClientID]
	if !there && !l.take(len(d.ClientID)) {
		return ErrDenyListFull
	}
	if c.before.Before(d.IssuedBefore) {
		c.before = d.IssuedBefore
	}
	if c.until.Before(d.Until) {
		c.until = d.Until
	}
	if l.clients == nil {
		l.clients = make(map[string]deniedClient)
	}
	l.clients[d.ClientID] = c
	return nil
}

// take makes room for an entry, if there is.
func (l *DenyList) take(text int) bool {
	if l.bytes+denialBytes+text > maxDenyBytes {
		return false
	}
	l.bytes += denialBytes + text
	return true
}

func (l *DenyList) count() int {
	return len(l.tokens) + len(l.thumbprints) + len(l.clients) + len(l.keys)
}

// Len returns how many Denials are kept, of which those for the same count once.
func (l *DenyList) Len() int { return int(l.entries.Load()) }

// Denies reports whether a token with these claims, signed by the key keyID, is refused. It allocates nothing.
func (l *DenyList) Denies(c *Claims, keyID string) bool {
	if l.entries.Load() == 0 {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if _, denied := l.thumbprints[c.Thumbprint]; denied {
		return true
	}
	if _, denied := l.tokens[c.ID]; denied {
		return true
	}
	if c.IssuedAt.Before(l.clients[c.ClientID].before) { // the zero time is before all
		return true
	}
	_, denied := l.keys[keyID]
	return denied
}

// Prune forgets what has ended before now. A clock that is ahead would have it forget too early: give it a time that
// leaves room for that.
func (l *DenyList) Prune(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	prune(l, l.tokens, now, func(id string) int { return len(id) })
	prune(l, l.keys, now, func(id string) int { return len(id) })
	prune(l, l.thumbprints, now, func(mtls.Thumbprint) int { return 0 })
	for id, c := range l.clients {
		if c.until.Before(now) {
			delete(l.clients, id)
			l.bytes -= denialBytes + len(id)
		}
	}
	l.entries.Store(int64(l.count()))
}

func prune[K comparable](l *DenyList, m map[K]time.Time, now time.Time, text func(K) int) {
	for key, until := range m {
		if until.Before(now) {
			delete(m, key)
			l.bytes -= denialBytes + text(key)
		}
	}
}
