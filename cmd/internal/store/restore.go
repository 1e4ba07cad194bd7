// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
)

// RestoreOperator gives the service an operator again when nobody can give administrators' scopes any more: disabled,
// removed, or without a valid certificate. Of client, which our CA must vouch for and which must hold certbound:admin or
// certbound:grant, the built-in one of that id is enabled as it is stored, or a new generation is registered as given,
// also while the id is reserved. The older open codes of the id are void, the certificates that it still had are revoked
// (superseded), so that nobody but who redeems the new code can act as it, and the code's ClientID and Generation are
// set here. It returns the client as stored.
//
// All is one transaction, that of the judgement too. Errors: ErrGrantorLeft while Grantors is not 0, ErrExists when the
// id belongs to a client that is not built in, a NameTakenError.
func (s *Store) RestoreOperator(ctx context.Context, client Client, code Code) (Client, error) {
	if client.AuthMethod == "" {
		client.AuthMethod = methodCA
	}
	client.Disabled, client.BuiltIn = false, true
	err := client.check()
	if err == nil && (!client.enrols() || !client.grants()) {
		err = errors.New("an operator is of our CA and may give scopes")
	}
	if err != nil {
		return Client{}, fmt.Errorf("restore operator %q: %w", client.ID, err)
	}
	err = s.change(ctx, func(c *change) error {
		n, err := c.grantors(s.now())
		if err != nil {
			return err
		}
		if n > 0 {
			return ErrGrantorLeft
		}
		if client, err = s.restore(c, client); err != nil {
			return err
		}
		code.ClientID, code.Generation = client.ID, client.Generation
		return s.addCode(c, code)
	})
	if err != nil {
		return Client{}, fmt.Errorf("restore operator %q: %w", client.ID, err)
	}
	return client, nil
}

// restore enables the stored client, or registers client anew.
func (s *Store) restore(c *change, client Client) (Client, error) {
	stored, err := c.lockClient(client.ID)
	if errors.Is(err, ErrNotFound) || err == nil && !stored.RemovedAt.IsZero() {
		client = s.newClient(client, stored.Generation+1)
		return client, c.writeClient(client)
	}
	if err != nil {
		return client, err
	}
	if !stored.BuiltIn || !stored.enrols() || !stored.grants() {
		return client, ErrExists
	}
	if err := c.void(client.ID); err != nil {
		return client, err
	}
	if err := c.revokeAll(client.ID, superseded, s.now()); err != nil {
		return client, err
	}
	if stored.Disabled {
		if err := s.setDisabled(c, client.ID, false); err != nil {
			return client, err
		}
		stored.Disabled, stored.UpdatedAt = false, asStored(s.now())
	}
	return stored, nil
}
