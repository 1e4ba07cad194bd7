// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// The scopes of the operators' API, so that duties can be separated. Each stands for itself; ScopeAdmin is all of them.
const (
	ScopeAdmin    = "certbound:admin"
	ScopeRead     = "certbound:read"     // to see everything
	ScopeEnroll   = "certbound:enroll"   // to invite clients that are no operators
	ScopeRevoke   = "certbound:revoke"   // to revoke, disable and take certificates away: gives nothing
	ScopeRegistry = "certbound:registry" // to add, enable and remove clients and resources
	ScopeTrust    = "certbound:trust"    // to add, replace and remove foreign CAs, and to register wildcards
	ScopeKeys     = "certbound:keys"     // for the keys of the service
	ScopeGrant    = "certbound:grant"    // to give scopes of this API, credentials to who holds them, and the service's own names
)

// Scopes returns all scopes of the operators' API: what its resource declares.
func Scopes() []string {
	return []string{ScopeAdmin, ScopeRead, ScopeEnroll, ScopeRevoke, ScopeRegistry, ScopeTrust, ScopeKeys, ScopeGrant}
}

// scopes are those of the caller; in the transaction of a change, those that it holds there.
func (a *api) scopes(ctx context.Context) []string {
	if w, ok := ctx.Value(withinKey{}).(*within); ok {
		return w.scopes
	}
	if a.cfg.Scopes == nil {
		return []string{ScopeAdmin}
	}
	return a.cfg.Scopes(ctx)
}

func holds(scopes []string, scope string) bool {
	return slices.Contains(scopes, scope) || slices.Contains(scopes, ScopeAdmin)
}

// needAny refuses a caller who holds none of the scopes.
func (a *api) needAny(ctx context.Context, scopes []string) error {
	held := a.scopes(ctx)
	if slices.ContainsFunc(scopes, func(scope string) bool { return holds(held, scope) }) {
		return nil
	}
	return insufficientScope(scopes)
}

// needAll refuses a caller who lacks one of the scopes.
func (a *api) needAll(ctx context.Context, scopes []string) error {
	held := a.scopes(ctx)
	for _, scope := range scopes {
		if !holds(held, scope) {
			return insufficientScope([]string{scope})
		}
	}
	return nil
}

// insufficientScope names the scopes of which one is missing (RFC 6750, Section 3.1); the first is what the act is for.
func insufficientScope(scopes []string) *Error {
	return &Error{Status: http.StatusForbidden, Code: codeInsufficient, Scope: scopes[0],
		Description: fmt.Sprintf("this needs the scope %s", strings.Join(scopes, " or ")),
		Hint:        "ask an operator who holds it, or one with " + ScopeGrant + " for a client that holds it"}
}
