// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

//go:embed migrations
var migrations embed.FS

// defaultTokenLife is the longest life of a token unless Config says otherwise.
const defaultTokenLife = time.Hour

// Open opens the database, brings its schema up to date, or makes a new one. Its errors name the file. They are
// ErrForeign, ErrDamaged, ErrNewerSchema or ErrWrongKEK where the file must be left alone; then nothing was written.
// The caller holds the Lock of the folder.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", cfg.Path, err)
	}
	return s, nil
}

func open(ctx context.Context, cfg Config) (*Store, error) {
	seal, err := newSealer(cfg.KEK)
	if err != nil {
		return nil, err
	}
	s := &Store{core: &core{sealer: seal, logger: cfg.Logger, now: cfg.Now, maxLife: cfg.MaxTokenLife,
		files: slices.Clone(cfg.FileTrusts), fatal: cfg.Fatal, replica: cfg.Replica}}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.maxLife <= 0 {
		s.maxLife = defaultTokenLife
	}
	if err := s.prepare(ctx, cfg.Path); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, cfg.Path); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// prepare makes the file when there is none, else checks it.
func (s *Store) prepare(ctx context.Context, path string) error {
	found, err := exists(path)
	if err != nil {
		return err
	}
	steps, err := schemaSteps()
	if err != nil {
		return err
	}
	if found {
		return s.check(ctx, path, len(steps))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	s.logger.InfoContext(ctx, "making a new database", "path", path)
	return s.create(ctx, path, steps)
}

// check judges an existing file before anything writes to it.
func (s *Store) check(ctx context.Context, path string, newest int) error {
	if err := inspect(ctx, path, newest); err != nil {
		return err
	}
	db, err := pool(path, inspectPragmas, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := s.checkKEK(ctx, db); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	s.logger.WarnContext(ctx, "the database could be read by other users: making it private", "path", path)
	return os.Chmod(path, 0o600)
}

// create makes the database beside its place and renames it, so that a crash at the first start leaves either none
// or a whole one.
func (s *Store) create(ctx context.Context, path string, steps []string) error {
	draft := path + ".new"
	for _, name := range []string{draft, draft + "-journal"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := s.fill(ctx, draft, steps); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// fill writes the schema and the first rows into an empty file.
func (s *Store) fill(ctx context.Context, path string, steps []string) error {
	db, err := pool(path, createPragmas, 1)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, createSchemaVersion); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, insertSchemaVersion, 0); err != nil {
		return err
	}
	if err := migrate(ctx, db, 0, steps); err != nil {
		return err
	}
	check, err := s.sealer.seal(kekCheckPlace, []byte(kekCheckText))
	if err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, insertState, check); err != nil {
		return err
	}
	return db.Close()
}

// connect opens the pools and brings an older schema up to date.
func (s *Store) connect(ctx context.Context, path string) error {
	var err error
	if s.writer, err = pool(path, writePragmas, 1); err != nil {
		return err
	}
	if s.reader, err = pool(path, readPragmas, readers); err != nil {
		return err
	}
	s.write, s.read = s.writer, s.reader
	if s.shared, err = pool(path, writePragmas, callers); err != nil {
		return err
	}
	steps, err := schemaSteps()
	if err != nil {
		return err
	}
	var version int
	if err := s.writer.QueryRowContext(ctx, querySchemaVersion).Scan(&version); err != nil {
		return damaged(err)
	}
	return migrate(ctx, s.writer, version, steps)
}

// schemaSteps returns the migrations in order; the schema's version is how many of them were applied.
func schemaSteps() ([]string, error) {
	entries, err := fs.ReadDir(migrations, migrationsFolder) // sorted by name
	if err != nil {
		return nil, err
	}
	steps := make([]string, 0, len(entries))
	for _, e := range entries {
		text, err := fs.ReadFile(migrations, path.Join(migrationsFolder, e.Name()))
		if err != nil {
			return nil, err
		}
		steps = append(steps, string(text))
	}
	return steps, nil
}

// migrate applies the steps behind version, each in a transaction with its number.
func migrate(ctx context.Context, db *sql.DB, version int, steps []string) error {
	for i := version; i < len(steps); i++ {
		if err := migrateStep(ctx, db, i+1, steps[i]); err != nil {
			return fmt.Errorf("schema step %d: %w", i+1, err)
		}
	}
	return nil
}

func migrateStep(ctx context.Context, db *sql.DB, version int, step string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, step); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, updateSchemaVersion, version); err != nil {
		return err
	}
	return tx.Commit()
}

// syncFolder makes a rename in the folder survive a crash.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// DB returns a pool of connections for the CA library's table ca_kv, and for nothing else. It is apart from the
// Store's own, so that the library may store in the middle of a decision. Close closes it.
func (s *Store) DB() *sql.DB { return s.shared }

// Close waits for running statements and closes the database. Methods fail afterwards.
func (s *Store) Close() error {
	var errs []error
	// The readers go first: the last connection to close moves the log into the database, and it must be able to write.
	for _, db := range []*sql.DB{s.reader, s.shared, s.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// Version returns the version of the state: it grows with every change that decides something.
func (s *Store) Version(ctx context.Context) (int64, error) {
	var v int64
	if err := s.read.QueryRowContext(ctx, queryVersion).Scan(&v); err != nil {
		return 0, fmt.Errorf("read the version: %w", err)
	}
	return v, nil
}

// Stats counts rows, all in one snapshot.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	var st Stats
	err := s.read.QueryRowContext(ctx, queryStats, moment(s.now())).Scan(&st.Clients, &st.Disabled, &st.Resources,
		&st.Certificates, &st.Revoked, &st.OpenCodes, &st.Trusts, &st.Version)
	if err != nil {
		return Stats{}, fmt.Errorf("count rows: %w", err)
	}
	return st, nil
}

// Setting returns a stored setting, or ErrNotFound.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	var value string
	err := s.read.QueryRowContext(ctx, querySetting, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("setting %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("setting %q: %w", name, err)
	}
	return value, nil
}

// SetOnce stores a setting unless it has a value, and returns the one that is stored now: the first writer wins.
func (s *Store) SetOnce(ctx context.Context, name, value string) (string, error) {
	if stored, err := s.Setting(ctx, name); !errors.Is(err, ErrNotFound) {
		return stored, err
	}
	err := s.direct(func() error {
		_, err := s.write.ExecContext(context.WithoutCancel(ctx), insertSetting, name, value)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("setting %q: %w", name, err)
	}
	return s.Setting(ctx, name)
}
