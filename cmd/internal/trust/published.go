// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// Bounds of what a client publishes, and of how long it is believed.
const (
	maxKeySetBytes = 256 << 10
	maxKeys        = 100
	// refreshAge is when published certificates are fetched again, maxAge when they are believed no longer.
	refreshAge = 5 * time.Minute
	maxAge     = 10 * time.Minute
	// refetchInterval is the least time between two fetches, whatever certificates are presented meanwhile.
	refetchInterval = 30 * time.Second
	fetchTimeout    = 5 * time.Second
	// idleAge is how long certificates are kept fresh, and in Health, though nobody asks for them.
	idleAge = time.Hour
	// clientsPerPage is how many clients are read at once at the start, fetchesAtOnce how many of them are prepared for.
	clientsPerPage = 500
	fetchesAtOnce  = 8
)

// pinned are certificates that were registered by value. It implements issuer.CertificateSet.
type pinned map[mtls.Thumbprint]bool

func newPinned(ders [][]byte) pinned {
	p := make(pinned, len(ders))
	for _, der := range ders {
		p[sha256.Sum256(der)] = true
	}
	return p
}

// Contains implements issuer.CertificateSet.
func (p pinned) Contains(_ context.Context, t mtls.Thumbprint) (bool, error) { return p[t], nil }

// certificates are some that a client publishes, and the hashes of their public keys (SubjectPublicKeyInfo).
type certificates map[mtls.Thumbprint][sha256.Size]byte

func (c certificates) have(t mtls.Thumbprint) bool {
	_, have := c[t]
	return have
}

// setKey names what one registration publishes. A client that was removed and added again is another.
type setKey struct {
	client     string
	generation uint64
	url        string
	signs      bool // by private_key_jwt
}

func keyOf(row store.Client) setKey {
	return setKey{row.ID, row.Generation, row.JWKSURI, row.AuthMethod == issuer.PrivateKeyJWT}
}

// keySet is what one client publishes at its jwks_uri: its certificates (RFC 8705, Section 2.2.2), as issuer.CertificateSet,
// or the keys that it signs assertions with (RFC 7523, Section 3), as tokens.Keys.
// However many ask at once, one fetch is under way, and there is at most one in refetchInterval.
type keySet struct {
	manager *Manager
	name    string
	url     string
	signs   bool // it publishes keys of assertions and not certificates

	mu        sync.Mutex
	certs     certificates      // nil before the first fetch that succeeded
	keys      tokens.StaticKeys // fetched together with certs
	fetched   time.Time         // when the fetch that gave certs began
	attempted time.Time         // when the last fetch began
	used      time.Time         // when somebody last asked
	err       error             // why the last fetch failed; nil when it did not
	underway  chan struct{}     // closed when the fetch under way has ended; nil when there is none
}

// Contains implements issuer.CertificateSet. A certificate that was not in the set when it was last fetched is answered
// at once, and never with an error, as one of an unknown client is: neither the answer nor its time shall tell a stranger
// who has a jwks_uri, nor how that fares. A fetch begins meanwhile, so that a certificate which the client has just
// published counts at its next attempt. One that was in the set, which only its owner can present, waits for a fetch when
// the set is too old.
func (k *keySet) Contains(ctx context.Context, t mtls.Thumbprint) (bool, error) {
	known, wait, err := k.lookup(t)
	if wait == nil {
		return known, err
	}
	select {
	case <-wait:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.answer(t, k.manager.now())
}

// Key implements tokens.Keys. It never waits: whoever names the client can ask for any key, and neither the answer nor its
// time shall tell how its jwks_uri fares. A key that was not in the set when it was last fetched sets a fetch off, and
// counts at the client's next attempt; one of a set that is too old counts no more.
func (k *keySet) Key(ctx context.Context, id string) (tokens.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.manager.now()
	k.used = now
	key, err := k.keys.Key(ctx, id)
	if err != nil || !k.youngerThan(now, refreshAge) {
		k.fetch(now)
	}
	if err == nil && !k.youngerThan(now, maxAge) {
		key, err = tokens.PublicKey{}, fmt.Errorf("%w: the client's keys are too old", tokens.ErrUnknownKey)
	}
	return key, err
}

// KeyHash is the hash of the public key of a certificate that was in the set when it was last fetched.
func (k *keySet) KeyHash(t mtls.Thumbprint) (key [sha256.Size]byte, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, known = k.certs[t]
	return key, known
}

// holding adds what a client got by those of the set's certificates and keys that are one of these public keys.
func (k *keySet) holding(client string, keys [][sha256.Size]byte, to []tokens.Denial) []tokens.Denial {
	k.mu.Lock()
	defer k.mu.Unlock()
	for t, key := range k.certs {
		if slices.Contains(keys, key) {
			to = append(to, tokens.Denial{Thumbprint: t})
		}
	}
	if slices.ContainsFunc(k.keys, func(key tokens.PublicKey) bool {
		spki, err := x509.MarshalPKIXPublicKey(key.Key)
		return err == nil && slices.Contains(keys, sha256.Sum256(spki))
	}) {
		to = append(to, tokens.Denial{ClientID: client}) // whatever the certificate that it was bound to
	}
	return to
}

// lookup answers from memory, or returns a channel that is closed when a fetch worth waiting for has ended.
func (k *keySet) lookup(t mtls.Thumbprint) (bool, <-chan struct{}, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.manager.now()
	k.used = now
	fresh := k.certs.have(t) && k.youngerThan(now, maxAge)
	if !fresh || !k.youngerThan(now, refreshAge) {
		k.fetch(now)
	}
	if fresh || !k.certs.have(t) {
		return fresh, nil, nil
	}
	if k.underway != nil {
		return false, k.underway, nil
	}
	known, err := k.answer(t, now)
	return known, nil, err
}

// answer is the last word from memory about a certificate that was in the set once. mu is held.
func (k *keySet) answer(t mtls.Thumbprint, now time.Time) (bool, error) {
	switch {
	case k.youngerThan(now, maxAge):
		return k.certs.have(t), nil
	case k.err != nil:
		return false, k.err
	}
	return false, errors.New("the client's certificates could not be fetched in time")
}

// youngerThan reports whether certs were fetched less than age ago, by the wall clock: the monotonic one stands still
// while the machine sleeps. A clock that was set back makes nothing fresh. mu is held.
func (k *keySet) youngerThan(now time.Time, age time.Duration) bool {
	since := now.Round(0).Sub(k.fetched.Round(0))
	return since >= 0 && since < age
}

// fetch begins a fetch unless one is under way or began too recently. mu is held.
func (k *keySet) fetch(now time.Time) {
	since := now.Sub(k.attempted)
	if k.underway != nil || since >= 0 && since < refetchInterval {
		return
	}
	done := make(chan struct{})
	k.underway, k.attempted = done, now
	go func() {
		certs, keys, partly, err := k.download()
		changed := k.take(certs, keys, err, now)
		if err == nil {
			err = partly
		}
		k.manager.report(k.name, partURL, err)
		if changed {
			k.manager.announce()
		}
		close(done)
	}()
}

// take ends a fetch and reports whether the certificates or keys are others now.
func (k *keySet) take(certs certificates, keys tokens.StaticKeys, err error, begun time.Time) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underway = nil
	if k.err = err; err != nil {
		return false
	}
	changed = !maps.Equal(k.certs, certs) || !slices.EqualFunc(k.keys, keys, sameSigner)
	k.certs, k.keys, k.fetched = certs, keys, begun // they may have changed since the request was sent
	return changed
}

func sameSigner(a, b tokens.PublicKey) bool {
	one, ok := a.Key.(interface{ Equal(crypto.PublicKey) bool }) // all kinds of keys have it
	return ok && a.ID == b.ID && a.Algorithm == b.Algorithm && one.Equal(b.Key)
}

// download reads what is published, once. Its time is bounded by itself and not by the request of whoever asked first.
func (k *keySet) download() (certs certificates, keys tokens.StaticKeys, partly, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	data, err := k.manager.fetcher.Get(ctx, k.url, maxKeySetBytes, "application/jwk-set+json", "application/json")
	if err != nil {
		what := "certificates"
		if k.signs {
			what = "keys"
		}
		return nil, nil, nil, fmt.Errorf("the client's %s: %w", what, err)
	}
	if k.signs {
		if keys, err = issuer.PublishedAssertionKeys(data); err != nil {
			return nil, nil, nil, fmt.Errorf("the client's keys: %w", err)
		}
		return certificates{}, keys, nil, nil
	}
	certs, partly, err = parseKeySet(data)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("the client's certificates: %w", err)
	}
	return certs, nil, partly, nil
}

// refresh keeps what is in use fresh.
func (k *keySet) refresh(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.used) < idleAge && k.certs != nil && !k.youngerThan(now, refreshAge) {
		k.fetch(now)
	}
}

// idle reports whether nobody has asked for a long time. What the set was is still remembered.
func (k *keySet) idle(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return now.Sub(k.used) >= idleAge
}

// begin begins the first fetch, and returns a channel that is closed when it has ended; nil when there is none.
func (k *keySet) begin(now time.Time) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.certs == nil {
		k.fetch(now)
	}
	return k.underway
}

// followClients looks at the clients that changed, and for the first time at all that publish certificates: these are
// prepared for, so that their first request finds them, and what others published once is forgotten.
func (m *Manager) followClients(ctx context.Context) []*keySet {
	m.mu.Lock()
	changed := slices.Collect(maps.Keys(m.clients))
	clear(m.clients)
	m.mu.Unlock()
	var rows []store.Client
	err := m.listClients(ctx, func(row store.Client) { rows = append(rows, row) })
	for _, id := range changed {
		row, readErr := m.store.Client(ctx, id)
		switch {
		case errors.Is(readErr, store.ErrNotFound):
			row = store.Client{ID: id}
		case readErr != nil:
			err = readErr
			m.noteClient(id) // to be read again
			continue
		}
		rows = append(rows, row)
	}
	if err != nil {
		err = fmt.Errorf("the database's clients cannot be read: %w", err)
	}
	if ctx.Err() == nil {
		m.report("clients", partRow, err)
	}
	var sets []*keySet
	for _, row := range rows {
		if k := m.followClient(row); k != nil {
			sets = append(sets, k)
		}
	}
	return sets
}

// listClients gives all clients that publish certificates to each, once; only Run's own goroutine calls it.
func (m *Manager) listClients(ctx context.Context, each func(store.Client)) error {
	for !m.listed {
		page, err := m.store.Publishers(ctx, m.after, clientsPerPage)
		if err != nil {
			return err
		}
		for _, row := range page {
			each(row)
			m.after = row.ID
		}
		m.listed = len(page) < clientsPerPage
	}
	return nil
}

// followClient drops what the client published under another registration, and returns what it publishes now, if it does.
func (m *Manager) followClient(row store.Client) *keySet {
	key := keyOf(row)
	publishes := row.JWKSURI != "" && !row.Disabled && len(row.Certificates) == 0
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, k := range m.sets {
		if other.client == row.ID && (other != key || !publishes) {
			delete(m.sets, other)
			m.discard(k.name)
		}
	}
	if !publishes {
		return nil
	}
	return m.set(key)
}

// prepare fetches sets for the first time, a few at once.
func prepare(ctx context.Context, sets []*keySet) {
	for some := range slices.Chunk(sets, fetchesAtOnce) {
		var waits []<-chan struct{}
		for _, k := range some {
			if wait := k.begin(k.manager.now()); wait != nil {
				waits = append(waits, wait)
			}
		}
		for _, wait := range waits {
			select {
			case <-wait:
			case <-ctx.Done():
				return
			}
		}
	}
}

// parseKeySet reads the certificates of a JSON Web Key Set: the first of "x5c" of each key that has one (RFC 8705,
// Section 2.2.2; RFC 7517, Section 4.7). A key that contradicts itself, or that may not be a client's, is left out, and
// partly says why; when nothing is left because of that, it is an error. A set without certificates is one: the client
// has taken them back.
func parseKeySet(data []byte) (certs certificates, partly, err error) {
	set, err := object(data)
	if err != nil {
		return nil, nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	var keys []json.RawMessage
	if err := json.Unmarshal(set["keys"], &keys); err != nil || keys == nil {
		return nil, nil, errors.New(`not a JSON Web Key Set: no array "keys"`)
	}
	if len(keys) > maxKeys {
		return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	certs = make(certificates)
	for i, key := range keys {
		cert, err := parseKey(key)
		if err != nil {
			partly = fmt.Errorf("key %d of the client's set is not used: %w", i, err)
		} else if cert != nil {
			certs[mtls.ThumbprintOf(cert)] = sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		}
	}
	if len(certs) == 0 && partly != nil {
		return nil, nil, partly
	}
	return certs, partly, nil
}

// parseKey returns the certificate of one key, nil when it has none or is not for signatures.
func parseKey(data []byte) (*x509.Certificate, error) {
	key, err := object(data)
	if err != nil {
		return nil, err
	}
	if key["x5c"] == nil || key["use"] != nil && text(key["use"]) != "sig" {
		return nil, nil
	}
	// A key whose private part was published is everybody's key.
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if key[private] != nil {
			return nil, errors.New("its private part was published")
		}
	}
	cert, err := firstCertificate(key["x5c"])
	if err != nil {
		return nil, err
	}
	if err := mtls.CheckPublicKey(cert.PublicKey); err != nil {
		return nil, err
	}
	if !sameKey(key, cert) {
		return nil, errors.New("its certificate is of another key")
	}
	return cert, nil
}

// firstCertificate decodes x5c: base64 of the ordinary alphabet with padding, the key's own certificate first.
func firstCertificate(x5c json.RawMessage) (*x509.Certificate, error) {
	var chain []string
	if err := json.Unmarshal(x5c, &chain); err != nil || len(chain) == 0 {
		return nil, errors.New("x5c is no array of strings")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(chain[0])
	if err != nil || strings.ContainsAny(chain[0], "\r\n") {
		return nil, errors.New("x5c is not in base64")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("x5c: %w", err)
	}
	return cert, nil
}

// sameKey reports whether a JSON Web Key is the certificate's key (RFC 7517, Section 4.7; RFC 7518, Section 6).
func sameKey(key map[string]json.RawMessage, cert *x509.Certificate) bool {
	switch pub := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		n, e := new(big.Int).SetBytes(octets(key["n"])), new(big.Int).SetBytes(octets(key["e"]))
		return text(key["kty"]) == "RSA" && n.Cmp(pub.N) == 0 && e.Cmp(big.NewInt(int64(pub.E))) == 0
	case *ecdsa.PublicKey:
		point, err := pub.Bytes() // 4, then x and y in full length
		return err == nil && text(key["kty"]) == "EC" && text(key["crv"]) == pub.Params().Name &&
			len(octets(key["x"])) == len(octets(key["y"])) &&
			bytes.Equal(point[1:], append(octets(key["x"]), octets(key["y"])...))
	case ed25519.PublicKey:
		return text(key["kty"]) == "OKP" && text(key["crv"]) == "Ed25519" && bytes.Equal(pub, octets(key["x"]))
	}
	return false
}

// text returns a JSON string, "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// octets returns what a JSON string holds in base64url, nil for anything else.
func octets(raw json.RawMessage) []byte {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text(raw))
	if err != nil {
		return nil
	}
	return b
}

// object reads a JSON object by the exact names of its members, each of which may be there once.
func object(data []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return nil, errors.New("no JSON object")
	}
	members := make(map[string]json.RawMessage)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, errors.New("damaged JSON")
		}
		key, _ := name.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, errors.New("damaged JSON")
		}
		if _, twice := members[key]; twice {
			return nil, errors.New("a member is there twice")
		}
		members[key] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("damaged JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}
