// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"bytes"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/nosql"
	"github.com/smallstep/nosql/database"

	"github.com/certbound/certbound/pki"
)

var _ nosql.DB = (*kv)(nil)

func newTestKV(tb testing.TB) *kv {
	tb.Helper()
	k, err := newKV(openDB(tb), "sqlite")
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func TestKVGetSetDelete(t *testing.T) {
	t.Parallel()
	k := newTestKV(t)
	bucket, key := []byte("b"), []byte("k\x00\xff")
	if _, err := k.Get(bucket, key); !database.IsErrNotFound(err) {
		t.Fatalf("absent: %v", err)
	}
	for _, value := range [][]byte{[]byte("one"), {0, 1, 2}, {}, nil} {
		if err := k.Set(bucket, key, value); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Get(bucket, key); err != nil || !bytes.Equal(got, value) {
			t.Fatalf("got %q, %v, want %q", got, err, value)
		}
	}
	if _, err := k.Get([]byte("other"), key); !database.IsErrNotFound(err) {
		t.Errorf("the buckets are not apart: %v", err)
	}
	if err := errors.Join(k.Del(bucket, key), k.Del(bucket, key)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Get(bucket, key); !database.IsErrNotFound(err) {
		t.Errorf("after delete: %v", err)
	}
}

func TestKVCmpAndSwap(t *testing.T) {
	t.Parallel()
	k := newTestKV(t)
	b, key := []byte("b"), []byte("k")
	swap := func(oldValue, newValue string, want bool, current string) {
		t.Helper()
		got, ok, err := k.CmpAndSwap(b, key, []byte(oldValue), []byte(newValue))
		if err != nil || ok != want || string(got) != current {
			t.Errorf("%q to %q: got %q, %v, %v", oldValue, newValue, got, ok, err)
		}
	}
	swap("x", "y", false, "") // absent is not x
	swap("", "one", true, "one")
	swap("", "two", false, "one")
	swap("other", "two", false, "one")
	swap("one", "two", true, "two")
	swap("two", "", true, "")
	swap("", "three", true, "three") // empty is as absent
	if _, ok, err := k.CmpAndSwap(b, []byte("nil"), nil, nil); err != nil || !ok {
		t.Errorf("nil to nil: %v, %v", ok, err)
	}
}

// Of many that race for an absent row exactly one wins, a hundred times over.
func TestKVCmpAndSwapRace(t *testing.T) {
	t.Parallel()
	k := newTestKV(t)
	for round := range 25 {
		key := []byte{byte(round)}
		wins := make(chan bool, 8)
		var wg sync.WaitGroup
		for range cap(wins) {
			wg.Go(func() {
				_, ok, err := k.CmpAndSwap([]byte("race"), key, nil, []byte("mine"))
				if err != nil {
					t.Error(err)
				}
				wins <- ok
			})
		}
		wg.Wait()
		close(wins)
		n := 0
		for ok := range wins {
			if ok {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("round %d: %d winners", round, n)
		}
	}
}

func TestKVUpdate(t *testing.T) {
	t.Parallel()
	k := newTestKV(t)
	b := []byte("b")
	tx := new(database.Tx)
	tx.CreateTable(b)
	tx.Set(b, []byte("1"), []byte("one"))
	tx.Set(b, []byte("2"), []byte("two"))
	tx.Get(b, []byte("1"))
	tx.Del(b, []byte("2"))
	if err := k.Update(tx); err != nil {
		t.Fatal(err)
	}
	if got := string(tx.Operations[3].Result); got != "one" {
		t.Errorf("read %q inside", got)
	}
	entries, err := k.List(b)
	if err != nil || len(entries) != 1 || string(entries[0].Key) != "1" || string(entries[0].Value) != "one" {
		t.Errorf("left: %v, %v", entries, err)
	}

	failing := map[string]func(*database.Tx){
		"absent":  func(tx *database.Tx) { tx.Get(b, []byte("absent")) },
		"swap":    func(tx *database.Tx) { tx.Cas(b, []byte("1"), []byte("x")) },
		"compare": func(tx *database.Tx) { tx.Cmp(b, []byte("1"), []byte("one")) },
	}
	for name, add := range failing {
		tx := new(database.Tx)
		tx.Set(b, []byte("1"), []byte("changed"))
		add(tx)
		if err := k.Update(tx); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if got, err := k.Get(b, []byte("1")); err != nil || string(got) != "one" {
			t.Errorf("%s: not rolled back: %q, %v", name, got, err)
		}
	}
	drop := new(database.Tx)
	drop.DeleteTable(b)
	if err := k.Update(drop); err != nil {
		t.Fatal(err)
	}
	if entries, err := k.List(b); err != nil || len(entries) != 0 {
		t.Errorf("after dropping: %v, %v", entries, err)
	}
	if err := k.DeleteTable(b); err != nil {
		t.Error(err)
	}
}

func TestKVBind(t *testing.T) {
	t.Parallel()
	const query = "UPDATE t SET a = ? WHERE b = ? AND c = ?"
	if got := (&kv{}).bind(query); got != query {
		t.Errorf("sqlite: %s", got)
	}
	if got := (&kv{postgres: true}).bind(query); got != "UPDATE t SET a = $1 WHERE b = $2 AND c = $3" {
		t.Errorf("postgres: %s", got)
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	sign := func(life time.Duration) *big.Int {
		p := profile(pki.UsageClient)
		p.NotAfter = time.Now().Add(life)
		chain, err := a.Sign(t.Context(), request(t, newKey(t)), p)
		if err != nil {
			t.Fatal(err)
		}
		return chain[0].SerialNumber
	}
	short, long := sign(time.Hour), sign(48*time.Hour)

	// What was written now stays, even when everything older than tomorrow shall go.
	if err := a.Purge(t.Context(), time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, c := countRows(t, a, bucketTokens), countRows(t, a, bucketCerts); n != 2 || c != 2 {
		t.Fatalf("%d tokens and %d certificates left", n, c)
	}
	if err := a.Purge(t.Context(), time.Now().Add(24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, a, bucketTokens); n != 2 {
		t.Errorf("tokens that could still be presented were removed: %d left", n)
	}
	for _, bucket := range []string{bucketCerts, bucketCertData} {
		if _, err := a.kv.Get([]byte(bucket), []byte(short.String())); !database.IsErrNotFound(err) {
			t.Errorf("%s: the expired certificate is still there: %v", bucket, err)
		}
		if _, err := a.kv.Get([]byte(bucket), []byte(long.String())); err != nil {
			t.Errorf("%s: the living certificate is gone: %v", bucket, err)
		}
	}

	age := "UPDATE ca_kv SET created_at = created_at - 3600"
	if _, err := a.kv.db.ExecContext(t.Context(), age); err != nil {
		t.Fatal(err)
	}
	if err := a.Purge(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, a, bucketTokens); n != 0 {
		t.Errorf("%d old tokens left", n)
	}
	if n := countRows(t, a, bucketCerts); n != 1 {
		t.Errorf("%d certificates left, want 1", n)
	}
}

// More certificates than a batch holds are all visited, and bytes that are no certificate are left alone.
func TestPurgeInBatches(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	p := profile(pki.UsageClient)
	p.NotAfter = time.Now().Add(time.Hour)
	chain, err := a.Sign(t.Context(), request(t, newKey(t)), p)
	if err != nil {
		t.Fatal(err)
	}
	tx := new(database.Tx)
	for i := range 2*purgeBatch + 10 {
		value := chain[0].Raw
		if i%100 == 0 {
			value = []byte("not a certificate")
		}
		tx.Set([]byte(bucketCerts), big.NewInt(int64(i)).Bytes(), value)
	}
	if err := a.kv.Update(tx); err != nil {
		t.Fatal(err)
	}
	if err := a.Purge(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, a, bucketCerts); n != 11 {
		t.Errorf("%d rows left, want the 11 that are no certificates", n)
	}
}
