// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens/issuer"
)

const (
	// maxListBytes bounds what one place may hold: a list of the greatest size in PEM, with some room.
	maxListBytes = pki.MaxCRLSize + pki.MaxCRLSize/2
	maxLists     = 64
)

// list is a revocation list whose signature was verified, or is about to be.
type list struct {
	crl        *pki.CRL
	issuer     string // for people
	thisUpdate time.Time
}

// signerKey is who signs lists: a name and a key. Several certificates of one authority may share them.
type signerKey [sha256.Size]byte

func signerOf(cert *x509.Certificate) signerKey {
	name := sha256.Sum256(cert.RawSubject)
	key := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return sha256.Sum256(append(name[:], key[:]...))
}

// source is one place from which lists come, with the last good ones.
type source struct {
	digest [sha256.Size]byte // of what lists were read from
	lists  map[signerKey]list
}

// update takes the lists in data over, if all of them are good: understood completely, signed by one of the issuers,
// begun, and not older than the one in use. After an error all is as it was. It reports whether something changed.
func (s *source) update(data []byte, issuers []*x509.Certificate, now time.Time) (changed bool, err error) {
	digest := sha256.Sum256(data)
	if digest == s.digest {
		return false, nil
	}
	lists, err := parseLists(data)
	if err != nil {
		return false, err
	}
	next := make(map[signerKey]list, len(lists))
	for _, l := range lists {
		key, err := l.signer(issuers)
		if err != nil {
			return false, err
		}
		if now.Before(l.thisUpdate) {
			return false, fmt.Errorf("the list of %q is not valid yet", l.issuer)
		}
		if !l.olderThan(next[key]) {
			next[key] = l
		}
	}
	for key, l := range next {
		// Whoever can answer in the authority's place could bring an old list back, on which the latest is not.
		if l.olderThan(s.lists[key]) {
			return false, fmt.Errorf("the list of %q is older than the one in use", l.issuer)
		}
	}
	s.digest, s.lists = digest, next
	return true, nil
}

// verify drops what none of the issuers signed.
func (s *source) verify(issuers []*x509.Certificate) {
	kept := maps.Clone(s.lists)
	maps.DeleteFunc(kept, func(key signerKey, l list) bool {
		now, err := l.signer(issuers)
		return err != nil || now != key
	})
	s.digest, s.lists = [sha256.Size]byte{}, kept // what was refused may be good now
}

// olderThan reports whether l has a lower number than another list of the same issuer (RFC 5280, Section 5.2.3).
func (l list) olderThan(other list) bool {
	return other.crl != nil && l.crl.Number().Cmp(other.crl.Number()) < 0
}

// signer finds who signed l. Only certificates of the trust itself are asked: one that a caller presented must not
// decide what the authority's list is.
func (l list) signer(issuers []*x509.Certificate) (signerKey, error) {
	err := errors.New("the trust has no certificate")
	for _, cert := range issuers {
		// The dates are judged whenever the list is used.
		if err = l.crl.Check(cert, l.crl.NextUpdate()); err == nil {
			return signerOf(cert), nil
		}
	}
	return signerKey{}, fmt.Errorf("the list of %q was signed by no certificate of the trust: %w", l.issuer, err)
}

// parseLists reads DER, or PEM that holds lists and nothing else.
func parseLists(data []byte) ([]list, error) {
	if len(data) > 0 && data[0] == 0x30 { // a SEQUENCE
		l, err := parseList(data)
		return []list{l}, err
	}
	var lists []list
	begun := bytes.Count(data, []byte("-----BEGIN "))
	if begun > maxLists {
		return nil, fmt.Errorf("more than %d lists", maxLists)
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return nil, errors.New("a PEM block that is no revocation list")
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, l)
	}
	if len(lists) != begun || begun == 0 {
		return nil, errors.New("empty, damaged or truncated: neither DER nor PEM")
	}
	return lists, nil
}

func parseList(der []byte) (list, error) {
	crl, err := pki.ParseCRL(der)
	if err != nil {
		return list{}, err
	}
	raw, err := x509.ParseRevocationList(der)
	if err != nil {
		return list{}, err
	}
	if len(raw.Raw) != len(der) {
		return list{}, errors.New("something follows the revocation list")
	}
	return list{crl: crl, issuer: raw.Issuer.String(), thisUpdate: raw.ThisUpdate}, nil
}

// judge holds the lists that count, by who signed them. It is immutable.
type judge struct {
	hard  bool
	lists map[signerKey]list
}

// judge joins what was given and what was fetched: of two lists of one issuer the higher number counts.
func (a *authority) judge() *judge {
	j := &judge{hard: a.mode != Soft, lists: maps.Clone(a.given.lists)}
	if j.lists == nil {
		j.lists = make(map[signerKey]list)
	}
	for key, l := range a.fetched.lists {
		if !l.olderThan(j.lists[key]) {
			j.lists[key] = l
		}
	}
	return j
}

var errNoList = errors.New("there is no revocation list yet")

// listTrouble says what is wrong with the lists at now.
func (a *authority) listTrouble(now time.Time) error {
	if a.mode == Off || a.err != nil {
		return nil
	}
	j := a.judge()
	if len(j.lists) == 0 {
		return errNoList
	}
	for _, l := range j.lists {
		if now.After(l.crl.NextUpdate()) {
			return fmt.Errorf("the revocation list of %q is stale since %s", l.issuer,
				l.crl.NextUpdate().UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// revocation implements issuer.Revocation by the lists of one trust, as they are at the time.
type revocation struct {
	state atomic.Pointer[judge]
	alarm func(error)
}

// Check implements issuer.Revocation.
func (r *revocation) Check(chain []*x509.Certificate, now time.Time) error {
	j := r.state.Load()
	err := j.check(chain, now)
	if err == nil || j.hard || errors.Is(err, issuer.ErrRevoked) {
		return err
	}
	r.alarm(fmt.Errorf("a certificate was let through: %w", err))
	return nil
}

// check judges every certificate of the chain but the root, which nobody can revoke (RFC 5280, Section 6.3).
func (j *judge) check(chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 {
		return errors.New("revocation status unknown: no chain")
	}
	var unknown error
	for i, cert := range chain[:len(chain)-1] {
		err := j.status(cert, chain[i+1], now)
		if errors.Is(err, issuer.ErrRevoked) {
			return err // whatever is unknown of the others
		}
		if err != nil && unknown == nil {
			unknown = fmt.Errorf("revocation status unknown: %w", err)
		}
	}
	return unknown
}

// status judges one certificate by the list of its very issuer.
func (j *judge) status(cert, by *x509.Certificate, now time.Time) error {
	l, ok := j.lists[signerOf(by)]
	if !ok {
		return fmt.Errorf("there is no list of %q", by.Subject)
	}
	_, revoked, err := l.crl.Revoked(cert)
	if err != nil {
		return err
	}
	if revoked {
		return fmt.Errorf("%w: serial number %d of %q", issuer.ErrRevoked, cert.SerialNumber, by.Subject)
	}
	// A stale list still tells who was revoked, but no longer who was not.
	if now.Before(l.thisUpdate) {
		return fmt.Errorf("the list of %q is not valid yet", l.issuer)
	}
	if now.After(l.crl.NextUpdate()) {
		return fmt.Errorf("the list of %q is stale", l.issuer)
	}
	return nil
}
