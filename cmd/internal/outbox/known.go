// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maxLine bounds a line of the journal that is looked at; no record is longer.
const maxLine = 1 << 20

// Known returns a function for Config that looks for records in the journal's files in a folder. It reads the files that
// were written to since the time given, wholly, and blocks meanwhile: that is done after a crash and after a failure.
func Known(dir string) func(ctx context.Context, since time.Time, ids map[string]bool) (map[string]bool, error) {
	return func(ctx context.Context, since time.Time, ids map[string]bool) (map[string]bool, error) {
		names, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
		if err != nil {
			return nil, err
		}
		found := make(map[string]bool)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			info, err := os.Stat(name)
			if errors.Is(err, os.ErrNotExist) {
				continue // removed meanwhile, since it is old
			}
			if err == nil && !info.ModTime().Before(since) {
				err = scan(name, ids, found)
			}
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", name, err)
			}
		}
		return found, nil
	}
}

// scan notes which ids are those of records in a file.
func scan(name string, ids, found map[string]bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	member := []byte(`"id":"`)
	r := bufio.NewReaderSize(f, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		// A line that is longer is no record: its pieces are looked at, and are no JSON.
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Contains(line, member) {
			var record struct {
				ID string `json:"id"`
			}
			if json.Unmarshal(line, &record) == nil && ids[record.ID] {
				found[record.ID] = true
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
}
