// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// Every mode gets tokens of the reference, in handshakes of the kind that it says.
func TestLoad(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "bench")
	server, err := newReference(ca.Issue(t, mtlstest.Leaf{
		CommonName: "reference", DNSNames: []string{"localhost"}, Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}), ca.Pool())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})

	keyPair, err := mtls.NewKeyPair(ca.Issue(t, mtlstest.Leaf{CommonName: "bench"}))
	if err != nil {
		t.Fatal(err)
	}
	target := newTarget("reference", listener.Addr().String(), "/token", form, clientConfig(keyPair, ca.Pool()), os.Getpid())
	for _, m := range modes() {
		t.Run(m.name, func(t *testing.T) {
			s, err := load(t.Context(), target, m, time.Minute, 20)
			if err != nil {
				t.Fatal(err)
			}
			if s.tokens < 20 || s.rate <= 0 || s.p99 <= 0 {
				t.Errorf("got %d tokens, %.0f a second, p99 %v, want at least 20", s.tokens, s.rate, s.p99)
			}
		})
	}
}

// Every flood does what it says to a server that has nothing against it.
func TestFloods(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "bench")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, mtlstest.Leaf{
		CommonName: "server", DNSNames: []string{"localhost"}, Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})}}
	server.StartTLS()
	t.Cleanup(server.Close)
	config := clientConfig(nil, ca.Pool())
	hello, err := clientHello(config)
	if err != nil || len(hello) < 100 || hello[0] != 22 {
		t.Fatalf("%d bytes of a ClientHello, %v", len(hello), err)
	}
	for _, f := range floods() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			counts := make(map[string]int)
			a := &attacker{
				address: server.Listener.Addr().String(), config: config, hello: hello,
				mu: new(sync.Mutex), counts: counts, held: &ring{conns: make([]net.Conn, 1)},
			}
			for range 2 { // the second closes what the first holds
				if err := f.attack(a, t.Context()); err != nil && outcome(err) != "timed out" {
					t.Fatal(err)
				}
			}
			if counts["hellos"]+counts["connections"]+counts["× 401"] != 2 {
				t.Errorf("after two attempts: %v", counts)
			}
			for _, c := range a.held.conns {
				if c != nil {
					_ = c.Close()
				}
			}
		})
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	if got := median([]int{9, 1, 5}); got != 5 {
		t.Errorf("median of 9, 1, 5 = %d", got)
	}
	// Each round is held against its own: a disturbance that both sides see does not count.
	ours, theirs := []sample{{cpu: 12}, {cpu: 24}, {cpu: 90}}, []sample{{cpu: 10}, {cpu: 20}, {cpu: 10}}
	if got := medianRatio(ours, theirs); got != 1.2 {
		t.Errorf("median ratio = %v", got)
	}
}

// Every token that was taken is asked about once, and a bare signature takes time.
func TestDesk(t *testing.T) {
	t.Parallel()
	d := &desk{}
	for _, token := range []string{"a", "b"} {
		if err := d.take([]byte(`{"access_token":"` + token + `"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if d.stock() != 2 || d.take([]byte("x")) == nil {
		t.Errorf("%d tokens in stock", d.stock())
	}
	for _, want := range []string{"client_id=reference&token=b", "client_id=reference&token=a", "client_id=reference&token="} {
		if got := string(d.question("h")); !strings.HasSuffix(got, "\r\n\r\n"+want) || !strings.HasPrefix(got, "POST /oauth2/introspect HTTP/1.1\r\nHost: h\r\n") {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
	if activeAnswer([]byte(`{"active":false}`)) == nil || activeAnswer([]byte(`{"active":true,"iss":"x"}`)) != nil {
		t.Error("an answer is misjudged")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if sign, verify, err := bare(key); err != nil || sign <= 0 || verify <= 0 {
		t.Errorf("%v, %v, %v", sign, verify, err)
	}
}
