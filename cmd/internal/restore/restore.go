// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package restore makes a database that can be served out of a backup and the journals of what happened since, so that
// nothing which was taken away is given back: what was revoked stays revoked, who was disabled stays so, a code that was
// used is used. It is for the program's verb.
//
// A record gives back what it says: a certificate without its bytes, a client without what the journal does not carry.
// Where that is not enough, less is given and never more, and the report says so. What could not be known at all, because
// a journal is missing, ends too early or is not what was written, is refused, unless the caller accepts the loss.
package restore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Config is what Run needs.
type Config struct {
	// Backup is the backup's file. Empty: Target went back to an earlier time by itself.
	Backup string
	// Target is the database to fill, with the key-encryption key that the backup is sealed under. It must be empty, or one
	// that an earlier run for the same backup has left half done.
	Target store.Config
	// Journals are the data folders of the replicas, or copies of their journals.
	Journals []string
	// Heads are what somebody kept of the journals' heads.
	Heads []audit.Anchor
	// AcceptLoss goes on where something is known to be lost.
	AcceptLoss bool
	// Program is the version of the program, for the record.
	Program string
	Logger  *slog.Logger     // nil discards
	Now     func() time.Time // nil: time.Now

	reached func(step string) // for tests
}

// Report is what Run did.
type Report struct {
	Backup   *store.BackupTag `json:"backup,omitempty"`
	Rows     int64            `json:"rows,omitempty"` // copied from the backup by this run
	Since    int64            `json:"since"`          // the version that was brought up to date
	Journals []Journal        `json:"journals"`
	Done     map[string]int   `json:"done"`                // records whose change was made again, by their events
	Undone   []string         `json:"undone"`              // what could not be made again, and what to do about it
	LostKeys []string         `json:"lost_keys,omitempty"` // signing keys that were made after the backup; Undone has one line of them all
	Lost     []string         `json:"lost"`                // what was accepted as lost
}

// Journal is one that was read.
type Journal struct {
	Dir     string `json:"dir"`
	Replica string `json:"replica"`
	Last    uint64 `json:"last"`    // its last record
	Changes int    `json:"changes"` // records of changes after the backup
}

// LossError says what would be lost: nothing was changed, or only the database is filled and not to be served.
type LossError struct{ Lost []string }

// Error names the first.
func (e *LossError) Error() string {
	if n := len(e.Lost) - 1; n > 0 {
		return fmt.Sprintf("%s (and %d more)", e.Lost[0], n)
	}
	return e.Lost[0]
}

// Errors that are told apart.
var (
	// ErrNoBackup says that a file is a database, but no backup.
	ErrNoBackup = errors.New("it is a database, but not a backup")
	// ErrOtherInstallation says that a backup, a journal and a database do not belong together.
	ErrOtherInstallation = errors.New("it belongs to another installation")
	// ErrServing says that a replica serves on the database.
	ErrServing = errors.New("a replica serves on the database: stop it first")
)

// maxUndone bounds what a report says of single things.
const maxUndone = 1000

// run is one Run.
type run struct {
	Config
	report  Report
	log     audit.ChangeLog
	newest  int64           // version that any journal speaks of
	lesser  map[string]bool // files of journals that are not what was written
	keys    audit.StoredKeys
	partial map[string]bool // clients that were made again without something
	trust   string          // our trust domain
}

// Run restores. It verifies the journals first; then it fills the database, unless that was done by a run that was cut
// short; then it makes the changes again, in one transaction, after which the database may be served. Cut short anywhere it
// is run again. The errors are a *LossError, ErrNoBackup, ErrOtherInstallation, ErrServing and those of the store.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.reached == nil {
		cfg.reached = func(string) {}
	}
	r := &run{Config: cfg, lesser: make(map[string]bool), partial: make(map[string]bool)}
	r.report = Report{Journals: []Journal{}, Done: map[string]int{}, Undone: []string{}, Lost: []string{}}
	if err := r.restore(ctx); err != nil {
		return nil, err
	}
	return &r.report, nil
}

func (r *run) restore(ctx context.Context) error {
	if r.Backup == "" {
		return r.inPlace(ctx)
	}
	backup, err := store.Open(ctx, store.Config{Path: r.Backup, KEK: r.Target.KEK, AnyCondition: true, ReadOnly: true, Now: r.Now})
	if err != nil {
		return err
	}
	defer backup.Close()
	condition, err := backup.Condition(ctx)
	if err != nil {
		return err
	}
	if condition == nil || condition.State != store.ConditionBackup || condition.Back == nil {
		return fmt.Errorf("%s: %w", r.Backup, ErrNoBackup)
	}
	tag := condition.Back
	r.report.Backup, r.report.Since = tag, tag.Version
	if err := r.readJournals(ctx, tag); err != nil {
		return err
	}
	r.reached("verified")
	target, err := r.fill(ctx, backup, tag)
	if err != nil {
		return err
	}
	defer target.Close()
	r.reached("filled")
	return r.replay(ctx, target)
}

// inPlace brings a database up to date that went back by itself.
func (r *run) inPlace(ctx context.Context) error {
	target := r.Target
	target.AnyCondition = true
	if found, err := store.Exists(ctx, target); err != nil || !found {
		return cmp.Or(err, fmt.Errorf("%s: %w", store.Place(target), os.ErrNotExist))
	}
	db, err := store.Open(ctx, target)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := r.judgeTarget(ctx, db, nil); err != nil {
		return err
	}
	if err := Unserved(ctx, db); err != nil {
		return err
	}
	tag, err := db.Tag(ctx, r.Program, r.Now())
	if err != nil {
		return err
	}
	r.report.Since = tag.Version
	if err := r.readJournals(ctx, &tag); err != nil {
		return err
	}
	if err := db.SetRestoring(ctx, r.Now()); err != nil {
		return err
	}
	r.reached("filled")
	return r.replay(ctx, db)
}

// Unserved refuses a database on which a replica renews its lease.
func Unserved(ctx context.Context, db *store.Store) error {
	before, err := db.Leases(ctx)
	if err != nil || len(before) == 0 {
		return err
	}
	const renewals = 2500 * time.Millisecond // each second, when all is well
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(renewals):
	}
	after, err := db.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range after {
		if !slices.ContainsFunc(before, func(b store.Lease) bool { return b.Replica == l.Replica && b.Renewals == l.Renewals }) {
			return fmt.Errorf("%w: %s at %s", ErrServing, l.Replica, l.Address)
		}
	}
	return nil
}

// fill copies the backup into the target, unless an earlier run has done so, and opens it.
func (r *run) fill(ctx context.Context, backup *store.Store, tag *store.BackupTag) (*store.Store, error) {
	target := r.Target
	target.AnyCondition, target.Now = true, r.Now
	found, err := store.Exists(ctx, target)
	if err != nil {
		return nil, err
	}
	if !found && target.URL == "" {
		made, err := store.RestoringFile(ctx, backup, target.Path, tag, store.CopyConfig{KEK: target.KEK, Program: r.Program, Now: r.Now})
		if err != nil {
			return nil, err
		}
		r.rows(made)
	}
	db, err := store.Open(ctx, target)
	if err != nil {
		return nil, err
	}
	if target.URL != "" {
		err = r.fillShared(ctx, backup, db, tag)
	}
	if err == nil {
		err = r.judgeTarget(ctx, db, tag)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// fillShared fills a database that has tables, unless it has been.
func (r *run) fillShared(ctx context.Context, backup, db *store.Store, tag *store.BackupTag) error {
	condition, err := db.Condition(ctx)
	if err != nil || condition != nil {
		return err
	}
	made, err := store.AsRestoring(ctx, backup, db, tag, r.Now())
	r.rows(made)
	return err
}

func (r *run) rows(made store.Copied) {
	for _, t := range made.Tables {
		r.report.Rows += t.Rows
	}
}

// judgeTarget refuses a database that is none to restore into: one that is in use, or was filled from another backup.
func (r *run) judgeTarget(ctx context.Context, db *store.Store, tag *store.BackupTag) error {
	condition, err := db.Condition(ctx)
	if err != nil {
		return err
	}
	switch {
	case tag == nil && (condition == nil || condition.State == store.ConditionRestoring && condition.Back == nil):
		return nil
	case tag != nil && condition != nil && condition.State == store.ConditionRestoring && condition.Back != nil && condition.Back.ID == tag.ID:
		return nil
	case condition == nil:
		return fmt.Errorf("%s: %w", store.Place(r.Target), store.ErrNotEmpty)
	}
	return fmt.Errorf("%s: %w", store.Place(r.Target), &store.ConditionError{Condition: *condition})
}

// lose notes what is lost, and refuses to go on unless that was accepted.
func (r *run) lose(format string, args ...any) {
	r.report.Lost = append(r.report.Lost, fmt.Sprintf(format, args...))
}

// readJournals verifies the journals and finds in them what happened after the backup.
func (r *run) readJournals(ctx context.Context, tag *store.BackupTag) error {
	since := tag.MadeAt.UTC().Format(time.RFC3339)
	if len(r.Journals) == 0 {
		r.lose("no journal was given: what was revoked since %s would be in force again", since)
	}
	given := make(map[string]bool)
	var witnessed []audit.WitnessedHead
	for _, data := range r.Journals {
		dir := filepath.Clean(audit.Dir(data))
		replica, seen, err := r.readJournal(ctx, dir, tag)
		if err != nil {
			return err
		}
		given[replica] = true
		for _, w := range seen {
			if w.Installation == tag.Installation {
				witnessed = append(witnessed, w)
			}
		}
	}
	if len(r.Journals) > 0 {
		for _, h := range tag.Journals {
			if h.Serving && !given[h.Replica] {
				r.lose("the journal of the replica %s, which served when the backup was made, was not given", h.Replica)
			}
		}
		for _, h := range r.Heads { // of one whose journal was given they were held to it
			if seq, _, _ := h.Head(); h.Installation == tag.Installation {
				witnessed = append(witnessed, audit.WitnessedHead{Identity: h.Identity, Seq: seq})
			}
		}
		for _, w := range witnessed {
			if !given[w.Replica] && !ended(tag, w) {
				r.lose("the journal of the replica %s, of which another one or a known head speaks, was not given", w.Replica)
				given[w.Replica] = true
			}
		}
	}
	return r.judgeLoss()
}

// ended reports whether a journal that somebody speaks of had come to its end when the backup was made, as far as that is
// known, or whether the backup asks for it anyway. Whoever had no lease then may have got one later, and have changed
// something: who had just begun, and who was cut off, and came back with the same incarnation.
func ended(tag *store.BackupTag, w audit.WitnessedHead) bool {
	return slices.ContainsFunc(tag.Journals, func(h store.BackupHead) bool {
		if h.Replica != w.Replica {
			return false
		}
		return h.Serving || h.Incarnation > w.Incarnation || h.Incarnation == w.Incarnation && h.Seq > 0 && w.Seq <= h.Seq
	})
}

func (r *run) judgeLoss() error {
	if len(r.report.Lost) > 0 && !r.AcceptLoss {
		return &LossError{r.report.Lost}
	}
	return nil
}

// readJournal takes one journal in, and returns whose it is and of whose it speaks.
func (r *run) readJournal(ctx context.Context, dir string, tag *store.BackupTag) (string, []audit.WitnessedHead, error) {
	report, err := audit.Verify(dir, nil)
	tampered, wrong := errors.AsType[*audit.TamperError](err)
	if err != nil && !wrong {
		return "", nil, err
	}
	if tag.Installation != "" && report.Installation != tag.Installation {
		return "", nil, fmt.Errorf("the journal in %s: %w: %s, and the backup to %s", dir, ErrOtherInstallation, report.Installation, tag.Installation)
	}
	if own := r.headsOf(report); len(own) > 0 && !wrong {
		_, err = audit.Verify(dir, own)
		tampered, wrong = errors.AsType[*audit.TamperError](err)
		if err != nil && !wrong {
			return "", nil, err
		}
	}
	if wrong {
		r.lose("the journal in %s is not what was written: %v", dir, tampered)
		r.lesser[dir] = true
	}
	var heads []audit.Head
	for _, h := range tag.Journals {
		if h.Replica == report.Replica && h.Seq > 0 && len(h.Chain) == len(audit.Head{}.Chain) {
			heads = append(heads, audit.Head{Seq: h.Seq, Chain: [32]byte(h.Chain)})
		}
	}
	seen, err := r.log.Add(ctx, dir, heads, func(e *audit.Entry) bool { return e.Version > r.report.Since || takesForGood(e) })
	if err != nil {
		return "", nil, err
	}
	for _, h := range seen.Missing {
		r.lose("the journal in %s ends at record %d, but had %d when the backup was made", dir, seen.Last, h.Seq)
	}
	for _, h := range seen.Contradicted {
		r.lose("the journal in %s has another record %d than when the backup was made", dir, h.Seq)
		r.lesser[dir] = true
	}
	r.newest = max(r.newest, seen.Newest)
	r.report.Journals = append(r.report.Journals, Journal{dir, report.Replica, seen.Last, seen.Changes})
	return report.Replica, seen.Witnessed, nil
}

// headsOf are the known heads of a journal.
func (r *run) headsOf(report *audit.Report) []audit.Anchor {
	var own []audit.Anchor
	for _, h := range r.Heads {
		if h.Installation == report.Installation && h.Replica == report.Replica {
			own = append(own, h)
		}
	}
	return own
}

// replay makes the changes again and ends the restoring.
func (r *run) replay(ctx context.Context, target *store.Store) error {
	r.keys = storedKeys{target}
	return target.Replay(ctx, func(tx *store.Replay) ([]store.Entry, error) {
		if err := r.prepare(tx); err != nil {
			return nil, err
		}
		if err := tx.Saw(r.newest); err != nil {
			return nil, err
		}
		err := r.log.Each(ctx, func(e *audit.Entry, file string) error { return r.again(ctx, tx, e, file) })
		if err == nil {
			err = r.judgeLoss()
		}
		if err != nil {
			return nil, err
		}
		if n := len(r.report.LostKeys); n > 0 {
			r.undone("signing keys that were made after the backup are lost (%d): tokens that they signed are refused once the key set is read again", n)
		}
		r.reached("replayed")
		entry, err := r.record()
		return []store.Entry{entry}, err
	})
}

// record is what the journal will say of the restoring, once the database is served.
func (r *run) record() (store.Entry, error) {
	e := audit.Event{ID: rand.Text(), Time: r.Now(), Name: "store.restore", Outcome: audit.Granted, Class: audit.Takeaway, Detail: map[string]string{
		"since_version": fmt.Sprint(r.report.Since), "undone": fmt.Sprint(len(r.report.Undone)), "lost": fmt.Sprint(len(r.report.Lost)),
		"journals": fmt.Sprint(len(r.report.Journals)),
	}}
	if tag := r.report.Backup; tag != nil {
		e.Detail["backup"], e.Detail["backup_made_at"] = tag.ID, tag.MadeAt.UTC().Format(time.RFC3339)
	}
	for name, n := range r.report.Done {
		e.Detail["again_"+name] = fmt.Sprint(n)
	}
	for i, lost := range r.report.Lost[:min(len(r.report.Lost), 10)] {
		e.Detail[fmt.Sprintf("lost_%d", i+1)] = lost
	}
	if keys := r.report.LostKeys; len(keys) > 0 {
		e.Detail["lost_keys"] = strings.Join(keys[:min(len(keys), 20)], " ")
	}
	for i, undone := range r.report.Undone[:min(len(r.report.Undone), 20)] {
		e.Detail[fmt.Sprintf("undone_%02d", i+1)] = undone
	}
	body, err := audit.EncodeEvent(e)
	return store.Entry{ID: e.ID, Body: body}, err
}

// undone notes what could not be made again.
func (r *run) undone(format string, args ...any) {
	switch n := len(r.report.Undone); {
	case n < maxUndone:
		r.report.Undone = append(r.report.Undone, fmt.Sprintf(format, args...))
	case n == maxUndone:
		r.report.Undone = append(r.report.Undone, "and more")
	}
}

// storedKeys are the keys of what the journal seals, as far as the backup has them.
type storedKeys struct{ db *store.Store }

func (k storedKeys) StoredDay(ctx context.Context, day string) ([]byte, error) {
	key, err := k.db.StoredAuditDay(ctx, day)
	return key, missing(err)
}

func (k storedKeys) StoredSubject(ctx context.Context, id string) ([]byte, error) {
	key, err := k.db.StoredAuditSubject(ctx, id)
	return key, missing(err)
}

func missing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", audit.ErrErased, err)
	}
	return err
}

// words splits a list of a record.
func words(s string) []string { return strings.Fields(s) }
