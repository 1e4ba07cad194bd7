// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"time"
)

// ClientRequest is the body of POST /clients. Where RFC 7591, Section 2 has a name for a member, that name is used.
//
// Who vouches for the client is our own CA, unless Trust names a foreign one, or Certificates or JWKSURI tell what the
// client vouches for itself with.
type ClientRequest struct {
	// ID is [a-z0-9][a-z0-9._-]{0,62}; that of a client of a foreign CA may also be a SPIFFE id of a foreign trust domain.
	ID string `json:"client_id"`
	// AuthMethod may be left out, but for private_key_jwt with a JWKSURI: it follows from who vouches. It is tls_client_auth
	// (RFC 8705, Section 2.1), self_signed_tls_client_auth (Section 2.2) or private_key_jwt (RFC 7523, Section 2.2).
	AuthMethod string `json:"token_endpoint_auth_method,omitempty"`
	// Trust is the name of the foreign CA that vouches for the client, by exactly one of the five members that follow
	// (RFC 8705, Section 2.1.2). An empty member counts as left out.
	Trust     string `json:"trust,omitempty"`
	SubjectDN string `json:"tls_client_auth_subject_dn,omitempty"`
	SANDNS    string `json:"tls_client_auth_san_dns,omitempty"`
	SANURI    string `json:"tls_client_auth_san_uri,omitempty"`
	SANIP     string `json:"tls_client_auth_san_ip,omitempty"`
	SANEmail  string `json:"tls_client_auth_san_email,omitempty"`
	// Certificates are the client's own, each exactly one in PEM, at most 8; JWKSURI is where it publishes them (RFC 8705,
	// Section 2.2.2). At most one of the two.
	Certificates []string `json:"certificates,omitempty"`
	JWKSURI      string   `json:"jwks_uri,omitempty"`
	// JWKS are the public keys that a client of private_key_jwt signs its assertions with, 1 to 20 for ES256, PS256 or
	// EdDSA, each with a kid (RFC 7591, Section 2); JWKSURI is where it publishes them. At most one of the two.
	JWKS json.RawMessage `json:"jwks,omitempty"`
	// Scope is a space separated list (RFC 6749, Section 3.3); every scope must be declared by a resource.
	Scope       string   `json:"scope,omitempty"`
	DNSNames    []string `json:"dns_names,omitempty"`
	IPAddresses []string `json:"ip_addresses,omitempty"`
	URIs        []string `json:"uris,omitempty"`
	// Usage is client (default), server or both.
	Usage     string   `json:"usage,omitempty"`
	Resources []string `json:"resources,omitempty"`
	// TokenTTLSeconds is the life of its tokens, 1 to the service's bound, at most 3600; nil stands for its default.
	TokenTTLSeconds *int64 `json:"token_ttl_seconds,omitempty"`
	// AllowReserved permits the service's own names, such as localhost. It takes certbound:grant besides what else the
	// registration takes, and waits for a second operator where two are asked for.
	AllowReserved bool `json:"allow_reserved,omitempty"`
}

// CertificatesRequest is the body of PUT /clients/{id}/certificates: all certificates that the self-signed client may
// use from now on, old and new ones together while it rotates. The answer is a Change.
type CertificatesRequest struct {
	// Certificates are each exactly one in PEM, 1 to 8.
	Certificates []string `json:"certificates"`
	// AllowReserved is as for ClientRequest.
	AllowReserved bool `json:"allow_reserved,omitempty"`
}

// Client is a registered client as GET /clients/{id} shows it, by the names of RFC 7591 and RFC 8705, Section 2.1.2.
type Client struct {
	ID         string `json:"client_id"`
	AuthMethod string `json:"token_endpoint_auth_method"`
	SubjectDN  string `json:"tls_client_auth_subject_dn,omitempty"`
	SANDNS     string `json:"tls_client_auth_san_dns,omitempty"`
	SANURI     string `json:"tls_client_auth_san_uri,omitempty"`
	SANIP      string `json:"tls_client_auth_san_ip,omitempty"`
	SANEmail   string `json:"tls_client_auth_san_email,omitempty"`
	// Trust is empty for clients of our own CA. Certificates and JWKSURI are for self_signed_tls_client_auth.
	Trust        string              `json:"trust,omitempty"`
	Certificates []PinnedCertificate `json:"certificates,omitempty"`
	JWKSURI      string              `json:"jwks_uri,omitempty"`
	// JWKS is for private_key_jwt, and so may JWKSURI be.
	JWKS json.RawMessage `json:"jwks,omitempty"`

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

// PinnedCertificate describes a certificate that somebody registered: a client's own, or one of a foreign CA.
type PinnedCertificate struct {
	Thumbprint string    `json:"x5t#S256"`
	Subject    string    `json:"subject"`
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
}

// TrustRequest is the body of POST /trusts and PUT /trusts/{name}. PUT replaces the CA's certificates; what it leaves out
// of the rest keeps its present value.
type TrustRequest struct {
	// Name is [a-z0-9][a-z0-9._-]{0,62}. It may be left out of PUT, and must otherwise be that of the path.
	Name string `json:"name,omitempty"`
	// CA is the foreign CA in PEM, at most 32 certificates: self-signed ones become anchors, others intermediates.
	CA string `json:"ca"`
	// CRL is its revocation list, DER or PEM (base64 in JSON); CRLURL is where to fetch it. At most one of the two.
	CRL    []byte `json:"crl,omitempty"`
	CRLURL string `json:"crl_url,omitempty"`
	// DropCRL is no member of its own: it is a crl_url that is there and empty. With Revocation off, PUT then drops the
	// present list.
	DropCRL bool `json:"-"`
	keptCRL bool `json:"-"` // CRL is what was there before
	// Revocation is hard (an unknown status refuses), soft (it raises an alarm) or off. Where there is no present value,
	// empty means hard where there is a revocation list and off where there is none.
	Revocation string `json:"revocation,omitempty"`
}

// UnmarshalJSON tells an empty crl_url from none.
func (t *TrustRequest) UnmarshalJSON(raw []byte) error {
	type plain TrustRequest
	if err := json.Unmarshal(raw, (*plain)(t)); err != nil {
		return err
	}
	var given struct {
		CRLURL *string `json:"crl_url"`
	}
	err := json.Unmarshal(raw, &given)
	t.DropCRL = given.CRLURL != nil && *given.CRLURL == ""
	return err
}

// MarshalJSON writes what UnmarshalJSON reads.
func (t TrustRequest) MarshalJSON() ([]byte, error) {
	type plain TrustRequest
	if !t.DropCRL {
		return json.Marshal(plain(t))
	}
	return json.Marshal(struct {
		plain
		CRLURL string `json:"crl_url"`
	}{plain: plain(t)})
}

// Trust is a foreign CA as GET /trusts and GET /trusts/{name} show it.
type Trust struct {
	Name string `json:"name"`
	// Source is registry, or file for one of the configuration, of which only the name and the health are known here.
	Source        string              `json:"source"`
	Anchors       []PinnedCertificate `json:"anchors"`
	Intermediates []PinnedCertificate `json:"intermediates"`
	Revocation    string              `json:"revocation,omitempty"`
	// PreviousRevocation is what revocation was, in the answer to PUT and in an approval of one.
	PreviousRevocation string `json:"previous_revocation,omitempty"`
	CRLURL             string `json:"crl_url,omitempty"`
	// CRLNextUpdate is when the revocation list that was given by value goes stale.
	CRLNextUpdate *time.Time `json:"crl_next_update,omitempty"`
	// Health is ok, or what is wrong with the CA's certificates or revocation list now. Empty where it is not known.
	Health    string     `json:"health,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
	UpdatedAt *time.Time `json:"updated_at,omitempty"`
}

// TrustList answers GET /trusts, in the order of names.
type TrustList struct {
	Trusts []Trust `json:"trusts"`
}

// Approval is a request that waits until a second operator confirms it. It answers, with status 202, what would
// otherwise have been done at once. It holds no secret: codes are made when it is confirmed, and POST
// /approvals/{id}/confirm answers what the request would have answered.
type Approval struct {
	ID string `json:"id"`
	// Kind is what is asked for: client.add, client.enable, client.invite, client.certificates, trust.add, trust.replace,
	// trust.remove, audit.erase or key.rotate; Target is the client or the trust that it is about, if any.
	Kind   string `json:"kind"`
	Target string `json:"target"`
	// Client is the client as it would be registered, Trust the foreign CA as it would be.
	Client *Client `json:"client,omitempty"`
	Trust  *Trust  `json:"trust,omitempty"`
	// AllowReserved says that the service's own names are permitted for it.
	AllowReserved bool `json:"allow_reserved,omitempty"`
	// Needs are the scopes that whoever confirms must hold.
	Needs       []string  `json:"needs"`
	RequestedBy string    `json:"requested_by"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// ApprovalList answers GET /approvals, oldest first.
type ApprovalList struct {
	Approvals []Approval `json:"approvals"`
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
	// AuditPending says that the record waits until the journal can be written; until then no code is redeemed either.
	AuditPending bool `json:"audit_pending,omitempty"`
}

func (i *Invitation) auditPending() { i.AuditPending = true }

// Change answers what alters something without giving anything back.
type Change struct {
	ClientID string `json:"client_id,omitempty"`
	Resource string `json:"resource,omitempty"`
	Trust    string `json:"trust,omitempty"`
	Approval string `json:"approval,omitempty"`
	Done     string `json:"done"`
	// AuditPending says that the change holds, and that its record waits until the journal can be written.
	AuditPending bool `json:"audit_pending,omitempty"`
}

func (c *Change) auditPending() { c.AuditPending = true }

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
	// WaitResources is for how many seconds the answer waits for resource servers to know of it; 0 does not ask.
	WaitResources int `json:"wait_resources,omitempty"`
}

// Follower is a client that runs a resource server.
type Follower struct {
	ClientID string `json:"client_id"`
	// Has says that all that follow the deny feed for it have acknowledged what was revoked. Without any there is none.
	Has bool `json:"has"`
}

// Revocation answers POST /certificates/revoke: what this call revoked and what had been revoked before.
type Revocation struct {
	Revoked        []Certificate `json:"revoked"`
	AlreadyRevoked []Certificate `json:"already_revoked"`
	// Disabled are clients that were disabled because their certificates are not ours to revoke.
	Disabled []string `json:"disabled,omitempty"`
	// Resources are the clients that run resource servers, when the request waited for them.
	Resources []Follower `json:"resources,omitempty"`
	// AuditPending says that the revocation holds, and that its record waits until the journal can be written.
	AuditPending bool `json:"audit_pending,omitempty"`
	// Durability is "single node" where the database may lose what it has committed, and this revocation with it, when it
	// fails over to another server. Empty: it does not, or has no other server.
	Durability string `json:"durability,omitempty"`
}

func (r *Revocation) auditPending() { r.AuditPending = true }

// ErrorBody is every error answer: an error code registered for OAuth, what was wrong, and what to do about it.
type ErrorBody struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
	Hint        string `json:"hint,omitempty"`
	// Scope is what the caller lacks, with insufficient_scope (RFC 6750, Section 3.1).
	Scope string `json:"scope,omitempty"`
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
	Trusts              int64 `json:"trusts"`
	Cluster
}

// Cluster is the database and the replicas that share it.
type Cluster struct {
	Database Database `json:"database"`
	// StateVersion counts the changes that decide something; Replicas are those that have a lease, none with SQLite.
	StateVersion int64     `json:"state_version"`
	Replicas     []Replica `json:"replicas"`
}

// Database is what the service keeps its state in.
type Database struct {
	Kind    string `json:"kind"`              // sqlite or postgresql
	Version string `json:"version,omitempty"` // the server's
	// Durability is "quorum" when a commit waits for other servers, "single node" when it does not.
	Durability string `json:"durability,omitempty"`
}

// Replica is one process that serves, or did a moment ago.
type Replica struct {
	Replica     string    `json:"replica"`
	This        bool      `json:"this"` // it is the one that answers
	Incarnation uint64    `json:"incarnation"`
	Address     string    `json:"address"`
	MTLSURL     string    `json:"mtls_url"` // that its metadata names
	Version     string    `json:"version"`  // of its program
	StartedAt   time.Time `json:"started_at"`
	// Lease is live or lapsed. What this replica says of others it judges by the database's clock, and by its own of itself.
	Lease     string    `json:"lease"`
	RenewedAt time.Time `json:"renewed_at"`
	// RenewedSecondsAgo is by the database's clock.
	RenewedSecondsAgo float64 `json:"renewed_seconds_ago"`
	// Applied is the version of the state that it acknowledges, Lag how many are newer.
	Applied int64 `json:"applied"`
	Lag     int64 `json:"lag"`
	// HeadSeq is where the database last saw its journal.
	HeadSeq uint64 `json:"head_seq"`
	// Trouble is why this replica has no lease.
	Trouble string `json:"trouble,omitempty"`
}

// SigningKey is a key that signs tokens, as GET /keys shows it.
type SigningKey struct {
	ID        string `json:"kid"`
	Algorithm string `json:"alg"`
	// State is announced (it will sign from Until on), active (it signs), or retiring (it is published until Until, since its
	// last token may live as long). Since is when it came into that state.
	State     string     `json:"state"`
	CreatedAt time.Time  `json:"created_at"`
	Since     time.Time  `json:"since"`
	Until     *time.Time `json:"until,omitempty"`
}

// KeyList answers GET /keys, oldest first.
type KeyList struct {
	Keys []SigningKey `json:"keys"`
}

// RotateRequest is the body of POST /keys/rotate. Emergency removes every key that there is, at once, and the keys of TLS
// session tickets; it waits for no second operator.
type RotateRequest struct {
	Emergency bool `json:"emergency,omitempty"`
}

// Rotation answers POST /keys/rotate with the keys as they are then.
type Rotation struct {
	Keys []SigningKey `json:"keys"`
	// Removed are the ids of the keys that an emergency removed. A resource server that follows the deny feed refuses at once
	// what they sign. One that does not accepts it for FreshSeconds at most; one that reaches neither the feed nor the key set
	// for StaleSeconds, so until AcceptedUntil, or for its own limit of the feed's age if that is less.
	Removed       []string   `json:"removed,omitempty"`
	FreshSeconds  int64      `json:"fresh_seconds,omitempty"`
	StaleSeconds  int64      `json:"stale_seconds,omitempty"`
	AcceptedUntil *time.Time `json:"accepted_until,omitempty"`
	AuditPending  bool       `json:"audit_pending,omitempty"`
}

func (r *Rotation) auditPending() { r.AuditPending = true }
