// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/internal/jose"
)

// metadata is the document of RFC 8414, Section 2. It lists what is answered and nothing else. grant_types_supported
// and token_endpoint_auth_methods_supported are always there, because what their absence means is not true of us.
// response_types_supported is required by RFC 8414, Section 2, but there is no authorization endpoint, so it would have
// no elements, and Section 3.2 forbids such members: it is left out.
type metadata struct {
	Issuer                   string            `json:"issuer"`
	TokenEndpoint            string            `json:"token_endpoint"`
	KeysURL                  string            `json:"jwks_uri"`
	Scopes                   []string          `json:"scopes_supported,omitempty"`
	GrantTypes               []string          `json:"grant_types_supported"`
	AuthMethods              []string          `json:"token_endpoint_auth_methods_supported"`
	AuthAlgorithms           []string          `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
	IntrospectionEndpoint    string            `json:"introspection_endpoint,omitempty"`
	IntrospectionAuthMethods []string          `json:"introspection_endpoint_auth_methods_supported,omitempty"`
	IntrospectionAuthAlgs    []string          `json:"introspection_endpoint_auth_signing_alg_values_supported,omitempty"`
	IntrospectionAlgorithms  []string          `json:"introspection_signing_alg_values_supported,omitempty"` // RFC 9701, Section 7
	RevocationEndpoint       string            `json:"revocation_endpoint,omitempty"`
	RevocationAuthMethods    []string          `json:"revocation_endpoint_auth_methods_supported,omitempty"`
	RevocationAuthAlgs       []string          `json:"revocation_endpoint_auth_signing_alg_values_supported,omitempty"`
	CertificateBoundTokens   bool              `json:"tls_client_certificate_bound_access_tokens"`
	MutualTLSEndpointAliases map[string]string `json:"mtls_endpoint_aliases"`
}

// Both documents may be kept for as long as resource servers keep keys.
const publicCaching = "public, max-age=300"

// metadataPaths returns where the document lies for an issuer identifier with this path (without trailing slash).
func metadataPaths(issuerPath string) []string {
	paths := []string{
		"/.well-known/oauth-authorization-server" + issuerPath, // RFC 8414, Section 3.1
		"/.well-known/openid-configuration" + issuerPath,       // RFC 8414, Section 5
	}
	if issuerPath != "" {
		// OpenID Connect Discovery 1.0, Section 4.1, appends where RFC 8414 inserts.
		paths = append(paths, issuerPath+"/.well-known/openid-configuration")
	}
	return paths
}

// MetadataPaths returns the URL paths at which MetadataHandler is to be served, by RFC 8414, Sections 3.1 and 5, and by
// OpenID Connect Discovery 1.0, Section 4.1.
func (s *Server) MetadataPaths() []string { return slices.Clone(s.metadataPaths) }

// MetadataHandler returns the authorization server metadata of RFC 8414. Its URLs come from the configuration, never
// from the request.
func (s *Server) MetadataHandler() http.Handler {
	return s.public("application/json", func() ([]byte, error) { return json.Marshal(s.metadata()) })
}

func (s *Server) metadata() metadata {
	scopes := slices.DeleteFunc(slices.Clone(s.scopes()), notScopeToken)
	slices.Sort(scopes)
	m := metadata{
		Issuer:                   s.issuer,
		TokenEndpoint:            s.tokenURL,
		KeysURL:                  s.keysURL,
		Scopes:                   slices.Compact(scopes),
		GrantTypes:               []string{ClientCredentials},
		AuthMethods:              s.authMethods(),
		AuthAlgorithms:           s.authAlgorithms(),
		CertificateBoundTokens:   true,
		MutualTLSEndpointAliases: map[string]string{"token_endpoint": s.tokenURL}, // RFC 8705, Section 5
	}
	if s.servers != nil {
		m.IntrospectionEndpoint = s.mtlsURL + IntrospectPath
		m.IntrospectionAuthMethods, m.IntrospectionAuthAlgs = m.AuthMethods, m.AuthAlgorithms
		m.IntrospectionAlgorithms = s.algorithms()
		m.MutualTLSEndpointAliases["introspection_endpoint"] = m.IntrospectionEndpoint
	}
	if s.revoker != nil {
		m.RevocationEndpoint, m.RevocationAuthMethods = s.mtlsURL+RevokePath, m.AuthMethods
		m.RevocationAuthAlgs = m.AuthAlgorithms
		m.MutualTLSEndpointAliases["revocation_endpoint"] = m.RevocationEndpoint
	}
	return m
}

// algorithms returns what this server signs with, now or soon: those of the keys that it publishes.
func (s *Server) algorithms() []string {
	var names []string
	for _, k := range s.keys.Published() {
		names = append(names, k.Algorithm)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// authMethods are the methods by which clients authenticate at every endpoint.
func (s *Server) authMethods() []string {
	methods := []string{TLSClientAuth, SelfSignedTLSClientAuth}
	if s.assertions != nil {
		methods = append(methods, PrivateKeyJWT)
	}
	return methods
}

// authAlgorithms are those of assertions at every endpoint, none where none are taken.
func (s *Server) authAlgorithms() []string {
	if s.assertions == nil {
		return nil
	}
	return assertionAlgorithms()
}

// KeysHandler returns the JWK Set of RFC 7517, Section 5, with the public members of every published key.
func (s *Server) KeysHandler() http.Handler {
	return s.public("application/jwk-set+json", func() ([]byte, error) {
		published := s.keys.Published()
		keys := make([]jose.PublicKey, len(published))
		for i, k := range published {
			keys[i] = jose.PublicKey{ID: k.ID, Algorithm: jose.Algorithm(k.Algorithm), Key: k.Key}
		}
		return jose.MarshalKeySet(keys)
	})
}

// public serves a document that anyone may read and keep for a while.
func (s *Server) public(contentType string, document func() ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			writeMethodNotAllowed(w, r, "GET, HEAD")
			return
		}
		body, err := document()
		if err != nil {
			s.logger.ErrorContext(r.Context(), "public document failed", "path", r.URL.Path, "error", err)
			WriteError(w, r, s.issuer, &tokens.Error{
				Code: tokens.CodeServerError, Reason: "document_failed", Description: failedDescription, Err: err,
			})
			return
		}
		w.Header().Set("Cache-Control", publicCaching)
		write(w, r, http.StatusOK, contentType, body)
	})
}
