// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/certbound/certbound/tokens"
)

// checkFAPI refuses to start in FAPI mode with a signing key that the profile does not allow (FAPI 2.0, Section 5.4), which an
// earlier configuration may have left: what it signed is still accepted. The configuration was judged when it was read.
func (s *service) checkFAPI() error {
	if !s.cfg.FAPI {
		return nil
	}
	for _, k := range s.keys.Published() {
		switch k.Algorithm {
		case tokens.ES256, tokens.PS256, tokens.EdDSA:
		default:
			return &StartError{
				Message: fmt.Sprintf("fapi is true, but a key for %s is published: the FAPI 2.0 profile does not allow it", k.Algorithm),
				Hint:    "start with fapi: false until certbound keys list shows it no more",
			}
		}
	}
	return nil
}
