// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls"
)

// allocationsOfToken is how much a token may allocate between net/http and its answer, everything on: limits, metrics,
// registry, signature (some 60), journal. It is what the garbage collector's share of a token hangs on.
const allocationsOfToken = 90

// answerSink is a ResponseWriter that costs nothing itself.
type answerSink struct {
	header http.Header
	status int
}

func (w *answerSink) Header() http.Header         { return w.header }
func (w *answerSink) WriteHeader(status int)      { w.status = status }
func (w *answerSink) Write(p []byte) (int, error) { return len(p), nil }

// A token on a connection that is kept costs a bounded number of allocations.
func TestTokenAllocations(t *testing.T) {
	data := t.TempDir()
	s := built(t, data, func(s *service) { s.cfg.Audit.Sync = "interval" }) // else each waits for the disk
	operators, err := s.adminHandler()
	if err != nil {
		t.Fatal(err)
	}
	h := s.limits.Handler(s.mtlsRouter(operators))
	leaf := operatorPair(t, filepath.Join(data, "admin")).Leaf
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {operatorID}, "resource": {s.adminResource()}}.Encode()
	r := httptest.NewRequestWithContext(mtls.ConnContext(t.Context(), nil), http.MethodPost, pathToken, nil)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
	r.ContentLength = int64(len(form))
	body := strings.NewReader(form)
	r.Body = io.NopCloser(body)
	whole := r.Body
	w := &answerSink{header: make(http.Header)}
	got := testing.AllocsPerRun(300, func() {
		body.Reset(form)
		r.Body, w.status = whole, 0
		clear(w.header)
		if h.ServeHTTP(w, r); w.status != http.StatusOK {
			t.Fatalf("status %d", w.status)
		}
	})
	t.Logf("a token takes %v allocations", got)
	if got > allocationsOfToken+allocationsOfRace {
		t.Errorf("a token takes %v allocations, want at most %d", got, allocationsOfToken+allocationsOfRace)
	}
}
