// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/scripts/postgres"
)

const (
	database = "certbound"
	// recovers is how long replicas may take, once a fault is over, until all of them serve.
	recovers = 20 * time.Second
	// spare is a client whom only the tests of readiness use.
	spare = "load-4"
)

// A fleet is several replicas on one database. Each reaches the database through a line of its own, and callers reach
// them at their own addresses or at front, which gives connections to all in turn.
type fleet struct {
	dir      string
	replicas []*service
	lines    []*relay // and, after these, what answers in the place of replicas that are gone
	front    *service // the addresses of the balancer; it has no process
	balancer [2]*relay
	password string

	primary, standby *postgres.Cluster // standby is nil unless there is one
	stream           *relay            // by which it follows
	generation       int               // of standbys
}

// newFleet makes a database, with a synchronous standby if wished for, and n replicas that serve on it, with a resource
// and clients.
func newFleet(ctx context.Context, dir, certbound string, n int, standby bool) (*fleet, error) {
	f := &fleet{dir: dir, password: rand.Text()}
	if err := f.database(ctx, standby); err != nil {
		return f, err
	}
	if err := f.place(certbound, n); err != nil {
		return f, err
	}
	first := f.replicas[0]
	if err := first.start(ctx); err != nil {
		return f, err
	}
	key, err := os.ReadFile(first.data("kek"))
	if err != nil {
		return f, err
	}
	for _, s := range f.replicas[1:] {
		if err := os.MkdirAll(s.data(), 0o700); err != nil {
			return f, err
		}
		if err := os.WriteFile(s.data("kek"), key, 0o600); err != nil {
			return f, err
		}
	}
	var starting sync.WaitGroup
	failed := make([]error, n)
	for i, s := range f.replicas[1:] {
		starting.Go(func() { failed[i] = s.start(ctx) })
	}
	starting.Wait()
	if err := errors.Join(failed...); err != nil {
		return f, err
	}
	f.front.settings = first.settings
	return f, f.front.fill(ctx, loadClients+1)
}

// database makes one that belongs to a role without further rights.
func (f *fleet) database(ctx context.Context, standby bool) (err error) {
	if f.primary, err = postgres.New(ctx, postgres.Config{}); err != nil {
		return err
	}
	for _, statement := range []string{
		"CREATE ROLE certbound LOGIN PASSWORD '" + f.password + "'",
		"CREATE DATABASE " + database + " OWNER certbound TEMPLATE template0",
	} {
		if _, err := f.primary.Query(ctx, "postgres", statement); err != nil {
			return err
		}
	}
	if standby {
		return f.follow(ctx)
	}
	return nil
}

// follow adds a synchronous standby to the primary.
func (f *fleet) follow(ctx context.Context) (err error) {
	f.generation++
	name := fmt.Sprintf("standby_%d", f.generation)
	if f.stream != nil {
		f.stream.close()
	}
	if f.stream, err = newRelay(f.primary.Address()); err != nil {
		return err
	}
	if f.standby, err = f.primary.Standby(ctx, name, f.stream.address); err != nil {
		return err
	}
	return f.primary.Synchronous(ctx, name)
}

// place chooses the addresses of everybody and puts the relays between them.
func (f *fleet) place(certbound string, n int) error {
	f.front = &service{certbound: certbound, dir: filepath.Join(f.dir, "1"), up: make(chan struct{})}
	close(f.front.up)
	var public, mtls []string
	for i := range n {
		line, err := newRelay(f.primary.Address())
		if err != nil {
			return err
		}
		f.lines = append(f.lines, line)
		dir := filepath.Join(f.dir, fmt.Sprint(i+1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		s, err := newService(certbound, dir, "audit.segment_size=262144",
			"database=postgres://certbound:"+f.password+"@"+line.address+"/"+database+"?sslmode=disable")
		if err != nil {
			return err
		}
		s.known = f.front
		f.replicas = append(f.replicas, s)
		public, mtls = append(public, s.public), append(mtls, s.mtls)
	}
	for i, side := range []struct {
		address *string
		targets []string
	}{{&f.front.public, public}, {&f.front.mtls, mtls}} {
		var err error
		if f.balancer[i], err = newRelay(side.targets...); err != nil {
			return err
		}
		*side.address = f.balancer[i].address
	}
	return nil
}

// end ends everything.
func (f *fleet) end() {
	for _, s := range f.replicas {
		s.end()
	}
	for _, r := range append(f.lines, f.stream, f.balancer[0], f.balancer[1]) {
		if r != nil {
			r.close()
		}
	}
	for _, c := range []*postgres.Cluster{f.primary, f.standby} {
		if c == nil {
			continue
		}
		words := c.LastWords()
		if err := errors.Join(os.WriteFile(filepath.Join(f.dir, "postgres.log"), []byte(words), 0o600), c.Close()); err != nil {
			say("%v", err)
		}
	}
}

// load begins the load: at each replica and at the balancer.
func (f *fleet) load(ctx context.Context, b *book) ([]*load, error) {
	around := append([]*service{f.front}, f.replicas...)
	var all []*load
	stopped := make(chan struct{})
	roots, err := f.front.roots()
	if err != nil {
		return nil, err
	}
	for i, s := range around {
		l := &load{service: s, book: b, roots: roots, stopped: stopped, around: around, sending: make(chan struct{})}
		all = append(all, l)
		for n := range fleetAskers {
			client := fmt.Sprintf("load-%d", (i+n)%loadClients)
			c, err := s.caller(client)
			if err != nil {
				return nil, err
			}
			l.running.Go(func() { l.askSlowly(ctx, c, client, n%2 == 1) })
		}
		c, err := s.caller("data/admin")
		if err != nil {
			return nil, err
		}
		l.running.Go(func() { l.churn(ctx, &operator{load: l, caller: c}, i) })
	}
	return all, nil
}

const (
	fleetAskers = 2                     // at each place, every other on a new connection for each token
	fleetThink  = 60 * time.Millisecond // greatest pause between two tokens of one
)

// askSlowly is ask for a load at several places, which leaves the machine something.
func (l *load) askSlowly(ctx context.Context, c *caller, client string, anew bool) {
	defer c.close()
	for l.goesOn(ctx) {
		if err := l.tokenFor(ctx, c, client); err != nil && ctx.Err() == nil {
			l.book.problem(fmt.Sprintf("a token for %s: %v", client, err))
			return
		}
		if anew {
			c.close()
		}
		pause(ctx, time.Duration(time.Now().UnixNano()%int64(fleetThink)))
	}
}

// serve waits until every replica is ready and gives a token to who asks it. It says how long that took.
func (f *fleet) serve(ctx context.Context, l *load) (time.Duration, error) {
	begin := time.Now()
	for i, s := range f.replicas {
		c, err := s.caller(spare)
		if err != nil {
			return 0, err
		}
		defer c.close()
		for {
			if err := s.awaitReadiness(ctx, http.StatusOK, recovers); err != nil {
				return 0, fmt.Errorf("replica %d: %w", i+1, err)
			}
			sent := time.Now()
			a, err := c.askToken(ctx, s.tokenURL(), spare, resource)
			// A lease that was about to end when it was asked for readiness may have ended since.
			if err == nil && a.status == http.StatusServiceUnavailable && time.Since(begin) < recovers {
				continue
			}
			if err == nil {
				err = l.note(a, c, spare, sent)
			}
			if err != nil {
				return 0, fmt.Errorf("replica %d is ready and does not serve: %w", i+1, err)
			}
			break
		}
	}
	return time.Since(begin), nil
}

// conclude stops the replicas and holds the book against what all of their journals and the database hold.
func (f *fleet) conclude(ctx context.Context, b *book) error {
	inv, err := f.front.inventory(ctx)
	if err != nil {
		return err
	}
	var verified []error
	all := newJournal()
	for _, s := range f.replicas {
		if s.process != nil && !exited(s) {
			if err := s.stop(); err != nil {
				return err
			}
		}
	}
	for i, s := range f.replicas {
		j, err := readJournal(s.data("audit"))
		if err != nil {
			return fmt.Errorf("replica %d: %w", i+1, err)
		}
		all.merge(j, fmt.Sprintf("replica %d: ", i+1))
		// By itself: the operator's profile keeps the heads of whichever replicas answered, perhaps of others alone.
		if _, err := s.must(ctx, "audit verify --data data --heads=", ""); err != nil {
			verified = append(verified, fmt.Errorf("replica %d: %w", i+1, err))
		}
	}
	// By what each says of the others as well. The operator's profile has seen what one of them signed.
	folders := make([]string, len(f.replicas))
	for i, s := range f.replicas {
		folders[i] = s.data("audit")
	}
	if _, err := f.replicas[0].must(ctx, "audit verify --profile data/admin "+strings.Join(folders, " "), ""); err != nil {
		verified = append(verified, fmt.Errorf("all replicas: %w", err))
	}
	tokens, certs, changes := b.counts()
	say("received: %d tokens, %d certificates, %d changes; refused afterwards: %d certificates, %d of them revoked; %d codes raced for",
		tokens, certs, changes, len(b.losses), len(b.revoked), b.races)
	say("journals: %d records in %d segments of %d replicas, without a gap; %d events stand in two, once each", all.records, all.segments, len(f.replicas), all.twice)
	if b.early > 0 {
		say("%d refusals of who had just been given authority elsewhere", b.early)
	}
	lost := b.missing(all)
	if len(lost) > 0 {
		verified = append(verified, fmt.Errorf("%d tokens that were received are on no record, %s among them", len(lost), lost[0].id))
	}
	if err := errors.Join(append(verified, b.judge(all, inv))...); err != nil {
		return err
	}
	say("everything that was told is on record, once, and in the database; audit verify accepts each journal, and all together")
	return nil
}

func exited(s *service) bool {
	select {
	case <-s.process.Exited():
		return true
	default:
		return false
	}
}

// quantiles renders the median, the 99th percentile and the greatest of some times.
func quantiles(times []time.Duration) string {
	if len(times) == 0 {
		return "none"
	}
	sorted := slices.Sorted(slices.Values(times))
	at := func(q float64) time.Duration {
		return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))].Round(time.Millisecond)
	}
	return fmt.Sprintf("median %v, 99 %% within %v, longest %v", at(0.5), at(0.99), sorted[len(sorted)-1].Round(time.Millisecond))
}
