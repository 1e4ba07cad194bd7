// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/certbound/certbound/mtls"
)

// insideNamespace is the first argument of this program where it runs in a namespace of its own.
const insideNamespace = "fill-inside-namespace"

const (
	diskSize     = 96 << 20
	refusalQuota = 1 << 20
	refillTime   = 15 * time.Second // from space on the disk to serving as before
	fullTokens   = 200_000          // more than the room holds that is left to a journal on a full disk
)

// fill runs this program again, in a user and mount namespace of its own, where it may mount a small disk.
func fill(ctx context.Context, dir, certbound string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, insideNamespace, certbound, dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err = cmd.Run()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("this machine permits no user namespaces, in which a small disk could be had: %w", err)
	}
	return err
}

// fillInside has a disk fill under a service. On failure it leaves the disk's content in a folder beside it.
func fillInside(ctx context.Context, certbound, dir string) error {
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", diskSize)); err != nil {
		return os.NewSyscallError("mount", err)
	}
	s, err := newService(certbound, disk, "audit.segment_size=4194304", fmt.Sprintf("audit.refusal_quota=%d", refusalQuota))
	if err != nil {
		return err
	}
	s.log = filepath.Join(dir, "serve.log")
	f := &filling{service: s, disk: disk, book: newBook()}
	err = f.run(ctx)
	s.end()
	if err != nil {
		err = errors.Join(err, os.RemoveAll(f.ballast()), copyTree(disk, filepath.Join(dir, "disk-as-it-was")))
	}
	return errors.Join(err, syscall.Unmount(disk, syscall.MNT_DETACH))
}

// A filling is a service on a disk that fills.
type filling struct {
	service  *service
	disk     string
	book     *book
	load     *load
	operator *operator
	victims  [][]*mtls.KeyPair // their certificates
	pending  int               // changes whose records had to wait
}

// ballast is the file that fills the disk.
func (f *filling) ballast() string { return filepath.Join(f.disk, "ballast") }

func victim(n int) string { return fmt.Sprintf("victim-%d", n) }

func (f *filling) run(ctx context.Context) error {
	s := f.service
	if err := s.populate(ctx, loadClients); err != nil {
		return err
	}
	roots, err := s.roots()
	if err != nil {
		return err
	}
	f.load = &load{service: s, book: f.book, roots: roots, stopped: make(chan struct{}), sending: make(chan struct{})}
	c, err := s.caller("data/admin")
	if err != nil {
		return err
	}
	f.operator = &operator{load: f.load, caller: c}
	for n := range 6 {
		code, err := f.operator.invited(ctx, victim(n))
		if err != nil {
			return err
		}
		first, second, err := f.load.certified(ctx, victim(n), code)
		if err != nil {
			return err
		}
		first.close()
		second.close()
		f.victims = append(f.victims, []*mtls.KeyPair{first.pair, second.pair})
	}
	for _, step := range []func(context.Context) error{f.refusals, f.full, f.freed, f.restarted, f.freed, f.readOnly, f.conclude} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// refusals uses up what refusals may use, from many networks; tokens leave all the while and afterwards.
func (f *filling) refusals(ctx context.Context) error {
	before, _, _ := f.book.counts()
	refused, err := flood(ctx, f.load, func() bool {
		names, _ := f.refusalSegments()
		return len(names) > 0 && !strings.HasSuffix(names[0], "-0000000000000001.jsonl") // the oldest went
	})
	if err != nil {
		return fmt.Errorf("after %d refusals: %w", refused, err)
	}
	_, used := f.refusalSegments()
	if err := f.token(ctx, 0); err != nil {
		return fmt.Errorf("after %d refusals: %w", refused, err)
	}
	after, _, _ := f.book.counts()
	say("%d refusals, of strangers from %d networks among them, use %d KiB of %d that they may, and the oldest went; %d tokens left meanwhile",
		refused, floodNetworks, used>>10, refusalQuota>>10, after-before)
	if used > refusalQuota+refusalQuota/4 {
		return errors.New("that is more than they may")
	}
	return nil
}

// refusalSegments lists the files of counted refusals, oldest first, and says how large they are together.
func (f *filling) refusalSegments() (names []string, size int64) {
	names, _ = filepath.Glob(f.service.data("audit", "refusals-*.jsonl")) // the pattern is well formed
	slices.Sort(names)
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			size += info.Size()
		}
	}
	return names, size
}

// token takes a token for load-n.
func (f *filling) token(ctx context.Context, n int) error {
	client := fmt.Sprintf("load-%d", n)
	c, err := f.service.caller(client)
	if err != nil {
		return err
	}
	defer c.close()
	return f.load.tokenFor(ctx, c, client)
}

// full fills the disk until nothing is granted any more, and then takes authority away.
func (f *filling) full(ctx context.Context) error {
	if err := f.fill(ctx); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "cert revoke", revokeEvent, overSocket, 0); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "client disable", disableEvent, asOperator, 1); err != nil {
		return err
	}
	return f.grantsNothing(ctx, "disk full")
}

// fill fills the disk and has the service notice it.
func (f *filling) fill(ctx context.Context) error {
	if err := fillFile(f.ballast()); err != nil {
		return err
	}
	given, err := f.exhaust(ctx)
	if err != nil {
		return err
	}
	if err := f.service.awaitReadiness(ctx, http.StatusServiceUnavailable, again); err != nil {
		return err
	}
	say("disk full: %d more tokens, then 503; readiness is 503", given)
	return nil
}

// grantsNothing requires that not one token leaves and that the service says that it is not ready.
func (f *filling) grantsNothing(ctx context.Context, when string) error {
	if err := f.service.awaitReadiness(ctx, http.StatusServiceUnavailable, again); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	given, err := f.exhaust(ctx)
	if err == nil && given > 0 {
		err = fmt.Errorf("%d tokens leave", given)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	say("%s: no token leaves; readiness is 503", when)
	return nil
}

// exhaust takes tokens until they are refused, and returns how many there were.
func (f *filling) exhaust(ctx context.Context) (int, error) {
	c, err := f.service.caller("load-0")
	if err != nil {
		return 0, err
	}
	defer c.close()
	for given := range fullTokens {
		sent := time.Now()
		a, err := c.askToken(ctx, f.service.tokenURL(), "load-0", resource)
		switch {
		case err != nil:
			return given, err
		case a.status == http.StatusServiceUnavailable:
			return given, nil
		}
		if err := f.load.note(a, c, "load-0", sent); err != nil {
			return given, err
		}
	}
	return fullTokens, fmt.Errorf("the disk is full, and %d tokens were given", fullTokens)
}

// The ways to take authority away: as an operator, and over the break-glass socket.
const (
	asOperator = " --profile data/admin"
	overSocket = " --socket data/admin.sock"
)

// takeAway takes authority from a victim.
func (f *filling) takeAway(ctx context.Context, verb, event, way string, n int) error {
	line := verb + " " + victim(n) + way
	if event == revokeEvent {
		line = verb + " --client " + victim(n) + way
	}
	r, err := f.service.run(ctx, line, "")
	if err != nil {
		return err
	}
	if r.Exit != 0 {
		return fmt.Errorf("certbound %s: exit status %d: %s", line, r.Exit, r.Stderr)
	}
	c := change{event: event, client: victim(n), records: 1}
	state := "disabled"
	if event == revokeEvent {
		c.records, state = len(f.victims[n]), "enabled" // one for each certificate
	}
	f.book.change(c, state)
	f.book.lost(victim(n), event == revokeEvent, f.victims[n]...)
	waits := ""
	if strings.Contains(r.Stderr, "journal") {
		waits = ", its record waits"
		f.pending++
	}
	say("%s succeeds%s", verb, waits)
	return nil
}

// restarted fills the disk again and starts the service on it: once with its reserve, and once when that is used up.
func (f *filling) restarted(ctx context.Context) error {
	if err := f.fill(ctx); err != nil {
		return err
	}
	if err := f.restart(ctx); err != nil {
		return err
	}
	if err := f.grantsNothing(ctx, "started on the full disk"); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "cert revoke", revokeEvent, asOperator, 2); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "client disable", disableEvent, overSocket, 3); err != nil {
		return err
	}
	if err := f.restart(ctx); err != nil {
		return err
	}
	return f.grantsNothing(ctx, "started again, when authority was taken away")
}

func (f *filling) restart(ctx context.Context) error {
	f.service.down()
	f.book.killed()
	if err := f.service.kill(); err != nil {
		return err
	}
	if err := f.service.start(ctx); err != nil {
		return fmt.Errorf("start on the full disk: %w", err)
	}
	return nil
}

// freed gives the disk its space back.
func (f *filling) freed(ctx context.Context) error {
	if err := os.Remove(f.ballast()); err != nil {
		return err
	}
	return f.servesAgain(ctx, "space again")
}

// servesAgain requires that the service serves as before, with nobody's help, and that who lost authority gets nothing.
func (f *filling) servesAgain(ctx context.Context, when string) error {
	begin := time.Now()
	if err := f.service.awaitReadiness(ctx, http.StatusOK, refillTime); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	if err := f.token(ctx, 1); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	took := time.Since(begin)
	if err := f.service.awaitRecords(ctx, refillTime); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	if err := f.load.stillRefused(ctx, 2*len(f.victims)); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	say("%s: it serves as before after %d ms, and who lost authority gets nothing", when, took.Milliseconds())
	return nil
}

// readOnly starts the service with a journal that cannot be written at all, so that records have to wait elsewhere.
func (f *filling) readOnly(ctx context.Context) error {
	dir := f.service.data("audit")
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	writable := func(flag uintptr) error {
		return os.NewSyscallError("mount", syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|flag, ""))
	}
	f.service.down()
	f.book.killed()
	if err := f.service.kill(); err != nil {
		return err
	}
	if err := writable(syscall.MS_RDONLY); err != nil {
		return err
	}
	before := f.pending
	if err := f.service.start(ctx); err != nil {
		return fmt.Errorf("start with a journal that cannot be written: %w", err)
	}
	if err := f.grantsNothing(ctx, "started with a journal that cannot be written"); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "cert revoke", revokeEvent, overSocket, 4); err != nil {
		return err
	}
	if err := f.restart(ctx); err != nil {
		return err
	}
	if err := f.takeAway(ctx, "client disable", disableEvent, overSocket, 5); err != nil {
		return err
	}
	if f.pending != before+2 {
		return errors.New("nobody was told that the records wait")
	}
	if err := writable(0); err != nil {
		return err
	}
	return f.servesAgain(ctx, "a journal again")
}

func (f *filling) conclude(ctx context.Context) error {
	inv, err := f.service.inventory(ctx)
	if err != nil {
		return err
	}
	if err := f.service.stop(); err != nil {
		return err
	}
	j, err := readJournal(f.service.data("audit"))
	if err != nil {
		return err
	}
	if err := f.book.judge(j, inv); err != nil {
		return err
	}
	if lost := f.book.missing(j); len(lost) > 0 {
		return fmt.Errorf("%d tokens were received and are not on record", len(lost))
	}
	if err := f.service.verify(ctx, "data"); err != nil {
		return err
	}
	say("everything that was told is on record, once; audit verify accepts it")
	return nil
}

// fillFile makes a file as large as the disk permits.
func fillFile(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10} { // a write may fail as a whole
		for {
			if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
				break
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}
