// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// The simulated database: one server at a time that takes writes, and behind it what a standby has received. What a
// process asks of it goes over a network that delays, loses and repeats.

// rows is the state of a database.
type rows struct {
	version int64
	next    int64 // of the sequence that one mistake takes versions from
	changes map[int64]store.Change
	revoked map[int]int64 // certificate -> the version that revoked it
	leases  map[string]store.Lease
}

func noRows() rows {
	return rows{changes: make(map[int64]store.Change), revoked: make(map[int]int64), leases: make(map[string]store.Lease)}
}

// logged is what a commit did, as a standby receives it.
type logged struct {
	at time.Duration
	do func(*rows)
}

// server is one life of the database on one machine. w.mu guards it.
type server struct {
	w         *world
	rows      rows
	log       []logged
	system    string
	timeline  int64
	startedAt time.Time
	lives     int           // counts restarts: what was under way at one is lost
	up        bool          // it answers
	alone     bool          // it takes no more writes: its standby was promoted
	writer    chan struct{} // the lock that every change takes
}

func newServer(w *world, timeline int64) *server {
	return &server{w: w, rows: noRows(), system: "one", timeline: timeline, startedAt: time.Now(), up: true, writer: make(chan struct{}, 1)}
}

var (
	errDown = errors.New("the server is down")
	errGone = errors.New("the process is dead")
)

// read sees what is committed, in the life of the server that it returns.
func (s *server) read(f func(*rows)) (life int, err error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.up {
		return 0, errDown
	}
	f(&s.rows)
	return s.lives, nil
}

// commit makes a write durable and then visible. With a quorum the standby has it before anybody sees it; a server whose
// standby was promoted never gets there.
//
// life is the one in which the transaction began: it does not survive a restart.
func (s *server) commit(life int, do func(*rows), flush, reply time.Duration) error {
	time.Sleep(flush)
	s.w.mu.Lock()
	if !s.up || s.lives != life {
		s.w.mu.Unlock()
		return store.ErrUnknown
	}
	if s.alone {
		s.w.mu.Unlock()
		return errors.Join(store.ErrUnknown, errors.New("no standby answers"))
	}
	s.log = append(s.log, logged{at: s.w.now(), do: do})
	quorum := s.w.quorum
	s.w.mu.Unlock()
	if quorum {
		time.Sleep(reply)
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.up || s.lives != life || s.alone {
		return store.ErrUnknown // here it is not, but in the log it is
	}
	do(&s.rows)
	return nil
}

// replay returns what the log says up to a time.
func (s *server) replay(until time.Duration) (rows, []logged) {
	out := noRows()
	n := 0
	for n < len(s.log) && s.log[n].at <= until {
		s.log[n].do(&out)
		n++
	}
	return out, append([]logged(nil), s.log[:n]...)
}

// revoke is the transaction that revokes a certificate, or changes something else for a negative one. It returns the
// version that did, also when that was an earlier transaction.
func (s *server) revoke(cert int, work, flush, reply time.Duration) (version int64, already bool, err error) {
	sequence := s.w.mistake.sequence
	if !sequence {
		s.writer <- struct{}{}
		defer func() { <-s.writer }()
	}
	life, err := s.read(func(d *rows) {
		if cert >= 0 {
			version, already = d.revoked[cert], d.revoked[cert] != 0
		}
		if sequence && !already {
			d.next = max(d.next, d.version) + 1
			version = d.next
		}
	})
	if err != nil || already {
		return version, already, err
	}
	time.Sleep(work)
	if !sequence {
		if _, err := s.read(func(d *rows) { version = d.version + 1 }); err != nil {
			return 0, false, err
		}
	}
	c := store.Change{Version: version, ClientIDs: []string{"noise"}}
	if cert >= 0 {
		c = store.Change{Version: version, Thumbprints: [][32]byte{thumbprint(cert)}, Revoked: true}
	}
	err = s.commit(life, func(d *rows) {
		d.version = max(d.version, version)
		d.changes[version] = c
		if cert >= 0 && d.revoked[cert] == 0 {
			d.revoked[cert] = version
		}
	}, flush, reply)
	if err == nil {
		s.w.hint()
	}
	return version, false, err
}

func thumbprint(cert int) (t [32]byte) {
	t[0], t[1] = byte(cert), byte(cert>>8)
	return t
}

func certificate(t [32]byte) int { return int(t[0]) | int(t[1])<<8 }

// database is what one process has of it. It has two connections, one of them for writes.
type database struct{ p *process }

var _ Database = database{}

// ask sends a request and waits for the answer. What was sent is done even when nobody waits any more.
func ask[T any](ctx context.Context, p *process, link int, do func(s *server, slow func() time.Duration) (T, error)) (T, error) {
	var none T
	p.freeze()
	if p.dead.Load() {
		return none, errGone
	}
	type answer struct {
		value T
		err   error
	}
	w, m := p.w, p.m
	there, back, again := m.delay(), m.delay(), m.chance(w.faults.repeat)
	lost, unheard := m.chance(w.faults.loss), m.chance(w.faults.loss)
	if link == writing && m.chance(w.faults.slowAnswers) {
		back = m.between(100*time.Millisecond, 1400*time.Millisecond)
	}
	answered := make(chan answer, 1)
	w.wg.Go(func() {
		time.Sleep(there)
		if lost || m.isCut(link) {
			return
		}
		s := m.server(link)
		value, err := do(s, m.flush)
		if again {
			w.wg.Go(func() {
				time.Sleep(m.delay() + m.delay())
				_, _ = do(s, m.flush)
			})
		}
		time.Sleep(back)
		if unheard || m.isCut(link) {
			return
		}
		answered <- answer{value, err}
	})
	var a answer
	select {
	case a = <-answered:
	case <-ctx.Done():
		a.err = errors.Join(store.ErrUnknown, ctx.Err())
	}
	p.freeze()
	if p.dead.Load() {
		return none, errGone
	}
	if a.err != nil {
		m.reconnect(link)
	}
	return a.value, a.err
}

func (d database) BeginLease(ctx context.Context, l store.Lease) error {
	_, err := ask(ctx, d.p, writing, func(s *server, slow func() time.Duration) (struct{}, error) {
		taken := false
		life, err := s.read(func(r *rows) { taken = r.leases[l.Replica].Incarnation >= l.Incarnation })
		if err != nil {
			return struct{}{}, err
		}
		if taken {
			return struct{}{}, store.ErrLeaseLost
		}
		return struct{}{}, s.commit(life, func(r *rows) { r.leases[l.Replica] = l }, slow(), slow())
	})
	return err
}

// renewed is a renewal as one statement does it: it returns what it saw when it began, and commits later.
func (s *server) renewed(l store.LeaseRenewal, flush, reply time.Duration) (out store.Renewed, err error) {
	lost := false
	life, err := s.read(func(r *rows) {
		lost = r.leases[l.Replica].Incarnation != l.Incarnation
		out = store.Renewed{Version: r.version, Now: s.w.wall(), System: s.id()}
	})
	if err != nil {
		return store.Renewed{}, err
	}
	if lost {
		return store.Renewed{}, store.ErrLeaseLost
	}
	return out, s.commit(life, func(r *rows) {
		row, ok := r.leases[l.Replica]
		if !ok || row.Incarnation != l.Incarnation {
			return
		}
		row.Renewals++
		row.Applied = l.Applied
		r.leases[l.Replica] = row
	}, flush, reply)
}

// id names the server's life. w.mu is held.
func (s *server) id() store.SystemID {
	return store.SystemID{System: s.system, Timeline: s.timeline, StartedAt: s.startedAt}
}

func (d database) RenewLease(ctx context.Context, l store.LeaseRenewal) (store.Renewed, error) {
	out, err := ask(ctx, d.p, writing, func(s *server, slow func() time.Duration) (store.Renewed, error) {
		return s.renewed(l, slow(), slow())
	})
	if err != nil {
		return store.Renewed{}, err
	}
	return out, nil
}

// readRenewal is what a mistake takes for a renewal.
func (d database) readRenewal(ctx context.Context) (store.Renewed, error) {
	return ask(ctx, d.p, writing, func(s *server, _ func() time.Duration) (out store.Renewed, err error) {
		_, err = s.read(func(r *rows) { out = store.Renewed{Version: r.version, Now: s.w.wall(), System: s.id()} })
		return out, err
	})
}

func (d database) Leases(ctx context.Context) ([]store.Lease, error) {
	return ask(ctx, d.p, writing, func(s *server, _ func() time.Duration) (list []store.Lease, err error) {
		_, err = s.read(func(r *rows) {
			for l := range maps.Values(r.leases) {
				list = append(list, l)
			}
		})
		return list, err
	})
}

func (d database) EndLease(ctx context.Context, replica string, incarnation uint64) error {
	return d.drop(ctx, replica, func(l store.Lease) bool { return l.Incarnation == incarnation })
}

func (d database) ReapLease(ctx context.Context, seen store.Lease) error {
	d.p.w.reaped.Add(1)
	return d.drop(ctx, seen.Replica, func(l store.Lease) bool {
		return l.Incarnation == seen.Incarnation && l.Renewals == seen.Renewals
	})
}

func (d database) drop(ctx context.Context, replica string, same func(store.Lease) bool) error {
	_, err := ask(ctx, d.p, writing, func(s *server, slow func() time.Duration) (struct{}, error) {
		life, err := s.read(func(*rows) {})
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.commit(life, func(r *rows) {
			if l, ok := r.leases[replica]; ok && same(l) {
				delete(r.leases, replica)
			}
		}, slow(), slow())
	})
	return err
}

func (d database) ChangesSince(ctx context.Context, version int64, limit int) ([]store.Change, error) {
	return ask(ctx, d.p, following, func(s *server, _ func() time.Duration) (list []store.Change, err error) {
		_, err = s.read(func(r *rows) {
			for v := version + 1; v <= r.version && len(list) < limit; v++ {
				c, ok := r.changes[v]
				if !ok { // a gap: as the real one answers it
					list = []store.Change{{Full: true, Version: r.version}}
					return
				}
				list = append(list, c)
			}
		})
		return list, err
	})
}

func (d database) Announce(c store.Change) { d.p.drop(c) }
