// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package issuer is the authorization server: it decides whether the service at the other end of a mutual-TLS
// connection gets an access token, for what, and for how long, and it says so in the forms of RFC 6749.
//
// It is for programs that issue certificate-bound tokens (RFC 8705) to services; there are no users here and no
// secrets. Server.Issue is the whole decision without HTTP; the handlers parse into it and render out of it. Clients,
// certificates, signing keys and the journal come in through the small interfaces Registry, Keys and Recorder. A client
// is known by a name in a certificate of the authority that it is tied to (tls_client_auth), by the very certificate
// that it registered (self_signed_tls_client_auth), or by what it signs with a key that it registered (private_key_jwt).
//
// It refuses: any token that would not be bound to the certificate of the connection, any authentication method but the
// one that the client registered, any scope or resource that was not granted, any grant that could not be recorded, and every
// way of putting parameters elsewhere than once in the form body.
package issuer

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// Values of Client.AuthMethod, as registered for RFC 8705, Sections 2.1.1 and 2.2.1. A client of any other method is
// refused.
const (
	TLSClientAuth           = "tls_client_auth"             // a name in a certificate of an authority that vouches for it
	SelfSignedTLSClientAuth = "self_signed_tls_client_auth" // the very certificate that was registered
)

// ClientCredentials is the grant type of RFC 6749, Section 4.4, the only one that is answered.
const ClientCredentials = "client_credentials"

// Values of Decision.Event.
const (
	EventToken        = "token"        // a token was asked for
	EventAuthenticate = "authenticate" // Authenticate refused on behalf of another endpoint
)

// ErrNotFound is what a Registry answers for a client or certificate that it does not know. Every other error of a
// Registry means that it could not look, and refuses the request with temporarily_unavailable.
var ErrNotFound = errors.New("not found")

// ErrRevoked is what a Revocation answers for a chain of which a certificate has been revoked.
var ErrRevoked = errors.New("certificate has been revoked")

// Registry is where clients and certificates are looked up, twice for every token, so it should answer from memory. What
// it returns is shared and never modified, here or by the Registry: a change is another value. Its methods are called
// concurrently.
type Registry interface {
	// Client returns the client registered under id, or ErrNotFound.
	Client(ctx context.Context, id string) (*Client, error)
	// Certificate returns the inventory's entry for a certificate of our own CA, or ErrNotFound.
	Certificate(ctx context.Context, t mtls.Thumbprint) (*Certificate, error)
}

// Client is a registered client. The zero value authenticates nobody.
type Client struct {
	// ID is the client_id.
	ID string
	// Generation grows each time the id is registered again; certificates of an older generation are worthless.
	Generation uint64
	// Disabled refuses the client at once, with the same answer as an unknown one.
	Disabled bool
	// AuthMethod is TLSClientAuth, SelfSignedTLSClientAuth or PrivateKeyJWT. What the other methods go by is not looked at.
	AuthMethod string
	// Subject is the one expectation of RFC 8705, Section 2.1.2, that the certificate must meet, for TLSClientAuth.
	Subject mtls.Subject
	// Anchors are the authorities that may vouch for this client, and no others: a certificate with the right subject
	// from another client's authority is a stranger's (RFC 8705, Section 7.4). Nil trusts nobody. For TLSClientAuth. For
	// PrivateKeyJWT they are our own CA, whose certificates must be in the inventory; nil demands that of none.
	Anchors *mtls.Anchors
	// Revocation knows what the authorities of Anchors have revoked; nil leaves it unjudged, as is right for our own
	// CA, whose revocations are in the inventory. For TLSClientAuth.
	Revocation Revocation
	// Certificates are the certificates that the client registered, for SelfSignedTLSClientAuth (RFC 8705, Section
	// 2.2). Nil authenticates nobody.
	Certificates CertificateSet
	// Keys are what the client signs its assertions with, for PrivateKeyJWT. Key is called for every request, concurrently,
	// and by anyone who names the client; so it answers from memory, and for a key that it does not know it neither waits
	// nor returns another error than tokens.ErrUnknownKey. Nil authenticates nobody.
	Keys tokens.Keys
	// Inventory demands, for clients of our own CA, that the Registry knows the certificate as this client's under
	// its present generation: a certificate minted with a stolen issuing key is not in there.
	Inventory bool
	// Grants are all that the client may ask for.
	Grants []Grant
	// TokenLifetime shortens or lengthens the server's default, within Config.MaxLifetime; 0 means the default.
	TokenLifetime time.Duration
}

// CertificateSet holds the certificates that a client registered, by value or by a jwks_uri (RFC 8705, Section 2.2).
// Several may be there at once, so that a client can change over from one to the next.
type CertificateSet interface {
	// Contains reports whether the certificate with this thumbprint is registered now. It is called for every request,
	// concurrently, and by anyone who names the client; so it answers from memory, and where it must fetch it does so
	// seldom and for a bounded time. An error means that it could not tell and refuses the request with
	// temporarily_unavailable. For a certificate that was never registered it must neither wait nor return an error: the
	// difference to an unknown client would tell a stranger who is registered. One that the client has just published
	// elsewhere may so be refused once, until it was fetched.
	//
	// A set that also has a method KeyHash(mtls.Thumbprint) (key [sha256.Size]byte, known bool), which answers from memory
	// as Config.KeyBlocked is asked, has a token found inactive that is bound to a certificate whose key was reported
	// compromised. Without it that is left to Config.Denials.
	Contains(ctx context.Context, t mtls.Thumbprint) (bool, error)
}

// Revocation knows what a foreign authority has revoked.
type Revocation interface {
	// Check judges a verified chain, from the client's certificate to the root, which it must not modify. It answers
	// nil, an error that is ErrRevoked, or any other error when the status cannot be known and that must not be
	// overlooked (RFC 5280, Section 6.3): both refuse the certificate. It is called for every request, concurrently,
	// and must answer from memory.
	Check(chain []*x509.Certificate, now time.Time) error
}

// Grant is what a client may have at one resource. When several resources are asked for in one token, only the names of
// scopes keep them apart; so a Registry whose resources share a scope name must list that name in each Grant where the
// resource would honour it, and Issue refuses to mix such Grants.
type Grant struct {
	// Resource is the identifier of RFC 8707, Section 2, compared byte by byte; it becomes the audience.
	Resource string
	// Scopes are the scope-tokens of RFC 6749, Section 3.3; none means that the resource knows no scopes.
	Scopes []string
	// MaxLifetime bounds tokens for this resource; 0 leaves it to the server's bound.
	MaxLifetime time.Duration
	// Explicit keeps the resource from ever being chosen by default: the request must name it.
	Explicit bool
}

// Certificate is an entry of the inventory: a certificate that our own CA issued.
type Certificate struct {
	// ClientID and Generation say for whom it was issued.
	ClientID   string
	Generation uint64
	// NotAfter ends the entry, also when the certificate itself says later; zero leaves it to the certificate.
	NotAfter time.Time
	// Revoked ends the entry at once.
	Revoked bool
}

// SigningKey is the key that signs tokens now.
type SigningKey struct {
	ID        string        // the "kid"
	Algorithm string        // tokens.ES256, EdDSA, PS256, RS256, MLDSA44 or MLDSA65
	Signer    crypto.Signer // of the kind that Algorithm asks for; used concurrently
}

// Keys holds the issuer's signing keys. Both methods are called concurrently and should answer from memory.
type Keys interface {
	// Signing returns the key to sign with. Its public half must be among Published.
	Signing() (SigningKey, error)
	// Published returns every key that a verifier may still meet.
	Published() []tokens.PublicKey
}

// Servers knows who runs the resource servers.
type Servers interface {
	// Serves reports whether the client runs a resource server of this resource, and so may ask about the tokens that were
	// issued for it. It is called concurrently and should answer from memory. An error refuses the request with
	// temporarily_unavailable.
	Serves(ctx context.Context, clientID, resource string) (bool, error)
}

// Denials knows which tokens are refused although they have not expired.
type Denials interface {
	// Denied reports whether a token with these claims, signed by the key keyID, is refused. It is called concurrently and
	// should answer from memory; it must not keep or modify the claims. An error refuses the request with
	// temporarily_unavailable.
	Denied(ctx context.Context, claims *tokens.Claims, keyID string) (bool, error)
}

// Recorder writes decisions down. Record must return before the answer leaves, and must not give up because ctx is
// cancelled: the caller may be gone while the decision stands. An error refuses a grant with temporarily_unavailable;
// a refusal stays a refusal.
type Recorder interface {
	Record(ctx context.Context, d Decision) error
}

// Decision is one line for the journal: what was granted or refused, to whom and why. Scope and Audience are shared and
// must not be modified.
type Decision struct {
	Time    time.Time
	Event   string // EventToken, EventAuthenticate or EventRevoke
	Granted bool
	// Reason is a machine-readable word in snake_case that says why a request was refused; empty when granted.
	Reason string
	// ClientID is what the request claimed; it is proven only when Authenticated.
	ClientID string
	// Authenticated says that the certificate was the client's own, so that records of strangers can be told apart.
	Authenticated bool
	Thumbprint    mtls.Thumbprint
	Address       string
	CorrelationID string
	// TokenID, Scope, Audience and Expires describe the token; they are empty in refusals, but for the TokenID where one
	// was dropped after it had been recorded as granted.
	TokenID  string
	Scope    []string
	Audience []string
	Expires  time.Time
}

// Events is told what happened, for metrics. Its methods are called concurrently and must not block.
type Events interface {
	// TokenIssued reports a token and how long its decision took, record included.
	TokenIssued(d time.Duration)
	// TokenRefused reports a refusal by its registered error code and its machine-readable reason.
	TokenRefused(code, reason string)
	// TokenIntrospected reports an answer to a client that asked about a token.
	TokenIntrospected(active bool)
}

// Defaults of Config.
const (
	DefaultLifetime    = 10 * time.Minute
	DefaultMaxLifetime = time.Hour
)

// Config is what New needs. Registry, Keys, Recorder, Issuer and MTLSURL are required.
type Config struct {
	// Issuer is the issuer identifier of RFC 8414, Section 2: an https URL without query or fragment.
	Issuer string
	// MTLSURL is the origin of the listener that asks for certificates, such as https://auth.example:9443; the token
	// endpoint lies under it.
	MTLSURL string
	// Registry knows clients and certificates, Keys signs, Recorder keeps the journal.
	Registry Registry
	// KeyBlocked reports whether the public key with this SHA-256 of its SubjectPublicKeyInfo was reported compromised:
	// it then authenticates nobody, whoever vouches for it. It is asked for every request and answers from memory, unless
	// what it remembers is not known to be all. An error says that it cannot be known now: the request is refused for the
	// moment. Nil blocks none.
	KeyBlocked func(ctx context.Context, key [sha256.Size]byte) (bool, error)
	// Assertions makes PrivateKeyJWT a method that clients may be registered with. Nil refuses every assertion.
	Assertions Assertions
	Keys       Keys
	Recorder   Recorder
	// Servers knows who may ask about which tokens (RFC 7662). Nil offers no introspection.
	Servers Servers
	// Denials knows which tokens are refused although they have not expired. Nil denies none.
	Denials Denials
	// Revoker ends tokens before their time; nil where there is no revocation endpoint.
	Revoker Revoker
	// Gate says whether this server may decide now. Nil means always.
	Gate Gate
	// Events may be nil.
	Events Events
	// Authenticated is told of each client whose request authenticated at an endpoint that records refusals only, for
	// whoever counts requests. The token endpoint's records say as much. It is called concurrently, must not block, and may
	// be nil.
	Authenticated func(ctx context.Context, clientID string, certificate mtls.Thumbprint)
	// Lifetime of a token unless the client has its own: whole seconds, default DefaultLifetime or, if that is shorter,
	// MaxLifetime.
	Lifetime time.Duration
	// MaxLifetime bounds every token: whole seconds, default DefaultMaxLifetime.
	MaxLifetime time.Duration
	// Scopes returns what the metadata lists as scopes_supported; nil, or no scopes, leaves the member out.
	Scopes func() []string
	// Logger gets failures of the server itself and, at debug level, refusals. A failure that callers meet before they
	// are authenticated is an error once a minute, and debug otherwise. Nil discards.
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Server issues tokens. Its methods are safe for concurrent use.
type Server struct {
	issuer        string
	realm         string // quoted for WWW-Authenticate
	keysURL       string
	mtlsURL       string // without a trailing slash
	tokenURL      string
	metadataPaths []string
	registry      Registry
	keyBlocked    func(context.Context, [sha256.Size]byte) (bool, error)
	assertions    Assertions
	keys          Keys
	recorder      Recorder
	servers       Servers
	denials       Denials
	introspected  *jose.Cache[*ownToken]
	revoker       Revoker
	gate          Gate
	events        Events
	authenticated func(context.Context, string, mtls.Thumbprint)
	lifetime      time.Duration
	maxLifetime   time.Duration
	scopes        func() []string
	logger        *slog.Logger
	now           func() time.Time
	failures      *failures
}

// Paths of the endpoints. They do not move when the issuer identifier has a path.
const (
	TokenPath      = "/oauth2/token"
	IntrospectPath = "/oauth2/introspect"
	KeysPath       = "/.well-known/jwks.json"
)

// New checks the configuration and returns a Server. It fails on anything that would otherwise show only later: a
// missing part, an issuer identifier that RFC 8414, Section 2, forbids, or a lifetime that is not whole seconds.
func New(c Config) (*Server, error) {
	if c.Registry == nil || c.Keys == nil || c.Recorder == nil {
		return nil, errors.New("issuer: Registry, Keys and Recorder are required")
	}
	issuer, err := parseIssuer(c.Issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: identifier %q: %w", c.Issuer, err)
	}
	base, err := parseIssuer(c.MTLSURL)
	if err != nil {
		return nil, fmt.Errorf("issuer: mutual-TLS URL %q: %w", c.MTLSURL, err)
	}
	if strings.TrimSuffix(base.Path, "/") != "" {
		return nil, fmt.Errorf("issuer: mutual-TLS URL %q: has a path, but endpoints never move under one", c.MTLSURL)
	}
	s := &Server{
		issuer:        c.Issuer,
		realm:         quote(c.Issuer),
		keysURL:       issuer.Scheme + "://" + issuer.Host + KeysPath,
		mtlsURL:       base.Scheme + "://" + base.Host,
		tokenURL:      base.Scheme + "://" + base.Host + TokenPath,
		metadataPaths: metadataPaths(strings.TrimSuffix(issuer.Path, "/")),
		registry:      c.Registry,
		keyBlocked:    c.KeyBlocked,
		assertions:    c.Assertions,
		keys:          c.Keys,
		recorder:      c.Recorder,
		servers:       c.Servers,
		denials:       c.Denials,
		introspected:  jose.NewCache[*ownToken](introspectedBytes),
		revoker:       c.Revoker,
		gate:          c.Gate,
		events:        c.Events,
		authenticated: c.Authenticated,
		lifetime:      c.Lifetime,
		maxLifetime:   c.MaxLifetime,
		scopes:        c.Scopes,
		logger:        c.Logger,
		now:           c.Now,
		failures:      &failures{last: make(map[string]time.Time)},
	}
	if err := s.setDefaults(); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return s, nil
}

func (s *Server) setDefaults() error {
	if s.events == nil {
		s.events = noEvents{}
	}
	if s.scopes == nil {
		s.scopes = func() []string { return nil }
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.maxLifetime == 0 {
		s.maxLifetime = DefaultMaxLifetime
	}
	if s.lifetime == 0 {
		s.lifetime = min(DefaultLifetime, s.maxLifetime)
	}
	for _, d := range []time.Duration{s.lifetime, s.maxLifetime} {
		if d < time.Second || d%time.Second != 0 {
			return fmt.Errorf("token lifetime %v: must be whole seconds, at least one", d)
		}
	}
	if s.lifetime > s.maxLifetime {
		return fmt.Errorf("token lifetime %v is above its bound %v", s.lifetime, s.maxLifetime)
	}
	return nil
}

// CheckIdentifier says why raw cannot be an issuer identifier, nil when it can: for a program that wants to know before
// it has anything else (RFC 8414, Section 2).
func CheckIdentifier(raw string) error {
	_, err := parseIssuer(raw)
	return err
}

// parseIssuer holds a URL to RFC 8414, Section 2: https, a host, no query, no fragment; and to a path that every router
// leaves alone.
func parseIssuer(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("must be an https URL with a host")
	case u.User != nil:
		return nil, errors.New("must not name a user")
	case strings.ContainsAny(raw, "?#\"\\"):
		return nil, errors.New("must have no query and no fragment")
	case u.RawPath != "" || strings.Contains(raw, "%"):
		return nil, errors.New("must have no percent-encoding")
	case u.Path != "" && u.Path != "/" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/"):
		return nil, errors.New("its path must be in plain form, without empty or dot segments")
	}
	return u, nil
}

type noEvents struct{}

func (noEvents) TokenIssued(time.Duration) {}
func (noEvents) TokenRefused(_, _ string)  {}
func (noEvents) TokenIntrospected(bool)    {}

// caller is what a context says of whoever asks. It is never modified.
type caller struct{ address, correlation string }

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return *c
	}
	return caller{}
}

// CorrelationHeader is the response header that carries the correlation id.
const CorrelationHeader = "X-Correlation-Id"

// WithCaller is WithAddress and WithCorrelationID in one.
func WithCaller(ctx context.Context, address, correlationID string) context.Context {
	return context.WithValue(ctx, callerKey{}, &caller{address, correlationID})
}

// WithCorrelationID returns a context that carries the id under which a request is logged and recorded. The id must
// have been made by the server or checked: it is written into the journal and into a response header.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	return WithCaller(ctx, Address(ctx), id)
}

// CorrelationID returns the id set by WithCorrelationID, or "".
func CorrelationID(ctx context.Context) string { return callerOf(ctx).correlation }

// WithAddress returns a context that carries the network address of the caller, for the journal. TokenHandler uses the
// request's remote address where it is not set.
func WithAddress(ctx context.Context, address string) context.Context {
	return WithCaller(ctx, address, CorrelationID(ctx))
}

// Address returns the address set by WithAddress, or "".
func Address(ctx context.Context) string { return callerOf(ctx).address }
