// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// copies copies the data folder of a service under load, each time as a whole, and has the copies verified.
func copies(ctx context.Context, dir, certbound string, n int) error {
	s, err := newService(certbound, dir, "audit.segment_size=262144")
	if err != nil {
		return err
	}
	defer s.end()
	if err := s.populate(ctx, loadClients); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	book := newBook()
	l, err := newLoad(ctx, s, book)
	if err != nil {
		return err
	}
	begin := time.Now()
	for i := range n {
		pause(ctx, 500*time.Millisecond)
		to := filepath.Join(dir, fmt.Sprintf("copy-%d", i+1))
		if err := copyTree(s.data(), to); err != nil {
			return err
		}
		if err := s.verify(ctx, to); err != nil {
			return fmt.Errorf("copy %d of %d: %w", i+1, n, err)
		}
	}
	l.stop()
	tokens, certs, changes := book.counts()
	if len(book.problems) > 0 {
		return fmt.Errorf("during the load: %s", book.problems[0])
	}
	if err := s.stop(); err != nil {
		return err
	}
	say("%d copies in %.1f s, while %d tokens, %d certificates and %d changes were given: audit verify accepts each",
		n, time.Since(begin).Seconds(), tokens, certs, changes)
	return nil
}

// copyTree copies a folder file by file, as cp -r does: each as far as it reaches when it is read. Sockets stay behind.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case d.Type()&fs.ModeSymlink != 0:
			points, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(points, target)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away meanwhile
		}
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
}
