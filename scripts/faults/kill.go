// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// lossWindow is how long before its end a service with audit.sync: interval may have given tokens of which a crash of
// the process, the machine going on, leaves no record. They are written within 2 ms; the rest is for a busy machine.
const lossWindow = 500 * time.Millisecond

// A moment is when to kill the service, seen from its launch. It returns when the time has come.
type moment struct {
	name  string
	early bool // the service need not be ready
	await func(ctx context.Context, k *killer) error
}

// A killer kills a service at random moments and starts it again.
type killer struct {
	service *service
	book    *book
	load    *load
	chance  *rand.Rand
	counts  map[string]int
	waits   []time.Duration // from ready to serving as before
}

// upTo is a random time below d.
func (k *killer) upTo(d time.Duration) time.Duration { return time.Duration(k.chance.Int64N(int64(d))) }

func moments() []moment {
	under := func(longest time.Duration) func(context.Context, *killer) error {
		return func(ctx context.Context, k *killer) error {
			pause(ctx, k.upTo(longest))
			return ctx.Err()
		}
	}
	return []moment{
		{"under load", false, func(ctx context.Context, k *killer) error {
			pause(ctx, 20*time.Millisecond+k.upTo(500*time.Millisecond))
			return ctx.Err()
		}},
		{"a change under way", false, func(ctx context.Context, k *killer) error {
			pause(ctx, k.upTo(100*time.Millisecond))
			select {
			case <-k.load.sending:
			case <-ctx.Done():
			}
			pause(ctx, k.upTo(6*time.Millisecond))
			return ctx.Err()
		}},
		{"rotating", false, func(ctx context.Context, k *killer) error {
			pause(ctx, k.upTo(100*time.Millisecond))
			if err := awaitNewFile(k.service.data("audit"), 3*time.Second); err != nil {
				return err
			}
			pause(ctx, k.upTo(2*time.Millisecond))
			return ctx.Err()
		}},
		{"just ready", false, under(5 * time.Millisecond)},
		{"starting", true, under(50 * time.Millisecond)},
		{"stopping", false, func(ctx context.Context, k *killer) error {
			pause(ctx, k.upTo(200*time.Millisecond))
			k.service.down()
			if err := syscall.Kill(k.service.process.Pid(), syscall.SIGTERM); err != nil {
				return os.NewSyscallError("kill", err)
			}
			pause(ctx, k.upTo(20*time.Millisecond))
			return ctx.Err()
		}},
	}
}

// awaitNewFile waits until a file is made in the folder, or the time is over.
func awaitNewFile(dir string, patience time.Duration) error {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	defer watch.Close()
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_MOVED_TO); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	if err := watch.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := watch.Read(make([]byte, 4096)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// kills kills a service n times under load and then holds what was told against what is there.
func kills(ctx context.Context, dir, certbound, sync string, n int, chance *rand.Rand) error {
	s, err := newService(certbound, dir, "audit.sync="+sync, "audit.segment_size=131072")
	if err != nil {
		return err
	}
	defer s.end()
	if err := s.populate(ctx, loadClients+1); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &killer{service: s, book: newBook(), chance: chance, counts: make(map[string]int)}
	if k.load, err = newLoad(ctx, s, k.book); err != nil {
		return err
	}
	killed := k.loop(ctx, n)
	if killed != nil {
		cancel()
		k.load.running.Wait()
		return killed
	}
	k.load.stop()
	if err := k.load.stillRefused(ctx, 1000); err != nil {
		return err
	}
	inv, err := s.inventory(ctx)
	if err != nil {
		return err
	}
	if err := s.stop(); err != nil {
		return err
	}
	return k.conclude(ctx, inv, sync)
}

// loop kills and starts. It leaves the service running, unless it returns an error.
func (k *killer) loop(ctx context.Context, n int) error {
	all := moments()
	for i := range n {
		m := all[k.chance.IntN(len(all))]
		if i < len(all) {
			m = all[i] // each at least once
		}
		if !m.early {
			if err := k.serves(ctx, i); err != nil {
				return fmt.Errorf("kill %d of %d: %w", i+1, n, err)
			}
		}
		if err := m.await(ctx, k); err != nil {
			return err
		}
		k.service.down()
		k.book.killed()
		if err := k.service.kill(); err != nil {
			return fmt.Errorf("kill %d of %d (%s): %w", i+1, n, m.name, err)
		}
		k.counts[m.name]++
		if err := k.service.launch(); err != nil {
			return err
		}
	}
	return k.serves(ctx, n)
}

// serves requires that the service, which is running or starting, serves as before.
func (k *killer) serves(ctx context.Context, number int) error {
	if number > 0 {
		if err := k.service.ready(ctx); err != nil {
			return err
		}
	}
	begin := time.Now()
	if err := k.service.awaitReadiness(ctx, http.StatusOK, again); err != nil {
		return err
	}
	client := fmt.Sprintf("load-%d", loadClients) // which nobody else is
	c, err := k.service.caller(client)
	if err != nil {
		return err
	}
	defer c.close()
	sent := time.Now()
	a, err := c.askToken(ctx, k.service.tokenURL(), client, resource)
	if err != nil {
		return fmt.Errorf("it is ready and does not serve: %w", err)
	}
	if err := k.load.note(a, c, client, sent); err != nil {
		return fmt.Errorf("it is ready and does not serve: %w", err)
	}
	k.waits = append(k.waits, time.Since(begin))
	return k.load.stillRefused(ctx, 2)
}

// conclude holds the book against the journal and the inventory.
func (k *killer) conclude(ctx context.Context, inv *inventory, sync string) error {
	j, err := readJournal(k.service.data("audit"))
	if err != nil {
		return err
	}
	var kinds []string
	for _, name := range slices.Sorted(maps.Keys(k.counts)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", k.counts[name], name))
	}
	tokens, certs, changes := k.book.counts()
	slices.Sort(k.service.starts)
	say("%d kills: %s", len(k.book.ends), strings.Join(kinds, ", "))
	say("start to ready: median %d ms, longest %d ms; from there to a token and readiness: longest %d ms",
		k.service.starts[len(k.service.starts)/2].Milliseconds(), slices.Max(k.service.starts).Milliseconds(), slices.Max(k.waits).Milliseconds())
	say("received: %d tokens, %d certificates, %d changes; refused afterwards: %d certificates", tokens, certs, changes, len(k.book.losses))
	say("journal: %d records in %d segments, without a gap", j.records, j.segments)
	err = errors.Join(k.book.judge(j, inv), k.judgeMissing(j, sync))
	begin := time.Now()
	if err := errors.Join(err, k.service.verify(ctx, "data")); err != nil {
		return err
	}
	say("everything that was told is on record, once; audit verify accepts it in %d ms", time.Since(begin).Milliseconds())
	return nil
}

// judgeMissing judges the tokens that were received and are not on record: with audit.sync: always there are none.
func (k *killer) judgeMissing(j *journal, sync string) error {
	lost := k.book.missing(j)
	farthest := k.book.beside(lost)
	if sync == "always" && len(lost) == 0 {
		return nil
	}
	told := fmt.Sprintf("not on record: %d tokens, received within %.1f ms of a kill", len(lost), float64(farthest.Microseconds())/1000)
	if sync == "always" || farthest > lossWindow {
		return errors.New(told)
	}
	say("%s", told)
	return nil
}
