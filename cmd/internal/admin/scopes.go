// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

// The scopes of the operators' API, so that duties can be separated. Each stands for itself; ScopeAdmin is all of them.
const (
	ScopeAdmin    = "certbound:admin"
	ScopeRead     = "certbound:read"     // to see everything
	ScopeEnroll   = "certbound:enroll"   // to invite clients that are no operators
	ScopeRevoke   = "certbound:revoke"   // to revoke and disable: takes away only
	ScopeRegistry = "certbound:registry" // to add, enable and remove clients and resources
	ScopeTrust    = "certbound:trust"    // to add, replace and remove foreign CAs, and to register wildcards
	ScopeKeys     = "certbound:keys"     // for the keys of the service
	ScopeGrant    = "certbound:grant"    // to give scopes of this API, and credentials to who holds them
)

// Scopes returns all scopes of the operators' API: what its resource declares.
func Scopes() []string {
	return []string{ScopeAdmin, ScopeRead, ScopeEnroll, ScopeRevoke, ScopeRegistry, ScopeTrust, ScopeKeys, ScopeGrant}
}
