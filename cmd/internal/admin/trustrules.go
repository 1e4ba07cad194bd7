// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// maxAuthorities is how many certificates one trust may have.
const maxAuthorities = 32

// What is done about a foreign certificate whose revocation status is unknown.
const (
	revocationHard = "hard"
	revocationSoft = "soft"
	revocationOff  = "off"
)

// trust judges a foreign CA and returns the row to store.
func (r rules) trust(req *TrustRequest, now time.Time) (store.Trust, error) {
	row := store.Trust{Name: req.Name, CRLURL: req.CRLURL}
	if pki.CheckClientID(req.Name) != nil {
		return row, invalidRequest(fmt.Sprintf("'%s' is not a name for a trust", printable(req.Name)),
			"a name begins with a letter or digit and has at most 63 of a-z, 0-9, '.', '_' and '-'", nil)
	}
	roots, intermediates, err := r.authorities(req.CA, now)
	if err != nil {
		return row, err
	}
	for _, cert := range roots {
		row.Anchors = append(row.Anchors, cert.Raw)
	}
	for _, cert := range intermediates {
		row.Intermediates = append(row.Intermediates, cert.Raw)
	}
	if row.CRL, err = revocationList(req, append(roots, intermediates...), now); err != nil {
		return row, err
	}
	row.Revocation, err = revocationMode(req)
	return row, err
}

// keeping fills in what a replacement leaves out. It drops a list, or ends judging by one, only when that is said: whoever
// sends a renewed CA without a word about revocation would otherwise let the revoked back in.
func keeping(req TrustRequest, present store.Trust) (TrustRequest, error) {
	if len(present.CRL) == 0 && present.CRLURL == "" {
		return req, nil
	}
	given := len(req.CRL) > 0 || req.CRLURL != ""
	switch {
	case !given && !req.DropCRL:
		req.CRL, req.CRLURL, req.keptCRL = present.CRL, present.CRLURL, true
	case !given && req.Revocation != revocationOff:
		return req, invalidRequest(fmt.Sprintf("trust '%s' is judged by its revocation list, which would be dropped", present.Name),
			"say revocation off too, or leave crl_url out", nil)
	}
	req.Revocation = cmp.Or(req.Revocation, present.Revocation)
	return req, nil
}

// authorities reads the certificates of a foreign CA. What is self-signed is an anchor, pinned by its bytes; the rest may
// stand between an anchor and a client.
func (r rules) authorities(text string, now time.Time) (roots, intermediates []*x509.Certificate, err error) {
	if err := noPrivateKey(codeRequest, text); err != nil {
		return nil, nil, err
	}
	certs, err := mtls.ParseCertificates([]byte(text))
	if err != nil {
		return nil, nil, invalidRequest("the CA is not certificates in PEM, and nothing else", "send the CA's certificates as the foreign CA publishes them", err)
	}
	if len(certs) > maxAuthorities {
		return nil, nil, invalidRequest(fmt.Sprintf("%d certificates are too many for one trust", len(certs)), fmt.Sprintf("use at most %d", maxAuthorities), nil)
	}
	seen := make(map[mtls.Thumbprint]bool)
	var all []*x509.Certificate
	for _, cert := range certs {
		if seen[mtls.ThumbprintOf(cert)] {
			continue
		}
		seen[mtls.ThumbprintOf(cert)] = true
		if err := r.checkAuthority(cert, now); err != nil {
			return nil, nil, err
		}
		all = append(all, cert)
	}
	// Where there is no anchor, NewAnchors refuses it, as it does all else that cannot be one.
	roots, intermediates, _ = trust.SplitAuthorities(all)
	if _, err := mtls.NewAnchors(mtls.AnchorsConfig{Roots: roots, Intermediates: intermediates}); err != nil {
		hint := "send CA certificates with keys of 2048 bits and more"
		if len(roots) == 0 && !slices.ContainsFunc(all, func(cert *x509.Certificate) bool { return !cert.IsCA }) {
			hint = "add the self-signed root: an intermediate alone is not an anchor"
		}
		return nil, nil, invalidRequest(printable(strings.TrimPrefix(err.Error(), "mtls: ")), hint, err)
	}
	return roots, intermediates, nil
}

// checkAuthority refuses our own CA, which vouches only for what is in the inventory, and what vouches for nobody any more.
func (r rules) checkAuthority(cert *x509.Certificate, now time.Time) error {
	for _, own := range r.ownCAs {
		if bytes.Equal(cert.RawSubjectPublicKeyInfo, own.RawSubjectPublicKeyInfo) || cert.CheckSignatureFrom(own) == nil {
			return invalidRequest(fmt.Sprintf("the certificate '%s' is of our own CA", printable(cert.Subject.String())),
				"clients of our own CA are registered without --trust", nil)
		}
	}
	if now.After(cert.NotAfter) {
		return invalidRequest(fmt.Sprintf("the certificate '%s' expired at %s", printable(cert.Subject.String()), cert.NotAfter.UTC().Format(time.RFC3339)),
			"send the CA's present certificates only", nil)
	}
	return nil
}

// revocationList returns the list given by value as DER, judged as it will be when it is used, or nil.
func revocationList(req *TrustRequest, authorities []*x509.Certificate, now time.Time) ([]byte, error) {
	switch {
	case len(req.CRL) > 0 && req.CRLURL != "":
		return nil, invalidRequest("a revocation list is given by value or by address, not both", "give --crl one of the two", nil)
	case req.CRLURL != "":
		return nil, checkCRLURL(req.CRLURL)
	case len(req.CRL) == 0:
		return nil, nil
	}
	der, crl, err := parseCRL(req.CRL)
	if err != nil {
		return nil, invalidRequest("the revocation list is not one complete list in DER or PEM", "send the list as the foreign CA publishes it", err)
	}
	if req.keptCRL {
		now = now.Add(min(0, crl.NextUpdate().Sub(now))) // it may be stale by now, and is then treated as it was
	}
	if now.After(crl.NextUpdate()) {
		return nil, invalidRequest("the revocation list went stale at "+crl.NextUpdate().UTC().Format(time.RFC3339), "fetch the present one, or give its address", nil)
	}
	for _, cert := range authorities {
		if err = crl.Check(cert, now); err == nil {
			return der, nil
		}
	}
	return nil, invalidRequest("the revocation list is not of these CAs", "send the list that one of these certificates signed", err)
}

func parseCRL(content []byte) ([]byte, *pki.CRL, error) {
	if marker := []byte("-----BEGIN "); bytes.Contains(content, marker) {
		block, rest := pem.Decode(content)
		if block == nil || block.Type != "X509 CRL" || bytes.Contains(rest, marker) {
			return nil, nil, errors.New("not one PEM block of type X509 CRL")
		}
		content = block.Bytes
	}
	crl, err := pki.ParseCRL(content)
	return content, crl, err
}

// checkCRLURL accepts http too: a list is signed, and its CA may have no certificate for the web.
func checkCRLURL(raw string) error {
	uri, err := absoluteURI(raw)
	if err != nil || (uri.Scheme != "https" && uri.Scheme != "http") {
		return &Error{Status: http.StatusBadRequest, Code: codeRequest, Err: err,
			Description: fmt.Sprintf("'%s' is not the address of a revocation list", printable(raw)),
			Hint:        "use an http or https address without user and fragment"}
	}
	return nil
}

// revocationMode is what was asked for, or hard where there is a list to judge by.
func revocationMode(req *TrustRequest) (string, error) {
	listed := len(req.CRL) > 0 || req.CRLURL != ""
	switch req.Revocation {
	case "":
		if listed {
			return revocationHard, nil
		}
		return revocationOff, nil
	case revocationOff:
		return revocationOff, nil
	case revocationHard, revocationSoft:
		if !listed {
			return "", invalidRequest(fmt.Sprintf("revocation '%s' needs a revocation list", req.Revocation), "give --crl FILE or --crl URL", nil)
		}
		return req.Revocation, nil
	}
	return "", invalidRequest(fmt.Sprintf("'%s' is not a way to treat revocation", printable(req.Revocation)), "use hard, soft or off", nil)
}

// trustView is how a trust is shown, but for its health.
func trustView(t store.Trust) Trust {
	view := Trust{
		Name: t.Name, Source: "registry", Revocation: t.Revocation, CRLURL: t.CRLURL,
		Anchors: []PinnedCertificate{}, Intermediates: []PinnedCertificate{},
	}
	for _, der := range t.Anchors {
		view.Anchors = append(view.Anchors, certificateSummary(der))
	}
	for _, der := range t.Intermediates {
		view.Intermediates = append(view.Intermediates, certificateSummary(der))
	}
	if crl, err := pki.ParseCRL(t.CRL); len(t.CRL) > 0 && err == nil {
		next := crl.NextUpdate().UTC()
		view.CRLNextUpdate = &next
	}
	if !t.CreatedAt.IsZero() {
		created, updated := t.CreatedAt.UTC(), t.UpdatedAt.UTC()
		view.CreatedAt, view.UpdatedAt = &created, &updated
	}
	return view
}
