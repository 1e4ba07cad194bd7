// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"io/fs"
	"os"
)

// FS is the file system as the journal uses it. Tests put one in its place that loses what was not synced.
type FS interface {
	MkdirAll(dir string) error          // 0700
	Names(dir string) ([]string, error) // of what lies in the folder, sorted
	Create(name string) (File, error)   // for reading and writing, 0600; what is there already is emptied
	Open(name string) (File, error)     // for reading
	Rename(from, to string) error       // within one folder
	Remove(name string) error           // of a file
	SyncDir(dir string) error           // makes creations, renames and removals in the folder durable
}

// File is an open file of an FS.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error // makes what was written durable, and what is needed to find it again
	Close() error
}

var errNotRegular = errors.New("is not a regular file")

// systemFS is the operating system's.
type systemFS struct{}

// MkdirAll implements FS.
func (systemFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

// Names implements FS.
func (systemFS) Names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// Create implements FS.
func (systemFS) Create(name string) (File, error) {
	return wrap(os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600))
}

// Open implements FS. What is no file of its own is refused, as Verify refuses it: a link leads out of the folder, and a
// pipe would be waited for.
func (systemFS) Open(name string) (File, error) {
	if info, err := os.Lstat(name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	return wrap(os.Open(name))
}

// Rename implements FS.
func (systemFS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (systemFS) Remove(name string) error { return os.Remove(name) }

// SyncDir implements FS.
func (systemFS) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// systemFile is a file of the operating system.
type systemFile struct{ *os.File }

func wrap(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return systemFile{f}, nil
}

// Size implements File.
func (f systemFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
