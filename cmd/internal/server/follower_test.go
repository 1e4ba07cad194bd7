// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/resource"
)

// following is a resource server that follows the deny feed, as a stranger's program would.
type following struct {
	*mtlstest.Running
	feed   *tokens.DenyFeed
	ahead  atomic.Int64 // nanoseconds by which the feed's clock is ahead
	causes chan error   // why streams ended
}

// following starts one for the ledger, as the client id, once it knows what is denied.
func (in *instance) following(id string) *following {
	in.tb.Helper()
	cert := in.enrolledWith(map[string]any{"client_id": id})
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": ledger, "scope": write, "servers": []string{id}}, nil)
	f := &following{causes: make(chan error, 10)}
	keyPair, err := mtls.NewKeyPair(cert)
	if err != nil {
		in.tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	in.tb.Cleanup(stop)
	bearer, err := client.New(ctx, client.Config{
		Issuer: in.issuer, ClientID: id, KeyPair: keyPair, Roots: in.roots(),
		Scopes: []string{scopeDenied}, Resources: []string{in.issuer + pathDenied}, Origins: []string{in.mtls},
	})
	if err != nil {
		in.tb.Fatal(err)
	}
	in.tb.Cleanup(bearer.Close)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: in.issuer + pathKeys, Client: in.client(nil)})
	if err != nil {
		in.tb.Fatal(err)
	}
	f.feed, err = tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: in.issuer, URL: in.mtls + pathDenied, Keys: keys, Client: &http.Client{Transport: bearer}, Stale: tokens.StaleRefuse,
		Now: func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) },
	})
	if err != nil {
		in.tb.Fatal(err)
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: in.issuer, Audience: ledger, Keys: keys, Denied: f.feed.Denied})
	if err != nil {
		in.tb.Fatal(err)
	}
	guard, err := resource.New(resource.Config{Verifier: v, Denials: f.feed})
	if err != nil {
		in.tb.Fatal(err)
	}
	f.Running = mtlstest.Server(in.tb, guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" {
			return
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		f.causes <- context.Cause(r.Context())
	}), write), mtlstest.NewCA(in.tb, "web").Issue(in.tb, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	var all sync.WaitGroup
	all.Go(func() { _ = f.feed.Run(ctx) })
	in.tb.Cleanup(func() { stop(); all.Wait() })
	eventually(in.tb, 20*time.Second, "what is denied is known", func() bool { return f.feed.Err() == nil })
	return f
}

// RV-06, FA-02: RFC 7009, Section 3: in FAPI 2.0 mode, with the real service and our own client, verifier and middleware: what
// is revoked by token, certificate or client is refused at the resource server within a second, its streams end, and the
// operator is told that the resource server knows; one that hears nothing for too long refuses everything.
func TestRFC7009_3_ResourceServerFollows(t *testing.T) {
	t.Parallel()
	cfg := fapiConfig(t, t.TempDir())
	in := start(t, cfg)
	api := in.following("ledger-server")
	enrolled := func(id string) (tls.Certificate, string) {
		cert := in.enrolled(id)
		answer := in.token(in.client(&cert), id)
		wantToken(t, answer)
		return cert, answer.Token
	}
	use := func(cert *tls.Certificate, token string) int {
		return call(t, api.Running, cert, "Bearer "+token).StatusCode
	}
	other, stays := enrolled("stays")
	for what, revoke := range map[string]func(id string, cert tls.Certificate, token string){
		"token": func(id string, cert tls.Certificate, token string) {
			if err := in.revokeToken(cert, id, token); err != nil {
				t.Fatal(err)
			}
		},
		"certificate": func(id string, _ tls.Certificate, _ string) {
			var done admin.Revocation
			in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": id, "wait_resources": 10}, &done)
			if want := []admin.Follower{{ClientID: "ledger-server", Has: true}}; !slices.Equal(done.Resources, want) {
				t.Errorf("%+v", done.Resources)
			}
		},
		"client": func(id string, _ tls.Certificate, _ string) {
			in.mustOperate(http.MethodPost, "/clients/"+id+"/disable", nil, nil)
		},
	} {
		id := "by-" + what
		cert, token := enrolled(id)
		if status := use(&cert, token); status != http.StatusOK {
			t.Fatalf("%s: %d", what, status)
		}
		stream := api.stream(t, &cert, token)
		began := time.Now()
		revoke(id, cert, token)
		done := time.Now()
		for use(&cert, token) == http.StatusOK {
			if time.Since(done) > time.Second {
				t.Fatalf("%s: accepted a second after its revocation", what)
			}
		}
		t.Logf("%s: refused %s after the revocation was sent, %s after its answer", what, time.Since(began), time.Since(done))
		if status := use(&cert, token); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", what, status)
		}
		if cause := <-api.causes; !errors.Is(cause, resource.ErrDenied) {
			t.Errorf("%s: the stream ended with %v", what, cause)
		}
		if _, err := io.Copy(io.Discard, stream); err == nil {
			t.Errorf("%s: the client takes the stream for complete", what)
		}
		if status := use(&other, stays); status != http.StatusOK {
			t.Errorf("another's token: %d", status)
		}
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	if status := use(&other, stays); status != http.StatusOK {
		t.Errorf("as soon as the service stops: %d", status)
	}
	api.ahead.Store(int64(tokens.DefaultDenyFeedMaxAge))
	if status := use(&other, stays); status != http.StatusServiceUnavailable {
		t.Errorf("without a word for 30 s: %d", status)
	}
}

// stream opens a request that does not end by itself.
func (f *following) stream(t *testing.T, cert *tls.Certificate, token string) io.Reader {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "text/event-stream")
	//nolint:gosec // whose certificate the API has is not what is tested
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}}}
	t.Cleanup(transport.CloseIdleConnections)
	res, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("the stream: %s", res.Status)
	}
	return res.Body
}
