// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// journal is a journal in memory that can be made to fail.
type journal struct {
	mu     sync.Mutex
	events []audit.Event
	full   bool              // it says so when it is asked
	fails  bool              // it fails without warning
	watch  func(audit.Event) // told of what is recorded
}

func (j *journal) Ready(audit.Class) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full {
		return errors.New("no space left on device")
	}
	return nil
}

func (j *journal) Record(ctx context.Context, e audit.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if j.full || j.fails {
		return errors.New("no space left on device")
	}
	e.ID = "" // random
	j.events = append(j.events, e)
	if j.watch != nil {
		j.watch(e)
	}
	return nil
}

func (j *journal) fill(full bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.full = full
}

func (j *journal) fail(fails bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fails = fails
}

// count is how many events there are.
func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.events)
}

func (j *journal) last(t *testing.T) audit.Event {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == 0 {
		t.Fatal("nothing was recorded")
	}
	return j.events[len(j.events)-1]
}

// shop is an authority without a CA: codes are real, revocations are the store's.
type shop struct{ store *store.Store }

func (s shop) NewCode(clientID string) (string, store.Code, error) {
	c, err := pki.NewCode(sha256.Sum256([]byte("root")), testIssuer)
	if err != nil {
		return "", store.Code{}, err
	}
	now := time.Now()
	return c.String(), store.Code{ID: c.ID, PublicKey: c.PublicKey(), ClientID: clientID, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}, nil
}

func (s shop) Revoke(ctx context.Context, tx *store.Store, sel store.Selection, reason pki.Reason) (store.Revocation, error) {
	return tx.Revoke(ctx, sel, int(reason), time.Now())
}

// bench is the API over a real database, with an operator alice registered.
type bench struct {
	*testing.T
	handler http.Handler
	store   *store.Store
	path    string // of its database
	journal *journal
	box     *outbox.Box
	// Who asks, and with which scopes.
	who    string
	scopes []string
	// lost is why who asks may not ask any more.
	lost error
	// meanwhile is what others do, once, between the judgement of a change and its transaction.
	meanwhile func()
	cfg       Config
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchWith(t, Config{}, New)
}

// newBenchWith makes the handler of a configuration, in which what every bench has is filled in.
func newBenchWith(t *testing.T, cfg Config, build func(Config) (http.Handler, error)) *bench {
	t.Helper()
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certbound.db")
	db, err := store.Open(t.Context(), store.Config{Path: path, KEK: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{T: t, store: db, path: path, journal: &journal{}, who: "alice", scopes: []string{ScopeAdmin}}
	b.box, err = outbox.New(outbox.Config{Store: db, Journal: b.journal})
	b.must(err)
	cfg.Store, cfg.Authority, cfg.Recorder, cfg.Issuer, cfg.Version = db, shop{db}, &late{Recorder: b.box, b: b}, testIssuer, "v1"
	cfg.TrustDomain, cfg.Reserved = testTrustDomain, []string{"auth-alias.example"}
	cfg.Actor = func(context.Context) (string, string, string, string) { return b.who, "thumb", "192.0.2.1", "corr" }
	cfg.Scopes = func(context.Context) []string { return b.scopes }
	if cfg.InForce == nil {
		cfg.InForce = func(context.Context, *store.Store) ([]string, error) { return b.scopes, nil }
	}
	if cfg.Keys == nil {
		cfg.Keys = new(pocket)
	}
	if cfg.Published == nil {
		cfg.Published = func([][sha256.Size]byte) []tokens.Denial { return nil }
	}
	cfg.StillAuthorized = func(context.Context) error { return b.lost }
	b.cfg = cfg
	b.handler, err = build(cfg)
	b.must(err)
	b.must(db.AddResource(t.Context(), store.Resource{URI: testIssuer + Prefix, Scopes: Scopes(), BuiltIn: true}))
	b.must(db.AddResource(t.Context(), store.Resource{URI: "https://ledger.example", Scopes: []string{"ledger:read"}}))
	b.enlist("alice", ScopeAdmin)
	return b
}

// enlist registers a client of our own CA with a code, past the API.
func (b *bench) enlist(id string, scopes ...string) {
	b.Helper()
	_, code, err := shop{b.store}.NewCode(id)
	b.must(err)
	_, err = b.store.AddClient(b.Context(), store.Client{
		ID: id, Usage: "client", Scopes: scopes, SubjectKind: string(mtls.SANURI), SubjectValue: pki.ClientURI(testTrustDomain, id),
	}, &code)
	b.must(err)
}

// as lets somebody else ask.
func (b *bench) as(who string, scopes ...string) { b.who, b.scopes = who, scopes }

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// do sends a request and reads the answer into out unless that is nil.
func (b *bench) do(method, path, body string, status int, out any) http.Header {
	b.Helper()
	r := httptest.NewRequestWithContext(b.Context(), method, Prefix+path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, r)
	if w.Code != status {
		b.Fatalf("%s %s: %d %s, want %d", method, path, w.Code, w.Body, status)
	}
	if got := w.Header().Get("Content-Type") + " " + w.Header().Get("Cache-Control"); got != "application/json no-store" {
		b.Errorf("%s %s: headers %q", method, path, got)
	}
	if out != nil {
		b.must(json.Unmarshal(w.Body.Bytes(), out))
	}
	return w.Header()
}

func (b *bench) post(path, body string, status int, out any) {
	b.Helper()
	b.do(http.MethodPost, path, body, status, out)
}

// refused demands a refusal with the code and a hint.
func (b *bench) refused(method, path, body string, status int, code, hint string) {
	b.Helper()
	var e ErrorBody
	b.do(method, path, body, status, &e)
	if e.Code != code || e.Description == "" || !strings.Contains(e.Hint, hint) || e.Hint == "" {
		b.Errorf("%s %s: %+v, want code %s and a hint with %q", method, path, e, code, hint)
	}
}

func TestAddShowListClient(t *testing.T) {
	b := newBench(t)
	var got Invitation
	b.post("/clients", `{"client_id":"payments","scope":"ledger:read","dns_names":["pay.example"],"token_ttl_seconds":60}`, http.StatusCreated, &got)
	if got.ClientID != "payments" || got.AuthMethod != "tls_client_auth" || got.CodeExpiresAt == nil {
		t.Errorf("invitation %+v", got)
	}
	code, err := pki.ParseCode(got.Code)
	b.must(err)
	row, err := b.store.Code(t.Context(), code.ID)
	b.must(err)
	if row.ClientID != "payments" || row.Generation != 1 {
		t.Errorf("code of %q, generation %d", row.ClientID, row.Generation)
	}
	var client Client
	b.do(http.MethodGet, "/clients/payments", "", http.StatusOK, &client)
	want := Client{
		ID: "payments", AuthMethod: "tls_client_auth", SANURI: "spiffe://abcdefgh.auth.example/client/payments",
		Scope: "ledger:read", DNSNames: []string{"pay.example"}, IPAddresses: []string{}, URIs: []string{}, Usage: "client",
		Resources: []string{}, TokenTTLSeconds: 60, Generation: 1, CreatedAt: client.CreatedAt, UpdatedAt: client.UpdatedAt,
	}
	if diff := cmp.Diff(want, client); diff != "" {
		t.Error(diff)
	}
	var list ClientList
	b.do(http.MethodGet, "/clients", "", http.StatusOK, &list)
	if len(list.Clients) != 2 || list.Clients[0].ID != "alice" || list.Next != "" {
		t.Errorf("list %+v", list)
	}
}

func version(t *testing.T, b *bench) int64 {
	t.Helper()
	v, err := b.store.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What is recorded names actor, target and what; the code is never in it.
func TestChangesAreRecorded(t *testing.T) {
	b := newBench(t)
	var invitation Invitation
	b.post("/clients", `{"client_id":"payments","scope":"ledger:read"}`, http.StatusCreated, &invitation)
	event := b.journal.last(t)
	if event.Time.IsZero() {
		t.Error("no time")
	}
	if event.Version == 0 || event.Version != version(t, b) {
		t.Errorf("the record is of version %d, the state of %d", event.Version, version(t, b))
	}
	event.Time, event.Version = time.Time{}, 0
	want := audit.Event{
		Name: "client.add", Outcome: audit.Granted, Client: "payments", Actor: "alice", Thumbprint: "thumb", Address: "192.0.2.1", Correlation: "corr",
		Scope: []string{"ledger:read"}, Detail: map[string]string{"usage": "client", "auth_method": "tls_client_auth"},
	}
	if diff := cmp.Diff(want, event); diff != "" {
		t.Error(diff)
	}
	for _, step := range []struct{ method, path, body, event string }{
		{http.MethodPost, "/clients/payments/disable", "", "client.disable"},
		{http.MethodPost, "/clients/payments/enable", "", "client.enable"},
		{http.MethodPost, "/clients/payments/invite", "", "client.invite"},
		{http.MethodDelete, "/clients/payments", "", "client.remove"},
		{http.MethodPost, "/resources", `{"resource":"urn:x","scope":"a"}`, "resource.add"},
		{http.MethodDelete, "/resources?uri=urn:x", "", "resource.remove"},
	} {
		status := http.StatusOK
		if strings.HasSuffix(step.event, ".add") || strings.HasSuffix(step.event, ".invite") {
			status = http.StatusCreated
		}
		b.do(step.method, step.path, step.body, status, nil)
		if got := b.journal.last(t); got.Name != step.event || got.Outcome != audit.Granted || got.Actor != "alice" {
			t.Errorf("recorded %+v, want %s", got, step.event)
		}
	}
	b.refused(http.MethodPost, "/clients/nobody/disable", "", http.StatusNotFound, "invalid_request", "certbound client list")
	if got := b.journal.last(t); got.Name != "client.disable" || got.Outcome != audit.Refused || got.Client != "nobody" {
		t.Errorf("recorded %+v", got)
	}
	b.refused(http.MethodPost, "/clients", `{"client_id":"greedy","scope":"all"}`, http.StatusBadRequest, "invalid_scope", "resource add")
	if got := b.journal.last(t); got.Name != "client.add" || got.Outcome != audit.Refused || got.Client != "greedy" || got.Reason != "invalid_scope" {
		t.Errorf("recorded %+v", got)
	}
	for _, e := range b.journal.events {
		if strings.Contains(fmt.Sprint(e), invitation.Code) || strings.Contains(fmt.Sprint(e), "cb1.") {
			t.Errorf("the code is in the record: %+v", e)
		}
	}
}

// A change that gives authority and cannot be recorded does not happen.
func TestGivingNeedsTheRecord(t *testing.T) {
	b := newBench(t)
	b.post("/clients", `{"client_id":"off"}`, http.StatusCreated, nil)
	b.post("/clients/off/disable", "", http.StatusOK, nil)
	b.journal.fill(true)
	for _, step := range []struct{ path, body string }{
		{"/clients", `{"client_id":"payments"}`}, {"/clients/off/enable", ""}, {"/clients/alice/invite", ""}, {"/resources", `{"resource":"urn:x","scope":"a"}`},
	} {
		b.refused(http.MethodPost, step.path, step.body, http.StatusServiceUnavailable, "temporarily_unavailable", "try again")
	}
	b.journal.fill(false)
	b.refused(http.MethodGet, "/clients/payments", "", http.StatusNotFound, "invalid_request", "")
	b.refused(http.MethodDelete, "/resources?uri=urn:x", "", http.StatusNotFound, "invalid_request", "")
	var off Client
	b.do(http.MethodGet, "/clients/off", "", http.StatusOK, &off)
	if !off.Disabled {
		t.Error("enabled without a record")
	}
	b.post("/clients", `{"client_id":"payments"}`, http.StatusCreated, nil)
}

// What takes authority away holds also when the journal is full, and says so.
func TestTakingAwayHoldsWithoutTheRecord(t *testing.T) {
	b := newBench(t)
	b.post("/clients", `{"client_id":"a"}`, http.StatusCreated, nil)
	thumbprint := b.certify("a", "17")
	b.journal.fill(true)
	var done Change
	b.post("/clients/a/disable", "", http.StatusOK, &done)
	if !done.AuditPending || done.Done != "disabled" {
		t.Errorf("answer %+v", done)
	}
	var client Client
	b.do(http.MethodGet, "/clients/a", "", http.StatusOK, &client)
	if !client.Disabled {
		t.Error("not disabled")
	}
	var revoked Revocation
	b.post("/certificates/revoke", `{"serial":"17"}`, http.StatusOK, &revoked)
	if !revoked.AuditPending || len(revoked.Revoked) != 1 || revoked.Revoked[0].Thumbprint != thumbprint.String() {
		t.Errorf("answer %+v", revoked)
	}
	b.do(http.MethodDelete, "/clients/a", "", http.StatusOK, &done)
	b.refused(http.MethodGet, "/clients/a", "", http.StatusNotFound, "invalid_request", "")
}

// certify puts a certificate of the client into the inventory.
func (b *bench) certify(client, serial string) mtls.Thumbprint {
	b.Helper()
	now := time.Now()
	cert := store.Certificate{
		Thumbprint: sha256.Sum256([]byte(serial)), Serial: serial, ClientID: client, Generation: 1,
		NotBefore: now, NotAfter: now.Add(time.Hour), KeyHash: sha256.Sum256([]byte("key" + serial)), DER: []byte(serial), CreatedAt: now,
	}
	b.must(b.store.AddCertificate(b.Context(), cert))
	return cert.Thumbprint
}

// A caller that hangs up, even while the change is made, leaves no change without its record.
func TestRecordSurvivesTheCaller(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := &deed{do: func(_ context.Context, tx *store.Store) (*outcome, error) {
		err := tx.AddResource(ctx, store.Resource{URI: "urn:x"})
		cancel()
		return &outcome{answer: none{}, events: []audit.Event{{Client: "x"}}}, err
	}}
	a := &api{cfg: b.cfg}
	a.cfg.Now = time.Now
	if _, err := a.perform(ctx, "client.add", d); err != nil {
		t.Fatal(err)
	}
	if got := b.journal.last(t); got.Client != "x" {
		t.Errorf("recorded %+v", got)
	}
	_, err := b.store.Resource(t.Context(), "urn:x")
	b.must(err)
}

func TestRegistrationConflicts(t *testing.T) {
	b := newBench(t)
	b.post("/clients", `{"client_id":"a","dns_names":["a.example"],"ip_addresses":["198.51.100.1"],"uris":["https://a.example/x"]}`, http.StatusCreated, nil)
	b.refused(http.MethodPost, "/clients", `{"client_id":"a"}`, http.StatusConflict, "invalid_client_metadata", "certbound client invite a")
	for _, name := range []string{`"dns_names":["A.example"]`, `"ip_addresses":["198.51.100.1"]`, `"uris":["https://a.example/x"]`} {
		var e ErrorBody
		b.post("/clients", `{"client_id":"b",`+name+`}`, http.StatusConflict, &e)
		if !strings.Contains(e.Description, "belongs to client 'a'") {
			t.Errorf("%s: %+v", name, e)
		}
	}
	b.refused(http.MethodGet, "/clients/b", "", http.StatusNotFound, "invalid_request", "")
	b.refused(http.MethodPost, "/clients/alice/disable", "", http.StatusConflict, "invalid_request", "certbound:admin")
	b.refused(http.MethodDelete, "/clients/alice", "", http.StatusConflict, "invalid_request", "certbound:admin")
	b.certify("a", "5")
	b.do(http.MethodDelete, "/clients/a", "", http.StatusOK, nil)
	b.refused(http.MethodPost, "/clients", `{"client_id":"a"}`, http.StatusConflict, "invalid_client_metadata", "free from")
	b.post("/clients", `{"client_id":"c"}`, http.StatusCreated, nil)
	b.post("/clients/c/disable", "", http.StatusOK, nil)
	b.refused(http.MethodPost, "/clients/c/invite", "", http.StatusConflict, "invalid_request", "certbound client enable c")
}

func TestResources(t *testing.T) {
	b := newBench(t)
	b.refused(http.MethodPost, "/resources", `{"resource":"urn:x","scope":"a","servers":["nobody"]}`, http.StatusBadRequest, "invalid_client_metadata", "certbound client add nobody")
	var got Resource
	b.post("/resources", `{"resource":"urn:x","scope":"a b","servers":["alice"]}`, http.StatusCreated, &got)
	if got.Resource != "urn:x" || got.Scope != "a b" || len(got.Servers) != 1 {
		t.Errorf("answer %+v", got)
	}
	b.refused(http.MethodPost, "/resources", `{"resource":"urn:x","scope":"c"}`, http.StatusConflict, "invalid_target", "resource list")
	b.refused(http.MethodDelete, "/resources?uri="+testIssuer+Prefix, "", http.StatusConflict, "invalid_target", "cannot be removed")
	b.post("/clients", `{"client_id":"payments","scope":"ledger:read"}`, http.StatusCreated, nil)
	b.refused(http.MethodDelete, "/resources?uri=https://ledger.example", "", http.StatusConflict, "invalid_request", "remove")
	var list ResourceList
	b.do(http.MethodGet, "/resources?limit=2", "", http.StatusOK, &list)
	if len(list.Resources) != 2 || list.Next != list.Resources[1].Resource {
		t.Fatalf("page %+v", list)
	}
	b.do(http.MethodGet, "/resources?limit=2&after="+list.Next, "", http.StatusOK, &list)
	if len(list.Resources) != 1 || list.Resources[0].Resource != "urn:x" {
		t.Errorf("page %+v", list)
	}
}

func TestCertificates(t *testing.T) {
	b := newBench(t)
	b.post("/clients", `{"client_id":"a"}`, http.StatusCreated, nil)
	for _, serial := range []string{"101", "102", "103"} {
		b.certify("a", serial)
	}
	b.certify("alice", "104")
	var list CertificateList
	b.do(http.MethodGet, "/certificates?limit=2&client_id=a", "", http.StatusOK, &list)
	if len(list.Certificates) != 2 || list.Next != "102" {
		t.Fatalf("page %+v", list)
	}
	b.do(http.MethodGet, "/certificates?limit=2&client_id=a&after=102", "", http.StatusOK, &list)
	if len(list.Certificates) != 1 || list.Certificates[0].Serial != "103" || list.Certificates[0].Status != "valid" {
		t.Fatalf("page %+v", list)
	}
	b.refused(http.MethodGet, "/certificates?client_id=nobody", "", http.StatusNotFound, "invalid_request", "client list")

	var done Revocation
	b.post("/certificates/revoke", `{"x5t#S256":"`+list.Certificates[0].Thumbprint+`","reason":"keyCompromise"}`, http.StatusOK, &done)
	if len(done.Revoked) != 1 || done.Revoked[0].Status != "revoked" || done.Revoked[0].Reason != "keyCompromise" {
		t.Errorf("answer %+v", done)
	}
	if e := b.journal.last(t); e.Name != "cert.revoke" || e.Serial != "103" || e.Client != "a" || e.Detail["reason"] != "keyCompromise" {
		t.Errorf("recorded %+v", e)
	}
	if key := b.journal.last(t).Detail["key"]; len(key) != 43 {
		t.Errorf("the record names the key %q", key)
	}
	b.post("/certificates/revoke", `{"client_id":"a"}`, http.StatusOK, &done)
	if len(done.Revoked) != 2 || len(done.AlreadyRevoked) != 1 {
		t.Errorf("answer %+v", done)
	}
}

// IN-06: RFC 5280, Section 5.3.1: with a compromised key the tokens are denied that are bound to what clients publish of it
// elsewhere, also when it was revoked before; with another reason they are not.
func TestRFC5280_5_3_1_PublishedElsewhere(t *testing.T) {
	var asked [][sha256.Size]byte
	b := newBenchWith(t, Config{Published: func(keys [][sha256.Size]byte) []tokens.Denial {
		asked = keys
		return []tokens.Denial{{Thumbprint: mtls.Thumbprint{7}}}
	}}, New)
	b.post("/clients", `{"client_id":"a"}`, http.StatusCreated, nil)
	b.certify("a", "101")
	b.certify("a", "102")
	denied := func() (n int) {
		list, _, err := b.store.Denials(b.Context(), 0, 100)
		b.must(err)
		for _, d := range list {
			if d.Thumbprint == (mtls.Thumbprint{7}) && d.Until.After(time.Now().Add(time.Hour)) {
				n++
			}
		}
		return n
	}
	b.post("/certificates/revoke", `{"serial":"102"}`, http.StatusOK, nil)
	if denied() != 0 || asked != nil {
		t.Errorf("denied without a compromised key, asked about %x", asked)
	}
	for _, serial := range []string{"101", "102", "102"} {
		asked = nil
		b.post("/certificates/revoke", `{"serial":"`+serial+`","reason":"keyCompromise"}`, http.StatusOK, nil)
		row, err := b.store.CertificateBySerial(b.Context(), serial)
		b.must(err)
		if !slices.Contains(asked, row.KeyHash) || denied() != 1 {
			t.Errorf("%s: asked about %x, denied %d times", serial, asked, denied())
		}
	}
}

func TestRevokeRefused(t *testing.T) {
	b := newBench(t)
	for _, body := range []string{
		`{}`, `{"serial":"1","client_id":"a"}`, `{"serial":"0x1f"}`, `{"serial":"-1"}`, `{"serial":"` + strings.Repeat("9", 50) + `"}`,
		`{"x5t#S256":"short"}`, `{"client_id":"a","reason":"whim"}`, `{"client_id":"a","reason":"certificateHold"}`,
	} {
		b.refused(http.MethodPost, "/certificates/revoke", body, http.StatusBadRequest, "invalid_request", "")
	}
	b.refused(http.MethodPost, "/certificates/revoke", `{"serial":"999"}`, http.StatusNotFound, "invalid_request", "certbound cert list")
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	var got Status
	b.do(http.MethodGet, "/status", "", http.StatusOK, &got)
	want := Status{Issuer: testIssuer, TrustDomain: "abcdefgh.auth.example", Version: "v1", Clients: 1, Resources: 2, OpenCodes: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRequestsRefused(t *testing.T) {
	b := newBench(t)
	b.refused(http.MethodGet, "/nothing", "", http.StatusNotFound, "invalid_request", "")
	b.refused(http.MethodGet, "/clients/alice/disable", "", http.StatusMethodNotAllowed, "invalid_request", "")
	if allow := b.do(http.MethodPut, "/clients", "", http.StatusMethodNotAllowed, nil).Get("Allow"); allow != "GET, POST" {
		t.Errorf("Allow: %q", allow)
	}
	b.refused(http.MethodPost, "/clients", `{"client_id":"x","tenant":"y"}`, http.StatusBadRequest, "invalid_request", "")
	b.refused(http.MethodPost, "/clients", `{"client_id":"`+strings.Repeat("x", maxBody)+`"}`, http.StatusRequestEntityTooLarge, "invalid_request", "")
	b.refused(http.MethodPost, "/clients/alice/invite", `{"x":1}`, http.StatusBadRequest, "invalid_request", "")
	for _, query := range []string{"?limit=0", "?limit=501", "?limit=x", "?page=2", "?limit=1&limit=2", "?%zz"} {
		b.refused(http.MethodGet, "/clients"+query, "", http.StatusBadRequest, "invalid_request", "")
	}
	b.refused(http.MethodDelete, "/resources", "", http.StatusBadRequest, "invalid_request", "")
	b.refused(http.MethodGet, "/clients/a%2Fb", "", http.StatusNotFound, "invalid_request", "client list")

	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, Prefix+"/clients", strings.NewReader(`{"client_id":"x"}`))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, r)
	if w.Code != http.StatusUnsupportedMediaType {
		t.Errorf("a form got %d", w.Code)
	}
	b.refused(http.MethodGet, "/clients/x", "", http.StatusNotFound, "invalid_request", "")
}

func TestNewRefused(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Issuer: testIssuer, TrustDomain: "x"}); err == nil {
		t.Error("made without a store")
	}
	actor := func(context.Context) (a, b, c, d string) { return }
	whole := Config{Store: &store.Store{}, Authority: shop{}, Recorder: &outbox.Box{}, Issuer: testIssuer, TrustDomain: "x", Actor: actor}
	if _, err := New(whole); err == nil {
		t.Error("made without a way to find what clients publish elsewhere")
	}
	whole.Published = func([][sha256.Size]byte) []tokens.Denial { return nil }
	if _, err := New(whole); err != nil {
		t.Error(err)
	}
	if _, err := NewBreakGlass(whole); err == nil {
		t.Error("break-glass was made without a way to reset tickets")
	}
	for _, approvals := range []int{-1, 3} {
		whole.Approvals = approvals
		if _, err := New(whole); err == nil {
			t.Errorf("made with %d approvals", approvals)
		}
	}
}
