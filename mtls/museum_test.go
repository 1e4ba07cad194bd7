// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"errors"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// judge does what a server does about a client that presents e, once its handshake is complete.
func judge(e mtlstest.Exhibit) (mtlstest.Verdict, error) {
	p := e.Peer()
	chain, err := p.ChainTo(e.Anchors, e.Now)
	switch {
	case err != nil:
		return mtlstest.RefusedByAnchors, err
	case len(chain) < 2 || chain[0] != p.Certificate():
		return 0, errors.New("the chain does not begin with the leaf")
	case !e.Subject.Matches(p.Certificate()):
		return mtlstest.RefusedBySubject, nil
	default:
		return mtlstest.Accepted, nil
	}
}

// XP-01, XP-02, XP-03, XP-04, XP-05, XP-06, XP-07, XP-08, XP-09, XP-10, XP-14, XP-15, XP-16: RFC 5280, Section 6.1:
// every certificate of the museum that gets through a handshake is refused for its one defect, and those that only
// look wrong are not.
func TestRFC5280_6_1_Museum(t *testing.T) {
	t.Parallel()
	for _, e := range mtlstest.Museum(t) {
		if e.Must == mtlstest.RefusedInHandshake {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			if e.Must == mtlstest.RefusedByAnchors && !e.Subject.Matches(e.Chain.Leaf) {
				t.Error("a second defect: the subject does not match")
			}
			for range 2 { // built, and then remembered
				if got, err := judge(e); got != e.Must || !errors.Is(err, e.Err) {
					t.Errorf("%s: %s, %v, want %s, %v", e.Clause, got, err, e.Must, e.Err)
				}
			}
		})
	}
}

// XP-16, TLS-12, TLS-13, CB-01: RFC 8446, Section 4.4.2: the handshake breaks off what cannot be parsed, is too large
// or has a key that is not acceptable, and no more than that, in TLS 1.2 and 1.3.
func TestRFC8446_4_4_2_MuseumInTheHandshake(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "servers")
	var complaints syncBuffer
	srv := mtlstest.StartServer(t, &http.Server{Handler: http.HandlerFunc(whoami), ErrorLog: log.New(&complaints, "", 0)},
		ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	// Most of the refused cannot sign with their key. That must not be what they are refused for.
	unproved := 0
	t.Cleanup(func() {
		if got := strings.Count(complaints.String(), "invalid signature"); got > unproved {
			t.Errorf("%d handshakes were refused for their signature, want at most %d:\n%s", got, unproved, complaints.String())
		}
	})
	for _, e := range mtlstest.Museum(t) {
		for version, number := range versions {
			if e.Name == "leaf of another client before mine" || e.Name == "certificate of another client without its key" {
				unproved++
			}
			t.Run(e.Name+" "+version, func(t *testing.T) {
				t.Parallel()
				resp, err := mtlstest.Presenter(t, ca.Pool(), e.Chain, number).Get(srv.URL)
				if e.Must == mtlstest.RefusedInHandshake {
					if err == nil {
						_ = resp.Body.Close()
						t.Errorf("%s: the handshake went through", e.Clause)
					}
					return
				}
				if err != nil {
					t.Fatalf("%s: %v", e.Clause, err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if want := mtls.ThumbprintOf(e.Chain.Leaf).String(); err != nil || !strings.HasPrefix(string(body), want) {
					t.Errorf("%s: %s %q, %v", e.Clause, resp.Status, body, err)
				}
			})
		}
	}
}

// syncBuffer collects what a server writes to its log.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The museum is quick to build and has something for every verdict.
func TestMuseumIsCheap(t *testing.T) {
	t.Parallel()
	start := time.Now()
	exhibits := mtlstest.Museum(t)
	t.Logf("%d exhibits in %v", len(exhibits), time.Since(start))
	seen := map[mtlstest.Verdict]int{}
	for _, e := range exhibits {
		seen[e.Must]++
		if e.Name == "" || e.Clause == "" || len(e.Chain.Certificate) == 0 || e.Now.IsZero() || e.Anchors == nil || e.Subject.IsZero() {
			t.Errorf("%q lacks something", e.Name)
		}
		if (e.Err != nil) != (e.Must == mtlstest.RefusedByAnchors) {
			t.Errorf("%q: error %v for %s", e.Name, e.Err, e.Must)
		}
	}
	for _, v := range []mtlstest.Verdict{mtlstest.RefusedInHandshake, mtlstest.RefusedByAnchors, mtlstest.RefusedBySubject, mtlstest.Accepted} {
		if seen[v] == 0 {
			t.Errorf("nothing for %s", v)
		}
	}
}
