// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import "time"

// ClientRequest is the body of POST /clients. Where RFC 7591, Section 2 has a name for a member, that name is used.
type ClientRequest struct {
	ID string `json:"client_id"`
	// AuthMethod is empty or tls_client_auth: our own CA vouches for the client (RFC 8705, Section 2.1).
	AuthMethod string `json:"token_endpoint_auth_method,omitempty"`
	// Scope is a space separated list (RFC 6749, Section 3.3); every scope must be declared by a resource.
	Scope       string   `json:"scope,omitempty"`
	DNSNames    []string `json:"dns_names,omitempty"`
	IPAddresses []string `json:"ip_addresses,omitempty"`
	URIs        []string `json:"uris,omitempty"`
	// Usage is client (default), server or both.
	Usage     string   `json:"usage,omitempty"`
	Resources []string `json:"resources,omitempty"`
	// TokenTTLSeconds is the life of its tokens, 1 to 3600; nil stands for the service's default.
	TokenTTLSeconds *int64 `json:"token_ttl_seconds,omitempty"`
	// AllowReserved permits the service's own names, such as localhost.
	AllowReserved bool `json:"allow_reserved,omitempty"`
}

// Client is a registered client as GET /clients/{id} shows it, by the names of RFC 7591 and RFC 8705, Section 2.1.2.
type Client struct {
	ID          string   `json:"client_id"`
	AuthMethod  string   `json:"token_endpoint_auth_method"`
	SubjectDN   string   `json:"tls_client_auth_subject_dn,omitempty"`
	SANDNS      string   `json:"tls_client_auth_san_dns,omitempty"`
	SANURI      string   `json:"tls_client_auth_san_uri,omitempty"`
	SANIP       string   `json:"tls_client_auth_san_ip,omitempty"`
	SANEmail    string   `json:"tls_client_auth_san_email,omitempty"`
	Scope       string   `json:"scope"`
	DNSNames    []string `json:"dns_names"`
	IPAddresses []string `json:"ip_addresses"`
	URIs        []string `json:"uris"`
	Usage       string   `json:"usage"`
	Resources   []string `json:"resources"`
	// TokenTTLSeconds is 0 where the service's default holds.
	TokenTTLSeconds int64     `json:"token_ttl_seconds"`
	Disabled        bool      `json:"disabled"`
	Generation      uint64    `json:"generation"`
	CreatedAt       time.Time `json:"created_at"`
	UpdatedAt       time.Time `json:"updated_at"`
}

// ClientList is one page of GET /clients. Next is empty on the last page, else the `after` of the next.
type ClientList struct {
	Clients []Client `json:"clients"`
	Next    string   `json:"next,omitempty"`
}

// Invitation answers POST /clients and POST /clients/{id}/invite. Code is shown this once and stored nowhere; both code
// members are absent for a client that needs none.
type Invitation struct {
	ClientID      string     `json:"client_id"`
	AuthMethod    string     `json:"auth_method"`
	Code          string     `json:"code,omitempty"`
	CodeExpiresAt *time.Time `json:"code_expires_at,omitempty"`
}

// Change answers what alters a client or a resource without giving anything back.
type Change struct {
	ClientID string `json:"client_id,omitempty"`
	Resource string `json:"resource,omitempty"`
	Done     string `json:"done"`
	// AuditPending says that the change holds although the journal could not be written.
	AuditPending bool `json:"audit_pending,omitempty"`
}

// ResourceRequest is the body of POST /resources.
type ResourceRequest struct {
	Resource string `json:"resource"`
	// Scope is a space separated list, at least one.
	Scope string `json:"scope"`
	// Servers are the ids of the clients that run this resource server.
	Servers []string `json:"servers,omitempty"`
}

// Resource is a registered resource server, an audience of tokens (RFC 8707).
type Resource struct {
	Resource  string    `json:"resource"`
	Scope     string    `json:"scope"`
	Servers   []string  `json:"servers"`
	BuiltIn   bool      `json:"built_in"`
	CreatedAt time.Time `json:"created_at"`
}

// ResourceList is one page of GET /resources.
type ResourceList struct {
	Resources []Resource `json:"resources"`
	Next      string     `json:"next,omitempty"`
}

// Certificate is one certificate of the inventory. Serial is decimal; Status is valid, expired or revoked.
type Certificate struct {
	Serial      string     `json:"serial"`
	Thumbprint  string     `json:"x5t#S256"`
	ClientID    string     `json:"client_id"`
	Generation  uint64     `json:"generation"`
	Status      string     `json:"status"`
	NotBefore   time.Time  `json:"not_before"`
	NotAfter    time.Time  `json:"not_after"`
	RenewedFrom string     `json:"renewed_from,omitempty"`
	RevokedAt   *time.Time `json:"revoked_at,omitempty"`
	Reason      string     `json:"reason,omitempty"`
}

// CertificateList is one page of GET /certificates.
type CertificateList struct {
	Certificates []Certificate `json:"certificates"`
	Next         string        `json:"next,omitempty"`
}

// RevokeRequest is the body of POST /certificates/revoke; exactly one of Serial, Thumbprint and ClientID is given.
type RevokeRequest struct {
	Serial     string `json:"serial,omitempty"`
	Thumbprint string `json:"x5t#S256,omitempty"`
	ClientID   string `json:"client_id,omitempty"`
	// Reason is a name of RFC 5280, Section 5.3.1, such as keyCompromise; empty means unspecified.
	Reason string `json:"reason,omitempty"`
	// Only leaves the certificates renewed from the named one alone.
	Only bool `json:"only,omitempty"`
}

// Revocation answers POST /certificates/revoke: what this call revoked and what had been revoked before.
type Revocation struct {
	Revoked        []Certificate `json:"revoked"`
	AlreadyRevoked []Certificate `json:"already_revoked"`
	// AuditPending says that the revocation holds although the journal could not be written.
	AuditPending bool `json:"audit_pending,omitempty"`
}

// ErrorBody is every error answer: an error code registered for OAuth, what was wrong, and what to do about it.
type ErrorBody struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
	Hint        string `json:"hint,omitempty"`
}

// Status answers GET /status.
type Status struct {
	Issuer      string `json:"issuer"`
	TrustDomain string `json:"trust_domain"`
	Version     string `json:"version,omitempty"`
	// Clients neither disabled nor removed; certificates neither expired nor revoked; codes that can still be redeemed.
	Clients             int64 `json:"clients"`
	DisabledClients     int64 `json:"disabled_clients"`
	Resources           int64 `json:"resources"`
	Certificates        int64 `json:"certificates"`
	RevokedCertificates int64 `json:"revoked_certificates"`
	OpenCodes           int64 `json:"open_codes"`
}
