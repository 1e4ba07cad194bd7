// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package move moves an installation's database to another place, so that at every moment at most one of the two can be
// served, and cut short anywhere it can be finished, or given up while nothing has arrived. It is for the program's verb.
//
// The database is put out of service first, in the condition "moving" with a random id. Then it is copied, in one
// transaction of the target that stores the id, too. Then it is put out of service for good. What a run finds that comes
// after one that was cut short says how far that came: the target has the id, or it has nothing.
package move

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Config is what Run and Cancel need.
type Config struct {
	// From is the database. The caller holds the lock of the data folder.
	From store.Config
	// To is an empty database, or a file that is not there yet; it is sealed under the same key-encryption key.
	To store.Config
	// Named is how the verb names To, as a shell takes it, without a password: for those who are refused later. Empty: as its
	// place is shown.
	Named string
	// Program is the version of the program.
	Program string
	// Replica is what the data folder says that it is; the journal's entry is left to it.
	Replica string
	Now     func() time.Time // nil: time.Now

	reached func(step string) // for tests
}

// Report is what Run did.
type Report struct {
	From string `json:"from"`
	To   string `json:"to"`
	store.Copied
	Retired bool `json:"retired"` // the database that was moved
	// Resumed says that an earlier run had copied it: the rows are those that the target has now.
	Resumed bool `json:"resumed,omitempty"`
}

// UnfinishedError says that the database is out of service and the new one may be whole or not: the move is to be
// finished.
type UnfinishedError struct {
	From, To string
	Err      error
}

// Error says so.
func (e *UnfinishedError) Error() string {
	return fmt.Sprintf("%s is being moved to %s, which is not finished: %v", e.From, e.To, e.Err)
}

// Unwrap returns the cause.
func (e *UnfinishedError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *UnfinishedError) Hint() string {
	return "put right what the error names and run certbound store migrate again, with --to " + e.To + " as before; until then neither is to be served"
}

// Errors that are told apart. The ones of other conditions are the store's ConditionError.
var (
	// ErrElsewhere says that a database is being moved to another place than the one that was named.
	ErrElsewhere = errors.New("it is being moved elsewhere")
	// ErrForeignTarget says that something else is in the place that a database is being moved to.
	ErrForeignTarget = errors.New("something else is there now, which this move has not brought")
	// ErrArrived says that a move cannot be given up any more.
	ErrArrived = errors.New("everything has arrived there")
	// ErrNotMoving says that there is no move to give up.
	ErrNotMoving = errors.New("it is not being moved")
)

// run is one Run or Cancel.
type run struct {
	Config
	from *store.Store
	hold *store.Move
}

// Run moves a database, or finishes what an earlier run has begun. With an error from before anything can have arrived the
// database is in service again; else the error is an UnfinishedError. It blocks as long as copying takes.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	report = &Report{From: store.Place(cfg.From), To: store.Place(cfg.To)}
	if err := r.move(ctx, report); err != nil {
		return nil, err
	}
	return report, r.close()
}

// open opens the database, in whatever condition, and takes hold of it.
func open(ctx context.Context, cfg Config) (*run, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.reached == nil {
		cfg.reached = func(string) {}
	}
	cfg.From.AnyCondition, cfg.To.AnyCondition = true, true
	only := cfg.From
	only.ReadOnly = true
	judged, err := store.Open(ctx, only) // with an older schema it is left as it is
	if err == nil {
		err = judged.Close()
	}
	if err != nil {
		return nil, err
	}
	r := &run{Config: cfg}
	if r.from, err = store.Open(ctx, cfg.From); err != nil {
		return nil, err
	}
	if r.hold, err = r.from.Move(ctx); err != nil {
		return nil, errors.Join(err, r.from.Close())
	}
	r.hold.Named = cfg.Named
	return r, nil
}

func (r *run) close() error { return errors.Join(r.hold.Close(), r.from.Close()) }

func (r *run) move(ctx context.Context, report *Report) error {
	condition, err := r.from.Condition(ctx)
	if err != nil {
		return err
	}
	if condition == nil {
		return r.begin(ctx, report)
	}
	if condition.State != store.ConditionMoving && condition.State != store.ConditionMoved {
		return fmt.Errorf("%s: %w", report.From, &store.ConditionError{Condition: *condition})
	}
	arrival, err := store.Arrived(ctx, r.To, condition.ID)
	if err != nil {
		switch elsewhere := r.samePlace(condition); {
		case elsewhere == nil:
			return &UnfinishedError{report.From, report.To, err}
		case condition.State == store.ConditionMoved:
			return fmt.Errorf("%s: %w", report.From, &store.ConditionError{Condition: *condition})
		default: // to say that it is being moved there would lead astray
			return elsewhere
		}
	}
	switch {
	case arrival == store.ArrivedWhole:
		return r.finish(ctx, report, condition)
	case condition.State == store.ConditionMoved:
		return fmt.Errorf("%s: %w", report.From, &store.ConditionError{Condition: *condition})
	}
	if err := r.samePlace(condition); err != nil {
		return err
	}
	if arrival == store.ArrivedOther {
		return fmt.Errorf("%s: %w", report.To, ErrForeignTarget)
	}
	return r.copy(ctx, report, condition)
}

// samePlace refuses another place than the one that the move was begun to: there may be a whole database.
func (r *run) samePlace(c *store.Condition) error {
	from := store.Place(r.From)
	if to := store.Place(r.To); to != c.To {
		return fmt.Errorf("%s: %w: to %s, not to %s", from, ErrElsewhere, c.To, to)
	}
	if r.To.URL == "" && r.From.URL != "" && r.Replica != c.By { // the same name on another machine is another file
		return fmt.Errorf("%s: %w: to the file %s beside the data folder of the replica %q, and this one is of %q", from, ErrElsewhere, c.To, c.By, r.Replica)
	}
	return nil
}

// begin puts the database out of service and copies it.
func (r *run) begin(ctx context.Context, report *Report) error {
	arrival, err := store.Arrived(ctx, r.To, "")
	switch {
	case err != nil:
		return err
	case arrival != store.ArrivedNothing && r.To.URL == "":
		return &fs.PathError{Op: "create", Path: r.To.Path, Err: fs.ErrExist}
	case arrival != store.ArrivedNothing:
		return fmt.Errorf("%s: %w", report.To, store.ErrNotEmpty)
	}
	if r.From.URL != "" {
		if err := restore.Unserved(ctx, r.from); err != nil {
			return err
		}
	}
	condition, err := r.hold.Begin(ctx, report.To, r.Replica, r.Now())
	if errors.Is(err, store.ErrUnknown) {
		return &UnfinishedError{report.From, report.To, err}
	}
	if err != nil {
		return err
	}
	r.reached("begun")
	return r.copy(ctx, report, &condition)
}

// copy copies the database, which is out of service, and puts it into service again when nothing can have arrived.
func (r *run) copy(ctx context.Context, report *Report, condition *store.Condition) error {
	err := r.outlive(ctx)
	if err == nil {
		err = r.fill(ctx, report, condition)
	}
	if err == nil {
		r.reached("copied")
		return r.retire(ctx, report, condition)
	}
	if errors.Is(err, store.ErrUnknown) || r.undo(ctx, condition) != nil {
		return &UnfinishedError{report.From, report.To, err}
	}
	return err
}

// outlive waits until no lease can be in force that was renewed before the database was put out of service: since then
// none is.
func (r *run) outlive(ctx context.Context) error {
	leases, err := r.from.Leases(ctx)
	if err != nil || len(leases) == 0 {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(replica.Settled):
		return nil
	}
}

func (r *run) fill(ctx context.Context, report *Report, condition *store.Condition) error {
	entry, err := r.entry("store.migrate")
	if err != nil {
		return err
	}
	cfg := store.CopyConfig{KEK: r.From.KEK, Program: r.Program, Entries: []store.Entry{entry}, Replica: r.Replica, Now: r.Now}
	cfg.Ending = func(context.Context) error {
		r.reached("filled")
		return nil
	}
	report.Copied, err = r.hold.Copy(ctx, r.To, condition.ID, cfg)
	return err
}

// undo puts the database into service again, if it is certain that nothing has arrived.
func (r *run) undo(ctx context.Context, condition *store.Condition) error {
	const patience = 30 * time.Second // whoever gave up waits for this, too
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	arrival, err := store.Arrived(ctx, r.To, condition.ID)
	if err != nil {
		return err
	}
	if arrival == store.ArrivedWhole {
		return ErrArrived
	}
	return r.hold.Cancel(ctx, condition.ID, r.Replica)
}

// finish ends a move of which an earlier run has copied everything.
func (r *run) finish(ctx context.Context, report *Report, condition *store.Condition) error {
	var err error
	if report.Copied, err = store.Confirm(ctx, r.To, condition.ID); err != nil {
		return &UnfinishedError{report.From, report.To, err}
	}
	report.Resumed = true
	return r.retire(ctx, report, condition)
}

func (r *run) retire(ctx context.Context, report *Report, condition *store.Condition) error {
	if err := r.hold.Finish(ctx, condition.ID, report.To, r.Now()); err != nil {
		return &UnfinishedError{report.From, report.To, err}
	}
	report.Retired = true
	r.reached("finished")
	return nil
}

// entry is what the journal will say.
func (r *run) entry(name string) (store.Entry, error) {
	e := audit.Event{ID: rand.Text(), Time: r.Now(), Name: name, Outcome: audit.Granted, Class: audit.Takeaway,
		Detail: map[string]string{"from": store.Place(r.From), "to": store.Place(r.To)}}
	body, err := audit.EncodeEvent(e)
	return store.Entry{ID: e.ID, Body: body}, err
}

// Cancel puts a database into service again that is being moved, when it is certain that nothing of it has arrived at To,
// which has to be the place that the move was begun to, and within reach. The errors are ErrArrived, ErrElsewhere,
// ErrNotMoving, a ConditionError, and those of reaching it: then nothing was changed.
func Cancel(ctx context.Context, cfg Config) (report *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	report = &Report{From: store.Place(cfg.From), To: store.Place(cfg.To)}
	condition, err := r.from.Condition(ctx)
	switch {
	case err != nil:
		return nil, err
	case condition == nil:
		return nil, fmt.Errorf("%s: %w", report.From, ErrNotMoving)
	case condition.State != store.ConditionMoving:
		return nil, fmt.Errorf("%s: %w", report.From, &store.ConditionError{Condition: *condition})
	}
	if err := r.samePlace(condition); err != nil {
		return nil, err
	}
	arrival, err := store.Arrived(ctx, r.To, condition.ID)
	if err != nil {
		return nil, err
	}
	if arrival == store.ArrivedWhole {
		return nil, fmt.Errorf("%s: %w", report.To, ErrArrived)
	}
	entry, err := r.entry("store.migrate.cancel")
	if err != nil {
		return nil, err
	}
	if err := r.hold.Cancel(ctx, condition.ID, r.Replica, entry); err != nil {
		return nil, err
	}
	return report, nil
}
