// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	reserveName  = "reserve"
	reserveBytes = 16 << 20
	// lowWater is the free space below which a file system counts as full: what one change needs, with room to spare.
	lowWater = 1 << 20
	// reserveInterval is how often the file systems are looked at.
	reserveInterval = time.Second
)

// ReserveConfig is what OpenReserve needs.
type ReserveConfig struct {
	// Dirs are existing folders of the file systems to watch; folders of one file system share a reserve.
	Dirs []string
	// Bytes is the size of each reserve; zero: 16 MiB.
	Bytes  int64
	Logger *slog.Logger // nil discards
}

// probeBytes is what is written to see whether a file system takes anything: more than fits beside a file's inode.
const probeBytes = 64 << 10

// Reserve keeps space on each file system, a file called reserve, for the day when one is full: taking authority away
// needs a commit of the database and a record, and must not wait for somebody to make room. From the moment that a
// file system is full until it has room again, and the reserve is back, Full says so, and whoever gives authority
// refuses before it writes anything. It is safe for concurrent use.
type Reserve struct {
	log     *slog.Logger
	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once

	full atomic.Pointer[fullError] // nil: there is room

	mu    sync.Mutex
	disks []*disk
}

// fullError says which file system is full. It is an ErrFull.
type fullError struct{ dir, why string }

func (e *fullError) Error() string {
	return fmt.Sprintf("%v: %s: %s: only what takes authority away is served", ErrFull, e.dir, e.why)
}

// Is reports whether target is ErrFull.
func (e *fullError) Is(target error) bool { return target == ErrFull }

// OpenReserve makes the reserves that are missing and watches their file systems until Close. A file system without room
// for one is no error: then Full says so from the beginning. Where there is no room at all, the reserve is released at
// once, since a service that cannot start takes nothing away.
func OpenReserve(cfg ReserveConfig) (*Reserve, error) {
	r := &Reserve{log: cfg.Logger, stop: make(chan struct{})}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	size := cfg.Bytes
	if size == 0 {
		size = reserveBytes
	}
	seen := make(map[uint64]bool)
	for _, dir := range cfg.Dirs {
		device, err := deviceOf(dir)
		if err != nil {
			return nil, fmt.Errorf("the reserve in %s: %w", dir, err)
		}
		if seen[device] {
			continue
		}
		seen[device] = true
		r.disks = append(r.disks, &disk{dir: dir, size: size})
	}
	r.open()
	r.stopped.Go(r.watch)
	return r, nil
}

// open looks at the file systems for the first time.
func (r *Reserve) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var full *fullError
	for _, d := range r.disks {
		free, err := d.free()
		d.whole = d.held()
		switch {
		case err != nil:
			full = &fullError{d.dir, err.Error()}
		case d.whole && free < lowWater:
			full = &fullError{d.dir, "there is no room"}
			r.release(d)
		case d.whole:
		case free <= 2*d.size:
			full = &fullError{d.dir, fmt.Sprintf("%d bytes are free, and %d are needed", free, 2*d.size)}
		default:
			if err := d.hold(); err != nil {
				full = &fullError{d.dir, err.Error()}
				continue
			}
			d.whole = true
		}
	}
	r.tell(full)
}

// Full returns nil while there is room, and else an ErrFull that says where there is none.
func (r *Reserve) Full() error {
	if r == nil {
		return nil
	}
	if full := r.full.Load(); full != nil {
		return full
	}
	return nil
}

// Release makes room for what takes authority away, and for nothing else: on each file system without room, or where a
// write found none, it gives the reserve up. It returns an ErrFull where there is no room even so.
func (r *Reserve) Release() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for _, d := range r.disks {
		free, err := d.free()
		if err == nil && free >= lowWater && !d.noted {
			continue
		}
		r.tell(&fullError{d.dir, "there is no room"})
		r.release(d)
		if free, err = d.free(); err != nil || free < lowWater {
			failed = &fullError{d.dir, "there is no room, and the reserve is used up"}
		}
	}
	return failed
}

// NoteFull is told that a write found no room: the file systems count as full until they are seen to have some.
func (r *Reserve) NoteFull() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.disks {
		d.noted = true
		if r.full.Load() == nil {
			r.tell(&fullError{d.dir, "a write found no room"})
		}
	}
}

// Close ends the watch. The reserve stays.
func (r *Reserve) Close() error {
	if r == nil {
		return nil
	}
	r.once.Do(func() { close(r.stop) })
	r.stopped.Wait()
	return nil
}

func (r *Reserve) watch() {
	tick := time.NewTicker(reserveInterval)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
			r.look()
		}
	}
}

// look notices a file system that has become full, and one that has room again: then its reserve is made anew.
func (r *Reserve) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var full *fullError
	for _, d := range r.disks {
		if why := r.lookAt(d); why != "" {
			full = &fullError{d.dir, why}
		}
	}
	r.tell(full)
}

// lookAt returns why a file system counts as full, or nothing. One that did needs more room than one that did not, so
// that it does not go to and fro.
func (r *Reserve) lookAt(d *disk) string {
	free, err := d.free()
	if err != nil {
		return err.Error()
	}
	was := r.full.Load() != nil
	d.noted = false
	switch {
	case d.whole && (free < lowWater || was && free <= d.size):
		return "there is no room"
	case d.whole && was: // free space says nothing of a quota, or of a file system that went read-only
		if err := d.probe(); err != nil {
			return err.Error()
		}
		return ""
	case d.whole:
		return ""
	case free <= 2*d.size:
		return "there is no room for the reserve"
	}
	if err := d.hold(); err != nil {
		return err.Error()
	}
	d.whole = true
	return ""
}

// release gives a reserve up.
func (r *Reserve) release(d *disk) {
	if !d.whole {
		return
	}
	d.whole = false
	if err := os.Truncate(d.file(), 0); err != nil {
		r.log.Error("the reserve could not be released", "file", d.file(), "error", err)
		return
	}
	r.log.Warn("the reserve was released, so that authority can be taken away on a full disk", "file", d.file())
}

// tell changes what Full says, and says in the log when that is news.
func (r *Reserve) tell(full *fullError) {
	was := r.full.Swap(full)
	switch {
	case was == nil && full != nil:
		r.log.Error("the disk is full: only what takes authority away is served, everything else is refused",
			"folder", full.dir, "cause", full.why, "hint", "make room there: it goes on by itself")
	case was != nil && full == nil:
		r.log.Warn("the disk has room again: everything is served", "folder", was.dir)
	}
}

// disk is one file system and the reserve on it.
type disk struct {
	dir   string
	size  int64
	whole bool // the reserve is there
	noted bool // a write found no room since it was looked at
}

func (d *disk) file() string { return filepath.Join(d.dir, reserveName) }

// free returns how many bytes can be written besides the reserve.
func (d *disk) free() (int64, error) { return freeBytes(d.dir) }

// held reports whether the reserve is there with all its blocks.
func (d *disk) held() bool {
	info, err := os.Lstat(d.file())
	return err == nil && info.Mode().IsRegular() && info.Size() >= d.size && backed(info) >= d.size
}

// hold makes the reserve.
func (d *disk) hold() error {
	if err := os.Remove(d.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(d.file(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = allocate(f, d.size)
	if err = errors.Join(err, f.Close()); err == nil && !d.held() {
		err = errors.New("the file system did not keep the space of the reserve")
	}
	if err != nil {
		return errors.Join(err, os.Truncate(d.file(), 0))
	}
	return nil
}

// probe writes a little, and says whether that could be done.
func (d *disk) probe() error {
	name := d.file() + suffixNew
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, probeBytes))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(name))
}

// fillUp writes what the file system could not allocate. Its bytes do not compress.
func fillUp(f *os.File, size int64) error {
	const piece = 1 << 16
	chunk := make([]byte, piece)
	x := uint64(0x9e3779b97f4a7c15)
	for at := int64(0); at < size; at += piece {
		for i := range chunk { // xorshift
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			chunk[i] = byte(x)
		}
		if _, err := f.WriteAt(chunk[:min(piece, size-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}
