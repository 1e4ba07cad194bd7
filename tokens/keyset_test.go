// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// network stands for the way to the issuer within a synctest bubble, where real sockets would stop the clock.
type network struct {
	mu      sync.Mutex
	issuers []*tokenstest.Issuer
	err     error
	delay   time.Duration
	fetches atomic.Int64
	body    func([]*tokenstest.Issuer) []byte
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.fetches.Add(1)
	n.mu.Lock()
	issuers, err, delay := n.issuers, n.err, n.delay
	n.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(n.body(issuers))), Request: r}, nil
}

// set changes what the issuer publishes, whether it can be reached, and how fast.
func (n *network) set(err error, delay time.Duration, issuers ...*tokenstest.Issuer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.issuers, n.err, n.delay = issuers, err, delay
}

func (n *network) wantFetches(t *testing.T, want int64) {
	t.Helper()
	synctest.Wait()
	if got := n.fetches.Load(); got != want {
		t.Errorf("%d fetches, want %d", got, want)
	}
}

// bubble runs a test with a network, two issuers' keys and a fresh KeySet with the default times.
func bubble(t *testing.T, test func(t *testing.T, n *network, k *tokens.KeySet, a, b *tokenstest.Issuer)) {
	t.Helper()
	a, b := tokenstest.New(t), tokenstest.New(t)
	published := map[*tokenstest.Issuer][]byte{}
	for _, i := range []*tokenstest.Issuer{a, b} {
		published[i] = keySetOf(t, i)
	}
	n := &network{body: func(issuers []*tokenstest.Issuer) []byte {
		var entries [][]byte
		for _, i := range issuers {
			entry := bytes.TrimSuffix(bytes.TrimPrefix(published[i], []byte(`{"keys":[`)), []byte(`]}`))
			entries = append(entries, entry)
		}
		return []byte(`{"keys":[` + string(bytes.Join(entries, []byte(","))) + `]}`)
	}}
	n.set(nil, 0, a)
	synctest.Test(t, func(t *testing.T) {
		k, err := tokens.NewKeySet(tokens.KeySetConfig{URL: "https://issuer.example/jwks", Client: &http.Client{Transport: n}})
		if err != nil {
			t.Fatal(err)
		}
		test(t, n, k, a, b)
	})
}

// keySetOf asks a real server for an issuer's key set.
func keySetOf(t *testing.T, i *tokenstest.Issuer) []byte {
	t.Helper()
	server := i.KeySetServer(t)
	response, err := server.Client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	server.Client.CloseIdleConnections()
	return data
}

// wantKey checks that the issuer's key is there.
func wantKey(t *testing.T, k *tokens.KeySet, i *tokenstest.Issuer) {
	t.Helper()
	want := i.Keys()[0]
	got, err := k.Key(t.Context(), want.ID)
	if err != nil {
		t.Errorf("key of the issuer: %v", err)
		return
	}
	if got.ID != want.ID || got.Algorithm != want.Algorithm || !want.Key.(interface{ Equal(crypto.PublicKey) bool }).Equal(got.Key) {
		t.Errorf("another key: %v", got)
	}
}

// wantNoKey checks that a key id gets this error and no key.
func wantNoKey(t *testing.T, k *tokens.KeySet, id string, want error) {
	t.Helper()
	key, err := k.Key(t.Context(), id)
	if !errors.Is(err, want) || key.Key != nil {
		t.Errorf("%v, %v; want %v", key, err, want)
	}
}

// RS-19: made-up key ids cause one fetch in the interval, however many they are and however many ask at once.
func TestKeySetUnknownIDs(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, _ *tokenstest.Issuer) {
		n.set(nil, 100*time.Millisecond, a)
		var all sync.WaitGroup
		for range 10_000 {
			all.Go(func() { wantNoKey(t, k, rand.Text(), tokens.ErrUnknownKey) })
		}
		all.Wait()
		n.wantFetches(t, 1)
		for range 59 { // a minute of attack, less the second that is past
			time.Sleep(time.Second)
			wantNoKey(t, k, rand.Text(), tokens.ErrUnknownKey)
			wantKey(t, k, a)
		}
		n.wantFetches(t, 6)
	})
}

// RS-20: a new key is found when its id first comes up; a removed one stops being trusted within MaxAge.
func TestKeySetRotation(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, b *tokenstest.Issuer) {
		wantKey(t, k, a)
		n.set(nil, 0, a, b)
		wantNoKey(t, k, b.Keys()[0].ID, tokens.ErrUnknownKey) // too soon after the last fetch
		time.Sleep(10 * time.Second)
		wantKey(t, k, b)
		n.wantFetches(t, 2)
		n.set(nil, 0, b) // the key of a leaves, and nobody asks for a while
		time.Sleep(5 * time.Minute)
		wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrUnknownKey)
		wantKey(t, k, b)
		n.wantFetches(t, 3)
	})
}

// A15: a key that the issuer itself names is fetched for although strangers have used up what they may cause, once a second.
func TestKeySetNamedKeys(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, b *tokenstest.Issuer) {
		wantNoKey(t, k, rand.Text(), tokens.ErrUnknownKey)
		n.set(nil, 0, b)
		time.Sleep(time.Second)
		wantNoKey(t, k, b.Keys()[0].ID, tokens.ErrUnknownKey)
		if key, err := k.NamedKey(t.Context(), b.Keys()[0].ID); err != nil || key.ID != b.Keys()[0].ID {
			t.Errorf("the key that was named: %v, %v", key.ID, err)
		}
		n.wantFetches(t, 2)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if _, err := k.NamedKey(t.Context(), a.Keys()[0].ID); !errors.Is(err, tokens.ErrUnknownKey) {
				t.Errorf("a key that is gone: %v", err)
			}
		}
		n.wantFetches(t, 12)
	})
}

// RS-20: keys in steady use are fetched before they are due, so that nobody waits, and a removed key goes no later.
func TestKeySetRefreshesAhead(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, b *tokenstest.Issuer) {
		wantKey(t, k, a)
		n.set(nil, 3*time.Second, b)
		time.Sleep(4 * time.Minute)
		start := time.Now()
		wantKey(t, k, a) // from memory, while the fetch is under way
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %v", waited)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrUnknownKey)
		wantKey(t, k, b)
	})
}

// RS-20: while the issuer cannot be reached, known keys serve for MaxAge + StaleWhileError and not longer; then nothing
// is trusted until it is back.
func TestKeySetFailsClosed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, b *tokenstest.Issuer) {
		wantKey(t, k, a)
		n.set(errors.New("network is down"), time.Second, a)
		begin := time.Now()
		for time.Since(begin) < 10*time.Minute-10*time.Second {
			time.Sleep(10 * time.Second)
			if time.Since(begin) < 10*time.Minute {
				wantKey(t, k, a)
			}
			wantNoKey(t, k, b.Keys()[0].ID, tokens.ErrKeysUnavailable) // it may be a new one
		}
		time.Sleep(10*time.Minute - time.Since(begin))
		wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrKeysUnavailable)
		n.set(nil, 0, a)
		time.Sleep(time.Second)
		wantKey(t, k, a)
	})
}

// RS-20: nobody waits for an issuer that hangs while known keys may still serve.
func TestKeySetStaleWithoutWaiting(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, _ *tokenstest.Issuer) {
		wantKey(t, k, a)
		n.set(errors.New("network is down"), time.Hour, a)
		time.Sleep(5 * time.Minute)
		wantKey(t, k, a) // the one that finds out: it waits for the fetch to time out
		for range 30 {
			start := time.Now()
			wantKey(t, k, a)
			if waited := time.Since(start); waited != 0 {
				t.Fatalf("waited %v", waited)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute) // until the last fetch has given up
		n.wantFetches(t, 5)     // one after the other, each of ten seconds
	})
}

// RS-20: before the first keys there are none; a failed fetch is repeated after a second and not for every request.
func TestKeySetNothingYet(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, _ *tokenstest.Issuer) {
		n.set(errors.New("network is down"), 0, a)
		n.wantFetches(t, 0)
		for range 100 {
			wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrKeysUnavailable)
		}
		n.wantFetches(t, 1)
		n.set(nil, 0, a)
		time.Sleep(time.Second)
		wantKey(t, k, a)
		n.wantFetches(t, 2)
	})
}

// RS-19: a caller waits no longer than its ctx, and takes the fetch away from nobody else when it goes.
func TestKeySetContext(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, a, _ *tokenstest.Issuer) {
		n.set(nil, 5*time.Second, a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := k.Key(ctx, a.Keys()[0].ID)
		if !errors.Is(err, tokens.ErrKeysUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("waited %v", waited)
		}
		wantKey(t, k, a)
		if waited := time.Since(start); waited != 5*time.Second {
			t.Errorf("the fetch took %v", waited)
		}
		n.wantFetches(t, 1)
	})
}

// RS-20: a machine that slept does not trust keys from before, though its monotonic clock stood still; a wall clock that
// was set back does not keep them either.
func TestKeySetClocks(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.KeySetServer(t)
	start := time.Now()
	var now atomic.Pointer[time.Time]
	now.Store(&start)
	k, err := tokens.NewKeySet(tokens.KeySetConfig{
		URL: server.URL, Client: server.Client, Now: func() time.Time { return *now.Load() },
	})
	if err != nil {
		t.Fatal(err)
	}
	wantKey(t, k, issuer)
	server.Answer(http.StatusInternalServerError, nil)
	slept := start.Round(0).Add(time.Hour) // the wall clock alone
	now.Store(&slept)
	wantNoKey(t, k, issuer.Keys()[0].ID, tokens.ErrKeysUnavailable)
	later := start.Add(time.Hour)
	now.Store(&later)
	wantNoKey(t, k, issuer.Keys()[0].ID, tokens.ErrKeysUnavailable)
}

// RS-19, RS-21: over real TLS: keys come from an https server that the client trusts, with status 200, at the very
// URL, and no larger than a key set is.
func TestKeySetOverTLS(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	id := issuer.Keys()[0].ID
	server := issuer.KeySetServer(t)
	fresh := func(url string, client *http.Client) *tokens.KeySet {
		k, err := tokens.NewKeySet(tokens.KeySetConfig{URL: url, Client: client})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	wantKey(t, fresh(server.URL, server.Client), issuer)
	wantNoKey(t, fresh(server.URL, nil), id, tokens.ErrKeysUnavailable) // the system does not trust it
	wantNoKey(t, fresh(server.URL, &http.Client{}), id, tokens.ErrKeysUnavailable)

	before := server.Fetches()
	for _, status := range []int{301, 302, 303, 307, 308} {
		redirect := httptest.NewTLSServer(http.RedirectHandler(server.URL, status))
		defer redirect.Close()
		following := redirect.Client()
		following.Transport = server.Client.Transport // one that trusts the target
		following.CheckRedirect = func(*http.Request, []*http.Request) error { return nil }
		wantNoKey(t, fresh(redirect.URL, following), id, tokens.ErrKeysUnavailable)
		wantNoKey(t, fresh(redirect.URL, redirect.Client()), id, tokens.ErrKeysUnavailable)
	}
	if got := server.Fetches(); got != before {
		t.Errorf("%d redirects were followed", got-before)
	}
	good := keySetOf(t, issuer)
	padded := append(bytes.Clone(good), bytes.Repeat([]byte(" "), 256<<10)...)
	for name, answer := range map[string]struct {
		status int
		body   []byte
	}{
		"404": {404, good}, "500": {500, good}, "203": {203, good}, "html": {200, []byte("<html>")},
		"empty": {200, nil}, "too large": {200, padded}, "truncated": {200, good[:len(good)-1]},
	} {
		server.Answer(answer.status, answer.body)
		t.Run(name, func(t *testing.T) { wantNoKey(t, fresh(server.URL, server.Client), id, tokens.ErrKeysUnavailable) })
	}
	server.Answer(http.StatusOK, []byte(`{"keys":[]}`)) // an issuer that withdrew all keys has none, and that is certain
	wantNoKey(t, fresh(server.URL, server.Client), id, tokens.ErrUnknownKey)
}

// RS-19: an answer that never ends is read no further than a key set can be.
func TestKeySetEndlessAnswer(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat(" ", 64<<10))
		for r.Context().Err() == nil {
			n, err := w.Write(chunk)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	k, err := tokens.NewKeySet(tokens.KeySetConfig{URL: server.URL, Client: server.Client()})
	if err != nil {
		t.Fatal(err)
	}
	wantNoKey(t, k, "x", tokens.ErrKeysUnavailable)
	if sent.Load() > 64<<20 {
		t.Errorf("read on for %d bytes", sent.Load())
	}
}

// RS-19: a key set without TLS is refused before anything is fetched.
func TestNewKeySetRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []tokens.KeySetConfig{
		{}, {URL: "http://issuer.example/jwks"}, {URL: "https:///jwks"}, {URL: "issuer.example"}, {URL: "file:///etc/passwd"},
		{URL: "https://user:secret@issuer.example"}, {URL: "https://issuer.example\n"},
		{URL: "https://issuer.example", MaxAge: -1}, {URL: "https://issuer.example", RefetchInterval: -1},
	} {
		if k, err := tokens.NewKeySet(c); err == nil || k != nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

// RS-20: what the key set says decides what the verifier answers: 401 for a key that is not there, 503 for keys that
// cannot be had.
func TestVerifierWithKeySet(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	server := f.issuer.KeySetServer(t)
	verifier := func() *tokens.Verifier {
		k, err := tokens.NewKeySet(tokens.KeySetConfig{URL: server.URL, Client: server.Client})
		if err != nil {
			t.Fatal(err)
		}
		v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: k})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	raw := f.issuer.Token(t, f.peer)
	accepted(t, verifier(), raw, f.peer)
	server.Serve(t, tokenstest.New(t))
	refused(t, verifier(), raw, f.peer, "unknown_key")
	server.Answer(http.StatusBadGateway, nil)
	_, err := verifier().Verify(t.Context(), raw, f.peer)
	if refusal, ok := errors.AsType[*tokens.Error](err); !ok || refusal.Status() != http.StatusServiceUnavailable {
		t.Error(err)
	}
}

// The status of each registered code is the one its RFC gives it (RFC 6749, Section 5.2; RFC 6750, Section 3.1).
func TestErrorStatus(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]int{
		"invalid_request": 400, "invalid_client": 401, "invalid_grant": 400, "unauthorized_client": 400,
		"unsupported_grant_type": 400, "invalid_scope": 400, "invalid_target": 400, "invalid_token": 401,
		"insufficient_scope": 403, "server_error": 500, "temporarily_unavailable": 503, "": 500, "made_up": 500,
	} {
		if got := (&tokens.Error{Code: code}).Status(); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
	}
	err := fmt.Errorf("x: %w", &tokens.Error{Code: "invalid_token", Reason: "expired", Err: io.EOF})
	if err.Error() != "x: invalid_token (expired): EOF" || !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
