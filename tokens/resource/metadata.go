// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/certbound/certbound/tokens"
)

// metadataPrefix is where the metadata of a resource lies, before the path of its identifier (RFC 9728, Section 3).
const metadataPrefix = "/.well-known/oauth-protected-resource"

// publicCaching is for how long anyone may keep the metadata.
const publicCaching = "public, max-age=300"

// Metadata says what a Guard publishes about its resource beside what follows from its Verifier (RFC 9728).
type Metadata struct {
	// Scopes are the scopes that a client may need here, scopes_supported; none leaves the member out.
	Scopes []string
}

// document is the metadata of RFC 9728, Section 2. It lists what is accepted and nothing else.
type document struct {
	Resource               string   `json:"resource"`
	AuthorizationServers   []string `json:"authorization_servers"`
	Scopes                 []string `json:"scopes_supported,omitempty"`
	BearerMethods          []string `json:"bearer_methods_supported"`
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
}

// published is the metadata of one resource: where it lies and what it says. It never changes.
type published struct {
	url  string
	path string // escaped, as in url
	body []byte
}

// newPublished makes the metadata of the resource that v verifies for.
func newPublished(m *Metadata, v *tokens.Verifier) (*published, error) {
	if err := CheckIdentifier(v.Audience()); err != nil {
		return nil, fmt.Errorf("resource: metadata of %q: %w", v.Audience(), err)
	}
	for _, scope := range m.Scopes {
		if !tokens.ValidScope(scope) {
			return nil, fmt.Errorf("resource: metadata: malformed scope %q", scope)
		}
	}
	body, _ := json.Marshal(document{ // strings cannot fail
		Resource:               v.Audience(),
		AuthorizationServers:   []string{v.Issuer()},
		Scopes:                 slices.Compact(slices.Sorted(slices.Values(m.Scopes))),
		BearerMethods:          []string{"header"},
		CertificateBoundTokens: true,
	})
	origin, path := split(v.Audience())
	p := &published{path: metadataPrefix + path, body: append(body, '\n')}
	p.url = origin + p.path
	return p, nil
}

// CheckIdentifier says why identifier cannot be that of a resource with metadata, nil when it can: an https URL with a
// host, without user, query and fragment (RFC 9728, Section 1.2, permits a query; we do not), in printable ASCII without
// quotes and backslashes.
func CheckIdentifier(identifier string) error {
	u, err := url.Parse(identifier)
	switch {
	case err != nil || u.Hostname() == "" || !strings.HasPrefix(identifier, "https://"):
		return errors.New("the identifier is not an https URL with a host")
	case u.User != nil || strings.ContainsAny(identifier, "?#"):
		return errors.New("the identifier has a user, a query or a fragment")
	case identifier != quotable(identifier) || strings.Contains(identifier, " "):
		return errors.New("the identifier is not printable ASCII without spaces, quotes and backslashes")
	}
	return nil
}

// split cuts a checked identifier before its path. A slash that is the whole path goes (RFC 9728, Section 3.1).
func split(identifier string) (origin, path string) {
	host, path, _ := strings.Cut(strings.TrimPrefix(identifier, "https://"), "/")
	if path != "" {
		path = "/" + path
	}
	return "https://" + host, path
}

// MetadataPath returns the path at which MetadataHandler is to be served, on the host of the resource's identifier, in its
// escaped form; "" without metadata.
func (g *Guard) MetadataPath() string {
	if g.metadata == nil {
		return ""
	}
	return g.metadata.path
}

// MetadataHandler returns the protected resource metadata of RFC 9728, for anyone, whatever the path of the request; its
// URLs come from the configuration, never from the request. Without metadata it answers 404. It is for servers where
// Protect does not see requests for MetadataPath.
func (g *Guard) MetadataHandler() http.Handler {
	if g.metadata == nil {
		return http.NotFoundHandler()
	}
	return g.metadata
}

// at reports whether the request asks for this metadata.
func (p *published) at(r *http.Request) bool {
	return p != nil && r.URL.EscapedPath() == p.path
}

// ServeHTTP answers GET and HEAD (RFC 9728, Sections 3.1 and 3.2).
func (p *published) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		header.Set("Cache-Control", "no-store")
		writeBody(w, http.StatusMethodNotAllowed, malformed("method", "the method is not allowed here; allowed: GET, HEAD"))
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", publicCaching)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Length", strconv.Itoa(len(p.body)))
	_, _ = w.Write(p.body) // net/http drops it for HEAD; a client that went away needs no answer
}
