// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// Renew gets a new certificate over mutual TLS and makes it the profile's; with rekey for a new key. KeyPair follows
// at once, so token clients on it start a new generation. It blocks for one request and for the folder's lock, until
// ctx ends. On failure the profile stays as it was. A lapsed profile gives a *LapsedError.
//
// A renewal for a new key that was interrupted is completed by the next Renew, whatever its rekey: a second
// certificate beside a lost one would look like theft to the service.
func (p *Profile) Renew(ctx context.Context, rekey bool) error {
	if p.External() {
		return &Error{
			Message: fmt.Sprintf("the certificate in %s was not issued by the service's own CA, which therefore cannot renew it", p.dir),
			Hint:    newFilesHint(p.dir),
		}
	}
	_, err := p.renew(ctx, func(*x509.Certificate) bool { return true }, rekey)
	return err
}

// RenewIfDue renews with the same key when the certificate is past half its life, and reports whether it did.
// Another process that was faster counts as not due, as does a certificate that came from elsewhere.
func (p *Profile) RenewIfDue(ctx context.Context) (renewed bool, err error) {
	if p.External() || !pastHalfLife(p.Certificate(), time.Now()) {
		return false, nil
	}
	return p.renew(ctx, func(leaf *x509.Certificate) bool { return pastHalfLife(leaf, time.Now()) }, false)
}

func pastHalfLife(leaf *x509.Certificate, now time.Time) bool {
	return now.After(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2))
}

// renew asks due again under the lock, of the certificate that is then in the folder.
func (p *Profile) renew(ctx context.Context, due func(*x509.Certificate) bool, rekey bool) (bool, error) {
	unlock, err := lock(ctx, p.dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.adopt(); err != nil {
		return false, err
	}
	if err := p.checkDates(time.Now()); err != nil {
		return false, err
	}
	if !due(p.Certificate()) {
		return false, nil
	}
	key, err := p.renewalKey(rekey)
	if err != nil {
		return false, err
	}
	files, err := p.requestRenewal(ctx, key)
	if err != nil {
		return false, err
	}
	if err := files.install(p.dir); err != nil {
		return false, err
	}
	if err := os.Remove(p.rekeyPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, folderError(p.dir, err)
	}
	return true, p.adopt()
}

// adopt takes over what is in the folder: another process may have renewed since.
func (p *Profile) adopt() error {
	now, err := load(p.dir)
	if err != nil {
		return err
	}
	if now.info.Issuer != p.info.Issuer || now.info.ClientID != p.info.ClientID {
		return &Error{
			Message: fmt.Sprintf("the profile %s was replaced by one of another client or issuer", p.dir),
			Hint:    "run the command again",
		}
	}
	if now.Certificate().Equal(p.Certificate()) {
		return nil
	}
	p.key = now.key
	return p.keyPair.Replace(*now.keyPair.Current())
}

func (p *Profile) rekeyPath() string { return filepath.Join(p.dir, pendingDir, rekeyFile) }

// renewalKey is the key to be certified, on disk before the request is sent.
func (p *Profile) renewalKey(rekey bool) (crypto.Signer, error) {
	if _, err := os.Lstat(p.rekeyPath()); err == nil || rekey {
		return pendingKey(p.rekeyPath())
	}
	return p.key, nil
}

// requestRenewal connects with the certificate that is about to be replaced. The connection is not used again.
func (p *Profile) requestRenewal(ctx context.Context, key crypto.Signer) (Files, error) {
	csr, err := pki.CreateRequest(key)
	if err != nil {
		return Files{}, fmt.Errorf("make a certificate request: %w", err)
	}
	frozen, err := mtls.NewKeyPair(*p.keyPair.Current())
	if err != nil {
		return Files{}, err
	}
	hc := httpClient(mtls.ClientConfig(frozen, p.Roots()))
	defer hc.CloseIdleConnections()
	var answer pki.EnrollResponse
	err = call(ctx, hc, http.MethodPost, p.MTLSURL()+"/pki/renew", pki.NewRenewRequest(csr), &answer)
	if err != nil {
		return Files{}, p.explain(err)
	}
	return p.acceptRenewal(answer, key)
}

// acceptRenewal tries every root we trust: the service may be changing its root.
func (p *Profile) acceptRenewal(answer pki.EnrollResponse, key crypto.Signer) (Files, error) {
	var failure error
	for _, root := range p.roots {
		files, err := accept(answer, expectation{
			issuer: p.info.Issuer, clientID: p.info.ClientID, key: key, root: root, now: time.Now(),
		})
		if err == nil {
			return files, nil
		}
		failure = err
	}
	return Files{}, unexpected(p.info.Issuer, failure)
}
