// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
)

// Arrival is the answer of GET /whoami: the certificate that arrived, and what the service makes of it.
type Arrival struct {
	// Certificate is nil when none arrived.
	Certificate *ArrivedCertificate `json:"certificate"`
	// Client is the client that the certificate is of, or the one that was named if it authenticates that; else nil.
	Client        *ArrivedClient `json:"client"`
	Hint          string         `json:"hint,omitempty"`
	CorrelationID string         `json:"correlation_id,omitempty"`
}

// ArrivedCertificate is a certificate as the service saw it. Serial is decimal; ChainToOurCA is ok, or why the service's
// own CA does not vouch for it, as for all certificates from elsewhere.
type ArrivedCertificate struct {
	Subject        string    `json:"subject"`
	Issuer         string    `json:"issuer"`
	Serial         string    `json:"serial"`
	Thumbprint     string    `json:"x5t#S256"`
	DNSNames       []string  `json:"dns_names"`
	URIs           []string  `json:"uris"`
	IPAddresses    []string  `json:"ip_addresses"`
	EmailAddresses []string  `json:"email_addresses"`
	NotBefore      time.Time `json:"not_before"`
	NotAfter       time.Time `json:"not_after"`
	ChainToOurCA   string    `json:"chain_to_our_ca"`
}

// ArrivedClient says whether the certificate authenticates a client, and by which rule it does not.
type ArrivedClient struct {
	ClientID      string `json:"client_id"`
	Authenticates bool   `json:"authenticates"`
	Reason        string `json:"reason,omitempty"`
}

// As reports whether the certificate authenticates that very client.
func (a *Arrival) As(clientID string) bool {
	return a.Client != nil && a.Client.Authenticates && a.Client.ClientID == clientID
}

// Visitor is who asks a service what it makes of a certificate.
type Visitor struct {
	// MTLSURL is the base of the listener that asks for certificates, Roots vouch for it.
	MTLSURL string
	Roots   []*x509.Certificate
	// KeyPair is the certificate to show; nil shows none.
	KeyPair *mtls.KeyPair
	// ClientID is the client that it is meant for; empty leaves it to the service to find one.
	ClientID string
}

// Visitor returns who the profile is.
func (p *Profile) Visitor() Visitor {
	return Visitor{MTLSURL: p.MTLSURL(), Roots: p.roots, KeyPair: p.keyPair, ClientID: p.ClientID()}
}

// Whoami asks the service which certificate arrives there and what it makes of it. It blocks for one request, until
// ctx ends. Names in the answer are as whoever made the certificate wrote them.
func (v Visitor) Whoami(ctx context.Context) (*Arrival, error) {
	hc := httpClient(mtls.ClientConfig(v.KeyPair, poolOf(v.Roots)))
	defer hc.CloseIdleConnections()
	location := strings.TrimSuffix(v.MTLSURL, "/") + "/whoami"
	if v.ClientID != "" {
		location += "?" + url.Values{"client_id": {v.ClientID}}.Encode()
	}
	var a Arrival
	err := call(ctx, hc, http.MethodGet, location, nil, &a)
	if err != nil {
		return nil, answered(v.MTLSURL, err)
	}
	return &a, nil
}
