// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

const (
	// cacheSize is how many clients the registry remembers, each with what was read with it: about 1 KiB. It is as many as
	// may be connected at once by default. More would have the garbage collector look at all of them again and again, and
	// for them there are standings.
	cacheSize = 1 << 13
	// certificatesKept bounds the certificates, of which a client may have several.
	certificatesKept = 2 * cacheSize
	// rememberedClients is for how many certificates of our own CA it is remembered that their signatures were verified.
	rememberedClients = 1 << 20
	// grantSetsKept bounds what is remembered of what clients may ask for, which few of them differ in.
	grantSetsKept = 1 << 12
	// adminTokenLife is the longest life of a token for the operators' API.
	adminTokenLife = 2 * time.Minute
)

// rows is what the registry reads of the store.
type rows interface {
	Client(ctx context.Context, id string) (store.Client, error)
	Certificate(ctx context.Context, thumbprint [32]byte) (store.Certificate, error)
	Holder(ctx context.Context, id string, thumbprint [32]byte) (*store.Holder, error)
	Resources(ctx context.Context) ([]store.Resource, error)
	BlockedKeys(ctx context.Context) ([][32]byte, error)
}

// foreign is what the registry asks about clients that our own CA does not vouch for.
type foreign interface {
	Anchors(ctx context.Context, name string) (*mtls.Anchors, issuer.Revocation, error)
	Certificates(client store.Client) issuer.CertificateSet
	Keys(client store.Client) tokens.Keys
}

// again is an error that may be gone a moment later: whoever is refused for it is told to come back.
type again struct{ error }

// Unwrap returns the error.
func (a again) Unwrap() error { return a.error }

// RetryAfter is when to come back.
func (a again) RetryAfter() time.Duration { return time.Second }

// registry is what the token service knows of clients and certificates: the database, read through a
// bounded cache whose entries are dropped inside the very call that changes them, so that a change is in
// force everywhere in this process when that call returns.
type registry struct {
	store       rows
	foreign     foreign       // what we believe of others
	anchors     *mtls.Anchors // our own CA
	trustDomain string
	admin       string         // the operators' API as a resource
	denied      []issuer.Grant // what every client may ask for that runs a resource server

	mu           sync.RWMutex
	epoch        uint64 // counts invalidations, so that a slow reader cannot put back what was dropped
	clients      map[string]*remembered
	certificates map[mtls.Thumbprint]*issuer.Certificate
	standings    *standings
	grantSets    map[string][]issuer.Grant // by what clients name, for all that name the same
	resources    []store.Resource
	servers      map[string][]string // the clients that run each resource's servers; with resources
	running      map[string]bool     // the clients that run a resource server
	loaded       bool
	blocked      map[[32]byte]bool // compromised public keys, all of them
	blockedStale uint64            // not 0: there may be more, and nobody is authenticated before they are read again
}

// remembered is a client and what was read with it, which is dropped with it: what needs one of them needs all.
type remembered struct {
	client      *issuer.Client
	certificate mtls.Thumbprint // one of certificates; zero: none was read
	secret      []byte          // in the journal; nil: it was not read, or there was none
}

func newRegistry(db *store.Store, others foreign, anchors *mtls.Anchors, trustDomain, admin string) *registry {
	r := &registry{
		store: timely{db}, foreign: others, anchors: anchors, trustDomain: trustDomain, admin: admin,
		clients:      make(map[string]*remembered),
		certificates: make(map[mtls.Thumbprint]*issuer.Certificate),
		standings:    newStandings(mostStandings),
		grantSets:    make(map[string][]issuer.Grant),
		blocked:      make(map[[32]byte]bool),
	}
	db.OnChange(r.forget)
	return r
}

// forget drops what a committed change made stale.
func (r *registry) forget(c store.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	if c.Resources {
		// A resource's scopes decide what clients may ask for.
		clear(r.clients)
		clear(r.grantSets)
		r.resources, r.loaded = nil, false
	}
	if c.Trusts {
		clear(r.clients)
	}
	if c.Full {
		clear(r.clients)
		clear(r.certificates)
		r.standings.clear()
		clear(r.grantSets)
		r.resources, r.loaded, r.blockedStale = nil, false, r.epoch
	}
	for _, key := range c.Blocked {
		r.blocked[key] = true // a key that is blocked stays so
	}
	for _, id := range slices.Concat(c.ClientIDs, c.AuditSubjects) {
		delete(r.clients, id)
		r.standings.forgetClient(id)
	}
	for _, t := range c.Thumbprints {
		delete(r.certificates, t)
		r.standings.forgetCertificate(t)
	}
}

// loadBlocked reads the compromised keys. It is called after the registry has begun to listen, so that none is missed.
func (r *registry) loadBlocked(ctx context.Context) error {
	r.mu.RLock()
	stale := r.blockedStale
	r.mu.RUnlock()
	keys, err := r.store.BlockedKeys(ctx)
	if err != nil {
		return again{fmt.Errorf("reading the compromised keys: %w", err)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		r.blocked[key] = true
	}
	if r.blockedStale == stale { // a key that was blocked meanwhile has been noted
		r.blockedStale = 0
	}
	return nil
}

// keyBlocked says whether a public key was reported compromised, for which they are read again when there may be more than
// are known.
func (r *registry) keyBlocked(ctx context.Context, key [32]byte) (bool, error) {
	for range 3 {
		r.mu.RLock()
		blocked, stale := r.blocked[key], r.blockedStale != 0
		r.mu.RUnlock()
		if blocked || !stale {
			return blocked, nil
		}
		if err := r.loadBlocked(ctx); err != nil {
			return false, err
		}
	}
	return false, again{errors.New("reading the compromised keys: anything may have changed meanwhile, time and again")}
}

// forgetForeign drops every client, because what others vouch for has changed.
func (r *registry) forgetForeign() { r.forget(store.Change{Trusts: true}) }

// Client implements issuer.Registry.
func (r *registry) Client(ctx context.Context, id string) (*issuer.Client, error) {
	r.mu.RLock()
	known, epoch := r.clients[id], r.epoch
	r.mu.RUnlock()
	if known != nil {
		return known.client, nil
	}
	if peer := mtls.SeenPeer(ctx); peer != nil {
		// Who presents a certificate will be judged by it, and what comes of that will be recorded: all is read at once.
		c, err := r.holder(ctx, id, peer.Thumbprint(), epoch)
		if !errors.Is(err, store.ErrNotFound) {
			return c, err
		}
	}
	row, err := r.store.Client(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, issuer.ErrNotFound
	}
	if err != nil {
		return nil, again{fmt.Errorf("reading a client: %w", err)}
	}
	c, err := r.client(ctx, &row, epoch)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch {
		r.remember(&remembered{client: c})
	}
	return c, nil
}

// remember keeps a client, with the certificate that was kept before, and makes room by dropping one that Go's map order
// picks. The caller holds mu.
func (r *registry) remember(known *remembered) {
	if len(r.clients) >= cacheSize {
		for id, other := range r.clients {
			delete(r.clients, id)
			delete(r.certificates, other.certificate)
			break
		}
	}
	r.clients[known.client.ID] = known
}

// holder is Client for a client of our own CA that presents the certificate, which it reads ahead.
func (r *registry) holder(ctx context.Context, id string, t mtls.Thumbprint, epoch uint64) (*issuer.Client, error) {
	r.mu.RLock()
	h := r.standings.get(id, t)
	r.mu.RUnlock()
	searched := h == nil
	if searched {
		var err error
		if h, err = r.store.Holder(ctx, id, t); err != nil {
			return nil, again{fmt.Errorf("reading a client: %w", err)}
		}
	}
	c, err := r.client(ctx, &h.Client, epoch)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch != epoch {
		return c, nil
	}
	known := &remembered{client: c, secret: h.Secret}
	if h.Certificate.Thumbprint == t {
		known.certificate = t
		keep(r.certificates, t, certificate(&h.Certificate), certificatesKept)
	}
	r.remember(known)
	if searched {
		r.standings.put(h)
	}
	return c, nil
}

// secret returns a client's secret in the journal if it was read with the client. Else it is nil, and learned is to be told the
// secret that was read or made thereafter. A secret must not be changed.
func (r *registry) secret(id string) (secret []byte, learned func(secret []byte)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	known, epoch := r.clients[id], r.epoch
	if known != nil && known.secret != nil {
		return known.secret, nil
	}
	return nil, func(secret []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.epoch != epoch { // it may have been deleted meanwhile
			return
		}
		if known != nil {
			known.secret = secret
		}
		r.standings.learn(id, secret)
	}
}

// certificate turns a row into what the token service decides by.
func certificate(row *store.Certificate) *issuer.Certificate {
	return &issuer.Certificate{
		ClientID: row.ClientID, Generation: row.Generation,
		NotAfter: row.NotAfter, Revoked: !row.RevokedAt.IsZero(),
	}
}

// Certificate implements issuer.Registry.
func (r *registry) Certificate(ctx context.Context, t mtls.Thumbprint) (*issuer.Certificate, error) {
	r.mu.RLock()
	c, epoch := r.certificates[t], r.epoch
	r.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	row, err := r.store.Certificate(ctx, t)
	if errors.Is(err, store.ErrNotFound) {
		return nil, issuer.ErrNotFound
	}
	if err != nil {
		return nil, again{fmt.Errorf("reading a certificate: %w", err)}
	}
	c = certificate(&row)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch {
		keep(r.certificates, t, c, certificatesKept)
	}
	return c, nil
}

// keep adds an entry to at most so many, making room by dropping one that Go's map order picks.
func keep[K comparable, V any](m map[K]V, key K, value V, most int) {
	if len(m) >= most {
		for k := range m {
			delete(m, k)
			break
		}
	}
	m[key] = value
}

// client turns a row, read not before the epoch, into what the token service decides by.
func (r *registry) client(ctx context.Context, row *store.Client, epoch uint64) (*issuer.Client, error) {
	resources, err := r.allResources(ctx)
	if err != nil {
		return nil, err
	}
	c := &issuer.Client{
		ID: row.ID, Generation: row.Generation, Disabled: row.Disabled, AuthMethod: row.AuthMethod,
		Grants: r.sharedGrants(row, resources, epoch), TokenLifetime: row.TokenTTL,
	}
	if r.runs(row.ID, resources) {
		c.Grants = slices.Concat(c.Grants, r.denied)
	}
	if err := r.vouch(ctx, c, row); err != nil {
		return nil, fmt.Errorf("who vouches for client %s: %w", row.ID, err)
	}
	return c, nil
}

// runs reports whether a client runs a resource server.
func (r *registry) runs(id string, resources []store.Resource) bool {
	r.mu.RLock()
	runs, loaded := r.running[id], r.loaded
	r.mu.RUnlock()
	if loaded {
		return runs
	}
	return slices.ContainsFunc(resources, func(res store.Resource) bool { return slices.Contains(res.Servers, id) })
}

// vouch fills in by what a client is recognised: its own registered certificates, a foreign authority with one
// expectation, or our own CA, whose clients are recognised by the id that we gave them and by our inventory.
func (r *registry) vouch(ctx context.Context, c *issuer.Client, row *store.Client) (err error) {
	switch {
	case row.AuthMethod == issuer.SelfSignedTLSClientAuth:
		c.Certificates = r.foreign.Certificates(*row)
	case row.AuthMethod == issuer.PrivateKeyJWT:
		c.Keys, c.Anchors = r.foreign.Keys(*row), r.anchors
	case row.Trust != "":
		if c.Anchors, c.Revocation, err = r.foreign.Anchors(ctx, row.Trust); err != nil {
			return err
		}
		c.Subject, err = mtls.ParseSubject(mtls.SubjectKind(row.SubjectKind), row.SubjectValue)
	default:
		c.Anchors, c.Inventory = r.anchors, true
		c.Subject, err = mtls.ParseSubject(mtls.SANURI, pki.ClientURI(r.trustDomain, row.ID))
	}
	return err
}

// renewing is the registry for renewals alone: there, a certificate of our own CA may also be one for servers only,
// which authenticates for nothing else.
type renewing struct {
	*registry
	anchors *mtls.Anchors
}

// Client implements issuer.Registry.
func (r renewing) Client(ctx context.Context, id string) (*issuer.Client, error) {
	found, err := r.registry.Client(ctx, id)
	if err != nil || !found.Inventory {
		return found, err
	}
	c := *found
	c.Anchors = r.anchors
	return &c, nil
}

// sharedGrants is grants, the same slice for all clients that have the same scopes and resources. The declared resources
// were read not before the epoch.
func (r *registry) sharedGrants(row *store.Client, resources []store.Resource, epoch uint64) []issuer.Grant {
	key := grantSetKey(row.Scopes, row.Resources)
	r.mu.RLock()
	grants, ok := r.grantSets[key]
	ok = ok && r.epoch == epoch
	r.mu.RUnlock()
	if ok {
		return grants
	}
	grants = r.grants(row, resources)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch {
		keep(r.grantSets, key, grants, grantSetsKept)
	}
	return grants
}

// grantSetKey has each name behind its length, so that no two lists share a key.
func grantSetKey(scopes, resources []string) string {
	key := binary.AppendUvarint(nil, uint64(len(scopes)))
	for _, names := range [][]string{scopes, resources} {
		for _, name := range names {
			key = append(binary.AppendUvarint(key, uint64(len(name))), name...)
		}
	}
	return string(key)
}

// grants is what the client may ask for, at each resource: its own scopes as far as the resource declares
// them, at the resources it names, or at all of them when it names none.
func (r *registry) grants(row *store.Client, resources []store.Resource) []issuer.Grant {
	var grants []issuer.Grant
	for _, res := range resources {
		if len(row.Resources) > 0 && !slices.Contains(row.Resources, res.URI) && res.URI != r.admin {
			continue
		}
		g := issuer.Grant{Resource: res.URI}
		for _, scope := range res.Scopes {
			if slices.Contains(row.Scopes, scope) {
				g.Scopes = append(g.Scopes, scope)
			}
		}
		if len(g.Scopes) == 0 {
			continue
		}
		if res.URI == r.admin {
			g.Explicit, g.MaxLifetime = true, adminTokenLife
		}
		grants = append(grants, g)
	}
	return grants
}

// allResources reads the resources once per change.
func (r *registry) allResources(ctx context.Context) ([]store.Resource, error) {
	r.mu.RLock()
	list, loaded, epoch := r.resources, r.loaded, r.epoch
	r.mu.RUnlock()
	if loaded {
		return list, nil
	}
	list, err := r.store.Resources(ctx)
	if err != nil {
		return nil, again{fmt.Errorf("reading the resources: %w", err)}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch {
		r.resources, r.servers, r.loaded = list, serversOf(list), true
		r.running = make(map[string]bool)
		for _, res := range list {
			for _, id := range res.Servers {
				r.running[id] = true
			}
		}
	}
	return list, nil
}

// serversOf sorts the clients that run resource servers by resource.
func serversOf(list []store.Resource) map[string][]string {
	servers := make(map[string][]string, len(list))
	for _, res := range list {
		servers[res.URI] = res.Servers
	}
	return servers
}

// Serves implements issuer.Servers.
func (r *registry) Serves(ctx context.Context, clientID, resource string) (bool, error) {
	r.mu.RLock()
	servers, loaded := r.servers[resource], r.loaded
	r.mu.RUnlock()
	if !loaded {
		list, err := r.allResources(ctx)
		if err != nil {
			return false, err
		}
		servers = serversOf(list)[resource]
	}
	return slices.Contains(servers, clientID), nil
}

// scopes lists what may be advertised as scopes_supported: everything declared, but the operators' own.
func (r *registry) scopes() []string {
	list, err := r.allResources(context.Background())
	if err != nil {
		return nil
	}
	var all []string
	for _, res := range list {
		if res.URI != r.admin {
			all = append(all, res.Scopes...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
