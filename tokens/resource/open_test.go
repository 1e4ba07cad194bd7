// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
	"github.com/certbound/certbound/tokens/tokenstest"
)

var (
	_ resource.Denials = (*tokens.DenyFeed)(nil)
	_ resource.Denials = (*tokens.DenyList)(nil)
)

// streams is a server of open requests over TLS, whose Guard knows a DenyList.
type streams struct {
	*fixture
	list   tokens.DenyList
	ca     *mtlstest.CA
	guard  *resource.Guard
	server *mtlstest.Running
	ended  chan error // what each handler ended with: the cause of its context, when that is done
}

// handlers that never end by themselves: one waits for its context, the others do not look at it.
var handlers = map[string]func(http.ResponseWriter, *http.Request) error{
	"waits": func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return nil },
	"reads": func(_ http.ResponseWriter, r *http.Request) error { _, err := io.Copy(io.Discard, r.Body); return err },
	"writes": func(w http.ResponseWriter, _ *http.Request) error {
		for {
			if _, err := io.WriteString(w, "event\n"); err != nil {
				return err
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	},
}

func newStreams(t *testing.T) *streams {
	t.Helper()
	s := &streams{fixture: newFixture(t), ca: mtlstest.NewCA(t, "clients"), ended: make(chan error, 100)}
	s.config.Certificate, s.config.Denials = nil, &s.list
	s.watch(t)
	s.server = mtlstest.Server(t, s.guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is
		_, _ = io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		err := handlers[strings.TrimPrefix(r.URL.Path, "/")](w, r)
		if cause := context.Cause(r.Context()); cause != nil {
			err = cause
		}
		s.ended <- err
	})), s.ca.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	return s
}

// watch makes the verifier and the guard, which know what the list denies.
func (s *streams) watch(t *testing.T) {
	t.Helper()
	var err error
	s.config.Verifier, err = tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: s.issuer.Keys(),
		Denied: func(_ context.Context, c *tokens.Claims, keyID string) (bool, error) {
			return s.list.Denies(c, keyID), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.guard, err = resource.New(s.config); err != nil {
		t.Fatal(err)
	}
}

// stream opens a request that does not end, and returns its response once it has begun.
func (s *streams) stream(t *testing.T, hc *http.Client, handler, raw string) *http.Response {
	t.Helper()
	var body io.Reader
	if handler == "reads" {
		in, hold := io.Pipe()
		t.Cleanup(func() { _ = hold.Close() })
		body = in
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.server.URL+"/"+handler, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+raw)
	res, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	if _, err := io.ReadFull(res.Body, make([]byte, len("begun\n"))); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	return res
}

func (s *streams) open(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); s.guard.Open() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests are under way, want %d", s.guard.Open(), want)
		}
	}
}

// RV-06: RFC 7009, Section 3: a stream ends when the token with which it was opened is revoked, whatever the handler
// does, and so that nobody takes it for complete. Others go on, on the same server and for the same client.
func TestRFC7009_3_OpenStreams(t *testing.T) {
	t.Parallel()
	for _, protocol := range []int{1, 2} {
		for handler := range handlers {
			t.Run(fmt.Sprintf("HTTP/%d %s", protocol, handler), func(t *testing.T) {
				t.Parallel()
				s := newStreams(t)
				caller := func(cert *mtls.Peer, hc *http.Client) (string, *http.Client) {
					hc.Transport.(*http.Transport).ForceAttemptHTTP2 = protocol == 2
					hc.Timeout = 30 * time.Second
					return s.issuer.Token(t, cert), hc
				}
				bad, good := s.ca.Issue(t, mtlstest.Leaf{CommonName: "bad"}), s.ca.Issue(t, mtlstest.Leaf{CommonName: "good"})
				badToken, badClient := caller(mtlstest.PeerOf(bad), mtlstest.Client(t, s.ca.Pool(), &bad))
				goodToken, goodClient := caller(mtlstest.PeerOf(good), mtlstest.Client(t, s.ca.Pool(), &good))
				cut := s.stream(t, badClient, handler, badToken)
				stays := s.stream(t, goodClient, "writes", goodToken)
				if cut.ProtoMajor != protocol {
					t.Fatal(cut.Proto)
				}
				s.open(t, 2)
				began := time.Now()
				if err := s.list.Add(tokens.Denial{Thumbprint: mtlstest.PeerOf(bad).Thumbprint(), Until: time.Now().Add(time.Hour)}); err != nil {
					t.Fatal(err)
				}
				if err := <-s.ended; !errors.Is(err, resource.ErrDenied) {
					t.Errorf("the handler ended with %v", err)
				}
				if _, err := io.Copy(io.Discard, cut.Body); err == nil {
					t.Error("the client takes what it got for all")
				}
				t.Logf("cut off after %v", time.Since(began))
				s.open(t, 1)
				if _, err := io.ReadFull(stays.Body, make([]byte, 10*len("event\n"))); err != nil {
					t.Errorf("another's stream: %v", err)
				}
				again := s.stream(t, goodClient, "waits", goodToken)
				s.open(t, 2)
				_ = again.Body.Close() // who leaves is forgotten
				if err := <-s.ended; errors.Is(err, resource.ErrDenied) || err == nil {
					t.Errorf("who left: %v", err)
				}
				s.open(t, 1)
				if n := strings.Count(s.log.String(), "request cut off"); n != 1 || strings.Contains(s.log.String(), badToken) {
					t.Errorf("%d lines: %s", n, s.log)
				}
			})
		}
	}
}

// Each kind of denial ends the requests that it names: by token, client and key too.
func TestOpenRequestsOfEachKind(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour)
	for name, denial := range map[string]func(f *fixture, id string) tokens.Denial{
		"token": func(_ *fixture, id string) tokens.Denial { return tokens.Denial{TokenID: id, Until: until} },
		"client": func(*fixture, string) tokens.Denial {
			return tokens.Denial{ClientID: tokenstest.Client, IssuedBefore: until, Until: until}
		},
		"key": func(f *fixture, _ string) tokens.Denial {
			return tokens.Denial{KeyID: f.issuer.Keys()[0].ID, Until: until}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &streams{fixture: newFixture(t)}
			s.config.Denials = &s.list
			s.watch(t)
			began, aborted := make(chan context.Context), make(chan any)
			raw := s.issuer.TokenWith(t, s.peer, func(claims, _ map[string]any) { claims["jti"] = "one" })
			s.handler = s.guard.Protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				began <- r.Context()
				<-r.Context().Done()
			}))
			go func() {
				defer func() { aborted <- recover() }()
				s.do("/", "Bearer "+raw)
			}()
			ctx := <-began
			if err := s.list.Add(tokens.Denial{TokenID: "another", Until: until}); err != nil || ctx.Err() != nil {
				t.Error(err, ctx.Err())
			}
			if err := s.list.Add(denial(s.fixture, "one")); err != nil {
				t.Fatal(err)
			}
			if cause := context.Cause(ctx); !errors.Is(cause, resource.ErrDenied) {
				t.Errorf("cause %v as soon as it is denied", cause)
			}
			if got := <-aborted; got != http.ErrAbortHandler {
				t.Errorf("the handler's end: %v", got)
			}
			s.open(t, 0)
		})
	}
}

// lateDenials deny from the second question on: what was revoked between the judgement and the entry.
type lateDenials struct {
	tokens.DenyList
	asked atomic.Int64
}

func (l *lateDenials) Denies(*tokens.Claims, string) bool { l.asked.Add(1); return true }

// A token that is denied after it was judged and before its request could be found is refused; so is one request too
// many. Neither is told as allowed.
func TestOpenRequestsAtTheDoor(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	late := &lateDenials{}
	f.config.Denials = late
	f.handler = f.protect(t)
	if w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer)); w.Code != http.StatusUnauthorized || late.asked.Load() != 1 {
		t.Errorf("%d, asked %d times", w.Code, late.asked.Load())
	}
	if diff := cmp.Diff([]string{"invalid_token:denied"}, f.events.told); diff != "" {
		t.Error(diff)
	}
	f.events.told = nil
	var list tokens.DenyList
	f.config.Denials = &list
	g, err := resource.New(f.config)
	if err != nil {
		t.Fatal(err)
	}
	g.LimitOpen(2)
	raw := f.issuer.Token(t, f.peer)
	depth := 0
	var answer *httptest.ResponseRecorder
	f.handler = g.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if depth++; depth <= 2 {
			answer = f.do("/", "Bearer "+raw)
		}
	}))
	f.do("/", "Bearer "+raw)
	if depth != 2 || answer.Code != http.StatusOK || g.Open() != 0 {
		t.Errorf("%d at once, %d, %d still under way", depth, answer.Code, g.Open())
	}
	if diff := cmp.Diff([]string{":allowed", ":allowed", "temporarily_unavailable:too_many_open"}, f.events.told); diff != "" {
		t.Error(diff)
	}
}

// A handler that panics has left, and its panic is its own.
func TestOpenRequestsThatPanic(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var list tokens.DenyList
	f.config.Denials = &list
	g, err := resource.New(f.config)
	if err != nil {
		t.Fatal(err)
	}
	f.handler = g.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("own") }))
	defer func() {
		if got := recover(); got != "own" || g.Open() != 0 {
			t.Errorf("%v, %d under way", got, g.Open())
		}
	}()
	f.do("/", "Bearer "+f.issuer.Token(t, f.peer))
}

// door is a response that says when its deadline is set.
type door struct {
	*httptest.ResponseRecorder
	deadline func()
}

func (d *door) SetReadDeadline(time.Time) error { d.deadline(); return nil }

// A request is cut off once, and one that has ended by the time that it would be is left alone: its connection serves
// another one by then.
func TestOpenRequestsAreCutOnce(t *testing.T) {
	t.Parallel()
	s := &streams{fixture: newFixture(t)}
	s.config.Denials = &s.list
	s.watch(t)
	raw, until := s.issuer.Token(t, s.peer), time.Now().Add(time.Hour)
	begun := make(chan bool)
	leave := map[string]chan bool{"/first": make(chan bool), "/second": make(chan bool)}
	ended := map[string]chan any{"/first": make(chan any, 1), "/second": make(chan any, 1)}
	h := s.guard.Protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- true
		<-leave[r.URL.Path]
	}))
	open := func(path string, deadline func()) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+raw)
		go func() {
			defer func() { ended[path] <- recover() }()
			h.ServeHTTP(&door{httptest.NewRecorder(), deadline}, r)
		}()
		<-begun
	}
	cuts := 0
	open("/first", func() {
		cuts++
		close(leave["/second"]) // which has been found too
		s.open(t, 1)
	})
	open("/second", func() { t.Error("a request that has ended is cut off") })
	for _, d := range []tokens.Denial{{KeyID: s.issuer.Keys()[0].ID, Until: until}, {Thumbprint: s.peer.Thumbprint(), Until: until}} {
		if err := s.list.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	close(leave["/first"])
	if first, second := <-ended["/first"], <-ended["/second"]; first != http.ErrAbortHandler || second != nil {
		t.Errorf("ended with %v and %v", first, second)
	}
	if n := strings.Count(s.log.String(), "request cut off"); n != 1 || cuts != 1 {
		t.Errorf("cut off %d times, told %d times", cuts, n)
	}
}

// Many requests come and go while much is denied: each ends, and none is forgotten or counted twice.
func TestOpenRequestsConcurrently(t *testing.T) {
	t.Parallel()
	s := &streams{fixture: newFixture(t)}
	s.config.Denials = &s.list
	s.watch(t)
	s.handler = s.guard.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Millisecond) }))
	raws := make([]string, 20)
	for n := range raws {
		raws[n] = s.issuer.TokenWith(t, s.peer, func(claims, _ map[string]any) { claims["jti"] = fmt.Sprint(n) })
	}
	var all sync.WaitGroup
	for n := range 200 {
		all.Go(func() {
			defer func() { _ = recover() }()
			s.do("/", "Bearer "+raws[n%len(raws)])
		})
	}
	for n := range raws[:10] {
		_ = s.list.Add(tokens.Denial{TokenID: fmt.Sprint(n), Until: time.Now().Add(time.Hour)})
	}
	all.Wait()
	s.open(t, 0)
}

// What it costs that requests can be ended: ns per guarded request, without and with.
func BenchmarkOpen(b *testing.B) {
	for _, watched := range []bool{false, true} {
		b.Run(fmt.Sprintf("watched=%v", watched), func(b *testing.B) {
			f := newFixture(b)
			var list tokens.DenyList
			if watched {
				f.config.Denials = &list
			}
			g, err := resource.New(f.config)
			if err != nil {
				b.Fatal(err)
			}
			for n := range 50_000 {
				_ = list.Add(tokens.Denial{TokenID: fmt.Sprint(n), Until: time.Now().Add(time.Hour)})
			}
			h := g.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Authorization", "Bearer "+f.issuer.Token(b, f.peer))
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}
