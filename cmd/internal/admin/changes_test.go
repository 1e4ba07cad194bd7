// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// slow is a request whose body is held back: it tells when the body is asked for, and goes on when it may.
type slow struct {
	io.Reader
	once    sync.Once
	asked   chan struct{}
	goOn    chan struct{}
	answers chan *httptest.ResponseRecorder
}

func (s *slow) Read(p []byte) (int, error) {
	s.once.Do(func() { close(s.asked); <-s.goOn })
	return s.Reader.Read(p)
}

// begin sends a request up to its body, which the guard has let in by then.
func (b *bench) begin(method, path, body string) *slow {
	b.Helper()
	s := &slow{
		Reader: strings.NewReader(body), asked: make(chan struct{}), goOn: make(chan struct{}), answers: make(chan *httptest.ResponseRecorder, 1),
	}
	r := httptest.NewRequestWithContext(b.Context(), method, Prefix+path, s)
	r.Header.Set("Content-Type", "application/json")
	go func() {
		w := httptest.NewRecorder()
		b.handler.ServeHTTP(w, r)
		s.answers <- w
	}()
	select {
	case <-s.asked:
	case w := <-s.answers:
		b.Fatalf("%s %s: answered without its body: %d %s", method, path, w.Code, w.Body)
	}
	return s
}

// end sends the body and returns the answer.
func (s *slow) end() *httptest.ResponseRecorder {
	close(s.goOn)
	return <-s.answers
}

// contents is all that the API can change, as text.
func (b *bench) contents() string {
	b.Helper()
	ctx := b.Context()
	clients, err := b.store.Clients(ctx, "", maxPage)
	b.must(err)
	resources, err := b.store.Resources(ctx)
	b.must(err)
	trusts, err := b.store.Trusts(ctx)
	b.must(err)
	certificates, err := b.store.Certificates(ctx, "", "", maxPage)
	b.must(err)
	waiting, err := b.store.Pending(ctx)
	b.must(err)
	version, err := b.store.Version(ctx)
	b.must(err)
	secret, err := b.store.StoredAuditSubject(ctx, "payments")
	if !errors.Is(err, store.ErrNotFound) {
		b.must(err)
	}
	keys, err := b.store.Keys(ctx, "signing")
	b.must(err)
	raw, err := json.Marshal([]any{keys, clients, resources, trusts, certificates, waiting, version, secret})
	b.must(err)
	return string(raw)
}

// aChange prepares a change by that route that would be made, and returns its path and body.
func (b *bench) aChange(route string) (path, request string) {
	b.Helper()
	ca := func() string { return pemOf(mtlstest.NewCA(b.T, "partner").Certificate()) }
	switch route {
	case "POST /clients":
		return "/clients", `{"client_id":"new"}`
	case "DELETE /clients/{id}", "POST /clients/{id}/disable", "POST /clients/{id}/invite":
		b.enlist("payments")
	case "POST /clients/{id}/enable":
		b.enlist("payments")
		b.must(b.store.DisableClient(b.Context(), "payments"))
	case "POST /clients/{id}/erase":
		_, err := b.store.AuditSubject(b.Context(), "payments")
		b.must(err)
	case "PUT /clients/{id}/certificates":
		b.post("/clients", body("client_id", "payments", "certificates", []string{b.pem("old")}), http.StatusCreated, nil)
		request = body("certificates", []string{b.pem("new")})
	case "POST /resources":
		return "/resources", `{"resource":"urn:x","scope":"a"}`
	case "DELETE /resources":
		return "/resources?uri=https://ledger.example", ""
	case "POST /trusts":
		return "/trusts", body("name", "payments", "ca", ca())
	case "PUT /trusts/{id}", "DELETE /trusts/{id}":
		b.post("/trusts", body("name", "payments", "ca", ca()), http.StatusCreated, nil)
		if strings.HasPrefix(route, http.MethodPut) {
			request = body("ca", ca())
		}
	case "POST /certificates/revoke":
		b.enlist("payments")
		b.certify("payments", "7")
		return "/certificates/revoke", `{"serial":"7"}`
	case "POST /approvals/{id}/confirm", "DELETE /approvals/{id}":
		b.enlist("bob", ScopeAdmin)
		b.certify("alice", "801")
		b.certify("bob", "802")
		held := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
		b.as("bob", ScopeAdmin)
		_, path, _ = strings.Cut(route, " ")
		return strings.ReplaceAll(path, "{id}", held.ID), ""
	case "POST /keys/rotate":
		return "/keys/rotate", `{}`
	case "POST /tickets/reset", "POST /leases/reset":
	default:
		b.Fatalf("no change by %s is known: write one", route)
	}
	_, path, _ = strings.Cut(route, " ")
	return strings.ReplaceAll(path, "{id}", "payments"), request
}

// newBenchFor is a bench whose API has that route.
func newBenchFor(t *testing.T, route string) *bench {
	cfg := Config{ResetTickets: func() {}}
	if strings.Contains(route, "/approvals") {
		cfg.Approvals = 2
	}
	return newBenchWith(t, cfg, New)
}

// Whoever loses its authority between the headers of a request, at which it was let in, and the end of the body changes
// nothing, by whatever route: an operator who expects to be revoked could otherwise keep a request open for later.
func TestAuthorityIsJudgedAfterTheBody(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		lose   func(*bench)
		status int
		code   string
	}{
		"revoked":      {func(b *bench) { b.lost = &tokens.Error{Code: "invalid_token", Reason: "client_disabled"} }, http.StatusUnauthorized, codeToken},
		"another kind": {func(b *bench) { b.lost = errors.New("gone") }, http.StatusUnauthorized, codeToken},
		"unknown":      {func(b *bench) { b.lost = &tokens.Error{Code: "temporarily_unavailable"} }, http.StatusServiceUnavailable, codeUnavailable},
		"other scopes": {func(b *bench) { b.scopes = []string{ScopeRead} }, http.StatusForbidden, codeInsufficient},
		"no scopes":    {func(b *bench) { b.scopes = nil }, http.StatusForbidden, codeInsufficient},
	} {
		for _, rt := range new(api).routes() {
			if rt.method == http.MethodGet {
				continue
			}
			t.Run(name+" "+rt.method+" "+rt.path, func(t *testing.T) {
				b := newBenchFor(t, rt.method+" "+rt.path)
				path, request := b.aChange(rt.method + " " + rt.path)
				before := b.contents()
				s := b.begin(rt.method, path, request)
				tt.lose(b)
				w := s.end()
				if w.Code != tt.status || !strings.Contains(w.Body.String(), `"error":"`+tt.code+`"`) {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				if w.Code == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") != `Bearer realm="`+testIssuer+`", error="invalid_token"` {
					t.Errorf("challenge %q", w.Header().Get("WWW-Authenticate"))
				}
				if after := b.contents(); after != before {
					t.Errorf("changed:\n%s\n%s", before, after)
				}
				if e := b.journal.last(t); e.Name != rt.event || e.Outcome != audit.Refused || e.Reason != tt.code || e.Actor != b.who {
					t.Errorf("recorded %+v", e)
				}
			})
		}
	}
}

// Who keeps its authority has the same requests done, as has whoever breaks the glass.
func TestChangesAreMade(t *testing.T) {
	t.Parallel()
	try := func(t *testing.T, b *bench, rt route) {
		path, request := b.aChange(rt.method + " " + rt.path)
		before := b.contents()
		granted := 0
		b.journal.watch = func(audit.Event) {
			granted++
		}
		w := b.begin(rt.method, path, request).end()
		if w.Code > 299 || granted == 0 {
			t.Errorf("%d %s, %d recorded", w.Code, w.Body, granted)
		}
		if !strings.HasSuffix(rt.path, "/reset") && b.contents() == before {
			t.Error("nothing changed")
		}
	}
	for _, rt := range new(api).routes() {
		if rt.method != http.MethodGet {
			t.Run(rt.method+" "+rt.path, func(t *testing.T) { try(t, newBenchFor(t, rt.method+" "+rt.path), rt) })
		}
	}
	for _, rt := range new(api).breakGlassRoutes() {
		if rt.method == http.MethodGet || strings.HasSuffix(rt.path, "/invite") {
			continue // it invites operators only, which is tested elsewhere
		}
		t.Run("break-glass "+rt.method+" "+rt.path, func(t *testing.T) {
			b, _ := newGlass(t)
			b.lost, b.scopes = errors.New("no token"), nil
			try(t, b, rt)
		})
	}
}

// While the journal is full, what gives authority is refused before anything is touched, by whatever route.
func TestNothingIsTouchedWithoutTheJournal(t *testing.T) {
	t.Parallel()
	for _, route := range giving() {
		t.Run(route, func(t *testing.T) {
			b := newBenchFor(t, route)
			path, request := b.aChange(route)
			b.must(b.box.Flush(t.Context()))
			before := b.contents()
			b.journal.fill(true)
			method, _, _ := strings.Cut(route, " ")
			b.refused(method, path, request, http.StatusServiceUnavailable, "temporarily_unavailable", "try again")
			if after := b.contents(); after != before {
				t.Errorf("changed:\n%s\n%s", before, after)
			}
			if n, _, err := b.store.Waiting(t.Context()); n != 0 || err != nil {
				t.Errorf("%d records wait, %v", n, err)
			}
		})
	}
}

// giving are the routes that give authority, and those that must not be without a record.
func giving() []string {
	return []string{
		"POST /clients", "POST /clients/{id}/enable", "POST /clients/{id}/invite", "PUT /clients/{id}/certificates",
		"POST /resources", "POST /trusts", "PUT /trusts/{id}", "POST /approvals/{id}/confirm",
		"POST /clients/{id}/erase", // it takes from the journal, which has to know
		"POST /keys/rotate",        // but for an emergency
	}
}

// taking are the routes that take authority away.
func taking() []string {
	return []string{
		"DELETE /clients/{id}", "POST /clients/{id}/disable", "DELETE /resources", "DELETE /trusts/{id}",
		"POST /certificates/revoke", "DELETE /approvals/{id}",
	}
}

// Each route that changes something is known to do the one or the other.
func TestRoutesGiveOrTake(t *testing.T) {
	t.Parallel()
	for _, rt := range new(api).routes() {
		route := rt.method + " " + rt.path
		if rt.method != http.MethodGet && slices.Contains(giving(), route) == slices.Contains(taking(), route) {
			t.Errorf("%s: does it give or take?", route)
		}
	}
}

// What gives authority and could not be recorded, though the journal had said that it could, is not answered: it holds,
// its record waits and is written once, and the answer says what to do.
func TestUnrecordedChangesAreKeptBack(t *testing.T) {
	t.Parallel()
	again := map[string]string{
		"POST /clients": "certbound client invite new", "POST /resources": "certbound resource list", "POST /trusts": "certbound trust show payments",
		"POST /approvals/{id}/confirm": "certbound client invite olga", "POST /keys/rotate": "certbound keys list",
	}
	for _, route := range giving() {
		t.Run(route, func(t *testing.T) {
			b := newBenchFor(t, route)
			path, request := b.aChange(route)
			before, recorded := b.contents(), b.journal.count()
			b.journal.fail(true)
			method, _, _ := strings.Cut(route, " ")
			b.refused(method, path, request, http.StatusServiceUnavailable, "temporarily_unavailable", cmp.Or(again[route], "try again"))
			if after := b.contents(); after == before && !strings.HasSuffix(route, "/erase") {
				t.Error("nothing changed")
			}
			if b.journal.count() != recorded || b.box.Stats().Waiting != 1 {
				t.Errorf("%d recorded, %+v waits", b.journal.count()-recorded, b.box.Stats())
			}
			b.journal.fail(false)
			for range 2 {
				b.must(b.box.Flush(t.Context()))
			}
			if e := b.journal.last(t); b.journal.count() != recorded+1 || e.Outcome != audit.Granted || e.Actor != b.who || e.Class != audit.Decision {
				t.Errorf("%d recorded, the last %+v", b.journal.count()-recorded, e)
			}
		})
	}
}

// While the journal is full, what takes authority away is done all the same, by whatever route; the answer says that the
// record waits, and it is written once when there is room.
func TestTakingAwayWithoutTheJournal(t *testing.T) {
	t.Parallel()
	try := func(t *testing.T, b *bench, route string) {
		path, request := b.aChange(route)
		b.must(b.box.Flush(t.Context()))
		before, recorded := b.contents(), b.journal.count()
		b.journal.fill(true)
		method, _, _ := strings.Cut(route, " ")
		var answer struct {
			AuditPending bool `json:"audit_pending"`
		}
		b.do(method, path, request, http.StatusOK, &answer)
		if !answer.AuditPending {
			t.Error("the answer does not say that the record waits")
		}
		if b.contents() == before && !strings.HasSuffix(route, "/reset") {
			t.Error("nothing changed")
		}
		if n, _, err := b.store.Waiting(t.Context()); n != 1 || err != nil {
			t.Errorf("%d records wait, %v", n, err)
		}
		b.journal.fill(false)
		for range 2 {
			b.must(b.box.Flush(t.Context()))
		}
		if e := b.journal.last(t); b.journal.count() != recorded+1 || e.Class != audit.Takeaway || e.Outcome != audit.Granted || e.Actor != b.who {
			t.Errorf("%d recorded, the last %+v", b.journal.count()-recorded, e)
		}
	}
	for _, route := range taking() {
		t.Run(route, func(t *testing.T) { try(t, newBenchFor(t, route), route) })
	}
	t.Run("break-glass", func(t *testing.T) {
		b, _ := newGlass(t)
		try(t, b, "POST /tickets/reset")
		try(t, b, "POST /leases/reset")
	})
}

// Who asks is an operator: a refusal is recorded singly, and never waited for.
func TestRefusalsAreNotWaitedFor(t *testing.T) {
	b := newBench(t)
	b.refused(http.MethodPost, "/clients", `{"client_id":"bad id"}`, http.StatusBadRequest, "invalid_client_metadata", "")
	if e := b.journal.last(t); e.Class != audit.Refusal || e.Outcome != audit.Refused {
		t.Errorf("recorded %+v", e)
	}
}

// An operator who hangs up is no failure of the service; what else it cannot do is.
func TestHangingUpIsNoError(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		gone bool
		err  error
		want string
	}{
		"hung up":            {true, fmt.Errorf("list resources: %w", context.Canceled), "level=INFO"},
		"failed meanwhile":   {true, errors.New("the disk is gone"), "level=ERROR"},
		"canceled by itself": {false, fmt.Errorf("list resources: %w", context.Canceled), "level=ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			a := &api{cfg: Config{
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
				Actor:  func(context.Context) (_, _, _, _ string) { return },
			}}
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			if tt.gone {
				hangUp()
			}
			w := httptest.NewRecorder()
			a.refuse(w, httptest.NewRequestWithContext(ctx, http.MethodPost, Prefix+"/clients", nil), unavailable(tt.err))
			if !strings.Contains(log.String(), tt.want) || w.Code != http.StatusServiceUnavailable {
				t.Errorf("answered %d, logged %s", w.Code, &log)
			}
		})
	}
}
