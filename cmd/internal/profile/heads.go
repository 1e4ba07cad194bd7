// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
)

// HeadsFile holds what the operator saw last of the service's journals, so that they can be held to it. Which heads
// those are is not this package's business.
const HeadsFile = "heads.json"

// Heads returns the content of the profile's HeadsFile, nil when there is none.
func Heads(dir string) ([]byte, error) {
	path := filepath.Join(dir, HeadsFile)
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, damagedHeads(path, err)
	}
	return text, nil
}

// KeepHeads replaces the content of the profile's HeadsFile by what change makes of it, at once and for good; what change
// returns unchanged, or with an error, is not written. It waits for the folder's lock until ctx ends.
func (p *Profile) KeepHeads(ctx context.Context, change func(old []byte) ([]byte, error)) error {
	unlock, err := lock(ctx, p.dir)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := Heads(p.dir)
	if err != nil {
		return err
	}
	text, err := change(old)
	if err != nil || bytes.Equal(old, text) {
		return err
	}
	return folderError(p.dir, errors.Join(writeFile(filepath.Join(p.dir, HeadsFile), text, 0o600), syncDir(p.dir)))
}

// damagedHeads says what is lost with the file: nothing but what was known.
func damagedHeads(path string, err error) error {
	return &Error{
		Message: path + ": " + bare(err).Error(),
		Hint:    "restore the file from a backup: without it nobody can tell whether the journal's end was cut off; or remove it, and begin anew",
		Err:     err,
	}
}
