// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"encoding/base64"
	"errors"
	"fmt"
)

// EnrollRequest is the body of POST /pki/enroll. All members are base64url without padding.
type EnrollRequest struct {
	// ID is the code's id, 8 bytes.
	ID string `json:"id"`
	// CSR is the certificate request in DER, as [CreateRequest] makes it.
	CSR string `json:"csr"`
	// Signature is [Code.Sign] over the issuer and the request.
	Signature string `json:"signature"`
}

// NewEnrollRequest redeems code for the key that signed the request csrDER at this issuer.
func NewEnrollRequest(code Code, issuer string, csrDER []byte) EnrollRequest {
	return EnrollRequest{
		ID:        base64.RawURLEncoding.EncodeToString(code.ID[:]),
		CSR:       base64.RawURLEncoding.EncodeToString(csrDER),
		Signature: base64.RawURLEncoding.EncodeToString(code.Sign(issuer, csrDER)),
	}
}

// Decode returns the members as bytes. It checks their form only: [VerifyRedemption] and [ParseRequest] judge
// what they say.
func (r EnrollRequest) Decode() (id [8]byte, csrDER, signature []byte, err error) {
	rawID, err := decodeBase64(r.ID)
	if err != nil || len(rawID) != len(id) {
		return id, nil, nil, errors.New("id is not 8 bytes in base64url")
	}
	copy(id[:], rawID)
	if csrDER, err = decodeCSR(r.CSR); err != nil {
		return id, nil, nil, err
	}
	if signature, err = decodeBase64(r.Signature); err != nil || len(signature) != 64 {
		return id, nil, nil, errors.New("signature is not 64 bytes in base64url")
	}
	return id, csrDER, signature, nil
}

// RenewRequest is the body of POST /pki/renew. Who renews is told by the client certificate of the connection.
type RenewRequest struct {
	// CSR is the certificate request in DER, base64url without padding.
	CSR string `json:"csr"`
}

// NewRenewRequest asks for a certificate for the key that signed the request csrDER.
func NewRenewRequest(csrDER []byte) RenewRequest {
	return RenewRequest{CSR: base64.RawURLEncoding.EncodeToString(csrDER)}
}

// Decode returns the certificate request's bytes, for [ParseRequest].
func (r RenewRequest) Decode() ([]byte, error) { return decodeCSR(r.CSR) }

// EnrollResponse is the answer of both.
type EnrollResponse struct {
	// ClientID is the name under which the client is registered.
	ClientID string `json:"client_id"`
	// Issuer is the issuer's URL, as it stands in every token.
	Issuer string `json:"issuer"`
	// Certificate is the chain in PEM: the new certificate first, then the issuing authority's.
	Certificate string `json:"certificate"`
	// Roots are the root certificates in PEM.
	Roots string `json:"roots"`
	// MTLSURL is the base of the listener that asks for a client certificate.
	MTLSURL string `json:"mtls_url"`
	// TokenEndpoint is where tokens are had.
	TokenEndpoint string `json:"token_endpoint"`
}

func decodeCSR(s string) ([]byte, error) {
	if base64.RawURLEncoding.DecodedLen(len(s)) > MaxRequestSize {
		return nil, fmt.Errorf("csr is longer than %d bytes", MaxRequestSize)
	}
	der, err := decodeBase64(s)
	if err != nil || len(der) == 0 {
		return nil, errors.New("csr is not base64url")
	}
	return der, nil
}
