// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"time"
)

//go:embed migrations
var migrations embed.FS

// defaultTokenLife is the longest life of a token unless Config says otherwise.
const defaultTokenLife = time.Hour

// Open opens the database, brings its schema up to date, or makes a new one. Its errors name the database. They are
// ErrForeign, ErrDamaged, ErrNewerSchema or ErrWrongKEK where it must be left alone; then nothing was written. The caller
// holds the Lock of the folder, if the database is a file.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	d, err := newDialect(cfg)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, cfg, d)
	if err != nil {
		return nil, &PlaceError{Doing: "open the database", Place: d.place(), Server: d.name() == postgresKind, Err: d.judge(err)}
	}
	return s, nil
}

// PlaceError is the trouble that opening a database had, or looking for one.
type PlaceError struct {
	Doing  string
	Place  string // names the database without a password
	Server bool   // it is on a server, and no file
	Err    error
}

// Error names the database.
func (e *PlaceError) Error() string { return fmt.Sprintf("%s %s: %v", e.Doing, e.Place, e.Err) }

// Unwrap returns the cause.
func (e *PlaceError) Unwrap() error { return e.Err }

// Hint says what to do about causes that are a server's; else it is empty.
func (e *PlaceError) Hint() string {
	if !e.Server {
		return ""
	}
	const own = "name with --database the URL of one that is empty and its own, as CREATE DATABASE certbound makes it"
	switch {
	case errors.Is(e.Err, ErrForeign):
		return "what is there was not touched: " + own
	case errors.Is(e.Err, ErrDamaged):
		return "what is left of it was not touched; certbound store restore makes another one of a backup: " + own
	case errors.Is(e.Err, ErrUnavailable):
		return unreachable(e.Place, e.Err)
	}
	return ""
}

// Exists reports whether there is a database, of whatever kind, where cfg says: one that Open would not make.
func Exists(ctx context.Context, cfg Config) (bool, error) {
	d, err := newDialect(cfg)
	if err != nil {
		return false, err
	}
	found, err := d.exists(ctx)
	if err != nil {
		return false, &PlaceError{Doing: "look for the database", Place: d.place(), Server: d.name() == postgresKind, Err: d.judge(err)}
	}
	return found, nil
}

// CheckURL refuses a URL that Config.URL cannot be, without quoting it.
func CheckURL(url string) error {
	_, err := newPostgres(Config{URL: url})
	return err
}

// Place names the database that cfg means, for errors and logs: without its password, or "" when the URL is none.
func Place(cfg Config) string {
	d, err := newDialect(cfg)
	if err != nil {
		return ""
	}
	return d.place()
}

// Doubt says why what is sent to the database could be read, or answered, by somebody else on the way; empty when it cannot,
// as on this machine. It asks nobody.
func Doubt(cfg Config) string {
	if cfg.URL == "" {
		return ""
	}
	p, err := newPostgres(cfg)
	if err != nil {
		return ""
	}
	return p.doubt()
}

func newDialect(cfg Config) (dialect, error) {
	if cfg.URL != "" {
		return newPostgres(cfg)
	}
	return &sqliteFile{path: cfg.Path, readOnly: cfg.ReadOnly}, nil
}

func open(ctx context.Context, cfg Config, d dialect) (*Store, error) {
	seal, err := newSealer(cfg.KEK)
	if err != nil {
		return nil, err
	}
	s := &Store{core: &core{dialect: d, sealer: seal, logger: cfg.Logger, now: cfg.Now, maxLife: cfg.MaxTokenLife,
		files: slices.Clone(cfg.FileTrusts), fatal: cfg.Fatal, replica: cfg.Replica, anyCondition: cfg.AnyCondition}}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.maxLife <= 0 {
		s.maxLife = defaultTokenLife
	}
	steps, err := schemaSteps(d.name())
	if err != nil {
		return nil, err
	}
	if cfg.ReadOnly {
		if found, err := d.exists(ctx); err != nil || !found {
			return nil, cmp.Or(err, error(fs.ErrNotExist))
		}
	}
	if err := d.prepare(ctx, s, steps); err != nil {
		return nil, err
	}
	if s.pools, err = d.connect(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.write, s.read = s.side, s.reader
	if cfg.ReadOnly {
		if err := s.checkPresent(ctx, len(steps)); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, nil
	}
	if err := d.upgrade(ctx, s.writer, steps); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if f, ok := d.(*sqliteFile); ok {
		if s.holders, err = f.search(queryHolderIndexed); err != nil {
			return nil, errors.Join(d.judge(err), s.Close())
		}
	}
	return s, nil
}

// checkPresent refuses a schema that is not this program's, whether it may run on that or not.
func (s *Store) checkPresent(ctx context.Context, newest int) error {
	found, err := s.Schema(ctx)
	switch {
	case err != nil:
		return err
	case found < newest:
		return &SchemaError{Found: found, Newest: newest, sentinel: ErrOlderSchema}
	case found > newest:
		return &SchemaError{Found: found, Newest: newest, sentinel: ErrNewerSchema}
	}
	return nil
}

// Schema returns the version of the database's schema.
func (s *Store) Schema(ctx context.Context) (int, error) {
	var found schema
	err := s.read.QueryRowContext(ctx, querySchema).Scan(&found.version, &found.oldest)
	return found.version, err
}

// SchemaError says that a database that is only to be read has another schema than this program's. It is ErrOlderSchema or
// ErrNewerSchema.
type SchemaError struct {
	Found, Newest int // versions: the database's, and this program's
	sentinel      error
}

// Error names the versions.
func (e *SchemaError) Error() string {
	return fmt.Sprintf("%v: schema %d, this program's is %d", e.sentinel, e.Found, e.Newest)
}

// Is reports whether target is the sentinel.
func (e *SchemaError) Is(target error) bool { return target == e.sentinel }

// schemaSteps returns the migrations of a dialect in order; the schema's version is how many of them were applied. The
// first line of each says which is the oldest schema whose program may run on what the step leaves, as "-- oldest: 1".
func schemaSteps(name string) ([]step, error) {
	folder := path.Join("migrations", name)
	entries, err := fs.ReadDir(migrations, folder) // sorted by name
	if err != nil {
		return nil, err
	}
	steps := make([]step, 0, len(entries))
	for _, e := range entries {
		text, err := fs.ReadFile(migrations, path.Join(folder, e.Name()))
		if err != nil {
			return nil, err
		}
		next := step{text: string(text)}
		if _, err := fmt.Sscanf(next.text, "-- oldest: %d\n", &next.oldest); err != nil || next.oldest < 1 || next.oldest > len(steps)+1 {
			return nil, fmt.Errorf("the migration %s does not say which programs may run after it", e.Name())
		}
		steps = append(steps, next)
	}
	return steps, nil
}

// schema is what a database says of its own.
type schema struct {
	version int
	oldest  int // schema of the oldest program that may run on it
}

// check refuses a schema on which this program, which knows it up to newest, may not run.
func (s schema) check(newest int) error {
	if s.oldest > newest {
		return fmt.Errorf("%w: schema %d, for programs that know at least %d, and this one knows up to %d; start the newer program",
			ErrNewerSchema, s.version, s.oldest, newest)
	}
	return nil
}

// applyStep brings the schema to version, in a transaction.
func applyStep(ctx context.Context, tx conn, version int, next step) error {
	if _, err := tx.ExecContext(ctx, next.text); err != nil {
		return fmt.Errorf("schema step %d: %w", version, err)
	}
	if _, err := tx.ExecContext(ctx, updateSchemaVersion, version, next.oldest); err != nil {
		return fmt.Errorf("schema step %d: %w", version, err)
	}
	return nil
}

// kekCheck returns the row by which a wrong key-encryption key is noticed.
func (s *Store) kekCheck() ([]byte, error) { return s.sealer.seal(kekCheckPlace, []byte(kekCheckText)) }

// syncFolder makes a rename in the folder survive a crash.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Dialect is the kind of SQL that the pool of DB speaks: "sqlite" or "postgres".
func (s *Store) Dialect() string { return s.dialect.name() }

// DB returns a pool of connections for the CA library's table ca_kv, and for nothing else. It is apart from the
// Store's own, so that the library may store in the middle of a decision. Close closes it.
func (s *Store) DB() *sql.DB { return s.shared }

// Close waits for running statements and closes the database. Methods fail afterwards.
func (s *Store) Close() error {
	var errs []error
	if s.holders != nil {
		errs = append(errs, s.holders.close())
	}
	// The readers go first: the last connection to close moves the log into the database, and it must be able to write.
	for _, db := range []*sql.DB{s.reader, s.shared, s.side, s.writer} {
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
	var out int64 // of the clients
	err := s.read.QueryRowContext(ctx, queryStats, moment(s.now())).Scan(&st.Clients, &out, &st.Disabled,
		&st.Certificates, &st.Revoked, &st.OpenCodes, &st.Resources, &st.Trusts, &st.Version)
	if err != nil {
		return Stats{}, fmt.Errorf("count rows: %w", err)
	}
	st.Clients -= out
	st.Certificates -= st.Revoked
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
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, insertSetting, name, value)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("setting %q: %w", name, err)
	}
	return s.Setting(ctx, name)
}
