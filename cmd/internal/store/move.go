// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// settingMovedFrom is the setting by which a database says which move has filled it: Condition.ID. It stays in whatever is
// copied of that database, so that whoever holds it is known to have what was moved.
const settingMovedFrom = "database.moved_from"

// ErrMoving says that somebody else holds a database to move it.
var ErrMoving = errors.New("another process is moving the database")

// moveLock is the advisory lock of PostgreSQL that whoever moves a database holds. Transactions that decide have another.
const moveLock = int64(applicationID) + 1

// Move is the hold of who moves a database to another place, so that never both can be served: the database is put out of
// service first, then it is copied, and the copy says which move it is of. Nobody else moves it meanwhile. A Move is for one
// goroutine.
type Move struct {
	// Named is how a verb names the place to move to, as a shell takes it: Condition.Named.
	Named string

	s    *Store
	hold *sql.Tx // holds moveLock; nil with SQLite, where the lock of the data folder does
}

// Move takes hold of a database to move it. The error is ErrMoving when somebody else has it. It does not wait for them.
func (s *Store) Move(ctx context.Context) (*Move, error) {
	m := &Move{s: s}
	if s.Dialect() != postgresKind {
		return m, nil
	}
	tx, err := s.side.BeginTx(context.WithoutCancel(ctx), nil) // who gives up still has to put things right
	if err == nil {
		err = s.unhurried(ctx, tx)
	}
	held := false
	if err == nil {
		err = tx.QueryRowContext(ctx, "SELECT pg_try_advisory_xact_lock($1)", moveLock).Scan(&held)
	}
	if err == nil && !held {
		err = ErrMoving
	}
	if err != nil {
		if tx != nil {
			err = errors.Join(err, tx.Rollback())
		}
		return nil, fmt.Errorf("take hold of the database: %w", s.judge(err))
	}
	m.hold = tx
	return m, nil
}

// Close lets go of the database.
func (m *Move) Close() error {
	if m.hold == nil {
		return nil
	}
	return m.hold.Rollback()
}

// held fails when the connection was lost that holds the database.
func (m *Move) held(ctx context.Context) error {
	if m.hold == nil {
		return nil
	}
	var one int
	if err := m.hold.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return fmt.Errorf("the database is not held any more: %w", err)
	}
	return nil
}

// Begin puts the database out of service: it is being moved to the place to, by the data folder of a replica. One that is
// being moved already stays as it is. It returns the condition. The error is a ConditionError for a database in another one.
func (m *Move) Begin(ctx context.Context, to, replica string, now time.Time) (Condition, error) {
	c := Condition{State: ConditionMoving, Since: asStored(now), To: to, Named: m.Named, ID: strings.ToLower(rand.Text()), By: replica}
	err := m.change(ctx, func(tx *sql.Tx, found *Condition) error {
		switch {
		case found == nil:
			return setCondition(ctx, tx, &c)
		case found.State == ConditionMoving:
			c = *found
			return nil
		}
		return &ConditionError{*found}
	})
	if err != nil {
		return Condition{}, fmt.Errorf("put the database out of service: %w", err)
	}
	return c, nil
}

// Copy copies the database to the target, which is empty or not there yet, as the move with that id; see CopyInto. Unlike
// this one the copy may be served.
func (m *Move) Copy(ctx context.Context, target Config, id string, cfg CopyConfig) (Copied, error) {
	ending := cfg.Ending
	cfg.moveID, cfg.Ending = id, func(ctx context.Context) error {
		if ending != nil {
			if err := ending(ctx); err != nil {
				return err
			}
		}
		return m.held(ctx)
	}
	return m.s.CopyInto(ctx, target, cfg)
}

// Finish says that the database was moved to the place to: for good, since the target has all of it. It is harmless where
// that was said already.
func (m *Move) Finish(ctx context.Context, id, to string, now time.Time) error {
	err := m.change(ctx, func(tx *sql.Tx, found *Condition) error {
		switch {
		case !found.of(id):
			return errOtherMove
		case found.State == ConditionMoved:
			return nil
		}
		return setCondition(ctx, tx, &Condition{State: ConditionMoved, Since: asStored(now), To: to, Named: m.Named, ID: id, By: found.By})
	})
	if err != nil {
		return fmt.Errorf("put the database out of service for good: %w", err)
	}
	return nil
}

// Cancel puts the database into service again, of which the caller knows that the target has nothing; see Arrived. The
// entries go into the outbox, under the name of the replica.
func (m *Move) Cancel(ctx context.Context, id, replica string, entries ...Entry) error {
	err := m.change(ctx, func(tx *sql.Tx, found *Condition) error {
		if !found.of(id) || found.State != ConditionMoving {
			return errOtherMove
		}
		if err := setCondition(ctx, tx, nil); err != nil {
			return err
		}
		return m.s.enterEntries(ctx, tx, replica, entries)
	})
	if err != nil {
		return fmt.Errorf("put the database into service again: %w", err)
	}
	return nil
}

var errOtherMove = errors.New("its condition was changed by somebody else meanwhile")

func (c *Condition) of(id string) bool { return c != nil && id != "" && c.ID == id }

func (m *Move) change(ctx context.Context, f func(tx *sql.Tx, found *Condition) error) error {
	return m.s.whole(ctx, func(tx *sql.Tx) error {
		if err := m.held(ctx); err != nil {
			return err
		}
		found, err := readCondition(ctx, tx)
		if err != nil {
			return err
		}
		return f(tx, found)
	})
}

// Arrival is what is in the place that a database is moved to.
type Arrival int

// The arrivals.
const (
	ArrivedNothing Arrival = iota // no file, or an empty database
	ArrivedWhole                  // what was moved
	ArrivedOther                  // anything else
)

// Arrived says what is in the place that a database is moved to by the move with that id. It writes nothing, and waits, for
// seconds at most, for who is writing there: without an error the answer is certain, if nobody else holds the Move.
func Arrived(ctx context.Context, target Config, id string) (Arrival, error) {
	target.ReadOnly, target.AnyCondition = true, true
	s, err := Open(ctx, target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ArrivedNothing, nil
	case errors.Is(err, ErrForeign):
		return ArrivedOther, nil
	case err != nil:
		return ArrivedOther, err
	}
	arrival := ArrivedOther
	for began := time.Now(); ; {
		err = s.whole(ctx, func(tx *sql.Tx) error {
			arrival, err = s.arrived(ctx, tx, id)
			return err
		})
		if err == nil || ctx.Err() != nil || !s.dialect.again(err) || time.Since(began) > patience {
			break
		}
		time.Sleep(breath)
	}
	if err != nil {
		err = fmt.Errorf("look what is in %s: %w", s.dialect.place(), err)
	}
	return arrival, errors.Join(err, s.Close())
}

func (s *Store) arrived(ctx context.Context, tx *sql.Tx, id string) (Arrival, error) {
	var from string
	err := tx.QueryRowContext(ctx, querySetting, settingMovedFrom).Scan(&from)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return ArrivedOther, err
	}
	if err == nil && id != "" && from == id {
		return ArrivedWhole, nil
	}
	if s.Dialect() != postgresKind {
		return ArrivedOther, nil // a file is filled before it has its name
	}
	switch err := checkEmpty(ctx, tx); {
	case errors.Is(err, ErrNotEmpty):
		return ArrivedOther, nil
	case err != nil:
		return ArrivedOther, err
	}
	return ArrivedNothing, nil
}

// Confirm makes certain that what arrived by the move with that id stays, whatever the server does that it is on: an
// earlier run may have died before it knew. It returns what is there.
func Confirm(ctx context.Context, target Config, id string) (Copied, error) {
	target.AnyCondition = true
	if target.URL == "" {
		if err := syncPath(target.Path); err != nil {
			return Copied{}, err
		}
		target.ReadOnly = true
	}
	s, err := Open(ctx, target)
	if err != nil {
		return Copied{}, err
	}
	var found Copied
	err = s.whole(ctx, func(tx *sql.Tx) error {
		if target.URL != "" { // a commit that standbys have puts all before it there
			if err := setMovedFrom(ctx, tx, id); err != nil {
				return err
			}
		}
		found, err = count(ctx, tx)
		return err
	})
	if err != nil {
		err = fmt.Errorf("make sure of %s: %w", s.dialect.place(), err)
	}
	return found, errors.Join(err, s.Close())
}

func setMovedFrom(ctx context.Context, tx *sql.Tx, id string) error {
	if _, err := tx.ExecContext(ctx, deleteSetting, settingMovedFrom); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, insertSetting, settingMovedFrom, id)
	return err
}

// count is what a copy would take.
func count(ctx context.Context, tx *sql.Tx) (Copied, error) {
	var out Copied
	for _, t := range copiedTables() {
		c := TableCount{Table: t.name}
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+t.name).Scan(&c.Rows); err != nil {
			return out, err
		}
		out.Tables = append(out.Tables, c)
	}
	return out, tx.QueryRowContext(ctx, queryVersion).Scan(&out.Version)
}

// syncPath puts a file and its name on the disk.
func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), syncFolder(filepath.Dir(name)))
}
