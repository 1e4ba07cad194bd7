// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package stepca issues certificates with the authority of github.com/smallstep/certificates, embedded: no
// listener, no file, no process of its own, its state in one table of the program's database. It is the only
// package that knows that library.
//
// It is for the program that runs the service. The decision who gets a certificate, and with which names, is made
// before: [Authority.Sign] turns a [pki.Profile] into a certificate that is exactly this profile, and judges the
// product before it hands it out.
//
// It refuses profiles that are not valid, requests that ask for anything, lifetimes above [MaxLifetime] or beyond
// the issuing authority's own, and to start on a key, certificate or table that does not fit.
package stepca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/db"

	"github.com/certbound/certbound/pki"
)

// MaxLifetime is the greatest validity of a certificate, from its first to its last second.
const MaxLifetime = 90 * 24 * time.Hour

// Config is what [New] needs.
type Config struct {
	// Root and Issuing are the two certificates of the hierarchy; Root must have signed Issuing. Root's key is
	// not needed.
	Root, Issuing *x509.Certificate
	// IssuingKey signs; its public half must be that of Issuing.
	IssuingKey crypto.Signer
	// DB holds the table ca_kv(bucket, nkey, nvalue, created_at), which must exist. It stays the caller's, who
	// closes it after the authority.
	DB *sql.DB
	// Dialect is the SQL of DB: "sqlite" or "postgres".
	Dialect string
	// CRLURL, when not empty, is written into every certificate as its CRL distribution point.
	CRLURL string
	// Logger is told of refusals by the library and of what Purge removed; nil discards both.
	Logger *slog.Logger
}

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	inner   *authority.Authority
	issuing *x509.Certificate
	mint    *mint
	kv      *kv
	crlURL  string
	logger  *slog.Logger
	close   func() error
}

// New starts the authority. It reads the table once and writes nothing.
func New(c Config) (*Authority, error) {
	if err := checkHierarchy(c.Root, c.Issuing, c.IssuingKey); err != nil {
		return nil, err
	}
	table, err := newKV(c.DB, c.Dialect)
	if err != nil {
		return nil, err
	}
	m, err := newMint()
	if err != nil {
		return nil, err
	}
	inner, err := authority.NewEmbedded(
		authority.WithConfig(libraryConfig(m)),
		authority.WithX509RootCerts(c.Root),
		// The chain form also feeds the issuer's name constraints to the library; a signer function would not.
		authority.WithX509SignerChain([]*x509.Certificate{c.Issuing}, c.IssuingKey),
		// Wrapped so, the library does not close the database when it shuts down.
		authority.WithDatabase(&db.DB{DB: table}),
		authority.WithQuietInit(),
	)
	if err != nil {
		return nil, fmt.Errorf("start the certificate authority: %w", err)
	}
	if err := checkProvisioners(inner); err != nil {
		return nil, errors.Join(err, inner.Shutdown())
	}
	logger := c.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Authority{
		inner: inner, issuing: c.Issuing, mint: m, kv: table, crlURL: c.CRLURL, logger: logger,
		// The library panics when it is shut down a second time.
		close: sync.OnceValue(inner.Shutdown),
	}, nil
}

// Close ends the authority; a second call does nothing and returns the same. Sign must not be called after it.
func (a *Authority) Close() error { return a.close() }

// Sign issues a certificate for the request's key that is exactly p, and returns it with the issuing authority's
// certificate behind it. p.CRLURL is set from the configuration. The request must pass [pki.ParseRequest] and is
// put through it again; its refusal is a *[pki.RequestError].
//
// The certificate is written to the table, in a transaction of the library's own: do not call Sign while holding
// one on the same SQLite file. A context that is done before the signing starts refuses; the library does not look
// at it later.
func (a *Authority) Sign(ctx context.Context, csr *x509.CertificateRequest, p pki.Profile) ([]*x509.Certificate, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if csr == nil {
		return nil, errors.New("sign certificate: no request")
	}
	// Parsed anew from its bytes: what the fields of the caller's value say is nobody's proof of possession.
	csr, err := pki.ParseRequest(csr.Raw)
	if err != nil {
		return nil, err
	}
	p.CRLURL = a.crlURL
	p.NotBefore, p.NotAfter = p.NotBefore.UTC().Truncate(time.Second), p.NotAfter.UTC().Truncate(time.Second)
	now := time.Now()
	if err := a.checkProfile(p, now); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	token, err := a.mint.token(csr, p, now)
	if err != nil {
		return nil, err
	}
	chain, err := a.sign(ctx, csr, p, token)
	if err != nil {
		a.logger.WarnContext(ctx, "the certificate authority refused to sign", "client", p.Subject(), "error", err)
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	if err := a.checkProduct(chain, csr, p); err != nil {
		return nil, fmt.Errorf("sign certificate: the product was wrong and is discarded: %w", err)
	}
	return chain, nil
}

// sign takes the library's way of a one-time token, minted for this one signing and pinned to this request.
func (a *Authority) sign(
	ctx context.Context, csr *x509.CertificateRequest, p pki.Profile, token string,
) ([]*x509.Certificate, error) {
	ctx = provisioner.NewContextWithMethod(ctx, provisioner.SignMethod)
	opts, err := a.inner.Authorize(ctx, token)
	if err != nil {
		return nil, err
	}
	opts = append(opts, profileValidator{p})
	dates := provisioner.SignOptions{
		NotBefore: provisioner.NewTimeDuration(p.NotBefore),
		NotAfter:  provisioner.NewTimeDuration(p.NotAfter),
	}
	return a.inner.SignWithContext(ctx, csr, dates, opts...)
}

// checkProfile refuses before a token is minted, so that a refusal stores nothing.
func (a *Authority) checkProfile(p pki.Profile, now time.Time) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if p.NotAfter.Before(now) {
		return errors.New("the certificate would be expired at birth")
	}
	if p.NotAfter.Sub(p.NotBefore) > MaxLifetime {
		return fmt.Errorf("a life of more than %v", MaxLifetime)
	}
	if p.NotAfter.After(a.issuing.NotAfter) {
		return errors.New("the certificate would outlive the issuing authority")
	}
	return nil
}

// checkProduct judges what the library made before anybody sees it.
func (a *Authority) checkProduct(chain []*x509.Certificate, csr *x509.CertificateRequest, p pki.Profile) error {
	if len(chain) != 2 || !chain[1].Equal(a.issuing) {
		return errors.New("the chain is not the certificate and its issuer")
	}
	leaf := chain[0]
	if err := p.Check(leaf, csr.PublicKey); err != nil {
		return err
	}
	if !bytes.Equal(leaf.RawIssuer, a.issuing.RawSubject) || !bytes.Equal(leaf.AuthorityKeyId, a.issuing.SubjectKeyId) {
		return errors.New("it names another issuer")
	}
	return leaf.CheckSignatureFrom(a.issuing)
}

// profileValidator has the profile's word on a certificate before the library signs it.
type profileValidator struct{ profile pki.Profile }

// Valid implements the library's CertificateValidator.
func (v profileValidator) Valid(cert *x509.Certificate, _ provisioner.SignOptions) error {
	return v.profile.CheckTemplate(cert)
}

// libraryConfig is the least that the library needs. No revocation list (ours is made by pki.CreateCRL), no
// administration, no SSH, one provisioner.
func libraryConfig(m *mint) *config.Config {
	yes, no := true, false
	return &config.Config{
		DNSNames: []string{audienceHost},
		AuthorityConfig: &config.AuthConfig{
			Provisioners: provisioner.List{m.provisioner()},
			Claims: &provisioner.Claims{
				MinTLSDur:     &provisioner.Duration{Duration: time.Second},
				MaxTLSDur:     &provisioner.Duration{Duration: MaxLifetime},
				DefaultTLSDur: &provisioner.Duration{Duration: time.Hour},
				EnableSSHCA:   &no,
				// Renewal signs afresh from the registry; the library's own copies the old certificate.
				DisableRenewal:             &yes,
				DisableSmallstepExtensions: &yes,
			},
			// The caller says when a certificate begins.
			Backdate: &provisioner.Duration{},
			// Tokens live for one signing and are minted by the process that uses them; with several replicas
			// on one table their start times mean nothing.
			DisableIssuedAtCheck: true,
		},
	}
}

// checkProvisioners fails the start when the library could not set up a provisioner, which it only logs.
func checkProvisioners(a *authority.Authority) error {
	p, err := a.LoadProvisionerByName(provisionerName)
	if err != nil {
		return fmt.Errorf("start the certificate authority: %w", err)
	}
	if _, broken := p.(provisioner.Uninitialized); broken {
		return errors.New("start the certificate authority: its provisioner did not initialise")
	}
	return nil
}

func checkHierarchy(root, issuing *x509.Certificate, key crypto.Signer) error {
	if root == nil || issuing == nil || key == nil {
		return errors.New("certificate authority: root, issuing certificate and issuing key are needed")
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(issuing.PublicKey) {
		return errors.New("certificate authority: the key does not belong to the issuing certificate")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("certificate authority: the root is not one: %w", err)
	}
	if err := issuing.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("certificate authority: the root did not sign the issuing certificate: %w", err)
	}
	const needed = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if !issuing.IsCA || issuing.KeyUsage&needed != needed || len(issuing.SubjectKeyId) == 0 {
		return errors.New("certificate authority: the issuing certificate may not sign certificates and revocation lists")
	}
	return nil
}
