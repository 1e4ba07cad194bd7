// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
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
	var found holderRow
	var err error
	if s.holders != nil && s.tx == nil {
		found, err = s.holders.search(id, thumbprint)
	} else {
		found, err = scanHolder(s.read.QueryRowContext(ctx, queryHolder, id, digest(thumbprint)))
	}
	if err != nil {
		return Holder{}, err
	}
	h := found.Holder
	h.Client.ID, h.Client.AuthMethod = id, methodCA
	if h.Certificate.ClientID != "" {
		h.Certificate.Thumbprint = thumbprint
	}
	if found.version.Valid {
		h.Secret, err = s.openAuditKey(auditSubjects(), id, found.sealed, found.version.Int64)
	}
	return h, err
}

// holderRow is a row of queryHolder: a Holder without what the query was given, its secret sealed.
type holderRow struct {
	Holder
	sealed  []byte
	version sql.NullInt64 // null: there is no secret
}

func scanHolder(row *sql.Row) (h holderRow, err error) {
	var ttl int64
	var owner sql.NullString
	var generation sql.NullInt64
	err = row.Scan(&h.Client.Generation, &h.Client.Disabled, (*list)(&h.Client.Scopes), (*list)(&h.Client.Resources), &ttl,
		&owner, &generation, (*moment)(&h.Certificate.NotAfter), (*moment)(&h.Certificate.RevokedAt), &h.sealed, &h.version)
	if errors.Is(err, sql.ErrNoRows) {
		return holderRow{}, ErrNotFound
	}
	h.Client.TokenTTL = time.Duration(ttl) * time.Microsecond
	h.Certificate.ClientID, h.Certificate.Generation = owner.String, uint64(generation.Int64)
	return h, err
}

// searchers look for holders in SQLite, each on a goroutine of its own that goes on to the next: SQLite needs far more stack
// than serving a connection does, and to have it grow for every new connection costs as much as the search. What they do
// cannot be cancelled: a reader of SQLite waits for nobody, and whatever could be cancelled costs more than the reading. They
// are safe for concurrent use.
type searchers struct {
	query *sql.Stmt
	asked chan *search
	end   chan struct{}
	once  sync.Once // closes end
	group sync.WaitGroup
	spare sync.Pool // of *search
}

// search is one question and its answer.
type search struct {
	id         string
	thumbprint [32]byte
	found      holderRow
	err        error
	done       chan struct{} // has room for one
}

func newSearchers(query *sql.Stmt, n int) *searchers {
	s := &searchers{query: query, asked: make(chan *search), end: make(chan struct{})}
	s.spare.New = func() any { return &search{done: make(chan struct{}, 1)} }
	for range n {
		s.group.Go(s.run)
	}
	return s
}

func (s *searchers) run() {
	for {
		select {
		case q := <-s.asked:
			q.found, q.err = scanHolder(s.query.QueryRow(q.id, digest(q.thumbprint)))
			q.done <- struct{}{}
		case <-s.end:
			return
		}
	}
}

func (s *searchers) search(id string, thumbprint [32]byte) (holderRow, error) {
	q := s.spare.Get().(*search)
	defer s.spare.Put(q)
	q.id, q.thumbprint = id, thumbprint
	select {
	case s.asked <- q:
		<-q.done
	case <-s.end:
		return holderRow{}, sql.ErrConnDone
	}
	found, err := q.found, q.err
	q.id, q.found, q.err = "", holderRow{}, nil
	return found, err
}

// close waits for those that are searching. It may be called again.
func (s *searchers) close() error {
	s.once.Do(func() { close(s.end) })
	s.group.Wait()
	return s.query.Close()
}
