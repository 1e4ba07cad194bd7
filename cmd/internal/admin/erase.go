// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// maxSubject bounds the name of who is erased: a SPIFFE ID may be this long.
const maxSubject = 2048

// eraseSubject makes unreadable what the journal has sealed of a person: where a client or an operator came from. The
// records stay, and so does their chain. It cannot be taken back and takes evidence away, so it waits for a second
// operator like any change of keys. Whoever is erased need not be registered any more.
func (a *api) eraseSubject(ctx context.Context, id string, _ *none) (*proposal, error) {
	if id == "" || len(id) > maxSubject {
		return nil, notFound("nobody of that name", "give a client's id")
	}
	if _, err := a.db(ctx).StoredAuditSubject(ctx, id); err != nil {
		return nil, eraseError(id, err)
	}
	p := &proposal{event: audit.Event{Client: id}, needs: []string{ScopeKeys}, waits: true}
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.DeleteAuditSubject(ctx, id); err != nil {
			return nil, eraseError(id, err)
		}
		return &outcome{answer: &Change{ClientID: id, Done: "erased"}}, nil
	}
	return p, nil
}

func eraseError(id string, err error) *Error {
	if errors.Is(err, store.ErrNotFound) {
		return notFound(fmt.Sprintf("the journal has nothing sealed of '%s'", printable(id)),
			"it was erased already, or has never been there; certbound audit search --client ID shows its records")
	}
	return unavailable(err)
}
