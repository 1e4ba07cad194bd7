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
	"syscall"
	"time"
)

// settingInstallation is the setting that names the installation; who serves writes it.
const settingInstallation = "journal_installation"

// CopyConfig is what copies need besides the databases.
type CopyConfig struct {
	KEK     []byte // the key-encryption key that the database is sealed under
	Program string // version of the program
	// Entries go into the copy's outbox, under the name of Replica.
	Entries []Entry
	Replica string
	Now     func() time.Time // nil: time.Now
	// Ending, unless nil, is the last thing before the copy is committed, or has its name: with an error there is no copy.
	Ending func(context.Context) error

	moveID string // the move that it is a part of; see Move
}

func (c *CopyConfig) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Backup writes a backup of the database into a file that is not there yet: an SQLite database of its own, whatever the
// kind of this one, complete but for the key-encryption key. Others may go on writing meanwhile. The file has its name
// once it is whole and on the disk. The error is fs.ErrExist when there is one, and a FolderError without its folder.
func (s *Store) Backup(ctx context.Context, file string, cfg CopyConfig) (BackupTag, Copied, error) {
	var tag BackupTag
	made, err := s.CopyToFile(ctx, file, cfg, func(ctx context.Context, source, target *sql.Tx) error {
		var err error
		if tag, err = s.backupTag(ctx, source, cfg); err != nil {
			return err
		}
		return setCondition(ctx, target, &Condition{State: ConditionBackup, Since: tag.MadeAt, Back: &tag})
	})
	if err != nil {
		return BackupTag{}, Copied{}, fmt.Errorf("back up the database: %w", err)
	}
	return tag, made, nil
}

// Tag says what a backup made now would be.
func (s *Store) Tag(ctx context.Context, program string, now time.Time) (BackupTag, error) {
	tx, err := s.snapshot(ctx)
	if err != nil {
		return BackupTag{}, fmt.Errorf("read the state of the database: %w", err)
	}
	defer tx.Rollback()
	tag, err := s.backupTag(ctx, tx, CopyConfig{Program: program, Now: func() time.Time { return now }})
	if err != nil {
		return BackupTag{}, fmt.Errorf("read the state of the database: %w", err)
	}
	return tag, nil
}

// backupTag says what a copy is, by the state that was copied.
func (s *Store) backupTag(ctx context.Context, tx *sql.Tx, cfg CopyConfig) (BackupTag, error) {
	tag := BackupTag{ID: strings.ToLower(rand.Text()), Program: cfg.Program, MadeAt: asStored(cfg.now())}
	if err := tx.QueryRowContext(ctx, queryVersion).Scan(&tag.Version); err != nil {
		return tag, err
	}
	err := tx.QueryRowContext(ctx, querySetting, settingInstallation).Scan(&tag.Installation)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return tag, err
	}
	rows, err := tx.QueryContext(ctx, queryNewestJournals)
	tag.Journals, err = all(rows, err, func(r row) (h BackupHead, err error) {
		return h, r.Scan(&h.Replica, &h.Incarnation, &h.Seq, &h.Chain, (*moment)(&h.At), &h.Serving)
	})
	if err == nil && s.Dialect() != postgresKind && len(tag.Journals) > 0 {
		tag.Journals[0].Serving = true // it needs no lease: the one that started last
	}
	return tag, err
}

// settingReplica is the setting by which a file says which replica it belongs to; who serves writes it.
const settingReplica = "journal_replica"

// CopyInto copies the database into another one, which is empty or a file that is not there yet; see Copy.
func (s *Store) CopyInto(ctx context.Context, target Config, cfg CopyConfig) (Copied, error) {
	end := func(ctx context.Context, _, tx *sql.Tx) error { return s.enter(ctx, tx, target, cfg) }
	if target.URL == "" {
		return s.CopyToFile(ctx, target.Path, cfg, end)
	}
	to, err := Open(ctx, target)
	if err != nil {
		return Copied{}, err
	}
	made, err := Copy(ctx, s, to, end)
	return made, errors.Join(err, to.Close())
}

// enter writes into a copy what it has of its own.
func (s *Store) enter(ctx context.Context, tx *sql.Tx, target Config, cfg CopyConfig) error {
	if target.URL != "" || s.Dialect() == postgresKind { // whoever serves says which replica it is
		if _, err := tx.ExecContext(ctx, deleteSetting, settingReplica); err != nil {
			return err
		}
	}
	if cfg.moveID != "" { // of the two, it is the one to serve
		if err := errors.Join(setCondition(ctx, tx, nil), setMovedFrom(ctx, tx, cfg.moveID)); err != nil {
			return err
		}
	}
	if err := s.enterEntries(ctx, tx, cfg.Replica, cfg.Entries); err != nil {
		return err
	}
	if cfg.Ending != nil {
		return cfg.Ending(ctx)
	}
	return nil
}

// enterEntries puts entries into an outbox, of this database or of a copy, which is sealed under the same key.
func (s *Store) enterEntries(ctx context.Context, tx *sql.Tx, replica string, entries []Entry) error {
	c := &change{ctx: ctx, tx: tx, isUnique: func(error) bool { return false }}
	for _, e := range entries {
		if err := s.noteAs(c, replica, e); err != nil {
			return err
		}
	}
	var version int64
	if err := tx.QueryRowContext(ctx, queryVersion).Scan(&version); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, stampQuery("outbox"), version)
	return err
}

// FolderError says that a file was to be made in what is no folder.
type FolderError struct {
	Dir     string
	Missing bool // there is nothing of that name
}

// Error names the folder.
func (e *FolderError) Error() string {
	if e.Missing {
		return "there is no folder " + e.Dir
	}
	return e.Dir + " is no folder"
}

// CheckFolder refuses the name of a new file whose folder is not there, as a FolderError. It is not made: the name of a
// folder that was mistyped, or whose disk is not mounted, would hide the file where nobody looks for it.
func CheckFolder(file string) error {
	dir := filepath.Dir(file)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &FolderError{Dir: dir, Missing: true}
	case errors.Is(err, syscall.ENOTDIR) || err == nil && !info.IsDir():
		return &FolderError{Dir: dir}
	}
	return err
}

// CopyToFile copies the database into a file that is not there yet, in a folder that is; see Copy. then is done in the
// copy's transaction.
func (s *Store) CopyToFile(ctx context.Context, file string, cfg CopyConfig, then Finish) (Copied, error) {
	if err := CheckFolder(file); err != nil {
		return Copied{}, err
	}
	if _, err := os.Lstat(file); err == nil {
		return Copied{}, &fs.PathError{Op: "create", Path: file, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Copied{}, err
	}
	draft := file + ".draft"
	if err := removeDatabase(draft); err != nil { // of a run that was cut short
		return Copied{}, err
	}
	made, err := s.fillFile(ctx, draft, cfg, then)
	if err != nil {
		return Copied{}, errors.Join(err, removeDatabase(draft))
	}
	if _, err := os.Lstat(file); err == nil {
		return Copied{}, errors.Join(&fs.PathError{Op: "create", Path: file, Err: fs.ErrExist}, removeDatabase(draft))
	}
	if err := os.Rename(draft, file); err != nil {
		return Copied{}, errors.Join(err, removeDatabase(draft))
	}
	return made, syncFolder(filepath.Dir(file))
}

// fillFile makes a database in a new file and closes it: everything is in that one file then, and on the disk.
func (s *Store) fillFile(ctx context.Context, path string, cfg CopyConfig, then Finish) (Copied, error) {
	to, err := Open(ctx, Config{Path: path, KEK: cfg.KEK, Now: cfg.Now})
	if err != nil {
		return Copied{}, err
	}
	err = to.beginDraft(ctx)
	var made Copied
	if err == nil {
		made, err = Copy(ctx, s, to, then)
	}
	if err == nil {
		err = to.journalMode(ctx, "delete")
	}
	if err == nil {
		_, err = to.writer.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return Copied{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Copied{}, err
	}
	return made, errors.Join(f.Sync(), f.Close())
}

// beginDraft has a file that nobody uses before it is whole, and that is synced then, written without a log and without a
// sync, and its references not looked up one by one: they are those of the source. Until it is whole it does not pass for a
// database, whatever name somebody gives it.
func (s *Store) beginDraft(ctx context.Context) error {
	for _, c := range []func() error{s.holders.close, s.reader.Close, s.shared.Close} { // they would keep the log
		if err := c(); err != nil {
			return err
		}
	}
	if err := s.journalMode(ctx, "memory"); err != nil {
		return err
	}
	for _, pragma := range []string{fmt.Sprintf("application_id = %d", draftID), "synchronous = OFF", "foreign_keys = OFF", "cache_size = -65536"} {
		if _, err := s.writer.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) journalMode(ctx context.Context, mode string) error {
	var got string
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode = "+mode).Scan(&got); err != nil {
		return err
	}
	if got != mode {
		return fmt.Errorf("the log of the copy is %q, not %q", got, mode)
	}
	return nil
}

func removeDatabase(path string) error {
	for _, suffix := range []string{"", "-journal", "-wal", "-shm", ".new", ".new-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
