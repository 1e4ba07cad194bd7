// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import "github.com/certbound/certbound/tokens/issuer"

// Settle waits until no fetch of a jwks_uri is under way.
func Settle(set issuer.CertificateSet) {
	k := set.(*keySet)
	k.mu.Lock()
	wait := k.underway
	k.mu.Unlock()
	if wait != nil {
		<-wait
	}
}
