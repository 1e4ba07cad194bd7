// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package server is the running service: it opens the data folder, makes what a first start needs, wires
// certificate authority, token service and operators' API to their listeners, and stops them cleanly.
//
// It refuses to start when anything it would rely on is missing, damaged or another installation's: the
// error names the file. Nothing here decides who gets what; that is tokens/issuer, authority and admin.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/cmd/internal/admission"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/authority"
	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki/stepca"
	"github.com/certbound/certbound/tokens/issuer"
	"github.com/certbound/certbound/tokens/resource"
)

// ticketLife is how long a session ticket key seals; a ticket is accepted for at most twice that.
const ticketLife = time.Hour

// Options is what a run needs beside the configuration.
type Options struct {
	Stdout  io.Writer // gets the one line "ready issuer=… mtls=…"
	Logger  *slog.Logger
	Version string
	// AcceptJournalLoss is the record that a refused start has said to be lost: this one goes on without it. 0: none.
	AcceptJournalLoss uint64

	reached func(outbox.Point, string) // for tests
}

// Run serves until ctx is done, then lets running requests finish and returns nil. It returns an error
// at once when the service cannot start, having changed nothing that a later start would trip over.
func Run(ctx context.Context, cfg config.Config, opt Options) (err error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if err := Check(cfg); err != nil {
		return err
	}
	s := &service{cfg: cfg, log: opt.Logger, version: opt.Version, acceptLoss: opt.AcceptJournalLoss, fatal: make(chan error, 1), reached: opt.reached}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	if err := s.build(ctx); err != nil {
		return err
	}
	return s.serve(ctx, opt.Stdout)
}

// service is everything that lives as long as one run. It is filled by open and build, in order, and
// only read afterwards.
type service struct {
	cfg     config.Config
	log     *slog.Logger
	version string

	acceptLoss uint64 // as Options.AcceptJournalLoss
	head       struct {
		sync.Mutex
		left uint64 // the record that the database was told of last
	}

	journalKeys *journalKeys   // what personal members of its records are sealed under
	reserve     *audit.Reserve // room on the disk for what takes authority away
	folder      *folder        // what lies on disk: lock, database, journal
	replica     replicaID      // which of those who share the database
	member      *member        // nil where nobody else can share it
	identity    identity       // who we are: issuer, trust domain, addresses
	sockets     sockets

	root, issuing         *x509.Certificate
	anchors, renewAnchors *mtls.Anchors // our own CA, for clients, and for whoever renews
	trust                 *trust.Manager
	registry              *registry
	denials               *denials
	feed                  *feed
	guardedFeed           http.Handler
	renewals              *issuer.Server // judges who may renew
	tickets               []*mtls.Tickets
	ticketing             *sharedTickets // nil unless servers share them
	ca                    *stepca.Authority
	keys                  *keyring
	authority             *authority.Authority
	issuer                *issuer.Server
	guard, feedGuard      *resource.Guard // of the operators' API, and of the deny feed
	metrics               *metrics
	journalTimes          *journalTimes
	limits                *admission.Limiter
	own                   *mtls.KeyPair // our own server certificate

	operatorDir string    // below the data folder; empty: the operator's profile is not ours to keep
	operatorDue time.Time // when that profile wants a new certificate

	pace     pace       // of token requests
	clock    steady     // whether what has ended may be forgotten
	fatal    chan error // has room for one: the process must end, and begin anew
	draining atomic.Bool
	closers  []func() error

	reached func(outbox.Point, string) // told of each step of a change, in tests; else nil
}

// onClose registers what close must undo; the last registered is undone first.
func (s *service) onClose(f func() error) { s.closers = append(s.closers, f) }

func (s *service) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// serve runs the listeners and the background work until ctx is done or a listener fails.
func (s *service) serve(ctx context.Context, stdout io.Writer) error {
	operators, err := s.adminHandler()
	if err != nil {
		return err
	}
	publicTLS := mtls.ServerConfig(s.own, mtls.ClientCertificatesIgnored)
	mtlsTLS := mtls.ServerConfig(s.own, mtls.ClientCertificatesRequested)
	// Session ticket keys are as good as every client's certificate: random, in memory, for one listener.
	onPublic, onMTLS := mtls.NewTickets(publicTLS), mtls.NewTickets(mtlsTLS)
	s.tickets = []*mtls.Tickets{onPublic, onMTLS}
	if s.cfg.TLS.SharedTickets {
		s.ticketing = newSharedTickets(s.folder.store, ticketScope(s.cfg.Trust), s.log, time.Now,
			map[string]*mtls.Tickets{"public": onPublic, "mtls": onMTLS})
		s.ticketing.refresh(ctx) // before the first connection
	}
	s.folder.store.OnChange(s.forgetTickets)
	servers := []*running{
		s.limited("public", s.publicRouter(), s.sockets.public, publicTLS),
		s.limited("mtls", s.mtlsRouter(operators), s.sockets.mtls, mtlsTLS),
	}
	if s.sockets.debug != nil {
		servers = append(servers, &running{name: "debug", server: s.httpServer(s.debugRouter()), listener: s.sockets.debug})
	}
	socket, err := s.breakGlass()
	if err != nil {
		return err
	}
	servers = append(servers, socket)
	defer s.keepLease(ctx)() // it ends last, when every answer has left, so that nobody waits for it in vain
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopBackground()
	wg.Go(func() { s.renewOwn(background) })
	wg.Go(func() { s.keys.run(background) })
	wg.Go(func() { s.trust.Run(background) })
	wg.Go(func() { s.keepRetention(background) })
	wg.Go(func() { s.keepInventory(background) })
	wg.Go(func() { s.keepDenials(background) })
	if s.shares() {
		wg.Go(func() { s.keepFollowers(background) })
	}
	wg.Go(func() { s.keepHead(background) })
	wg.Go(func() { s.watchJournals(background) })
	wg.Go(func() { s.folder.outbox.Run(background) })
	wg.Go(func() { s.pruneAssertions(background) })
	if s.ticketing != nil {
		wg.Go(func() { s.ticketing.run(background) })
	} else {
		for _, t := range s.tickets {
			wg.Go(func() { t.Run(background, ticketLife) })
		}
	}

	failed := make(chan error, len(servers))
	run := func(clients bool) {
		for _, r := range servers {
			if (r.tls != nil) == clients {
				go func() { failed <- r.run() }()
			}
		}
	}
	run(false)
	s.awaitLease(ctx) // who connects meanwhile waits, where the answer would be that there is no lease yet
	run(true)
	if err := s.announce(stdout); err != nil {
		return errors.Join(err, s.drain(servers))
	}
	select {
	case <-ctx.Done():
		s.log.Info("stopping: running requests may finish", "for_at_most", s.cfg.HTTP.ShutdownTimeout)
		return errors.Join(s.drain(servers), s.failure())
	case err := <-failed:
		return errors.Join(err, s.drain(servers))
	case err := <-s.fatal:
		return errors.Join(err, s.drain(servers))
	}
}

// mustEnd ends the service with an error: what failed cannot be trusted again before a new start. It returns at once.
func (s *service) mustEnd(err error) {
	select {
	case s.fatal <- err:
	default: // it ends already
	}
}

// failure is what mustEnd was told, or nil.
func (s *service) failure() error {
	select {
	case err := <-s.fatal:
		return err
	default:
		return nil
	}
}

// drain refuses new connections and waits for running requests. Clients are told to go elsewhere, by Connection: close or
// GOAWAY, with the answers that they still get. Monitoring is answered until all others are: it sees that this service is
// not ready.
func (s *service) drain(servers []*running) error {
	s.draining.Store(true)
	s.feed.close()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.HTTP.ShutdownTimeout)
	defer cancel()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, r := range servers {
		if r.tls != nil { // at once: who waits for one listener to end must not be given another that has long ended
			wg.Go(func() { errs[i] = r.stop(ctx) })
		}
	}
	wg.Wait()
	for i, r := range servers {
		if r.tls == nil {
			errs[i] = r.stop(ctx)
		}
	}
	return errors.Join(errs...)
}

// stop lets running requests finish, at most until ctx ends.
func (r *running) stop(ctx context.Context) error {
	const again = time.Second
	for {
		// Shutdown tells those HTTP/2 connections to go away that there are when it is called. One whose handshake ended a
		// moment later is not told, and would be waited for in vain: so everybody is told again.
		step, cancel := context.WithTimeout(ctx, again)
		err := r.server.Shutdown(step)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return errors.Join(fmt.Errorf("stopping the %s listener: %w", r.name, err), r.server.Close())
		}
	}
}

// announce writes serve.json and then the line that scripts wait for.
func (s *service) announce(stdout io.Writer) error {
	about := map[string]any{
		"issuer": s.identity.issuer, "mtls_url": s.identity.mtlsURL,
		"public": s.sockets.public.Addr().String(), "mtls": s.sockets.mtls.Addr().String(), "pid": os.Getpid(),
		"socket": filepath.Join(s.cfg.Data, socketName),
	}
	if s.sockets.debug != nil {
		about["debug"] = s.sockets.debug.Addr().String()
	}
	doc, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return fmt.Errorf("describing the service: %w", err)
	}
	name := filepath.Join(s.cfg.Data, "serve.json")
	if err := writeFile(name, append(doc, '\n'), 0o600); err != nil {
		return err
	}
	s.onClose(func() error { return os.Remove(name) })
	if stdout == nil {
		return nil
	}
	_, err = fmt.Fprintf(stdout, "ready issuer=%s mtls=%s\n", s.identity.issuer, s.identity.mtlsURL)
	return err
}

// running is one listener and what serves it.
type running struct {
	name     string
	server   *http.Server
	listener net.Listener
	tls      *tls.Config
}

// run serves until Shutdown, which is no error.
func (r *running) run() error {
	l := r.listener
	if r.tls != nil {
		mtls.ConfigureServer(r.server, r.tls)
		// Served over our own listener and not by ServeTLS, which clones the configuration, so that
		// whatever changes ticket keys changes the ones in use.
		l = mtls.NewListener(l, r.tls)
	}
	if err := r.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the %s listener: %w", r.name, err)
	}
	return nil
}

// httpServer bounds what a connection may cost before and between requests.
func (s *service) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		MaxHeaderBytes:    mtls.MaxHeaderBytes,
		ReadHeaderTimeout: min(s.cfg.HTTP.HeaderTimeout, s.cfg.TLS.HandshakeTimeout), // bounds the handshake too
		ReadTimeout:       s.cfg.HTTP.ReadTimeout,
		WriteTimeout:      s.cfg.HTTP.WriteTimeout,
		IdleTimeout:       s.cfg.HTTP.IdleTimeout,
		// With HTTP/2, WriteTimeout bounds an answer but not what is left to write on a connection that nobody reads.
		HTTP2:    &http.HTTP2Config{WriteByteTimeout: s.unread()},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// lastFrame is how long a connection may take nothing where answers are waited for by whoever revokes.
const lastFrame = time.Second

// unread is how long an HTTP/2 connection may take nothing. Its last frames may be written when their passage of the gate
// has been left already; so with other replicas they must not wait for long.
func (s *service) unread() time.Duration {
	if s.member != nil {
		return min(lastFrame, s.cfg.HTTP.WriteTimeout)
	}
	return s.cfg.HTTP.WriteTimeout
}

// resetTickets makes every session ticket given out so far resume nothing here. Where tickets are shared, those resume
// again that nobody resets in the database as well.
func (s *service) resetTickets() {
	if s.ticketing != nil {
		s.ticketing.forget(store.Change{Tickets: true})
		return
	}
	for _, t := range s.tickets {
		t.Reset()
	}
}

// forgetTickets has every server make new keys of session tickets when they were reset in the database, as an emergency
// rotation of the signing keys does, also those servers that share none: and who does not know all that was changed, too.
func (s *service) forgetTickets(c store.Change) {
	if (c.Tickets || c.Full) && s.ticketing == nil {
		s.resetTickets()
	}
}

// writeFile replaces a file whole: a reader sees the old or the new one.
func writeFile(name string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
