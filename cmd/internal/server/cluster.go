// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// shares reports whether other replicas may use the database. A database in the data folder is this process' alone.
func (s *service) shares() bool { return s.cfg.PostgreSQL() }

// member is this process among the replicas that share a database.
type member struct {
	*replica.Replica
	hints   chan struct{}
	begun   chan struct{} // somebody has begun a journal, or may have
	running bool          // from then on its row is its own business
}

// join makes this replica known, before anything is loaded that others may change: from now on they wait for it.
func (s *service) join(ctx context.Context) error {
	if !s.shares() {
		return nil
	}
	db, journal := s.folder.store, s.folder.journal
	incarnation, err := s.incarnation(ctx)
	if err != nil {
		return err
	}
	m := &member{hints: make(chan struct{}, 1), begun: make(chan struct{}, 1)}
	mtlsURL, err := s.mtlsURL(ctx)
	if err != nil {
		return err
	}
	compare := s.compareURLs(ctx, mtlsURL)
	m.Replica, err = replica.New(replica.Config{
		Database: db, Name: s.replica.Replica, Incarnation: incarnation, Program: s.version, Address: s.address(), MTLSURL: mtlsURL,
		Hints: m.hints,
		Head:  journal.SignedHead,
		Durable: func(ctx context.Context) (bool, error) {
			d, err := db.Durability(ctx)
			return d == store.Quorum, err
		},
		Moved:  func(store.SystemID) { db.Reconnect() },
		Peers:  compare,
		Logger: s.log,
	})
	if err != nil {
		return err
	}
	if err := m.Begin(ctx); err != nil {
		return s.taken(ctx, fmt.Sprintf("another process serves as the replica %s of this installation", s.replica.Replica), err)
	}
	s.onClose(func() error {
		if m.running {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		return db.EndLease(ctx, s.replica.Replica, incarnation) // it never served
	})
	s.member = m
	db.OnChange(m.heard)
	if err := s.awaitWitness(ctx); err != nil {
		return err
	}
	s.forgetErased(store.Change{Full: true}) // what the journal has read so far may have changed
	leases, err := db.Leases(ctx)
	if err == nil {
		compare(leases)
	}
	return err
}

// heard wakes whoever watches the others' journals when there may be another one.
func (m *member) heard(c store.Change) {
	if !c.Journals && !c.Full {
		return
	}
	select {
	case m.begun <- struct{}{}:
	default: // it looks at all of them
	}
}

// incarnation is the number of this start: the journal's, or the one that it will have once its disk has room for it.
func (s *service) incarnation(ctx context.Context) (uint64, error) {
	if n := s.folder.journal.Incarnation(); n > 0 {
		return n, nil
	}
	last, err := s.folder.store.LastJournal(ctx, s.replica.Replica)
	if err != nil && !isNotFound(err) {
		return 0, fmt.Errorf("reading the number of this start: %w", err)
	}
	return last.Incarnation + 1, nil
}

// taken says what to do when another process serves as this replica, and where that is, as far as it is known. Any other
// error is returned as it is.
func (s *service) taken(ctx context.Context, what string, err error) error {
	if !errors.Is(err, store.ErrLeaseLost) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTime)
	defer cancel()
	leases, listed := s.folder.store.Leases(ctx)
	if listed != nil {
		s.log.WarnContext(ctx, "who has the lease now could not be read", "error", listed)
	}
	where := ""
	for _, l := range leases {
		if l.Replica == s.replica.Replica && l.Address != "" {
			where = fmt.Sprintf(", at %s since %s", l.Address, l.StartedAt.UTC().Format(time.RFC3339))
		}
	}
	return &StartError{
		Message: what + where,
		Hint: "a copy of this data folder probably runs there: stop one of the two. A copy is no second replica: start that with an empty " +
			"folder, which needs the same key-encryption key and nothing else",
		Err: err,
	}
}

// mtlsURL is the base of the mtls listener that the metadata will name.
func (s *service) mtlsURL(ctx context.Context) (string, error) {
	if s.cfg.MTLSURL != "" {
		return s.cfg.MTLSURL, nil
	}
	issuer, err := s.folder.store.Setting(ctx, settingIssuer)
	switch {
	case isNotFound(err):
		issuer = s.wantedIssuer()
	case err != nil:
		return "", fmt.Errorf("reading the issuer: %w", err)
	}
	return s.derivedMTLSURL(issuer)
}

// compareURLs returns a function that warns, once, of each other replica whose metadata names another mtls listener, and again
// when it names yet another: which one a client is sent to would be chance, and where each names its own the balancer in
// front of them is passed by. It is for one goroutine at a time.
func (s *service) compareURLs(ctx context.Context, own string) func([]store.Lease) {
	var said map[string]string
	return func(leases []store.Lease) {
		different := make(map[string]string)
		for _, l := range leases {
			if l.Replica == s.replica.Replica || l.MTLSURL == own {
				continue
			}
			different[l.Replica] = l.MTLSURL
			if before, known := said[l.Replica]; known && before == l.MTLSURL {
				continue
			}
			s.log.WarnContext(ctx, "the replicas name different mtls URLs in their metadata: give all of them the same mtls_url, that of the balancer in front of them",
				"own", own, "replica", l.Replica, "at", l.Address, "its", l.MTLSURL)
		}
		said = different
	}
}

// address is where this replica serves, for other operators to see.
func (s *service) address() string {
	if s.sockets.mtls == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(s.sockets.mtls.Addr().String())
	if err != nil {
		return s.sockets.mtls.Addr().String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// keepLease begins to keep the lease, and what is in memory up to date, until the function that it returns is called.
func (s *service) keepLease(ctx context.Context) (end func()) {
	if s.member == nil {
		return func() {}
	}
	s.member.running = true
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.follow(ctx)
	}()
	return func() {
		_ = s.folder.outbox.Close() // else another replica would take over what is recorded already
		stop()
		<-done
	}
}

// follow keeps the lease until ctx ends. When it is lost for good the process must end, for nothing that it remembers may
// be believed any more.
func (s *service) follow(ctx context.Context) {
	listening, stop := context.WithCancel(ctx)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		s.folder.store.Listen(listening, func() {
			select {
			case s.member.hints <- struct{}{}:
			default: // one hint is as good as two
			}
		})
	}()
	err := s.member.Run(ctx)
	stop()
	<-heard
	if err != nil {
		err = fmt.Errorf("this replica cannot serve any more: %w", err)
		s.mustEnd(s.taken(ctx, err.Error(), err))
	}
}

// awaitLease waits a little for the first lease, so that whoever waits for this replica to be ready is not refused at once.
func (s *service) awaitLease(ctx context.Context) {
	if s.member == nil {
		return
	}
	const atMost, pause = 5 * time.Second, 5 * time.Millisecond
	for end := time.Now().Add(atMost); s.member.Live() != nil && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(pause)
	}
}

// gate is what token requests must pass; nil where no other replica can have taken away what they would get.
func (s *service) gate() issuer.Gate {
	if s.member == nil {
		return nil
	}
	return s.member
}

// live refuses what is decided without the token service while there is no lease.
func (s *service) live() error {
	if s.member == nil {
		return nil
	}
	if err := s.member.Live(); err != nil {
		return &tokens.Error{Code: tokens.CodeTemporarilyUnavailable, Reason: "no_lease", Err: err,
			Description: "the request could not be completed now: try again"}
	}
	return nil
}

// effective waits until a version is in force at every replica; nil where there is but one.
func (s *service) effective() func(context.Context, int64) error {
	if s.member == nil {
		return nil
	}
	return func(ctx context.Context, version int64) error {
		_, err := s.member.Effective(ctx, version)
		if pending, ok := errors.AsType[*replica.PendingError](err); ok {
			return &outbox.UnsettledError{By: pending.By, Err: err}
		}
		return err
	}
}

// resetLeases removes the leases of replicas that are gone; nil where there can be none.
func (s *service) resetLeases() func(context.Context) ([]string, error) {
	if s.member == nil {
		return nil
	}
	return s.member.Reset
}

// durability is what a revocation's answer says of the database, where it is less than one could want.
func (s *service) durability() string {
	if s.member == nil || s.member.Status().Durable {
		return ""
	}
	return string(store.SingleNode)
}

// cluster describes the database and the replicas that share it.
func (s *service) cluster(ctx context.Context) (admin.Cluster, error) {
	db := s.folder.store
	c := admin.Cluster{Replicas: []admin.Replica{}}
	var err error
	if c.Database.Kind, c.Database.Version, err = db.Server(ctx); err != nil {
		return c, err
	}
	if c.StateVersion, err = db.Version(ctx); err != nil || s.member == nil {
		return c, err
	}
	status := s.member.Status()
	c.Database.Durability = string(store.SingleNode)
	if status.Durable {
		c.Database.Durability = string(store.Quorum)
	}
	leases, err := db.Leases(ctx)
	if err != nil {
		return c, err
	}
	now := time.Now().Add(status.DatabaseLead) // the database's
	for _, l := range leases {
		r := admin.Replica{
			Replica: l.Replica, This: l.Replica == s.replica.Replica, Incarnation: l.Incarnation, Address: l.Address, MTLSURL: l.MTLSURL,
			Version: l.Program, StartedAt: l.StartedAt.UTC(), RenewedAt: l.RenewedAt.UTC(),
			RenewedSecondsAgo: max(0, now.Sub(l.RenewedAt).Seconds()),
			Applied:           l.Applied, Lag: max(0, c.StateVersion-l.Applied), Lease: "live",
		}
		if now.Sub(l.RenewedAt) > replica.Term {
			r.Lease = "lapsed"
		}
		if r.This && status.Remaining <= 0 {
			r.Lease, r.Trouble = "lapsed", status.Reason
		}
		switch journal, err := db.LastJournal(ctx, l.Replica); {
		case err == nil:
			r.HeadSeq = journal.HeadSeq
		case !isNotFound(err):
			return c, err
		}
		c.Replicas = append(c.Replicas, r)
	}
	return c, nil
}
