// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"slices"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
)

// A token that a client received.
type token struct {
	id, client string
	thumbprint string
	issued     time.Time // its iat
	sent       time.Time // when it was asked for
	received   time.Time
	life       int // how often the service had been killed when it was received
}

// A certificate that a client received.
type certificate struct {
	thumbprint, serial, client string
	event                      string // that has to be on record
}

// A change that somebody was told is done.
type change struct {
	event, client string
	correlation   string // of the answer; empty where a verb does not show it
	records       int    // how many there have to be of it
}

// A loss is a certificate that lost its authority.
type loss struct {
	client     string
	thumbprint string
	pair       *mtls.KeyPair
	at         time.Time // when the answer that said so had arrived
	until      time.Time // when it was asked for that the client may come back; zero: never
}

// A book is what callers were told by the service. It is safe for concurrent use.
type book struct {
	mu       sync.Mutex
	tokens   []token
	certs    []certificate
	changes  []change
	losses   []*loss
	revoked  map[string]bool   // thumbprint
	state    map[string]string // client -> enabled, disabled or removed; absent while nobody knows
	problems []string          // answers that should not have been
	ends     []time.Time       // when the service was killed
	waits    []time.Duration   // from the first asking for authority to be taken away to the answer that it is
	early    int               // refusals of who had just been given authority, and got it on asking again
	several  bool              // whether the service is several replicas
	races    int               // codes that two places were asked for at once
}

func newBook() *book {
	return &book{revoked: make(map[string]bool), state: make(map[string]string)}
}

// token notes one that has just arrived.
func (b *book) token(c claims, sent time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = append(b.tokens, token{
		id: c.ID, client: c.Client, thumbprint: c.Confirmation.Thumbprint, issued: time.Unix(c.IssuedAt, 0),
		sent: sent, received: time.Now(), life: len(b.ends),
	})
}

// waited notes how long it took to take authority away.
func (b *book) waited(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waits = append(b.waits, d)
}

func (b *book) waitsSoFar() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.waits)
}

// refusedEarly notes a refusal of who has authority.
func (b *book) refusedEarly() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.early++
}

// raced notes a code that two places were asked for at once.
func (b *book) raced() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.races++
}

func (b *book) certificate(pair *mtls.KeyPair, client, event string) {
	leaf := pair.Current().Leaf
	b.mu.Lock()
	defer b.mu.Unlock()
	b.certs = append(b.certs, certificate{
		thumbprint: mtls.ThumbprintOf(leaf).String(), serial: leaf.SerialNumber.String(), client: client, event: event,
	})
}

// change notes what is done, and in which state that leaves the client.
func (b *book) change(c change, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, c)
	b.state[c.client] = state
}

// settled notes the state of a client whose change is done, by which answer nobody knows.
func (b *book) settled(client, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state[client] = state
}

// unsure notes that a change of the client is under way, of which nobody knows whether it is done.
func (b *book) unsure(client string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.state, client)
}

// lost notes that certificates have no authority any more, for which the answer has just arrived.
func (b *book) lost(client string, revoked bool, pairs ...*mtls.KeyPair) []*loss {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*loss
	for _, pair := range pairs {
		l := &loss{client: client, thumbprint: mtls.ThumbprintOf(pair.Current().Leaf).String(), pair: pair, at: time.Now()}
		found = append(found, l)
		if revoked {
			b.revoked[l.thumbprint] = true
		}
	}
	b.losses = append(b.losses, found...)
	return found
}

// back notes that it is being asked for that they have authority again.
func (b *book) back(losses []*loss) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range losses {
		l.until = time.Now()
	}
}

// isBack says whether it has been asked for that a certificate has authority again.
func (b *book) isBack(l *loss) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !l.until.IsZero()
}

// gone returns certificates that must get nothing, the newest last and n at most.
func (b *book) gone(n int) []*loss {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*loss
	for i := len(b.losses) - 1; i >= 0 && len(found) < n; i-- {
		if b.losses[i].until.IsZero() {
			found = append([]*loss{b.losses[i]}, found...)
		}
	}
	return found
}

func (b *book) problem(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, what)
}

// killed notes that the service is about to be killed.
func (b *book) killed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, time.Now())
}

// counts says how much is in the book.
func (b *book) counts() (tokens, certs, changes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.tokens), len(b.certs), len(b.changes)
}
