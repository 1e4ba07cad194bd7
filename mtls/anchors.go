// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// maxHints is how many presented intermediates chain building may use.
const maxHints = MaxChainCertificates - 1

// AnchorsConfig says which certification authorities may vouch for a client.
type AnchorsConfig struct {
	// Roots are the trust anchors: at least one, each a CA certificate of version 3. They are pinned by their bytes;
	// another certificate of the same name, or even of the same key, is not an anchor.
	Roots []*x509.Certificate
	// Intermediates may stand between a client's certificate and a root. They give no trust of their own.
	Intermediates []*x509.Certificate
	// UsePresented lets chain building also use what the client sent, at most the first three intermediates whose keys
	// pass CheckPublicKey. Leave it false where all intermediates are known, as for one's own CA.
	UsePresented bool
	// Usages are the extended key usages of which a client's certificate must have one; nil means clientAuth, which is
	// right wherever a client authenticates. Only a CA that renews its own servers' certificates wants another.
	Usages []x509.ExtKeyUsage
	// Remember is for how many certificates it is remembered that a chain was built for them, beyond the 8 MiB of chains
	// that are anyway. Each takes about 40 bytes, once it has come. It cannot be set together with UsePresented.
	Remember int
}

// Anchors is an immutable set of trust anchors, safe for concurrent use. To change trust make another one: what a Peer
// remembers, and which chains are remembered here, is bound to the value that built them.
type Anchors struct {
	roots         *x509.CertPool
	intermediates *x509.CertPool
	usePresented  bool
	usages        []x509.ExtKeyUsage
	fingerprints  [][sha256.Size]byte // of the roots, sorted
	building      chan struct{}       // bounds chain building, which is the costly part
	chains        *chains             // that were built
}

// NewAnchors returns the anchors described by c. It refuses an empty set of roots, because an empty or missing pool
// must never come to mean "the system's roots", and every certificate that is not a CA's or whose key is weaker than
// or outside of P-256, P-384, P-521, Ed25519 and RSA of 2048 to 8192 bits.
func NewAnchors(c AnchorsConfig) (*Anchors, error) {
	if len(c.Roots) == 0 {
		return nil, errors.New("mtls: anchors without a root certificate")
	}
	if slices.Contains(c.Usages, x509.ExtKeyUsageAny) {
		// It would switch the check off, and with it the judgement of policies (GO-2025-3749).
		return nil, errors.New("mtls: anchors for any extended key usage")
	}
	if c.Remember > 0 && c.UsePresented {
		// Who holds one certificate could present it beside ever other ones, and fill the memory.
		return nil, errors.New("mtls: certificates are not remembered where presented ones are used")
	}
	for _, cert := range slices.Concat(c.Roots, c.Intermediates) {
		if err := checkAuthority(cert); err != nil {
			return nil, err
		}
	}
	a := &Anchors{
		roots:         x509.NewCertPool(),
		intermediates: x509.NewCertPool(),
		usePresented:  c.UsePresented,
		usages:        slices.Clone(c.Usages),
		building:      make(chan struct{}, runtime.GOMAXPROCS(0)),
		chains:        newChains(slices.Concat(c.Roots, c.Intermediates), c.Remember),
	}
	for _, cert := range c.Intermediates {
		a.intermediates.AddCert(cert)
	}
	if len(a.usages) == 0 {
		a.usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, root := range c.Roots {
		a.roots.AddCert(root)
		a.fingerprints = append(a.fingerprints, sha256.Sum256(root.Raw))
	}
	slices.SortFunc(a.fingerprints, func(x, y [sha256.Size]byte) int { return bytes.Compare(x[:], y[:]) })
	a.fingerprints = slices.Compact(a.fingerprints)
	return a, nil
}

// checkAuthority demands what RFC 5280, Section 6.1.4 (k) and (n) demand of an issuer: basicConstraints with cA, and
// keyCertSign where key usage is given. x509 does not ask it of a root.
func checkAuthority(cert *x509.Certificate) error {
	if cert == nil || len(cert.Raw) == 0 {
		return errors.New("mtls: nil certificate among the anchors")
	}
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return fmt.Errorf("mtls: certificate %q is not a certification authority's", cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("mtls: certificate %q may not sign certificates", cert.Subject)
	}
	if err := checkKey(cert.PublicKey, authorityKeys); err != nil {
		return fmt.Errorf("mtls: certificate %q: %w", cert.Subject, err)
	}
	return nil
}

// Fingerprints returns the SHA-256 of the DER of each root, sorted and without doubles.
func (a *Anchors) Fingerprints() [][sha256.Size]byte {
	if a == nil {
		return nil
	}
	return slices.Clone(a.fingerprints)
}

// Equal reports whether a and b trust the same roots. It does not compare intermediates, which give no trust.
func (a *Anchors) Equal(b *Anchors) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.fingerprints, b.fingerprints)
}

// VerifiedBy reports whether a chain for client authentication leads from the certificate to one of a's roots, all of
// whose certificates are valid at now (RFC 5280, Section 6.1). It answers nil, ErrNoCertificate, or an error that is
// ErrExpired, ErrNotYetValid or ErrUntrusted. See ChainTo, whose chain it leaves out.
func (p *Peer) VerifiedBy(a *Anchors, now time.Time) error {
	_, err := p.ChainTo(a, now)
	return err
}

// ChainTo returns the chain for client authentication that leads from the certificate, first, to one of a's roots,
// last, all of whose certificates are valid at now (RFC 5280, Section 6.1). It answers ErrNoCertificate, or an error
// that is ErrExpired, ErrNotYetValid or ErrUntrusted, with no chain. The chain is shared and must not be modified.
//
// A chain once built is remembered with the Peer for this very a, and with a for the next connection that presents the
// same certificate and, where a uses them, the same intermediates; of the latter memory at most 8 MiB are used, and what
// AnchorsConfig.Remember asks for. Its
// dates are judged again at every call, so that it may be called for every request. Building blocks while as many chains
// as there are processors are being built for the same anchors. Failures are not remembered.
//
// The extended key usage must allow clientAuth (or what the anchors ask) in every certificate that names usages; one
// without the extension, or with anyExtendedKeyUsage, is not limited (RFC 5280, Section 4.2.1.12). The certificate
// itself must not be a CA's, must be allowed to make digital signatures where it names key usages (RFC 8446, Section
// 4.4.2.3) and must pass CheckPublicKey. Signatures with MD5 or SHA-1 are refused, as are unknown critical extensions.
// Revocation is not judged here: the chain is what to judge it by.
func (p *Peer) ChainTo(a *Anchors, now time.Time) ([]*x509.Certificate, error) {
	if p == nil {
		return nil, ErrNoCertificate
	}
	if a == nil {
		return nil, fmt.Errorf("%w: no anchors", ErrUntrusted)
	}
	// First, for it is cheap: an expired certificate must not make us build chains at every request.
	if err := checkDates(p.leaf, now); err != nil {
		return nil, err
	}
	if chain := p.remembered(a); validAt(chain, now) {
		return chain, nil
	}
	key := a.chainKey(p)
	chain := a.chains.get(key, p.leaf)
	if !validAt(chain, now) {
		var err error
		if chain, err = a.build(p, now); err != nil {
			return nil, err
		}
		a.chains.put(key, chain)
	}
	p.remember(a, chain)
	return chain, nil
}

// validAt reports whether there is a chain and all its certificates, the root's included, are valid at now.
func validAt(chain []*x509.Certificate, now time.Time) bool {
	for _, cert := range chain {
		if checkDates(cert, now) != nil {
			return false
		}
	}
	return len(chain) > 0
}

func (p *Peer) remembered(a *Anchors) []*x509.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.memo {
		if v.anchors == a {
			return v.chain
		}
	}
	return nil
}

func (p *Peer) remember(a *Anchors, chain []*x509.Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.memo = slices.DeleteFunc(p.memo, func(v verified) bool { return v.anchors == a })
	if len(p.memo) >= maxMemo {
		p.memo = slices.Delete(p.memo, 0, 1)
	}
	p.memo = append(p.memo, verified{anchors: a, chain: chain})
}

// build returns a chain from p's certificate to a root of a.
func (a *Anchors) build(p *Peer, now time.Time) ([]*x509.Certificate, error) {
	if err := checkEndEntity(p.leaf); err != nil {
		return nil, err
	}
	pool := a.intermediates.Clone()
	for _, cert := range a.hints(p) {
		pool.AddCert(cert)
	}
	a.building <- struct{}{}
	defer func() { <-a.building }()
	chains, err := p.leaf.Verify(x509.VerifyOptions{
		Roots:         a.roots,
		Intermediates: pool,
		CurrentTime:   now,
		KeyUsages:     a.usages,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return chains[0], nil
}

// hints returns the presented intermediates that chain building may use. Keys that are costly to check are left out:
// the client chooses what it sends, and every candidate may cost a signature check.
func (a *Anchors) hints(p *Peer) []*x509.Certificate {
	if !a.usePresented {
		return nil
	}
	hints := slices.Clone(p.intermediates[:min(len(p.intermediates), maxHints)])
	return slices.DeleteFunc(hints, func(c *x509.Certificate) bool {
		return c == nil || CheckPublicKey(c.PublicKey) != nil
	})
}

func checkEndEntity(cert *x509.Certificate) error {
	if err := CheckPublicKey(cert.PublicKey); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if cert.IsCA {
		return fmt.Errorf("%w: it is a certification authority's own", ErrUntrusted)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("%w: its key usage does not allow digital signatures", ErrUntrusted)
	}
	return nil
}
