// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokenstest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/tokens"
)

// DenyFeed is the identifier of the deny feed, the "aud" of its pages.
const DenyFeed = URL + "/oauth2/denied"

// denyFeedBeat is how long a DenyFeedServer lets a request wait that asks for news.
const denyFeedBeat = time.Second

// DenyPage returns a page of the deny feed, signed. Issuer, audience and time are those of a good page unless they are
// set.
func (i *Issuer) DenyPage(tb testing.TB, p tokens.DenyPage) string {
	tb.Helper()
	if p.Issuer == "" {
		p.Issuer = URL
	}
	if p.Audience == "" {
		p.Audience = DenyFeed
	}
	if p.IssuedAt.IsZero() {
		p.IssuedAt = time.Now()
	}
	header := map[string]any{"alg": i.public.Algorithm, "typ": tokens.DenyType, "kid": i.public.ID}
	return i.Sign(tb, marshal(tb, header), string(p.AppendJSON(nil)))
}

// DenyFeedServer serves a deny feed over TLS until the test ends, to whoever asks: it looks at no token. Its methods are
// safe for concurrent use.
type DenyFeedServer struct {
	URL    string       // where the feed is
	Client *http.Client // trusts the server

	sign         func(tokens.DenyPage) string
	acknowledged atomic.Int64
	polls        atomic.Int64

	mu      sync.Mutex
	denials []tokens.Denial // the position of one is its index and one
	answer  func(w http.ResponseWriter, r *http.Request)
	changed chan struct{} // closed, and replaced, when there is something new
	closed  bool
}

// DenyFeedServer starts a server of a feed that denies nothing yet.
func (i *Issuer) DenyFeedServer(tb testing.TB) *DenyFeedServer {
	tb.Helper()
	s := &DenyFeedServer{changed: make(chan struct{}), sign: func(p tokens.DenyPage) string { return i.DenyPage(tb, p) }}
	server := httptest.NewTLSServer(http.HandlerFunc(s.serve))
	tb.Cleanup(func() {
		s.change(func() { s.closed = true }) // ends all waiting
		server.Close()
	})
	s.URL, s.Client = server.URL+"/oauth2/denied", server.Client()
	return s
}

// Deny adds to what the feed tells.
func (s *DenyFeedServer) Deny(denials ...tokens.Denial) {
	s.change(func() { s.denials = append(s.denials, denials...) })
}

// Answer makes the server answer in another way from now on; nil makes it serve the feed again.
func (s *DenyFeedServer) Answer(answer func(w http.ResponseWriter, r *http.Request)) {
	s.change(func() { s.answer = answer })
}

// Acknowledged returns the position that was last asked behind: how many denials are known to whoever asked. It is
// negative when everything was asked for.
func (s *DenyFeedServer) Acknowledged() int { return int(s.acknowledged.Load()) }

// Polls returns how often the feed was asked.
func (s *DenyFeedServer) Polls() int { return int(s.polls.Load()) }

func (s *DenyFeedServer) change(how func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *DenyFeedServer) serve(w http.ResponseWriter, r *http.Request) {
	since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if err != nil {
		since = -1
	}
	s.acknowledged.Store(since)
	s.polls.Add(1)
	end := time.NewTimer(denyFeedBeat)
	defer end.Stop()
	for waiting := true; ; {
		s.mu.Lock()
		head, answer, changed := int64(len(s.denials)), s.answer, s.changed
		waiting = waiting && !s.closed
		s.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		if waiting && since >= head {
			select {
			case <-changed:
			case <-end.C:
				waiting = false
			case <-r.Context().Done():
				return
			}
			continue
		}
		w.Header().Set("Content-Type", "application/"+tokens.DenyType)
		_, _ = io.WriteString(w, s.page(min(max(since, 0), head))) // who asked may have gone
		return
	}
}

// page returns what stands behind a position.
func (s *DenyFeedServer) page(from int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	head := int64(len(s.denials))
	p := tokens.DenyPage{From: from, Seq: min(head, from+tokens.MaxDenyPageEntries), Head: head}
	p.Entries = s.denials[from:p.Seq]
	return s.sign(p)
}
