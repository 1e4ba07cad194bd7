// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// ServerCertificate makes the service's own certificate for these names, with a fresh P-256 key. It
// carries no client's name and is not in the inventory, so it authenticates nobody as a client.
func (a *Authority) ServerCertificate(ctx context.Context, commonName string, dns []string, ips []netip.Addr, life time.Duration) (tls.Certificate, error) {
	if err := a.cfg.Recorder.Ready(audit.Decision); err != nil {
		return tls.Certificate{}, unavailable(fmt.Errorf("making the service's own certificate: %w", err))
	}
	now := a.cfg.Now()
	key, csr, err := newRequest()
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := a.cfg.CA.Sign(ctx, csr, pki.Profile{
		CommonName: commonName, DNSNames: dns, IPs: ips, Usage: pki.UsageServer,
		NotBefore: now.Add(-backdate), NotAfter: a.notAfter(now, life),
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing the service's own certificate: %w", err)
	}
	err = a.record(ctx, audit.Event{
		Class: audit.Decision, Name: "cert.server", Outcome: audit.Granted, Thumbprint: mtls.ThumbprintOf(chain[0]).String(),
		Serial: chain[0].SerialNumber.String(), Expires: chain[0].NotAfter,
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	return bundle(key, chain), nil
}

// IssueDirectly certifies a fresh key for a registered client without a code and without the network:
// for the operator's own profile, which the service lays down and keeps fresh on its own machine.
func (a *Authority) IssueDirectly(ctx context.Context, clientID string) (tls.Certificate, error) {
	client, err := a.cfg.Store.Client(ctx, clientID)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading client %s: %w", clientID, err)
	}
	if client.Disabled {
		return tls.Certificate{}, fmt.Errorf("client %s is disabled", clientID)
	}
	key, csr, err := newRequest()
	if err != nil {
		return tls.Certificate{}, err
	}
	profile, err := a.profile(client, a.cfg.Now())
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := a.cfg.Recorder.Ready(audit.Decision); err != nil {
		return tls.Certificate{}, unavailable(fmt.Errorf("certifying %s: %w", clientID, err))
	}
	chain, err := a.cfg.CA.Sign(ctx, csr, profile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing a certificate for %s: %w", clientID, err)
	}
	row, err := a.row(chain[0], client)
	if err != nil {
		return tls.Certificate{}, err
	}
	err = a.change(ctx, func(tx *store.Store) ([]audit.Event, error) {
		if err := tx.AddCertificate(ctx, row); err != nil {
			return nil, fmt.Errorf("adding a certificate for %s: %w", clientID, err)
		}
		return []audit.Event{issued("cert.direct", row, true, Caller{})}, nil
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	return bundle(key, chain), nil
}

// newRequest makes a key and a request without names: names come from the registry.
func newRequest() (crypto.Signer, *x509.CertificateRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate request: %w", err)
	}
	csr, err := pki.ParseRequest(der)
	if err != nil {
		return nil, nil, fmt.Errorf("reading our own certificate request: %w", err)
	}
	return key, csr, nil
}

func bundle(key crypto.Signer, chain []*x509.Certificate) tls.Certificate {
	c := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}
