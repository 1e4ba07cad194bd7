// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// keyCompromise is the reason code that blocks the public key (RFC 5280, Section 5.3.1).
const keyCompromise = 1

// superseded is the reason code of what an operator held whose place is given anew.
const superseded = 4

// cessationOfOperation is the reason code of what a removed client held.
const cessationOfOperation = 5

// entitled refuses a client that is disabled, removed, no longer the one that a generation belongs to, or one that our
// CA does not vouch for, and keeps it as it is until the transaction ends.
func (c *change) entitled(clientID string, generation uint64) error {
	client, err := c.liveClient(clientID)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("client %q: %w", clientID, ErrGeneration)
	case err != nil:
		return err
	case client.Disabled:
		return ErrClientDisabled
	case client.Generation != generation:
		return ErrGeneration
	case !client.enrols():
		return ErrNotEnrolled
	}
	return nil
}

// insertCertificate adds a certificate after the checks on its public key, and returns it as stored.
func (s *Store) insertCertificate(c *change, cert Certificate) (Certificate, error) {
	if cert.Thumbprint != sha256.Sum256(cert.DER) {
		return Certificate{}, errors.New("the thumbprint is not that of the certificate")
	}
	if cert.KeyHash == [32]byte{} || cert.Serial == "" || cert.NotBefore.IsZero() || cert.NotAfter.IsZero() {
		return Certificate{}, errors.New("a certificate needs a key hash, a serial number and dates")
	}
	if err := c.checkKey(cert.KeyHash, cert.ClientID); err != nil {
		return Certificate{}, err
	}
	if cert.CreatedAt.IsZero() {
		cert.CreatedAt = s.now()
	}
	_, err := c.exec("certificates", insertCertificate, digest(cert.Thumbprint), cert.Serial, cert.ClientID,
		cert.Generation, moment(cert.NotBefore), moment(cert.NotAfter), digest(cert.KeyHash), cert.DER,
		digest(cert.RenewedFrom), moment(cert.CreatedAt))
	if err != nil {
		return Certificate{}, err
	}
	c.what.Thumbprints = append(c.what.Thumbprints, cert.Thumbprint)
	for _, t := range []*time.Time{&cert.NotBefore, &cert.NotAfter, &cert.CreatedAt} {
		*t = asStored(*t)
	}
	cert.RevokedAt, cert.Reason = time.Time{}, 0
	return cert, nil
}

// checkKey refuses a public key that was reported compromised, or that another client has used.
func (c *change) checkKey(keyHash [32]byte, clientID string) error {
	blocked, err := keyBlocked(c.tx.QueryRowContext(c.ctx, queryBlockedKey, digest(keyHash)))
	if err != nil {
		return err
	}
	if blocked {
		return ErrKeyBlocked
	}
	other, err := keyOwner(c.tx.QueryRowContext(c.ctx, queryOtherOwner, digest(keyHash), clientID))
	if err != nil {
		return err
	}
	if other != "" {
		return ErrKeyTaken
	}
	return nil
}

// AddCertificate adds a certificate that no code and no renewal stands for, such as the first operator's. Errors:
// ErrGeneration, ErrClientDisabled, ErrNotEnrolled, ErrKeyBlocked, ErrKeyTaken, ErrExists.
func (s *Store) AddCertificate(ctx context.Context, cert Certificate) error {
	err := s.change(ctx, func(c *change) error {
		if err := c.entitled(cert.ClientID, cert.Generation); err != nil {
			return err
		}
		_, err := s.insertCertificate(c, cert)
		return err
	})
	if err != nil {
		return fmt.Errorf("add a certificate: %w", err)
	}
	return nil
}

// Certificate returns a certificate by its thumbprint, or ErrNotFound.
func (s *Store) Certificate(ctx context.Context, thumbprint [32]byte) (Certificate, error) {
	return certificate(s.read.QueryRowContext(ctx, queryCertificate, digest(thumbprint)))
}

// CertificateBySerial returns a certificate by its decimal serial number, or ErrNotFound.
func (s *Store) CertificateBySerial(ctx context.Context, serial string) (Certificate, error) {
	if !storable(serial) {
		return Certificate{}, fmt.Errorf("certificate: %w", ErrNotFound)
	}
	return certificate(s.read.QueryRowContext(ctx, queryCertificateSerial, serial))
}

// Child returns the certificate that renewed parent with the key of that hash, if it is neither revoked nor expired
// at the time now, or ErrNotFound.
func (s *Store) Child(ctx context.Context, parent, keyHash [32]byte, now time.Time) (Certificate, error) {
	return certificate(s.read.QueryRowContext(ctx, queryChild, digest(parent), digest(keyHash), moment(now)))
}

func certificate(r row) (Certificate, error) {
	cert, err := scanCertificate(r)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return cert, nil
}

func scanCertificate(r row) (Certificate, error) {
	var c Certificate
	err := r.Scan(c.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		return Certificate{}, ErrNotFound
	}
	return c, err
}

// columns are where certificateColumns go.
func (cert *Certificate) columns() []any {
	return []any{(*digest)(&cert.Thumbprint), &cert.Serial, &cert.ClientID, &cert.Generation, (*moment)(&cert.NotBefore),
		(*moment)(&cert.NotAfter), (*digest)(&cert.KeyHash), &cert.DER, (*digest)(&cert.RenewedFrom), (*moment)(&cert.RevokedAt),
		&cert.Reason, (*moment)(&cert.CreatedAt)}
}

// Certificates lists at most limit certificates, oldest first: those of a client, or all when clientID is empty,
// starting behind the one with the serial number after, or at the first when it is empty.
func (s *Store) Certificates(ctx context.Context, clientID, after string, limit int) ([]Certificate, error) {
	return s.certificates(ctx, queryCertificates, clientID, after, limit)
}

func (s *Store) certificates(ctx context.Context, query string, args ...any) ([]Certificate, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	certs, err := all(rows, err, scanCertificate)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	return certs, nil
}

// NextCRLNumber returns the next number for a revocation list, from 1 (RFC 5280, Section 5.2.3).
func (s *Store) NextCRLNumber(ctx context.Context) (int64, error) {
	var n int64
	err := s.direct(ctx, func(ctx context.Context, w conn) error { return w.QueryRowContext(ctx, bumpCRLNumber).Scan(&n) })
	if err != nil {
		return 0, fmt.Errorf("next CRL number: %w", err)
	}
	return n, nil
}

// KeyBlocked reports whether the public key with this hash was reported compromised.
func (s *Store) KeyBlocked(ctx context.Context, keyHash [32]byte) (bool, error) {
	return keyBlocked(s.read.QueryRowContext(ctx, queryBlockedKey, digest(keyHash)))
}

func keyBlocked(r row) (bool, error) {
	var n int
	if err := r.Scan(&n); err != nil {
		return false, fmt.Errorf("look for a blocked key: %w", err)
	}
	return n > 0, nil
}

// KeyOwner returns the client that has a certificate of any date for the public key with this hash, from our CA or
// registered as its own, or "" when nobody has.
func (s *Store) KeyOwner(ctx context.Context, keyHash [32]byte) (string, error) {
	return keyOwner(s.read.QueryRowContext(ctx, queryKeyOwner, digest(keyHash)))
}

func keyOwner(r row) (string, error) {
	var owner string
	err := r.Scan(&owner)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("look for a key's owner: %w", err)
	}
	return owner, nil
}

// BlockedKeys lists the hashes (SHA-256 of the SubjectPublicKeyInfo) of all public keys that were reported compromised, in
// no order: for whoever judges certificates that our inventory does not have. Change.Blocked tells what is added.
func (s *Store) BlockedKeys(ctx context.Context) ([][32]byte, error) {
	rows, err := s.read.QueryContext(ctx, queryBlockedKeys)
	keys, err := all(rows, err, func(r row) (key [32]byte, err error) { return key, r.Scan((*digest)(&key)) })
	if err != nil {
		return nil, fmt.Errorf("list blocked keys: %w", err)
	}
	return keys, nil
}

// Revoke revokes the selected certificates at the time now for a reason (a code of RFC 5280, Section 5.3.1), together
// with all that were renewed from them, directly or not, unless sel.Only. One that is revoked already is reported, not
// changed, and no error; its descendants are revoked all the same. The reason keyCompromise blocks the public keys of
// all of them and takes every other certificate of these keys too, also with sel.Only.
//
// A certificate that a client registered by value is named by its thumbprint: it is taken off the client, and when it was
// the only one, or the reason blocks the keys of all, the client is disabled. Of a client for which our CA does not vouch,
// selected as a client, keyCompromise blocks the keys that it registered and disables it; with another reason there is
// nothing to revoke: ErrNotRevocable. Revoking takes away also from the last grantor.
//
// The error is ErrNotFound when a thumbprint, the serial number or the client is unknown; then, as with every error,
// nothing is revoked.
func (s *Store) Revoke(ctx context.Context, sel Selection, reason int, now time.Time) (Revocation, error) {
	var out Revocation
	err := s.change(ctx, func(c *change) error {
		var err error
		out, err = s.revokeSelected(c, sel, reason, now)
		return err
	})
	if err != nil {
		return Revocation{}, fmt.Errorf("revoke: %w", err)
	}
	return out, nil
}

func (s *Store) revokeSelected(c *change, sel Selection, reason int, now time.Time) (Revocation, error) {
	if err := sel.check(); err != nil {
		return Revocation{}, err
	}
	var out Revocation
	var err error
	if sel.ClientID != "" {
		err = s.revokeOther(c, sel.ClientID, reason, now, &out)
	} else if len(sel.Thumbprints) > 0 {
		sel.Thumbprints, err = s.revokeRegistered(c, sel.Thumbprints, reason, now, &out)
	}
	if err != nil || sel.empty() {
		return out, err
	}
	certs, err := c.selected(sel, now)
	if err == nil && reason == keyCompromise {
		certs, err = c.withSameKeys(certs, sel.Only)
	}
	if err != nil {
		return Revocation{}, err
	}
	issued, err := c.revoke(certs, reason, now)
	out.Revoked, out.Already = append(out.Revoked, issued.Revoked...), append(out.Already, issued.Already...)
	out.Blocked = append(out.Blocked, issued.Blocked...)
	return out, err
}

// selected returns the certificates to revoke, each once.
func (c *change) selected(sel Selection, now time.Time) ([]Certificate, error) {
	roots, err := c.roots(sel, now)
	if err != nil || sel.Only {
		return roots, err
	}
	var out []Certificate
	seen := make(map[[32]byte]bool)
	for _, root := range roots {
		if seen[root.Thumbprint] {
			continue // its family was followed with an ancestor
		}
		family, err := c.family(root, seen)
		if err != nil {
			return nil, err
		}
		out = append(out, family...)
	}
	return out, nil
}

// family returns a certificate and all that were renewed from it, directly or not, but for those seen before, and notes
// them as seen.
func (c *change) family(root Certificate, seen map[[32]byte]bool) ([]Certificate, error) {
	rows, err := c.tx.QueryContext(c.ctx, queryFamily, digest(root.Thumbprint))
	family, err := all(rows, err, scanCertificate)
	if err != nil {
		return nil, err
	}
	var fresh []Certificate
	for _, cert := range family {
		if !seen[cert.Thumbprint] {
			seen[cert.Thumbprint] = true
			fresh = append(fresh, cert)
		}
	}
	return fresh, nil
}

// withSameKeys adds every certificate of the keys of certs, for a key that is compromised is so in all of them, and
// what was renewed from those unless only.
func (c *change) withSameKeys(certs []Certificate, only bool) ([]Certificate, error) {
	seen, asked := make(map[[32]byte]bool), make(map[[32]byte]bool)
	for _, cert := range certs {
		seen[cert.Thumbprint] = true
	}
	for i := 0; i < len(certs); i++ { // certs grows
		key := certs[i].KeyHash
		if asked[key] {
			continue
		}
		asked[key] = true
		rows, err := c.tx.QueryContext(c.ctx, queryKeyCertificates, digest(key))
		same, err := all(rows, err, scanCertificate)
		if err != nil {
			return nil, err
		}
		for _, twin := range same {
			switch {
			case seen[twin.Thumbprint]:
			case only:
				seen[twin.Thumbprint] = true
				certs = append(certs, twin)
			default:
				family, err := c.family(twin, seen)
				if err != nil {
					return nil, err
				}
				certs = append(certs, family...)
			}
		}
	}
	return certs, nil
}

// roots returns the certificates that sel names, and keeps their clients as they are until the transaction ends, so
// that no renewal can add a child meanwhile.
func (c *change) roots(sel Selection, now time.Time) ([]Certificate, error) {
	switch {
	case sel.ClientID != "":
		if _, err := c.lockClient(sel.ClientID); err != nil {
			return nil, fmt.Errorf("client %q: %w", sel.ClientID, err)
		}
		rows, err := c.tx.QueryContext(c.ctx, queryClientCertificates, sel.ClientID, moment(now))
		return all(rows, err, scanCertificate)
	case sel.Serial != "":
		cert, err := c.root(queryCertificateSerial, sel.Serial)
		if err != nil {
			return nil, fmt.Errorf("serial number %s: %w", sel.Serial, err)
		}
		return []Certificate{cert}, nil
	}
	return c.rootsByThumbprint(sel.Thumbprints)
}

// check refuses a selection by nothing or by several things.
func (sel *Selection) check() error {
	n := 0
	for _, given := range []bool{sel.ClientID != "", sel.Serial != "", len(sel.Thumbprints) > 0} {
		if given {
			n++
		}
	}
	if n != 1 {
		return errors.New("select certificates by exactly one of thumbprints, serial number and client")
	}
	return nil
}

// empty reports whether nothing is selected.
func (sel *Selection) empty() bool {
	return sel.ClientID == "" && sel.Serial == "" && len(sel.Thumbprints) == 0
}

func (c *change) rootsByThumbprint(thumbprints [][32]byte) ([]Certificate, error) {
	var out []Certificate
	seen := make(map[[32]byte]bool)
	for _, t := range thumbprints {
		if seen[t] {
			continue
		}
		seen[t] = true
		cert, err := c.root(queryCertificate, digest(t))
		if err != nil {
			return nil, fmt.Errorf("thumbprint %s: %w", base64.RawURLEncoding.EncodeToString(t[:]), err)
		}
		out = append(out, cert)
	}
	return out, nil
}

func (c *change) root(query string, arg any) (Certificate, error) {
	cert, err := scanCertificate(c.tx.QueryRowContext(c.ctx, query, arg))
	if err != nil {
		return Certificate{}, err
	}
	_, err = c.lockClient(cert.ClientID)
	return cert, err
}

func (c *change) revoke(certs []Certificate, reason int, now time.Time) (Revocation, error) {
	var out Revocation
	for _, cert := range certs {
		if reason == keyCompromise {
			isNew, err := c.block(cert.KeyHash, now)
			if err != nil {
				return Revocation{}, err
			}
			if isNew {
				out.Blocked = append(out.Blocked, cert.KeyHash)
			}
		}
		if !cert.RevokedAt.IsZero() {
			out.Already = append(out.Already, cert)
			continue
		}
		if _, err := c.exec("certificates", revokeCertificate, digest(cert.Thumbprint), moment(now), reason); err != nil {
			return Revocation{}, err
		}
		if err := c.denyCertificate(cert.Thumbprint, cert.NotAfter, now); err != nil {
			return Revocation{}, err
		}
		cert.RevokedAt, cert.Reason = asStored(now), reason
		out.Revoked = append(out.Revoked, cert)
		c.what.Revoked = true
		c.what.Thumbprints = append(c.what.Thumbprints, cert.Thumbprint)
	}
	return out, nil
}

// block makes a public key useless for every client, and reports whether it was not so before.
func (c *change) block(keyHash [32]byte, now time.Time) (bool, error) {
	n, err := c.exec("blocked_keys", insertBlockedKey, digest(keyHash), moment(now))
	if err != nil || n == 0 {
		return false, err
	}
	c.what.Blocked = append(c.what.Blocked, keyHash)
	return true, c.denyKeyHolders(keyHash, now)
}
