// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package client is for programs that call resource servers with certificate-bound access tokens (RFC 8705): an
// http.RoundTripper that proves who it is with a client certificate, fetches tokens bound to that certificate, puts
// them on the requests that may carry them, and keeps doing so while the certificate is renewed under it.
//
// Certificate, tokens, connection pool and TLS session cache form one generation, which is swapped whole when the
// certificate changes. So a token never travels on a connection with another certificate, and no new connection
// resumes a session in which the server would still see the old one.
//
// The package refuses: endpoints and origins that are not https, metadata of another issuer, token types other than
// Bearer, answers that are too large or of the wrong content type, redirects of the token request, and tokens on
// requests to origins that were not listed. There is no way to switch off the verification of server certificates and
// no way to send a client secret.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/certbound/certbound/mtls"
)

// ErrClosed is returned by every method of a Transport after Close.
var ErrClosed = errors.New("token client is closed")

// Config says who the client is, what it asks for and who may receive it. Issuer, ClientID and KeyPair are required.
type Config struct {
	// Issuer is the issuer identifier, an https URL; compared byte for byte with the issuer's metadata.
	Issuer string
	// ClientID goes with every token request: RFC 8705, Section 2 demands it, and it is no secret.
	ClientID string
	// KeyPair holds the client certificate. When it is replaced, the next request starts a new generation.
	KeyPair *mtls.KeyPair
	// Roots verify the certificates of the issuer and of the resource servers. Nil means the system's.
	Roots *x509.CertPool
	// Scopes are asked for on every token request of RoundTrip and Token; empty leaves the choice to the issuer.
	Scopes []string
	// Resources are the resource indicators (RFC 8707) asked for; empty leaves the choice to the issuer.
	Resources []string
	// Origins are the origins ("https://api.example") that receive the token: scheme, host and port, no path.
	// Requests to any other origin go out without it.
	Origins []string
	// Metadata, when set, is used in place of discovery; its Issuer must equal Issuer.
	Metadata *Metadata
	// DialContext opens the connections; nil means the dialer of net/http, which honours the proxy environment.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger is told of failed refreshes, never of tokens. Nil discards.
	Logger *slog.Logger
}

// Transport is an http.RoundTripper that adds certificate-bound tokens. It is safe for concurrent use and must be
// closed after use. The zero value is not usable; see New.
type Transport struct {
	config   Config
	endpoint string
	want     request
	origins  map[string]bool

	// The context ends with Close: a fetch belongs to all who wait for it, so no single caller's context governs it.
	ctx     context.Context
	cancel  context.CancelFunc
	fetches sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	source  *tls.Certificate // what the key pair held when current was made or confirmed
	current *generation
}

// New checks the configuration, reads the issuer's metadata unless Config.Metadata is set (one request without a
// client certificate, bounded by ctx), and returns a Transport that has not fetched a token yet.
func New(ctx context.Context, c Config) (*Transport, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	origins, err := parseOrigins(c.Origins)
	if err != nil {
		return nil, err
	}
	metadata, err := c.metadata(ctx)
	if err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Transport{config: c, endpoint: metadata.MTLSTokenEndpoint(), origins: origins}
	t.want = newRequest(c.Scopes, c.Resources)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if err := t.adopt(); err != nil {
		t.cancel()
		return nil, err
	}
	return t, nil
}

func (c *Config) check() error {
	switch {
	case c.ClientID == "":
		return errors.New("client: no client id")
	case c.KeyPair == nil:
		return errors.New("client: no key pair")
	}
	if err := checkIssuer(c.Issuer); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

// metadata returns what the caller gave or what the issuer publishes. Discovery uses its own connection without a
// client certificate: the document is public and nobody there needs to know who asks.
func (c *Config) metadata(ctx context.Context) (*Metadata, error) {
	if c.Metadata != nil {
		if err := c.Metadata.check(c.Issuer); err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		return c.Metadata, nil
	}
	pool := newPool(mtls.ClientConfig(nil, c.Roots), c.DialContext)
	defer pool.CloseIdleConnections()
	return Discover(ctx, &http.Client{Transport: pool}, c.Issuer)
}

// Renewed adopts the key pair's current certificate at once, closing the idle connections of the old generation.
// Without it the change is noticed at the next request. It does no network traffic.
func (t *Transport) Renewed() error {
	g, err := t.enter()
	if err != nil {
		return err
	}
	g.leave()
	return nil
}

// Close stops fetches under way, closes idle connections and makes every later call fail with ErrClosed. Requests
// under way on connections of their own finish.
func (t *Transport) Close() {
	t.mu.Lock()
	closed := t.closed
	t.closed = true
	t.mu.Unlock()
	if closed {
		return
	}
	t.cancel()
	t.fetches.Wait()
	t.current.retire()
}

// CloseIdleConnections closes the connections of the current generation that serve no request; it is what
// http.Client.CloseIdleConnections calls.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	g := t.current
	t.mu.Unlock()
	g.pool.CloseIdleConnections()
}

// parseOrigins normalises the origins and refuses what is not one (CL-07 would be void for "https://a@b/").
func parseOrigins(list []string) (map[string]bool, error) {
	origins := make(map[string]bool, len(list))
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" ||
			(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
			return nil, fmt.Errorf("client: %q is not an https origin like https://api.example:8443", s)
		}
		origins[originOf(u)] = true
	}
	return origins, nil
}

// originOf is scheme, host and port of an URL (RFC 6454, Section 4), with the default port spelled out.
func originOf(u *url.URL) string {
	port := u.Port()
	if port == "" && u.Scheme == "https" {
		port = "443"
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// request is what a token is asked for: the part of the cache key that the caller chooses.
type request struct {
	scopes    []string
	resources []string
}

// newRequest sorts and deduplicates, since neither order nor repetition changes what is asked for.
func newRequest(scopes, resources []string) request {
	return request{scopes: sortedSet(scopes), resources: sortedSet(resources)}
}

func sortedSet(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}
