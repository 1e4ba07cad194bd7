// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// staged runs f in a world where nothing goes wrong but what f does, four seconds after its beginning.
func staged(t *testing.T, machines int, f func(t *testing.T, w *world, first *process)) {
	t.Helper()
	w := newWorld(1, faults{flavour: "staged", machines: machines}, mistake{})
	synctest.Test(t, func(t *testing.T) {
		w.begin()
		time.Sleep(4 * time.Second)
		f(t, w, w.process(0))
		w.finish()
	})
}

func (w *world) process(n int) *process {
	w.machines[n].mu.Lock()
	defer w.machines[n].mu.Unlock()
	return w.machines[n].process
}

// server changes the database behind everybody's back.
func (w *world) server(change func(s *server)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.servers[len(w.servers)-1])
}

func (w *world) machine(n int, change func(m *host)) {
	w.machines[n].mu.Lock()
	defer w.machines[n].mu.Unlock()
	change(w.machines[n])
}

func (w *world) atStep(do func(*process, step)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onStep = do
}

// refused wants a refusal whose reason says what.
func refused(t *testing.T, p *process, what string) {
	t.Helper()
	var none *NoLeaseError
	if err := p.r.Live(); !errors.As(err, &none) || !strings.Contains(none.Reason, what) {
		t.Errorf("Live returned %v, want that %s", err, what)
	}
	if status := p.r.Status(); status.Remaining != 0 || !strings.Contains(status.Reason, what) {
		t.Errorf("status %+v, want that %s", status, what)
	}
}

func live(t *testing.T, p *process) {
	t.Helper()
	if err := p.r.Live(); err != nil {
		t.Error(err)
	}
}

// A database that is not the one of the beginning, or that has lost commits, is never believed again.
func TestWrongDatabase(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(s *server)
		want   error
		says   string
	}{
		"another system":        {func(s *server) { s.system = "two" }, ErrOtherDatabase, "another database"},
		"a version of the past": {func(s *server) { s.rows.version -= 2 }, ErrRegressed, "lost committed changes"},
	} {
		t.Run(name, func(t *testing.T) {
			staged(t, 1, func(t *testing.T, w *world, p *process) {
				for range 3 {
					if _, err := p.revoke(t.Context(), -1); err != nil {
						t.Error(err)
					}
				}
				time.Sleep(2 * time.Second)
				live(t, p)
				w.server(tt.change)
				time.Sleep(1100 * time.Millisecond)
				<-p.done
				refused(t, p, tt.says)
				if status := p.r.Status(); !errors.Is(status.Err, tt.want) {
					t.Errorf("the replica ended with %v, want %v", status.Err, tt.want)
				}
				w.mu.Lock()
				if w.fatal[tt.want] == 0 {
					t.Error("Run did not return it")
				}
				w.mu.Unlock()
				if e, err := p.r.Effective(t.Context(), 2); !errors.Is(err, store.ErrUnknown) {
					t.Errorf("effect %+v, %v on a database that is not believed", e, err)
				}
			})
		})
	}
}

// A server of a former timeline, which still takes writes, gives no lease; the one that took its place does.
func TestFormerPrimary(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		w.server(func(s *server) { s.timeline = 3 })
		time.Sleep(1100 * time.Millisecond)
		live(t, p)
		w.server(func(s *server) { s.timeline = 2 })
		time.Sleep(1100 * time.Millisecond)
		refused(t, p, "former server")
		w.server(func(s *server) { s.timeline = 3 })
		time.Sleep(300 * time.Millisecond)
		live(t, p)
	})
}

func TestClocks(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		jump, lead time.Duration
		void       bool
		back       time.Duration // until it serves again, with the clocks as they are; 0 for never
	}{
		"the wall clock, a little":             {jump: 900 * time.Millisecond},
		"the wall clock, forwards":             {jump: 1500 * time.Millisecond, void: true},
		"the wall clock, backwards":            {jump: -1500 * time.Millisecond, void: true},
		"the wall clock, far":                  {jump: 6 * time.Second, void: true},
		"the database's clock, a little":       {lead: 900 * time.Millisecond},
		"the database's clock, ahead":          {lead: 1500 * time.Millisecond, void: true},
		"the database's clock, behind":         {lead: -1500 * time.Millisecond, void: true},
		"the database's clock, far":            {lead: -6 * time.Second, void: true},
		"both clocks of the same machine":      {jump: 2 * time.Second, lead: 2 * time.Second, void: true, back: 1100 * time.Millisecond},
		"both clocks of the same machine, far": {jump: -6 * time.Second, lead: -6 * time.Second, void: true, back: 4500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			staged(t, 1, func(t *testing.T, w *world, p *process) {
				w.mu.Lock()
				w.lead = tt.lead
				w.mu.Unlock()
				w.machine(0, func(m *host) { m.jump = tt.jump })
				if tt.jump > clockSlack || tt.jump < -clockSlack {
					refused(t, p, "wall clock") // at once, before any renewal
				}
				time.Sleep(1050 * time.Millisecond)
				far := max(tt.jump.Abs(), tt.lead.Abs()) > clockAlarm
				if status := p.r.Status(); status.ClockAlarm != far {
					t.Errorf("alarm: %v", status.ClockAlarm)
				}
				if tt.back == 0 || far {
					if got := p.r.Live() != nil; got != tt.void {
						t.Errorf("refused: %v, want %v: %+v", got, tt.void, p.r.Status())
					}
				}
				if far {
					time.Sleep(Term - 1100*time.Millisecond)
					refused(t, p, "wall clock") // still, also where the clocks have agreed since
				}
				time.Sleep(tt.back)
				if got := p.r.Live() != nil; got != (tt.void && tt.back == 0) {
					t.Errorf("refused: %v: %+v", got, p.r.Status())
				}
				w.mu.Lock()
				w.lead = 0
				w.mu.Unlock()
				w.machine(0, func(m *host) { m.jump = 0 })
				time.Sleep(5 * time.Second)
				live(t, p)
			})
		})
	}
}

// A replica ends when a later start of it has its name, and comes back when its row was only removed.
func TestRowTaken(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		w.server(func(s *server) { delete(s.rows.leases, "replica0") })
		seen := false
		for end := w.now() + 1300*time.Millisecond; w.now() < end; time.Sleep(time.Millisecond) {
			if p.r.Live() != nil && !seen {
				seen = true
				refused(t, p, "its row was removed")
			}
		}
		if !seen {
			t.Error("a lease without a row")
		}
		live(t, p)
		w.server(func(s *server) { s.rows.leases["replica0"] = store.Lease{Replica: "replica0", Incarnation: 100} })
		time.Sleep(1100 * time.Millisecond)
		<-p.done
		if status := p.r.Status(); !errors.Is(status.Err, store.ErrLeaseLost) || p.r.Live() == nil {
			t.Errorf("the replica goes on though another has its name: %+v", status)
		}
		if e, err := p.r.Effective(t.Context(), 1); err != nil || e.Early || e.Took < Settled {
			t.Errorf("without a row nothing is in force before the leases have ended: %+v, %v", e, err)
		}
	})
}

// What was sent is done even when the answer is lost: that the row is there already is no other process' doing.
func TestBeginAnswerLost(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		if err := p.r.insert(t.Context()); err != nil {
			t.Errorf("after its row was written already: %v", err)
		}
		again, err := New(Config{Database: database{p}, Name: "replica0", Incarnation: p.r.cfg.Incarnation, Clock: p.m})
		if err != nil {
			t.Error(err)
			return
		}
		if err := again.Begin(t.Context()); !errors.Is(err, store.ErrLeaseLost) {
			t.Errorf("a second process of the same incarnation began: %v", err)
		}
	})
}

// A replica that is gone is forgotten after ten terms, no earlier, and not while it renews or while nobody looked.
func TestReap(t *testing.T) {
	t.Parallel()
	there := func(w *world) (ok bool) {
		w.server(func(s *server) { _, ok = s.rows.leases["replica1"] })
		return ok
	}
	t.Run("gone", func(t *testing.T) {
		staged(t, 2, func(t *testing.T, w *world, _ *process) {
			w.machine(1, func(m *host) { m.away = time.Hour })
			w.process(1).kill()
			time.Sleep(10 * Term)
			if !there(w) {
				t.Error("removed within ten terms")
			}
			time.Sleep(3 * lookEvery)
			if there(w) {
				t.Error("not removed")
			}
			w.machine(1, func(m *host) { m.away = 0 })
		})
	})
	t.Run("asked for", func(t *testing.T) {
		staged(t, 2, func(t *testing.T, w *world, p *process) {
			if gone, err := p.r.Reset(t.Context()); err != nil || len(gone) > 0 || !there(w) {
				t.Errorf("removed %q of replicas that renew, %v", gone, err)
			}
			w.machine(1, func(m *host) { m.away = time.Hour })
			w.process(1).kill()
			began := time.Now()
			gone, err := p.r.Reset(t.Context())
			if err != nil || len(gone) != 1 || gone[0] != "replica1" || there(w) {
				t.Errorf("removed %q, %v", gone, err)
			}
			if took := time.Since(began); took < Term {
				t.Errorf("removed after %s, when it may still have had a lease", took)
			}
			w.machine(1, func(m *host) { m.away = 0 })
		})
	})
	t.Run("no lease", func(t *testing.T) {
		staged(t, 2, func(t *testing.T, w *world, _ *process) {
			w.machine(1, func(m *host) { m.away = time.Hour })
			w.process(1).kill()
			w.mu.Lock()
			w.lead = 2 * time.Second // so that the other one has none
			w.mu.Unlock()
			time.Sleep(12 * Term)
			if !there(w) {
				t.Error("removed by a replica without a lease")
			}
			w.machine(1, func(m *host) { m.away = 0 })
		})
	})
	t.Run("the database was away", func(t *testing.T) {
		staged(t, 2, func(t *testing.T, w *world, p *process) {
			time.Sleep(9 * Term)
			w.server(func(s *server) { s.up = false })
			w.machine(1, func(m *host) { m.cut(time.Minute, writing) }) // comes back later than the other
			time.Sleep(10 * Term)
			w.server(func(s *server) { s.up = true })
			time.Sleep(3 * Term)
			live(t, p)
			if !there(w) || w.reaped.Load() > 0 {
				t.Error("removed though it could not have renewed")
			}
		})
	})
}

// The wait of whoever has committed something, in all its ways.
func TestEffective(t *testing.T) {
	t.Parallel()
	commit := func(t *testing.T, w *world, p *process) (version int64) {
		t.Helper()
		if _, err := p.revoke(t.Context(), -1); err != nil {
			t.Error(err)
		}
		w.server(func(s *server) { version = s.rows.version })
		return version
	}
	whole := func(t *testing.T, e Effect, err error) {
		t.Helper()
		if err != nil || e.Early || e.Took < Settled || e.Took > Settled+100*time.Millisecond {
			t.Errorf("effect %+v, %v, want one after %v", e, err, Settled)
		}
	}
	early := func(t *testing.T, e Effect, err error) {
		t.Helper()
		if err != nil || !e.Early || e.Took > 400*time.Millisecond {
			t.Errorf("effect %+v, %v, want an early one", e, err)
		}
	}
	for name, test := range map[string]func(t *testing.T, w *world, p *process){
		"all there, by polling alone": func(t *testing.T, w *world, p *process) {
			e, err := p.r.Effective(t.Context(), commit(t, w, p))
			early(t, e, err)
		},
		"repeated": func(t *testing.T, w *world, p *process) {
			w.machine(1, func(m *host) { m.cut(20*time.Second, writing, following) })
			v := commit(t, w, p)
			for range 2 {
				e, err := p.r.Effective(t.Context(), v)
				whole(t, e, err)
			}
			time.Sleep(20 * time.Second)
			e, err := p.r.Effective(t.Context(), v)
			early(t, e, err)
		},
		"one is cut off": func(t *testing.T, w *world, p *process) {
			w.machine(1, func(m *host) { m.cut(time.Minute, writing, following) })
			e, err := p.r.Effective(t.Context(), commit(t, w, p))
			whole(t, e, err)
			refused(t, w.process(1), "renewed")
			if s := w.process(1).r.Status(); s.Lapses != 1 || s.Failures == 0 {
				t.Errorf("the one that is cut off: %+v", s)
			}
			w.machine(1, func(m *host) { m.cutUntil = [links]time.Duration{} })
			time.Sleep(4 * time.Second)
			live(t, w.process(1))
			e, err = p.r.Effective(t.Context(), commit(t, w, p))
			early(t, e, err)
		},
		"a decision is on its way out": func(t *testing.T, w *world, p *process) {
			passage, err := w.process(1).r.Pass()
			if err != nil {
				t.Error(err)
				return
			}
			v := commit(t, w, p)
			go func() {
				time.Sleep(1500 * time.Millisecond)
				passage.Leave()
			}()
			e, err := p.r.Effective(t.Context(), v)
			if err != nil || !e.Early || e.Took < 1400*time.Millisecond || e.Took > 1700*time.Millisecond {
				t.Errorf("effect %+v, %v of what a decision of before does not know", e, err)
			}
		},
		"the database restarts while the rows are read": func(t *testing.T, w *world, p *process) {
			v := commit(t, w, p)
			w.atStep(func(by *process, s step) {
				if by == p && s == stepRead {
					w.atStep(nil)
					w.server(func(s *server) { s.startedAt = time.Now() })
					time.Sleep(1100 * time.Millisecond)
				}
			})
			e, err := p.r.Effective(t.Context(), v)
			whole(t, e, err)
		},
		"it ends while the rows are read": func(t *testing.T, w *world, p *process) {
			v := commit(t, w, p)
			passage, _ := p.r.Pass() // so that its row stays for now
			w.atStep(func(by *process, s step) {
				if by == p && s == stepRead {
					w.atStep(nil)
					p.stop()
					time.Sleep(100 * time.Millisecond)
				}
			})
			e, err := p.r.Effective(t.Context(), v)
			whole(t, e, err)
			passage.Leave()
		},
		"one is dead": func(t *testing.T, w *world, p *process) {
			w.machine(1, func(m *host) { m.away = time.Hour })
			w.process(1).kill()
			e, err := p.r.Effective(t.Context(), commit(t, w, p))
			whole(t, e, err)
			w.machine(1, func(m *host) { m.away = 0 })
		},
		"the rows cannot be read": func(t *testing.T, w *world, p *process) {
			v := commit(t, w, p)
			w.machine(0, func(m *host) { m.cut(time.Minute, writing) })
			e, err := p.r.Effective(t.Context(), v)
			whole(t, e, err)
		},
		"the database restarted": func(t *testing.T, w *world, p *process) {
			w.server(func(s *server) { s.startedAt = time.Now() })
			e, err := p.r.Effective(t.Context(), commit(t, w, p))
			whole(t, e, err)
			e, err = p.r.Effective(t.Context(), commit(t, w, p))
			early(t, e, err)
		},
		"the caller leaves": func(t *testing.T, w *world, p *process) {
			w.machine(1, func(m *host) { m.cut(time.Minute, writing, following) })
			v := commit(t, w, p)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := p.m.Wall()
			e, err := p.r.Effective(ctx, v)
			pending, ok := errors.AsType[*PendingError](err)
			if !ok || !errors.Is(err, context.DeadlineExceeded) || !near(pending.By.Sub(began), Settled, 10*time.Millisecond) ||
				!strings.Contains(err.Error(), "committed, effective by ") {
				t.Errorf("effect %+v, %v (%v after)", e, err, pending.By.Sub(began))
			}
		},
		"the commit is not there": func(t *testing.T, w *world, p *process) {
			if e, err := p.r.Effective(t.Context(), commit(t, w, p)+1); !errors.Is(err, store.ErrUnknown) {
				t.Errorf("effect %+v, %v of a version that the database does not have", e, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			staged(t, 2, func(t *testing.T, w *world, p *process) {
				time.Sleep(time.Second)
				test(t, w, p)
			})
		})
	}
}

// A replica that stops grants nothing more, lets decisions leave that were made, and only then removes its row; one whose
// answer is stuck leaves the row to the others, who wait for the lease to end.
func TestStop(t *testing.T) {
	t.Parallel()
	for _, stuck := range []bool{false, true} {
		t.Run(fmt.Sprint("stuck ", stuck), func(t *testing.T) {
			staged(t, 1, func(t *testing.T, w *world, p *process) {
				p.up.Store(false) // no other requests
				time.Sleep(2 * time.Second)
				passage, err := p.r.Pass()
				if err != nil {
					t.Error(err)
					return
				}
				w.machine(0, func(m *host) { m.away = time.Hour })
				p.stop()
				rows := func() (n int) {
					w.server(func(s *server) { n = len(s.rows.leases) })
					return n
				}
				time.Sleep(500 * time.Millisecond)
				if rows() != 1 || p.r.Live() == nil {
					t.Errorf("%d rows, and a lease: %v, while a decision is on its way out", rows(), p.r.Live())
				}
				if !stuck {
					passage.Leave()
				}
				<-p.done
				if want := map[bool]int{false: 0, true: 1}[stuck]; rows() != want {
					t.Errorf("%d rows at the end, want %d", rows(), want)
				}
				if stuck {
					passage.Leave()
				}
			})
		})
	}
}

// Acknowledgements are not written more than 20 times a second, however much changes.
func TestSpacing(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		renewals := func() (n int64) {
			w.server(func(s *server) { n = s.rows.leases["replica0"].Renewals })
			return n
		}
		before := renewals()
		for end := w.now() + 2*time.Second; w.now() < end; {
			if _, err := p.revoke(t.Context(), -1); err != nil {
				t.Error(err)
			}
			wake(p.hint)
		}
		if n := renewals() - before; n < 10 || n > 41 {
			t.Errorf("%d renewals in two seconds of changes", n)
		}
		before = renewals()
		time.Sleep(10 * time.Second)
		if n := renewals() - before; n < 9 || n > 12 {
			t.Errorf("%d renewals in ten quiet seconds", n)
		}
	})
}

// While changes cannot be read, or make no sense, a lease ends as if it had not been renewed.
func TestChangesNotFollowed(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(w *world){
		"cut off": func(w *world) { w.machine(0, func(m *host) { m.cut(10*time.Second, following) }) },
		"nonsense": func(w *world) {
			w.server(func(s *server) {
				c := s.rows.changes[s.rows.version]
				c.Version--
				s.rows.changes[s.rows.version] = c
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			staged(t, 1, func(t *testing.T, w *world, p *process) {
				if name == "cut off" {
					break_(w)
				}
				if _, err := p.revoke(t.Context(), -1); err != nil {
					t.Error(err)
				}
				if name != "cut off" {
					break_(w)
				}
				time.Sleep(1800 * time.Millisecond)
				live(t, p) // by what was renewed before
				time.Sleep(1400 * time.Millisecond)
				refused(t, p, "not renewed in time")
				if s := p.r.Status(); s.Newest <= s.Applied || s.RenewedAgo > renewEvery+time.Millisecond*100 {
					t.Errorf("status %+v", s)
				}
				w.machine(0, func(m *host) { m.cut(0, following) })
				if name != "cut off" {
					w.server(func(s *server) {
						c := s.rows.changes[s.rows.version]
						c.Version++
						s.rows.changes[s.rows.version] = c
					})
				}
				time.Sleep(2200 * time.Millisecond)
				live(t, p)
			})
		})
	}
}

// What a commit survives is asked at the start, each minute and when the database has moved; who cannot say does not know.
func TestDurable(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		want := func(more int, durable, quorum bool, fails error) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			if got := p.r.Status().Durable; w.asked != more || got != durable {
				t.Errorf("asked %d times, want %d; durable: %v, want %v", w.asked, more, got, durable)
			}
			w.asked, w.quorum, w.askFails = 0, quorum, fails
		}
		want(1, true, false, nil)
		time.Sleep(50 * time.Second)
		want(0, true, false, nil)
		time.Sleep(10 * time.Second)
		want(1, false, true, nil)
		w.server(func(s *server) { s.startedAt = time.Now() })
		time.Sleep(1100 * time.Millisecond)
		want(1, true, true, errors.New("away"))
		time.Sleep(65 * time.Second)
		want(1, false, true, nil)
	})
	r := open(t)
	r.durable = true
	if r.askDurable(t.Context()); r.Status().Durable {
		t.Error("durable, though nobody can be asked")
	}
}

// A lease that ends says why in the log: a process that stood still had no failure to tell of.
func TestLapseSaysWhy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		break_ func(w *world)
		want   string
	}{
		"the process was stopped": {func(w *world) {
			w.machine(0, func(m *host) { m.stopped = w.now() + 8*time.Second })
		}, `reason="this process stood still for about 8`},
		"the database was away": {func(w *world) {
			w.machine(0, func(m *host) { m.cut(8*time.Second, writing) })
		}, `reason="it cannot be renewed"`},
		"changes did not come": {func(w *world) {
			w.machine(0, func(m *host) { m.cut(8*time.Second, following) })
			if _, err := w.process(0).revoke(t.Context(), -1); err != nil {
				t.Error(err)
			}
		}, `reason="changes were not applied in time"`},
	} {
		t.Run(name, func(t *testing.T) {
			var logs bytes.Buffer
			w := newWorld(1, faults{flavour: "staged", machines: 1}, mistake{})
			w.log = slog.New(slog.NewTextHandler(&logs, nil))
			synctest.Test(t, func(t *testing.T) {
				w.begin()
				time.Sleep(4 * time.Second)
				tt.break_(w)
				time.Sleep(16 * time.Second)
				live(t, w.process(0))
				w.finish()
			})
			var lapses []string
			for line := range strings.Lines(logs.String()) {
				if strings.Contains(line, "the lease has ended") {
					lapses = append(lapses, line)
				}
			}
			if len(lapses) != 1 || !strings.Contains(lapses[0], tt.want) {
				t.Errorf("want %s once: %s", tt.want, logs.String())
			}
		})
	}
}

// While the database is down it is tried four times a second, and the service is back soon after it is.
func TestServerDown(t *testing.T) {
	t.Parallel()
	staged(t, 1, func(t *testing.T, w *world, p *process) {
		time.Sleep(100 * time.Millisecond)
		w.server(func(s *server) { s.up = false })
		time.Sleep(2 * time.Second)
		live(t, p)
		time.Sleep(3 * time.Second)
		refused(t, p, "not renewed in time")
		if n := p.r.Status().Failures; n < 15 || n > 21 {
			t.Errorf("%d tries in five seconds", n)
		}
		w.server(func(s *server) { s.up = true })
		time.Sleep(400 * time.Millisecond)
		live(t, p)
		if err := p.r.Run(t.Context()); err == nil || p.r.Live() != nil {
			t.Errorf("run a second time: %v, %v", err, p.r.Live())
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{{Name: "a", Incarnation: 1}, {Database: database{}, Incarnation: 1}, {Database: database{}, Name: "a"}} {
		if r, err := New(cfg); err == nil {
			t.Errorf("a replica of %+v: %+v", cfg, r)
		}
	}
	r, err := New(Config{Database: database{}, Name: "a", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("Run before Begin")
	}
}
