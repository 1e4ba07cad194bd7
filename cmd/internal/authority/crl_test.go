// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/pki/stepca"
	"github.com/certbound/certbound/scripts/postgres"
)

// replicas are two authorities of one installation, each with a store of its own on the same database.
func replicas(t *testing.T, cfg store.Config) [2]*bench {
	t.Helper()
	var both [2]*bench
	h, err := stepca.NewHierarchy("Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i := range both {
		cfg.KEK, cfg.Replica = make([]byte, 32), fmt.Sprint("replica", i)
		db, err := store.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := stepca.New(stepca.Config{Root: h.Root, Issuing: h.Issuing, IssuingKey: h.IssuingKey, DB: db.DB(), Dialect: db.Dialect()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(ca.Close(), db.Close()); err != nil {
				t.Error(err)
			}
		})
		b := &bench{tb: t, store: db, hierarchy: h, ca: &signer{Signer: ca}, journal: &journal{}, now: time.Now()}
		if b.box, err = outbox.New(outbox.Config{Store: db, Journal: b.journal}); err != nil {
			t.Fatal(err)
		}
		if b.authority, err = New(b.config()); err != nil {
			t.Fatal(err)
		}
		both[i] = b
	}
	return both
}

// follow tells an authority of what others have changed, as the following of versions does.
func (b *bench) follow(version int64) int64 {
	b.tb.Helper()
	changes, err := b.store.ChangesSince(b.tb.Context(), version, 1000)
	b.must(err)
	for _, c := range changes {
		b.store.Announce(c)
		version = c.Version
	}
	return version
}

// onEveryDatabase runs a test with two replicas on each kind of database.
func onEveryDatabase(t *testing.T, run func(t *testing.T, both [2]*bench)) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		run(t, replicas(t, store.Config{Path: filepath.Join(t.TempDir(), "certbound.db")}))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		run(t, replicas(t, store.Config{URL: postgres.ForTest(t).Database(t)}))
	})
}

// Two replicas give out one list, a revocation at one is on that of the other, and a list that somebody wrote into the
// database is not given out.
func TestCRL_OfReplicas(t *testing.T) {
	onEveryDatabase(t, func(t *testing.T, both [2]*bench) {
		one, two := both[0], both[1]
		fetch := func(b *bench) ([]byte, *pki.CRL) {
			t.Helper()
			der, err := b.authority.CRL(t.Context())
			b.must(err)
			list, err := pki.ParseCRL(der)
			b.must(err)
			return der, list
		}
		same := func() *pki.CRL {
			t.Helper()
			a, list := fetch(one)
			if b, _ := fetch(two); !bytes.Equal(a, b) {
				t.Error("two replicas give out two lists")
			}
			return list
		}
		first := same()
		cert := one.enrolled("payments", newKey(t))
		seen := two.follow(0)
		if list := same(); list.Number().Cmp(first.Number()) != 0 {
			t.Error("signed anew though nothing was revoked")
		}
		one.revoke(pki.Superseded, false, cert)
		two.follow(seen)
		if _, listed, err := same().Revoked(cert); err != nil || !listed {
			t.Errorf("the revoked certificate is listed: %t, %v", listed, err)
		}
		_, list := fetch(one)
		forged := store.RevocationList{Number: list.Number().Int64() + 5, Covers: 1 << 40, MadeAt: one.now, DER: []byte("forged")}
		if ok, err := one.store.PublishRevocationList(t.Context(), forged); err != nil || !ok {
			t.Fatal(ok, err)
		}
		two.store.Announce(store.Change{Full: true})
		if der, err := two.authority.CRL(t.Context()); err == nil && bytes.Equal(der, forged.DER) {
			t.Error("a list that nobody signed is given out")
		}
	})
}

// However many replicas need a new list at once, no two lists have one number, and what a reader gets is never older than
// what was revoked before it asked.
func TestCRL_Race(t *testing.T) {
	onEveryDatabase(t, func(t *testing.T, both [2]*bench) {
		const rounds = 8
		var mu sync.Mutex
		lists := make(map[string][]byte)
		var wg sync.WaitGroup
		for r, b := range both {
			var certs []*x509.Certificate
			for i := range rounds {
				certs = append(certs, b.enrolled(fmt.Sprintf("client-%d-%d", r, i), newKey(t)))
			}
			wg.Go(func() {
				for _, cert := range certs {
					if err := b.take(store.Selection{Thumbprints: [][32]byte{mtls.ThumbprintOf(cert)}}, pki.Superseded); err != nil {
						t.Error(err)
						return
					}
					for _, reader := range both {
						reader.store.Announce(store.Change{Full: true}) // it follows, a moment later
						der, err := reader.authority.CRL(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						list, err := pki.ParseCRL(der)
						if err != nil {
							t.Error(err)
							return
						}
						if _, listed, err := list.Revoked(cert); err != nil || !listed {
							t.Errorf("revoked before it was asked for, and not on list %s: %v", list.Number(), err)
						}
						mu.Lock()
						if have := lists[list.Number().String()]; have != nil && !bytes.Equal(have, der) {
							t.Errorf("two lists with the number %s", list.Number())
						}
						lists[list.Number().String()] = der
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if len(lists) < 2 {
			t.Errorf("%d lists", len(lists))
		}
	})
}

// BenchmarkCRL signs a list of many revocations.
func BenchmarkCRL(b *testing.B) {
	for _, n := range []int{1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bench := newBench(b)
			bench.client("payments")
			client, err := bench.store.Client(b.Context(), "payments")
			bench.must(err)
			leaf, err := bench.authority.row(bench.enrolled("billing", newKey(b)), client)
			bench.must(err)
			err = bench.store.Transact(b.Context(), func(tx *store.Store) error {
				for i := range n {
					row := leaf
					row.Serial = fmt.Sprintf("9%039d", i)
					row.DER = make([]byte, len(leaf.DER))
					rand.Read(row.DER)
					row.Thumbprint = sha256.Sum256(row.DER)
					row.KeyHash = sha256.Sum256(row.Thumbprint[:])
					if err := tx.AddCertificate(b.Context(), row); err != nil {
						return err
					}
				}
				_, err := tx.Revoke(b.Context(), store.Selection{ClientID: "payments"}, 0, bench.now)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				list, err := bench.authority.makeList(b.Context(), bench.now)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(list.DER)), "bytes")
			}
		})
	}
}
