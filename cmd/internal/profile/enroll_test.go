// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

func TestEnroll(t *testing.T) {
	t.Parallel()
	s := newService(t)
	dir := filepath.Join(t.TempDir(), "a", "profile")
	p, err := Enroll(t.Context(), EnrollOptions{Code: " " + s.invite() + "\n", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{p.Dir(), p.Issuer(), p.ClientID(), p.MTLSURL(), p.TokenEndpoint()}
	want := []string{dir, s.public.URL, clientID, s.mtls.URL, s.mtls.URL + "/oauth2/token"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	modes := map[string]fs.FileMode{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		name, _ := filepath.Rel(dir, path)
		modes[name] = i.Mode()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "profile.json": 0o644, "roots.pem": 0o644, "lock": 0o600,
		"cert.pem": fs.ModeSymlink | 0o777, "key.pem": fs.ModeSymlink | 0o777, "current": fs.ModeSymlink | 0o777,
		"gen-000001": fs.ModeDir | 0o700, "gen-000001/cert.pem": 0o644, "gen-000001/key.pem": 0o600,
	}, modes); diff != "" {
		t.Errorf("the folder (-want +got):\n%s", diff)
	}
	if _, err := mtls.LoadKeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Errorf("the files by their plain names: %v", err)
	}
	if _, err := Open(dir); err != nil {
		t.Error(err)
	}
}

// Without a folder the client id names it, in the working directory; an interrupted run is finished by the next one.
func TestEnrollIntoWorkingDirectory(t *testing.T) {
	s := newService(t)
	t.Chdir(t.TempDir())
	code := s.invite()
	s.set(func() { s.drop = 1 })
	_, err := Enroll(t.Context(), EnrollOptions{Code: code})
	wantHint(t, err)
	if left, _ := filepath.Glob(".certbound-enroll-*/key.pem"); len(left) != 1 {
		t.Errorf("pending keys %v, want one", left)
	}
	p, err := Enroll(t.Context(), EnrollOptions{Code: code})
	if err != nil {
		t.Fatal(err)
	}
	if p.Dir() != clientID {
		t.Errorf("profile in %q", p.Dir())
	}
	names, err := os.ReadDir(".")
	if err != nil || len(names) != 1 || names[0].Name() != clientID {
		t.Errorf("left behind: %v, %v", names, err)
	}

	// A run without a folder that found a foreign profile there is finished by one that names a folder.
	other := newService(t)
	code = other.invite()
	_, err = Enroll(t.Context(), EnrollOptions{Code: code})
	if message, _ := wantHint(t, err); !strings.Contains(message, "another issuer") {
		t.Errorf("error %q", message)
	}
	if p, err = Open(clientID); err != nil || p.Issuer() != s.public.URL {
		t.Errorf("the foreign profile was touched: %v", err)
	}
	if _, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: "elsewhere"}); err != nil {
		t.Error(err)
	}
}

// A lost answer burns nothing: the second run sends the same key and gets the same certificate.
func TestEnrollResumes(t *testing.T) {
	t.Parallel()
	s := newService(t)
	dir := t.TempDir()
	code := s.invite()
	s.set(func() { s.drop = 2 })
	for range 2 {
		if _, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir}); err == nil {
			t.Fatal("no error for a lost answer")
		}
	}
	p, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	hash, err := pki.KeyHash(p.Certificate().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.redeemed) != 1 || !strings.HasPrefix(s.redeemed[hash].Certificate, string(encodeCertificates([]*x509.Certificate{p.Certificate()}))) {
		t.Errorf("%d keys certified; want one, and its certificate", len(s.redeemed))
	}
	if _, err := os.Stat(filepath.Join(dir, pendingDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pending keys are left: %v", err)
	}
}

// A lapsed or broken profile of the same client is brought back by enrolling again; one of another root, issuer or
// client only with Replace, and without it the code is not used up.
func TestEnrollOverProfile(t *testing.T) {
	t.Parallel()
	s := newService(t)
	same := func() Files {
		f := files(t, s.root, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
		f.Issuer = s.public.URL
		return f
	}
	tests := map[string]struct {
		spoil   func(*Files)
		refused string
		used    bool // whether the code is used up by then: the client id is known only from the answer
	}{
		"same":           {func(*Files) {}, "", true},
		"another issuer": {func(f *Files) { f.Issuer = "https://issuer.example" }, "another issuer", false},
		"another root": {func(f *Files) {
			f.Roots = []*x509.Certificate{mtlstest.NewCA(t, "root").Certificate()}
		}, "another root", false},
		"another client": {func(f *Files) { f.ClientID = "other" }, "another client", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := same()
			test.spoil(&f)
			write(t, dir, f)
			code, before := s.invite(), s.count("enroll")
			p, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir})
			if used := s.count("enroll") > before; used != test.used {
				t.Errorf("code used: %t", used)
			}
			if test.refused != "" {
				message, hint := wantHint(t, err)
				if !strings.Contains(message, test.refused) || !strings.Contains(message, dir) || !strings.Contains(hint, "--replace") {
					t.Errorf("error %q, hint %q", message, hint)
				}
				if told := strings.Contains(hint, "certbound client invite"); told != test.used {
					t.Errorf("hint %q: that the code is used up is said: %t", hint, told)
				}
				kept, err := load(dir)
				if err != nil || !kept.Certificate().Equal(f.Chain[0]) {
					t.Errorf("the old profile was touched: %v", err)
				}
				p, err = Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir, Replace: true})
				if err != nil {
					t.Fatal(err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if p.ClientID() != clientID || p.Issuer() != s.public.URL {
				t.Errorf("profile of %s at %s", p.ClientID(), p.Issuer())
			}
		})
	}
}

func TestEnrollBadCode(t *testing.T) {
	t.Parallel()
	s := newService(t)
	good := s.invite()
	for _, code := range []string{"", "x", "cb1.", good[:len(good)-2], good + "A", strings.ToUpper(good)} {
		dir := t.TempDir()
		_, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir})
		message, _ := wantHint(t, err)
		if len(code) > 20 && strings.Contains(message, code[10:20]) {
			t.Errorf("the error repeats the code: %s", message)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	s.invite() // voids the good one
	_, err := Enroll(t.Context(), EnrollOptions{Code: good, Dir: t.TempDir()})
	if message, _ := wantHint(t, err); !strings.Contains(message, "unknown code") {
		t.Errorf("error %q", message)
	}
}

// The root is the one in the code, or nothing is sent: no key, no signature, nobody in between.
func TestEnrollPinsTheRoot(t *testing.T) {
	t.Parallel()
	s := newService(t)
	foreign := newService(t)
	refused := func(name string, root [32]byte, location string) string {
		t.Helper()
		code, err := pki.NewCode(root, location)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		_, err = Enroll(t.Context(), EnrollOptions{Code: code.String(), Dir: dir})
		message, _ := wantHint(t, err)
		if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) != 0 {
			t.Errorf("%s: a key was made: %v", name, left)
		}
		return message
	}
	digest := func(c *x509.Certificate) [32]byte { return sha256.Sum256(c.Raw) }
	refused("another root", digest(foreign.root.Certificate()), s.public.URL)
	refused("random root", [32]byte(randomBytes(32)), s.public.URL)

	// Somebody in between serves the right root and hopes that nobody looks at his own certificate.
	serve := func(cert tls.Certificate, pem []byte) *mtlstest.Running {
		return mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/pki/roots.pem" {
				t.Errorf("%s %s reached a server that is not ours", r.Method, r.URL)
			}
			_, _ = w.Write(pem)
		}), cert, mtls.ClientCertificatesIgnored)
	}
	ours := s.ca.Issue(t, mtlstest.ServerLeaf())
	roots := encodeCertificates([]*x509.Certificate{s.root.Certificate()})
	otherName := mtlstest.ServerLeaf()
	otherName.IPs, otherName.DNSNames = nil, []string{"other.example"}
	for name, server := range map[string]*mtlstest.Running{
		"foreign certificate":  serve(foreign.ca.Issue(t, mtlstest.ServerLeaf()), roots),
		"other name":           serve(s.ca.Issue(t, otherName), roots),
		"a client's":           serve(s.ca.Issue(t, mtlstest.Leaf{IPs: mtlstest.ServerLeaf().IPs}), roots),
		"no roots":             serve(ours, []byte("nothing")),
		"root is no authority": serve(ours, encodeCertificates([]*x509.Certificate{foreign.ca.Certificate()})),
	} {
		refused(name, digest(s.root.Certificate()), server.URL)
	}
	// A server's own certificate is no root, though its digest be in the code.
	refused("leaf", digest(ours.Leaf), serve(ours, encodeCertificates([]*x509.Certificate{ours.Leaf})).URL)
	endless := serve(ours, slices.Repeat(roots, 2*maxFile/len(roots)))
	if message := refused("endless", digest(s.root.Certificate()), endless.URL); !strings.Contains(message, "longer") {
		t.Errorf("error %q", message)
	}
}

// CL-03: RFC 8414, Section 3.3: the issuer to be signed for is the one in the code, and its metadata must say so.
func TestRFC8414_3_3_EnrollIssuerMismatch(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.set(func() { s.issuer = s.mtls.URL })
	_, err := Enroll(t.Context(), EnrollOptions{Code: s.invite(), Dir: t.TempDir()})
	wantHint(t, err)
	if n := s.count("enroll"); n != 0 {
		t.Errorf("%d redemptions", n)
	}
}

// What comes back is for our key, from our root and for the client it names, or it is not used.
func TestEnrollRefusesWrongAnswers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	foreign := mtlstest.NewCA(t, "foreign")
	key := func(a *pki.EnrollResponse) any {
		certs, err := mtls.ParseCertificates([]byte(a.Certificate))
		if err != nil {
			t.Fatal(err)
		}
		return certs[0].PublicKey
	}
	named := func(ids ...string) mtlstest.Leaf {
		leaf := mtlstest.Leaf{CommonName: clientID}
		for _, id := range ids {
			leaf.URIs = append(leaf.URIs, pki.ClientURI("x.example", id))
		}
		return leaf
	}
	past, eku := named(clientID), named(clientID)
	past.NotBefore, past.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	eku.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	reissue := func(ca *mtlstest.CA, leaf mtlstest.Leaf) func(*pki.EnrollResponse) {
		return func(a *pki.EnrollResponse) { a.Certificate = s.respond(ca, leaf, key(a)).Certificate }
	}
	tests := map[string]func(*pki.EnrollResponse){
		"another key": func(a *pki.EnrollResponse) {
			a.Certificate = s.respond(s.ca, named(clientID), mtlstest.NewKey(t).Public()).Certificate
		},
		"foreign root":     reissue(foreign, named(clientID)),
		"another client":   reissue(s.ca, named("other")),
		"no client":        reissue(s.ca, named()),
		"two clients":      reissue(s.ca, named(clientID, "other")),
		"expired":          reissue(s.ca, past),
		"for code signing": reissue(s.ca, eku),
		"no certificate":   func(a *pki.EnrollResponse) { a.Certificate = "" },
		"other id":         func(a *pki.EnrollResponse) { a.ClientID = "other" },
		"bad id": func(a *pki.EnrollResponse) {
			a.Certificate, a.ClientID = s.respond(s.ca, named("../x"), key(a)).Certificate, "../x"
		},
		"other issuer":   func(a *pki.EnrollResponse) { a.Issuer = "https://other.example" },
		"http":           func(a *pki.EnrollResponse) { a.MTLSURL = strings.Replace(a.MTLSURL, "https", "http", 1) },
		"no endpoint":    func(a *pki.EnrollResponse) { a.TokenEndpoint = "" },
		"other endpoint": func(a *pki.EnrollResponse) { a.TokenEndpoint = "https://other.example/token" },
		"roots without ours": func(a *pki.EnrollResponse) {
			a.Roots = string(encodeCertificates([]*x509.Certificate{foreign.Certificate()}))
		},
		"no roots": func(a *pki.EnrollResponse) { a.Roots = "" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			code := s.invite()
			s.set(func() { s.spoil = spoil })
			_, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir})
			s.set(func() { s.spoil = nil })
			wantHint(t, err)
			if _, err := os.Lstat(filepath.Join(dir, infoFile)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a profile was written: %v", err)
			}
			if _, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir}); err != nil {
				t.Errorf("the right answer afterwards: %v", err)
			}
		})
	}
}

// A code that was refused for good leaves no key behind, and no folder that was not there before. A code that may still be
// good keeps the key that it may have been redeemed with.
func TestRefusedEnrolmentLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.invite()
	for name, test := range map[string]struct {
		status int
		code   string
		kept   bool
	}{
		"refused":      {http.StatusBadRequest, "invalid_grant", false},
		"forbidden":    {http.StatusForbidden, "invalid_grant", false},
		"bad request":  {http.StatusBadRequest, "invalid_request", false},
		"too often":    {http.StatusTooManyRequests, "slow_down", true},
		"down":         {http.StatusServiceUnavailable, "temporarily_unavailable", true},
		"broken":       {http.StatusInternalServerError, "invalid_request", true},
		"not the code": {http.StatusNotFound, "", true},
	} {
		answering(t, s, test.status, test.code)
		dir := filepath.Join(t.TempDir(), "profile")
		_, err := Enroll(t.Context(), EnrollOptions{Code: s.invite(), Dir: dir})
		if refused, ok := errors.AsType[*APIError](err); !ok || refused.Status != test.status {
			t.Errorf("%s: %v", name, err)
		}
		keys, _ := filepath.Glob(filepath.Join(dir, pendingDir, "*.pem"))
		_, missing := os.Lstat(dir)
		if (len(keys) == 1) != test.kept || test.kept != (missing == nil) {
			t.Errorf("%s: keys %v, folder: %v", name, keys, missing)
		}
		there := t.TempDir()
		if err := os.Mkdir(filepath.Join(there, pendingDir), 0o700); err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(there, pendingDir, rekeyFile)
		if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Enroll(t.Context(), EnrollOptions{Code: s.invite(), Dir: there})
		keys, _ = filepath.Glob(filepath.Join(there, pendingDir, "enroll-*.pem"))
		if _, err := os.Lstat(other); err != nil || (len(keys) == 1) != test.kept {
			t.Errorf("%s: in a folder that was there: keys %v, the renewal's: %v", name, keys, err)
		}
	}
}

// A service that cannot be reached leaves no empty folder behind; one that was there stays.
func TestEnrollUnreachableLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	code := s.invite()
	_ = s.public.HTTP.Close()
	there := t.TempDir()
	for dir, stays := range map[string]bool{there: true, filepath.Join(t.TempDir(), "new"): false} {
		_, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: dir})
		wantHint(t, err)
		if _, err := os.Lstat(dir); stays != (err == nil) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// A run without a folder that kept its key clears it away when the code turns out to be void.
func TestRefusedAfterLostAnswer(t *testing.T) {
	s := newService(t)
	t.Chdir(t.TempDir())
	code := s.invite()
	s.set(func() { s.drop = 1 })
	_, err := Enroll(t.Context(), EnrollOptions{Code: code})
	wantHint(t, err)
	s.invite()
	_, err = Enroll(t.Context(), EnrollOptions{Code: code})
	wantHint(t, err)
	if left, err := os.ReadDir("."); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// answering makes enrolment answer with a refusal.
func answering(t *testing.T, s *service, status int, code string) {
	t.Helper()
	s.set(func() {
		s.refuse = func(w http.ResponseWriter) { answerJSON(w, status, map[string]any{"error": code}) }
	})
}

// Nothing is sent where a redirect points, least of all the redemption.
func TestEnrollFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	s := newService(t)
	elsewhere := mtlstest.Server(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s followed a redirect", r.Method, r.URL)
	}), s.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
	s.set(func() { s.redirect = elsewhere.URL })
	_, err := Enroll(t.Context(), EnrollOptions{Code: s.invite(), Dir: t.TempDir()})
	if refused, ok := errors.AsType[*APIError](err); !ok || refused.Status != http.StatusTemporaryRedirect {
		t.Errorf("error %v", err)
	}
}

func TestEnrollUnreachable(t *testing.T) {
	t.Parallel()
	s := newService(t)
	code := s.invite()
	_ = s.public.HTTP.Close()
	_, err := Enroll(t.Context(), EnrollOptions{Code: code, Dir: t.TempDir()})
	if message, _ := wantHint(t, err); !strings.Contains(message, s.public.URL) {
		t.Errorf("error %q", message)
	}
}
