// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// pemFiles writes a certificate, its key in the form that OpenSSL writes, and the service's root.
func (s *service) pemFiles(tb testing.TB, cert tls.Certificate) AddOptions {
	tb.Helper()
	dir := tb.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	put := func(name, kind string, blocks ...[]byte) string {
		var out bytes.Buffer
		for _, block := range blocks {
			_ = pem.Encode(&out, &pem.Block{Type: kind, Bytes: block})
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	return AddOptions{
		Issuer: s.public.URL, ClientID: clientID, RootFile: put("root.pem", "CERTIFICATE", s.root.Certificate().Raw),
		CertFile: put("cert.pem", "CERTIFICATE", cert.Certificate...), KeyFile: put("key.pem", "PRIVATE KEY", der),
	}
}

// A certificate from elsewhere makes a profile that gets tokens, does not renew itself, and takes the next certificate.
func TestAdd(t *testing.T) {
	t.Parallel()
	s := newService(t)
	foreign := mtlstest.NewCA(t, "partner").Intermediate(t, "issuing")
	dir := filepath.Join(t.TempDir(), "profile")
	o := s.pemFiles(t, foreign.Issue(t, halfOver()))
	p, err := Add(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if !p.External() || p.MTLSURL() != s.mtls.URL || p.TokenEndpoint() != s.mtls.URL+"/oauth2/token" || p.ClientID() != clientID {
		t.Errorf("profile %+v", p.info)
	}
	if n := len(p.KeyPair().Current().Certificate); n != 2 {
		t.Errorf("%d certificates in the chain, want 2", n)
	}
	if _, err := p.Token(t.Context(), nil, ""); err != nil {
		t.Error(err)
	}
	if renewed, err := p.RenewIfDue(t.Context()); renewed || err != nil {
		t.Errorf("renewed %t: %v", renewed, err)
	}
	message, hint := wantHint(t, p.Renew(t.Context(), false))
	if !strings.Contains(message, "cannot renew") || !strings.Contains(hint, "certbound profile add "+dir) {
		t.Errorf("%s; %s", message, hint)
	}
	if s.count("renew") != 0 {
		t.Error("the service was asked for a renewal")
	}

	// The next certificate: issuer, root and id are known.
	next := s.pemFiles(t, foreign.Issue(t, mtlstest.Leaf{}))
	again, err := Add(t.Context(), dir, AddOptions{CertFile: next.CertFile, KeyFile: next.KeyFile})
	if err != nil {
		t.Fatal(err)
	}
	if again.Certificate().Equal(p.Certificate()) {
		t.Error("still the old certificate")
	}
	// Another client's profile is not overwritten unasked.
	other := next
	other.ClientID = "other"
	if _, err := Add(t.Context(), dir, other); err == nil {
		t.Error("another client's profile was overwritten")
	}
	// Whoever replaces a profile says all of the new one: nothing of the old one is taken over.
	if _, err := Add(t.Context(), dir, AddOptions{CertFile: next.CertFile, KeyFile: next.KeyFile, Replace: true}); err == nil {
		t.Error("a profile was replaced by half of another")
	}
	other.Replace = true
	if p, err := Add(t.Context(), dir, other); err != nil || p.ClientID() != "other" {
		t.Error(err)
	}
	// Clients of foreign CAs may be called by their SPIFFE ids.
	other.ClientID = "spiffe://partner.example/billing"
	if p, err := Add(t.Context(), dir, other); err != nil || p.ClientID() != other.ClientID {
		t.Error(err)
	}
}

// What the service's own CA issued renews itself, however it came here; a foreign CA that puts our name into its
// certificates is foreign all the same.
func TestAddOwnCertificate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	leaf := mtlstest.Leaf{URIs: []string{pki.ClientURI("x.example", clientID)}}
	for name, tt := range map[string]struct {
		ca       *mtlstest.CA
		external bool
	}{"ours": {s.ca, false}, "foreign": {mtlstest.NewCA(t, "root"), true}} {
		p, err := Add(t.Context(), filepath.Join(t.TempDir(), "p"), s.pemFiles(t, tt.ca.Issue(t, leaf)))
		if err != nil {
			t.Fatal(err)
		}
		if p.External() != tt.external {
			t.Errorf("%s: external %t", name, p.External())
		}
		if err := p.Renew(t.Context(), false); (err != nil) != tt.external {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A lapsed one is told where the next certificate comes from: no code helps here.
func TestLapsedExternalProfile(t *testing.T) {
	t.Parallel()
	f := files(t, mtlstest.NewCA(t, "root"), mtlstest.Leaf{NotAfter: time.Now().Add(-time.Second)})
	f.External = true
	dir := filepath.Join(t.TempDir(), "p")
	write(t, dir, f)
	_, err := Open(dir)
	lapsed, ok := errors.AsType[*LapsedError](err)
	if !ok || !strings.Contains(lapsed.Hint(), "certbound profile add "+dir) || strings.Contains(lapsed.Hint(), "invite") {
		t.Errorf("error %v", err)
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	good := s.pemFiles(t, mtlstest.SelfSigned(t, mtlstest.Leaf{}))
	other := s.pemFiles(t, mtlstest.SelfSigned(t, mtlstest.Leaf{}))
	expired := s.pemFiles(t, mtlstest.SelfSigned(t, mtlstest.Leaf{NotAfter: time.Now().Add(-time.Second)}))
	early := s.pemFiles(t, mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(time.Minute)}))
	for name, tt := range map[string]struct {
		change func(*AddOptions)
		want   string
	}{
		"no issuer":       {func(o *AddOptions) { o.Issuer = "" }, "are needed"},
		"no root":         {func(o *AddOptions) { o.RootFile = "" }, "are needed"},
		"no client id":    {func(o *AddOptions) { o.ClientID = "" }, "are needed"},
		"bad client id":   {func(o *AddOptions) { o.ClientID = "../x" }, "client"},
		"foreign root":    {func(o *AddOptions) { o.RootFile = o.CertFile }, "cannot talk"},
		"root is a key":   {func(o *AddOptions) { o.RootFile = o.KeyFile }, good.KeyFile},
		"another key":     {func(o *AddOptions) { o.KeyFile = other.KeyFile }, other.KeyFile},
		"no such file":    {func(o *AddOptions) { o.CertFile += "x" }, good.CertFile + "x"},
		"expired":         {func(o *AddOptions) { o.CertFile, o.KeyFile = expired.CertFile, expired.KeyFile }, "expired at"},
		"not yet valid":   {func(o *AddOptions) { o.CertFile, o.KeyFile = early.CertFile, early.KeyFile }, "not valid yet"},
		"another issuer":  {func(o *AddOptions) { o.Issuer = s.mtls.URL }, "cannot talk"},
		"issuer is plain": {func(o *AddOptions) { o.Issuer = "http://localhost" }, "cannot talk"},
	} {
		o := good
		tt.change(&o)
		dir := filepath.Join(t.TempDir(), "p")
		_, err := Add(t.Context(), dir, o)
		if message, _ := wantHint(t, err); !strings.Contains(message, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, infoFile)); err == nil {
			t.Errorf("%s: there is a profile", name)
		}
	}
}
