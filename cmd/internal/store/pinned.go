// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
)

// SetClientCertificates replaces the registered certificates of a self_signed_tls_client_auth client.
func (s *Store) SetClientCertificates(ctx context.Context, id string, certificates [][]byte) error {
	return errors.ErrUnsupported
}
