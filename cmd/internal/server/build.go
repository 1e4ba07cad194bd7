// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/admission"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/authority"
	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki/stepca"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
	"github.com/certbound/certbound/tokens/resource"
)

// scopeAdmin is all that an operator may do.
const scopeAdmin = admin.ScopeAdmin

// build makes or loads keys and certificates and wires the parts. Every step is "load, or make at the
// first start", so that a first start that was interrupted is finished by the next one.
func (s *service) build(ctx context.Context) error {
	now := time.Now()
	db := s.folder.store
	h, err := loadHierarchy(ctx, s.folder.outbox, db, s.cfg.Data, s.ofReplica(settingCAFiles), "Certbound "+s.identity.trustDomain, now)
	if err != nil {
		return err
	}
	s.keys, err = loadKeyring(ctx, keyringConfig{
		Store: db, Box: s.folder.outbox, Algorithm: s.cfg.Signing.Algorithm, Rotate: s.cfg.Signing.Rotate, Announce: s.cfg.Signing.Announce,
		Now: time.Now, Steady: s.mayForget, Log: s.log,
	})
	if err != nil {
		return err
	}
	if err := s.checkFAPI(); err != nil {
		return err
	}
	ca, err := stepca.New(stepca.Config{
		Root: h.root, Issuing: h.issuing, IssuingKey: h.issuingKey,
		DB: db.DB(), Dialect: db.Dialect(), Logger: s.log,
	})
	if err != nil {
		return fmt.Errorf("starting the certificate authority: %w", err)
	}
	s.onClose(ca.Close)
	s.ca, s.root, s.issuing = ca, h.root, h.issuing
	s.metrics = newMetrics(s.version, h)
	s.metrics.registry.MustRegister(s.journalTimes.sync, s.journalTimes.group, newJournalCollector(s.folder.journal))
	if err := s.buildLimits(); err != nil {
		return err
	}
	s.metrics.watchOutbox(s.folder.outbox.Stats)
	if s.member != nil {
		s.metrics.registry.MustRegister(newReplicaCollector(s.member.Status))
	}
	s.authority, err = authority.New(authority.Config{
		Store: db, CA: ca, Recorder: s.folder.outbox,
		Root: h.root, Issuing: h.issuing, IssuingKey: h.issuingKey,
		Issuer: s.identity.issuer, TrustDomain: s.identity.trustDomain,
		MTLSURL: s.identity.mtlsURL, TokenEndpoint: s.identity.mtlsURL + pathToken,
		CertificateLifetime: s.cfg.Certificate.Lifetime, CodeLifetime: s.cfg.Code.Lifetime,
		SuspendOnFork: s.cfg.Certificate.OnFork == "suspend", Forked: s.metrics.forks.Inc,
		Logger: s.log,
	})
	if err != nil {
		return err
	}
	if err := s.buildTrust(h); err != nil {
		return err
	}
	if err := s.buildIssuer(ctx); err != nil {
		return err
	}
	if err := s.loadOwn(ctx); err != nil {
		return err
	}
	return s.bootstrapOperator(ctx)
}

// buildTrust reads what the service believes of others. Nothing is fetched before it serves.
func (s *service) buildTrust(h *hierarchy) error {
	files := make([]trust.FileTrust, len(s.cfg.Trust))
	for i, t := range s.cfg.Trust {
		files[i] = trust.FileTrust(t)
	}
	var err error
	s.trust, err = trust.New(trust.Config{
		Store: s.folder.store, Files: files, OwnCAs: []*x509.Certificate{h.root, h.issuing}, Events: s.metrics, Logger: s.log,
		Fetcher: fetch.New(fetch.Config{AllowedHosts: s.cfg.Fetch.AllowedHosts, AllowPrivate: s.cfg.Fetch.AllowPrivate}),
	})
	if err != nil {
		return &StartError{Message: err.Error(), Hint: "put the file right, or take the trust out of the configuration"}
	}
	// Intermediates that a client of ours sends are ignored: our own is known.
	own := mtls.AnchorsConfig{Roots: []*x509.Certificate{h.root}, Intermediates: []*x509.Certificate{h.issuing}, Remember: rememberedClients}
	if s.anchors, err = mtls.NewAnchors(own); err != nil {
		return fmt.Errorf("anchoring our own clients: %w", err)
	}
	own.Remember = 0 // a certificate is renewed once
	own.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	if s.renewAnchors, err = mtls.NewAnchors(own); err != nil {
		return fmt.Errorf("anchoring our own servers: %w", err)
	}
	return nil
}

// buildIssuer wires the token service to the registry, the keys and the journal.
func (s *service) buildIssuer(ctx context.Context) error {
	reg := newRegistry(s.folder.store, s.trust, s.anchors, s.identity.trustDomain, s.adminResource())
	reg.denied = []issuer.Grant{{Resource: s.deniedResource(), Scopes: []string{scopeDenied}, Explicit: true}}
	s.journalKeys.lookAhead(reg.secret)
	s.folder.store.OnChange(s.forgetErased) // also after the registry has forgotten: until then it may have handed one out
	s.trust.OnChange(reg.forgetForeign)
	s.registry = reg
	if err := reg.loadBlocked(ctx); err != nil {
		return err
	}
	var err error
	if s.denials, err = loadDenials(ctx, s.folder.store); err != nil {
		return err
	}
	cfg := issuer.Config{
		Issuer: s.identity.issuer, MTLSURL: s.identity.mtlsURL,
		Assertions: assertions{s.folder.store},
		Registry:   reg, KeyBlocked: reg.keyBlocked, Keys: s.keys, Recorder: tokenRecorder{s.folder.journal, s.limits, s.adminResource()}, Events: s.metrics,
		Lifetime: s.cfg.Token.Lifetime, MaxLifetime: s.cfg.Token.MaxLifetime, Gate: s.gate(),
		Scopes: reg.scopes, Logger: s.log, Servers: reg, Denials: s.denials, Revoker: revoker{s.folder.outbox},
		Authenticated: s.limits.Authenticated,
	}
	if s.issuer, err = issuer.New(cfg); err != nil {
		return err
	}
	cfg.Registry = renewing{reg, s.renewAnchors}
	if s.renewals, err = issuer.New(cfg); err != nil {
		return err
	}
	s.feed = newFeed(s.denials, s.folder.store, s.issuer.SignDenyPage, s.deniedResource(), min(feedBeat, s.cfg.HTTP.WriteTimeout/2))
	s.metrics.watchFeed(s.feed)
	if s.guardedFeed, err = s.feedHandler(); err != nil {
		return err
	}
	s.guard, err = s.operatorGuard()
	return err
}

// adminResource is the operators' API as a resource of its own, never anybody's default audience.
func (s *service) adminResource() string { return s.identity.issuer + "/admin/v1" }

// operatorGuard keeps the operators' API with our own bound tokens, as any resource server does (RFC 9728 included), with
// the state of the client judged live: a token that was good a second ago is worth nothing once its client or
// certificate is not.
func (s *service) operatorGuard() (*resource.Guard, error) {
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: s.identity.issuer, Audience: s.adminResource(), Keys: s.keys, Algorithms: signingAlgorithms(), Denied: s.denials.Denied,
	})
	if err != nil {
		return nil, err
	}
	cfg := resource.Config{
		Verifier: verifier, Realm: s.identity.issuer, Authorize: s.authorizeOperator, Refused: s.operatorRefused,
	}
	if resource.CheckIdentifier(s.adminResource()) == nil { // an issuer's path may hold characters that no header can
		cfg.Metadata = &resource.Metadata{Scopes: admin.Scopes()}
	}
	return resource.New(cfg)
}

// adminHandler is the operators' API behind its guard.
func (s *service) adminHandler() (http.Handler, error) {
	cfg := s.adminConfig()
	cfg.Actor, cfg.Scopes, cfg.Approvals = actor, s.operatorScopes, s.cfg.Admin.Approvals
	cfg.StillAuthorized, cfg.InForce = s.stillAuthorized, operatorInForce
	if path := s.guard.MetadataPath(); path != "" {
		cfg.ResourceMetadata = s.publicOrigin() + path
	}
	api, err := admin.New(cfg)
	if err != nil {
		return nil, err
	}
	return s.guard.Protect(withPeer(api)), nil // which scope a route needs is the API's own rule
}

// fileTrusts names the foreign authorities that the configuration's files hold.
func (s *service) fileTrusts() []string {
	names := make([]string, len(s.cfg.Trust))
	for i, t := range s.cfg.Trust {
		names[i] = t.Name
	}
	return names
}

// adminConfig is what the operators' API and the break-glass socket have in common.
func (s *service) adminConfig() admin.Config {
	return admin.Config{
		Store: s.folder.store, Authority: s.authority, Recorder: outbox.Courteous{Box: s.folder.outbox},
		Durability: s.durability, Cluster: s.cluster,
		Issuer: s.identity.issuer, TrustDomain: s.identity.trustDomain,
		Reserved:  append(s.ownNames(), operatorID),
		Endpoints: s.endpoints(), Version: s.version, Logger: s.log, MaxTokenTTL: s.cfg.Token.MaxLifetime,
		OwnCAs: []*x509.Certificate{s.root, s.issuing}, FileTrusts: s.fileTrusts(), TrustHealth: s.trust.Health,
		FirstOperator: s.firstOperator(), Published: s.trust.Holding,
		Journal:     s.newJournalView(),
		Keys:        s.keys,
		ResetLeases: s.resetLeases(), Followers: s.followers,
		ResetTickets: s.resetTickets, SharedTickets: s.cfg.TLS.SharedTickets,
	}
}

// operatorRefused records what the guard of the operators' API refused.
func (s *service) operatorRefused(r *http.Request, refusal *tokens.Error, correlation string) {
	s.guardRefused("admin.request", r, refusal, correlation)
}

// followerRefused records what the guard of the deny feed refused.
func (s *service) followerRefused(r *http.Request, refusal *tokens.Error, correlation string) {
	s.guardRefused("feed.request", r, refusal, correlation)
}

// guardRefused records a refusal. Whoever has no good token can be anybody, so the log is told at debug level only: the
// journal has it.
func (s *service) guardRefused(name string, r *http.Request, refusal *tokens.Error, correlation string) {
	e := audit.Event{
		Class: audit.Stranger, Name: name, Outcome: audit.Refused, Reason: refusal.Reason,
		Address: issuer.Address(r.Context()), Correlation: correlation,
	}
	if peer, err := mtls.PeerFromRequest(r); err == nil {
		e.Thumbprint = peer.Thumbprint().String()
	}
	s.record(r.Context(), e)
	s.log.DebugContext(r.Context(), "a request with a token of ours was refused", "event", name, "reason", refusal.Reason,
		"cause", refusal.Err, "correlation", correlation)
}

// record records what gives nothing by itself: when that fails, the decision stands all the same.
func (s *service) record(ctx context.Context, e audit.Event) {
	e.Time = time.Now()
	if err := s.folder.journal.Record(ctx, e); err != nil {
		s.log.ErrorContext(ctx, "a decision could not be recorded", "event", e.Name, "error", err)
	}
}

// authorizeOperator holds a verified token against the registry as it is now.
func (s *service) authorizeOperator(ctx context.Context, claims *tokens.Claims, peer *mtls.Peer) error {
	client, err := s.issuer.Authenticate(ctx, claims.ClientID, peer)
	if err != nil {
		var e *tokens.Error
		if errors.As(err, &e) && e.Code == "invalid_client" {
			return &tokens.Error{Code: "invalid_token", Reason: e.Reason, Description: "the token is not valid on this connection", Err: e}
		}
		return err
	}
	s.limits.Authenticated(ctx, client.ID, peer.Thumbprint())
	if len(scopesAt(client, s.adminResource())) == 0 {
		return &tokens.Error{Code: "insufficient_scope", Reason: "no_longer_operator", Description: "this client is not an operator", Scope: admin.ScopeRead}
	}
	return nil
}

type peerKey struct{}

// withPeer keeps the connection's certificate in the context, for the question that is asked again before a change.
func withPeer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := mtls.PeerFromRequest(r); err == nil {
			r = r.WithContext(context.WithValue(r.Context(), peerKey{}, peer))
		}
		next.ServeHTTP(w, r)
	})
}

// stillAuthorized is authorizeOperator asked again: a request whose body comes slowly must not outlive what was decided
// about its sender meanwhile.
func (s *service) stillAuthorized(ctx context.Context) error {
	claims, ok := resource.Claims(ctx)
	if !ok || !time.Now().Before(claims.Expires) {
		return &tokens.Error{Code: "invalid_token", Reason: "expired_meanwhile", Description: "the token is not valid any more"}
	}
	peer, _ := ctx.Value(peerKey{}).(*mtls.Peer)
	return s.authorizeOperator(ctx, claims, peer)
}

// operatorInForce is stillAuthorized and operatorScopes for the transaction in which a change is made: caches follow what
// other replicas do a moment later.
func operatorInForce(ctx context.Context, tx *store.Store) ([]string, error) {
	claims, ok := resource.Claims(ctx)
	if !ok {
		return nil, &tokens.Error{Code: tokens.CodeInvalidToken, Reason: "no_token"}
	}
	client, err := admin.InForce(ctx, tx, claims.ClientID, claims.Thumbprint, time.Now())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(client.Scopes, func(scope string) bool { return !claims.HasScope(scope) }), nil
}

// operatorScopes is what the caller of the operators' API may do: what its token says, as far as the client still
// holds it.
func (s *service) operatorScopes(ctx context.Context) []string {
	claims, ok := resource.Claims(ctx)
	if !ok {
		return nil
	}
	client, err := s.registry.Client(ctx, claims.ClientID)
	if err != nil {
		s.log.ErrorContext(ctx, "an operator's scopes could not be read", "error", err)
		return nil
	}
	held := scopesAt(client, s.adminResource())
	return slices.DeleteFunc(slices.Clone(held), func(scope string) bool { return !claims.HasScope(scope) })
}

// scopesAt is what a client may ask for at a resource.
func scopesAt(c *issuer.Client, resource string) []string {
	for _, g := range c.Grants {
		if g.Resource == resource {
			return g.Scopes
		}
	}
	return nil
}

// endpoints are the addresses that no registered resource may equal or stand before.
func (s *service) endpoints() []string {
	origin := s.publicOrigin()
	taken := []string{
		s.identity.issuer, s.identity.mtlsURL,
		origin + "/oauth2", origin + "/pki", origin + "/.well-known",
		s.identity.mtlsURL + "/oauth2", s.identity.mtlsURL + "/pki", s.identity.mtlsURL + "/admin",
	}
	// What a listener answers to inside may have another port than what clients are told.
	for _, l := range []net.Listener{s.sockets.public, s.sockets.mtls} {
		if l != nil {
			taken = append(taken, "https://"+net.JoinHostPort(s.issuerHost(), port(l.Addr().String())))
		}
	}
	return taken
}

// publicOrigin is the issuer without its path: the paths of this service never move under it.
func (s *service) publicOrigin() string {
	u, err := url.Parse(s.identity.issuer)
	if err != nil {
		return s.identity.issuer
	}
	return u.Scheme + "://" + u.Host
}

// ownNames are the names of our own certificate, which both listeners show.
func (s *service) ownNames() []string {
	names := []string{s.issuerHost(), hostOf(s.identity.mtlsURL), "localhost", "127.0.0.1", "::1"}
	names = append(names, s.cfg.Hosts...)
	for i, n := range names {
		names[i] = strings.ToLower(strings.TrimSuffix(n, "."))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *service) issuerHost() string { return hostOf(s.identity.issuer) }

// hostOf is the host of an address of ours; the configuration was checked, so that there is one.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return "localhost"
	}
	return u.Hostname()
}

// splitNames sorts names into DNS names and addresses.
func splitNames(names []string) (dns []string, ips []netip.Addr) {
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			ips = append(ips, ip)
			continue
		}
		dns = append(dns, n)
	}
	return dns, ips
}

// tokenRecorder writes the token service's decisions into the journal.
type tokenRecorder struct {
	log       *audit.Log
	limits    *admission.Limiter
	operators string // the resource of the operators' API
}

// Record implements issuer.Recorder.
func (t tokenRecorder) Record(ctx context.Context, d issuer.Decision) error {
	if d.Authenticated {
		t.limits.Authenticated(ctx, d.ClientID, d.Thumbprint)
	}
	e := audit.Event{
		Time: d.Time, Name: d.Event, Outcome: "refused", Reason: d.Reason, Client: d.ClientID,
		Address: d.Address, Correlation: d.CorrelationID, TokenID: d.TokenID,
		Scope: d.Scope, Audience: d.Audience, Expires: d.Expires,
	}
	switch {
	case d.Granted && t.takesAway(&d):
		e.Class, e.Outcome = audit.Takeaway, audit.Granted
	case d.Granted:
		e.Class, e.Outcome = audit.Decision, audit.Granted
	case d.Authenticated:
		e.Class = audit.Refusal
	default:
		e.Class = audit.Stranger
	}
	if !d.Thumbprint.IsZero() {
		e.Thumbprint = d.Thumbprint.String()
	}
	err := t.log.Record(ctx, e)
	if e.Class == audit.Takeaway && errors.Is(err, audit.ErrFull) && t.log.MakeRoom() == nil {
		err = t.log.Record(ctx, e)
	}
	return err
}

// takesAway reports whether a token is what an operator needs to take authority away. It is recorded as that is: on a full
// disk nobody but who stands before the machine could revoke anything otherwise. It gives nothing by itself, since the
// operators' API refuses what gives authority for as long as the journal is full.
func (t tokenRecorder) takesAway(d *issuer.Decision) bool {
	return slices.Equal(d.Audience, []string{t.operators}) &&
		(slices.Contains(d.Scope, admin.ScopeRevoke) || slices.Contains(d.Scope, admin.ScopeAdmin))
}

// actor tells the operators' API who is asking, from the token that the guard verified.
func actor(ctx context.Context) (clientID, thumbprint, address, correlation string) {
	if claims, ok := resource.Claims(ctx); ok {
		clientID, thumbprint = claims.ClientID, claims.Thumbprint.String()
	}
	return clientID, thumbprint, issuer.Address(ctx), issuer.CorrelationID(ctx)
}

// builtInResources are declared by us and not by operators.
func (s *service) builtInResources() []store.Resource {
	return []store.Resource{{URI: s.adminResource(), Scopes: admin.Scopes(), BuiltIn: true}}
}
