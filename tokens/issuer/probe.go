// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"fmt"

	"github.com/certbound/certbound/tokens/internal/jose"
)

// Probe signs once with the key and verifies that: a key whose halves do not belong together, or that is not of the kind
// its algorithm asks for, must not sign a token that nobody can verify. It takes as long as one signature and one
// verification; it is for when a key is loaded. The error names neither half.
func (k SigningKey) Probe() error {
	token, err := jose.Sign(jose.Header{Algorithm: jose.Algorithm(k.Algorithm)}, []byte(`{}`), k.Signer)
	if err != nil {
		return fmt.Errorf("issuer: the key does not sign: %w", err)
	}
	signed, err := jose.Parse(token)
	if err != nil {
		return fmt.Errorf("issuer: the key does not sign: %w", err)
	}
	if _, err := signed.Verify(jose.PublicKey{Algorithm: jose.Algorithm(k.Algorithm), Key: k.Signer.Public()}); err != nil {
		return fmt.Errorf("issuer: the key's signature does not verify: %w", err)
	}
	return nil
}
