// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
)

// Bounds of what an authority may consist of.
const (
	maxCAFile       = 1 << 20
	maxCertificates = 256
)

// authority is one trust, of a file or of a row. All of it is guarded by Manager.work.
type authority struct {
	name   string
	mode   string // Hard, Soft or Off
	caFile string // empty for a row
	own    []*x509.Certificate

	digest  [sha256.Size]byte // of what the certificates were read from
	anchors *mtls.Anchors
	issuers []*x509.Certificate // all of its certificates: who may sign lists
	err     error               // of a row that cannot be used

	crlFile string
	crlURL  string
	given   source // from crlFile or the row
	fetched source // from crlURL

	due      time.Time // when crlURL is to be fetched next
	fetching bool

	revocation *revocation
}

func (m *Manager) newAuthority(name string) *authority {
	a := &authority{name: name, own: m.own}
	a.revocation = &revocation{alarm: func(err error) { m.report("trust:"+name, partStatus, err) }}
	a.revocation.state.Store(&judge{hard: true})
	return a
}

// readCA reads the file again and reports whether there are new anchors. After an error all is as it was.
func (a *authority) readCA() (changed bool, err error) {
	data, err := readFile(a.caFile, maxCAFile)
	if err != nil {
		return false, fmt.Errorf("the CA file %s cannot be read: %w", a.caFile, withoutPath(err))
	}
	digest := sha256.Sum256(data)
	if digest == a.digest {
		return false, nil
	}
	certs, err := mtls.ParseCertificates(data)
	if err == nil {
		err = a.setCertificates(certs)
	}
	if err != nil {
		return false, fmt.Errorf("the CA file %s is damaged: %w", a.caFile, err)
	}
	a.digest = digest
	return true, nil
}

// setCertificates makes new anchors. The lists are judged by the new certificates from then on: publish sees to it that
// none outlives its signer.
func (a *authority) setCertificates(all []*x509.Certificate) error {
	if len(all) > maxCertificates {
		return fmt.Errorf("more than %d certificates", maxCertificates)
	}
	for _, cert := range all {
		if a.isOwn(cert) {
			return fmt.Errorf("the certificate of %q belongs to our own CA, which vouches only for what it keeps record of", cert.Subject)
		}
	}
	anchors, intermediates, err := SplitAuthorities(all)
	if err != nil {
		return err
	}
	made, err := mtls.NewAnchors(mtls.AnchorsConfig{Roots: anchors, Intermediates: intermediates, UsePresented: true})
	if err != nil {
		return err
	}
	a.anchors, a.issuers = made, slices.Concat(anchors, intermediates)
	a.given.again() // what was refused may have a signer now
	a.fetched.again()
	a.due = time.Time{}
	return nil
}

// isOwn reports whether a certificate has a key of our own CA, or its signature.
func (a *authority) isOwn(cert *x509.Certificate) bool {
	return slices.ContainsFunc(a.own, func(own *x509.Certificate) bool {
		return bytes.Equal(own.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) || cert.CheckSignatureFrom(own) == nil
	})
}

// SplitAuthorities tells the anchors of a foreign authority from what may stand between them and clients, for all who
// take its certificates in: those that are self-signed (RFC 5280, Section 3.2), with a signature that verifies, are
// anchors, and all others intermediates. A certificate with which an authority signs its own next key has its name twice
// too, but is no anchor. It is an error when no certificate is self-signed: one that another authority vouched for is
// never made an anchor.
func SplitAuthorities(certs []*x509.Certificate) (anchors, intermediates []*x509.Certificate, err error) {
	for _, c := range certs {
		if isSelfSigned(c) {
			anchors = append(anchors, c)
		} else {
			intermediates = append(intermediates, c)
		}
	}
	if len(anchors) == 0 {
		return nil, nil, errors.New("no certificate is self-signed, so there is no anchor")
	}
	return anchors, intermediates, nil
}

func isSelfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}

// readFile reads a whole file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return data, nil
}

// withoutPath drops the path from an error that will be shown beside it.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// loadRows reads the trusts of the database if they changed since the last time. When they cannot be read, what they
// were no longer counts: one of them may have been removed.
func (m *Manager) loadRows(ctx context.Context) error {
	m.mu.Lock()
	epoch, loaded := m.epoch, m.loaded
	m.mu.Unlock()
	if epoch == loaded {
		return nil
	}
	m.work.Lock()
	defer m.work.Unlock()
	m.mu.Lock()
	epoch = m.epoch // another change may have come while we waited: this reading will show it
	m.mu.Unlock()
	rows, err := m.store.Trusts(ctx)
	if err != nil {
		err = fmt.Errorf("the database's trusts cannot be read: %w", err)
		if ctx.Err() == nil {
			m.report("trusts", partRow, err)
		}
		return err
	}
	m.report("trusts", partRow, nil)
	m.takeRows(rows)
	m.mu.Lock()
	m.loaded = epoch
	m.mu.Unlock()
	return nil
}

// takeRows makes m.rows show the rows. work is held.
func (m *Manager) takeRows(rows []store.Trust) {
	gone := m.rows
	m.rows = make(map[string]*authority, len(rows))
	for _, row := range rows {
		if m.files[row.Name] != nil {
			m.report("trust:"+row.Name, partRow, errors.New("the database has a trust of this name too, which is not used"))
			continue
		}
		a := gone[row.Name]
		if a == nil {
			a = m.newAuthority(row.Name)
		}
		delete(gone, row.Name)
		m.rows[row.Name] = a
		m.takeRow(a, row)
		m.publish(a)
	}
	m.dropLists()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range gone {
		delete(m.published, name)
		m.discard("trust:" + name)
	}
}

// takeRow makes a show one row. A row that cannot be used gives no trust at all: unlike a file, it is written in one
// piece by whoever has checked it.
func (m *Manager) takeRow(a *authority, row store.Trust) {
	a.err = a.readRow(row)
	if a.err != nil {
		a.err = fmt.Errorf("the trust is damaged in the database: %w", a.err)
	}
	m.report("trust:"+a.name, partCA, a.err)
	if a.err != nil {
		return
	}
	if a.crlURL != row.CRLURL {
		a.crlURL, a.due = row.CRLURL, time.Time{}
		a.fetched.again()
		m.report("trust:"+a.name, partURL, nil)
	}
	if len(row.CRL) == 0 {
		a.given.again() // what it was is still the newest that is known
		m.report("trust:"+a.name, partFile, nil)
		return
	}
	_, err := m.takeLists(a, &a.given, row.CRL)
	if err != nil {
		err = fmt.Errorf("the revocation list in the database is not used: %w", err)
	}
	m.report("trust:"+a.name, partFile, err)
}

// readRow reads mode and certificates of a row. Whatever was stored as an anchor counts as one only if SplitAuthorities
// says so.
func (a *authority) readRow(row store.Trust) error {
	mode, err := modeOf(row.Revocation, row.CRLURL != "" || len(row.CRL) > 0)
	if err != nil {
		return err
	}
	a.mode = mode
	digest := digestOf(row.Anchors, row.Intermediates)
	if digest == a.digest {
		return nil
	}
	all, err := parseAll(slices.Concat(row.Anchors, row.Intermediates)) // what is an anchor is judged here
	if err != nil {
		return err
	}
	if err := a.setCertificates(all); err != nil {
		return err
	}
	a.digest = digest
	return nil
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// digestOf is of each certificate's own digest, so that nothing can be moved from one to the next.
func digestOf(lists ...[][]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, list := range lists {
		for _, der := range list {
			sum := sha256.Sum256(der)
			h.Write(sum[:])
		}
		h.Write(make([]byte, sha256.Size)) // ends the list
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// publish lets Anchors and Check answer by what a is now. work is held.
func (m *Manager) publish(a *authority) {
	a.revocation.state.Store(m.judge(a))
	p := published{anchors: a.anchors, err: a.err}
	if a.mode != Off {
		p.revocation = a.revocation
	}
	m.mu.Lock()
	m.published[a.name] = p
	m.mu.Unlock()
	m.report("trust:"+a.name, partStatus, nil) // from now on it is another
	m.reportLists(a)
}

// reportLists notices lists that are missing or have become stale. work is held.
func (m *Manager) reportLists(a *authority) {
	err := a.listTrouble(m.now())
	if err != nil && a.crlURL != "" && a.due.IsZero() {
		m.note("trust:"+a.name, partLists, err.Error()+" (not fetched yet)") // and no alarm before
		return
	}
	m.report("trust:"+a.name, partLists, err)
}
