// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package authority takes the certificate authority's decisions: who gets a certificate (enrolment by a
// one-time code, renewal by the certificate before it), who loses one (revocation with all descendants),
// and what the revocation list says. It is for the program only; the signing itself is done by the
// library behind [Signer], and the library is never asked before every check here has passed.
//
// It refuses: a code that is unknown, wrongly signed, expired, void or used with another key; a key that
// was compromised or belongs to another client; a renewal from a certificate that is not in the
// inventory, revoked, or of a former generation of the client. Names always come from the registry,
// never from the request and never from the old certificate.
package authority

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// backdate is how far before its issue a certificate becomes valid, so that a relying party whose clock
// is a little behind accepts it at once.
const backdate = time.Minute

// Signer turns a checked request and a profile into a certificate and its chain, leaf first. It must
// certify exactly the profile's names and the request's key. Safe for concurrent use.
type Signer interface {
	Sign(ctx context.Context, csr *x509.CertificateRequest, p pki.Profile) ([]*x509.Certificate, error)
}

// Recorder puts decisions where they cannot be lost, before the answer leaves: an outbox.Box.
type Recorder interface {
	// Ready says why no decision of the class could be recorded now.
	Ready(class audit.Class) error
	// Change makes a change of the database together with its records. An error refuses what would give authority.
	Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (pending bool, err error)
	// Record writes a decision that changed nothing in the database.
	Record(ctx context.Context, e audit.Event) error
}

// Config is what an [Authority] is made of. All fields but Now and Logger are required.
type Config struct {
	Store    *store.Store
	CA       Signer
	Recorder Recorder

	// Root is handed out to clients; Issuing signs their certificates, IssuingKey the revocation list.
	Root, Issuing *x509.Certificate
	IssuingKey    crypto.Signer

	// Issuer is the issuer identifier, TrustDomain the SPIFFE trust domain, MTLSURL the base of the
	// listener that asks for certificates, TokenEndpoint the address of the token endpoint there.
	Issuer, TrustDomain, MTLSURL, TokenEndpoint string

	// CertificateLifetime and CodeLifetime are how long what is issued lives.
	CertificateLifetime, CodeLifetime time.Duration

	// Forked, when not nil, is called for each renewal that leaves two live children of one certificate with
	// different keys: one of them is a thief's. SuspendOnFork disables the client then, unless it is the last that can
	// give administrators' scopes.
	Forked        func()
	SuspendOnFork bool

	Logger *slog.Logger
	Now    func() time.Time
}

// Authority takes the decisions. Safe for concurrent use; its methods block on the database.
type Authority struct {
	cfg   Config
	roots string // PEM, handed out with every certificate

	revocations atomic.Uint64 // counts what may have made the list old

	mu  sync.Mutex
	crl crlState
}

// New returns an Authority, or an error that names what is missing.
func New(cfg Config) (*Authority, error) {
	switch {
	case cfg.Store == nil || cfg.CA == nil || cfg.Recorder == nil:
		return nil, errors.New("authority: a store, a signer and a recorder are required")
	case cfg.Root == nil || cfg.Issuing == nil || cfg.IssuingKey == nil:
		return nil, errors.New("authority: root, issuing certificate and issuing key are required")
	case cfg.CertificateLifetime <= 0 || cfg.CodeLifetime <= 0:
		return nil, errors.New("authority: lifetimes must be positive")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Authority{cfg: cfg, roots: encodePEM(cfg.Root)}
	cfg.Store.OnChange(a.changed)
	return a, nil
}

// RootsPEM returns the root certificate as PEM, as served at /pki/roots.pem.
func (a *Authority) RootsPEM() string { return a.roots }

// NewCode makes a one-time enrolment code for the client: its text, which only the client may see, and
// the row that the store keeps, from which the text cannot be had.
func (a *Authority) NewCode(clientID string) (text string, code store.Code, err error) {
	c, err := pki.NewCode(sha256.Sum256(a.cfg.Root.Raw), a.cfg.Issuer)
	if err != nil {
		return "", store.Code{}, fmt.Errorf("making an enrolment code: %w", err)
	}
	now := a.cfg.Now()
	return c.String(), store.Code{
		ID: c.ID, PublicKey: c.PublicKey(), ClientID: clientID,
		CreatedAt: now, ExpiresAt: now.Add(a.cfg.CodeLifetime),
	}, nil
}

// Caller is who asks, for the record: the address of the connection and the correlation id of the request.
type Caller struct{ Address, Correlation string }

// profile is what the registry says a certificate of this client must be, from now on.
func (a *Authority) profile(c store.Client, now time.Time) (pki.Profile, error) {
	usage, err := pki.ParseUsage(c.Usage)
	if err != nil {
		return pki.Profile{}, fmt.Errorf("client %s: %w", c.ID, err)
	}
	ips := make([]netip.Addr, len(c.IPs))
	for i, s := range c.IPs {
		if ips[i], err = netip.ParseAddr(s); err != nil {
			return pki.Profile{}, fmt.Errorf("client %s: %w", c.ID, err)
		}
	}
	return pki.Profile{
		ClientID: c.ID, TrustDomain: a.cfg.TrustDomain,
		DNSNames: c.DNS, IPs: ips, URIs: c.URIs, Usage: usage,
		NotBefore: now.Add(-backdate), NotAfter: a.notAfter(now, a.cfg.CertificateLifetime),
	}, nil
}

// notAfter never lets a certificate outlive the one that signs it.
func (a *Authority) notAfter(now time.Time, life time.Duration) time.Time {
	end := now.Add(life)
	if end.After(a.cfg.Issuing.NotAfter) {
		end = a.cfg.Issuing.NotAfter
	}
	return end.Truncate(time.Second)
}

// What is answered to a key that must not be certified, whether the check before signing or the transaction
// after it finds out.
var (
	errKeyBlocked = refusal("invalid_request", "key_blocked", "this key was reported as compromised: make a new one")
	errKeyTaken   = refusal("invalid_request", "key_of_another_client", "this key is already in use: make a new one")
)

// checkKey refuses keys that must not be certified for this client: compromised ones for ever, and those
// that another client's certificate holds, since two clients with one key are one client.
func (a *Authority) checkKey(ctx context.Context, clientID string, hash [32]byte) error {
	blocked, err := a.cfg.Store.KeyBlocked(ctx, hash)
	if err != nil {
		return unavailable(err)
	}
	if blocked {
		return errKeyBlocked
	}
	owner, err := a.cfg.Store.KeyOwner(ctx, hash)
	if err != nil {
		return unavailable(err)
	}
	if owner != "" && owner != clientID {
		return errKeyTaken
	}
	return nil
}

// sign has the checked request certified by the profile and returns the row for the inventory. Nothing is signed that
// could not be recorded.
func (a *Authority) sign(ctx context.Context, csr *x509.CertificateRequest, p pki.Profile, c store.Client) (store.Certificate, error) {
	if err := a.cfg.Recorder.Ready(audit.Decision); err != nil {
		return store.Certificate{}, unavailable(fmt.Errorf("certifying %s: %w", c.ID, err))
	}
	chain, err := a.cfg.CA.Sign(ctx, csr, p)
	if err != nil {
		return store.Certificate{}, unavailable(fmt.Errorf("signing a certificate for %s: %w", c.ID, err))
	}
	return a.row(chain[0], c)
}

// row is the certificate as the inventory keeps it.
func (a *Authority) row(leaf *x509.Certificate, c store.Client) (store.Certificate, error) {
	hash, err := pki.KeyHash(leaf.PublicKey)
	if err != nil {
		return store.Certificate{}, unavailable(err)
	}
	return store.Certificate{
		Thumbprint: mtls.ThumbprintOf(leaf), Serial: leaf.SerialNumber.String(),
		ClientID: c.ID, Generation: c.Generation,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		KeyHash: hash, DER: leaf.Raw, CreatedAt: a.cfg.Now(),
	}, nil
}

// answer renders a certificate of the inventory for the client that will use it.
func (a *Authority) answer(c store.Certificate) (*pki.EnrollResponse, error) {
	leaf, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, unavailable(fmt.Errorf("certificate %s of the inventory: %w", c.Serial, err))
	}
	return &pki.EnrollResponse{
		ClientID: c.ClientID, Issuer: a.cfg.Issuer,
		Certificate: encodePEM(leaf, a.cfg.Issuing), Roots: a.roots,
		MTLSURL: a.cfg.MTLSURL, TokenEndpoint: a.cfg.TokenEndpoint,
	}, nil
}

// change makes a change that gives a certificate, together with its records. The error of f is returned as it is; that of
// the record refuses the grant, though the change may hold: then its record waits, and the repetition finds it.
func (a *Authority) change(ctx context.Context, f func(tx *store.Store) ([]audit.Event, error)) error {
	var refused error
	_, err := a.cfg.Recorder.Change(ctx, audit.Decision, func(tx *store.Store) ([]audit.Event, error) {
		var events []audit.Event
		events, refused = f(tx)
		for i := range events {
			events[i].Time = a.cfg.Now()
		}
		return events, refused
	})
	if refused != nil {
		return refused
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// record writes the decision and turns a failure into the refusal of a grant.
func (a *Authority) record(ctx context.Context, e audit.Event) error {
	if e.Time.IsZero() {
		e.Time = a.cfg.Now()
	}
	if err := a.cfg.Recorder.Record(ctx, e); err != nil {
		return unavailable(fmt.Errorf("recording %s: %w", e.Name, err))
	}
	return nil
}

// refusal is an answer that the caller may see, with the reason that only the record sees.
func refusal(code, reason, description string) *tokens.Error {
	return &tokens.Error{Code: code, Reason: reason, Description: description}
}

// unavailable hides an inner failure behind the registered code; the cause goes to the log only.
func unavailable(err error) *tokens.Error {
	if errors.Is(err, store.ErrUnknown) {
		return &tokens.Error{
			Code: "temporarily_unavailable", Reason: "commit_unknown", Err: err,
			Description: "it is unknown whether the certificate was made: repeat the request with the same key",
		}
	}
	return &tokens.Error{
		Code: "temporarily_unavailable", Reason: "internal_failure", Err: err,
		Description: "the request could not be completed now: try again",
	}
}
