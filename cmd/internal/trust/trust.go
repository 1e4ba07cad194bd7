// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package trust keeps what the service believes of others: the foreign authorities that may vouch for clients, what
// those authorities revoked, and the certificates that clients publish at a jwks_uri. It is for the server, which asks
// it when it turns a registered client into one that the token service can judge.
//
// It refuses a set of anchors that is empty, damaged, read in part or holds anything but CA certificates: at the start
// it does not begin, and later it keeps the last good set and raises an alarm. It believes no revocation list that none
// of the authority's own certificates signed, none that is older than any of the same signer that this process has seen,
// and never takes the absence of a list for the absence of revocations unless it was told to. A list stays in use as long
// as a trust has its signer, though the place from which it came leaves it out. Nothing is fetched within a TLS handshake.
//
// Lists that were fetched are kept in memory only. After a restart the first list that is fetched is believed if it is
// not stale and not older than the one that was given by value: whoever can answer in the authority's place can bring an
// old list back then, until its nextUpdate.
package trust

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// Values of FileTrust.Revocation and store.Trust.Revocation.
const (
	Hard = "hard" // a certificate whose status is unknown is refused
	Soft = "soft" // it is let through, and an alarm is raised
	Off  = "off"  // revocation is not judged
)

// ErrUnknown says that no trust has this name.
var ErrUnknown = errors.New("no such trust")

// Store is what the Manager reads of the database; *store.Store is one.
type Store interface {
	Trusts(ctx context.Context) ([]store.Trust, error)
	Client(ctx context.Context, id string) (store.Client, error)
	Publishers(ctx context.Context, after string, limit int) ([]store.Client, error)
	OnChange(func(store.Change))
}

// Events is told of alarms, for metrics. Its method is called concurrently and must not block.
type Events interface {
	// TrustAlarm reports that something is wrong with what name stands for, such as "trust:partner" or "jwks:billing".
	TrustAlarm(name, what string)
}

// FileTrust is a foreign authority whose certificates lie in a file. It stands over one of the same name in the
// database.
type FileTrust struct {
	// Name is what clients call it by.
	Name string
	// CAFile holds its certificates in PEM: the self-signed ones, of which there must be one, are the anchors, and the
	// others stand between them and clients.
	CAFile string
	// CRLFile and CRLURL say where its revocation lists are: DER, or PEM with one or several. Both may be given; the
	// list with the higher number counts. Every list must be signed by a certificate of CAFile.
	CRLFile string
	CRLURL  string
	// Revocation is Hard, Soft or Off; empty means Hard when a list is named and Off when none is.
	Revocation string
}

// Config is what New needs. Store and Fetcher are required.
type Config struct {
	Store   Store
	Fetcher *fetch.Fetcher
	Files   []FileTrust
	// OwnCAs are the certificates of our own CA. A trust that holds one of their keys, or what they signed, is refused:
	// its clients would be judged without the inventory.
	OwnCAs []*x509.Certificate
	Events Events           // may be nil
	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

// Manager holds the trusts. It is safe for concurrent use.
type Manager struct {
	store   Store
	fetcher *fetch.Fetcher
	events  Events
	logger  *slog.Logger
	now     func() time.Time
	own     []*x509.Certificate

	// work is held by whoever reads files or rows, or takes over a list, and never while something is fetched. It comes
	// before mu.
	work  sync.Mutex
	files map[string]*authority // by name; the map never changes
	rows  map[string]*authority // by name
	seen  map[signerKey]seen    // of every signer of lists so far

	mu        sync.Mutex
	published map[string]published // by name
	epoch     uint64               // counts changes of the database's trusts
	loaded    uint64               // the epoch that rows show
	sets      map[setKey]*keySet
	clients   map[string]bool              // ids of those that changed since Run last looked
	troubles  map[string]map[string]string // by name and part; an empty part is well
	listeners []func()

	wake chan struct{} // tells Run that clients changed

	// How far Run has read the clients for the first time. No other goroutine uses them.
	after  string
	listed bool
}

// published is what Anchors answers for one trust.
type published struct {
	anchors    *mtls.Anchors
	revocation issuer.Revocation // nil when it is off
	err        error             // why the trust cannot be used at all
}

// New reads the files of c and returns a Manager. It fails on every CA file that cannot be used, and on a trust that is
// told to judge revocation without a list. A revocation list that cannot be read is no reason not to begin: with Hard,
// its authority's clients are refused until there is one. Nothing is fetched and nothing runs before Run.
func New(c Config) (*Manager, error) {
	if c.Store == nil || c.Fetcher == nil {
		return nil, errors.New("trust: Store and Fetcher are required")
	}
	m := &Manager{
		store: c.Store, fetcher: c.Fetcher, events: c.Events, logger: c.Logger, now: c.Now, own: c.OwnCAs,
		files: make(map[string]*authority), rows: make(map[string]*authority), seen: make(map[signerKey]seen),
		published: make(map[string]published), epoch: 1,
		sets: make(map[setKey]*keySet), troubles: make(map[string]map[string]string),
		clients: make(map[string]bool), wake: make(chan struct{}, 1),
	}
	if m.logger == nil {
		m.logger = slog.New(slog.DiscardHandler)
	}
	if m.now == nil {
		m.now = time.Now
	}
	for _, f := range c.Files {
		if err := m.addFile(f); err != nil {
			return nil, fmt.Errorf("trust %q: %w", f.Name, err)
		}
	}
	m.store.OnChange(m.forget)
	return m, nil
}

// addFile takes one trust of the configuration in.
func (m *Manager) addFile(f FileTrust) error {
	if f.Name == "" || m.files[f.Name] != nil {
		return errors.New("each needs a name of its own")
	}
	mode, err := modeOf(f.Revocation, f.CRLFile != "" || f.CRLURL != "")
	if err != nil {
		return err
	}
	a := m.newAuthority(f.Name)
	a.mode, a.caFile, a.crlFile, a.crlURL = mode, f.CAFile, f.CRLFile, f.CRLURL
	if _, err := a.readCA(); err != nil {
		return err
	}
	m.files[f.Name] = a
	_, _ = m.readListFile(a) // what is wrong with it is reported, and no reason not to begin
	m.publish(a)
	return nil
}

// modeOf returns how revocation is judged; listed says whether there is a place to read a list from.
func modeOf(mode string, listed bool) (string, error) {
	switch {
	case mode == "" && listed:
		return Hard, nil
	case mode == "" || mode == Off:
		return Off, nil
	case mode != Hard && mode != Soft:
		return "", fmt.Errorf("revocation %q is not known", mode)
	case !listed:
		return "", errors.New("revocation is to be judged, but there is no revocation list")
	}
	return mode, nil
}

// Anchors returns the anchors of a trust and what judges its revocations, nil when that is Off. The same anchors are
// the same pointer until their bytes change. The Revocation stays up to date by itself. The error is ErrUnknown, or
// says why the database could not be read or what in it is damaged.
func (m *Manager) Anchors(ctx context.Context, name string) (*mtls.Anchors, issuer.Revocation, error) {
	if m.files[name] == nil {
		if err := m.loadRows(ctx); err != nil {
			return nil, nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.published[name]
	if !ok {
		return nil, nil, ErrUnknown
	}
	if p.err != nil {
		return nil, nil, p.err
	}
	return p.anchors, p.revocation, nil
}

// Certificates returns the certificates that a client of the method self_signed_tls_client_auth registered: those in
// its row, or those at its JWKSURI, which Run has fetched, or are fetched when they are first asked for.
func (m *Manager) Certificates(client store.Client) issuer.CertificateSet {
	if client.JWKSURI == "" {
		return newPinned(client.Certificates)
	}
	if len(client.Certificates) > 0 {
		// RFC 7591, Section 2: jwks and jwks_uri must not both be there. To strangers it looks like an unknown client.
		m.report("jwks:"+client.ID, partRow, errors.New("the client has registered certificates and a jwks_uri"))
		return newPinned(nil)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set(keyOf(client))
}

// Keys returns the keys that a client of the method private_key_jwt signs its assertions with: those in its row, or those
// at its JWKSURI. Registered keys that cannot be read, which nobody registers, are none.
func (m *Manager) Keys(client store.Client) tokens.Keys {
	if client.JWKSURI == "" {
		keys, err := issuer.ParseAssertionKeys([]byte(client.JWKS))
		if err != nil {
			m.report("jwks:"+client.ID, partRow, fmt.Errorf("the client's registered keys: %w", err))
		}
		return keys
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set(keyOf(client))
}

// Holding returns what is to be denied when these public keys are compromised, given by the hashes of their
// SubjectPublicKeyInfo: the tokens that are bound to certificates of them which clients publish at a jwks_uri, and those of
// clients that publish them as keys of their assertions. It knows what has been fetched, which Run does for every client at
// the start. The denials have no end and no time yet.
func (m *Manager) Holding(keys [][sha256.Size]byte) []tokens.Denial {
	m.mu.Lock()
	sets := maps.Clone(m.sets)
	m.mu.Unlock()
	var found []tokens.Denial
	for key, k := range sets {
		found = k.holding(key.client, keys, found)
	}
	return found
}

// set returns what one registration publishes. mu is held.
func (m *Manager) set(key setKey) *keySet {
	k := m.sets[key]
	if k == nil {
		k = &keySet{manager: m, name: "jwks:" + key.client, url: key.url, signs: key.signs, used: m.now()}
		m.sets[key] = k
	}
	return k
}

// OnChange registers f to be called after each change of anchors, revocation lists or published certificates that may
// alter a decision, so that whoever remembers a client made of them drops it. f must not call Reload, nor wait.
func (m *Manager) OnChange(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners = append(m.listeners, f)
}

func (m *Manager) announce() {
	m.mu.Lock()
	listeners := slices.Clone(m.listeners)
	m.mu.Unlock()
	for _, f := range listeners {
		f()
	}
}

// forget notes what changed in the database. Trusts are read again when they are asked for, clients by Run; this is called
// within the change, which must not wait.
func (m *Manager) forget(c store.Change) {
	for _, id := range c.ClientIDs {
		m.noteClient(id)
	}
	if len(c.ClientIDs) > 0 {
		select {
		case m.wake <- struct{}{}:
		default: // it is told already
		}
	}
	// When anything may have changed, what clients publish needs no look: it is kept by the registration that it belongs to.
	if !c.Trusts && !c.Full {
		return
	}
	m.mu.Lock()
	m.epoch++
	m.mu.Unlock()
	m.announce()
}

func (m *Manager) noteClient(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients[id] = true
}

// Health tells how each trust and each client's published certificates are: "ok", or what is wrong with them. The names
// are "trust:NAME" and "jwks:CLIENT", and "trusts" or "clients" when the database's cannot be read.
func (m *Manager) Health() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	health := make(map[string]string)
	for name := range m.published {
		health["trust:"+name] = "ok"
	}
	now := m.now()
	for _, k := range m.sets {
		if !k.idle(now) {
			health[k.name] = "ok"
		}
	}
	for name, parts := range m.troubles {
		if strings.HasPrefix(name, "jwks:") && health[name] == "" {
			continue // of a fetch that ended after nobody asked for it any more
		}
		var texts []string
		for _, part := range slices.Sorted(maps.Keys(parts)) {
			texts = append(texts, parts[part])
		}
		if len(texts) > 0 {
			health[name] = strings.Join(texts, "; ")
		}
	}
	return health
}

// The parts of a trust that may be in trouble, each by itself.
const (
	partCA     = "ca"     // its certificates
	partFile   = "file"   // the lists that were given
	partURL    = "url"    // the lists that are fetched
	partLists  = "lists"  // what all of them say together
	partStatus = "status" // what a certificate was let through with
	partRow    = "row"    // a row that a file of the same name stands over
)

// report notes that a part is in trouble, and raises an alarm unless that is known already; a nil err says that it is
// well.
func (m *Manager) report(name, part string, err error) {
	if err == nil {
		m.mu.Lock()
		delete(m.troubles[name], part)
		m.mu.Unlock()
		return
	}
	if what := err.Error(); m.note(name, part, what) {
		m.alarm(name, what)
	}
}

// note reports whether the trouble is news.
func (m *Manager) note(name, part, what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.troubles[name] == nil {
		m.troubles[name] = make(map[string]string)
	}
	before := m.troubles[name][part]
	// A status is judged at every request, and by what a caller presents: the first trouble stands for all.
	if before == what || part == partStatus && before != "" {
		return false
	}
	m.troubles[name][part] = what
	return true
}

func (m *Manager) alarm(name, what string) {
	m.logger.Error("trust alarm", "name", name, "what", what)
	if m.events != nil {
		m.events.TrustAlarm(name, what)
	}
}

// discard forgets the troubles of what is no more. mu is held.
func (m *Manager) discard(name string) { delete(m.troubles, name) }
