// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// halfOver is a certificate past half its life.
func halfOver() mtlstest.Leaf {
	return mtlstest.Leaf{NotBefore: time.Now().Add(-40 * time.Minute), NotAfter: time.Now().Add(20 * time.Minute)}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	for name, rekey := range map[string]bool{"same key": false, "new key": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newService(t).enrolled(t)
			pair, before := p.KeyPair(), p.Certificate()
			if err := p.Renew(t.Context(), rekey); err != nil {
				t.Fatal(err)
			}
			after := p.Certificate()
			if after.Equal(before) || !pair.Current().Leaf.Equal(after) {
				t.Error("the key pair still holds the old certificate")
			}
			if changed := !sameKey(before.PublicKey, after.PublicKey); changed != rekey {
				t.Errorf("key changed: %t", changed)
			}
			again, err := Open(p.Dir())
			if err != nil || !again.Certificate().Equal(after) {
				t.Errorf("the folder holds another certificate: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(p.Dir(), pendingDir, "*")); len(left) != 0 {
				t.Errorf("pending keys: %v", left)
			}
			if err := p.Renew(t.Context(), false); err != nil {
				t.Errorf("renewing the renewed: %v", err)
			}
		})
	}
}

// A lost answer: the new key is kept and goes out again, also when the second run does not ask for a new key.
func TestRenewResumesRekey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	before := p.Certificate()
	s.set(func() { s.drop = 1 })
	if err := p.Renew(t.Context(), true); err == nil {
		t.Fatal("no error for a lost answer")
	}
	if !p.Certificate().Equal(before) {
		t.Error("a failed renewal changed the profile")
	}
	pending, err := readKey(p.rekeyPath())
	if err != nil {
		t.Fatal(err)
	}
	p, err = Open(p.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Renew(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if !sameKey(p.Certificate().PublicKey, pending.Public()) {
		t.Error("the pending key was not used: the service has two certificates of one parent with different keys")
	}
	if len(s.renewed) != 1 {
		t.Errorf("%d renewals, want one", len(s.renewed))
	}
	if _, err := os.Stat(p.rekeyPath()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pending key is left: %v", err)
	}
}

func TestRenewIfDue(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	if renewed, err := p.RenewIfDue(t.Context()); renewed || err != nil {
		t.Errorf("a fresh certificate: renewed %t, %v", renewed, err)
	}
	s.set(func() { s.leaf = halfOver() })
	p = s.enrolled(t)
	s.set(func() { s.leaf = mtlstest.Leaf{} })

	// Several processes at once: one renews, the others find it done.
	profiles := []*Profile{p, p}
	for range 4 {
		other, err := Open(p.Dir())
		if err != nil {
			t.Fatal(err)
		}
		profiles = append(profiles, other)
	}
	var mu sync.Mutex
	count := 0
	var done sync.WaitGroup
	for _, p := range profiles {
		done.Go(func() {
			renewed, err := p.RenewIfDue(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if renewed {
				count++
			}
		})
	}
	done.Wait()
	if count != 1 || s.count("renew") != 1 {
		t.Errorf("%d renewals, %d requests, want one", count, s.count("renew"))
	}
	for i, other := range profiles {
		if !other.Certificate().Equal(p.Certificate()) {
			t.Errorf("profile %d did not take over the renewed certificate", i)
		}
	}
}

func TestRenewLapsed(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	f := files(t, s.root, mtlstest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	f.Issuer = s.public.URL
	write(t, p.Dir(), f)
	err := p.Renew(t.Context(), false)
	if _, ok := errors.AsType[*LapsedError](err); !ok {
		t.Errorf("error %v", err)
	}
	if n := s.count("renew"); n != 0 {
		t.Errorf("%d requests with a lapsed certificate", n)
	}
}

// A renewal is for the same client and issuer, and for our key, or the profile stays as it is.
func TestRenewRefusesWrongAnswers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	before := p.Certificate()
	for name, spoil := range map[string]func(*pki.EnrollResponse){
		"another client": func(a *pki.EnrollResponse) {
			leaf := mtlstest.Leaf{URIs: []string{pki.ClientURI("x.example", "other")}}
			a.ClientID, a.Certificate = "other", s.respond(s.ca, leaf, before.PublicKey).Certificate
		},
		"another issuer": func(a *pki.EnrollResponse) { a.Issuer = "https://other.example" },
		"another key": func(a *pki.EnrollResponse) {
			leaf := mtlstest.Leaf{URIs: []string{pki.ClientURI("x.example", clientID)}}
			a.Certificate = s.respond(s.ca, leaf, mtlstest.NewKey(t).Public()).Certificate
		},
		"foreign root": func(a *pki.EnrollResponse) {
			leaf := mtlstest.Leaf{URIs: []string{pki.ClientURI("x.example", clientID)}}
			a.Certificate = s.respond(mtlstest.NewCA(t, "foreign"), leaf, before.PublicKey).Certificate
		},
	} {
		s.set(func() { s.spoil = spoil })
		if message, _ := wantHint(t, p.Renew(t.Context(), false)); !strings.Contains(message, "cannot be used") {
			t.Errorf("%s: error %q", name, message)
		}
		if again, err := Open(p.Dir()); err != nil || !again.Certificate().Equal(before) {
			t.Errorf("%s: the profile changed: %v", name, err)
		}
	}
}

// A folder that was given to another client meanwhile is not renewed under the old name.
func TestRenewOfReplacedFolder(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	f := files(t, s.root, mtlstest.Leaf{})
	f.ClientID, f.Replace = "other", true
	write(t, p.Dir(), f)
	if message, _ := wantHint(t, p.Renew(t.Context(), false)); !strings.Contains(message, "replaced") {
		t.Errorf("error %q", message)
	}
}

func TestRenewRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	s.set(func() { s.ca = mtlstest.NewCA(t, "another") }) // whom it accepts from now on
	err := p.Renew(t.Context(), false)
	refused, ok := errors.AsType[*APIError](err)
	if !ok || refused.Code != "invalid_client" {
		t.Fatalf("error %v", err)
	}
	if _, hint := wantHint(t, err); !strings.Contains(hint, "certbound client invite "+clientID) {
		t.Errorf("hint %q", hint)
	}
}
