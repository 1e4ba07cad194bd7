// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// The decisions of narrow, in one table: what a client with these grants asks for, and what it gets.
func TestNarrow(t *testing.T) {
	t.Parallel()
	var (
		one     = []Grant{{Resource: ledger, Scopes: []string{"read", "write"}}}
		two     = []Grant{one[0], {Resource: reports, Scopes: []string{"print", "read"}, MaxLifetime: time.Minute}}
		guarded = []Grant{one[0], {Resource: admin, Scopes: []string{"manage"}, Explicit: true, MaxLifetime: time.Second}}
		bare    = []Grant{{Resource: ledger}}
		mixed   = []Grant{one[0], {Resource: reports}}
	)
	for _, c := range []struct {
		name             string
		grants           []Grant
		resources, scope string // space-separated
		audience, got    string // what is granted, or
		refused          string // the reason
	}{
		{name: "the only resource", grants: one, audience: ledger, got: "read write"},
		{name: "the only resource, one scope", grants: one, scope: "write", audience: ledger, got: "write"},
		{name: "order as asked", grants: one, scope: "write read", audience: ledger, got: "write read"},
		{name: "unknown scope", grants: one, scope: "read delete", refused: "scope_not_granted"},
		{name: "scope in another case", grants: one, scope: "Read", refused: "scope_not_granted"},
		{name: "nothing granted", refused: "resource_missing"},
		{name: "nothing granted, scope", scope: "read", refused: "scope_not_granted"},

		{name: "two resources, none named", grants: two, refused: "resource_ambiguous"},
		{name: "two resources, scope of both", grants: two, scope: "read", refused: "resource_ambiguous"},
		{name: "two resources, scope of one", grants: two, scope: "print", audience: reports, got: "print"},
		{name: "two resources, scopes of one", grants: two, scope: "print read", audience: reports, got: "print read"},
		{name: "two resources, scopes of each", grants: two, scope: "print write", refused: "resource_missing"},
		{name: "named", grants: two, resources: reports, audience: reports, got: "print read"},
		{name: "named, scope of the other", grants: two, resources: reports, scope: "write", refused: "scope_not_granted"},
		{name: "named twice", grants: two, resources: ledger + " " + ledger, audience: ledger, got: "read write"},
		{name: "both named, shared scope", grants: two, resources: ledger + " " + reports, refused: "scope_ambiguous"},
		{
			name: "both named, shared scope asked", grants: two, resources: ledger + " " + reports, scope: "read",
			refused: "scope_ambiguous",
		},
		{
			name: "both named, distinct scopes", grants: two, resources: ledger + " " + reports, scope: "print write",
			audience: ledger + " " + reports, got: "print write",
		},
		{
			name: "both named, scope of one", grants: two, resources: ledger + " " + reports, scope: "write",
			refused: "resource_without_scope",
		},
		{name: "named, not granted", grants: one, resources: reports, refused: "resource_not_granted"},
		{name: "one of two not granted", grants: one, resources: ledger + " " + reports, refused: "resource_not_granted"},

		{name: "explicit is no default", grants: guarded, audience: ledger, got: "read write"},
		{name: "explicit by its scope", grants: guarded, scope: "manage", refused: "resource_missing"},
		{name: "explicit alone", grants: guarded[1:], refused: "resource_missing"},
		{name: "explicit named", grants: guarded, resources: admin, audience: admin, got: "manage"},
		{name: "explicit named, other scope", grants: guarded, resources: admin, scope: "read", refused: "scope_not_granted"},

		{name: "resource without scopes", grants: bare, audience: ledger},
		{name: "resource without scopes, scope", grants: bare, resources: ledger, scope: "read", refused: "scope_not_granted"},
		{
			name: "with and without scopes", grants: mixed, resources: ledger + " " + reports, scope: "read",
			audience: ledger + " " + reports, got: "read",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, refused := narrow(c.grants, strings.Fields(c.resources), strings.Fields(c.scope))
			if refused != nil {
				if refused.Reason != c.refused {
					t.Errorf("refused with %s, want %q", refused.Reason, c.refused)
				}
				return
			}
			if c.refused != "" || strings.Join(got.audience, " ") != c.audience || strings.Join(got.scope, " ") != c.got {
				t.Errorf("got %v for %v, want %q for %q, refused %q", got.scope, got.audience, c.got, c.audience, c.refused)
			}
		})
	}
}

// The shortest bound of the chosen grants counts.
func TestNarrowLifetime(t *testing.T) {
	t.Parallel()
	grants := []Grant{
		{Resource: "https://a.example", MaxLifetime: time.Hour}, {Resource: "https://b.example", MaxLifetime: time.Minute},
		{Resource: "https://c.example"}, {Resource: "https://d.example", MaxLifetime: time.Second},
	}
	for _, order := range []string{"a b c", "c b a", "b a c"} {
		var named []string
		for _, host := range strings.Fields(order) {
			named = append(named, "https://"+host+".example")
		}
		got, refused := narrow(grants, named, nil)
		if refused != nil || got.maxLifetime != time.Minute {
			t.Errorf("%s: bound %v (%v), want one minute", order, got.maxLifetime, refused)
		}
	}
}

// RI-01: RFC 8707, Section 2: a resource is an absolute URI without a fragment.
func TestRFC8707_2_AbsoluteWithoutFragment(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	for _, bad := range []string{
		"/a", "a", "//host/a", "https://x/#f", "https://x/#", "#", "https:", "https://x/a b", "https://x/%zz", "://x",
		"https://x/\"", "https://x/<", "https://x/é", "https://x\\y", "1http://x", "", "https://x/\x7f", "https://[::1",
	} {
		// Granted or not, it is refused for what it is.
		s.grant("payments", Grant{Resource: bad, Scopes: []string{"read"}})
		_, err := s.Issue(t.Context(), Request{
			GrantType: ClientCredentials, ClientID: "payments", Peer: peer, Resources: []string{bad},
		})
		wantError(t, err, tokens.CodeInvalidTarget, "malformed_resource")
	}
	for _, good := range []string{
		"urn:example:ledger", "https://x", "https://x/?a=b", "https://[2001:db8::1]:8443/a%20b", "spiffe://td/api",
	} {
		s.grant("payments", Grant{Resource: good, Scopes: []string{"read"}})
		s.issue(t, Request{ClientID: "payments", Peer: peer, Resources: []string{good}})
	}
}

// RI-02, RI-04, RI-05: RFC 8707, Section 2: a resource that is not granted, character for character, is invalid_target
// and never invalid_scope; a query component is just part of the name.
func TestRFC8707_2_ExactComparison(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.enrol(t, "orders")
	s.grant("payments", Grant{Resource: "https://api.example", Scopes: []string{"read"}})
	s.grant("orders", Grant{Resource: "https://orders.example", Scopes: []string{"read"}})
	for _, resource := range []string{
		"https://orders.example", "https://api.example.evil", "https://api.example@evil", "HTTPS://API.example/",
		"https://api.example/", "https://api.example:443", "https://api.exampl", "https://api.example?a", "https://API.example",
		"https://api.example/../", "https://api%2eexample", "http://api.example",
	} {
		for _, scope := range []string{"", "read", "delete"} {
			a := s.post(t, &cert, ask("payments", "resource", resource, "scope", scope))
			a.want(t, 400, tokens.CodeInvalidTarget)
		}
	}
	s.post(t, &cert, ask("payments", "resource", "https://api.example")).wantToken(t)
}

// RI-03, AT-07: RFC 9068, Section 3; RFC 8707, Section 2: several resources make an audience of several, but not when a
// scope of theirs would mean two things.
func TestRFC9068_3_AmbiguousScope(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.grant("payments", Grant{Resource: ledger, Scopes: []string{"read", "write"}},
		Grant{Resource: reports, Scopes: []string{"read", "print"}})
	both := []string{"resource", ledger, "resource", reports}
	s.post(t, &cert, ask("payments", both...)).want(t, 400, tokens.CodeInvalidTarget)
	s.post(t, &cert, ask("payments", append(both, "scope", "read")...)).want(t, 400, tokens.CodeInvalidTarget)
	claims := s.post(t, &cert, ask("payments", append(both, "scope", "write print")...)).wantToken(t)
	if diff := cmp.Diff([]any{ledger, reports}, claims["aud"]); diff != "" {
		t.Errorf("aud (-want +got):\n%s", diff)
	}
}

// RI-06: RFC 8707, Section 2.2: scopes of another resource are refused when a resource is named.
func TestRFC8707_2_2_ScopesOfTheResource(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	s.grant("payments", Grant{Resource: ledger, Scopes: []string{"read"}},
		Grant{Resource: reports, Scopes: []string{"print"}})
	s.post(t, &cert, ask("payments", "resource", ledger, "scope", "print")).want(t, 400, tokens.CodeInvalidScope)
	a := s.post(t, &cert, ask("payments", "resource", ledger))
	if a.wantToken(t); a.Scope != "read" {
		t.Errorf("scope %q, want read", a.Scope)
	}
}

// FuzzScope holds notScopeToken to the grammar of RFC 6749, Section 3.3.
func FuzzScope(f *testing.F) {
	for _, s := range []string{"", "read", "a b", `"`, `\`, "\x7f", "é", "!", "#", "[", "]", "~"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		allowed := func(b byte) bool { return b == 0x21 || 0x23 <= b && b <= 0x5b || 0x5d <= b && b <= 0x7e }
		want := s != "" && !slices.ContainsFunc([]byte(s), func(b byte) bool { return !allowed(b) })
		if got := !notScopeToken(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	})
}

// FuzzResource checks that what is taken for an absolute URI without a fragment is one for net/url too.
func FuzzResource(f *testing.F) {
	for _, s := range []string{"", "https://x", "urn:a", "https://x#f", "/a", "a:b", "mailto:a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !isResource(s) {
			return
		}
		u, err := url.Parse(s)
		if err != nil || !u.IsAbs() || u.Fragment != "" || strings.Contains(s, "#") {
			t.Errorf("%q is taken for a resource", s)
		}
	})
}
