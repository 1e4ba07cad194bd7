// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// FileName is what the service opens in its data folder, and nothing else.
const FileName = "certbound.db"

// ErrNotServable says that a database must not be served as it is; see ConditionError.
var ErrNotServable = errors.New("the database must not be served as it is")

// settingCondition is the setting by which a database says that it is none to serve.
const settingCondition = "database.condition"

// The conditions in which a database is not served.
const (
	ConditionBackup    = "backup"    // it is a backup's file
	ConditionRestoring = "restoring" // it was filled from a backup, and what happened since is still to be made again
	ConditionMoving    = "moving"    // it is being copied to another database, which may be whole already, and is served in its place then
	ConditionMoved     = "moved"     // all of it was copied to another database, which is served in its place
)

// Condition is why a database must not be served as it is.
type Condition struct {
	State string     `json:"state"`
	Since time.Time  `json:"since"`
	To    string     `json:"to,omitempty"`     // where it was or is being moved, without a password
	Named string     `json:"named,omitempty"`  // how a verb names that place, as a shell takes it; empty: as To
	ID    string     `json:"id,omitempty"`     // of the move, random: what arrives there has it
	By    string     `json:"by,omitempty"`     // replica from whose data folder it is moved
	Back  *BackupTag `json:"backup,omitempty"` // which backup it is, or was filled from
}

// BackupTag says what a backup is.
type BackupTag struct {
	ID           string       `json:"id"` // random
	Installation string       `json:"installation"`
	Program      string       `json:"program"` // version of the program that made it
	MadeAt       time.Time    `json:"made_at"`
	Version      int64        `json:"version"` // of the state
	Journals     []BackupHead `json:"journals"`
}

// BackupHead is where a replica's journal was known to stand when the backup was made.
type BackupHead struct {
	Replica     string    `json:"replica"`
	Incarnation uint64    `json:"incarnation"`
	Seq         uint64    `json:"seq"` // zero: not known
	Chain       []byte    `json:"chain,omitempty"`
	At          time.Time `json:"at,omitzero"`
	// Serving says that the replica may have been serving: what happened after the backup may be in its journal.
	Serving bool `json:"serving"`
}

// ConditionError is the refusal to open a database that must not be served as it is. It is ErrNotServable.
type ConditionError struct{ Condition Condition }

// Error says what it is instead.
func (e *ConditionError) Error() string {
	c := &e.Condition
	at := c.Since.UTC().Format(time.RFC3339)
	switch c.State {
	case ConditionBackup:
		return "it is a backup made at " + at + ": what was revoked since is not in it"
	case ConditionRestoring:
		return "it was filled from a backup at " + at + ", and what was revoked since that was made is not in it yet"
	case ConditionMoving:
		return "it is being moved to " + c.To + " since " + at + ", and may be there already"
	case ConditionMoved:
		return "it was moved to " + c.To + " at " + at + ", and what was revoked there since is not in it"
	}
	return fmt.Sprintf("it is in the condition %q, which this program does not know", c.State)
}

// Hint says what to do about it.
func (e *ConditionError) Hint() string {
	c := &e.Condition
	to := cmp.Or(c.Named, c.To)
	switch c.State {
	case ConditionBackup:
		return "certbound store restore makes a database of it that can be served"
	case ConditionRestoring:
		return "run certbound store restore again with the same file: it goes on where it was"
	case ConditionMoving:
		return "run certbound store migrate again, with --to " + to + " as before: it goes on where it was; certbound store migrate --cancel --to " +
			to + " puts this one into service again, if nothing has arrived there"
	case ConditionMoved:
		if strings.Contains(c.To, "://") {
			return "serve --database " + to + "; to come back, move this file away and then: certbound store migrate --database " + to +
				" --to FILE, with the name that this file had"
		}
		if filepath.Base(c.To) != FileName {
			return "certbound serve opens DATA/" + FileName + " alone: give " + to + " that name, in the data folder that this one was served from, whose kek and journal belong to it, and move this one away first, with its -wal and -shm"
		}
		return "serve without --database, on the data folder that has " + to + "; to come back: certbound store migrate --to an empty database"
	}
	return "use a newer program"
}

// Is reports whether target is ErrNotServable.
func (e *ConditionError) Is(target error) bool { return target == ErrNotServable }

// Condition returns why the database must not be served, nil when it may be.
func (s *Store) Condition(ctx context.Context) (*Condition, error) { return readCondition(ctx, s.read) }

func readCondition(ctx context.Context, r conn) (*Condition, error) {
	var value string
	err := r.QueryRowContext(ctx, querySetting, settingCondition).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the database's condition: %w", err)
	}
	c := new(Condition)
	if err := json.Unmarshal([]byte(value), c); err != nil {
		return nil, fmt.Errorf("%w: its condition cannot be read", ErrDamaged)
	}
	return c, nil
}

// checkUse refuses a database that was sealed under another key-encryption key, and one that must not be served as it is.
// It writes nothing.
func (s *Store) checkUse(ctx context.Context, q conn) error {
	if err := s.checkKEK(ctx, q); err != nil || s.anyCondition {
		return err
	}
	c, err := readCondition(ctx, q)
	if err != nil || c == nil {
		return err
	}
	return &ConditionError{*c}
}

// setCondition puts the database into a condition, or with nil out of any.
func setCondition(ctx context.Context, w conn, c *Condition) error {
	if _, err := w.ExecContext(ctx, deleteSetting, settingCondition); err != nil {
		return err
	}
	if c == nil {
		return nil
	}
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = w.ExecContext(ctx, insertSetting, settingCondition, string(value))
	return err
}
