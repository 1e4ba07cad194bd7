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
	"strconv"
	"syscall"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

const (
	// leaseTime is how long a replica that cannot reach the database may go on: 3 s. slack is for a busy machine.
	leaseTime = 3 * time.Second
	slack     = 1500 * time.Millisecond
	// reaped is after how long nobody waits for a replica that is gone: ten times its lease, on the clock of who watches.
	reaped = 10*leaseTime + 8*time.Second
)

// What is done to a fleet, how often.
type doses struct {
	kills    int // of a replica, of a backend or of the whole of PostgreSQL
	cuts     int // of the line between a replica and the database
	alone    int // of the line between the primary and its standby
	pauses   int // of a replica, by SIGSTOP
	restarts int // of PostgreSQL
	failover int // promotions of the standby
	gone     bool
	quiet    time.Duration // before the first fault
}

// A harmer does harm to a fleet under load and has it recover.
type harmer struct {
	fleet  *fleet
	book   *book
	loads  []*load
	chance *rand.Rand
	counts map[string]int
	back   map[string][]time.Duration // from the end of a fault until all replicas serve
	dark   []time.Duration            // from the cut of a line to the refusal for the moment
}

// A harm is one kind of fault. It returns when the fault is over, and says what it was.
type harm struct {
	share int
	do    func(h *harmer, ctx context.Context) (string, error)
}

func (h *harmer) upTo(d time.Duration) time.Duration { return time.Duration(h.chance.Int64N(int64(d))) }

// replicas does all of it.
func replicas(ctx context.Context, dir, certbound string, d doses, chance *rand.Rand) error {
	f, err := newFleet(ctx, dir, certbound, 3, true)
	defer f.end()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &harmer{fleet: f, book: newBook(), chance: chance, counts: make(map[string]int), back: make(map[string][]time.Duration)}
	h.book.several = true
	if h.loads, err = f.load(ctx, h.book); err != nil {
		return err
	}
	begin := time.Now()
	err = h.all(ctx, d)
	if err == nil && d.gone {
		err = h.leave(ctx)
	}
	if err != nil {
		cancel()
	} else {
		close(h.loads[0].stopped)
	}
	for _, l := range h.loads {
		l.running.Wait()
	}
	if err != nil {
		return errors.Join(err, errors.New(firstOf(h.book.problems)))
	}
	for _, l := range h.loads[:2] {
		if err := l.stillRefused(ctx, 100); err != nil {
			return err
		}
	}
	h.tell(time.Since(begin))
	return f.conclude(ctx, h.book)
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return "no caller had a complaint"
	}
	return list[0]
}

// tell prints the figures.
func (h *harmer) tell(took time.Duration) {
	kinds := slices.Sorted(maps.Keys(h.back))
	for _, kind := range kinds {
		say("%3d × %s: all serve again after: %s", h.counts[kind], kind, quantiles(h.back[kind]))
	}
	say("a line that is cut: no tokens and not ready after: %s (%d times)", quantiles(h.dark), len(h.dark))
	say("authority taken away in, faults and all: %s (%d times)", quantiles(h.book.waits), len(h.book.waits))
	say("%d kills in %.0f s", len(h.book.ends), took.Seconds())
}

// all does every harm as often as is wished for, in random order.
func (h *harmer) all(ctx context.Context, d doses) error {
	kinds := []harm{
		{d.kills, (*harmer).kill}, {d.cuts, (*harmer).cut}, {d.alone, (*harmer).alone},
		{d.pauses, (*harmer).pause}, {d.restarts, (*harmer).restart}, {d.failover, (*harmer).failover},
	}
	var plan []harm
	for _, kind := range kinds {
		for range kind.share {
			plan = append(plan, kind)
		}
	}
	h.chance.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	if _, err := h.fleet.serve(ctx, h.loads[0]); err != nil {
		return err
	}
	pause(ctx, d.quiet)
	say("authority taken away in, before any fault: %s (%d times)", quantiles(h.book.waitsSoFar()), len(h.book.waitsSoFar()))
	for i, todo := range plan {
		if !pause(ctx, 100*time.Millisecond+h.upTo(700*time.Millisecond)) {
			return ctx.Err()
		}
		kind, err := todo.do(h, ctx)
		var took time.Duration
		if err == nil {
			took, err = h.fleet.serve(ctx, h.loads[0])
		}
		if err == nil {
			err = h.loads[1+h.chance.IntN(len(h.fleet.replicas))].stillRefused(ctx, 1)
		}
		if err != nil {
			return fmt.Errorf("fault %d of %d, %s: %w", i+1, len(plan), kind, err)
		}
		h.counts[kind]++
		h.back[kind] = append(h.back[kind], took)
	}
	return nil
}

// kill kills a replica, the process of a connection to the database, or the whole of PostgreSQL, and starts what does not
// start by itself.
func (h *harmer) kill(ctx context.Context) (string, error) {
	h.book.killed()
	switch n := h.chance.IntN(10); {
	case n == 0:
		const kind = "PostgreSQL killed"
		h.fleet.primary.Kill()
		pause(ctx, h.upTo(2*time.Second))
		return kind, h.fleet.primary.Start(ctx)
	case n <= 2:
		const kind = "a process of PostgreSQL killed"
		killed, err := h.fleet.primary.KillBackend(h.chance.IntN)
		if err == nil && !killed {
			err = errors.New("nobody is connected to the database")
		}
		return kind, err
	case n == 3:
		const kind = "a replica killed while it starts"
		s := h.fleet.replicas[h.chance.IntN(len(h.fleet.replicas))]
		if err := s.kill(); err != nil {
			return kind, err
		}
		if err := s.launch(); err != nil {
			return kind, err
		}
		pause(ctx, h.upTo(300*time.Millisecond))
		return kind, revive(ctx, s)
	default:
		const kind = "a replica killed"
		return kind, revive(ctx, h.fleet.replicas[h.chance.IntN(len(h.fleet.replicas))])
	}
}

// revive kills a replica and starts it again.
func revive(ctx context.Context, s *service) error {
	if err := s.kill(); err != nil {
		return err
	}
	return s.start(ctx)
}

// cut does something to the line between a replica and the database for a while. One through which nothing comes must
// bring the replica to say so within its lease, and not before it has to.
func (h *harmer) cut(ctx context.Context) (string, error) {
	i := h.chance.IntN(len(h.fleet.replicas))
	line, kind := h.fleet.lines[i], fault(1+h.chance.IntN(int(delayed)))
	name := "a line to the database " + kind.String()
	begin := time.Now()
	line.cut(kind, 20*time.Millisecond+h.upTo(300*time.Millisecond))
	defer line.heal()
	if kind == delayed || h.chance.IntN(3) == 0 {
		pause(ctx, h.upTo(4*time.Second))
		return name, ctx.Err()
	}
	if err := h.darkness(ctx, h.fleet.replicas[i], begin); err != nil {
		return name, err
	}
	pause(ctx, h.upTo(3*time.Second))
	return name, ctx.Err()
}

// alone cuts the primary off from its standby for a while, so that no commit is acknowledged and no lease renewed.
func (h *harmer) alone(ctx context.Context) (string, error) {
	const kind = "the standby cut off"
	begin := time.Now()
	h.fleet.stream.cut([]fault{stalled, dropped}[h.chance.IntN(2)], 0)
	defer h.fleet.stream.heal()
	if h.chance.IntN(3) == 0 {
		pause(ctx, h.upTo(3*time.Second))
		return kind, ctx.Err()
	}
	err := h.darkness(ctx, h.fleet.replicas[h.chance.IntN(len(h.fleet.replicas))], begin)
	pause(ctx, h.upTo(2*time.Second))
	return kind, err
}

// darkness requires that a replica, cut off at begin, gives no token when its lease is over, says when to ask again, and
// is not ready.
func (h *harmer) darkness(ctx context.Context, s *service, begin time.Time) error {
	c, err := s.caller(spare)
	if err != nil {
		return err
	}
	defer c.close()
	for {
		sent := time.Now()
		a, err := c.askToken(ctx, s.tokenURL(), spare, resource)
		if err == nil && a.status == http.StatusServiceUnavailable {
			if seconds, err := strconv.Atoi(a.retryAfter); err != nil || seconds < 1 {
				return fmt.Errorf("503 with Retry-After %q", a.retryAfter)
			}
			break
		}
		if err == nil {
			err = h.loads[0].note(a, c, spare, sent)
		}
		if err != nil {
			return err
		}
		if took := time.Since(begin); took > leaseTime+slack {
			return fmt.Errorf("tokens leave %v after the database was cut off", took)
		}
		if !pause(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
	h.dark = append(h.dark, time.Since(begin))
	return s.awaitReadiness(ctx, http.StatusServiceUnavailable, slack)
}

// pause stops a replica for longer or shorter than its lease.
func (h *harmer) pause(ctx context.Context) (string, error) {
	const kind = "a replica paused"
	s := h.fleet.replicas[h.chance.IntN(len(h.fleet.replicas))]
	pid := s.process.Pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return kind, os.NewSyscallError("kill", err)
	}
	pause(ctx, time.Second+h.upTo(7*time.Second))
	return kind, os.NewSyscallError("kill", syscall.Kill(pid, syscall.SIGCONT))
}

// restart restarts PostgreSQL.
func (h *harmer) restart(ctx context.Context) (string, error) {
	if h.chance.IntN(2) == 0 {
		return "PostgreSQL restarted (fast)", h.fleet.primary.Restart(ctx, postgres.Fast)
	}
	return "PostgreSQL restarted (immediate)", h.fleet.primary.Restart(ctx, postgres.Immediate)
}

// failover promotes the standby while the primary lives on. All replicas but one are led to the new primary; that one
// keeps the old, which answers what it reads and waits in vain for its standby with what it writes. Then it follows, the
// old primary goes, and the new one gets a standby.
func (h *harmer) failover(ctx context.Context) (string, error) {
	const kind = "the standby promoted"
	f := h.fleet
	behind := h.chance.IntN(len(f.lines))
	begin := time.Now()
	if err := f.standby.Promote(ctx); err != nil {
		return kind, err
	}
	for i, line := range f.lines {
		if i != behind {
			line.point(f.standby.Address())
		}
	}
	if h.chance.IntN(3) > 0 {
		// Its last renewal may have been just before the promotion.
		if err := h.darkness(ctx, f.replicas[behind], time.Now()); err != nil {
			return kind, fmt.Errorf("left with the old primary for %v: %w", time.Since(begin), err)
		}
	}
	pause(ctx, h.upTo(2*time.Second))
	f.lines[behind].point(f.standby.Address())
	old := f.primary
	f.primary, f.standby = f.standby, nil
	if err := old.Close(); err != nil {
		return kind, err
	}
	return kind, f.follow(ctx)
}

// leave kills a replica for good. What it had not brought to its journal is another's to bring, and in the end nobody
// waits for it.
func (h *harmer) leave(ctx context.Context) error {
	last := len(h.fleet.replicas) - 1
	s := h.fleet.replicas[last]
	h.book.killed()
	if err := s.kill(); err != nil {
		return err
	}
	// Whoever asks that very place asks another from now on.
	for from, to := range map[string]string{s.public: h.fleet.replicas[0].public, s.mtls: h.fleet.replicas[0].mtls} {
		line, err := newRelayAt(from, to)
		if err != nil {
			return err
		}
		h.fleet.lines = append(h.fleet.lines, line)
	}
	if s.resume(); !pause(ctx, reaped) {
		return ctx.Err()
	}
	before := len(h.book.waitsSoFar())
	pause(ctx, 5*time.Second)
	waits := h.book.waitsSoFar()[before:]
	say("a replica gone for good, %v later: authority taken away in: %s", reaped, quantiles(waits))
	if len(waits) > 0 && slices.Min(waits) > leaseTime {
		return errors.New("everybody still waits for a replica that is gone for good")
	}
	return nil
}
