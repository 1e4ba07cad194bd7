// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/replica"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/scripts/postgres"
)

// installation is a database of PostgreSQL and the key-encryption key that its replicas share.
type installation struct {
	tb  testing.TB
	url string
	kek string // a file
}

func newInstallation(tb testing.TB) *installation {
	tb.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	i := &installation{tb: tb, url: postgres.ForTest(tb).Database(tb), kek: filepath.Join(tb.TempDir(), "shared.kek")}
	if err := os.WriteFile(i.kek, []byte(base64.StdEncoding.EncodeToString(key)), 0o600); err != nil {
		tb.Fatal(err)
	}
	return i
}

// config is that of a replica with a data folder of its own.
func (i *installation) config() config.Config {
	i.tb.Helper()
	return i.configAt(i.tb.TempDir(), i.url)
}

func (i *installation) configAt(data, url string) config.Config {
	i.tb.Helper()
	port := "127.0.0.1:0"
	cfg, err := config.Load("", nil, config.Overrides{Data: &data, Public: &port, MTLS: &port, Debug: &port, Database: &url})
	if err != nil {
		i.tb.Fatal(err)
	}
	cfg.KEKFile, cfg.DatabaseConnections = i.kek, 8
	return cfg
}

// public is the base of the instance's own public listener, whatever the issuer says.
func (in *instance) public() string {
	in.tb.Helper()
	doc, err := os.ReadFile(filepath.Join(in.data, "serve.json"))
	if err != nil {
		in.tb.Fatal(err)
	}
	var about struct{ Public string }
	if err := json.Unmarshal(doc, &about); err != nil {
		in.tb.Fatal(err)
	}
	return "https://" + about.Public
}

func (in *instance) status() (s admin.Status) {
	in.tb.Helper()
	in.mustOperate(http.MethodGet, "/status", nil, &s)
	return s
}

// readyz is what the instance says of itself to whoever sends requests to it.
func (in *instance) readyz() (status int, checks map[string]string) {
	in.tb.Helper()
	res, err := http.Get("http://" + in.debug + "/readyz")
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&checks); err != nil {
		in.tb.Fatal(err)
	}
	return res.StatusCode, checks
}

// eventually waits for something that comes by itself.
func eventually(tb testing.TB, within time.Duration, what string, f func() bool) {
	tb.Helper()
	for end := time.Now().Add(within); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within %s: %s", within, what)
		}
	}
}

// Two replicas serve one installation: what one gives the other knows, and what one takes away is refused at the other
// when the answer is there.
func TestReplicas(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one := start(t, i.config())
	two := start(t, i.config())
	if _, err := os.Stat(filepath.Join(two.data, "admin")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a later replica has an operator's profile: %v", err)
	}
	one.addLedger()
	cert := one.enrolled("payments")
	for name, in := range map[string]*instance{"one": one, "two": two} {
		if status, checks := in.readyz(); status != http.StatusOK || checks["lease"] != "ok" {
			t.Errorf("%s is not ready: %v", name, checks)
		}
	}
	connections := make(map[*instance]*http.Client)
	for _, in := range []*instance{one, two} {
		connections[in] = in.client(&cert)
		wantToken(t, in.token(connections[in], "payments"))
	}
	s := one.status()
	if s.Database.Kind != "postgresql" || s.Database.Version == "" || s.Database.Durability != "single node" || len(s.Replicas) != 2 {
		t.Errorf("the status: %+v", s.Cluster)
	}
	for _, r := range s.Replicas {
		if r.Lease != "live" || r.Incarnation != 1 || r.Version != "test" || r.RenewedSecondsAgo > 3 ||
			r.This != strings.HasSuffix(one.mtls, r.Address[strings.LastIndexByte(r.Address, ':'):]) {
			t.Errorf("a replica: %+v", r)
		}
	}
	text := two.awaitMetric("certbound_replica_lease_remaining_seconds")
	for _, want := range []string{"certbound_replica_lag_versions 0", "certbound_replica_lease_lapses_total 0",
		"certbound_replica_database_quorum 0", "certbound_replica_clock_alarm 0"} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %q:\n%s", want, text)
		}
	}
	var done admin.Revocation
	began := time.Now()
	one.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "payments"}, &done)
	took := time.Since(began)
	wantRefused(t, two.token(connections[two], "payments"))
	wantRefused(t, one.token(connections[one], "payments"))
	if done.Durability != "single node" || len(done.Revoked) != 1 {
		t.Errorf("the answer: %+v", done)
	}
	if took > 2*time.Second {
		t.Errorf("the revocation took %s with two live replicas", took)
	}
	t.Logf("the revocation took %s", took)
	// Both stop cleanly, and leave no row that others would wait for.
	if err := two.stop(); err != nil {
		t.Fatal(err)
	}
	if s := one.status(); len(s.Replicas) != 1 || !s.Replicas[0].This {
		t.Errorf("after one has stopped: %+v", s.Replicas)
	}
}

// A code is redeemed once, at whichever replica.
func TestReplicas_OneCode(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	both := []*instance{start(t, i.config()), start(t, i.config())}
	both[0].addLedger()
	for n := range 3 {
		code := both[0].addClient("payments-" + string(rune('a'+n)))
		statuses := make([]int, len(both))
		answers := make([]pki.EnrollResponse, len(both))
		var wg sync.WaitGroup
		for k, in := range both {
			c, request := in.client(nil), pki.NewEnrollRequest(code, in.issuer, newCSR(t, newKey(t)))
			wg.Go(func() { statuses[k], answers[k] = in.certify(c, in.public()+pathEnroll, request) })
		}
		wg.Wait()
		if (statuses[0] == http.StatusOK) == (statuses[1] == http.StatusOK) {
			t.Errorf("two keys with one code at two replicas: %v", statuses)
		}
	}
}

// Two first starts at the same moment make one installation.
func TestReplicas_FirstStartRace(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	configs := []config.Config{i.config(), i.config(), i.config()}
	instances := make([]*instance, len(configs))
	failed := make([]error, len(configs))
	var wg sync.WaitGroup
	for k, cfg := range configs {
		wg.Go(func() { instances[k], failed[k] = tryStart(t, cfg) })
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	profiles := 0
	var operator *instance
	for _, in := range instances {
		if _, err := os.Stat(filepath.Join(in.data, "admin")); err == nil {
			profiles++
			operator = in
		}
		if in.issuer != instances[0].issuer {
			t.Errorf("two issuers: %s and %s", in.issuer, instances[0].issuer)
		}
	}
	if profiles != 1 {
		t.Fatalf("%d operator's profiles, want 1", profiles)
	}
	operator.addLedger()
	cert := operator.enrolled("payments")
	for _, in := range instances {
		wantToken(t, in.token(in.client(&cert), "payments"))
	}
	db := i.open()
	for _, purpose := range []string{purposeIssuing, purposeRoot, purposeSigning} {
		if keys, err := db.Keys(t.Context(), purpose); err != nil || len(keys) != 1 {
			t.Errorf("%d keys for %s, %v", len(keys), purpose, err)
		}
	}
	if keys, err := db.Keys(t.Context(), purposeServer); err != nil || len(keys) != len(instances) {
		t.Errorf("%d certificates for %d replicas, %v", len(keys), len(instances), err)
	}
}

// open opens the database past the replicas.
func (i *installation) open() *store.Store {
	i.tb.Helper()
	kek, err := store.LoadKEK("", "", store.KEKSource{File: i.kek})
	if err != nil {
		i.tb.Fatal(err)
	}
	db, err := store.Open(i.tb.Context(), store.Config{URL: i.url, KEK: kek, Replica: "test"})
	if err != nil {
		i.tb.Fatal(err)
	}
	i.tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			i.tb.Error(err)
		}
	})
	return db
}

// A replica without the installation's key, with another one, of another installation or with another identity is refused,
// told what to do, and leaves nothing behind.
func TestReplicas_Refused(t *testing.T) {
	t.Parallel()
	i, other := newInstallation(t), newInstallation(t)
	one := start(t, i.config())
	foreign := start(t, other.config())
	if err := foreign.stop(); err != nil {
		t.Fatal(err)
	}
	db := i.open()
	for name, tc := range map[string]struct {
		cfg  func() config.Config
		want []string // of message and hint
		kept []string // patterns of files that may be there
	}{
		"no key": {func() config.Config {
			cfg := i.config()
			cfg.KEKFile = ""
			return cfg
		}, []string{"CERTBOUND_KEK", "copy"}, nil},
		"another key": {func() config.Config {
			cfg := i.config()
			cfg.KEKFile = other.kek
			return cfg
		}, []string{"key-encryption key"}, nil},
		"another installation's folder": {func() config.Config {
			return i.configAt(foreign.data, i.url)
		}, []string{"installation", foreign.data}, []string{"*"}},
		"another issuer": {func() config.Config {
			cfg := i.config()
			issuer := "https://other.example"
			again, err := config.Load("", nil, config.Overrides{Data: &cfg.Data, Issuer: &issuer, Public: &cfg.Public, MTLS: &cfg.MTLS, Database: &i.url})
			if err != nil {
				t.Fatal(err)
			}
			again.KEKFile = i.kek
			return again
		}, []string{"issuer", "other.example"}, nil},
		"another trust domain": {func() config.Config {
			cfg := i.config()
			cfg.TrustDomain = "other.example"
			return cfg
		}, []string{"trust domain", "other.example"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := tc.cfg()
			before, err := db.Version(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			files := folderContents(t, cfg.Data)
			_, err = tryStart(t, cfg)
			text := ""
			if refused, ok := errors.AsType[*StartError](err); ok {
				text = refused.Message + "\n" + refused.Hint
			} else if refused, ok := errors.AsType[*store.KEKError](err); ok {
				text = refused.Error() + "\n" + refused.Hint
			}
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("it does not say %q: %v\n%s", want, err, text)
				}
			}
			if after := folderContents(t, cfg.Data); len(after) != len(files) {
				t.Errorf("it left %d files where %d were", len(after), len(files))
			}
			if after, err := db.Version(t.Context()); err != nil || after != before {
				t.Errorf("the database went from version %d to %d, %v", before, after, err)
			}
		})
	}
	if s := one.status(); len(s.Replicas) != 1 {
		t.Errorf("a refused replica is known: %+v", s.Replicas)
	}
	// A folder that lost its database to another, empty one is not made a new installation.
	empty := postgres.ForTest(t).Database(t)
	if _, err := tryStart(t, i.configAt(foreign.data, empty)); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("an empty database for a folder with an installation: %v", err)
	}
}

// A copy of a data folder takes over, and the process that had it before ends with an error that says why: two never serve
// as one.
func TestReplicas_CopiedFolder(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	cfg := i.config()
	one := start(t, cfg)
	data := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", cfg.Data, data).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The copy remembers the ports of the first one, which are taken here and would not be on another machine.
	again := i.configAt(data, i.url)
	again.Public, again.MTLS, again.Debug = "127.0.0.2:0", "127.0.0.2:0", "127.0.0.2:0"
	two := start(t, again)
	eventually(t, 10*time.Second, "the former process ends", func() bool {
		res, err := http.Get("http://" + one.debug + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err != nil
	})
	err := one.stop()
	told, ok := errors.AsType[*StartError](err)
	if !errors.Is(err, store.ErrLeaseLost) || !ok || !strings.Contains(told.Message, ", at 127.0.0.2:") ||
		!strings.Contains(told.Hint, "a copy of this data folder") {
		t.Errorf("the former process ended with %v: %+v", err, told)
	}
	one.stop = func() error { return nil }
	if status, checks := two.readyz(); status != http.StatusOK {
		t.Errorf("the later one is not ready: %v", checks)
	}
}

// Who was given no key makes one only for a database that is empty. Of two first starts at once that each made one, one
// fails, says what to do, and keeps nothing.
func TestReplicas_EachWithAKeyOfItsOwn(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	configs := []config.Config{i.config(), i.config()}
	instances, failed := make([]*instance, 2), make([]error, 2)
	var wg sync.WaitGroup
	for k := range configs {
		configs[k].KEKFile = ""
		wg.Go(func() { instances[k], failed[k] = tryStart(t, configs[k]) })
	}
	wg.Wait()
	if (failed[0] == nil) == (failed[1] == nil) {
		t.Fatalf("of two, one starts: %v, %v", failed[0], failed[1])
	}
	good, bad := 0, 1
	if failed[good] != nil {
		good, bad = bad, good
	}
	hint := ""
	if refused, ok := errors.AsType[*StartError](failed[bad]); ok {
		hint = refused.Hint
	} else if refused, ok := errors.AsType[*store.KEKError](failed[bad]); ok {
		hint = refused.Hint
	}
	if !strings.Contains(hint, "copy") || !strings.Contains(hint, "CERTBOUND_KEK") {
		t.Errorf("it does not say what to do: %v; %s", failed[bad], hint)
	}
	if left := folderContents(t, configs[bad].Data); len(left) > 0 {
		t.Errorf("it left %d files", len(left))
	}
	kek, err := os.ReadFile(filepath.Join(configs[good].Data, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(configs[bad].Data, "kek"), kek, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, configs[bad])
	if s := instances[good].status(); len(s.Replicas) != 2 {
		t.Errorf("%d replicas", len(s.Replicas))
	}
}

// What replicas that are gone left behind goes when it has expired, and not before; the own is never touched.
func TestForgetReplicas(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	own, err := s.folder.store.Keys(t.Context(), purposeServer)
	if err != nil || len(own) != 1 {
		t.Fatal(own, err)
	}
	gone := own[0]
	gone.ID = "gone"
	if err := s.folder.store.PutKey(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	end := s.own.Current().Leaf.NotAfter
	for _, tc := range []struct {
		now  time.Time
		left int
	}{{end.Add(-time.Second), 2}, {end, 1}, {end, 1}} {
		if err := s.forgetReplicas(t.Context(), tc.now); err != nil {
			t.Fatal(err)
		}
		keys, err := s.folder.store.Keys(t.Context(), purposeServer)
		if err != nil || len(keys) != tc.left || !slices.ContainsFunc(keys, func(k store.Key) bool { return k.ID == s.replica.Replica }) {
			t.Errorf("at %s: %d keys, %v; want %d and the own among them", tc.now, len(keys), err, tc.left)
		}
	}
}

// Without a lease no code is redeemed, also where the database would take it.
func TestEnrollWithoutALease(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	text, row, err := s.authority.NewCode("payments")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.folder.store.AddClient(t.Context(), store.Client{ID: "payments", AuthMethod: "tls_client_auth", Usage: "client"}, &row); err != nil {
		t.Fatal(err)
	}
	code, err := pki.ParseCode(text)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(pki.NewEnrollRequest(code, s.identity.issuer, newCSR(t, newKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	none, err := replica.New(replica.Config{Database: s.folder.store, Name: "none", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		member *member
		want   int
	}{{&member{Replica: none}, http.StatusServiceUnavailable}, {nil, http.StatusOK}} {
		s.member = tc.member
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, pathEnroll, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.enroll(w, r)
		if w.Code != tc.want || (w.Header().Get("Retry-After") != "") != (tc.want != http.StatusOK) {
			t.Errorf("with a lease %t: %d %s", tc.member == nil, w.Code, w.Body)
		}
	}
}

// Replicas whose metadata would name different mtls listeners are warned of by whoever comes later, soon by those that were
// there, once, and shown in the status.
func TestReplicas_MTLSURLs(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	cfg := func() config.Config {
		cfg := i.config()
		cfg.MTLSURL = "https://balancer.example:9443"
		return cfg
	}
	const warning = "different mtls URLs"
	one, two := start(t, cfg()), start(t, cfg())
	if strings.Contains(one.logs.String()+two.logs.String(), warning) {
		t.Errorf("a warning without a reason: %s", two.logs)
	}
	three := start(t, i.config())
	if logs := three.logs.String(); !strings.Contains(logs, warning) || !strings.Contains(logs, "own="+three.mtls) ||
		!strings.Contains(logs, "its=https://balancer.example:9443") {
		t.Errorf("no warning: %s", logs)
	}
	for name, in := range map[string]*instance{"one": one, "two": two} {
		eventually(t, 30*time.Second, name+" warns, too", func() bool {
			return strings.Contains(in.logs.String(), "its="+three.mtls)
		})
	}
	var status admin.Status
	res, err := one.socketClient().Get("http://certbound/admin/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	urls := make(map[string]int)
	for _, r := range status.Replicas {
		urls[r.MTLSURL]++
	}
	if urls["https://balancer.example:9443"] != 2 || urls[three.mtls] != 1 {
		t.Errorf("the status shows %v", urls)
	}
}

// Of another mtls URL is warned once, and again when it is another one, or was the same in between.
func TestCompareURLs(t *testing.T) {
	t.Parallel()
	var logs syncBuffer
	s := &service{log: slog.New(slog.NewTextHandler(&logs, nil)), replica: replicaID{Replica: "r"}}
	compare := s.compareURLs(t.Context(), "https://own")
	said := 0
	look := func(warnings int, rows ...store.Lease) {
		t.Helper()
		compare(append(rows, store.Lease{Replica: "r", MTLSURL: "https://own"}))
		said += warnings
		if got := strings.Count(logs.String(), "level=WARN"); got != said {
			t.Errorf("%d warnings, want %d:\n%s", got, said, logs.String())
		}
	}
	a := func(url string) store.Lease { return store.Lease{Replica: "a", MTLSURL: url} }
	b := func(url string) store.Lease { return store.Lease{Replica: "b", MTLSURL: url} }
	look(0)
	look(0, a("https://own"))
	look(1, a("https://own"), b("https://b"))
	look(0, a("https://own"), b("https://b"))
	look(1, a(""), b("https://b"))
	look(0, a(""), b("https://b"))
	look(1, a(""), b("https://c"))
	look(0, a(""), b("https://own"))
	look(1, a(""), b("https://c"))
	look(0, b("https://c"))
	look(1, a(""), b("https://c"))
}
