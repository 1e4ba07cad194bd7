// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// faultFS is a file system in memory that knows what was synced. A crash leaves that, and of the rest whatever chance
// leaves: single pages, in any order, and a prefix of the changes of the folder.
type faultFS struct {
	mu      sync.Mutex
	page    int
	names   map[string]*inode // as the program sees them
	durable map[string]*inode // as a crash leaves them
	changes []change          // of names that are not durable yet
	dead    bool              // it crashed: every call fails
	before  func(op, name string) error
	short   bool  // a write that fails writes its first half
	space   int64 // of all files; zero: any
	ops     map[string]int
}

type change struct {
	name string
	node *inode // nil: removed
	also string // the name that a rename took it from
}

type inode struct {
	data, durable []byte
	dirty         map[int]bool // pages written since the last sync
}

var errCrashed = errors.New("the machine has crashed")

func newFaultFS(page int) *faultFS {
	return &faultFS{page: page, names: map[string]*inode{}, durable: map[string]*inode{}, ops: map[string]int{}}
}

// enter locks the file system and asks whether the operation fails. It is unlocked by the caller.
func (f *faultFS) enter(op, name string) error {
	f.mu.Lock()
	if f.dead {
		return errCrashed
	}
	f.ops[op]++
	if f.before != nil {
		return f.before(op, filepath.Base(name))
	}
	return nil
}

func (f *faultFS) MkdirAll(dir string) error {
	defer f.mu.Unlock()
	return f.enter("mkdir", dir)
}

func (f *faultFS) Names(dir string) ([]string, error) {
	defer f.mu.Unlock()
	if err := f.enter("names", dir); err != nil {
		return nil, err
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f.names)) {
		names = append(names, filepath.Base(name))
	}
	return names, nil
}

func (f *faultFS) Create(name string) (File, error) {
	defer f.mu.Unlock()
	if err := f.enter("create", name); err != nil {
		return nil, err
	}
	n := &inode{dirty: map[int]bool{}}
	f.names[name] = n
	f.changes = append(f.changes, change{name: name, node: n})
	return &faultFile{f, n, name}, nil
}

func (f *faultFS) Open(name string) (File, error) {
	defer f.mu.Unlock()
	if err := f.enter("open", name); err != nil {
		return nil, err
	}
	n := f.names[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return &faultFile{f, n, name}, nil
}

func (f *faultFS) Rename(from, to string) error {
	defer f.mu.Unlock()
	if err := f.enter("rename", to); err != nil {
		return err
	}
	n := f.names[from]
	if n == nil {
		return fs.ErrNotExist
	}
	delete(f.names, from)
	f.names[to] = n
	f.changes = append(f.changes, change{name: to, node: n, also: from})
	return nil
}

func (f *faultFS) Remove(name string) error {
	defer f.mu.Unlock()
	if err := f.enter("remove", name); err != nil {
		return err
	}
	delete(f.names, name)
	f.changes = append(f.changes, change{name: name})
	return nil
}

func (f *faultFS) SyncDir(dir string) error {
	defer f.mu.Unlock()
	if err := f.enter("syncdir", dir); err != nil {
		return err
	}
	f.persist(len(f.changes))
	return nil
}

// persist makes the first n changes of names durable.
func (f *faultFS) persist(n int) {
	for _, c := range f.changes[:n] {
		if c.node == nil {
			delete(f.durable, c.name)
		} else {
			f.durable[c.name] = c.node
		}
		delete(f.durable, c.also)
	}
	f.changes = f.changes[n:]
}

// crash ends whatever uses the file system. What is left afterwards, chance decides.
func (f *faultFS) crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
}

// left is how much the files can grow.
func (f *faultFS) left() int {
	left := f.space
	if left == 0 {
		return 1 << 40
	}
	for _, n := range f.names {
		left -= int64(len(n.data))
	}
	return int(max(0, left))
}

// clone returns a copy of what was synced.
func (f *faultFS) clone() *faultFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := newFaultFS(f.page)
	for name, n := range f.durable {
		next.names[name] = &inode{data: slices.Clone(n.durable), durable: slices.Clone(n.durable), dirty: map[int]bool{}}
		next.durable[name] = next.names[name]
	}
	return next
}

// restart returns the file system as another process on the same machine sees it.
func (f *faultFS) restart() *faultFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	next := newFaultFS(f.page)
	next.names, next.durable, next.changes = f.names, f.durable, f.changes
	return next
}

// reboot returns what the crash has left.
func (f *faultFS) reboot(rng *rand.Rand) *faultFS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	f.persist(rng.IntN(len(f.changes) + 1))
	next := newFaultFS(f.page)
	for name, n := range f.durable {
		data := n.left(f.page, rng)
		next.names[name] = &inode{data: data, durable: slices.Clone(data), dirty: map[int]bool{}}
		next.durable[name] = next.names[name]
	}
	return next
}

// left is what a crash leaves of a file: what was synced, and of what was written since then any pages. The size is the
// old one or the new one; pages that it gained and that were not written are zeros.
func (n *inode) left(page int, rng *rand.Rand) []byte {
	data := slices.Clone(n.durable)
	if len(n.data) != len(n.durable) && rng.IntN(2) == 0 {
		data = append(data, make([]byte, max(0, len(n.data)-len(data)))...)[:len(n.data)]
	}
	odds := rng.IntN(4)
	for p := range n.dirty {
		if at := p * page; at < min(len(data), len(n.data)) && rng.IntN(4) <= odds {
			copy(data[at:min(at+page, len(data))], n.data[at:])
		}
	}
	return data
}

type faultFile struct {
	fs   *faultFS
	node *inode
	name string
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("read", f.name); err != nil {
		return 0, err
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	defer f.fs.mu.Unlock()
	err := f.fs.enter("write", f.name)
	if err != nil {
		if !f.fs.short || f.fs.dead {
			return 0, err
		}
		p = p[:len(p)/2]
	}
	n := f.node
	if grow := int(off) + len(p) - len(n.data); grow > 0 {
		if left := f.fs.left(); err == nil && grow > left {
			p, err = p[:max(0, len(p)-grow+left)], syscall.ENOSPC
			grow = int(off) + len(p) - len(n.data)
		}
		grow = max(0, grow)
		n.data = append(n.data, make([]byte, grow)...)
	}
	copy(n.data[off:], p)
	for page := int(off) / f.fs.page; page*f.fs.page < int(off)+len(p); page++ {
		n.dirty[page] = true
	}
	return len(p), err
}

func (f *faultFile) Size() (int64, error) {
	defer f.fs.mu.Unlock()
	return int64(len(f.node.data)), f.fs.enter("size", f.name)
}

func (f *faultFile) Truncate(size int64) error {
	defer f.fs.mu.Unlock()
	if err := f.fs.enter("truncate", f.name); err != nil {
		return err
	}
	f.node.data = f.node.data[:size]
	return nil
}

func (f *faultFile) Sync() error {
	defer f.fs.mu.Unlock()
	n := f.node
	if err := f.fs.enter("sync", f.name); err != nil {
		if !f.fs.dead {
			clear(n.dirty) // the pages count as clean, and never come to the disk
		}
		return err
	}
	n.durable = append(n.durable, make([]byte, max(0, len(n.data)-len(n.durable)))...)[:len(n.data)]
	for page := range n.dirty {
		if at := page * f.fs.page; at < len(n.data) {
			copy(n.durable[at:], n.data[at:min(at+f.fs.page, len(n.data))])
		}
	}
	clear(n.dirty)
	return nil
}

func (f *faultFile) Close() error { return nil }

// chained reads all of a stream and fails unless its chain holds from end to end. It returns the records' lines.
func chained(t *testing.T, f FS, stream string) [][]byte {
	t.Helper()
	names, err := segments(f, "j", stream)
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]byte
	head := Head{}
	for i, name := range names {
		s, err := scan(f, "j", name)
		if err != nil {
			t.Fatal(err)
		}
		if s.good == 0 && i == len(names)-1 {
			break // named before its first record was there
		}
		if s.header.Previous != head {
			t.Fatalf("%s follows record %d, and not %d", name, s.header.Previous.Seq, head.Seq)
		}
		head = s.head
		lines = append(lines, linesIn(t, f, name, s.good)...)
	}
	return lines
}

func linesIn(t *testing.T, f FS, name string, size int64) [][]byte {
	t.Helper()
	file, err := f.Open(filepath.Join("j", name))
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, size)
	if _, err := file.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	var lines [][]byte
	for _, l := range slices.Collect(linesOf(text)) {
		if !isFrame(l) {
			lines = append(lines, l)
		}
	}
	return lines
}
