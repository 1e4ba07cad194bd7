// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Holder is what is to be known about a client of our CA and the certificate that it presents.
type Holder struct {
	// Client has the members ID, Generation, Disabled, AuthMethod, Scopes, Resources and TokenTTL only.
	Client Client
	// Certificate has the members Thumbprint, ClientID, Generation, NotAfter and RevokedAt only, and none when it is not in
	// the inventory. It need not be the client's.
	Certificate Certificate
	// Secret is the client's in the journal, as of StoredAuditSubject; nil when it has none.
	Secret []byte
}

// Holder reads at once, and without what the decision about a token does not need, what Client, Certificate and
// StoredAuditSubject read. It is ErrNotFound when there is no such client of our own CA; then Client may still know it.
func (s *Store) Holder(ctx context.Context, id string, thumbprint [32]byte) (Holder, error) {
	h, err := s.holder(ctx, id, thumbprint)
	if err != nil {
		return Holder{}, fmt.Errorf("client %q and its certificate: %w", id, err)
	}
	return h, nil
}

func (s *Store) holder(ctx context.Context, id string, thumbprint [32]byte) (Holder, error) {
	h := Holder{Client: Client{ID: id, AuthMethod: methodCA}}
	var row *sql.Row
	if s.holders != nil && s.tx == nil {
		// A reader of SQLite waits for nobody, and whatever could be cancelled costs more than the reading.
		row = s.holders.QueryRowContext(context.WithoutCancel(ctx), id, digest(thumbprint))
	} else {
		row = s.read.QueryRowContext(ctx, queryHolder, id, digest(thumbprint))
	}
	var (
		ttl                 int64
		owner               sql.NullString
		generation, version sql.NullInt64
		sealed              []byte
	)
	err := row.Scan(&h.Client.Generation, &h.Client.Disabled, (*list)(&h.Client.Scopes), (*list)(&h.Client.Resources), &ttl,
		&owner, &generation, (*moment)(&h.Certificate.NotAfter), (*moment)(&h.Certificate.RevokedAt), &sealed, &version)
	if errors.Is(err, sql.ErrNoRows) {
		return Holder{}, ErrNotFound
	}
	if err != nil {
		return Holder{}, err
	}
	h.Client.TokenTTL = time.Duration(ttl) * time.Microsecond
	if owner.Valid {
		h.Certificate.Thumbprint, h.Certificate.ClientID, h.Certificate.Generation = thumbprint, owner.String, uint64(generation.Int64)
	}
	if version.Valid {
		h.Secret, err = s.openAuditKey(auditSubjects(), id, sealed, version.Int64)
	}
	return h, err
}
