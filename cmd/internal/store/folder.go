// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// FolderLock is held by the process that uses a data folder. The operating system releases it when the process dies.
type FolderLock struct {
	folder, file *os.File
	made         bool // the file
}

// Lock takes the lock of the data folder dir, which is created (0700) when it is missing. It does not wait: the error
// is ErrLocked when another process has it. What is locked is the folder itself: the file "lock" in it only says by whom,
// and deleting it, as one deletes what looks stale, lets nobody in.
func Lock(dir string) (*FolderLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	name := filepath.Join(dir, lockName)
	if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer folder.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s%s", ErrLocked, dir, holder(name))
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// Only who has the lock makes the file, or removes it.
	_, err = os.Lstat(name)
	made := errors.Is(err, fs.ErrNotExist)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data folder: %w", err), folder.Close())
	}
	// The number only helps whoever reads the error; the lock does not depend on it.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &FolderLock{folder, f, made}, nil
}

// lockName is the file that says who has the lock.
const lockName = "lock"

func holder(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || convErr != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}

// Unlock releases the folder. The file stays.
func (l *FolderLock) Unlock() error { return errors.Join(l.file.Close(), l.folder.Close()) }

// Leave is Unlock for who leaves the folder as it was: the file goes, if it was not there before.
func (l *FolderLock) Leave() error {
	var err error
	if l.made {
		if err = os.Remove(filepath.Join(l.folder.Name(), lockName)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, l.Unlock())
}

// ErrNoKEK says that a database is there, and its key-encryption key is not.
var ErrNoKEK = errors.New("there is no key-encryption key")

// KEKSource says where the key-encryption key comes from; the zero value is the file "kek" in the data folder.
type KEKSource struct {
	Value string // the key itself in base64, from the environment; wins over File
	File  string // a file with it that must exist
	// Found, unless nil, tells whether there is a database, which dbPath then only names: one that is no file.
	Found func() (bool, error)
}

// KEKError is a key-encryption key that cannot be used. Hint says what to do about it.
type KEKError struct {
	Err  error
	Hint string
}

// Error names the file and never quotes its contents.
func (e *KEKError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *KEKError) Unwrap() error { return e.Err }

// maxKEKFile bounds what is read of a key file.
const maxKEKFile = 256

// LoadKEK returns the key-encryption key, 32 bytes. Without a source it is in dir/kek, which is made only when the
// database dbPath does not exist yet: a new key beside an old database could open nothing. What is wrong with a key is
// a KEKError.
func LoadKEK(dir, dbPath string, src KEKSource) ([]byte, error) {
	switch {
	case src.Value != "":
		key, err := decodeKEK([]byte(src.Value))
		if err != nil {
			return nil, &KEKError{fmt.Errorf("the key-encryption key in the environment: %w", err),
				"set CERTBOUND_KEK to the whole key that belongs to this database: 32 bytes in base64"}
		}
		return key, nil
	case src.File != "":
		key, err := readKEK(src.File)
		if errors.Is(err, fs.ErrNotExist) {
			err = &KEKError{err, "put the file where the configuration says, or correct kek_file there"}
		}
		return key, err
	}
	name := filepath.Join(dir, "kek")
	key, err := readKEK(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	look := src.Found
	if look == nil {
		look = func() (bool, error) { return exists(dbPath) }
	}
	found, lookErr := look()
	if lookErr != nil {
		return nil, lookErr
	}
	if found {
		hint := "put back the key that belongs to this database: without it no stored private key can be read"
		if src.Found != nil {
			hint = "every replica needs the same one: copy the file kek from the data folder of another replica to " + name +
				", or set CERTBOUND_KEK to what it holds"
		}
		return nil, &KEKError{fmt.Errorf("%w: %s is missing, but the database %s is there", ErrNoKEK, name, dbPath), hint}
	}
	return makeKEK(dir, name)
}

const wholeKEKHint = "put back the whole file, from the backup that belongs to this database"

func readKEK(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the key-encryption key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &KEKError{fmt.Errorf("the key-encryption key %s is not a regular file", name), "put the key's file there"}
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, &KEKError{fmt.Errorf("the key-encryption key %s can be read by other users (mode %04o)", name, perm),
			"chmod 600 " + name + "; if others did read it, the stored private keys are no secret any more"}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKEKFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the key-encryption key %s: %w", name, err)
	}
	key, err := decodeKEK(text)
	if err != nil {
		return nil, &KEKError{fmt.Errorf("the key-encryption key %s: %w", name, err), wholeKEKHint}
	}
	return key, nil
}

// decodeKEK never quotes its input.
func decodeKEK(text []byte) ([]byte, error) {
	if len(text) > maxKEKFile {
		return nil, errors.New("too long: it must be 32 bytes in base64")
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, errors.New("empty: it must be 32 bytes in base64")
	}
	key, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(key) != kekSize {
		return nil, errors.New("damaged or truncated: it must be 32 bytes in base64")
	}
	return key, nil
}

// makeKEK writes a new key beside its place and renames it, so that a crash never leaves half of one.
func makeKEK(dir, name string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	key := make([]byte, kekSize)
	rand.Read(key)
	draft := name + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make the key-encryption key: %w", err)
	}
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the key-encryption key: %w", err)
	}
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write the key-encryption key %s: %w", draft, err)
	}
	if err := os.Rename(draft, name); err != nil {
		return nil, fmt.Errorf("make the key-encryption key: %w", err)
	}
	return key, syncFolder(dir)
}
