// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
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
func (s *Store) Holder(ctx context.Context, id string, thumbprint [32]byte) (*Holder, error) {
	h, err := s.holder(ctx, id, thumbprint)
	if err != nil {
		return nil, fmt.Errorf("client %q and its certificate: %w", id, err)
	}
	return h, nil
}

func (s *Store) holder(ctx context.Context, id string, thumbprint [32]byte) (*Holder, error) {
	var h *holderRow
	var err error
	if s.holders != nil && s.tx == nil {
		h, err = s.holders.search(id, thumbprint)
	} else {
		h, err = scanHolder(s.read.QueryRowContext(ctx, queryHolder, id, digest(thumbprint)))
	}
	if err != nil {
		return nil, err
	}
	h.Client.ID, h.Client.AuthMethod = id, methodCA
	if h.Certificate.ClientID != "" {
		h.Certificate.Thumbprint = thumbprint
	}
	if h.version.Valid {
		h.Secret, err = s.openAuditKey(auditSubjects(), id, h.sealed, h.version.Int64)
		h.sealed = nil
	}
	return &h.Holder, err
}

// holderRow is a row of queryHolder: a Holder without what the query was given, its secret sealed. It is handed on by its
// address: it is large, and the stacks of connections that never needed so much would have to grow for it.
type holderRow struct {
	Holder
	sealed  []byte
	version sql.NullInt64 // null: there is no secret
}

func scanHolder(row *sql.Row) (*holderRow, error) {
	h := &holderRow{}
	var ttl int64
	var owner sql.NullString
	var generation sql.NullInt64
	err := row.Scan(&h.Client.Generation, &h.Client.Disabled, (*list)(&h.Client.Scopes), (*list)(&h.Client.Resources), &ttl,
		&owner, &generation, (*moment)(&h.Certificate.NotAfter), (*moment)(&h.Certificate.RevokedAt), &h.sealed, &h.version)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	h.Client.TokenTTL = time.Duration(ttl) * time.Microsecond
	h.Certificate.ClientID, h.Certificate.Generation = owner.String, uint64(generation.Int64)
	return h, err
}

// searchers look for holders in SQLite, each on a goroutine of its own that goes on to the next: SQLite needs far more stack
// than serving a connection does, and to have it grow for every new connection costs as much as the search. Each has a
// connection of its own and speaks to its driver, since what database/sql does around a query is a good part of it. What they
// do cannot be cancelled: a reader of SQLite waits for nobody, and whatever could be cancelled costs more than the reading.
// They are safe for concurrent use.
type searchers struct {
	db    *sql.DB
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
	found      *holderRow
	err        error
	done       chan struct{} // has room for one
}

// newSearchers starts n of them on the pool, which they own, for the query. They have prepared it when it returns.
func newSearchers(db *sql.DB, query string, n int) (*searchers, error) {
	s := &searchers{db: db, asked: make(chan *search), end: make(chan struct{})}
	s.spare.New = func() any { return &search{done: make(chan struct{}, 1)} }
	ready := make(chan error, n)
	for range n {
		s.group.Go(func() { s.run(query, ready) })
	}
	var errs []error
	for range n {
		errs = append(errs, <-ready)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// run says once whether it is ready, and then searches until the end.
func (s *searchers) run(query string, ready chan<- error) {
	ctx := context.Background()
	conn, err := s.db.Conn(ctx)
	if err != nil {
		ready <- err
		return
	}
	defer conn.Close()
	var stmt driver.Stmt
	// Everything is done within Raw, which lends the connection.
	_ = conn.Raw(func(c any) error {
		if stmt, err = c.(driver.ConnPrepareContext).PrepareContext(ctx, query); err != nil {
			ready <- err
			return nil
		}
		defer stmt.Close()
		one := searcher{query: stmt.(driver.StmtQueryContext), lists: map[string][]string{}}
		ready <- nil
		for {
			select {
			case q := <-s.asked:
				q.found, q.err = one.find(ctx, q.id, q.thumbprint)
				q.done <- struct{}{}
			case <-s.end:
				return nil
			}
		}
	})
}

func (s *searchers) search(id string, thumbprint [32]byte) (*holderRow, error) {
	q := s.spare.Get().(*search)
	defer s.spare.Put(q)
	q.id, q.thumbprint = id, thumbprint
	select {
	case s.asked <- q:
		<-q.done
	case <-s.end:
		return nil, sql.ErrConnDone
	}
	found, err := q.found, q.err
	q.id, q.found, q.err = "", nil, nil
	return found, err
}

// close waits for those that are searching. It may be called again.
func (s *searchers) close() error {
	s.once.Do(func() { close(s.end) })
	s.group.Wait()
	return s.db.Close()
}

// searcher is one of the searchers.
type searcher struct {
	query  driver.StmtQueryContext
	args   [2]driver.NamedValue
	values [11]driver.Value // the columns of queryHolder
	lists  map[string][]string
}

// mostLists bounds the lists of scopes and resources that a searcher remembers: clients have few different ones.
const mostLists = 256

func (s *searcher) find(ctx context.Context, id string, thumbprint [32]byte) (*holderRow, error) {
	presented, err := digest(thumbprint).Value()
	if err != nil {
		return nil, err
	}
	s.args = [2]driver.NamedValue{{Ordinal: 1, Value: id}, {Ordinal: 2, Value: presented}}
	rows, err := s.query.QueryContext(ctx, s.args[:])
	if err != nil {
		return nil, err
	}
	found, err := s.read(rows)
	return found, errors.Join(err, rows.Close())
}

func (s *searcher) read(rows driver.Rows) (*holderRow, error) {
	switch err := rows.Next(s.values[:]); {
	case errors.Is(err, io.EOF):
		return nil, ErrNotFound
	case err != nil:
		return nil, err
	}
	h := &holderRow{}
	v := columns{values: s.values[:]}
	h.Client.Generation, h.Client.Disabled = uint64(v.integer()), v.integer() != 0
	h.Client.Scopes, h.Client.Resources = s.list(&v), s.list(&v)
	h.Client.TokenTTL = time.Duration(v.integer()) * time.Microsecond
	h.Certificate.ClientID, h.Certificate.Generation = v.text(), uint64(v.integer())
	h.Certificate.NotAfter, h.Certificate.RevokedAt = v.time(), v.time()
	h.sealed = v.bytes()
	h.version.Valid = v.values[0] != nil
	h.version.Int64 = v.integer()
	return h, v.err
}

func (s *searcher) list(v *columns) []string {
	text := v.text()
	if known, ok := s.lists[text]; ok {
		return known
	}
	var l list
	if err := l.Scan(text); err != nil {
		v.err = errors.Join(v.err, err)
		return nil
	}
	if len(s.lists) >= mostLists {
		clear(s.lists)
	}
	s.lists[text] = l
	return l
}

// columns takes a row of the driver apart, from the left. NULL is the zero value; anything else of another type is an error.
type columns struct {
	values []driver.Value
	err    error
}

func take[T any](c *columns) (value T) {
	v := c.values[0]
	c.values = c.values[1:]
	if v == nil {
		return value
	}
	value, ok := v.(T)
	if !ok {
		c.err = errors.Join(c.err, fmt.Errorf("a column holds a %T, not a %T", v, value))
	}
	return value
}

func (c *columns) integer() int64 { return take[int64](c) }
func (c *columns) text() string   { return take[string](c) }
func (c *columns) bytes() []byte  { return slices.Clone(take[[]byte](c)) } // it is the driver's

func (c *columns) time() time.Time {
	at := c.values[0]
	micro := c.integer()
	if at == nil {
		return time.Time{}
	}
	return time.UnixMicro(micro).UTC()
}
