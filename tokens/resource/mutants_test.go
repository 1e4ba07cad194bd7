// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// Each request is told once, the good ones too, and one without Events is served all the same.
func TestEvents(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.issuer.Token(t, f.peer)
	if w := f.do("/", "Bearer "+token); w.Code != http.StatusOK {
		t.Fatal(w.Code)
	}
	f.do("/")
	if diff := cmp.Diff([]string{":allowed", ":no_credentials"}, f.events.told); diff != "" {
		t.Error(diff)
	}
	f.config.Events = nil
	f.handler = f.protect(t)
	if w := f.do("/", "Bearer "+token); w.Code != http.StatusOK {
		t.Errorf("without Events: %d", w.Code)
	}
	if w := f.do("/"); w.Code != http.StatusUnauthorized {
		t.Errorf("refused without Events: %d", w.Code)
	}
}

// The bound of the Authorization header is within it; only what is longer is refused for its size.
func TestLargestCredentials(t *testing.T) {
	t.Parallel()
	const most = 20 << 10
	f := newFixture(t)
	for size, want := range map[int]string{most: "malformed", most + 1: "credentials_too_large"} {
		f.events.told = nil
		f.do("/", "Bearer "+strings.Repeat("a", size-len("Bearer ")))
		if len(f.events.told) != 1 || !strings.HasSuffix(f.events.told[0], ":"+want) {
			t.Errorf("%d bytes: %v", size, f.events.told)
		}
	}
}

// The log has the cause of a refusal, whether or not there was a certificate.
func TestCauseIsLogged(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.do("/", "Bearer a.b")
	if !strings.Contains(f.log.String(), "not three parts") {
		t.Error(f.log)
	}
	f.config.Certificate = func(*http.Request) (*mtls.Peer, error) { return nil, mtls.ErrNotTLS }
	f.handler = f.protect(t)
	f.do("/", "Bearer a.b")
	if !strings.Contains(f.log.String(), mtls.ErrNotTLS.Error()) {
		t.Error(f.log)
	}
}

// RFC 9110, Sections 11.6.1 and 10.2.3: a challenge goes with what other credentials would mend, Retry-After with what
// time would.
func TestRFC9110_11_6_1_HeadersOfRefusals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.config.Authorize = func(ctx context.Context, _ *tokens.Claims, _ *mtls.Peer) error {
		return &tokens.Error{Code: ctx.Value(codeKey{}).(string)}
	}
	f.handler = f.protect(t)
	guarded := f.handler
	for _, tc := range []struct {
		code             string
		status           int
		challenge, retry bool
	}{
		{tokens.CodeInvalidToken, http.StatusUnauthorized, true, false},
		{tokens.CodeInsufficientScope, http.StatusForbidden, true, false},
		{tokens.CodeServerError, http.StatusInternalServerError, false, false},
		{tokens.CodeTemporarilyUnavailable, http.StatusServiceUnavailable, false, true},
	} {
		f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			guarded.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), codeKey{}, tc.code)))
		})
		w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer))
		if w.Code != tc.status || (w.Header().Get("WWW-Authenticate") != "") != tc.challenge ||
			(w.Header().Get("Retry-After") != "") != tc.retry {
			t.Errorf("%s: %d %v", tc.code, w.Code, w.Header())
		}
	}
}

type codeKey struct{}

// RFC 6750, Section 3: a realm is of the characters that may stand between quotes.
func TestRFC6750_3_Realm(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for realm, ok := range map[string]bool{"a ~!": true, `a\b`: false, `a"b`: false, "a\x7f": false, "a\x1f": false, "é": false} {
		f.config.Realm = realm
		if _, err := resource.New(f.config); (err == nil) != ok {
			t.Errorf("%q: %v", realm, err)
		}
	}
}

// Whoever keeps a record is told of each refusal once, with the id that the answer carries, and of nothing else.
func TestRefusedIsTold(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var told []string
	f.config.Refused = func(r *http.Request, refusal *tokens.Error, id string) {
		told = append(told, r.Method+" "+refusal.Reason+" "+id)
	}
	f.handler = f.protect(t)
	if w := f.do("/", "Bearer "+f.issuer.Token(t, f.peer)); w.Code != http.StatusOK || len(told) != 0 {
		t.Errorf("accepted: %d, told %q", w.Code, told)
	}
	w := f.do("/")
	if diff := cmp.Diff([]string{"GET no_credentials " + w.Header().Get(resource.CorrelationHeader)}, told); diff != "" {
		t.Error(diff)
	}
}
