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
	"iter"
	"math/big"
	"slices"
	"strconv"
	"strings"
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

// source is one place from which lists come.
type source struct {
	digest  [sha256.Size]byte      // of what was read last
	numbers map[signerKey]*big.Int // of the newest lists that it gave, also of those who are not on it any more
}

// read returns the lists in data, the newest of each signer, if all of them are good: understood completely, signed by
// one of the issuers, begun, and not older than what came from here before. It returns nothing when nothing is new.
func (s *source) read(data []byte, issuers []*x509.Certificate, now time.Time) (map[signerKey]list, error) {
	digest := sha256.Sum256(data)
	if digest == s.digest {
		return nil, nil
	}
	lists, err := parseLists(data)
	if err != nil {
		return nil, err
	}
	next := make(map[signerKey]list, len(lists))
	for _, l := range lists {
		key, err := l.signer(issuers)
		if err != nil {
			return nil, err
		}
		if now.Before(l.thisUpdate) {
			return nil, fmt.Errorf("the list of %q is not valid yet", l.issuer)
		}
		if next[key].crl == nil || !l.below(next[key].crl.Number()) {
			next[key] = l
		}
	}
	for key, l := range next {
		// Whoever can answer in the authority's place could bring an old list back, on which the latest is not.
		if l.below(s.numbers[key]) {
			return nil, fmt.Errorf("the list of %q is older than one that was there before", l.issuer)
		}
	}
	if s.numbers == nil {
		s.numbers = make(map[signerKey]*big.Int)
	}
	for key, l := range next {
		s.numbers[key] = l.crl.Number()
	}
	s.digest = digest
	return next, nil
}

// again lets the next reading be judged anew though its bytes are the same.
func (s *source) again() { s.digest = [sha256.Size]byte{} }

// seen is the newest list of one signer that this process has seen, from wherever.
type seen struct {
	number *big.Int
	list   list // without crl while no trust has the signer
}

// takeLists takes over what data, which came from one place of a, adds to what is known, and reports whether it is
// something. Lists of signers who are not in data stay. Other trusts with the same signer are judged by the newest list
// too, wherever it came from. work is held.
func (m *Manager) takeLists(a *authority, from *source, data []byte) (changed bool, err error) {
	lists, err := from.read(data, a.issuers, m.now())
	if err != nil {
		return false, err
	}
	for key, l := range lists {
		if !l.below(m.seen[key].number) {
			m.seen[key] = seen{l.crl.Number(), l}
			changed = true
		}
	}
	if !changed {
		return false, nil
	}
	for other := range m.authorities() {
		if other != a && slices.ContainsFunc(other.issuers, func(cert *x509.Certificate) bool {
			_, ok := lists[signerOf(cert)]
			return ok
		}) {
			m.publish(other)
		}
	}
	return true, nil
}

// dropLists drops the lists of signers that no trust has any more. Their numbers stay, so that none older is believed
// when a signer comes back. work is held.
func (m *Manager) dropLists() {
	held := make(map[signerKey]bool)
	for a := range m.authorities() {
		for _, cert := range a.issuers {
			held[signerOf(cert)] = true
		}
	}
	for key, s := range m.seen {
		if !held[key] {
			m.seen[key] = seen{number: s.number}
		}
	}
}

// authorities are all trusts. work is held.
func (m *Manager) authorities() iter.Seq[*authority] {
	return func(yield func(*authority) bool) {
		for _, set := range []map[string]*authority{m.files, m.rows} {
			for _, a := range set {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// below reports whether l has a lower number than another list of the same signer (RFC 5280, Section 5.2.3).
func (l list) below(number *big.Int) bool { return number != nil && l.crl.Number().Cmp(number) < 0 }

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

// judge takes the newest list of each of a's certificates, as far as a's own certificates let it be signed. work is
// held.
func (m *Manager) judge(a *authority) *judge {
	j := &judge{hard: a.mode != Soft, lists: make(map[signerKey]list)}
	for _, cert := range a.issuers {
		key := signerOf(cert)
		l := m.seen[key].list
		if _, done := j.lists[key]; done || l.crl == nil {
			continue
		}
		if _, err := l.signer(a.issuers); err == nil {
			j.lists[key] = l
		}
	}
	return j
}

// listTrouble says what is wrong with the lists at now: it names every certificate of the trust without a list that
// can be used. Softly, a root needs none: it may have signed nothing but the authorities below it, and a certificate
// that it lets through is told of when there is one.
func (a *authority) listTrouble(now time.Time) error {
	if a.mode == Off || a.err != nil {
		return nil
	}
	j := a.revocation.state.Load()
	var missing, wrong []string
	told := make(map[signerKey]bool)
	for _, cert := range a.issuers {
		key := signerOf(cert)
		l, ok := j.lists[key]
		switch {
		case told[key] || !ok && !j.hard && isSelfSigned(cert):
			continue
		case !ok:
			missing = append(missing, strconv.Quote(cert.Subject.String()))
		case now.Before(l.thisUpdate):
			wrong = append(wrong, fmt.Sprintf("the revocation list of %q is not valid yet", l.issuer))
		case now.After(l.crl.NextUpdate()):
			wrong = append(wrong, fmt.Sprintf("the revocation list of %q is stale since %s", l.issuer,
				l.crl.NextUpdate().UTC().Format(time.RFC3339)))
		}
		told[key] = true
	}
	if len(missing) > 0 {
		wrong = append(wrong, "there is no revocation list yet of "+strings.Join(missing, ", "))
	}
	if len(wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(wrong, "; "))
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
