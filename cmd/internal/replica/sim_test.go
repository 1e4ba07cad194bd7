// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// The simulation runs the code of this package: several replicas, their machines with clocks of their own, operators who
// revoke, and clients who ask for tokens all the time, in a bubble where time is simulated. A seed decides what goes wrong.
// Where two things happen at the same nanosecond the scheduler decides which is first, so a seed nearly always, but not
// surely, does the same again.

// world is one simulated installation.
type world struct {
	seed    uint64
	started time.Time
	quorum  bool
	faults  faults
	mistake mistake
	wg      sync.WaitGroup
	reaped  atomic.Int64
	log     *slog.Logger // nil: none

	mu       sync.Mutex // never held while anything waits
	servers  []*server  // the last is the one that is meant
	machines []*host
	targets  [operators]int       // the certificates that are revoked now
	lead     time.Duration        // of the database's clock
	onStep   func(*process, step) // what a staged test does at a step
	asked    int                  // what a commit survives
	askFails error                // when that is asked
	healing  bool
	ended    bool

	decisions   []decision
	revocations []revocation
	unsafe      []string              // what must never happen
	wrong       []string              // what does not work
	lost        map[int]time.Duration // certificates whose revocation the database lost, and when
	lapses      int
	refused     int
	fatal       map[error]int
}

// faults says how often things go wrong. Probabilities are for each occasion.
type faults struct {
	flavour       string
	machines      int
	length        time.Duration
	loss, repeat  float64
	slow          float64 // messages, up to 1.4 s
	slowAnswers   float64 // to writes, up to 1.4 s
	slowFlush     float64 // of the database and of the journal, up to 2 s
	pause         float64 // at a step, one of the process's goroutines
	slowStart     float64 // processes, between being started and being known
	hints         float64 // that arrive
	impatient     float64 // operators who give up early
	crashAfter    float64 // between the commit and the wait
	cuts          time.Duration
	stops         time.Duration // mean time between pauses of whole processes, which is how suspend looks too
	naps          bool          // and none is longer than a second
	jumps         time.Duration
	restarts      time.Duration // of replicas
	failover      bool
	split         bool // the former primary still answers
	lag           time.Duration
	serverRestart bool
	regress       bool
	absent        bool // one machine is away for so long that its row is removed
}

// flavours are the kinds of worlds, one for each seed in turn.
func flavours() []faults {
	const s = time.Second
	some := faults{machines: 3, length: 11 * s, hints: 0.7, impatient: 0.25}
	with := func(name string, change func(*faults)) faults {
		f := some
		f.flavour = name
		change(&f)
		return f
	}
	return []faults{
		{flavour: "calm", machines: 3, length: 9 * s, hints: 0.9},
		with("network", func(f *faults) { f.loss, f.repeat, f.slow, f.cuts, f.hints = 0.01, 0.05, 0.1, 3*s, 0.2 }),
		with("pauses", func(f *faults) { f.pause, f.slowFlush, f.stops = 0.004, 0.03, 4*s }),
		with("clocks", func(f *faults) { f.jumps, f.cuts = 2500*time.Millisecond, 3*s }),
		with("naps", func(f *faults) { f.naps, f.stops, f.cuts, f.length = true, 1200*time.Millisecond, 3*s, 25*s }),
		with("slow answers", func(f *faults) { f.slowAnswers, f.cuts, f.length = 0.5, 2*s, 20*s }),
		with("crashes", func(f *faults) {
			f.restarts, f.slowStart, f.crashAfter, f.loss, f.slow, f.length = 4*s, 0.4, 0.05, 0.01, 0.03, 16*s
		}),
		with("split brain", func(f *faults) { f.failover, f.split, f.slow, f.cuts = true, true, 0.02, 8*s }),
		with("failover without quorum", func(f *faults) { f.failover, f.lag = true, 2*s }),
		with("server restarts", func(f *faults) { f.serverRestart, f.slowFlush, f.restarts = true, 0.02, 5*s }),
		with("lost commits", func(f *faults) { f.regress, f.cuts = true, 5*s }),
		with("everything", func(f *faults) {
			f.loss, f.repeat, f.slow, f.slowFlush, f.pause = 0.005, 0.02, 0.03, 0.02, 0.002
			f.cuts, f.stops, f.jumps, f.restarts, f.crashAfter = 6*s, 7*s, 7*s, 6*s, 0.05
			f.failover, f.split, f.hints = true, true, 0.3
		}),
		with("absence", func(f *faults) { f.absent, f.length, f.machines = true, 44*s, 2 }),
	}
}

// mistake says what is done wrongly on purpose.
type mistake struct {
	rules     func(*rules)
	sequence  bool // versions come from a sequence
	loadFirst bool // state is loaded before the row is written
	noRetry   bool // what was revoked before counts as in force
	wallClock bool // leases are measured with the wall clock
	stands    bool // leases are measured with a clock that stands still while the machine sleeps
	stay      bool // connections to the database's former server are kept
}

// decision is a token that left.
type decision struct {
	machine, cert  int
	iat, gate, out time.Duration
}

// revocation is one success that an operator was told of.
type revocation struct {
	cert     int
	asked    time.Duration
	returned time.Duration
	early    bool
	single   bool
	by       bool // nothing returned: it was said from when on it would be in force
}

func (w *world) now() time.Duration { return time.Since(w.started) }

// wall is the database's clock. w.mu is held.
func (w *world) wall() time.Time { return time.Now().Add(70*time.Millisecond + w.lead) }

func (w *world) rng(what string, n int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, what, n)
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// host is a computer with clocks and connections, on which processes live one after the other.
type host struct {
	w    *world
	n    int
	rate float64

	mu          sync.Mutex // never held while anything waits
	rng         *rand.Rand
	jump        time.Duration // of the wall clock
	slept       time.Duration // what a clock that stands still did not count
	cutUntil    [links]time.Duration
	stopped     time.Duration // until when its process does nothing
	away        time.Duration // until when no process is started
	link        [links]*server
	leaves      [links]time.Duration // when the connection to a former primary ends by itself
	incarnation uint64
	process     *process
}

func (m *host) draw(f func(*rand.Rand) float64) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return f(m.rng)
}

func (m *host) chance(p float64) bool {
	return p > 0 && m.draw((*rand.Rand).Float64) < p && !m.w.isHealing()
}

func (w *world) isHealing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.healing
}

// between is a random time; no two are the same, so that the order of events does not depend on the scheduler.
func (m *host) between(a, b time.Duration) time.Duration {
	return a + time.Duration(m.draw((*rand.Rand).Float64)*float64(b-a))
}

func (m *host) delay() time.Duration {
	if m.chance(m.w.faults.slow) {
		return m.between(20*time.Millisecond, 1400*time.Millisecond)
	}
	return m.between(100*time.Microsecond, time.Millisecond)
}

func (m *host) flush() time.Duration {
	if m.chance(m.w.faults.slowFlush) {
		return m.between(20*time.Millisecond, 2*time.Second)
	}
	return m.between(200*time.Microsecond, 2*time.Millisecond)
}

func (m *host) isCut(link int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.w.now() < m.cutUntil[link]
}

// cut has nothing pass on some connections for a while. m.mu is held.
func (m *host) cut(d time.Duration, which ...int) {
	for _, link := range which {
		m.cutUntil[link] = m.w.now() + d
	}
}

// server is where a connection leads. One to a former primary stays there for a while, as long as that answers.
func (m *host) server(link int) *server {
	m.w.mu.Lock()
	newest := m.w.servers[len(m.w.servers)-1]
	now := m.w.now()
	m.w.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link[link] != newest && now >= m.leaves[link] {
		m.link[link] = newest
	}
	return m.link[link]
}

// reconnect is what a pool does after an error, now and then.
func (m *host) reconnect(link int) {
	m.w.mu.Lock()
	newest, former := m.w.servers[len(m.w.servers)-1], false
	m.w.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	former = m.link[link] != newest
	if former && m.rng.Float64() < 0.03 {
		m.leaves[link] = 0
	}
}

// Boot and Wall are the machine's clocks.
func (m *host) Boot() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.ran()
	switch {
	case m.w.mistake.wallClock:
		return t + m.jump
	case m.w.mistake.stands:
		return t - m.slept
	}
	return t
}

func (m *host) ran() time.Duration {
	return time.Hour + time.Duration(float64(m.w.now())*m.rate)
}

func (m *host) Wall() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.w.started.Add(m.ran() - time.Hour + m.jump)
}

// process is one life of a replica.
type process struct {
	w    *world
	m    *host
	r    *Replica
	dead atomic.Bool
	stop context.CancelFunc // asks it to end, as a signal does
	end  context.Context    // it was asked to
	done chan struct{}
	up   atomic.Bool // it serves
	hint chan struct{}

	mu    sync.Mutex // never held while anything waits
	epoch int
	known map[int]bool // certificate -> revoked
}

// freeze returns once the process may go on: it does nothing while it is stopped or the machine sleeps.
func (p *process) freeze() {
	for !p.dead.Load() {
		p.m.mu.Lock()
		wait := p.m.stopped - p.w.now()
		p.m.mu.Unlock()
		if wait <= 0 {
			return
		}
		time.Sleep(wait)
	}
}

// sleep is time.Sleep in a process that may be stopped.
func (p *process) sleep(d time.Duration) {
	time.Sleep(d)
	p.freeze()
}

// reached may hold up one goroutine of a process at a step, and does when the process is stopped. The moment at which Pass
// has judged the lease is the one that counts as the decision's, so that the pause after it comes once that was noted.
func (p *process) reached(s step) {
	p.w.mu.Lock()
	do := p.w.onStep
	p.w.mu.Unlock()
	if do != nil {
		do(p, s)
	}
	if s == stepBegin && p.m.chance(p.w.faults.slowStart) {
		p.sleep(p.m.between(100*time.Millisecond, 2*time.Second))
	}
	if s != stepPassed {
		p.stumble()
	}
}

func (p *process) stumble() {
	p.freeze()
	if p.m.chance(p.w.faults.pause) {
		p.sleep(p.m.between(5*time.Millisecond, 5*time.Second))
	}
}

// drop is what caches do when they hear of a change.
func (p *process) drop(c store.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	if c.Full {
		clear(p.known)
	}
	for _, t := range c.Thumbprints {
		delete(p.known, certificate(t))
	}
}

// load reads all certificates at once.
func (p *process) load(ctx context.Context) error {
	p.mu.Lock()
	epoch := p.epoch
	p.mu.Unlock()
	all, err := ask(ctx, p, looking, func(s *server, _ func() time.Duration) (all map[int]int64, err error) {
		_, err = s.read(func(r *rows) { all = maps.Clone(r.revoked) })
		return all, err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range certificates {
		if err == nil && p.epoch == epoch {
			p.known[c] = all[c] != 0
		}
	}
	return err
}

// revoked is the registry: what is remembered, or else the database.
func (p *process) revoked(ctx context.Context, cert int) (bool, error) {
	p.mu.Lock()
	known, ok := p.known[cert]
	epoch := p.epoch
	p.mu.Unlock()
	if ok {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	is, err := ask(ctx, p, looking, func(s *server, _ func() time.Duration) (is bool, err error) {
		_, err = s.read(func(r *rows) { is = r.revoked[cert] != 0 })
		return is, err
	})
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch == epoch {
		p.known[cert] = is
	}
	return is, nil
}

// issue is one request for a token, in the order of the issuer.
func (p *process) issue(cert int) error {
	p.freeze()
	if err := p.r.Live(); err != nil {
		return err
	}
	d := decision{machine: p.m.n, cert: cert, iat: p.w.now()}
	if revoked, err := p.revoked(context.Background(), cert); revoked || err != nil {
		return err
	}
	p.sleep(p.m.flush()) // signature and journal
	passage, err := p.r.Pass()
	if err != nil {
		return err
	}
	defer passage.Leave()
	d.gate = p.w.now()
	p.stumble()
	if revoked, err := p.revoked(context.Background(), cert); revoked || err != nil {
		return err
	}
	p.stumble()
	if write := p.writing(); write < time.Second {
		p.sleep(write)
	} else {
		p.sleep(time.Second) // and the connection is closed
		return nil
	}
	if p.dead.Load() {
		return errGone
	}
	d.out = p.w.now()
	p.w.mu.Lock()
	p.w.decisions = append(p.w.decisions, d)
	p.w.mu.Unlock()
	return nil
}

// writing is how long a client takes to read its answer.
func (p *process) writing() time.Duration {
	if f := p.w.faults.flavour; f != "calm" && f != "staged" && p.m.chance(0.05) {
		return p.m.between(20*time.Millisecond, 1300*time.Millisecond)
	}
	return p.m.between(10*time.Microsecond, time.Millisecond)
}

const (
	certificates = 100
	operators    = 2
)

// A process has several connections, which may lead to different servers and be cut each for itself.
const (
	writing = iota // leases and changes
	following
	looking // of the registry
	links
)

// live is one life of a process, from its start to its end.
func (m *host) live() {
	w := m.w
	m.mu.Lock()
	m.incarnation++
	p := &process{w: w, m: m, done: make(chan struct{}), hint: make(chan struct{}, 1), known: make(map[int]bool)}
	p.end, p.stop = context.WithCancel(context.Background())
	incarnation := m.incarnation
	m.process = p
	m.mu.Unlock()
	defer close(p.done)
	defer p.stop()

	r, err := New(Config{
		Database: database{p}, Name: fmt.Sprint("replica", m.n), Incarnation: incarnation, Hints: p.hint, Clock: m,
		Durable: func(context.Context) (bool, error) { return w.isDurable() },
		Moved:   func(store.SystemID) { m.moved() }, Logger: w.log, reached: p.reached,
	})
	if err != nil {
		panic(err)
	}
	if w.mistake.rules != nil {
		w.mistake.rules(&r.rules)
	}
	p.r = r
	within, cancel := context.WithTimeout(p.end, 5*time.Second)
	defer cancel()
	if w.mistake.loadFirst {
		if p.load(within) != nil || r.Begin(within) != nil {
			return
		}
	} else if r.Begin(within) != nil || p.load(within) != nil {
		return
	}
	p.up.Store(true)
	var group sync.WaitGroup
	group.Go(func() { p.serve() })
	err = r.Run(p.end)
	p.up.Store(false)
	if err != nil && !p.dead.Load() {
		w.mu.Lock()
		for _, known := range []error{store.ErrLeaseLost, ErrRegressed, ErrOtherDatabase} {
			if errors.Is(err, known) {
				w.fatal[known]++
			}
		}
		w.mu.Unlock()
	}
	p.dead.Store(true)
	group.Wait()
}

func (w *world) isDurable() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	return w.quorum, w.askFails
}

func (m *host) moved() {
	if m.w.mistake.stay {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for link := range m.link {
		m.link[link], m.leaves[link] = m.link[writing], m.leaves[writing]
	}
}

// serve has clients ask for tokens until the process ends: most of them for the certificate that is revoked now.
func (p *process) serve() {
	var group sync.WaitGroup
	defer group.Wait()
	for p.up.Load() && !p.dead.Load() && p.end.Err() == nil {
		p.sleep(p.m.between(5*time.Millisecond, 55*time.Millisecond))
		p.w.mu.Lock()
		targets := p.w.targets
		p.w.mu.Unlock()
		cert := int(p.m.draw((*rand.Rand).Float64) * certificates)
		if n := int(p.m.draw((*rand.Rand).Float64) * (operators + 0.2)); n < operators {
			before := int(p.m.draw((*rand.Rand).Float64) * 5) // most often none: this one, and else one of the last ones
			cert = max(n, targets[n]-operators*max(0, before-1))
		}
		group.Go(func() {
			var none *NoLeaseError
			if err := p.issue(cert); errors.As(err, &none) && p.end.Err() == nil {
				p.w.mu.Lock()
				p.w.refused++
				p.w.mu.Unlock()
			}
		})
	}
}

// revoke is an operator's request at one replica.
func (p *process) revoke(ctx context.Context, cert int) (Effect, error) {
	p.freeze()
	type made struct {
		version int64
		already bool
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*time.Second)
	defer cancel()
	work, flush := p.m.between(time.Millisecond, 4*time.Millisecond), p.m.flush()
	done, err := ask(within, p, writing, func(s *server, slow func() time.Duration) (made, error) {
		version, already, err := s.revoke(cert, work, flush, slow())
		return made{version, already}, err
	})
	p.drop(store.Change{Thumbprints: [][32]byte{thumbprint(max(0, cert))}}) // what the store announces to its own process
	if err != nil {
		return Effect{}, err
	}
	if cert < 0 || done.already && p.w.mistake.noRetry {
		return Effect{}, nil
	}
	if p.m.chance(p.w.faults.crashAfter) {
		p.kill()
		return Effect{}, errGone
	}
	effect, err := p.r.Effective(ctx, done.version)
	if p.dead.Load() {
		return Effect{}, errGone
	}
	return effect, err
}

func (p *process) kill() {
	p.dead.Store(true)
	p.stop()
}

// hint tells some processes that there is a new version.
func (w *world) hint() {
	for _, m := range w.machines {
		m.mu.Lock()
		p := m.process
		m.mu.Unlock()
		if p == nil || m.draw((*rand.Rand).Float64) > w.faults.hints {
			continue
		}
		after := m.delay()
		w.wg.Go(func() {
			time.Sleep(after)
			if !m.isCut(following) && !p.dead.Load() {
				wake(p.hint)
			}
		})
	}
}

// serving returns a process that serves, or nil.
func (w *world) serving(rng *rand.Rand) *process {
	m := w.machines[rng.IntN(len(w.machines))]
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.process; p != nil && p.up.Load() && !p.dead.Load() {
		return p
	}
	return nil
}

// operate revokes one certificate after the other, and repeats what did not succeed.
func (w *world) operate(n int) {
	rng := w.rng("operator", n)
	time.Sleep(3500*time.Millisecond + time.Duration(n)*211*time.Millisecond)
	for cert := n; cert < certificates && !w.over(); cert += operators {
		w.mu.Lock()
		w.targets[n] = cert
		w.mu.Unlock()
		time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond)
		for !w.over() && !w.tryRevoke(rng, cert) {
			time.Sleep(time.Duration(10+rng.IntN(300)) * time.Millisecond)
		}
		time.Sleep(time.Duration(300+rng.IntN(800)) * time.Millisecond)
	}
}

func (w *world) tryRevoke(rng *rand.Rand, cert int) bool {
	p := w.serving(rng)
	if p == nil {
		return false
	}
	patience := 20 * time.Second
	if rng.Float64() < w.faults.impatient {
		patience = time.Duration(50+rng.IntN(1500)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	asked := w.now()
	effect, err := p.revoke(ctx, cert)
	now := w.now()
	var pending *PendingError
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.revocations = append(w.revocations, revocation{cert: cert, asked: asked, returned: now, early: effect.Early, single: effect.SingleNode})
	case errors.As(err, &pending):
		p.m.mu.Lock()
		left := pending.By.Sub(w.started.Add(p.m.ran() - time.Hour + p.m.jump))
		p.m.mu.Unlock()
		if !w.mistake.wallClock && left <= Settled {
			w.revocations = append(w.revocations, revocation{cert: cert, asked: asked, returned: now + left + left/900, by: true})
		}
	}
	return err == nil
}

// change makes changes that revoke nothing.
func (w *world) change() {
	rng := w.rng("changes", 0)
	for !w.over() {
		time.Sleep(time.Duration(50+rng.IntN(500)) * time.Millisecond)
		if p := w.serving(rng); p != nil {
			w.wg.Go(func() { _, _ = p.revoke(context.Background(), -1) })
		}
	}
}

// disturb does something about every so often, until the faults are over.
func (w *world) disturb(what string, n int, every time.Duration, do func(rng *rand.Rand)) {
	if every == 0 {
		return
	}
	w.wg.Go(func() {
		rng := w.rng(what, n)
		for {
			time.Sleep(time.Duration((0.1 + 1.8*rng.Float64()) * float64(every)))
			if w.over() || w.isHealing() {
				return
			}
			do(rng)
		}
	})
}

func some(rng *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(rng.Float64()*float64(b-a))
}

// trouble starts everything that goes wrong at one machine.
func (w *world) trouble(m *host) {
	f := w.faults
	w.disturb("cut", m.n, f.cuts, func(rng *rand.Rand) {
		which := [][]int{{writing, following, looking}, {following, looking}, {writing, looking}, {following}}[rng.IntN(4)]
		m.mu.Lock()
		m.cut(some(rng, 100*time.Millisecond, 6*time.Second), which...)
		m.mu.Unlock()
	})
	if f.naps && m.n > 0 {
		f.stops = 0 // whoever sleeps himself waits longer
	}
	w.disturb("stop", m.n, f.stops, func(rng *rand.Rand) {
		d := some(rng, 50*time.Millisecond, 950*time.Millisecond)
		if f.naps {
			d = some(rng, 100*time.Millisecond, 600*time.Millisecond)
		} else if rng.IntN(2) == 0 {
			d = some(rng, time.Second, 6*time.Second)
		}
		m.mu.Lock()
		m.stopped = w.now() + d
		m.mu.Unlock()
		time.Sleep(d)
		m.mu.Lock()
		m.slept += d
		m.mu.Unlock()
	})
	w.disturb("jump", m.n, f.jumps, func(rng *rand.Rand) {
		d := some(rng, 100*time.Millisecond, 990*time.Millisecond)
		if rng.IntN(4) == 0 {
			d = some(rng, time.Second, 8*time.Second)
		}
		if rng.IntN(3) > 0 {
			d = -d
		}
		m.mu.Lock()
		m.jump += d
		m.mu.Unlock()
	})
	w.disturb("restart", m.n, f.restarts, func(rng *rand.Rand) {
		m.mu.Lock()
		p := m.process
		m.mu.Unlock()
		switch {
		case p == nil:
		case rng.IntN(2) == 0:
			p.kill()
		default:
			p.stop()
		}
	})
}

// inhabit keeps a process alive on a machine.
func (w *world) inhabit(m *host) {
	rng := w.rng("life", m.n)
	for !w.over() {
		m.live()
		m.mu.Lock()
		away := m.away - w.now()
		m.mu.Unlock()
		time.Sleep(max(some(rng, 50*time.Millisecond, 900*time.Millisecond), away))
	}
}

// fail makes what happens to the database happen, once.
func (w *world) fail() {
	f := w.faults
	rng := w.rng("database", 0)
	at := some(rng, 4*time.Second, f.length/2)
	if f.absent {
		at = 4 * time.Second
	}
	if f.failover && !w.quorum {
		// A replica that starts right before: its row is in what is lost, and it hears of nothing for a while.
		m := w.machines[rng.IntN(len(w.machines))]
		m.mu.Lock()
		m.away = at - some(rng, 300*time.Millisecond, 1100*time.Millisecond)
		m.mu.Unlock()
		time.Sleep(at - 3*time.Second)
		m.mu.Lock()
		p := m.process
		m.mu.Unlock()
		if p != nil {
			p.stop()
		}
		time.Sleep(at - w.now())
		m.mu.Lock()
		m.cut(some(rng, 0, 5*time.Second), writing, following, looking)
		m.mu.Unlock()
	} else {
		time.Sleep(at)
	}
	switch {
	case f.failover:
		w.promote(rng)
	case f.serverRestart:
		w.restart(rng, -1)
	case f.regress:
		w.restart(rng, some(rng, 500*time.Millisecond, 4*time.Second))
	case f.absent:
		m := w.machines[0]
		m.mu.Lock()
		m.cut(36*time.Second, writing, following, looking)
		m.mu.Unlock()
	}
}

// promote makes the standby the primary. The former one dies, or answers those who are connected to it still.
func (w *world) promote(rng *rand.Rand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	former := w.servers[len(w.servers)-1]
	next := newServer(w, former.timeline+1)
	lag := time.Duration(0)
	if !w.quorum {
		lag = some(rng, 1200*time.Millisecond, w.faults.lag)
	}
	next.rows, next.log = former.replay(w.now() - lag)
	w.lose(former.rows, next.rows)
	former.alone, former.up = true, w.faults.split
	w.servers = append(w.servers, next)
	for _, m := range w.machines {
		m.mu.Lock()
		for link := range m.leaves {
			m.leaves[link] = w.now() + some(rng, 0, 9*time.Second)
			if !w.faults.split {
				m.leaves[link] = w.now() + some(rng, 0, 1500*time.Millisecond)
			}
		}
		m.mu.Unlock()
	}
}

// restart stops the server for a while. With back it comes up as it was that long ago.
func (w *world) restart(rng *rand.Rand, back time.Duration) {
	w.mu.Lock()
	s := w.servers[len(w.servers)-1]
	s.up = false
	s.lives++
	w.mu.Unlock()
	time.Sleep(some(rng, 100*time.Millisecond, 2500*time.Millisecond))
	w.mu.Lock()
	defer w.mu.Unlock()
	before := s.rows
	s.rows, s.log = s.replay(w.now() - max(0, back))
	w.lose(before, s.rows)
	s.lives++
	s.up, s.startedAt = true, time.Now()
}

// lose notes which revocations were seen and are gone. w.mu is held.
func (w *world) lose(before, after rows) {
	for cert, version := range before.revoked {
		if after.revoked[cert] != version {
			w.lost[cert] = w.now()
		}
	}
}

// heal ends all faults and gives everybody time to come back.
func (w *world) heal() {
	w.mu.Lock()
	w.healing = true
	w.mu.Unlock()
	for _, m := range w.machines {
		m.mu.Lock()
		m.cutUntil, m.leaves, m.jump, m.away = [links]time.Duration{}, [links]time.Duration{}, 0, 0
		m.stopped = min(m.stopped, w.now())
		m.mu.Unlock()
	}
	time.Sleep(11 * time.Second)
}

// simulate runs one world in a bubble and returns what was wrong in it.
func simulate(t *testing.T, seed uint64, made mistake) *world {
	kinds := flavours()
	w := newWorld(seed, kinds[seed%uint64(len(kinds))], made)
	synctest.Test(t, func(*testing.T) {
		w.begin()
		for _, m := range w.machines {
			w.trouble(m)
		}
		for n := range operators {
			w.wg.Go(func() { w.operate(n) })
		}
		w.wg.Go(w.change)
		w.wg.Go(w.fail)
		time.Sleep(w.faults.length)
		w.heal()
		w.checkAlive()
		w.finish()
	})
	w.judge()
	return w
}

func newWorld(seed uint64, f faults, made mistake) *world {
	return &world{seed: seed, faults: f, quorum: f.lag == 0, mistake: made, fatal: make(map[error]int), lost: make(map[int]time.Duration)}
}

// begin has a database, and processes on every machine. It is called in a bubble.
func (w *world) begin() {
	w.started = time.Now()
	w.servers = []*server{newServer(w, 1)}
	for n := range w.faults.machines {
		rng := w.rng("machine", n)
		m := &host{w: w, n: n, rng: rng, rate: 1 + (2*rng.Float64()-1)/1000}
		for link := range m.link {
			m.link[link] = w.servers[0]
		}
		w.machines = append(w.machines, m)
	}
	for _, m := range w.machines {
		w.wg.Go(func() { w.inhabit(m) })
	}
}

// finish ends everything and waits for it.
func (w *world) finish() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	for _, m := range w.machines {
		m.mu.Lock()
		p := m.process
		m.mu.Unlock()
		if p != nil {
			p.stop()
		}
	}
	w.wg.Wait()
}

// checkAlive notes what does not serve again though nothing is wrong any more.
func (w *world) checkAlive() {
	for _, m := range w.machines {
		m.mu.Lock()
		p := m.process
		m.mu.Unlock()
		if p == nil || !p.up.Load() {
			w.complain("machine %d does not serve", m.n)
			continue
		}
		if err := p.r.Live(); err != nil {
			w.complain("machine %d: %v", m.n, err)
		}
		w.lapses += int(p.r.Status().Lapses)
	}
}

func (w *world) complain(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf("seed %d (%s): ", w.seed, w.faults.flavour)+fmt.Sprintf(format, args...))
}

func (w *world) accuse(format string, args ...any) {
	w.unsafe = append(w.unsafe, fmt.Sprintf("seed %d (%s): ", w.seed, w.faults.flavour)+fmt.Sprintf(format, args...))
}

// judge is the oracle. Nothing was decided in favour of a certificate after its revocation had returned. What had been
// decided before may have left later only where the wait was for the end of leases; where every replica said that it had
// applied the revocation, nothing left afterwards at all.
func (w *world) judge() {
	slices.SortFunc(w.decisions, func(a, b decision) int { return int(a.gate - b.gate) })
	final := w.servers[len(w.servers)-1].rows
	for _, r := range w.revocations {
		if lost, ok := w.lost[r.cert]; ok && r.asked < lost && (w.faults.lag > 0 || w.faults.regress) {
			if !r.by && w.faults.lag > 0 && !r.single {
				w.accuse("the revocation of %d was lost, and nobody said that it may be", r.cert)
			}
			continue // what is not in the database is in force nowhere
		}
		if !r.by && final.revoked[r.cert] == 0 {
			w.accuse("the revocation of %d, which returned at %v, is gone", r.cert, r.returned)
		}
		for _, d := range w.decisions {
			switch {
			case d.cert != r.cert:
			case d.gate > r.returned:
				w.accuse("machine %d decided for %d at %v (iat %v), after its revocation had returned at %v %+v", d.machine, d.cert, d.gate, d.iat, r.returned, r)
			case r.early && d.out > r.returned:
				w.accuse("a token for %d, decided by machine %d at %v, left at %v, after all had acknowledged at %v", d.cert, d.machine, d.gate, d.out, r.returned)
			case d.iat > d.gate:
				w.accuse("iat %v is after the gate at %v", d.iat, d.gate)
			}
		}
	}
	if w.faults.flavour != "calm" {
		return
	}
	if w.lapses > 0 || len(w.fatal) > 0 {
		w.complain("nothing was wrong, and leases lapsed %d times", w.lapses)
	}
	if len(w.revocations) < 5 || len(w.decisions) < 200 {
		w.complain("only %d revocations and %d decisions", len(w.revocations), len(w.decisions))
	}
	for _, r := range w.revocations {
		if !r.early || r.returned-r.asked > 400*time.Millisecond {
			w.complain("nothing was wrong, and the revocation of %d took %v", r.cert, r.returned-r.asked)
		}
	}
}
