// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// What concerns a person is not written plain: it lies in a record as
//
//	"sealed":"c.<base64url>"
//
// where the letter names whose key it is (c: the client's, a: the actor's, n: nobody's), and the rest is an AES-256-GCM
// nonce and what it seals, the JSON object of the members. There are two such parts, with a space between, where the
// address is the actor's and the rest is the client's. The key is derived from a key of the day and a secret of the
// subject, which are kept outside the journal: once either is deleted, nobody reads the members any more, and the chain,
// which covers only the sealed form, still verifies.

// ErrUnsealed says that the members were left out, because their key could not be had when the record was written.
var ErrUnsealed = errors.New("left out: the key could not be had when it was recorded")

// StoredKeys finds keys that Keys made. A key that is not there is ErrErased; none is ever made.
type StoredKeys interface {
	StoredDay(ctx context.Context, day string) ([]byte, error)
	StoredSubject(ctx context.Context, id string) ([]byte, error)
}

// Whose key a member is sealed under.
const (
	sealedClient = 'c'
	sealedActor  = 'a'
	sealedNobody = 'n'
)

const (
	sealedMember = `,"sealed":"`
	// sealedNone stands in place of members whose key could not be had.
	sealedNone = "none"
	// maxCiphers bounds the ciphers that are kept, one for each subject and day: about 1 KiB each.
	maxCiphers = 4096
)

// sealer seals the personal members of events. It is safe for concurrent use; a nil sealer leaves them plain.
type sealer struct {
	keys    Keys
	scratch sync.Pool // of *[]byte

	mu      sync.Mutex
	ciphers lru
	changes uint64 // how often keys were forgotten: what was looked up before is not kept after
}

func newSealer(keys Keys) *sealer {
	if keys == nil {
		return nil
	}
	s := &sealer{keys: keys}
	s.ciphers.bound = maxCiphers
	s.scratch.New = func() any { return new([]byte) }
	return s
}

// append appends the member that holds the event's personal ones, comma first, or nothing when it has none. The event's
// time must be set. It blocks on the keys the first time that it needs one. When a key cannot be had, a Decision gets the
// error, because nothing is given that cannot be recorded; every other record says that its members are missing.
func (s *sealer) append(ctx context.Context, b []byte, e *Event) ([]byte, error) {
	if e.Address == "" && len(e.Personal) == 0 {
		return b, nil
	}
	if s == nil {
		w := encoder{b: b}
		w.string("address", e.Address)
		w.object("personal", e.Personal)
		return w.b, nil
	}
	b = append(b, sealedMember...)
	whole := *e
	if aboutAnother(e) {
		whole.Personal = nil
	}
	start, err := len(b), error(nil)
	if b, err = s.part(ctx, b, &whole); err == nil && aboutAnother(e) {
		if len(b) > start {
			b = append(b, ' ')
		}
		whole = Event{Class: e.Class, Time: e.Time, Client: e.Client, Personal: e.Personal}
		b, err = s.part(ctx, b, &whole)
	}
	if err != nil && e.Class == Decision {
		return b[:start-len(sealedMember)], fmt.Errorf("seal the personal members of %s: %w", e.Name, err)
	}
	if err != nil {
		b = append(b[:start], sealedNone...)
	}
	return append(b, '"'), nil
}

// aboutAnother says that an event's address is its actor's, and what else concerns a person is its client's.
func aboutAnother(e *Event) bool {
	return e.Actor != "" && e.Client != "" && e.Client != e.Actor && len(e.Personal) > 0 && e.Class != Stranger
}

// part appends what is sealed under one key, or nothing when there is nothing to seal.
func (s *sealer) part(ctx context.Context, b []byte, e *Event) ([]byte, error) {
	if e.Address == "" && len(e.Personal) == 0 {
		return b, nil
	}
	who, id := subjectOf(e)
	aead, err := s.cipher(ctx, cipherKey{dayOf(e.Time), id})
	if err != nil {
		return b, err
	}
	scratch := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(scratch)
	w := encoder{b: append((*scratch)[:0], '{')}
	w.string("address", e.Address)
	w.object("personal", e.Personal)
	if w.truncated {
		w.member("truncated")
		w.b = append(w.b, "true"...)
	}
	w.b = append(w.b, '}')
	plain := len(w.b)
	w.b = aead.Seal(w.b, nil, w.b[:plain], nil)
	*scratch = w.b
	b = append(b, who, '.')
	return base64.RawURLEncoding.AppendEncode(b, w.b[plain:]), nil
}

// subjectOf says whose key an event's personal members are sealed under. What a stranger calls itself is nobody's.
func subjectOf(e *Event) (who byte, id string) {
	switch {
	case e.Actor != "":
		return sealedActor, e.Actor
	case e.Client != "" && e.Class != Stranger:
		return sealedClient, e.Client
	}
	return sealedNobody, ""
}

// cipherKey names a cipher: of a subject, or with an empty id of nobody, on a day.
type cipherKey struct {
	day int64 // since 1970, UTC
	id  string
}

const secondsOfDay = 24 * 60 * 60

func dayOf(t time.Time) int64 {
	s := t.Unix()
	day := s / secondsOfDay
	if s%secondsOfDay < 0 {
		day--
	}
	return day
}

// Day is the name of a time's day, UTC.
func Day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func (k cipherKey) text() string { return Day(time.Unix(k.day*secondsOfDay, 0)) }

// cipher returns the cipher of a subject on a day, made at its first use.
func (s *sealer) cipher(ctx context.Context, k cipherKey) (cipher.AEAD, error) {
	s.mu.Lock()
	aead, changes := s.ciphers.get(k), s.changes
	s.mu.Unlock()
	if aead != nil {
		return aead, nil
	}
	ctx = context.WithoutCancel(ctx) // what was decided is recorded even when its caller has left
	aead, err := cipherOf(ctx, k, s.keys.Day, s.keys.Subject)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.changes == changes {
		s.ciphers.put(cipherKey{k.day, strings.Clone(k.id)}, aead)
	}
	s.mu.Unlock()
	return aead, nil
}

// cipherOf finds the keys of a cipher and derives it.
func cipherOf(ctx context.Context, k cipherKey, day, subject func(context.Context, string) ([]byte, error)) (cipher.AEAD, error) {
	key, err := day(ctx, k.text())
	if err != nil {
		return nil, err
	}
	var secret []byte
	if k.id != "" {
		if secret, err = subject(ctx, k.id); err != nil {
			return nil, err
		}
	}
	return newCipher(k, key, secret)
}

// newCipher derives a cipher from the key of the day and the secret of the subject, which nobody has.
func newCipher(k cipherKey, day, secret []byte) (cipher.AEAD, error) {
	const size = 32
	if len(day) != size || (k.id != "" && len(secret) != size) {
		return nil, errors.New("a key of the journal is malformed")
	}
	material := append(append(make([]byte, 0, 2*size), day...), secret...)
	defer clear(material)
	key, err := hkdf.Key(sha256.New, material, nil, "certbound-journal-v1\n"+k.text()+"\n"+k.id, size)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// forget drops what is kept of a subject, after its secret was deleted.
func (s *sealer) forget(id string) {
	s.drop(func(k cipherKey) bool { return k.id == id })
}

// forgetBefore drops what is kept of the days before one.
func (s *sealer) forgetBefore(t time.Time) {
	day := dayOf(t)
	s.drop(func(k cipherKey) bool { return k.day < day })
}

func (s *sealer) drop(gone func(cipherKey) bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.ciphers.drop(gone)
}

// Personal is what a record said of a person.
type Personal struct {
	Address string
	Members map[string]string
}

// Opener reads sealed members. It keeps no key, so that what is erased is gone at once. It is safe for concurrent use.
type Opener struct{ keys StoredKeys }

// NewOpener returns an Opener with the keys.
func NewOpener(keys StoredKeys) *Opener { return &Opener{keys: keys} }

// Open reads the member "sealed" of a record, whose time, client and actor are given. It returns ErrErased when the key
// was deleted, also when the subject has another one since, and ErrUnsealed when nothing was sealed. Of two parts of which
// one was erased it returns the other. That the member is the one that was written, the chain says.
func (o *Opener) Open(ctx context.Context, sealed string, at time.Time, client, actor string) (Personal, error) {
	if sealed == sealedNone {
		return Personal{}, ErrUnsealed
	}
	first, second, two := strings.Cut(sealed, " ")
	p, err := o.part(ctx, first, at, client, actor)
	if !two || err != nil && !errors.Is(err, ErrErased) {
		return p, err
	}
	q, err2 := o.part(ctx, second, at, client, actor)
	switch {
	case err2 == nil:
		return Personal{Address: cmp.Or(p.Address, q.Address), Members: q.Members}, nil
	case err == nil && errors.Is(err2, ErrErased):
		return p, nil
	}
	return Personal{}, err2
}

// part opens what is sealed under one key.
func (o *Opener) part(ctx context.Context, sealed string, at time.Time, client, actor string) (Personal, error) {
	who, text, ok := strings.Cut(sealed, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(who) != 1 {
		return Personal{}, errors.New("the sealed member is malformed")
	}
	k := cipherKey{day: dayOf(at)}
	switch who[0] {
	case sealedClient:
		k.id = client
	case sealedActor:
		k.id = actor
	case sealedNobody:
	default:
		return Personal{}, errors.New("the sealed member is of an unknown kind")
	}
	if k.id == "" && who[0] != sealedNobody {
		return Personal{}, errors.New("the sealed member's subject is missing")
	}
	aead, err := o.cipher(ctx, k)
	if err != nil {
		return Personal{}, err
	}
	plain, err := aead.Open(nil, nil, raw, nil)
	if err != nil {
		return Personal{}, ErrErased // a live subject has another secret since
	}
	var p struct {
		Address  string            `json:"address"`
		Personal map[string]string `json:"personal"`
	}
	if err := json.Unmarshal(plain, &p); err != nil {
		return Personal{}, errors.New("the sealed member is malformed")
	}
	return Personal{Address: p.Address, Members: p.Personal}, nil
}

func (o *Opener) cipher(ctx context.Context, k cipherKey) (cipher.AEAD, error) {
	return cipherOf(ctx, k, o.keys.StoredDay, o.keys.StoredSubject)
}

// lru keeps the ciphers that were used last.
type lru struct {
	bound   int
	entries map[cipherKey]*lruEntry
	first   *lruEntry // used last; nil when there is none
	last    *lruEntry
}

type lruEntry struct {
	key   cipherKey
	aead  cipher.AEAD
	newer *lruEntry
	older *lruEntry
}

// get returns a cipher, or nil.
func (l *lru) get(k cipherKey) cipher.AEAD {
	e := l.entries[k]
	if e == nil {
		return nil
	}
	if l.first != e {
		l.unlink(e)
		l.push(e)
	}
	return e.aead
}

// put keeps a cipher, and lets the one go that was not used for longest when there are too many.
func (l *lru) put(k cipherKey, aead cipher.AEAD) {
	if l.entries == nil {
		l.entries = make(map[cipherKey]*lruEntry)
	}
	if e := l.entries[k]; e != nil {
		e.aead = aead
		return
	}
	if len(l.entries) >= l.bound {
		oldest := l.last
		l.unlink(oldest)
		delete(l.entries, oldest.key)
	}
	e := &lruEntry{key: k, aead: aead}
	l.entries[k] = e
	l.push(e)
}

func (l *lru) drop(gone func(cipherKey) bool) {
	for k, e := range l.entries {
		if gone(k) {
			l.unlink(e)
			delete(l.entries, k)
		}
	}
}

func (l *lru) push(e *lruEntry) {
	e.newer, e.older = nil, l.first
	if l.first != nil {
		l.first.newer = e
	}
	l.first = e
	if l.last == nil {
		l.last = e
	}
}

func (l *lru) unlink(e *lruEntry) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		l.first = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		l.last = e.newer
	}
	e.newer, e.older = nil, nil
}
