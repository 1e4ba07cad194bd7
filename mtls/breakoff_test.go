// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// A connection that is broken off carries nothing any more, whatever of the answer was written already.
func TestBreakOff(t *testing.T) {
	t.Parallel()
	if mtls.BreakOff(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)) {
		t.Error("broke off a connection that is not there")
	}
	// A connection of another listener is not ours to close.
	server, other := net.Pipe()
	defer server.Close()
	defer other.Close()
	r := httptest.NewRequestWithContext(mtls.ConnContext(t.Context(), server), http.MethodGet, "/", nil)
	if mtls.BreakOff(r) {
		t.Error("broke off a connection of another listener")
	}
	ca := mtlstest.NewCA(t, "ca")
	client, cert := mtlstest.NewCA(t, "clients").Issue(t, mtlstest.Leaf{}), ca.Issue(t, mtlstest.ServerLeaf())
	broken := make(chan bool, 2)
	running := mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		broken <- mtls.BreakOff(r)
		broken <- mtls.BreakOff(r)
		_ = http.NewResponseController(w).Flush()
	}), cert, mtls.ClientCertificatesRequested)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, running.URL, nil) // POST: is not sent twice
	if err != nil {
		t.Fatal(err)
	}
	res, err := mtlstest.Client(t, ca.Pool(), &client).Do(r)
	if err == nil {
		_ = res.Body.Close()
		t.Errorf("an answer came: %d", res.StatusCode)
	}
	if first, second := <-broken, <-broken; !first || !second {
		t.Error("could not break off")
	}
}

// The peer of a connection is told ahead once it was asked for, and there is none before, nor where no connection is.
func TestSeenPeer(t *testing.T) {
	t.Parallel()
	if mtls.SeenPeer(t.Context()) != nil {
		t.Error("there is a peer without a connection")
	}
	ca := mtlstest.NewCA(t, "ca")
	client, cert := mtlstest.NewCA(t, "clients").Issue(t, mtlstest.Leaf{}), ca.Issue(t, mtlstest.ServerLeaf())
	seen := make(chan [3]*mtls.Peer, 1)
	running := mtlstest.Server(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		before := mtls.SeenPeer(r.Context())
		peer, _ := mtls.PeerFromRequest(r)
		seen <- [3]*mtls.Peer{before, peer, mtls.SeenPeer(r.Context())}
	}), cert, mtls.ClientCertificatesRequested)
	res, err := mtlstest.Client(t, ca.Pool(), &client).Get(running.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if got := <-seen; got[0] != nil || got[1] == nil || got[2] != got[1] {
		t.Errorf("seen before, found, seen after: %p, %p, %p", got[0], got[1], got[2])
	}
}
