// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// inNamespace names the variable by which a test knows that it has mounts of its own.
const inNamespace = "CERTBOUND_TEST_NAMESPACE"

// onTmpfs runs a test with a small file system of its own. For that it runs the test again, in a process with mounts of
// its own, and passes its result on.
func onTmpfs(t *testing.T, megabytes int, run func(t *testing.T, dir string)) {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		dir := filepath.Join(t.TempDir(), "disk")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		run(t, dir)
		return
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	err := cmd.Run()
	text := out.String()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		unmountable(t, err)
	}
	if err == nil && strings.Contains(text, "--- SKIP: "+t.Name()) {
		unmountable(t, errors.New(text))
	}
	if err != nil || !strings.Contains(text, "--- PASS: "+t.Name()) {
		t.Fatalf("with mounts of its own: %v\n%s", err, text)
	}
}

// unmountable skips a test where nothing can be mounted; where it must not be skipped it fails.
func unmountable(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") != "" && os.Geteuid() == 0 {
		t.Fatalf("nothing can be mounted here, and this test must run in CI: %v", err)
	}
	t.Skipf("nothing can be mounted here: %v", err)
}

// stuff writes a file until the disk is full but for so many bytes.
func stuff(t *testing.T, dir, name string, leave int64) {
	t.Helper()
	free, err := freeBytes(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if free <= leave {
		return
	}
	if err := allocate(f, free-leave); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

const mega = 1 << 20

func openReserve(t *testing.T, logged *bytes.Buffer, dirs ...string) *Reserve {
	t.Helper()
	cfg := ReserveConfig{Dirs: dirs, Bytes: 4 * mega}
	if logged != nil {
		cfg.Logger = slog.New(slog.NewTextHandler(logged, nil))
	}
	r, err := OpenReserve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// The tests look themselves.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

func sizeOf(t *testing.T, dir string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, reserveName))
	if err != nil {
		t.Fatal(err)
	}
	return backed(info)
}

// The whole life of a reserve, on a disk that really fills.
func TestReserveOnAFullDisk(t *testing.T) {
	t.Parallel()
	onTmpfs(t, 32, reserveOnAFullDisk)
}

func reserveOnAFullDisk(t *testing.T, dir string) {
	var logged bytes.Buffer
	r := openReserve(t, &logged, dir, dir, t.TempDir())
	if err := r.Full(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Fatalf("a reserve of %d bytes, %v", sizeOf(t, dir), err)
	}
	if err := r.Release(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Fatalf("released on a disk with room: %v", err)
	}

	stuff(t, dir, "stuff", 0)
	if err := r.Full(); err != nil {
		t.Errorf("full before anybody looked: %v", err)
	}
	r.look()
	if err := r.Full(); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), dir) {
		t.Errorf("on the full disk: %v", err)
	}
	if sizeOf(t, dir) != 4*mega {
		t.Error("the reserve was released by looking")
	}
	if err := r.Release(); err != nil {
		t.Errorf("no room was made: %v", err)
	}
	if free, err := freeBytes(dir); err != nil || free < 4*mega || sizeOf(t, dir) != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	if err := errors.Join(r.Release(), r.Release()); err != nil {
		t.Errorf("while there is room: %v", err)
	}
	r.look()
	if err := r.Full(); !errors.Is(err, ErrFull) {
		t.Errorf("the room that was made counts as room: %v", err)
	}
	if sizeOf(t, dir) != 0 {
		t.Error("the reserve took back the room that was made")
	}

	// Somebody uses up what was made as well.
	stuff(t, dir, "more", 0)
	if err := r.Release(); !errors.Is(err, ErrFull) {
		t.Errorf("with nothing left: %v", err)
	}
	r.look()
	if err := r.Full(); !errors.Is(err, ErrFull) {
		t.Errorf("with nothing left: %v", err)
	}

	remove(t, dir, "more")
	remove(t, dir, "stuff")
	r.look()
	if err := r.Full(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Errorf("with room again: %d bytes, %v", sizeOf(t, dir), err)
	}
	text := logged.String()
	if strings.Count(text, "level=ERROR") != 1 || strings.Count(text, "the reserve was released") != 1 || !strings.Contains(text, "has room again") || !strings.Contains(text, "hint=") {
		t.Errorf("the log is\n%s", text)
	}
}

// A disk that is nearly full counts as full until there is room to spare, so that it does not go to and fro.
func TestReserveOnANarrowDisk(t *testing.T) {
	t.Parallel()
	onTmpfs(t, 32, reserveOnANarrowDisk)
}

func reserveOnANarrowDisk(t *testing.T, dir string) {
	r := openReserve(t, nil, dir)
	stuff(t, dir, "stuff", lowWater-64<<10)
	r.look()
	if r.Full() == nil {
		t.Error("not full with less than a change needs")
	}
	remove(t, dir, "stuff")
	stuff(t, dir, "stuff", 3*mega)
	r.look()
	if r.Full() == nil {
		t.Error("room again with less than a reserve besides the reserve")
	}
	remove(t, dir, "stuff")
	stuff(t, dir, "stuff", 5*mega)
	r.look()
	if err := r.Full(); err != nil {
		t.Errorf("with room: %v", err)
	}
	// What a write found counts at once, and room is made though the disk says that it has some.
	r.NoteFull()
	if r.Full() == nil {
		t.Error("not full after a write that found no room")
	}
	if err := r.Release(); err != nil || sizeOf(t, dir) != 0 {
		t.Errorf("%d bytes are kept, %v", sizeOf(t, dir), err)
	}
	r.look()
	if err := r.Full(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Errorf("room again: %d bytes, %v", sizeOf(t, dir), err)
	}
	r.NoteFull()
	r.look()
	if err := r.Full(); err != nil {
		t.Errorf("room again: %v", err)
	}
}

func TestReserveAtStart(t *testing.T) {
	t.Parallel()
	onTmpfs(t, 32, reserveAtStart)
}

func reserveAtStart(t *testing.T, dir string) {
	stuff(t, dir, "stuff", 7*mega)
	r := openReserve(t, nil, dir)
	if r.Full() == nil {
		t.Error("a disk without room for a reserve is not full")
	}
	remove(t, dir, "stuff")
	r.look()
	if err := r.Full(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Fatalf("with room: %d bytes, %v", sizeOf(t, dir), err)
	}
	// A start on a full disk has the reserve, or it could not take anything away.
	stuff(t, dir, "stuff", 0)
	r = openReserve(t, nil, dir)
	if r.Full() == nil || sizeOf(t, dir) != 0 {
		t.Errorf("a start on the full disk: %d bytes are kept, %v", sizeOf(t, dir), r.Full())
	}
	remove(t, dir, "stuff")
	// A file of the right size without blocks is no reserve.
	if err := os.Truncate(filepath.Join(dir, reserveName), 4*mega); err != nil {
		t.Fatal(err)
	}
	r = openReserve(t, nil, dir)
	if err := r.Full(); err != nil || sizeOf(t, dir) != 4*mega {
		t.Errorf("a hollow reserve stays: %d bytes, %v", sizeOf(t, dir), err)
	}
}

// Where blocks cannot be allocated they are written.
func TestReserveIsWritten(t *testing.T) {
	t.Parallel()
	onTmpfs(t, 32, reserveIsWritten)
}

func reserveIsWritten(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	const size = mega + 3
	err = errors.Join(fillUp(f, size), f.Close())
	info, statErr := os.Stat(f.Name())
	if err = errors.Join(err, statErr); err != nil || info.Size() != size || backed(info) < size {
		t.Errorf("%d bytes in %d, %v", info.Size(), backed(info), err)
	}
	stuff(t, dir, "stuff", mega)
	g, err := os.Create(filepath.Join(dir, "y"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fillUp(g, 2*mega), g.Close()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
}

// It looks by itself.
func TestReserveWatches(t *testing.T) {
	t.Parallel()
	r, err := OpenReserve(ReserveConfig{Dirs: []string{t.TempDir()}, Bytes: mega})
	if err != nil {
		t.Fatal(err)
	}
	r.NoteFull()
	if r.Full() == nil {
		t.Fatal("not full")
	}
	for deadline := time.Now().Add(20 * time.Second); r.Full() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looked")
		}
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := OpenReserve(ReserveConfig{Dirs: []string{filepath.Join(t.TempDir(), "missing")}}); err == nil {
		t.Error("a missing folder has a reserve")
	}
	var none *Reserve
	none.NoteFull()
	if err := errors.Join(none.Full(), none.Release(), none.Close()); err != nil {
		t.Error(err)
	}
}

// A disk with free space that takes nothing, for a quota or because it went read-only, has no room again until it does.
func TestReserveWantsAWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var log bytes.Buffer
	r := openReserve(t, &log, dir)
	obstacle := filepath.Join(dir, reserveName+suffixNew, "x")
	if err := os.MkdirAll(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	r.NoteFull()
	for range 3 {
		if r.look(); r.Full() == nil {
			t.Fatal("room again on a disk that takes nothing")
		}
	}
	if text := log.String(); strings.Contains(text, "room again") || strings.Count(text, "the disk is full") != 1 {
		t.Error(text)
	}
	if err := os.RemoveAll(filepath.Dir(obstacle)); err != nil {
		t.Fatal(err)
	}
	if r.look(); r.Full() != nil {
		t.Error(r.Full())
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left are %v, %v", names, err)
	}
}

// As long as the reserve is not whole the journal takes what takes authority away, and nothing else: not even what it has
// room for. Afterwards it says how much it left out.
func TestJournalOnAFullDisk(t *testing.T) {
	t.Parallel()
	reserve := openReserve(t, nil, t.TempDir())
	dir := t.TempDir()
	l, err := Open(t.Context(), Config{Dir: dir, Reserve: reserve, InFlight: func() int { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	all := func() (errs [4]error) {
		for class := range Class(len(errs)) {
			errs[class] = l.Record(t.Context(), Event{Class: class, Name: fmt.Sprint("class", class), Client: "payments", Outcome: Granted})
		}
		l.countRefusals()
		return errs
	}
	if errs := all(); errors.Join(errs[:]...) != nil || l.Stats().Full || l.Err() != nil {
		t.Fatalf("with room: %v, %v", errs, l.Err())
	}
	reserve.NoteFull()
	for range 5 {
		errs := all()
		if !errors.Is(errs[Decision], ErrFull) || errs[Takeaway] != nil || errs[Refusal] != nil || errs[Stranger] != nil {
			t.Errorf("without: %v", errs)
		}
	}
	if !errors.Is(l.Ready(Decision), ErrFull) || l.Ready(Takeaway) != nil || !l.Stats().Full || !errors.Is(l.Err(), ErrFull) {
		t.Errorf("ready: %v, %v; %+v", l.Ready(Decision), l.Ready(Takeaway), l.Stats())
	}
	if got := l.Stats().Dropped; got != 10 {
		t.Errorf("%d refusals were left out", got)
	}
	reserve.look()
	if errs := all(); errors.Join(errs[:]...) != nil || l.Stats().Full {
		t.Errorf("with room again: %v", errs)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, stream := range []string{streamMain, streamRefusals} {
		for _, name := range namesOf(t, dir, stream) {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range []string{`"class0"`, `"class1"`, `"class2"`, `"class3"`, `"gap":{"refusals":1}`, `"gap":{"refusals":5}`} {
				counts[what] += bytes.Count(text, []byte(what))
			}
		}
	}
	want := map[string]int{`"class0"`: 2, `"class1"`: 7, `"class2"`: 2, `"class3"`: 2, `"gap":{"refusals":1}`: 5, `"gap":{"refusals":5}`: 1}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
