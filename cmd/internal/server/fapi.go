// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/certbound/certbound/tokens"
)

// checkFAPI refuses to start in FAPI mode with a signing key that the profile does not allow, which an earlier configuration
// may have left: what it signed is still accepted. The configuration was judged when it was read. From then on such a key,
// which another replica without the mode may make, keeps this one from signing and accepting anything.
func (s *service) checkFAPI() error {
	if !s.cfg.FAPI {
		return nil
	}
	s.keys.onlyFAPI.Store(true)
	for _, k := range s.keys.Published() {
		if !inFAPI(k.Algorithm) {
			return &StartError{
				Message: fmt.Sprintf("fapi is true, but a key for %s is published: the FAPI 2.0 profile does not allow it", k.Algorithm),
				Hint:    "start with fapi: false until certbound keys list shows it no more",
			}
		}
	}
	return nil
}

// inFAPI reports whether the FAPI 2.0 Security Profile, Section 5.4, has the algorithm.
func inFAPI(algorithm string) bool {
	return algorithm == tokens.ES256 || algorithm == tokens.PS256 || algorithm == tokens.EdDSA
}
