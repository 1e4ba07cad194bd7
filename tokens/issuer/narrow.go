// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"net/url"
	"slices"
	"time"

	"github.com/certbound/certbound/tokens"
)

// target is what a token is for: its audience, its scope, and the bound that the grants put on its life (0 for none).
type target struct {
	audience    []string
	scope       []string
	maxLifetime time.Duration
}

// narrow chooses the grants that a request is about and cuts the scope to them. It never gives less than what was asked
// without saying so: a request that cannot be met whole is refused.
func narrow(grants []Grant, resources, scope []string) (target, *tokens.Error) {
	if slices.ContainsFunc(scope, notScopeToken) {
		return target{}, refusal(tokens.CodeInvalidScope, "malformed_scope",
			"scope must be scope-tokens separated by single spaces")
	}
	chosen, refused := choose(grants, resources, scope)
	if refused != nil {
		return target{}, refused
	}
	return combine(chosen, scope)
}

// choose returns the grants at the named resources or, when none is named, the only one that fits.
func choose(grants []Grant, resources, scope []string) ([]*Grant, *tokens.Error) {
	if len(resources) == 0 {
		g, refused := defaultGrant(grants, scope)
		if refused != nil {
			return nil, refused
		}
		return []*Grant{g}, nil
	}
	chosen := make([]*Grant, 0, min(len(resources), len(grants)))
	for _, r := range resources {
		if !isResource(r) {
			return nil, refusal(tokens.CodeInvalidTarget, "malformed_resource",
				"resource must be an absolute URI without a fragment")
		}
		// Exact comparison: a prefix or a different spelling is another resource.
		i := slices.IndexFunc(grants, func(g Grant) bool { return g.Resource == r })
		if i < 0 {
			return nil, refusal(tokens.CodeInvalidTarget, "resource_not_granted",
				"a named resource is unknown or not granted to the client")
		}
		if !slices.Contains(chosen, &grants[i]) {
			chosen = append(chosen, &grants[i])
		}
	}
	return chosen, nil
}

// defaultGrant returns the only grant that holds every scope asked for. Explicit grants are never meant unless named.
func defaultGrant(grants []Grant, scope []string) (*Grant, *tokens.Error) {
	for _, s := range scope {
		if !slices.ContainsFunc(grants, func(g Grant) bool { return slices.Contains(g.Scopes, s) }) {
			return nil, notGranted()
		}
	}
	var only *Grant
	for i := range grants {
		g := &grants[i]
		if g.Explicit || !containsAll(g.Scopes, scope) {
			continue
		}
		if only != nil {
			return nil, refusal(tokens.CodeInvalidTarget, "resource_ambiguous",
				"several resources fit; name the one that is meant with the resource parameter")
		}
		only = g
	}
	if only == nil {
		return nil, refusal(tokens.CodeInvalidTarget, "resource_missing",
			"no single resource fits; name the one that is meant with the resource parameter")
	}
	return only, nil
}

// combine cuts the scope to the chosen grants. In a token for several resources a scope name that two of them share
// would mean both (RFC 9068, Section 3), and a resource that gets none of the scopes does not belong into the audience;
// a resource that knows no scopes at all does.
func combine(chosen []*Grant, asked []string) (target, *tokens.Error) {
	t := target{audience: make([]string, 0, len(chosen))}
	for _, g := range chosen {
		t.audience = append(t.audience, g.Resource)
		if g.MaxLifetime > 0 && (t.maxLifetime == 0 || g.MaxLifetime < t.maxLifetime) {
			t.maxLifetime = g.MaxLifetime
		}
	}
	var refused *tokens.Error
	if t.scope, refused = grantedScope(chosen, asked); refused != nil {
		return target{}, refused
	}
	if len(chosen) == 1 {
		return t, nil
	}
	for _, s := range t.scope {
		if holders(chosen, s) > 1 {
			return target{}, refusal(tokens.CodeInvalidTarget, "scope_ambiguous",
				"the named resources share a scope; ask for one token each")
		}
	}
	for _, g := range chosen {
		if len(g.Scopes) > 0 && !slices.ContainsFunc(t.scope, func(s string) bool { return slices.Contains(g.Scopes, s) }) {
			return target{}, refusal(tokens.CodeInvalidTarget, "resource_without_scope",
				"one of the named resources knows none of the requested scopes")
		}
	}
	return t, nil
}

// grantedScope returns the scopes asked for, each once, or all of the chosen grants' when none was asked for.
func grantedScope(chosen []*Grant, asked []string) ([]string, *tokens.Error) {
	if len(asked) == 0 && len(chosen) == 1 {
		return chosen[0].Scopes, nil
	}
	if len(asked) == 0 {
		var all []string
		for _, g := range chosen {
			all = append(all, g.Scopes...)
		}
		return all, nil
	}
	scope := make([]string, 0, min(len(asked), 8))
	for _, s := range asked {
		if slices.Contains(scope, s) {
			continue
		}
		if holders(chosen, s) == 0 {
			return nil, notGranted()
		}
		scope = append(scope, s)
	}
	return scope, nil
}

func notGranted() *tokens.Error {
	return refusal(tokens.CodeInvalidScope, "scope_not_granted",
		"a requested scope is unknown, or not granted to the client at this resource")
}

func holders(chosen []*Grant, scope string) int {
	n := 0
	for _, g := range chosen {
		if slices.Contains(g.Scopes, scope) {
			n++
		}
	}
	return n
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// notScopeToken reports what is not a scope-token of RFC 6749, Section 3.3: 1*( %x21 / %x23-5B / %x5D-7E ).
func notScopeToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return true
		}
	}
	return s == ""
}

// isResource reports whether s is an absolute URI without a fragment (RFC 8707, Section 2; RFC 3986, Section 4.3).
func isResource(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '#' ||
			c == '^' || c == '`' || c == '{' || c == '|' || c == '}' {
			return false
		}
	}
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && (u.Host != "" || u.Opaque != "" || u.Path != "")
}
