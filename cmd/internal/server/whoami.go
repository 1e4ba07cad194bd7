// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"net/http"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

// whoamiAnswer tells a caller about the certificate that it presented, and about nobody else.
type whoamiAnswer struct {
	Certificate *certificateAnswer `json:"certificate"`
	// Client is set when the certificate is one client's own, and says whether it authenticates now.
	Client        *clientAnswer `json:"client"`
	Hint          string        `json:"hint,omitempty"`
	CorrelationID string        `json:"correlation_id"`
}

type certificateAnswer struct {
	Subject        string    `json:"subject"`
	Issuer         string    `json:"issuer"`
	Serial         string    `json:"serial"`
	Thumbprint     string    `json:"x5t#S256"`
	DNSNames       []string  `json:"dns_names,omitempty"`
	URIs           []string  `json:"uris,omitempty"`
	IPAddresses    []string  `json:"ip_addresses,omitempty"`
	EmailAddresses []string  `json:"email_addresses,omitempty"`
	NotBefore      time.Time `json:"not_before"`
	NotAfter       time.Time `json:"not_after"`
	// Chain is what chain building to our own CA said: ok, or a reason.
	Chain string `json:"chain_to_our_ca"`
}

type clientAnswer struct {
	ID            string `json:"client_id"`
	Authenticates bool   `json:"authenticates"`
	Reason        string `json:"reason,omitempty"`
}

// whoami answers GET /whoami: which certificate arrived, and what we make of it. TLS has proved that the caller holds
// the certificate's key, so whatever is said about this certificate is said to its owner.
func (s *service) whoami(w http.ResponseWriter, r *http.Request) {
	answer := whoamiAnswer{CorrelationID: issuer.CorrelationID(r.Context())}
	peer, err := mtls.PeerFromRequest(r)
	if err != nil {
		answer.Hint = "no client certificate arrived: give the client its certificate and key, and use the address of the mtls listener (" +
			s.identity.mtlsURL + "); a proxy in between must pass TLS through"
		writeJSON(w, http.StatusOK, answer)
		return
	}
	answer.Certificate = s.describe(peer)
	answer.Client = s.ownClient(r, peer)
	if answer.Client != nil && answer.Client.Authenticates {
		s.limits.Authenticated(r.Context(), answer.Client.ID, peer.Thumbprint())
	}
	if answer.Client == nil {
		answer.Hint = "no client of this service has this certificate; a client of another CA, or with a certificate of its own, names itself with ?client_id=ID; one that signs assertions (private_key_jwt) is authenticated by those, whichever certificate it shows"
	}
	writeJSON(w, http.StatusOK, answer)
}

// describe shows the certificate as we read it.
func (s *service) describe(peer *mtls.Peer) *certificateAnswer {
	cert := peer.Certificate()
	a := &certificateAnswer{
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Serial: cert.SerialNumber.String(),
		Thumbprint: peer.Thumbprint().String(), DNSNames: cert.DNSNames, EmailAddresses: cert.EmailAddresses,
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), Chain: chainResult(peer, s.anchors),
	}
	for _, u := range cert.URIs {
		a.URIs = append(a.URIs, u.String())
	}
	for _, ip := range cert.IPAddresses {
		a.IPAddresses = append(a.IPAddresses, ip.String())
	}
	return a
}

func chainResult(peer *mtls.Peer, anchors *mtls.Anchors) string {
	switch err := peer.VerifiedBy(anchors, time.Now()); {
	case err == nil:
		return "ok"
	case errors.Is(err, mtls.ErrExpired):
		return "expired"
	case errors.Is(err, mtls.ErrNotYetValid):
		return "not_yet_valid"
	default:
		return "untrusted"
	}
}

// ownClient finds the caller's own client: the one whose certificate this is in our inventory, with the reason when it
// does not authenticate now; or the one it names, if it authenticates as that. Of a client that it merely names it
// learns nothing: neither that it exists nor why it was refused.
func (s *service) ownClient(r *http.Request, peer *mtls.Peer) *clientAnswer {
	row, err := s.folder.store.Certificate(r.Context(), peer.Thumbprint())
	if err == nil {
		client, reason := s.issuer.Explain(r.Context(), row.ClientID, peer)
		return &clientAnswer{ID: row.ClientID, Authenticates: client != nil, Reason: reason}
	}
	id := r.URL.Query().Get("client_id")
	if id == "" || len(id) > 2048 {
		return nil
	}
	if client, _ := s.issuer.Explain(r.Context(), id, peer); client != nil {
		return &clientAnswer{ID: client.ID, Authenticates: true}
	}
	return nil
}
