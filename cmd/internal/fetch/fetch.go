// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package fetch reads small documents from addresses that others chose: a client's jwks_uri, a foreign authority's
// revocation list. It is for the program's own packages, and it is the only way by which they read such a thing.
//
// Whoever names a URL to a server makes the server knock at doors that he cannot reach himself. So it refuses every
// address that is not on the public Internet unless the operator named the host, and judges the very address that is
// dialled, after names were resolved; it follows no redirect, uses no proxy, decompresses nothing, keeps no connection,
// sends no credentials, and stops at a size and a time. Nothing in it is to be called within a TLS handshake.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Bounds of a fetch.
const (
	defaultTimeout = 10 * time.Second
	maxURL         = 2048
	maxHeader      = 32 << 10
	maxConcurrent  = 8
)

// ErrRefused says that a URL may not be fetched: by its form, its host or the address that its host has.
var ErrRefused = errors.New("fetch refused")

// Config says where a Fetcher may go.
type Config struct {
	// AllowedHosts are the hosts that may be asked, each exactly, as HOST for all its ports or HOST:PORT. Empty: every
	// host that has a public address.
	AllowedHosts []string
	// AllowPrivate are the hosts, in the same form, that may also have a loopback address or one of a private network
	// (RFC 1918, RFC 4193, RFC 6598). They are allowed whatever AllowedHosts says. Addresses of the link, such as those
	// at which clouds hand out credentials, are never dialled.
	AllowPrivate []string
	// Roots verify servers; nil means the system's roots.
	Roots *x509.CertPool
	// Timeout bounds one fetch from the resolution of the name to the last byte; 0 means 10 s.
	Timeout time.Duration
	// Resolver resolves names; nil means the system's. What it says is judged like any other address.
	Resolver *net.Resolver
}

// Fetcher fetches documents. It is safe for concurrent use; at most eight fetches are under way at once, others wait.
type Fetcher struct {
	allowed  hostList
	private  hostList
	resolver *net.Resolver
	timeout  time.Duration
	client   *http.Client
	slots    chan struct{}
}

// New returns a Fetcher.
func New(c Config) *Fetcher {
	f := &Fetcher{
		allowed:  newHostList(c.AllowedHosts),
		private:  newHostList(c.AllowPrivate),
		resolver: c.Resolver,
		timeout:  c.Timeout,
		slots:    make(chan struct{}, maxConcurrent),
	}
	if f.timeout <= 0 {
		f.timeout = defaultTimeout
	}
	f.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            f.dial,
			TLSClientConfig:        &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12},
			DisableCompression:     true,
			DisableKeepAlives:      true, // an address is judged when it is dialled, so each fetch dials
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return f
}

// Get fetches what an https URL shows, at most limit bytes. It asks for the media types in accept, but does not hold
// the answer to them. The error is ErrRefused when nothing was asked, and otherwise says what failed; it never holds
// more of the URL than its host.
func (f *Fetcher) Get(ctx context.Context, rawURL string, limit int64, accept ...string) ([]byte, error) {
	return f.get(ctx, rawURL, limit, accept, "https")
}

// GetSigned is Get for documents that carry a signature of their own, such as revocation lists: plain http is allowed
// as well (RFC 5280, Section 8, warns of https here). What it returns was perhaps written by anybody on the way, so the
// caller must verify it, and must not let an old document take the place of a newer one.
func (f *Fetcher) GetSigned(ctx context.Context, rawURL string, limit int64, accept ...string) ([]byte, error) {
	return f.get(ctx, rawURL, limit, accept, "https", "http")
}

func (f *Fetcher) get(ctx context.Context, rawURL string, limit int64, accept []string, schemes ...string) ([]byte, error) {
	u, err := f.judge(rawURL, schemes)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("fetch from %s: %w", u.Host, ctx.Err())
	}
	data, err := f.ask(ctx, u, limit, accept)
	if err != nil {
		return nil, fmt.Errorf("fetch from %s: %w", u.Host, err)
	}
	return data, nil
}

// judge parses a URL and refuses what needs no resolution to be refused.
func (f *Fetcher) judge(rawURL string, schemes []string) (*url.URL, error) {
	u, err := Parse(rawURL, schemes...)
	if err != nil {
		return nil, err
	}
	if len(f.allowed) > 0 && !f.allowed.has(u) && !f.private.has(u) {
		return nil, fmt.Errorf("%w: the host %q is not among those that may be asked", ErrRefused, u.Host)
	}
	return u, nil
}

// Parse reads a URL that may be given to Get (with the scheme https) or GetSigned (https and http): absolute, with a
// host, without user name, password and fragment, at most 2048 characters. The error is ErrRefused. It resolves nothing.
func Parse(rawURL string, schemes ...string) (*url.URL, error) {
	if len(rawURL) > maxURL {
		return nil, fmt.Errorf("%w: the URL is longer than %d characters", ErrRefused, maxURL)
	}
	u, err := url.Parse(rawURL)
	if err != nil { // the error would show the URL, and a password in it
		return nil, fmt.Errorf("%w: not a URL", ErrRefused)
	}
	known := false
	for _, s := range schemes {
		known = known || u.Scheme == s
	}
	switch {
	case !known:
		return nil, fmt.Errorf("%w: the URL must begin with %s://", ErrRefused, strings.Join(schemes, ":// or "))
	case u.User != nil:
		return nil, fmt.Errorf("%w: the URL has a user name or a password in it", ErrRefused)
	case u.Hostname() == "" || u.Opaque != "":
		return nil, fmt.Errorf("%w: the URL names no host", ErrRefused)
	case strings.Contains(rawURL, "#"):
		return nil, fmt.Errorf("%w: the URL has a fragment", ErrRefused)
	}
	return u, nil
}

// ask makes one request.
func (f *Fetcher) ask(ctx context.Context, u *url.URL, limit int64, accept []string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, ErrRefused
	}
	request.Header.Set("User-Agent", "certbound")
	if len(accept) > 0 {
		request.Header.Set("Accept", strings.Join(accept, ", "))
	}
	response, err := f.client.Do(request)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, whose query may be a secret
		}
		return nil, err
	}
	defer response.Body.Close()
	data, err := read(response, limit)
	if ctx.Err() != nil {
		// A server that sees us leave may end its answer properly where it stands: half a document that looks whole.
		return nil, ctx.Err()
	}
	return data, err
}

// read takes the body of a response, if it is one that was asked for.
func read(response *http.Response, limit int64) ([]byte, error) {
	switch {
	case response.StatusCode >= 300 && response.StatusCode < 400:
		return nil, fmt.Errorf("status %d: redirects are not followed", response.StatusCode)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("status %d", response.StatusCode)
	case !plain(response.Header.Values("Content-Encoding")):
		return nil, errors.New("compressed, which was not asked for")
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("longer than %d bytes", limit)
	}
	return data, nil
}

// plain reports whether a body with these content codings is as it is.
func plain(codings []string) bool {
	for _, c := range codings {
		if c != "" && !strings.EqualFold(c, "identity") {
			return false
		}
	}
	return true
}
