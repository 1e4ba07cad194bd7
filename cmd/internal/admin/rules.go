// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// Bounds of a registration.
const (
	maxNames    = 100  // DNS names, addresses and URIs of one client together
	maxScopes   = 100  // of one client or resource
	maxScope    = 128  // bytes of one scope-token
	maxURI      = 2048 // bytes of one URI
	maxServers  = 100  // of one resource
	maxTokenTTL = time.Hour
)

// rules judge registrations: pure functions of the request, what is registered already, and the service's own names.
type rules struct {
	trustDomain string
	names       map[string]bool // the service's own DNS names, in lower case
	addresses   map[netip.Addr]bool
	service     []string // addresses of the service: no resource may equal or prefix one
	ownCAs      []*x509.Certificate
	maxTokenTTL time.Duration // of the service; it shortens what lives longer
}

func newRules(cfg Config) (rules, error) {
	r := rules{
		trustDomain: cfg.TrustDomain,
		names:       map[string]bool{"localhost": true},
		addresses:   make(map[netip.Addr]bool),
		service:     append([]string{cfg.Issuer, cfg.Issuer + Prefix}, cfg.Endpoints...),
		ownCAs:      cfg.OwnCAs,
		maxTokenTTL: min(cmp.Or(cfg.MaxTokenTTL, maxTokenTTL), maxTokenTTL),
	}
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil {
		return rules{}, fmt.Errorf("admin: reading the issuer: %w", err)
	}
	for _, name := range append([]string{issuer.Hostname()}, cfg.Reserved...) {
		if addr, err := netip.ParseAddr(name); err == nil {
			r.addresses[addr.Unmap()] = true
			continue
		}
		r.names[strings.ToLower(strings.TrimSuffix(name, "."))] = true
	}
	return r, nil
}

// client judges a registration against the resources there are and returns the row to store.
func (r rules) client(req *ClientRequest, resources []store.Resource, now time.Time) (store.Client, error) {
	var none store.Client
	c, err := r.vouched(req, now)
	if err != nil {
		return none, err
	}
	if c.TokenTTL, err = r.tokenTTL(req.TokenTTLSeconds); err != nil {
		return none, err
	}
	if c.Scopes, err = parseScopes(req.Scope); err != nil {
		return none, err
	}
	if c.Resources, err = knownResources(req.Resources, c.Scopes, resources); err != nil {
		return none, err
	}
	if err := declared(c, resources); err != nil {
		return none, err
	}
	return c, nil
}

// givesAuthority reports whether a scope belongs to the operators' API.
func givesAuthority(scope string) bool { return strings.HasPrefix(scope, ScopePrefix) }

// mayHoldAuthority reports whether a client may hold scopes of the operators' API: its certificate must be one that only
// we can replace, so it is of our own CA or registered by value.
func mayHoldAuthority(c store.Client) bool {
	return c.Trust == "" && (c.AuthMethod == byCA || len(c.Certificates) > 0)
}

func parseUsage(s string) (pki.Usage, error) {
	if s == "" {
		return pki.UsageClient, nil
	}
	usage, err := pki.ParseUsage(s)
	if err != nil {
		return "", invalidMetadata("use client, server or both", "'%s' is not a usage", printable(s))
	}
	return usage, nil
}

func (r rules) tokenTTL(seconds *int64) (time.Duration, error) {
	if seconds == nil {
		return 0, nil
	}
	if *seconds < 1 || *seconds > int64(maxTokenTTL/time.Second) {
		return 0, invalidMetadata("use whole seconds, at least one and at most an hour", "a token cannot live %d seconds", *seconds)
	}
	ttl := time.Duration(*seconds) * time.Second
	if ttl > r.maxTokenTTL {
		return 0, invalidMetadata(fmt.Sprintf("use at most %s, which is token.max_lifetime of the service's configuration", r.maxTokenTTL),
			"a token cannot live %s here", ttl)
	}
	return ttl, nil
}

// certificateNames judges the names that the client's certificate will carry. A name of the service in another's
// certificate would let that client pose as the service to everyone who trusts our root.
func (r rules) certificateNames(req *ClientRequest, c *store.Client) error {
	if n := len(req.DNSNames) + len(req.IPAddresses) + len(req.URIs); n > maxNames {
		return invalidMetadata(fmt.Sprintf("use at most %d", maxNames), "%d names are too many for one certificate", n)
	}
	for _, raw := range req.DNSNames {
		name, err := dnsName(raw)
		if err != nil {
			return err
		}
		if r.reservedName(name) && !req.AllowReserved {
			return reserved(name)
		}
		c.DNS = appendNew(c.DNS, name)
	}
	for _, raw := range req.IPAddresses {
		addr, err := ipAddress(raw)
		if err != nil {
			return err
		}
		if r.reservedAddress(addr) && !req.AllowReserved {
			return reserved(addr.String())
		}
		c.IPs = appendNew(c.IPs, addr.String())
	}
	for _, raw := range req.URIs {
		host, err := certificateURI(raw)
		if err != nil {
			return err
		}
		if r.reservedHost(host) && !req.AllowReserved {
			return reserved(raw)
		}
		c.URIs = appendNew(c.URIs, raw)
	}
	return nil
}

func reserved(name string) error {
	return conflict(codeMetadata, fmt.Sprintf("the name '%s' is reserved for the service itself", printable(name)),
		"choose another name; --allow-reserved permits it to who holds "+ScopeGrant+", for demonstrations on one machine")
}

func (r rules) reservedName(name string) bool {
	// RFC 6761, Section 6.3: names below localhost are loopback too.
	return r.names[name] || strings.HasSuffix(name, ".localhost")
}

func (r rules) reservedAddress(addr netip.Addr) bool { return addr.IsLoopback() || r.addresses[addr] }

// posesAsUs reports whether a certificate of our CA for the client would have a name of the service.
func (r rules) posesAsUs(c store.Client) bool {
	return slices.ContainsFunc(slices.Concat(c.DNS, c.IPs), r.reservedHost) || slices.ContainsFunc(c.URIs, r.reservedURI)
}

func (r rules) reservedHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return r.reservedAddress(addr.Unmap())
	}
	return r.reservedName(strings.ToLower(strings.TrimSuffix(host, ".")))
}

// dnsName returns the name in lower case, as DNS compares it.
func dnsName(raw string) (string, error) {
	name := strings.ToLower(raw)
	if strings.Contains(name, "*") {
		return "", invalidMetadata("name each host", "wildcards such as '%s' are not issued", printable(raw))
	}
	if err := pki.CheckDNSName(name); err != nil {
		return "", invalidMetadata("use a host name such as ledger.example; addresses go to --ip", "'%s' is not a DNS name", printable(raw))
	}
	return name, nil
}

func ipAddress(raw string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(raw)
	if err != nil || pki.CheckIP(addr) != nil || addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.Addr{}, invalidMetadata("use one host's IPv4 or IPv6 address", "'%s' is not a host's address", printable(raw))
	}
	return addr, nil
}

// certificateURI judges a URI for a certificate and returns its host. SPIFFE ids are ours to give: a client with a second
// one could be taken for another client.
func certificateURI(raw string) (host string, err error) {
	uri, err := url.Parse(raw)
	if err == nil && strings.EqualFold(uri.Scheme, "spiffe") {
		return "", invalidMetadata("leave it out: every client gets its own", "a SPIFFE id cannot be chosen: '%s'", printable(raw))
	}
	if err != nil || pki.CheckURI(raw) != nil {
		return "", invalidMetadata("use an absolute URI with a host, without user and fragment", "'%s' is not a URI for a certificate", printable(raw))
	}
	return uri.Hostname(), nil
}

// absoluteURI parses a URI of RFC 3986, Section 4.3 in its own characters, with a scheme and something behind it, without
// user information or fragment.
func absoluteURI(raw string) (*url.URL, error) {
	const punctuation = "-._~:/?[]@!$&'()*+,;=%"
	if len(raw) > maxURI || strings.ContainsFunc(raw, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(punctuation, c)
	}) {
		return nil, fmt.Errorf("characters that a URI has not, or more than %d", maxURI)
	}
	uri, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	web := strings.EqualFold(uri.Scheme, "https") || strings.EqualFold(uri.Scheme, "http")
	switch {
	case !uri.IsAbs() || uri.User != nil || (uri.Host == "" && uri.Opaque == ""):
		return nil, errors.New("not absolute, or with user information")
	case web && uri.Hostname() == "":
		return nil, errors.New("no host")
	case strings.ContainsFunc(uri.Host, func(c rune) bool { return c >= utf8.RuneSelf }):
		return nil, errors.New("a host that hides other characters behind percent signs") // such as a dot that is not ASCII's
	}
	return uri, nil
}

// parseScopes reads a space separated list of scope-tokens (RFC 6749, Section 3.3), each kept once in order.
func parseScopes(raw string) ([]string, error) {
	var scopes []string
	for _, scope := range strings.FieldsFunc(raw, func(c rune) bool { return c == ' ' }) {
		if len(scope) > maxScope || !tokens.ValidScope(scope) {
			return nil, &Error{Status: http.StatusBadRequest, Code: codeScope, Description: fmt.Sprintf("'%s' is not a scope", printable(scope)),
				Hint: fmt.Sprintf(`a scope is at most %d printable ASCII characters without space, '"' and '\'`, maxScope)}
		}
		scopes = appendNew(scopes, scope)
	}
	if len(scopes) > maxScopes {
		return nil, &Error{Status: http.StatusBadRequest, Code: codeScope, Description: "too many scopes", Hint: fmt.Sprintf("use at most %d", maxScopes)}
	}
	return scopes, nil
}

// knownResources demands that every named resource exists; the hint is the command that makes the missing one.
func knownResources(named, scopes []string, resources []store.Resource) ([]string, error) {
	var known []string
	for _, uri := range named {
		if !slices.ContainsFunc(resources, func(r store.Resource) bool { return r.URI == uri }) {
			return nil, &Error{Status: http.StatusBadRequest, Code: codeTarget,
				Description: fmt.Sprintf("no resource '%s'", printable(uri)), Hint: addResourceHint(uri, undeclared(scopes, resources))}
		}
		known = appendNew(known, uri)
	}
	return known, nil
}

// undeclared are the scopes that no resource declares.
func undeclared(scopes []string, resources []store.Resource) []string {
	return slices.DeleteFunc(slices.Clone(scopes), func(scope string) bool {
		return len(declaring(scope, resources)) > 0
	})
}

// declaring are the resources that declare the scope.
func declaring(scope string, resources []store.Resource) []string {
	var uris []string
	for _, r := range resources {
		if slices.Contains(r.Scopes, scope) {
			uris = append(uris, r.URI)
		}
	}
	return uris
}

// declared demands that every scope is declared by a resource that the client may name, and may be held by it.
func declared(c store.Client, resources []store.Resource) error {
	for _, scope := range c.Scopes {
		uris := declaring(scope, resources)
		if len(uris) == 0 {
			return &Error{Status: http.StatusBadRequest, Code: codeScope,
				Description: fmt.Sprintf("no resource declares the scope '%s'", scope), Hint: unknownScopeHint(scope, c, resources)}
		}
		if givesAuthority(scope) {
			if !mayHoldAuthority(c) {
				return &Error{Status: http.StatusBadRequest, Code: codeScope,
					Description: "scopes of the operators' API are only for clients of our own CA or with a certificate registered by value",
					Hint:        "register it without --trust and --jwks-uri"}
			}
			continue // the operators' API is asked for by name and needs no --resource
		}
		mayName := func(uri string) bool { return slices.Contains(c.Resources, uri) }
		if len(c.Resources) > 0 && !slices.ContainsFunc(uris, mayName) {
			return &Error{Status: http.StatusBadRequest, Code: codeScope,
				Description: fmt.Sprintf("the scope '%s' belongs to none of the client's resources", scope),
				Hint:        "add --resource " + shellWord(uris[0])}
		}
	}
	return nil
}

func unknownScopeHint(scope string, c store.Client, resources []store.Resource) string {
	if !givesAuthority(scope) {
		return addResourceHint("URI", undeclared(c.Scopes, resources))
	}
	var have []string
	for _, r := range resources {
		have = append(have, slices.DeleteFunc(slices.Clone(r.Scopes), func(s string) bool { return !givesAuthority(s) })...)
	}
	return "the scopes of the operators' API are " + strings.Join(have, ", ")
}

// addResourceHint is the command to type first. Scopes of the operators' API are left out: nobody else declares them.
func addResourceHint(uri string, scopes []string) string {
	var b strings.Builder
	b.WriteString("certbound resource add " + shellWord(uri))
	scopes = slices.DeleteFunc(slices.Clone(scopes), givesAuthority)
	if len(scopes) == 0 {
		b.WriteString(" --scope SCOPE")
	}
	for _, scope := range scopes {
		b.WriteString(" --scope " + shellWord(scope))
	}
	return b.String()
}

// resource judges a resource and returns the row to store; that its servers are clients is left to the caller.
func (r rules) resource(req *ResourceRequest) (store.Resource, error) {
	var none store.Resource
	uri, err := absoluteURI(req.Resource)
	if err != nil {
		// RFC 8707, Section 2.
		return none, &Error{Status: http.StatusBadRequest, Code: codeTarget, Err: err,
			Description: fmt.Sprintf("'%s' is not a resource", printable(req.Resource)),
			Hint:        "use an absolute URI without user and fragment, such as https://ledger.example"}
	}
	if i := slices.IndexFunc(r.service, func(address string) bool { return r.covers(uri, address) }); i >= 0 {
		return none, &Error{Status: http.StatusBadRequest, Code: codeTarget,
			Description: fmt.Sprintf("'%s' could be taken for the service's own '%s'", printable(req.Resource), printable(r.service[i])),
			Hint:        "use the resource server's own address"}
	}
	scopes, err := parseScopes(req.Scope)
	if err != nil {
		return none, err
	}
	if len(scopes) == 0 {
		return none, &Error{Status: http.StatusBadRequest, Code: codeScope, Description: "a resource declares at least one scope",
			Hint: "certbound resource add " + shellWord(req.Resource) + " --scope SCOPE"}
	}
	if i := slices.IndexFunc(scopes, givesAuthority); i >= 0 {
		return none, &Error{Status: http.StatusBadRequest, Code: codeScope,
			Description: fmt.Sprintf("only the operators' API declares scopes such as '%s'", scopes[i]),
			Hint:        "choose one that does not begin with " + ScopePrefix}
	}
	if len(req.Servers) > maxServers {
		return none, invalidMetadata(fmt.Sprintf("use at most %d", maxServers), "too many servers")
	}
	row := store.Resource{URI: req.Resource, Scopes: scopes}
	for _, server := range req.Servers {
		row.Servers = appendNew(row.Servers, server)
	}
	return row, nil
}

// covers reports whether a resource equals an address of the service or is a prefix of it, as text or by path segments,
// whatever the scheme, the spelling of host and port, dots in the path or a query: a careless resource server that compares
// prefixes would take the one's tokens for the other's.
func (r rules) covers(resource *url.URL, service string) bool {
	if strings.HasPrefix(service, resource.String()) {
		return true
	}
	s, err := url.Parse(service)
	if err != nil {
		return false
	}
	return strings.HasPrefix(hostAndPath(s), hostAndPath(resource)) || strings.HasPrefix(r.spelled(s), r.spelled(resource))
}

// spelled is a URI in one spelling with one host for all names and addresses of the service: by each of them, its ports are
// its own.
func (r rules) spelled(u *url.URL) string {
	if u.Opaque != "" || !r.reservedHost(plainHost(u)) {
		return hostAndPath(u)
	}
	own := *u
	own.Host = "localhost"
	if port := u.Port(); port != "" {
		own.Host += ":" + port
	}
	return hostAndPath(&own)
}

// hostAndPath is a URI in one spelling, without scheme, default port, query and trailing slash.
func hostAndPath(u *url.URL) string {
	if u.Opaque != "" {
		return u.Scheme + ":" + u.Opaque
	}
	host := plainHost(u)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := strings.TrimLeft(u.Port(), "0"); port != "" && port != "443" && port != "80" {
		host += ":" + port
	}
	return "//" + host + strings.TrimSuffix(path.Clean("/"+u.Path), "/")
}

// plainHost is a URI's host in lower case, without the dot that may end a name.
func plainHost(u *url.URL) string { return strings.TrimRight(strings.ToLower(u.Hostname()), ".") }

// appendNew appends s unless it is there.
func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// shellWord quotes a word where a POSIX shell would otherwise read it as something else, so that a hint can be pasted.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/@%+=,"
	if s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(plain, c) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
