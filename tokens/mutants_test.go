// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// RFC 6749, Section 3.3: no scope is no error, and a scope-token is of printable ASCII without space, quote, backslash.
func TestRFC6749_3_3_ScopeTokens(t *testing.T) {
	t.Parallel()
	if scope, err := tokens.ParseScope(""); err != nil || scope != nil {
		t.Errorf("empty: %q, %v", scope, err)
	}
	for s, ok := range map[string]bool{"!": true, "~": true, "a:b": true, "": false, " ": false, "\x7f": false, `"`: false, `\`: false} {
		if tokens.ValidScope(s) != ok {
			t.Errorf("%q: %v", s, !ok)
		}
	}
}

// The log names the first claim that is wrong, and that a thumbprint is none.
func TestClaimNamed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	raw := f.issuer.TokenWith(t, f.peer, func(claims, _ map[string]any) { claims["iss"], claims["exp"] = 1, "soon" })
	if _, err := f.verifier.Verify(t.Context(), raw, f.peer); err == nil || !strings.Contains(err.Error(), "claim iss") {
		t.Error(err)
	}
	refused(t, f.verifier, f.with(t, "cnf", map[string]any{"x5t#S256": "AAAA"}), f.peer, "not_bound")
	refused(t, f.verifier, f.with(t, "cnf", map[string]any{"x5t#S256": 1}), f.peer, "not_bound")
	refused(t, f.verifier, f.with(t, "cnf", "x5t#S256"), f.peer, "not_bound")
}

// The text of an error says no more than there is.
func TestErrorText(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]tokens.Error{
		"invalid_token":            {Code: tokens.CodeInvalidToken},
		"invalid_token (expired)":  {Code: tokens.CodeInvalidToken, Reason: "expired"},
		"server_error: EOF":        {Code: tokens.CodeServerError, Err: io.EOF},
		"invalid_token (bad): EOF": {Code: tokens.CodeInvalidToken, Reason: "bad", Err: io.EOF},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A verifier judges by the clock that it was given, and with ten seconds of leeway when nothing else is said.
func TestVerifierClock(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	soon := time.Now().Unix() + 300
	raw := f.with(t, "exp", soon)
	accepted(t, f.verifierAt(t, time.Unix(soon+9, 0), 0), raw, f.peer)
	refused(t, f.verifierAt(t, time.Unix(soon+10, 0), 0), raw, f.peer, "expired")
	accepted(t, f.verifierAt(t, time.Unix(soon, 0), time.Second), raw, f.peer)
	refused(t, f.verifierAt(t, time.Unix(soon+1, 0), time.Second), raw, f.peer, "expired")
}

// An issuer that is no URL at all is refused, and so is a key of no supported kind.
func TestNoURLNoKey(t *testing.T) {
	t.Parallel()
	if v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: "https://a\x7f", Audience: "a", Keys: tokens.StaticKeys{}}); err == nil {
		t.Error(v)
	}
	if id, err := tokens.KeyID("key"); err == nil {
		t.Error(id)
	}
}

// A refusal to take a token apart is an error, and not a typed nil that passes for none.
func TestParseUnverifiedRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for raw, reason := range map[string]string{
		"a.b.c": "malformed", f.issuer.Sign(t, `{"alg":"ES256"}`, `{"a":1,"a":2}`): "malformed_claims",
	} {
		_, err := tokens.ParseUnverified(raw)
		if refusal, ok := errors.AsType[*tokens.Error](err); !ok || refusal == nil || refusal.Reason != reason {
			t.Errorf("%v, want %s", err, reason)
		}
	}
}

// The times of a key set are those that were given: keys are fetched again when they are of that age and not before the
// last quarter of it, and those that were too old when they came are none.
func TestKeySetTimesGiven(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, _ *tokens.KeySet, a, _ *tokenstest.Issuer) {
		k, err := tokens.NewKeySet(tokens.KeySetConfig{
			URL: "https://issuer.example/jwks", Client: &http.Client{Transport: n}, MaxAge: time.Minute, StaleWhileError: -1,
		})
		if err != nil {
			t.Fatal(err)
		}
		wantKey(t, k, a)
		time.Sleep(44 * time.Second)
		wantKey(t, k, a)
		n.wantFetches(t, 1)
		time.Sleep(time.Second)
		wantKey(t, k, a)
		n.wantFetches(t, 2)
		n.set(errors.New("unreachable"), 0)
		time.Sleep(time.Minute)
		wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrKeysUnavailable)
	})
}

// Keys that take longer to come than they may be used for are none, also where nothing failed.
func TestKeySetTooOldOnArrival(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, _ *tokens.KeySet, a, _ *tokenstest.Issuer) {
		k, err := tokens.NewKeySet(tokens.KeySetConfig{
			URL: "https://issuer.example/jwks", Client: &http.Client{Transport: n}, MaxAge: time.Second, StaleWhileError: -1,
		})
		if err != nil {
			t.Fatal(err)
		}
		n.set(nil, 2*time.Second, a)
		wantNoKey(t, k, a.Keys()[0].ID, tokens.ErrKeysUnavailable)
	})
}

// roundTrip answers requests.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A key set whose end did not arrive is none, even if what did arrive can be read.
func TestKeySetBroken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broken := io.MultiReader(strings.NewReader(`{"keys":[]}`), iotest.ErrReader(io.ErrUnexpectedEOF))
		k, err := tokens.NewKeySet(tokens.KeySetConfig{
			URL: "https://issuer.example/jwks",
			Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(broken), Request: r}, nil
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		wantNoKey(t, k, "a", tokens.ErrKeysUnavailable)
	})
}
