// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An assertion is good once, however many ask at the same moment; it is forgotten only when it has expired, and none of that is a version of the state.
func testAssertions(f *fixture) {
	before := f.stamp("state")
	var wg sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		wg.Go(func() { results[i] = f.UseAssertion(f.ctx(), [32]byte{1}, f.in(time.Minute)) })
	}
	wg.Wait()
	good := 0
	for _, err := range results {
		switch {
		case err == nil:
			good++
		case !errors.Is(err, ErrAssertionUsed):
			f.t.Error(err)
		}
	}
	if good != 1 {
		f.t.Errorf("%d of %d got it", good, len(results))
	}
	ok(f.t, f.UseAssertion(f.ctx(), [32]byte{2}, f.in(2*time.Minute)))
	ok(f.t, f.PruneAssertions(f.ctx(), f.in(time.Minute))) // at that very time it may still be good elsewhere
	if err := f.UseAssertion(f.ctx(), [32]byte{1}, f.in(time.Minute)); !errors.Is(err, ErrAssertionUsed) {
		f.t.Errorf("again: %v", err)
	}
	ok(f.t, f.PruneAssertions(f.ctx(), f.in(time.Minute+time.Microsecond)))
	if n := f.count("assertions"); n != 1 {
		f.t.Errorf("%d rows are left", n)
	}
	if err := f.UseAssertion(f.ctx(), [32]byte{2}, f.in(time.Minute)); !errors.Is(err, ErrAssertionUsed) {
		f.t.Errorf("after the pruning: %v", err)
	}
	ctx, cancel := context.WithCancel(f.ctx())
	cancel()
	if err := f.UseAssertion(ctx, [32]byte{3}, f.in(time.Minute)); err == nil {
		f.t.Error("a caller that is gone gets it")
	}
	if after := f.stamp("state"); after != before {
		f.t.Errorf("version %d became %d", before, after)
	}
}

// jwk is the public key as a member of a JSON Web Key Set, under this name.
func (k ownKey) jwk(t *testing.T, kid string) string {
	t.Helper()
	point, err := k.PublicKey.Bytes()
	ok(t, err)
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":%q,"x":%q,"y":%q}`, kid, b64(point[1:33]), b64(point[33:]))
}

// testAssertionKeys: a key that signs assertions is one client's, whatever it is called, until that is removed; once it was
// reported compromised it is nobody's, and what the client got until then is denied.
func testAssertionKeys(f *fixture) {
	one, two, three := newOwnKey(f.t), newOwnKey(f.t), newOwnKey(f.t)
	by := func(id string, keys ...string) Client {
		return Client{ID: id, AuthMethod: "private_key_jwt", Usage: "client", JWKS: `{"keys":[` + strings.Join(keys, ",") + `]}`}
	}
	ok(f.t, f.add(by("reports", one.jwk(f.t, "a"), two.jwk(f.t, "b"))))
	err := f.add(by("twin", three.jwk(f.t, "a"), two.jwk(f.t, "c")))
	want(f.t, err, ErrKeyTaken)
	if taken, is := errors.AsType[*AssertionKeyTakenError](err); !is || *taken != (AssertionKeyTakenError{KeyID: "c", ClientID: "reports"}) {
		f.t.Errorf("%v", err)
	}
	_, err = f.Client(f.ctx(), "twin")
	want(f.t, err, ErrNotFound)
	ok(f.t, f.add(by("twin", three.jwk(f.t, "a")))) // nothing of the refused one was kept
	ok(f.t, f.RemoveClient(f.ctx(), "reports"))
	ok(f.t, f.add(by("next", two.jwk(f.t, "a"), one.jwk(f.t, "b"))))
	before := len(f.denials())

	ok(f.t, f.change(f.ctx(), func(c *change) error {
		_, err := c.block(one.hash(f.t), f.clock.now())
		return err
	}))
	all := f.denials()
	if len(all) != before+1 || all[before].ClientID != "next" || !all[before].IssuedBefore.After(f.clock.now()) {
		f.t.Errorf("%+v", all)
	}
	ok(f.t, f.RemoveClient(f.ctx(), "next"))
	want(f.t, f.add(by("last", two.jwk(f.t, "a"), one.jwk(f.t, "b"))), ErrKeyBlocked)
	ok(f.t, f.add(by("last", two.jwk(f.t, "a"))))
	checkStamps(f.t, f.Store)
}

// CA-24: RFC 7523, Section 3: whoever has the key of an assertion is one client, and no second one.
func TestRFC7523_3_KeyOfOneClient(t *testing.T) {
	everyDatabase(t, func(t *testing.T, open opener) { testAssertionKeys(newFixture(t, open)) })
}

// A client that signs assertions has keys, or a place that has them, and nothing else vouches for it; it holds no scope of
// the operators' API; a place belongs to one client.
func testAssertingClients(f *fixture) {
	f.trust("partner")
	by := func(id string) Client {
		return Client{ID: id, AuthMethod: "private_key_jwt", Usage: "client", JWKS: `{"keys":[]}`, Scopes: []string{"read"}}
	}
	ok(f.t, f.add(by("reports")))
	got, err := f.Client(f.ctx(), "reports")
	ok(f.t, err)
	if diff := cmp.Diff(`{"keys":[]}`, got.JWKS); diff != "" || got.AuthMethod != "private_key_jwt" {
		f.t.Errorf("%s %+v", diff, got)
	}
	place := by("placed")
	place.JWKS, place.JWKSURI = "", "https://keys.example/"
	ok(f.t, f.add(place))
	place.ID = "other"
	if err := f.add(place); !errors.Is(err, ErrNameTaken) {
		f.t.Errorf("one place for two: %v", err)
	}
	for name, edit := range map[string]func(*Client){
		"both":        func(c *Client) { c.JWKSURI = "https://more.example/" },
		"neither":     func(c *Client) { c.JWKS = "" },
		"trust":       func(c *Client) { c.Trust = "partner" },
		"subject":     func(c *Client) { c.SubjectKind, c.SubjectValue = "tls_client_auth_san_dns", "a.example" },
		"certificate": func(c *Client) { c.Certificates = [][]byte{newOwnKey(f.t).cert(f.t, 1)} },
		"authority":   func(c *Client) { c.Scopes = []string{"certbound:read"} },
		"own CA": func(c *Client) {
			c.AuthMethod, c.SubjectKind, c.SubjectValue = "tls_client_auth", "tls_client_auth_san_uri", "spiffe://d/client/x"
		},
		"self-signed": func(c *Client) { c.AuthMethod, c.JWKSURI = "self_signed_tls_client_auth", "https://more.example/" },
	} {
		c := by("odd")
		edit(&c)
		if err := f.add(c); err == nil {
			f.t.Errorf("%s: registered", name)
		}
	}
	if err := f.Invite(f.ctx(), "reports", *f.code(1)); !errors.Is(err, ErrNotEnrolled) {
		f.t.Errorf("invited: %v", err)
	}
}

// CA-29: RFC 7523, Section 3: of two replicas that are shown one assertion at the same moment, one takes it.
func TestRFC7523_3_SingleUseAtReplicas(t *testing.T) {
	t.Parallel()
	url := pgDatabase(t)
	stores := []*Store{openURL(t, url, time.Now), openURL(t, url, time.Now)}
	for n := range byte(20) {
		var wg sync.WaitGroup
		var results [2]error
		for i, s := range stores {
			wg.Go(func() { results[i] = s.UseAssertion(t.Context(), [32]byte{n + 1}, time.Now().Add(time.Minute)) })
		}
		wg.Wait()
		if (results[0] == nil) == (results[1] == nil) {
			t.Errorf("assertion %d: %v, %v", n, results[0], results[1])
		}
		for _, err := range results {
			if err != nil && !errors.Is(err, ErrAssertionUsed) {
				t.Error(err)
			}
		}
	}
}
