// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// follower polls the feed as the client that runs a resource server.
type follower struct {
	in    *instance
	cert  tls.Certificate
	http  *http.Client
	token string
}

// pageOf is what a page says, without its signature.
type pageOf struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	From     int64
	Seq      int64
	Head     int64
	Entries  []map[string]any
}

func decodePage(tb testing.TB, raw string) (header map[string]any, p pageOf) {
	tb.Helper()
	for i, into := range []any{&header, &p} {
		data, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[i])
		if err != nil || json.Unmarshal(data, into) != nil {
			tb.Errorf("part %d of a page: %q, %v", i, data, err)
		}
	}
	return header, p
}

// follow registers and enrols a client, lets it run a resource server, and asks for its token.
func (in *instance) follow(id, uri string) *follower {
	in.tb.Helper()
	cert := in.enrolledWith(map[string]any{"client_id": id})
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": uri, "scope": write, "servers": []string{id}}, nil)
	f := &follower{in: in, cert: cert, http: in.client(&cert)}
	status, token := f.askToken(id, in.issuer+pathDenied)
	if status != http.StatusOK {
		in.tb.Fatalf("the token for the feed: %d", status)
	}
	f.token = token
	return f
}

func (f *follower) askToken(id, resource string) (int, string) {
	f.in.tb.Helper()
	res, err := f.http.PostForm(f.in.mtls+pathToken, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {id}, "resource": {resource}})
	if err != nil {
		f.in.tb.Fatal(err)
	}
	defer res.Body.Close()
	var answer tokenAnswer
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		f.in.tb.Fatal(err)
	}
	return res.StatusCode, answer.Token
}

// poll asks the instance once.
func (f *follower) poll(in *instance, query string) (int, string) {
	f.in.tb.Helper()
	r, err := http.NewRequestWithContext(f.in.tb.Context(), http.MethodGet, in.mtls+pathDenied+query, nil)
	if err != nil {
		f.in.tb.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+f.token)
	res, err := f.http.Do(r)
	if err != nil {
		f.in.tb.Error(err)
		return 0, ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		f.in.tb.Error(err)
	}
	return res.StatusCode, string(body)
}

func (f *follower) page(in *instance, query string) pageOf {
	f.in.tb.Helper()
	status, body := f.poll(in, query)
	if status != http.StatusOK {
		f.in.tb.Errorf("the feed: %d %s", status, body)
		return pageOf{}
	}
	_, p := decodePage(f.in.tb, body)
	return p
}

// The feed is for clients that run a resource server and for nobody else, and tells what is denied at once: signed, with a
// type of its own, in order.
func TestDenyFeed(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	f := in.follow("ledger-server", ledger)
	status, body := f.poll(in, "")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	header, first := decodePage(t, body)
	if header["typ"] != tokens.DenyType || first.Issuer != in.issuer || first.Audience != in.issuer+"/oauth2/denied" ||
		first.From != 0 || first.Seq != first.Head || time.Since(time.Unix(first.IssuedAt, 0)).Abs() > 10*time.Second {
		t.Errorf("%v %+v", header, first)
	}
	cert := in.enrolled("payments")
	payments := in.token(in.client(&cert), "payments")
	wantToken(t, payments)
	told := make(chan pageOf, 1)
	go func() { told <- f.page(in, fmt.Sprint("?since=", first.Seq)) }()
	eventually(t, 5*time.Second, "somebody waits", func() bool {
		return strings.Contains(in.awaitMetric("certbound_feed_waiting"), "certbound_feed_waiting 1")
	})
	began := time.Now()
	if err := in.revokeToken(cert, "payments", payments.Token); err != nil {
		t.Fatal(err)
	}
	p := <-told
	t.Logf("told after %s", time.Since(began))
	if p.From != first.Seq || p.Seq != first.Seq+1 || p.Head != p.Seq || len(p.Entries) != 1 || p.Entries[0]["jti"] == nil || time.Since(began) > 3*time.Second {
		t.Errorf("%+v", p)
	}
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "payments"}, nil)
	in.mustOperate(http.MethodPost, "/clients/payments/disable", nil, nil)
	more := f.page(in, fmt.Sprint("?since=", p.Seq))
	if more.From != p.Seq || len(more.Entries) != 2 || more.Entries[0]["x5t#S256"] != thumbprint(cert) ||
		more.Entries[1]["client_id"] != "payments" || more.Entries[1]["iat_before"] == nil || more.Entries[0]["until"] == nil {
		t.Errorf("%+v", more)
	}
	if all := f.page(in, ""); all.From != 0 || all.Seq != more.Seq || len(all.Entries) != 3 {
		t.Errorf("from the beginning: %+v", all)
	}
	for _, query := range []string{"?since=x", "?since=-1", "?since=1&since=2", "?from=1", "?since=1&x=1", "?since=%zz", "?since="} {
		if status, body := f.poll(in, query); status != http.StatusBadRequest || !strings.Contains(body, "invalid_request") {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	// A token for something else, and a client that runs nothing.
	good := f.token
	f.token = payments.Token
	if status, _ := f.poll(in, ""); status != http.StatusUnauthorized {
		t.Errorf("another's token: %d", status)
	}
	plain := in.enrolled("plain")
	if status, _ := (&follower{in: in, http: in.client(&plain)}).askToken("plain", in.issuer+pathDenied); status != http.StatusBadRequest {
		t.Errorf("a client that runs no resource server gets a token for the feed: %d", status)
	}
	// One that does not run it any more is told nothing more, though it waits already.
	f.token = good
	waiting := make(chan int, 1)
	go func() { status, _ := f.poll(in, fmt.Sprint("?since=", more.Seq)); waiting <- status }()
	eventually(t, 5*time.Second, "somebody waits", func() bool {
		return strings.Contains(in.awaitMetric("certbound_feed_waiting"), "certbound_feed_waiting 1")
	})
	in.mustOperate(http.MethodPost, "/clients/ledger-server/disable", nil, nil)
	if status := <-waiting; status != http.StatusUnauthorized {
		t.Errorf("a disabled follower that waited: %d", status)
	}
	if status, _ := f.poll(in, ""); status != http.StatusUnauthorized {
		t.Errorf("a disabled follower: %d", status)
	}
}

// Who comes without a token is told which one is needed, and nothing of an error (RFC 6750, Section 3); who comes with one that is
// no good is told what everybody is.
func TestDenyFeedWithoutToken(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	ask := func(authorization string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, in.mtls+pathDenied, nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		res, err := in.client(nil).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(body)
	}
	for _, none := range []string{"", "Basic dXNlcjpwYXNz"} {
		res, body := ask(none)
		challenge := fmt.Sprintf(`Bearer realm="%s", scope="denied", resource_metadata="%s/.well-known/oauth-protected-resource%s"`, in.issuer, in.issuer, pathDenied)
		var told map[string]string
		if err := json.Unmarshal([]byte(body), &told); err != nil || res.StatusCode != http.StatusUnauthorized ||
			res.Header.Get("WWW-Authenticate") != challenge || res.Header.Get("Content-Type") != "application/json" ||
			told["resource"] != in.issuer+pathDenied || told["scope"] != "denied" || told["error"] != "" || told["error_description"] == "" {
			t.Errorf("%q: %s %v %s", none, res.Status, res.Header, body)
		}
	}
	res, body := ask("Bearer abc")
	if res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, `"invalid_token"`) || strings.Contains(body, "scope") ||
		strings.Contains(res.Header.Get("WWW-Authenticate"), "scope=") {
		t.Errorf("%s %v %s", res.Status, res.Header, body)
	}
}

// testFeed is a feed over rows in memory, whose signatures are counted.
type testFeed struct {
	*feed
	rows   *rowsOfDenials
	signed atomic.Int64
}

func newTestFeed(n int64, beat time.Duration) *testFeed {
	rows := &rowsOfDenials{n: n}
	f := &testFeed{rows: rows}
	d := &denials{store: rows}
	d.epoch.Store(1)
	f.feed = &feed{
		denials: d, rows: rows, resource: "r", beat: beat,
		pages: make(map[int64]string), changed: make(chan struct{}), readers: make(map[reader]follow),
		of: make(map[string]int), missed: make(map[string]time.Time),
		sign: func(p tokens.DenyPage) (string, error) {
			f.signed.Add(1)
			return fmt.Sprintf("%d %d %d %d", p.From, p.Seq, p.Head, len(p.Entries)), nil
		},
	}
	return f
}

// deny adds a row.
func (f *testFeed) deny() {
	f.rows.mu.Lock()
	f.rows.n++
	f.rows.mu.Unlock()
	f.denials.forget(store.Change{Denials: true})
	f.wake(store.Change{Denials: true})
}

// All who wait for the same share one signature, at a change and at each beat; who knows less is told more, in pages.
func TestDenyFeedShares(t *testing.T) {
	t.Parallel()
	const waiters = 50
	f := newTestFeed(3, time.Hour)
	ask := func(since int64, want string) {
		t.Helper()
		got, _, err := f.next(t.Context(), since)
		if err != nil || got != want {
			t.Errorf("behind %d: %q, %v, want %q", since, got, err, want)
		}
	}
	ask(-1, "0 3 3 3")
	ask(0, "0 3 3 3")
	ask(2, "2 3 3 1")
	if n := f.signed.Load(); n != 2 {
		t.Errorf("%d signatures", n)
	}
	var all sync.WaitGroup
	waiting := make(chan bool, waiters)
	for range waiters {
		all.Go(func() {
			waiting <- true
			ask(3, "3 4 4 1")
		})
	}
	for range waiters {
		<-waiting
	}
	eventually(t, 5*time.Second, "all wait", func() bool { return f.waiting.Load() == waiters })
	f.deny()
	all.Wait()
	if n := f.signed.Load(); n != 3 {
		t.Errorf("%d signatures for %d who waited", n-2, waiters)
	}
	// The end of a beat.
	f = newTestFeed(3, 100*time.Millisecond)
	ask(3, "3 3 3 0") // nobody had waited: told at once
	for range 3 {
		began, before := time.Now(), f.signed.Load()
		for range waiters {
			all.Go(func() { ask(3, "3 3 3 0") })
		}
		all.Wait()
		if n := f.signed.Load() - before; n > 2 || time.Since(began) < 20*time.Millisecond {
			t.Errorf("%d signatures for %d who waited %s", n, waiters, time.Since(began))
		}
	}
	// A position that is not there yet is none that others know.
	ask(1000, "3 3 3 0")
	f = newTestFeed(tokens.MaxDenyPageEntries+2, time.Hour)
	ask(-1, fmt.Sprintf("0 %d %d %d", tokens.MaxDenyPageEntries, tokens.MaxDenyPageEntries+2, tokens.MaxDenyPageEntries))
	ask(tokens.MaxDenyPageEntries, fmt.Sprintf("%d %d %d 2", tokens.MaxDenyPageEntries, tokens.MaxDenyPageEntries+2, tokens.MaxDenyPageEntries+2))
}

// Who leaves, and a service that stops, end a wait; what cannot be read is not told.
func TestDenyFeedEnds(t *testing.T) {
	t.Parallel()
	f := newTestFeed(3, time.Hour)
	if _, _, err := f.next(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { _, _, err := f.next(ctx, 3); ended <- err }()
	eventually(t, 5*time.Second, "one waits", func() bool { return f.waiting.Load() == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go func() { _, _, err := f.next(t.Context(), 3); ended <- err }()
	eventually(t, 5*time.Second, "one waits", func() bool { return f.waiting.Load() == 1 })
	down := errors.New("down")
	f.rows.fail(down)
	f.deny()
	if err := <-ended; !errors.Is(err, down) {
		t.Error(err)
	}
	f.rows.fail(nil)
	eventually(t, 5*time.Second, "it is read again", func() bool { _, _, err := f.next(t.Context(), 0); return err == nil })
	f.close()
	f.close()
	f.wake(store.Change{Full: true})
	if _, _, err := f.next(t.Context(), 0); !errors.Is(err, errStopping) {
		t.Error(err)
	}
}

// A page ends before it is too long, and says up to where it is all.
func TestDenyFeedPageBytes(t *testing.T) {
	t.Parallel()
	var list []store.Denied
	for n := range 100 {
		list = append(list, store.Denied{Position: int64(n + 1), Denial: tokens.Denial{
			TokenID: strings.Repeat("x", 8<<10), Until: time.Unix(1_800_000_000, 0)}})
	}
	seq, entries := fill(list, 100)
	if len(entries) == 0 || len(entries) > 25 || seq != int64(len(entries)) {
		t.Errorf("%d entries up to %d", len(entries), seq)
	}
	if seq, entries := fill(list[:3], 7); seq != 7 || len(entries) != 3 {
		t.Errorf("%d entries up to %d", len(entries), seq)
	}
}

// A client has what all that follow for it have; one that has long been silent does not count.
func TestDenyFeedReaders(t *testing.T) {
	t.Parallel()
	f := newTestFeed(0, time.Hour)
	now := time.Unix(1_800_000_000, 0)
	one, two := reader{client: "a", address: "1"}, reader{client: "a", certificate: mtls.Thumbprint{1}, address: "1"}
	want := func(has bool, client string, position int64, after time.Duration) {
		t.Helper()
		if got := f.has(client, position, now.Add(after)); got != has {
			t.Errorf("%s has %d: %t", client, position, got)
		}
	}
	want(false, "a", 0, 0)
	f.acknowledge(one, 5, now)
	want(true, "a", 5, 0)
	want(false, "a", 6, 0)
	want(false, "b", 0, 0)
	f.acknowledge(two, 3, now.Add(time.Second))
	want(false, "a", 5, 0)
	f.acknowledge(two, 5, now.Add(time.Second))
	want(true, "a", 5, 0)
	want(true, "a", 5, readerLife+time.Second/2)
	want(false, "a", 5, readerLife+2*time.Second)
	for n := range feedReaders + 10 {
		f.acknowledge(reader{client: fmt.Sprint(n)}, 1, now)
	}
	if len(f.readers) != feedReaders {
		t.Errorf("%d readers", len(f.readers))
	}
	f.acknowledge(reader{client: "late"}, 1, now.Add(time.Minute))
	want(true, "late", 1, time.Minute)
}

// One client's followers, however many they are, leave room for those of others; that one is told of as not having everything
// while there are more of them than are remembered.
func TestDenyFeedReadersOfOne(t *testing.T) {
	t.Parallel()
	f := newTestFeed(0, time.Hour)
	now := time.Unix(1_800_000_000, 0)
	for n := range clientReaders {
		f.acknowledge(reader{client: "many", address: fmt.Sprint(n)}, 5, now)
	}
	if !f.has("many", 5, now) {
		t.Error("all of them have it")
	}
	for n := range feedReaders {
		f.acknowledge(reader{client: "many", address: fmt.Sprint("more", n)}, 5, now)
	}
	f.acknowledge(reader{client: "one"}, 5, now)
	if !f.has("one", 5, now) || len(f.readers) != clientReaders+1 {
		t.Errorf("%d are remembered, the other's: %t", len(f.readers), f.has("one", 5, now))
	}
	if f.has("many", 5, now) || f.has("many", 5, now.Add(readerLife)) {
		t.Error("some that follow are not known, and all are said to have it")
	}
	f.acknowledge(reader{client: "many", address: "0"}, 5, now.Add(readerLife)) // one that is known
	if !f.has("many", 5, now.Add(readerLife+1)) {
		t.Error("those that went away are waited for")
	}
	f.acknowledge(reader{client: "many", address: "late"}, 5, now.Add(2*readerLife)) // when the others are silent
	if len(f.readers) != 2 || f.of["many"] != 2 || f.of["one"] != 0 {
		t.Errorf("%d are remembered, by client %v", len(f.readers), f.of)
	}
}

// A replica's feed tells what another one denied.
func TestReplicas_DenyFeed(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := start(t, i.config()), start(t, i.config())
	f := one.follow("ledger-server", ledger)
	cert := one.enrolled("payments")
	payments := one.token(one.client(&cert), "payments")
	first := f.page(two, "")
	told := make(chan pageOf, 1)
	go func() { told <- f.page(two, fmt.Sprint("?since=", first.Seq)) }()
	if err := one.revokeToken(cert, "payments", payments.Token); err != nil {
		t.Fatal(err)
	}
	p := <-told
	if len(p.Entries) == 0 { // a beat came first
		p = f.page(two, fmt.Sprint("?since=", p.Seq))
	}
	if len(p.Entries) != 1 || p.Entries[0]["jti"] == nil {
		t.Errorf("%+v", p)
	}
}

// Other replicas hear of a reader when it is further, and else seldom; what they say of one is believed when it is newer.
func TestDenyFeedReadersElsewhere(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	f, other := newTestFeed(0, time.Hour), newTestFeed(0, time.Hour)
	r := reader{client: "a", address: "1"}
	told := func(n int, after time.Duration) {
		t.Helper()
		list := f.unsaved(now.Add(after))
		if len(list) != n {
			t.Errorf("after %s: %+v", after, list)
		}
		other.hear(list)
		other.hear(list)
		if again := other.unsaved(now.Add(after)); len(again) != 0 {
			t.Errorf("the other would tell what it heard: %+v", again)
		}
	}
	f.acknowledge(r, 5, now)
	told(1, 0)
	if !other.has("a", 5, now) {
		t.Error("the other did not hear")
	}
	f.acknowledge(r, 5, now.Add(time.Second))
	told(0, time.Second)
	f.acknowledge(r, 6, now.Add(2*time.Second))
	told(1, 2*time.Second)
	told(0, readerLife)
	f.acknowledge(r, 6, now.Add(readerLife))
	told(1, readerLife)
	other.hear([]store.Follower{{ClientID: "a", Address: "1", Position: 1, SeenAt: now}})
	if !other.has("a", 6, now.Add(readerLife)) {
		t.Error("an old word replaced a newer one")
	}
}

// Who revokes can wait until the resource servers know, at whichever replica they ask, and is told which do not.
func TestReplicas_WaitResources(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := start(t, i.config()), start(t, i.config())
	f := one.follow("ledger-server", ledger)
	deaf := one.follow("deaf-server", "https://deaf.test")
	one.enrolled("payments")
	first := f.page(two, "")
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for since := first.Seq; ctx.Err() == nil; {
			since = f.page(two, fmt.Sprint("?since=", since)).Seq
		}
	})
	defer all.Wait()
	defer stop()
	revoke := func(request map[string]any) (done admin.Revocation, took time.Duration) {
		t.Helper()
		began := time.Now()
		one.mustOperate(http.MethodPost, "/certificates/revoke", request, &done)
		return done, time.Since(began)
	}
	done, took := revoke(map[string]any{"client_id": "payments", "wait_resources": 1})
	if want := []admin.Follower{{ClientID: "deaf-server"}, {ClientID: "ledger-server", Has: true}}; !slices.Equal(done.Resources, want) || took < time.Second {
		t.Errorf("%+v after %s", done.Resources, took)
	}
	if done, _ := revoke(map[string]any{"client_id": "payments"}); done.Resources != nil {
		t.Errorf("nobody asked: %+v", done.Resources)
	}
	// Once all have it, there is no wait.
	position := f.page(two, "").Seq
	all.Go(func() {
		for ctx.Err() == nil {
			position = deaf.page(one, fmt.Sprint("?since=", position)).Seq
		}
	})
	eventually(t, 10*time.Second, "all have it", func() bool {
		done, took = revoke(map[string]any{"client_id": "payments", "wait_resources": 10})
		return len(done.Resources) == 2 && done.Resources[0].Has && done.Resources[1].Has && took < 8*time.Second
	})
	for _, wrong := range []int{-1, 21} {
		if err := one.operate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "payments", "wait_resources": wrong}, nil); err == nil {
			t.Errorf("waits %d s", wrong)
		}
	}
}
