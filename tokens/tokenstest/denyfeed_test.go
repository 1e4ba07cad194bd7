// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// A program's own tests revoke a token, and see it refused; the server may fail meanwhile.
func TestDenyFeedServer(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.DenyFeedServer(t)
	list := make([]tokens.Denial, tokens.MaxDenyPageEntries+1) // two pages
	for n := range list {
		list[n] = tokens.Denial{TokenID: string(rune('A' + n)), Until: time.Now().Add(time.Hour)}
	}
	server.Deny(list...)
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: server.URL, Keys: issuer.Keys(), Client: server.Client, Stale: tokens.StaleRefuse})
	if err != nil {
		t.Fatal(err)
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: issuer.Keys(), Denied: feed.Denied})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { _ = feed.Run(ctx) })
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not within 20 s: ", what)
			}
		}
	}
	wait("all is known", func() bool { return server.Acknowledged() == len(list) && feed.Err() == nil })
	peer := mtlstest.PeerOf(mtlstest.SelfSigned(t, mtlstest.Leaf{}))
	raw := issuer.Token(t, peer)
	if _, err := v.Verify(t.Context(), raw, peer); err != nil {
		t.Error(err)
	}
	server.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	server.Deny(tokens.Denial{Thumbprint: peer.Thumbprint(), Until: time.Now().Add(time.Hour)})
	polls := server.Polls()
	wait("it fails", func() bool { return server.Polls() > polls+1 })
	if _, err := v.Verify(t.Context(), raw, peer); err != nil {
		t.Error("denied though nothing was told: ", err)
	}
	server.Answer(nil)
	wait("it is denied", func() bool { _, err := v.Verify(t.Context(), raw, peer); return err != nil })
}
