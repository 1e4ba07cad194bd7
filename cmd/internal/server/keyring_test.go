// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// keyringFor is a keyring of that database as the defaults have it.
func keyringFor(tb testing.TB, db *store.Store) keyringConfig {
	tb.Helper()
	return keyringConfig{
		Store: db, Box: testBox(tb, db), Algorithm: tokens.ES256, Rotate: 30 * 24 * time.Hour, Announce: time.Hour,
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
}

// keyWorld is a database with the keyrings of replicas, of which each has a clock of its own.
type keyWorld struct {
	*testing.T
	db    *store.Store
	cfg   keyringConfig
	now   time.Time
	drift time.Duration // of the replica that looks next
}

func newKeyWorld(t *testing.T) *keyWorld {
	_, db := testRegistry(t)
	w := &keyWorld{T: t, db: db.Store, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	w.cfg = keyringFor(t, db.Store)
	w.cfg.Now = func() time.Time { return w.now.Add(w.drift) }
	return w
}

// start is a replica's start.
func (w *keyWorld) start(algorithm string) *keyring {
	w.Helper()
	cfg := w.cfg
	cfg.Algorithm = algorithm
	k, err := loadKeyring(w.Context(), cfg)
	if err != nil {
		w.Fatal(err)
	}
	return k
}

// turn is one look of a replica; it returns when the next thing is due there.
func (w *keyWorld) turn(k *keyring) time.Time {
	w.Helper()
	next, err := k.turn(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return next
}

// states are the keys, oldest first, each as its state and algorithm; names are their ids.
func (w *keyWorld) states() (states string, names []string) {
	w.Helper()
	rows, err := w.db.Keys(w.Context(), purposeSigning)
	if err != nil {
		w.Fatal(err)
	}
	var list []string
	for _, row := range rows {
		list, names = append(list, row.State+" "+row.Algorithm), append(names, row.ID)
	}
	return strings.Join(list, ", "), names
}

func (w *keyWorld) want(states string) []string {
	w.Helper()
	got, names := w.states()
	if got != states {
		w.Fatalf("at %s the keys are %q, want %q", w.now, got, states)
	}
	return names
}

// signs is the id of the key that a keyring signs with; it must be among those that it publishes.
func (w *keyWorld) signs(k *keyring) string {
	w.Helper()
	key, err := k.Signing()
	if err != nil {
		w.Fatal(err)
	}
	if !slices.ContainsFunc(k.Published(), func(p tokens.PublicKey) bool { return p.ID == key.ID }) {
		w.Errorf("it signs with %s and does not publish it", key.ID)
	}
	return key.ID
}

// AT-11: RFC 9068, Section 4: a key is published for signing.announce before it signs, signs for signing.rotate, and is published
// until its last token has expired. Each happens at its time and not before, once, with a record.
func TestRFC9068_4_KeyRotation(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	k := w.start(tokens.ES256)
	began := w.now
	first := w.want("active ES256")[0]
	at := func(d time.Duration, states string) []string {
		t.Helper()
		w.now = began.Add(d - time.Microsecond)
		before, _ := w.states()
		w.turn(k)
		w.want(before)
		w.now = began.Add(d)
		w.turn(k)
		return w.want(states)
	}
	const rotate, announce = 30 * 24 * time.Hour, time.Hour
	if next := w.turn(k); !next.Equal(began.Add(rotate - announce)) {
		t.Errorf("the next look is at %s", next)
	}
	second := at(rotate-announce, "active ES256, announced ES256")[1]
	if w.signs(k) != first || len(k.Published()) != 2 {
		t.Error("an announced key signs, or is not published")
	}
	if next := w.turn(k); !next.Equal(began.Add(rotate)) {
		t.Errorf("the next look is at %s", next)
	}
	at(rotate, "retiring ES256, active ES256")
	if w.signs(k) != second || len(k.Published()) != 2 {
		t.Error("the new key does not sign, or the old one is not published")
	}
	if _, err := k.Key(t.Context(), first); err != nil {
		t.Errorf("tokens of the old key: %v", err)
	}
	at(rotate+longestToken, "active ES256")
	if _, err := k.Key(t.Context(), first); !errors.Is(err, tokens.ErrUnknownKey) || len(k.Published()) != 1 {
		t.Errorf("a key that is over: %v", err)
	}
	at(2*rotate-announce, "active ES256, announced ES256")
}

// A replica whose clock may not be believed does nothing to the keys while there is one that signs: none is announced, signs
// or goes before its time.
func TestKeyring_NotByAWrongClock(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	steady := false
	w.cfg.Steady = func() bool { return steady }
	k := w.start(tokens.ES256)
	w.want("active ES256") // there was none
	const rotate, announce = 30 * 24 * time.Hour, time.Hour
	began := w.now
	for _, step := range []struct {
		at     time.Duration
		states string
	}{
		{rotate - announce, "active ES256, announced ES256"},
		{rotate, "retiring ES256, active ES256"},
		{rotate + longestToken, "active ES256"},
	} {
		w.now = began.Add(step.at)
		before, _ := w.states()
		if next := w.turn(k); !next.Equal(w.now.Add(keyHeld)) {
			t.Errorf("the next look is at %s", next)
		}
		w.start(tokens.ES256)
		w.want(before)
		steady = true
		w.turn(k)
		w.want(step.states)
		steady = false
	}
	w.start(tokens.EdDSA)
	w.want("active ES256")
}

// Keys rotate by themselves also where the service was down when something was due: late, and never without the announcement.
func TestKeyring_AfterLong(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	first := w.signs(w.start(tokens.ES256))
	w.now = w.now.Add(100 * 24 * time.Hour)
	k := w.start(tokens.ES256)
	w.want("active ES256, announced ES256")
	if w.signs(k) != first {
		t.Error("a key signs that nobody has heard of")
	}
	w.now = w.now.Add(100 * 24 * time.Hour)
	k = w.start(tokens.ES256)
	w.want("retiring ES256, active ES256")
	if w.signs(k) == first {
		t.Error("the announced key does not sign")
	}
	w.cfg.Rotate = 0
	k = w.start(tokens.ES256)
	w.now = w.now.Add(100 * 24 * time.Hour)
	w.turn(k)
	w.want("active ES256")
	if next := w.turn(k); !next.IsZero() {
		t.Errorf("without rotation something is due at %s", next)
	}
}

// Another algorithm in the configuration is announced like any key, and the old one goes on until then; taken back before
// that, what was announced goes. Of two replicas that differ, the one that started last has the word, and they come to rest.
func TestKeyring_Algorithm(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	older := w.start(tokens.ES256)
	first := w.signs(older)
	w.now = w.now.Add(time.Minute)
	newer := w.start(tokens.EdDSA)
	w.want("active ES256, announced EdDSA")
	w.now = w.now.Add(time.Minute)
	w.turn(older)
	w.want("active ES256, announced EdDSA")
	if w.signs(older) != first || w.signs(newer) != first {
		t.Error("a key signs that was not announced for its time")
	}
	w.now = w.now.Add(time.Minute)
	w.start(tokens.ES256)
	w.want("active ES256")
	w.now = w.now.Add(time.Minute)
	newest := w.start(tokens.EdDSA)
	for range 5 {
		w.now = w.now.Add(time.Hour)
		for _, k := range []*keyring{older, newer, newest} {
			w.turn(k)
		}
	}
	w.want("active EdDSA")
	if key, err := older.Signing(); err != nil || key.Algorithm != tokens.EdDSA {
		t.Errorf("an older replica signs with %s, %v", key.Algorithm, err)
	}
}

// Of many replicas that find the same due at once, one does it; clocks that differ neither make a key sign before its time
// by more than they differ, nor bring one back.
func TestKeyring_OneWriter(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	rings := []*keyring{w.start(tokens.ES256), w.start(tokens.ES256), w.start(tokens.ES256)}
	together := func() {
		t.Helper()
		var wg sync.WaitGroup
		failed := make([]error, len(rings))
		for i, k := range rings {
			wg.Go(func() { _, failed[i] = k.turn(context.WithoutCancel(t.Context())) })
		}
		wg.Wait()
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(30 * 24 * time.Hour)
	together()
	w.want("active ES256, announced ES256")
	w.now = w.now.Add(time.Hour)
	together()
	w.want("retiring ES256, active ES256")
	// One whose clock is a second behind finds the key announced by one that is ahead, and nothing due.
	w.now = w.now.Add(30*24*time.Hour - time.Hour)
	w.drift = time.Second
	w.turn(rings[0])
	names := w.want("active ES256, announced ES256")
	w.drift = -time.Second
	w.now = w.now.Add(time.Hour)
	w.turn(rings[1])
	w.want("active ES256, announced ES256")
	w.drift = time.Second
	w.turn(rings[0])
	w.want("retiring ES256, active ES256")
	w.drift = -time.Second
	w.turn(rings[2])
	if got := w.want("retiring ES256, active ES256"); !slices.Equal(got, names) {
		t.Errorf("the keys are %v, were %v", got, names)
	}
}

// While the journal takes no records the present key goes on: nothing is changed that could not be recorded.
func TestKeyring_JournalFails(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	k := w.start(tokens.ES256)
	first := w.signs(k)
	w.now = w.now.Add(40 * 24 * time.Hour)
	cfg := w.cfg
	cfg.Box = fullBox(t, w.db)
	again, err := loadKeyring(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.want("active ES256")
	if w.signs(again) != first {
		t.Error("another key signs")
	}
	w.turn(k)
	w.want("active ES256, announced ES256")
}

// AT-09: RFC 7518, Section 3.1: every algorithm makes keys that sign, verify and are told by their thumbprints (RFC 7638).
func TestRFC7518_3_1_SigningKeys(t *testing.T) {
	t.Parallel()
	for _, algorithm := range signingAlgorithms() {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			w := newKeyWorld(t)
			k := w.start(algorithm)
			w.want("active " + algorithm)
			again := w.start(algorithm)
			if w.signs(k) != w.signs(again) {
				t.Error("a restart makes another key")
			}
		})
	}
	if _, err := newSigningKey("none"); err == nil {
		t.Error("an algorithm that is none makes a key")
	}
}

// An emergency takes every key away at once and for good: no key that was made before is given out again.
func TestKeyring_Replace(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	k := w.start(tokens.ES256)
	other := w.start(tokens.ES256)
	w.now = w.now.Add(30 * 24 * time.Hour)
	w.turn(k)
	seen := map[string]bool{}
	for range 3 {
		_, names := w.states()
		for _, name := range names {
			if seen[name] {
				t.Errorf("the key %s came back", name)
			}
			seen[name] = true
		}
		if err := k.PrepareKey(t.Context(), w.db); err != nil {
			t.Fatal(err)
		}
		var events []audit.Event
		err := w.db.Transact(t.Context(), func(tx *store.Store) (err error) {
			events, err = k.ReplaceKeys(t.Context(), tx)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, e := range events {
			told = append(told, e.Name+" "+fmt.Sprint(slices.Contains(names, e.Detail["kid"])))
		}
		want := append(slices.Repeat([]string{"key.retire true"}, len(names)), "key.create false")
		if !slices.Equal(told, want) {
			t.Errorf("it is told as %v, want %v", told, want)
		}
		now := w.want("active ES256")
		for _, ring := range []*keyring{k, other} {
			if w.signs(ring) != now[0] || len(ring.Published()) != 1 {
				t.Error("an old key signs, or is still published")
			}
		}
	}
	if key, err := k.Signing(); err != nil || !key.Signer.Public().(*ecdsa.PublicKey).Equal(k.Published()[0].Key) {
		t.Errorf("what is published is not what signs: %v", err)
	}
}

// A15: the worst case at a resource server that verifies by itself and follows no feed: a key that was removed in an
// emergency is trusted for less than MaxAge by one that reaches the service, for less than MaxAge + StaleWhileError by one
// that does not, and no second longer. What the operator is told is that.
func TestKeyring_WorstCase(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	var down atomic.Bool
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cache-Control") != "no-cache" {
			t.Error("a cache on the way may answer with old keys")
		}
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.issuer.KeysHandler().ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	stolen, err := s.keys.Signing()
	if err != nil {
		t.Fatal(err)
	}
	// Each resource server reads the keys once, right before the emergency, and is asked once after it.
	const reachable, cutOff = tokens.DefaultMaxAge, tokens.DefaultMaxAge + tokens.DefaultStaleWhileError
	type probe struct {
		name  string
		after time.Duration
		down  bool
		good  bool
		keys  *tokens.KeySet
		now   *atomic.Pointer[time.Time]
	}
	var probes []*probe
	for _, p := range []probe{
		{name: "at once", after: 0, good: true},
		{name: "reachable, in the last second", after: reachable - time.Second, good: true},
		{name: "reachable, then", after: reachable},
		{name: "cut off, in the last second", after: cutOff - time.Second, down: true, good: true},
		{name: "cut off, then", after: cutOff, down: true},
		{name: "cut off, reachable again", after: reachable},
	} {
		start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		p.now = new(atomic.Pointer[time.Time])
		p.now.Store(&start)
		p.keys, err = tokens.NewKeySet(tokens.KeySetConfig{
			URL: server.URL + issuer.KeysPath, Client: server.Client(), Now: func() time.Time { return *p.now.Load() }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.keys.Key(t.Context(), stolen.ID); err != nil {
			t.Fatal(err)
		}
		probes = append(probes, &p)
	}
	err = s.folder.store.Transact(t.Context(), func(tx *store.Store) error {
		_, err := s.keys.ReplaceKeys(t.Context(), tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range probes {
		down.Store(p.down)
		later := p.now.Load().Add(p.after)
		p.now.Store(&later)
		if _, err := p.keys.Key(t.Context(), stolen.ID); (err == nil) != p.good {
			t.Errorf("%s, %s after the emergency: %v", p.name, p.after, err)
		}
	}
	// Nobody else's word counts: what is denied is refused by the service itself at once.
	if denied, err := s.denials.Denied(t.Context(), &tokens.Claims{}, stolen.ID); err != nil || !denied {
		t.Errorf("the service accepts what a removed key has signed: %t, %v", denied, err)
	}
}

// A15: keys of which it is not known whether they were removed are not published anew: that would lengthen the worst case.
func TestKeyring_NotPublishedAnew(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	ask := func() *http.Response {
		w := httptest.NewRecorder()
		s.publishedKeys().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, pathKeys, nil))
		return w.Result()
	}
	if res := ask(); res.StatusCode != http.StatusOK {
		t.Errorf("%s", res.Status)
	}
	s.keys.forget(store.Change{Keys: true})
	s.keys.mu.Lock()
	s.keys.failed, s.keys.failedAt = errors.New("the database is gone"), time.Now().Add(time.Hour)
	s.keys.mu.Unlock()
	if res := ask(); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("after a change that cannot be read: %s, %v", res.Status, res.Header)
	}
	s.keys.mu.Lock()
	s.keys.failed = nil
	s.keys.mu.Unlock()
	if res := ask(); res.StatusCode != http.StatusOK {
		t.Errorf("once they can be read again: %s", res.Status)
	}
}

// AT-10, MD-08: RFC 7517, Sections 4 and 8.5.2: of keys of every algorithm, those that are announced too, the set has the public
// members alone, with "kid" (which is the thumbprint), "alg" and "use".
func TestRFC7517_4_KeysOfEveryAlgorithm(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	members := map[string][]string{
		tokens.ES256: {"crv", "x", "y"}, tokens.EdDSA: {"crv", "x"}, tokens.PS256: {"e", "n"}, tokens.RS256: {"e", "n"},
		tokens.MLDSA44: {"pub"}, tokens.MLDSA65: {"pub"},
	}
	for _, algorithm := range signingAlgorithms() {
		if algorithm == tokens.ES256 {
			continue // it is there
		}
		key, err := newSigningKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		key.State = keyAnnounced
		if err := s.folder.store.PutKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	s.issuer.KeysHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, issuer.KeysPath, nil))
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, entry := range set.Keys {
		want := append([]string{"alg", "kid", "kty", "use"}, members[entry["alg"]]...)
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(entry)); !slices.Equal(got, want) || entry["use"] != "sig" {
			t.Errorf("%s is published with %v, want %v", entry["alg"], got, want)
		}
		public, err := s.keys.Key(t.Context(), entry["kid"])
		if err != nil {
			t.Fatal(err)
		}
		if id, err := tokens.KeyID(public.Key); err != nil || id != entry["kid"] || seen[id] {
			t.Errorf("%s has the id %s, want its thumbprint %s, once: %v", entry["alg"], entry["kid"], id, err)
		}
		seen[entry["kid"]] = true
	}
	if len(seen) != len(members) {
		t.Errorf("%d keys are published, want %d", len(seen), len(members))
	}
}

// A1, A15: when an emergency rotation is answered, no replica signs with a key of before, accepts what it signed, or resumes a
// session of before; tokens of the new key are good at all of them. So it is after a restart.
func TestReplicas_EmergencyRotation(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	configs := []config.Config{i.config(), i.config()}
	one, two := start(t, configs[0]), start(t, configs[1])
	both := []*instance{one, two}
	cert := one.auditor("auditor")
	before := []string{one.operatorsToken(cert, "auditor"), two.operatorsToken(cert, "auditor")}
	cache := tls.NewLRUClientSessionCache(4)
	resumes := func(in *instance) bool {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(in.mtls, "https://"), &tls.Config{
			RootCAs: in.roots(), ServerName: "localhost", Certificates: []tls.Certificate{cert}, ClientSessionCache: cache,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// A TLS 1.3 ticket comes behind the handshake: an answer brings it along.
		if _, err := io.WriteString(conn, "GET "+pathRoots+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().DidResume
	}
	if resumes(two) || !resumes(two) {
		t.Fatal("the second connection did not resume: this test shows nothing")
	}
	for _, in := range both {
		for _, token := range before {
			if got := in.use(cert, token); got != http.StatusOK {
				t.Fatalf("before: %d", got)
			}
		}
	}
	operator := one
	if _, err := os.Stat(filepath.Join(one.data, "admin")); err != nil {
		operator = two
	}
	var done admin.Rotation
	operator.mustOperate(http.MethodPost, "/keys/rotate", admin.RotateRequest{Emergency: true}, &done)
	if len(done.Removed) != 1 || len(done.Keys) != 1 {
		t.Fatalf("answered %+v", done)
	}
	if resumes(two) {
		t.Error("a session of before resumes")
	}
	check := func(when string) {
		t.Helper()
		for _, in := range both {
			for _, token := range before {
				if got := in.use(cert, token); got != http.StatusUnauthorized {
					t.Errorf("%s: a token of before: %d", when, got)
				}
			}
			token := in.operatorsToken(cert, "auditor")
			for _, other := range both {
				if got := other.use(cert, token); got != http.StatusOK {
					t.Errorf("%s: a token of after: %d", when, got)
				}
			}
		}
	}
	check("at once")
	two.stop()
	both[1] = start(t, configs[1])
	check("after a restart")
}

// A15: who follows the deny feed hears of an emergency at once: the page that tells of the removed key is signed with the new
// one, and the follower's own token has to be a new one too.
func TestKeyring_EmergencyInTheFeed(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	f := in.follow("ledger-server", ledger)
	status, body := f.poll(in, "")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	header, first := decodePage(t, body)
	type answer struct {
		status int
		body   string
	}
	told := make(chan answer, 1)
	go func() {
		status, body := f.poll(in, fmt.Sprint("?since=", first.Head))
		told <- answer{status, body}
	}()
	eventually(t, 5*time.Second, "somebody waits", func() bool {
		return strings.Contains(in.awaitMetric("certbound_feed_waiting"), "certbound_feed_waiting 1")
	})
	began := time.Now()
	var done admin.Rotation
	in.mustOperate(http.MethodPost, "/keys/rotate", admin.RotateRequest{Emergency: true}, &done)
	heard := <-told
	t.Logf("told after %s", time.Since(began))
	if heard.status != http.StatusOK {
		t.Fatalf("who waits: %d %s", heard.status, heard.body)
	}
	signedBy, p := decodePage(t, heard.body)
	if len(done.Removed) != 1 || header["kid"] != done.Removed[0] || signedBy["kid"] != done.Keys[0].ID {
		t.Errorf("the page was signed by %v, then by %v; removed are %v", header["kid"], signedBy["kid"], done.Removed)
	}
	if len(p.Entries) != 1 || p.Entries[0]["kid"] != done.Removed[0] || time.Since(began) > 3*time.Second {
		t.Errorf("told %+v after %s", p, time.Since(began))
	}
	if status, _ := f.poll(in, ""); status != http.StatusUnauthorized {
		t.Errorf("the follower's token of before: %d", status)
	}
	if status, f.token = f.askToken("ledger-server", in.issuer+pathDenied); status != http.StatusOK {
		t.Fatalf("a new token for the feed: %d", status)
	}
	if p := f.page(in, ""); !slices.ContainsFunc(p.Entries, func(e map[string]any) bool { return e["kid"] == done.Removed[0] }) {
		t.Errorf("from the beginning it is told %+v", p)
	}
}
