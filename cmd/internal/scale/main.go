// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command scale fills the database of an installation that does not run with clients that look as if each had been
// registered and had enrolled, so that scripts/bench can measure the service with a million of them. It is for measuring
// only, and part of no release: it asks none of the rules that the service asks.
//
// All certificates are signed by the installation's own issuing key, each for a key of its own. They are written to a
// file, with the private keys, for whoever plays the clients. CERTBOUND_DATABASE names a PostgreSQL database, as for the
// service.
//
//	go run ./cmd/internal/scale -data certbound-data -clients 1000000 -revoked 50000 -out clients.bin
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
)

// batch is how many clients one transaction adds.
const batch = 5_000

type options struct {
	data     string
	url      string // of a PostgreSQL database; empty: SQLite in data
	clients  int
	revoked  int
	scope    string
	lifetime time.Duration
	out      string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{url: os.Getenv("CERTBOUND_DATABASE")}
	flag.StringVar(&o.data, "data", "certbound-data", "the data `folder` of the installation, which must not run")
	flag.IntVar(&o.clients, "clients", 1_000_000, "how many to add")
	flag.IntVar(&o.revoked, "revoked", 50_000, "how many of their certificates are revoked, for a compromised key, evenly spread")
	flag.StringVar(&o.scope, "scope", "bench", "the one scope of each client")
	flag.DurationVar(&o.lifetime, "lifetime", 7*24*time.Hour, "how long the certificates live from now on")
	flag.StringVar(&o.out, "out", "", "where certificates and keys are written; see writeClients")
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.clients < 1 || o.revoked < 0 || o.revoked >= o.clients || o.out == "" {
		return errors.New("give -out, at least one client, and leave some certificates unrevoked")
	}
	lock, err := store.Lock(o.data)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	at := store.Config{Path: filepath.Join(o.data, "certbound.db"), URL: o.url}
	// A new key would open nothing.
	source := store.KEKSource{Value: os.Getenv("CERTBOUND_KEK"), Found: func() (bool, error) { return true, nil }}
	if at.KEK, err = store.LoadKEK(o.data, store.Place(at), source); err != nil {
		return err
	}
	db, err := store.Open(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	m, err := newMint(ctx, db, o)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(o.out, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // it holds private keys
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(fill(ctx, db, m, o, w), w.Flush(), f.Close())
}

// fill makes the clients in batches, on all processors, while the batch before is stored.
func fill(ctx context.Context, db *store.Store, m *mint, o options, w io.Writer) error {
	type made struct {
		clients []client
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan made)
	go func() {
		defer close(batches)
		for first := 0; first < o.clients; first += batch {
			clients, err := m.batch(first, min(batch, o.clients-first))
			select {
			case batches <- made{clients, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for b := range batches {
		if b.err != nil {
			return b.err
		}
		rows := make([]store.Loaded, len(b.clients))
		for i := range b.clients {
			rows[i] = b.clients[i].row
		}
		if err := db.Load(ctx, rows); err != nil {
			return err
		}
		if err := writeClients(w, b.clients); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// batch makes clients, in the order of their numbers.
func (m *mint) batch(first, count int) ([]client, error) {
	clients, errs := make([]client, count), make([]error, runtime.NumCPU())
	var group sync.WaitGroup
	for worker := range errs {
		group.Go(func() {
			for i := worker; i < count && errs[worker] == nil; i += len(errs) {
				clients[i], errs[worker] = m.client(first + i)
			}
		})
	}
	group.Wait()
	return clients, errors.Join(errs...)
}

// A slot of the file is what a player of clients needs of one of them. All have the same size, so that the client of a
// number is found without reading the others.
const (
	slotKey         = 32 // the private key's scalar, P-256
	slotCertificate = 1024
	slotSize        = 1 + slotKey + 2 + slotCertificate
)

// writeClients writes a slot for each client: 1 when its certificate is revoked, else 0; the key; the length of the
// certificate, big endian; its DER, filled up with zeros.
func writeClients(w io.Writer, clients []client) error {
	slot := make([]byte, slotSize)
	for i := range clients {
		c := &clients[i]
		clear(slot)
		if !c.row.Certificate.RevokedAt.IsZero() {
			slot[0] = 1
		}
		der := c.row.Certificate.DER
		if len(der) > slotCertificate {
			return errors.New("a certificate is too long for its slot")
		}
		copy(slot[1:], c.key)
		binary.BigEndian.PutUint16(slot[1+slotKey:], uint16(len(der)))
		copy(slot[1+slotKey+2:], der)
		if _, err := w.Write(slot); err != nil {
			return err
		}
	}
	return nil
}
