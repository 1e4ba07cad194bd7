// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// damagedTokens is how many tokens are on record before the journal is damaged: enough for several segments.
const damagedTokens = 1500

// A damage is one that is done to the journal of a service that has ended.
type damage struct {
	name string
	do   func(segments []string) (place, error)
	// starts says that the program may start all the same, and leaves it to audit verify to find the damage: it reads the
	// last segments only.
	starts bool
}

// A place is where damage was done: what is said of it has to name one of the files and, unless it is below zero, a byte
// at the offset or not far before.
type place struct {
	files  []string
	offset int64
}

func damageList() []damage {
	return []damage{
		{"a byte of the last segment is another", func(s []string) (place, error) { return flip(s[len(s)-1]) }, false},
		{"a byte of an earlier segment is another", func(s []string) (place, error) { return flip(s[len(s)/2]) }, true},
		{"an earlier segment is cut off", func(s []string) (place, error) { return cut(s[len(s)/2]) }, true},
		{"an earlier segment is missing", func(s []string) (place, error) {
			n := len(s) / 2
			return place{s[n : n+2], -1}, os.Remove(s[n]) // the one behind it may be where it is missing
		}, true},
		{"the last segment is missing", func(s []string) (place, error) {
			n := len(s) - 1
			return place{s[n-1:], -1}, os.Remove(s[n]) // the one before it may be where the journal ends
		}, true},
	}
}

// flip changes a byte in the first half of what a segment holds: other batches were written after it.
func flip(name string) (place, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return place{}, err
	}
	at := len(bytes.TrimRight(data, "\n")) / 2
	for data[at] < 'a' || data[at] > 'y' {
		at--
	}
	data[at]++
	return place{[]string{name}, int64(at)}, os.WriteFile(name, data, 0o600)
}

// cut ends a segment amid its records.
func cut(name string) (place, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return place{}, err
	}
	at := int64(len(bytes.TrimRight(data, "\n")) / 2)
	return place{[]string{name}, at}, os.Truncate(name, at)
}

// damages damages copies of a journal, each in one way, and tries to start the program on each, once after the service
// was killed and once after it stopped.
func damages(ctx context.Context, dir, certbound string) error {
	s, err := newService(certbound, dir, "audit.segment_size=65536")
	if err != nil {
		return err
	}
	defer s.end()
	if err := s.populate(ctx, 1); err != nil {
		return err
	}
	if err := s.takeTokens(ctx, damagedTokens); err != nil {
		return err
	}
	if err := s.beginSegment(ctx); err != nil {
		return err
	}
	if err := s.keepHead(ctx); err != nil {
		return err
	}
	if err := s.kill(); err != nil {
		return err
	}
	if err := copyTree(s.data(), filepath.Join(dir, "killed")); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.takeTokens(ctx, damagedTokens/10); err != nil {
		return err
	}
	if err := s.keepHead(ctx); err != nil {
		return err
	}
	if err := s.stop(); err != nil {
		return err
	}
	if err := copyTree(s.data(), filepath.Join(dir, "stopped")); err != nil {
		return err
	}
	for _, how := range []string{"killed", "stopped"} {
		for _, d := range damageList() {
			if err := s.tryDamaged(ctx, filepath.Join(dir, how), d); err != nil {
				return fmt.Errorf("%s before, %s: %w", how, d.name, err)
			}
		}
	}
	return nil
}

// takeTokens takes so many tokens, one after the other.
func (s *service) takeTokens(ctx context.Context, n int) error {
	c, err := s.caller("load-0")
	if err != nil {
		return err
	}
	defer c.close()
	for range n {
		a, err := c.askToken(ctx, s.tokenURL(), "load-0", resource)
		if err != nil {
			return err
		}
		if _, _, err := a.token(); err != nil {
			return err
		}
	}
	return nil
}

// keepHead lets the operator's profile know how far the journal is signed: all of it, which takes a second.
func (s *service) keepHead(ctx context.Context) error {
	pause(ctx, 1500*time.Millisecond)
	_, err := s.must(ctx, "status --profile data/admin", "")
	return err
}

// beginSegment sees to it that the newest segment has several batches: what is torn off its end may go.
func (s *service) beginSegment(ctx context.Context) error {
	for range 10 {
		names, err := segments(s.data("audit"))
		if err != nil {
			return err
		}
		data, err := os.ReadFile(names[len(names)-1])
		if err != nil || len(bytes.TrimRight(data, "\n")) > 4<<10 {
			return err
		}
		if err := s.takeTokens(ctx, 10); err != nil {
			return err
		}
	}
	return errors.New("the journal does not grow")
}

// tryDamaged puts a damaged copy of a data folder in the place of the service's.
func (s *service) tryDamaged(ctx context.Context, from string, d damage) error {
	if err := errors.Join(os.RemoveAll(s.data()), copyTree(from, s.data()), os.RemoveAll(s.log)); err != nil {
		return err
	}
	names, err := segments(s.data("audit"))
	if err != nil {
		return err
	}
	if len(names) < 4 {
		return fmt.Errorf("the journal has only %d segments", len(names))
	}
	where, err := d.do(names)
	if err != nil {
		return err
	}
	before, err := contents(s.data("audit"))
	if err != nil {
		return err
	}
	found, err := s.run(ctx, "audit verify --data data", "")
	if err != nil {
		return err
	}
	if found.Exit != 1 || !where.in(found.Stdout+found.Stderr) {
		return fmt.Errorf("%v: audit verify ends with %d and says %s%s", where, found.Exit, found.Stdout, found.Stderr)
	}
	started := s.start(ctx)
	s.down()
	if started == nil {
		if err := s.stop(); err != nil {
			return err
		}
	}
	s.end()
	if started == nil && !d.starts {
		return fmt.Errorf("%v: the service starts", where)
	}
	if started != nil && !where.in(started.Error()) {
		return fmt.Errorf("%v: %w", where, started)
	}
	after, err := contents(s.data("audit"))
	if err != nil {
		return err
	}
	for name, text := range before {
		if name == filepath.Base(names[len(names)-1]) && started == nil {
			// What a killed service was writing to is ended by the next: what was filled beforehand goes.
			text, after[name] = bytes.TrimRight(text, "\n"), bytes.TrimRight(after[name], "\n")
		}
		if !bytes.Equal(after[name], text) {
			return fmt.Errorf("%s is not as it was", name)
		}
	}
	if started != nil && len(after) != len(before) {
		return errors.New("the service did not start, and made files")
	}
	what := "the service refuses to start and names it"
	if started == nil {
		what = "the service starts"
	}
	say("%s, %s: audit verify names it, %s, and what was there is as it was", filepath.Base(from), d.name, what)
	return nil
}

var number = regexp.MustCompile(`[0-9]+`)

// in reports whether a text names the place.
func (p place) in(text string) bool {
	for _, file := range p.files {
		_, rest, ok := strings.Cut(text, filepath.Base(file))
		if ok && p.offset < 0 {
			return true
		}
		for _, digits := range number.FindAllString(rest, -1) {
			if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n <= p.offset && n > p.offset-(64<<10) {
				return true
			}
		}
	}
	return false
}

// contents reads the segments in a folder, by name.
func contents(dir string) (map[string][]byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte)
	for _, name := range names {
		if found[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return found, nil
}
