// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

const (
	// mostStandings is of how many clients the standing is remembered: 96 MiB when as many have come, and 12 MiB to find them.
	mostStandings = 1 << 20
	// chunkStandings is how many records share one piece of memory.
	chunkStandings = 1 << 13
	// mostEntitlements bounds how many different entitlements are remembered; a client with one more is asked of the database.
	mostEntitlements = grantSetsKept
)

// The parts of a record, and its length.
const (
	standingClient      = 0                         // the digest of the client's id
	standingCertificate = standingClient + 16       // the thumbprint
	standingSecret      = standingCertificate + 32  // in the journal
	standingNotAfter    = standingSecret + 32       // of the certificate, microseconds since 1970
	standingGeneration  = standingNotAfter + 8      // of both
	standingEntitlement = standingGeneration + 4    // its place, and the mark withSecret
	standingBytes       = standingEntitlement + 4   // divides no page, and chunks do
	withSecret          = uint32(math.MaxInt32 + 1) // there is one
)

// standings remembers of many clients of our own CA what a token is decided by and recorded under, each in 96 bytes of memory
// that the garbage collector neither scans nor counts. With it, a client that comes again after long costs no search in the
// database. A record is a client with the one certificate that it last presented, when both were in good standing; whatever
// else there is, the database is asked for. It grows as clients come, up to a bound, and then forgets the one that it has known
// longest for each new one. The caller locks; get changes nothing.
type standings struct {
	most         int
	key          [32]byte // of the digests of ids
	chunks       []*chunk
	used         uint32   // slots that were ever given out
	spare        []uint32 // those that are free again
	oldest       uint32   // the slot that is taken next when none is free
	clients      places
	certificates places
	entitlements []entitlement
	unused       []uint32          // places in entitlements
	entitled     map[string]uint32 // places in entitlements, by what they say
}

// entitlement is what many clients have in common.
type entitlement struct {
	text              string
	scopes, resources []string
	tokenTTL          time.Duration
	users             int
}

// newStandings returns an empty memory for most clients.
func newStandings(most int) *standings {
	s := &standings{}
	s.reset(most)
	return s
}

// reset drops everything, and gives the memory back.
func (s *standings) reset(most int) {
	*s = standings{most: most, entitled: make(map[string]uint32)}
	rand.Read(s.key[:]) // never fails
	s.clients.key = func(slot uint32) []byte { return s.record(slot)[standingClient:standingCertificate] }
	s.certificates.key = func(slot uint32) []byte { return s.record(slot)[standingCertificate:standingSecret] }
}

// digest stands for a client's id. It is as long as a key, so that nobody finds two ids that share one.
func (s *standings) digest(id string) []byte {
	sum := sha256.Sum256(append(append(make([]byte, 0, 2*sha256.Size), s.key[:]...), id...))
	return sum[:standingCertificate-standingClient]
}

func (s *standings) record(slot uint32) []byte {
	at := int(slot%chunkStandings) * standingBytes
	return s.chunks[slot/chunkStandings].memory[at : at+standingBytes : at+standingBytes]
}

// get returns what put was given for a client and certificate, nil when that is not remembered.
func (s *standings) get(id string, t mtls.Thumbprint) *store.Holder {
	slot, ok := s.clients.find(s.digest(id))
	if !ok {
		return nil
	}
	record := s.record(slot)
	if !bytes.Equal(record[standingCertificate:standingSecret], t[:]) {
		return nil
	}
	generation := uint64(binary.NativeEndian.Uint32(record[standingGeneration:]))
	place := binary.NativeEndian.Uint32(record[standingEntitlement:])
	e := &s.entitlements[place&^withSecret]
	h := &store.Holder{
		Client: store.Client{
			ID: id, Generation: generation, AuthMethod: issuer.TLSClientAuth, Scopes: e.scopes, Resources: e.resources, TokenTTL: e.tokenTTL,
		},
		Certificate: store.Certificate{
			Thumbprint: t, ClientID: id, Generation: generation,
			NotAfter: time.UnixMicro(int64(binary.NativeEndian.Uint64(record[standingNotAfter:]))).UTC(),
		},
	}
	if place&withSecret != 0 {
		h.Secret = bytes.Clone(record[standingSecret:standingNotAfter])
	}
	return h
}

// put remembers a client with its certificate in place of what it knew of the client. Who is not in good standing, or does not
// fit into a record, is forgotten instead.
func (s *standings) put(h *store.Holder) {
	s.forgetClient(h.Client.ID)
	s.forgetCertificate(h.Certificate.Thumbprint)
	if h.Client.Disabled || h.Certificate.ClientID != h.Client.ID || !h.Certificate.RevokedAt.IsZero() ||
		h.Client.Generation != h.Certificate.Generation || h.Client.Generation > math.MaxUint32 {
		return
	}
	place, ok := s.entitle(&h.Client)
	if !ok {
		return
	}
	slot, ok := s.take()
	if !ok {
		s.release(place)
		return
	}
	record := s.record(slot)
	copy(record[standingClient:], s.digest(h.Client.ID))
	copy(record[standingCertificate:], h.Certificate.Thumbprint[:])
	binary.NativeEndian.PutUint64(record[standingNotAfter:], uint64(h.Certificate.NotAfter.UnixMicro()))
	binary.NativeEndian.PutUint32(record[standingGeneration:], uint32(h.Client.Generation))
	binary.NativeEndian.PutUint32(record[standingEntitlement:], place)
	s.clients.add(slot)
	s.certificates.add(slot)
	s.learn(h.Client.ID, h.Secret)
}

// learn adds a client's secret in the journal to what is remembered of the client, if anything is.
func (s *standings) learn(id string, secret []byte) {
	slot, ok := s.clients.find(s.digest(id))
	if !ok || len(secret) != standingNotAfter-standingSecret {
		return
	}
	record := s.record(slot)
	copy(record[standingSecret:], secret)
	place := binary.NativeEndian.Uint32(record[standingEntitlement:])
	binary.NativeEndian.PutUint32(record[standingEntitlement:], place|withSecret)
}

// forgetClient drops what is remembered of a client.
func (s *standings) forgetClient(id string) {
	if slot, ok := s.clients.find(s.digest(id)); ok {
		s.drop(slot)
		s.spare = append(s.spare, slot)
	}
}

// forgetCertificate drops what is remembered of whoever presented a certificate.
func (s *standings) forgetCertificate(t mtls.Thumbprint) {
	if slot, ok := s.certificates.find(t[:]); ok {
		s.drop(slot)
		s.spare = append(s.spare, slot)
	}
}

// clear drops everything.
func (s *standings) clear() { s.reset(s.most) }

// len is of how many clients something is remembered.
func (s *standings) len() int { return int(s.used) - len(s.spare) }

// take returns a slot whose record is empty, false when there is no memory.
func (s *standings) take() (uint32, bool) {
	if n := len(s.spare); n > 0 {
		slot := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return slot, true
	}
	if int(s.used) == s.most {
		slot := s.oldest
		s.oldest = (s.oldest + 1) % s.used
		s.drop(slot)
		return slot, true
	}
	if int(s.used) == len(s.chunks)*chunkStandings {
		c := newChunk(chunkStandings * standingBytes)
		if c == nil {
			return 0, false
		}
		s.chunks = append(s.chunks, c)
	}
	s.used++
	return s.used - 1, true
}

// drop empties a record that is in use. Its secret does not stay behind.
func (s *standings) drop(slot uint32) {
	s.clients.remove(slot)
	s.certificates.remove(slot)
	record := s.record(slot)
	s.release(binary.NativeEndian.Uint32(record[standingEntitlement:]) &^ withSecret)
	clear(record)
}

// entitle returns the place of a client's entitlement, which has one user more, false when there is no room.
func (s *standings) entitle(c *store.Client) (uint32, bool) {
	text := string(binary.AppendVarint(nil, int64(c.TokenTTL))) + grantSetKey(c.Scopes, c.Resources)
	place, ok := s.entitled[text]
	if !ok {
		switch n := len(s.unused); {
		case n > 0:
			place = s.unused[n-1]
			s.unused = s.unused[:n-1]
		case len(s.entitlements) == mostEntitlements:
			return 0, false
		default:
			place = uint32(len(s.entitlements))
			s.entitlements = append(s.entitlements, entitlement{})
		}
		s.entitlements[place] = entitlement{text: text, scopes: c.Scopes, resources: c.Resources, tokenTTL: c.TokenTTL}
		s.entitled[text] = place
	}
	s.entitlements[place].users++
	return place, true
}

// release takes one user from an entitlement, which is dropped with the last.
func (s *standings) release(place uint32) {
	e := &s.entitlements[place]
	if e.users--; e.users > 0 {
		return
	}
	delete(s.entitled, e.text)
	*e = entitlement{}
	s.unused = append(s.unused, place)
}

// places finds records by a digest in them: a hash table with open addressing. It is in parts that grow each by itself, because
// nobody is served while one does.
type places struct {
	key   func(slot uint32) []byte // the digest, of which nobody can choose the first 8 bytes
	parts [256]struct {
		slots []uint32 // each one more than the slot; 0: none. A power of two of them.
		used  int
	}
}

// where returns the part that a digest belongs to, and the first place in it where it may be.
func (p *places) where(key []byte) (part, at int) {
	hash := binary.BigEndian.Uint64(key)
	part = int(hash >> 56)
	return part, int(hash & uint64(len(p.parts[part].slots)-1))
}

func (p *places) find(key []byte) (uint32, bool) {
	part, at := p.where(key)
	slots := p.parts[part].slots
	if len(slots) == 0 {
		return 0, false
	}
	for ; slots[at] != 0; at = (at + 1) & (len(slots) - 1) {
		if slot := slots[at] - 1; bytes.Equal(p.key(slot), key) {
			return slot, true
		}
	}
	return 0, false
}

// add has a slot found by its key, which none has that is there.
func (p *places) add(slot uint32) {
	const least = 8
	key := p.key(slot)
	part, _ := p.where(key)
	if t := &p.parts[part]; 4*(t.used+1) > 3*len(t.slots) { // so that there is always a free one
		old := t.slots
		t.slots = make([]uint32, max(least, 2*len(old)))
		for _, entry := range old {
			if entry != 0 {
				p.insert(entry - 1)
			}
		}
	}
	p.insert(slot)
	p.parts[part].used++
}

func (p *places) insert(slot uint32) {
	part, at := p.where(p.key(slot))
	slots := p.parts[part].slots
	for slots[at] != 0 {
		at = (at + 1) & (len(slots) - 1)
	}
	slots[at] = slot + 1
}

// remove has a slot that is there not found any more. Those behind it move up, as far as they may.
func (p *places) remove(slot uint32) {
	part, at := p.where(p.key(slot))
	slots := p.parts[part].slots
	mask := len(slots) - 1
	for slots[at] != slot+1 {
		at = (at + 1) & mask
	}
	for next := (at + 1) & mask; slots[next] != 0; next = (next + 1) & mask {
		_, first := p.where(p.key(slots[next] - 1))
		if (next-first)&mask >= (next-at)&mask { // the free place lies on its way
			slots[at], at = slots[next], next
		}
	}
	slots[at] = 0
	p.parts[part].used--
}
