// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrServing says that a replica has a lease, or has taken one meanwhile.
var ErrServing = errors.New("a replica is serving on the database")

// rewrapPage is how many rows are read before they are written.
const rewrapPage = 1000

// sealedTable is one whose rows hold something sealed under the key-encryption key.
type sealedTable struct {
	name    string
	key     []string // columns of its primary key, all of text
	column  string   // what is sealed
	version string   // the column that says in which form; empty: the present one
	place   func(key []string, version int64) place
}

// sealedTables are all of them but two: the state's one row, and the keys of session tickets, which are deleted. They are
// listed here, so that a table that somebody adds is either sealed anew or left out on purpose: a test compares them with
// the schema.
func sealedTables() []sealedTable {
	audit := func(k auditKeys, column string) sealedTable {
		return sealedTable{k.table, []string{column}, "sealed", "seal_version", func(key []string, v int64) place { return k.place(key[0], v) }}
	}
	return []sealedTable{
		{"sealed_keys", []string{"purpose", "id"}, "sealed", "seal_version", func(key []string, v int64) place { return keyPlace(key[0], key[1], v) }},
		{"outbox", []string{"id"}, "body", "", func(key []string, _ int64) place { return entryPlace(key[0]) }},
		audit(auditDays(), "day"),
		audit(auditSubjects(), "id"),
	}
}

// Rewrapped says how many rows of which tables were sealed anew.
type Rewrapped struct {
	Tables []TableCount `json:"tables"`
}

// Rewrap seals everything that is sealed in the database under another key-encryption key, in one transaction: under which
// of the two the database opens is decided by its commit. The keys of session tickets are deleted. The entries go into the
// outbox of the replica. Nobody may be serving: seen are the leases that were found to be nobody's, and ErrServing is
// returned where there is another by then. Afterwards the Store, which has the old key, opens nothing more: it is to be
// closed. It blocks for as long as it takes, some microseconds a row.
//
// With ErrUnknown the database may be under the new key, now or once it has recovered; with any other error it never is.
func (s *Store) Rewrap(ctx context.Context, kek []byte, seen []Lease, replica string, entries []Entry) (Rewrapped, error) {
	var out Rewrapped
	to, err := newSealer(kek)
	if err != nil {
		return out, err
	}
	committing := false
	err = s.whole(ctx, func(tx *sql.Tx) error {
		if err := s.unleased(ctx, tx, seen); err != nil {
			return err
		}
		c := &change{ctx: ctx, tx: tx, isUnique: s.dialect.isUnique, core: s.core}
		for _, e := range entries {
			if err := s.noteAs(c, replica, e); err != nil {
				return err
			}
		}
		for _, t := range sealedTables() {
			n, err := t.rewrap(ctx, tx, s.sealer, to)
			if err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
			out.Tables = append(out.Tables, TableCount{t.name, n})
		}
		check, err := to.seal(kekCheckPlace, []byte(kekCheckText))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, setKEKCheck, check); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, resetTicketKeys); err != nil {
			return err
		}
		c.touched = []string{"sealed_keys", "outbox"}
		c.what = Change{Full: true, Tickets: true}
		err = c.stamp()
		committing = err == nil
		return err
	})
	if committing && err != nil && !errors.Is(err, ErrUnknown) { // what a disk has of a commit that failed shows after the next start
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err != nil {
		return Rewrapped{}, fmt.Errorf("seal everything anew: %w", err)
	}
	conn, err := s.writer.Conn(ctx)
	if err == nil {
		err = errors.Join(s.dialect.forget(ctx, conn), conn.Close())
	}
	if err != nil {
		s.logger.ErrorContext(ctx, "what was sealed under the old key may still be in the database's files", "error", err)
	}
	return out, nil
}

// unleased refuses a database that a replica has taken a lease of since it was looked at, and keeps others from taking one.
func (s *Store) unleased(ctx context.Context, tx *sql.Tx, seen []Lease) error {
	if s.Dialect() != postgresKind {
		return nil // the lock of the data folder is held
	}
	if _, err := tx.ExecContext(ctx, lockLeases); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, queryLeases)
	now, err := all(rows, err, scanLease)
	if err != nil {
		return err
	}
	for _, l := range now {
		if !slices.ContainsFunc(seen, func(s Lease) bool {
			return s.Replica == l.Replica && s.Incarnation == l.Incarnation && s.Renewals == l.Renewals
		}) {
			return fmt.Errorf("%w: %s at %s", ErrServing, l.Replica, l.Address)
		}
	}
	return nil
}

// sealedRow is a row with what is sealed in it.
type sealedRow struct {
	key     []string
	sealed  []byte
	version int64
}

// rewrap seals the rows of a table anew, and returns how many there are. A row that does not open is an error.
func (t *sealedTable) rewrap(ctx context.Context, tx *sql.Tx, from, to sealer) (int64, error) {
	var n int64
	last := make([]any, len(t.key))
	for i := range last {
		last[i] = "" // no key is empty
	}
	for {
		page, err := t.page(ctx, tx, last)
		if err != nil {
			return n, err
		}
		for _, row := range page {
			plain, err := from.open(t.place(row.key, row.version), row.sealed)
			if err != nil {
				return n, fmt.Errorf("row %q: %w", row.key, err)
			}
			again, err := to.seal(t.place(row.key, row.version), plain)
			if err != nil {
				return n, err
			}
			args := []any{again}
			for i, part := range row.key {
				args, last[i] = append(args, part), part
			}
			if _, err := tx.ExecContext(ctx, t.update(), args...); err != nil {
				return n, err
			}
		}
		n += int64(len(page))
		if len(page) < rewrapPage {
			return n, nil
		}
	}
}

// page reads the rows after a key.
func (t *sealedTable) page(ctx context.Context, tx *sql.Tx, last []any) ([]sealedRow, error) {
	version := t.version
	if version == "" {
		version = strconv.Itoa(sealVersion)
	}
	marks := make([]string, len(t.key))
	for i := range marks {
		marks[i] = "$" + strconv.Itoa(i+1)
	}
	key := strings.Join(t.key, ", ")
	rows, err := tx.QueryContext(ctx, "SELECT "+key+", "+t.column+", "+version+" FROM "+t.name+
		" WHERE ("+key+") > ("+strings.Join(marks, ", ")+") ORDER BY "+key+" LIMIT "+strconv.Itoa(rewrapPage), last...)
	return all(rows, err, func(r row) (sealedRow, error) {
		found := sealedRow{key: make([]string, len(t.key))}
		var into []any
		for i := range found.key {
			into = append(into, &found.key[i])
		}
		return found, r.Scan(append(into, &found.sealed, &found.version)...)
	})
}

// update is the statement that replaces what is sealed: $1, in the row of the key that follows.
func (t *sealedTable) update() string {
	where := make([]string, len(t.key))
	for i, column := range t.key {
		where[i] = column + " = $" + strconv.Itoa(i+2)
	}
	return "UPDATE " + t.name + " SET " + t.column + " = $1 WHERE " + strings.Join(where, " AND ")
}

// ErrKEKHeld says that another process holds the file of a new key-encryption key.
var ErrKEKHeld = errors.New("another process uses it")

// NewKEK is a file with the key-encryption key that a database is to be sealed under. Whoever holds it is alone with it, so
// that nobody seals by a file that goes.
type NewKEK struct {
	Key []byte

	file *os.File // locked
	made bool
}

// OpenNewKEK reads the file with the name, which has mode 0600, or makes it in a folder that is there: what it makes is on the
// disk when it returns. It does not wait: the error is ErrKEKHeld when another process holds the file. Close lets go of it.
func OpenNewKEK(name string) (*NewKEK, error) {
	k, err := makeNewKEK(name)
	if errors.Is(err, fs.ErrExist) {
		k, err = openNewKEK(name)
	}
	if err != nil {
		return nil, fmt.Errorf("the new key-encryption key: %w", err)
	}
	return k, nil
}

func makeNewKEK(name string) (*NewKEK, error) {
	if err := CheckFolder(name); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	k := &NewKEK{Key: make([]byte, kekSize), file: f, made: true}
	rand.Read(k.Key)
	if err := k.lock(); err != nil {
		return nil, errors.Join(err, f.Close()) // somebody else has it already
	}
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(k.Key) + "\n")
	if err = errors.Join(err, f.Sync()); err == nil {
		err = syncFolder(filepath.Dir(name))
	}
	if err != nil {
		return nil, errors.Join(err, k.Discard(), k.Close())
	}
	return k, nil
}

func openNewKEK(name string) (*NewKEK, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	k := &NewKEK{file: f}
	if err = k.lock(); err == nil && !k.inPlace() {
		err = fmt.Errorf("%w: %s, which is gone now", ErrKEKHeld, name)
	}
	if err == nil {
		k.Key, err = readKEK(name)
	}
	if refused, is := errors.AsType[*KEKError](err); is && refused.Hint == wholeKEKHint { // perhaps of a run that was cut short
		refused.Hint = "name another file, or remove this one if nothing was ever sealed under what it held"
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// lock takes the file's lock. Where files have none, what was made stays.
func (k *NewKEK) lock() error {
	err := syscall.Flock(int(k.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrKEKHeld, k.file.Name())
	}
	k.made = k.made && err == nil
	return nil
}

// inPlace reports whether the file still has its name.
func (k *NewKEK) inPlace() bool {
	mine, err := k.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(k.file.Name()) // a link to it is as good
	return err == nil && os.SameFile(mine, there)
}

// Discard removes the file, if OpenNewKEK has made it. It is for who knows that nothing is sealed under the key.
func (k *NewKEK) Discard() error {
	if !k.made || !k.inPlace() {
		return nil
	}
	return os.Remove(k.file.Name())
}

// Close lets go of the file, also where a child that is being started still has it open.
func (k *NewKEK) Close() error {
	_ = syscall.Flock(int(k.file.Fd()), syscall.LOCK_UN) // closing does so, too
	return k.file.Close()
}

// InstallKEK puts a key-encryption key into the place of the data folder's own, and keeps the old one beside it, whose name it
// returns: backups from before open under that alone. At every moment one of the two is in its place. It does nothing, and
// returns no name, when the key is there already.
func InstallKEK(dir string, kek []byte, now time.Time) (old string, err error) {
	name := filepath.Join(dir, "kek")
	present, err := readKEK(name)
	if err != nil {
		return "", err
	}
	if slices.Equal(present, kek) {
		return "", nil
	}
	for {
		old = name + ".until-" + now.UTC().Format("20060102-150405")
		err := os.Link(name, old)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("keep the old key-encryption key: %w", err)
		}
		now = now.Add(time.Second) // another one was kept in that second
	}
	draft := name + "." + strings.ToLower(rand.Text())
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("put the key-encryption key into its place: %w", err)
	}
	defer os.Remove(draft) // after the renaming there is none
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(kek) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(draft, name)
	}
	if err != nil {
		return "", fmt.Errorf("put the key-encryption key into its place: %w", err)
	}
	return old, syncFolder(dir)
}
