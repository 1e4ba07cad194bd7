// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// The bounds of the certificates that a client registers: enough to rotate, and no larger than a handshake may bring.
const (
	maxPinned     = 8
	maxPinnedSize = 16 << 10
)

// SetClientCertificates replaces the certificates (DER, 1 to 8, each once) that a client registered by value. To rotate,
// register both, then only the new one. Errors: ErrNotFound, ErrNotPinned (another kind of client), a
// CertificateTakenError, ErrKeyTaken, ErrKeyBlocked, and ErrLastGrantor when nobody could give administrators' scopes
// any more because none of the new ones is valid now.
func (s *Store) SetClientCertificates(ctx context.Context, id string, certificates [][]byte) error {
	return s.changeClient(ctx, "set the certificates of", id, func(c *change, client Client) error {
		if client.AuthMethod != methodSelfSigned || client.JWKSURI != "" {
			return ErrNotPinned
		}
		if len(certificates) == 0 {
			return errors.New("a client with its own certificate needs one")
		}
		before, err := c.grantors(s.now())
		if err != nil {
			return err
		}
		if err := s.setCertificates(c, id, certificates); err != nil {
			return err
		}
		after, err := c.grantors(s.now())
		if err == nil && before > 0 && after == 0 {
			err = ErrLastGrantor
		}
		return err
	})
}

func (s *Store) setCertificates(c *change, id string, certificates [][]byte) error {
	if _, err := c.link(deletePinned, id); err != nil {
		return err
	}
	if err := c.claimCertificates(id, certificates); err != nil {
		return err
	}
	_, err := c.exec("clients", setCertificates, id, ders(certificates), moment(s.now()))
	c.changedClient(id)
	return err
}

// claimCertificates takes certificates for a client; each, and each public key, belongs to one client only.
func (c *change) claimCertificates(id string, certificates [][]byte) error {
	if len(certificates) > maxPinned {
		return fmt.Errorf("%d certificates given, at most %d may be registered", len(certificates), maxPinned)
	}
	for i, der := range certificates {
		if err := c.claimCertificate(id, der); err != nil {
			return fmt.Errorf("certificate %d: %w", i+1, err)
		}
	}
	return nil
}

func (c *change) claimCertificate(id string, der []byte) error {
	if len(der) > maxPinnedSize {
		return fmt.Errorf("longer than %d bytes", maxPinnedSize)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	thumbprint, keyHash := sha256.Sum256(der), sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	n, err := c.link(insertPinned, digest(thumbprint), id, digest(keyHash), cert.NotBefore.UnixMicro(), cert.NotAfter.UnixMicro())
	if err != nil {
		return err
	}
	if n == 1 {
		return c.checkKey(keyHash, id)
	}
	var user string
	if err := c.tx.QueryRowContext(c.ctx, queryPinnedUser, digest(thumbprint)).Scan(&user); err != nil {
		return err
	}
	if user == id {
		return errors.New("given twice")
	}
	return &CertificateTakenError{Thumbprint: thumbprint, ClientID: user}
}
