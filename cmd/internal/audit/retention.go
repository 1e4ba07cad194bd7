// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// The records that say which segments are gone. Each is written, and covered by a checkpoint, before the first of them is
// removed, so that a journal that lacks its beginning says itself, signed, that it should.
const (
	eventRetention = "journal.retention" // of the main stream
	eventDropped   = "journal.dropped"   // of the stream of refusals
)

// eventKeys is the record that keys of days are deleted without any segment.
const eventKeys = "journal.keys"

// removed is what such a record says.
type removed struct {
	headText          // of the last record that is removed
	Last       string `json:"last"`    // its time
	Records    uint64 `json:"records"` // how many are
	Segments   int    `json:"segments"`
	KeysBefore string `json:"keys_before,omitempty"` // the first day whose key stays
}

// Retain removes whole segments of both streams whose last record is from before a time, once the journal says so, and
// records that keys of days before that one are deleted, which the caller does next: then it calls ForgetBefore. The newest
// segment of a stream always stays. With the zero time it only holds the refusals to their quota. It blocks on the disk. A
// Retain that was cut short is finished by the next one.
func (l *Log) Retain(ctx context.Context, before time.Time) error {
	l.removing.Lock()
	defer l.removing.Unlock()
	if !before.IsZero() {
		old := func(end segmentEnd, _ int64) bool { return end.time.Before(before) }
		if err := l.removeSegments(ctx, l.main, eventRetention, Day(before), old); err != nil {
			return err
		}
		if err := l.removeSegments(ctx, l.refusals, eventDropped, "", old); err != nil {
			return err
		}
	}
	over := func(_ segmentEnd, left int64) bool { return left > l.cfg.RefusalBytes }
	return l.removeSegments(ctx, l.refusals, eventDropped, "", over)
}

// holdQuota removes the oldest segments of refusals as long as there are more than their quota.
func (l *Log) holdQuota() {
	if err := l.Retain(context.Background(), time.Time{}); err != nil && !errors.Is(err, ErrClosed) {
		l.cfg.Logger.Error("the oldest refusals could not be dropped from the journal", "error", err)
	}
}

// Forget drops what is kept in memory of a subject's secret, after that was deleted.
func (l *Log) Forget(subject string) { l.sealer.forget(subject) }

// ForgetBefore drops what is kept in memory of the keys of the days before a time's.
func (l *Log) ForgetBefore(t time.Time) { l.sealer.forgetBefore(t) }

// segmentEnd is where a segment that was ended stops.
type segmentEnd struct {
	head Head
	time time.Time
}

// removeSegments removes a stream's oldest segments as long as gone says so, which is told where one ends and how many
// bytes the stream has with it.
func (l *Log) removeSegments(ctx context.Context, s *stream, event, keysBefore string, gone func(segmentEnd, int64) bool) error {
	names, sizes, err := l.sized(s)
	if err != nil {
		return fmt.Errorf("remove segments of the journal: %w", err)
	}
	var left int64
	for _, n := range sizes {
		left += n
	}
	said := removed{KeysBefore: keysBefore}
	var last segmentEnd
	for i, name := range names[:max(0, len(names)-1)] {
		if err := ctx.Err(); err != nil {
			return err
		}
		end, err := endOf(l.cfg.FS, l.cfg.Dir, name)
		if err != nil {
			return fmt.Errorf("remove segments of the journal: %w", err)
		}
		if !gone(end, left) {
			break
		}
		last, left, said.Segments = end, left-sizes[i], i+1
	}
	if said.Segments == 0 {
		return l.sayKeys(keysBefore)
	}
	_, _, first, _ := parseSegmentName(names[0])
	said.headText = headText{last.head.Seq, chainString(last.head.Chain)}
	said.Records = last.head.Seq - first + 1
	said.Last = last.time.UTC().Format(timeFormat)
	if err := l.say(event, said); err != nil {
		return fmt.Errorf("remove segments of the journal: %w", err)
	}
	for _, name := range names[:said.Segments] {
		// One by one, so that a crash leaves no gap between those that are left.
		err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, name))
		if err == nil {
			err = l.cfg.FS.SyncDir(l.cfg.Dir)
		}
		if err != nil {
			return fmt.Errorf("remove segments of the journal: %w", err)
		}
	}
	if keysBefore != "" {
		l.saidKeys = keysBefore
	}
	l.cfg.Logger.Info("old segments of the journal were removed", "stream", s.cfg.name, "segments", said.Segments, "records", said.Records)
	return nil
}

// sayKeys records that keys are deleted without any segment, once for a day.
func (l *Log) sayKeys(before string) error {
	if before == "" || before == l.saidKeys {
		return nil
	}
	text, err := json.Marshal(struct {
		Before string `json:"keys_before"`
	}{before})
	if err == nil {
		err = l.record(eventKeys, text[1:len(text)-1])
	}
	if err != nil {
		return fmt.Errorf("record that keys of the journal are deleted: %w", err)
	}
	l.saidKeys = before
	return nil
}

// sized returns a stream's segments, oldest first, and their sizes.
func (l *Log) sized(s *stream) (names []string, sizes []int64, err error) {
	s.mu.Lock()
	err = s.ended()
	s.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	all, err := segments(l.cfg.FS, l.cfg.Dir, s.cfg.name)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range all {
		f, err := l.cfg.FS.Open(filepath.Join(l.cfg.Dir, name))
		if err != nil {
			return nil, nil, err
		}
		size, err := f.Size()
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
		names, sizes = append(names, name), append(sizes, size)
	}
	return names, sizes, nil
}

// say puts a record of what is removed into the main stream, signed and durable.
func (l *Log) say(event string, what removed) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	_, member, _ := bytes.Cut([]byte(event), []byte("."))
	return l.record(event, fmt.Appendf(nil, "%q:%s", member, text))
}

// record puts a record of the journal itself into the main stream and waits until it and a checkpoint over it are durable.
func (l *Log) record(event string, members []byte) error {
	s := l.main
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.committing {
		s.changed.Wait()
	}
	if err := s.ended(); err != nil {
		return err
	}
	if !s.roomForNotes() {
		return ErrFull
	}
	s.note(event, members)
	l.checkpoint(s)
	upTo := s.head.Seq
	for s.last.Seq < upTo {
		if err := s.ended(); err != nil {
			return err
		}
		if s.committing {
			s.changed.Wait()
			continue
		}
		s.commit(true)
	}
	return nil
}

// endOf reads the last record of a segment that was ended.
func endOf(fs FS, dir, name string) (_ segmentEnd, err error) {
	f, err := fs.Open(filepath.Join(dir, name))
	if err != nil {
		return segmentEnd{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return segmentEnd{}, err
	}
	const most = MaxLine + 4<<10 // a record and the frame behind it
	text := make([]byte, min(most, size))
	if _, err := io.ReadFull(io.NewSectionReader(f, size-int64(len(text)), int64(len(text))), text); err != nil {
		return segmentEnd{}, err
	}
	lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		if isFrame(lines[i]) {
			continue
		}
		var record struct {
			Seq  uint64    `json:"seq"`
			Time time.Time `json:"time"`
		}
		_, chain, ok := splitChain(lines[i])
		if !ok || json.Unmarshal(lines[i], &record) != nil || record.Seq == 0 {
			break
		}
		return segmentEnd{Head{record.Seq, chain}, record.Time}, nil
	}
	return segmentEnd{}, &DamageError{File: filepath.Join(dir, name), Offset: size, What: "the last record cannot be read"}
}
