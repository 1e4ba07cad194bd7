// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/mldsa"
	"github.com/certbound/certbound/tokens/resource"
)

// following is a resource server that follows the deny feed, as a stranger's program would.
type following struct {
	*mtlstest.Running
	cert   tls.Certificate
	feed   *tokens.DenyFeed
	ahead  atomic.Int64 // nanoseconds by which the feed's clock is ahead
	causes chan error   // why streams ended

	mu    sync.Mutex
	asked []string // the queries of its polls
}

// polls is how a following asks: each replica in turn, as behind a load balancer.
type polls struct {
	http.RoundTripper
	of    *following
	hosts []string
}

func (p polls) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	p.of.mu.Lock()
	r.URL.Host = p.hosts[len(p.of.asked)%len(p.hosts)]
	p.of.asked = append(p.of.asked, r.URL.RawQuery)
	p.of.mu.Unlock()
	return p.RoundTripper.RoundTrip(r)
}

// queries are those of its polls since it began.
func (f *following) queries() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// following starts one for the ledger, as the client id, once it knows what is denied. It reads keys of the further types,
// and accepts the algorithms, those of the defaults when there are none.
func (in *instance) following(id string, types []tokens.KeyType, algorithms ...string) *following {
	in.tb.Helper()
	return in.followingAt([]*instance{in}, id, types, algorithms...)
}

// followingAt is following that asks each of these replicas in turn.
func (in *instance) followingAt(replicas []*instance, id string, types []tokens.KeyType, algorithms ...string) *following {
	in.tb.Helper()
	var origins, hosts []string
	for _, replica := range replicas {
		origins, hosts = append(origins, replica.mtls), append(hosts, strings.TrimPrefix(replica.mtls, "https://"))
	}
	cert := in.enrolledWith(map[string]any{"client_id": id})
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": ledger, "scope": write, "servers": []string{id}}, nil)
	f := &following{cert: cert, causes: make(chan error, 10)}
	keyPair, err := mtls.NewKeyPair(cert)
	if err != nil {
		in.tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	in.tb.Cleanup(stop)
	bearer, err := client.New(ctx, client.Config{
		Issuer: in.issuer, ClientID: id, KeyPair: keyPair, Roots: in.roots(),
		Scopes: []string{scopeDenied}, Resources: []string{in.issuer + pathDenied}, Origins: origins,
	})
	if err != nil {
		in.tb.Fatal(err)
	}
	in.tb.Cleanup(bearer.Close)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: in.issuer + pathKeys, Client: in.client(nil), KeyTypes: types})
	if err != nil {
		in.tb.Fatal(err)
	}
	f.feed, err = tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: in.issuer, URL: in.mtls + pathDenied, Keys: keys, Client: &http.Client{Transport: polls{bearer, f, hosts}}, Stale: tokens.StaleRefuse,
		Algorithms: algorithms,
		Now:        func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) },
	})
	if err != nil {
		in.tb.Fatal(err)
	}
	v, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: in.issuer, Audience: ledger, Keys: keys, Denied: f.feed.Denied, Algorithms: algorithms})
	if err != nil {
		in.tb.Fatal(err)
	}
	guard, err := resource.New(resource.Config{Verifier: v, Denials: f.feed})
	if err != nil {
		in.tb.Fatal(err)
	}
	f.Running = mtlstest.Server(in.tb, guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" {
			return
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		f.causes <- context.Cause(r.Context())
	}), write), mtlstest.NewCA(in.tb, "web").Issue(in.tb, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	var all sync.WaitGroup
	all.Go(func() { _ = f.feed.Run(ctx) })
	in.tb.Cleanup(func() { stop(); all.Wait() })
	eventually(in.tb, 20*time.Second, "what is denied is known", func() bool { return f.feed.Err() == nil })
	return f
}

// RV-06, FA-02: RFC 7009, Section 3: in FAPI 2.0 mode, with the real service and our own client, verifier and middleware: what
// is revoked by token, certificate or client is refused at the resource server within a second, its streams end, and the
// operator is told that the resource server knows; one that hears nothing for too long refuses everything.
func TestRFC7009_3_ResourceServerFollows(t *testing.T) {
	t.Parallel()
	cfg := fapiConfig(t, t.TempDir())
	in := start(t, cfg)
	api := in.following("ledger-server", nil)
	enrolled := func(id string) (tls.Certificate, string) {
		cert := in.enrolled(id)
		answer := in.token(in.client(&cert), id)
		wantToken(t, answer)
		return cert, answer.Token
	}
	use := func(cert *tls.Certificate, token string) int {
		return call(t, api.Running, cert, "Bearer "+token).StatusCode
	}
	other, stays := enrolled("stays")
	for what, revoke := range map[string]func(id string, cert tls.Certificate, token string){
		"token": func(id string, cert tls.Certificate, token string) {
			if err := in.revokeToken(cert, id, token); err != nil {
				t.Fatal(err)
			}
		},
		"certificate": func(id string, _ tls.Certificate, _ string) {
			var done admin.Revocation
			in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": id, "wait_resources": 10}, &done)
			if want := []admin.Follower{{ClientID: "ledger-server", Has: true}}; !slices.Equal(done.Resources, want) {
				t.Errorf("%+v", done.Resources)
			}
		},
		"client": func(id string, _ tls.Certificate, _ string) {
			in.mustOperate(http.MethodPost, "/clients/"+id+"/disable", nil, nil)
		},
	} {
		id := "by-" + what
		cert, token := enrolled(id)
		if status := use(&cert, token); status != http.StatusOK {
			t.Fatalf("%s: %d", what, status)
		}
		stream := api.stream(t, &cert, token)
		began := time.Now()
		revoke(id, cert, token)
		done := time.Now()
		for use(&cert, token) == http.StatusOK {
			if time.Since(done) > time.Second {
				t.Fatalf("%s: accepted a second after its revocation", what)
			}
		}
		t.Logf("%s: refused %s after the revocation was sent, %s after its answer", what, time.Since(began), time.Since(done))
		if status := use(&cert, token); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", what, status)
		}
		if cause := <-api.causes; !errors.Is(cause, resource.ErrDenied) {
			t.Errorf("%s: the stream ended with %v", what, cause)
		}
		if _, err := io.Copy(io.Discard, stream); err == nil {
			t.Errorf("%s: the client takes the stream for complete", what)
		}
		if status := use(&other, stays); status != http.StatusOK {
			t.Errorf("another's token: %d", status)
		}
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	if status := use(&other, stays); status != http.StatusOK {
		t.Errorf("as soon as the service stops: %d", status)
	}
	api.ahead.Store(int64(tokens.DefaultDenyFeedMaxAge))
	if status := use(&other, stays); status != http.StatusServiceUnavailable {
		t.Errorf("without a word for 30 s: %d", status)
	}
}

// stream opens a request that does not end by itself.
func (f *following) stream(t *testing.T, cert *tls.Certificate, token string) io.Reader {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "text/event-stream")
	//nolint:gosec // whose certificate the API has is not what is tested
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}}}
	t.Cleanup(transport.CloseIdleConnections)
	res, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("the stream: %s", res.Status)
	}
	return res.Body
}

// A resource server that follows goes on through a restore of the database from a backup: what was denied before stays so,
// it is told everything anew behind the position that it has, without starting over, and hears what is denied from then on.
func TestRFC7009_3_FollowsThroughARestore(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	api := in.following("ledger-server", nil)
	taken := func(id string) (tls.Certificate, string) {
		cert := in.enrolled(id)
		answer := in.token(in.client(&cert), id)
		wantToken(t, answer)
		return cert, answer.Token
	}
	use := func(cert *tls.Certificate, token string) int {
		return call(t, api.Running, cert, "Bearer "+token).StatusCode
	}
	lost, lostToken := taken("lost")
	late, lateToken := taken("late")
	stays, staysToken := taken("stays")

	ctx := t.Context()
	kek, err := store.LoadKEK(cfg.Data, "", store.KEKSource{Found: func() (bool, error) { return true, nil }})
	if err != nil {
		t.Fatal(err)
	}
	file, backup := filepath.Join(cfg.Data, "certbound.db"), filepath.Join(t.TempDir(), "backup")
	db, err := store.Open(ctx, store.Config{Path: file, KEK: kek, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := db.Backup(ctx, backup, store.CopyConfig{KEK: kek, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.revokeToken(lost, "lost", lostToken); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it is refused", func() bool { return use(&lost, lostToken) == http.StatusUnauthorized })
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file + "-wal", file + "-shm"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	report, err := restore.Run(ctx, restore.Config{Backup: backup, Target: store.Config{Path: file, KEK: kek}, Journals: []string{cfg.Data}, Program: "test"})
	if err != nil || report.Done["token.revoke"] != 1 {
		t.Fatalf("%v: %+v", err, report)
	}
	before := len(api.queries())
	in = start(t, cfg)
	eventually(t, 20*time.Second, "it is told everything anew", func() bool {
		asked := api.queries()
		since, err := strconv.ParseInt(strings.TrimPrefix(asked[len(asked)-1], "since="), 10, 64)
		return err == nil && since > 1<<32
	})
	if err := api.feed.Err(); err != nil {
		t.Error(err)
	}
	for _, query := range api.queries()[before:] {
		if query == "" {
			t.Error("it started over")
		}
	}
	if a, b := use(&lost, lostToken), use(&stays, staysToken); a != http.StatusUnauthorized || b != http.StatusOK {
		t.Errorf("after the restore: %d what was revoked before, %d the other", a, b)
	}
	if err := in.revokeToken(late, "late", lateToken); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "what is revoked after the restore is refused", func() bool { return use(&late, lateToken) == http.StatusUnauthorized })
	if status := use(&stays, staysToken); status != http.StatusOK {
		t.Errorf("at the end, the other: %d", status)
	}
}

// A resource server that asks several replicas in turn hears of a revocation at any of them, and is never without knowledge
// because one of them has heard of it later than another.
func TestReplicas_FollowerOfBoth(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := start(t, i.config()), start(t, i.config())
	api := one.followingAt([]*instance{one, two}, "ledger-server", nil)
	cert := one.enrolled("payments")
	for n := range 10 {
		in := []*instance{one, two}[n%2]
		answer := in.token(in.client(&cert), "payments")
		wantToken(t, answer)
		use := func() int { return call(t, api.Running, &cert, "Bearer "+answer.Token).StatusCode }
		if status := use(); status != http.StatusOK {
			t.Fatalf("token %d: %d", n, status)
		}
		if err := in.revokeToken(cert, "payments", answer.Token); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "it is refused", func() bool { return use() == http.StatusUnauthorized })
		if err := api.feed.Err(); err != nil {
			t.Error(err)
		}
	}
}

// A15: after an emergency rotation a resource server that follows refuses what the removed key has signed, ends its streams, and
// accepts what the new key signs, whose id it has never heard; its own token has to be a new one too.
func TestKeyring_EmergencyAtAResourceServer(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	api := in.following("ledger-server", nil)
	cert := in.enrolled("payments")
	take := func() string {
		answer := in.token(in.client(&cert), "payments")
		wantToken(t, answer)
		return answer.Token
	}
	use := func(token string) int { return call(t, api.Running, &cert, "Bearer "+token).StatusCode }
	before := take()
	stream := api.stream(t, &cert, before)
	if status := use(before); status != http.StatusOK {
		t.Fatalf("before: %d", status)
	}
	began := time.Now()
	in.mustOperate(http.MethodPost, "/keys/rotate", admin.RotateRequest{Emergency: true}, nil)
	eventually(t, 20*time.Second, "a token of before is refused", func() bool { return use(before) == http.StatusUnauthorized })
	if cause := <-api.causes; !errors.Is(cause, resource.ErrDenied) {
		t.Errorf("the stream ended with %v", cause)
	}
	if _, err := io.Copy(io.Discard, stream); err == nil {
		t.Error("the client takes the stream for complete")
	}
	after := take()
	eventually(t, 20*time.Second, "a token of after is accepted", func() bool { return use(after) == http.StatusOK })
	t.Logf("over after %s", time.Since(began))
	// It follows on, with a token that the new key signed.
	if err := in.revokeToken(cert, "payments", after); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "what is revoked then is refused", func() bool { return use(after) == http.StatusUnauthorized })
	if err := api.feed.Err(); err != nil {
		t.Error(err)
	}
}

// RFC 9964, Section 3: with signing keys of ML-DSA everything works that signs or verifies: tokens, introspection in both
// forms, the deny feed, and a resource server that was given the code.
func TestRFC9964_3_EndToEnd(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{tokens.MLDSA44, tokens.MLDSA65} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, t.TempDir())
			cfg.Signing.Algorithm = algorithm
			in := start(t, cfg)
			api := in.following("ledger-server", mldsa.Types(), algorithm)
			cert := in.enrolled("payments")
			answer := in.token(in.client(&cert), "payments")
			wantToken(t, answer)
			server := in.client(&api.cert)
			signedBy := func(raw, typ string) {
				t.Helper()
				parsed, err := tokens.ParseUnverified(raw)
				if err != nil || parsed.Header["alg"] != algorithm || parsed.Header["typ"] != typ {
					t.Errorf("%v, %v", parsed, err)
				}
			}
			signedBy(answer.Token, "at+jwt")
			use := func() int { return call(t, api.Running, &cert, "Bearer "+answer.Token).StatusCode }
			if status := use(); status != http.StatusOK {
				t.Errorf("at the resource server: %d", status)
			}
			other := in.enrolled("other")
			if status := call(t, api.Running, &other, "Bearer "+answer.Token).StatusCode; status != http.StatusUnauthorized {
				t.Errorf("with another certificate: %d", status)
			}
			if status, body := in.introspect(server, "ledger-server", answer.Token, ""); status != http.StatusOK || !strings.Contains(body, `"active":true`) {
				t.Errorf("introspection: %d %s", status, body)
			}
			status, body := in.introspect(server, "ledger-server", answer.Token, "application/token-introspection+jwt")
			if status != http.StatusOK {
				t.Fatalf("signed introspection: %d %s", status, body)
			}
			signedBy(body, "token-introspection+jwt")
			if err := in.revokeToken(cert, "payments", answer.Token); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "it is refused", func() bool { return use() == http.StatusUnauthorized })
			if _, body := in.introspect(server, "ledger-server", answer.Token, ""); body != `{"active":false}` {
				t.Errorf("introspection of what was revoked: %s", body)
			}
		})
	}
}
