// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// auditor registers and enrols a client that may read the operators' API, the resource server of these tests.
func (in *instance) auditor(id string) tls.Certificate {
	in.tb.Helper()
	return in.enrolledWith(map[string]any{"client_id": id, "scope": "certbound:read"})
}

// operatorsToken is a token for the operators' API.
func (in *instance) operatorsToken(cert tls.Certificate, id string) string {
	in.tb.Helper()
	res, err := in.client(&cert).PostForm(in.mtls+pathToken, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {id}, "resource": {in.issuer + "/admin/v1"}})
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	var answer tokenAnswer
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		in.tb.Fatalf("%s: %+v, %v", res.Status, answer, err)
	}
	return answer.Token
}

// use is the status with which the operators' API answers a token.
func (in *instance) use(cert tls.Certificate, token string) int {
	in.tb.Helper()
	r, err := http.NewRequestWithContext(in.tb.Context(), http.MethodGet, in.mtls+"/admin/v1/status", nil)
	if err != nil {
		in.tb.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := in.client(&cert).Do(r)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

// revokeToken gives a token back; the error says what else than 200 was answered.
func (in *instance) revokeToken(cert tls.Certificate, id, token string) error {
	in.tb.Helper()
	res, err := in.client(&cert).PostForm(in.mtls+pathRevoke, url.Values{"token": {token}, "client_id": {id}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status + " " + res.Header.Get("Retry-After"))
	}
	return nil
}

// RV-05: RFC 7009, Section 2.1: a token whose revocation was answered is refused at once at every replica, and after a
// restart; the other tokens of its client are not.
func TestRFC7009_2_1_RevokedEverywhere(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := start(t, i.config()), start(t, i.config())
	cert := one.auditor("auditor")
	revoked, kept := one.operatorsToken(cert, "auditor"), two.operatorsToken(cert, "auditor")
	for _, in := range []*instance{one, two} {
		for _, token := range []string{revoked, kept} {
			if got := in.use(cert, token); got != http.StatusOK {
				t.Fatalf("before: %d", got)
			}
		}
	}
	began := time.Now()
	if err := one.revokeToken(cert, "auditor", revoked); err != nil {
		t.Fatal(err)
	}
	t.Logf("revoked at two replicas in %s", time.Since(began))
	check := func(in *instance, when string) {
		t.Helper()
		if got := in.use(cert, revoked); got != http.StatusUnauthorized {
			t.Errorf("%s: the revoked token: %d", when, got)
		}
		if got := in.use(cert, kept); got != http.StatusOK {
			t.Errorf("%s: the other token: %d", when, got)
		}
	}
	check(two, "at the other replica")
	check(one, "at this replica")
	if err := two.revokeToken(cert, "auditor", revoked); err != nil {
		t.Error("again, at the other replica: ", err)
	}
	db := i.open()
	if list, _, err := db.Denials(t.Context(), 0, 10); err != nil || len(list) != 1 {
		t.Errorf("%d rows, %v", len(list), err)
	}
	if n := strings.Count(one.journal()+two.journal(), `"event":"token.revoke"`); n != 1 {
		t.Errorf("%d records", n)
	}
	third := start(t, i.config())
	check(third, "after a start")
}

// What is taken from a client or a certificate takes the tokens that they have, everywhere.
func TestTakeawaysEndTokens(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	cert := in.auditor("auditor")
	token := in.operatorsToken(cert, "auditor")
	s := in.mustOperate
	s(http.MethodPost, "/clients/auditor/disable", nil, nil)
	s(http.MethodPost, "/clients/auditor/enable", nil, nil)
	if got := in.use(cert, token); got != http.StatusUnauthorized {
		t.Errorf("a token of before its client was disabled, and enabled: %d", got)
	}
	if got := in.use(cert, in.operatorsToken(cert, "auditor")); got != http.StatusOK {
		t.Errorf("a token of after that: %d", got)
	}
}

// RV-08: RFC 7009, Section 2.2.1: a revocation that the database does not keep is no success. One that the journal does not
// take is: it takes authority away, is in force, and its record waits.
func TestRFC7009_2_2_1_JournalAndDatabase(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	d := issuer.Decision{Time: time.Now(), Event: issuer.EventRevoke, ClientID: "c", TokenID: "t1", Expires: time.Now().Add(time.Minute)}
	r := revoker{s.folder.outbox}
	denied := func(id string) bool {
		t.Helper()
		is, err := s.denials.Denied(t.Context(), &tokens.Claims{ID: id, ClientID: "c", IssuedAt: time.Now()}, "k")
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if err := s.folder.journal.Close(); err != nil { // it takes nothing any more
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Revoke(t.Context(), d); err != nil || !denied("t1") {
			t.Fatalf("without a journal: %v, denied %t", err, denied("t1"))
		}
	}
	if n := s.folder.outbox.Stats().Waiting; n != 1 {
		t.Errorf("%d records wait", n)
	}
	var timed interface{ RetryAfter() time.Duration }
	if err := s.folder.store.Close(); err != nil {
		t.Fatal(err)
	}
	d.TokenID = "t2"
	if err := r.Revoke(t.Context(), d); !errors.As(err, &timed) || timed.RetryAfter() <= 0 {
		t.Errorf("without a database: %v", err)
	}
	if denied("t2") || !denied("t1") {
		t.Error("what was not kept is in force, or the other is not")
	}
	// After a change that cannot be read, nobody is told that a token is good.
	s.denials.forget(store.Change{Denials: true})
	for range 2 {
		if _, err := s.denials.Denied(t.Context(), &tokens.Claims{}, ""); !errors.As(err, &timed) {
			t.Errorf("not known: %v", err)
		}
	}
}

// changes is an outbox that fails.
type changes struct{ err error }

func (c changes) Change(context.Context, audit.Class, func(*store.Store) ([]audit.Event, error)) (bool, error) {
	return false, c.err
}

// A revocation that is not in force everywhere yet says when it will be.
func TestRevocationNotEverywhere(t *testing.T) {
	t.Parallel()
	err := revoker{changes{&outbox.UnsettledError{By: time.Now().Add(3 * time.Second), Err: context.DeadlineExceeded}}}.
		Revoke(t.Context(), issuer.Decision{})
	var timed interface{ RetryAfter() time.Duration }
	if !errors.As(err, &timed) || timed.RetryAfter() < 2*time.Second || timed.RetryAfter() > 3*time.Second {
		t.Errorf("%v", err)
	}
	if !errors.Is(err, outbox.ErrUnsettled) {
		t.Errorf("%v hides its cause", err)
	}
}

// rowsOfDenials is a database with so many denials, which can fail.
type rowsOfDenials struct {
	mu    sync.Mutex
	n     int64
	life  byte // of the database: other denials have the positions
	reads int
	err   error
}

func (r *rowsOfDenials) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *rowsOfDenials) Denials(_ context.Context, after int64, limit int) (list []store.Denied, upTo int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	for n := after + 1; n <= r.n && len(list) < limit; n++ {
		t := mtls.Thumbprint{1 + r.life, byte(n >> 16), byte(n >> 8), byte(n)}
		list = append(list, store.Denied{Denial: tokens.Denial{Thumbprint: t, Until: time.Now().Add(time.Hour)}, Position: n})
	}
	return list, after + int64(len(list)), r.err
}

// What is denied is read in pages, and after a change only what is new; a failure is not asked for again at once.
func TestDenialsAreRead(t *testing.T) {
	t.Parallel()
	rows := &rowsOfDenials{n: 2*denialsPage + 1}
	d := &denials{store: rows}
	d.epoch.Store(1)
	last := func() *tokens.Claims {
		return &tokens.Claims{Thumbprint: mtls.Thumbprint{1, byte(rows.n >> 16), byte(rows.n >> 8), byte(rows.n)}}
	}
	check := func(reads int) {
		t.Helper()
		if is, err := d.Denied(t.Context(), last(), ""); !is || err != nil || rows.reads != reads || d.list.Len() != int(rows.n) {
			t.Errorf("denied %t, %v, %d reads, %d entries", is, err, rows.reads, d.list.Len())
		}
	}
	check(3)
	check(3)
	d.forget(store.Change{Keys: true})
	check(3)
	rows.n++
	d.forget(store.Change{Denials: true})
	check(4)
	d.forget(store.Change{Full: true})
	check(7)
	d.forget(store.Change{Denials: true})
	check(8)
	rows.err = errors.New("down")
	d.forget(store.Change{Denials: true})
	for range 3 {
		if _, err := d.Denied(t.Context(), last(), ""); !errors.Is(err, rows.err) || rows.reads != 9 {
			t.Errorf("%v, %d reads", err, rows.reads)
		}
	}
	rows.err = nil
	d.failedAt = time.Now().Add(-denialsAgain)
	check(10)
}

// Where anything may have changed, as after a failover that lost commits, other denials may have the positions that were read:
// all are read again, also after a failure, and those of before are not forgotten.
func TestDenialsOfAnotherLife(t *testing.T) {
	t.Parallel()
	rows := &rowsOfDenials{n: 3}
	d := &denials{store: rows}
	d.epoch.Store(1)
	check := func(life byte, n int64, want bool) {
		t.Helper()
		if is, err := d.Denied(t.Context(), &tokens.Claims{Thumbprint: mtls.Thumbprint{1 + life, 0, 0, byte(n)}}, ""); is != want || err != nil {
			t.Errorf("denial %d of life %d: %t, %v; want %t", n, life, is, err, want)
		}
	}
	check(0, 3, true)
	rows.life, rows.n, rows.err = 1, 2, errors.New("down")
	d.forget(store.Change{Full: true})
	if _, err := d.Denied(t.Context(), &tokens.Claims{}, ""); !errors.Is(err, rows.err) {
		t.Errorf("%v", err)
	}
	rows.err, d.failedAt = nil, time.Now().Add(-denialsAgain)
	check(1, 1, true)
	check(1, 2, true)
	check(0, 3, true)
	if d.head() != 2 {
		t.Errorf("it has read up to %d", d.head())
	}
	rows.n = 3
	d.forget(store.Change{Denials: true})
	check(1, 3, true)
	check(2, 1, false)
	if rows.reads != 4 {
		t.Errorf("%d reads", rows.reads)
	}
}
