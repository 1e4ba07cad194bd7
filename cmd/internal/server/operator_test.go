// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// operatorPair is the certificate of the operator's profile.
func operatorPair(tb testing.TB, dir string) *tls.Certificate {
	tb.Helper()
	p, err := profile.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return p.KeyPair().Current()
}

// addOperator registers a second operator in a service that is not serving, so that the first may be taken away.
func addOperator(tb testing.TB, s *service, id string) tls.Certificate {
	tb.Helper()
	_, err := s.folder.store.AddClient(tb.Context(), store.Client{
		ID: id, AuthMethod: "tls_client_auth", Usage: "client", Scopes: []string{scopeAdmin}, Resources: []string{s.adminResource()},
	}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := s.authority.IssueDirectly(tb.Context(), id)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// A verified token opens the operators' API only as long as its client is an operator and its certificate stands.
func TestAuthorizeOperator(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	db := s.folder.store
	alice, bob, carol := addOperator(t, s, "alice"), addOperator(t, s, "bob"), addOperator(t, s, "carol")
	if _, err := db.AddClient(t.Context(), store.Client{ID: "payments", AuthMethod: "tls_client_auth", Usage: "client"}, nil); err != nil {
		t.Fatal(err)
	}
	payments, err := s.authority.IssueDirectly(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(id string, cert *x509.Certificate) *tokens.Error {
		t.Helper()
		err := s.authorizeOperator(t.Context(), &tokens.Claims{ClientID: id, Scope: []string{scopeAdmin}}, mtls.NewPeer(cert))
		refused, ok := errors.AsType[*tokens.Error](err)
		if err != nil && !ok {
			t.Fatalf("not a registered error: %v", err)
		}
		return refused
	}
	want := func(what, code string, got *tokens.Error) {
		t.Helper()
		if got == nil || got.Code != code {
			t.Errorf("%s: %v, want %s", what, got, code)
		}
	}
	for id, cert := range map[string]*x509.Certificate{"alice": alice.Leaf, "bob": bob.Leaf, "carol": carol.Leaf} {
		if err := ask(id, cert); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	want("no operator", "insufficient_scope", ask("payments", payments.Leaf))
	want("another's certificate", "invalid_token", ask("alice", bob.Leaf))
	want("no certificate", "invalid_token", ask("alice", nil))
	want("unknown client", "invalid_token", ask("nobody", alice.Leaf))
	if err := db.DisableClient(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	want("disabled", "invalid_token", ask("alice", alice.Leaf))
	if _, err := db.Revoke(t.Context(), store.Selection{Thumbprints: [][32]byte{mtls.ThumbprintOf(bob.Leaf)}}, 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	want("revoked", "invalid_token", ask("bob", bob.Leaf))
	if err := db.RemoveClient(t.Context(), "carol"); err != nil {
		t.Fatal(err)
	}
	want("removed", "invalid_token", ask("carol", carol.Leaf))
}

// apiAnswer is what the operators' API, or the token endpoint on the way to it, said.
type apiAnswer struct {
	status    int
	challenge string
	token     string
	expires   int64
	errorCode string
}

// adminToken asks for a token for the operators' API.
func (in *instance) adminToken(c *http.Client, id string, form url.Values) apiAnswer {
	in.tb.Helper()
	form.Set("grant_type", "client_credentials")
	form.Set("client_id", id)
	res, err := c.PostForm(in.mtls+pathToken, form)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	var body struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"`
		Error   string `json:"error"`
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		in.tb.Fatal(err)
	}
	return apiAnswer{status: res.StatusCode, token: body.Token, expires: body.Expires, errorCode: body.Error}
}

// list asks the operators' API for the clients with a token.
func (in *instance) list(c *http.Client, token string) apiAnswer {
	in.tb.Helper()
	req, err := http.NewRequestWithContext(in.tb.Context(), http.MethodGet, in.mtls+"/admin/v1/clients", nil)
	if err != nil {
		in.tb.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.Do(req)
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		in.tb.Fatal(err)
	}
	return apiAnswer{status: res.StatusCode, challenge: res.Header.Get("WWW-Authenticate")}
}

// What another replica has ended a moment ago is ended here too for whoever changes something, though the caches still
// know it otherwise: the caller is judged in the transaction, and told where the API's metadata are (RFC 9728, Section 5.1).
func TestOperatorEndedElsewhere(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	other := inspectStore(t, in.data)
	for how, end := range map[string]func(id string, cert *x509.Certificate) error{
		"disabled": func(id string, _ *x509.Certificate) error { return other.DisableClient(t.Context(), id) },
		"removed":  func(id string, _ *x509.Certificate) error { return other.RemoveClient(t.Context(), id) },
		"revoked": func(_ string, cert *x509.Certificate) error {
			_, err := other.Revoke(t.Context(), store.Selection{Thumbprints: [][32]byte{mtls.ThumbprintOf(cert)}}, 0, time.Now())
			return err
		},
		"kept": func(string, *x509.Certificate) error { return nil },
	} {
		id := "op-" + how
		var added struct {
			Code string `json:"code"`
		}
		in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": id, "scope": "certbound:read certbound:registry"}, &added)
		code, err := pki.ParseCode(added.Code)
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t)
		_, res := in.redeem(code, key)
		cert := pair(t, res, key)
		c := in.client(&cert)
		token := in.adminToken(c, id, url.Values{"resource": {in.issuer + "/admin/v1"}, "scope": {"certbound:read certbound:registry"}}).token
		if err := end(id, cert.Leaf); err != nil {
			t.Fatal(err)
		}
		if a := in.list(c, token); a.status != http.StatusOK {
			t.Fatalf("%s: the caches know of it: status %d", how, a.status)
		}
		want := map[bool]int{true: http.StatusCreated, false: http.StatusUnauthorized}[how == "kept"]
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.mtls+"/admin/v1/resources", strings.NewReader(`{"resource":"urn:`+how+`","scope":"a"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		wantMetadata := func() {
			t.Helper()
			const path = `/.well-known/oauth-protected-resource/admin/v1"`
			if got := answer.Header.Get("WWW-Authenticate"); !strings.HasSuffix(got, `, resource_metadata="`+in.issuer+path) {
				t.Errorf("%s: the API's own challenge is %s", how, got)
			}
		}
		if want == http.StatusUnauthorized {
			wantMetadata()
		}
		_, err = other.Resource(t.Context(), "urn:"+how)
		if answer.StatusCode != want || (err == nil) != (how == "kept") {
			t.Errorf("%s: status %d, want %d; the resource: %v", how, answer.StatusCode, want, err)
		}
		// A token that does not say so gives no scope that its client holds.
		if how != "kept" {
			continue
		}
		less := in.adminToken(c, id, url.Values{"resource": {in.issuer + "/admin/v1"}, "scope": {"certbound:read"}}).token
		r.Header.Set("Authorization", "Bearer "+less)
		r.Body = io.NopCloser(strings.NewReader(`{"resource":"urn:less","scope":"a"}`))
		r.ContentLength = -1
		if answer, err = c.Do(r); err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusForbidden {
			t.Errorf("with less than it holds: status %d", answer.StatusCode)
		}
		wantMetadata()
	}
}

// The operators' API takes tokens for itself only, for two minutes only, asked for by name only, bound to the
// connection, and from operators that still are; what is the service's own nobody may register.
func TestOperatorsAPI(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	cfg.Hosts = []string{"tokens.example"}
	in := start(t, cfg)
	in.addLedger()
	payments := in.enrolled("payments")
	operator := in.client(operatorPair(t, filepath.Join(in.data, "admin")))
	adminAPI := in.issuer + "/admin/v1"

	if a := in.adminToken(operator, operatorID, url.Values{}); a.token != "" {
		t.Errorf("without naming the API: a token, status %d", a.status)
	}
	if a := in.adminToken(operator, operatorID, url.Values{"scope": {scopeAdmin}}); a.token != "" {
		t.Errorf("with the scope alone: a token, status %d", a.status)
	}
	granted := in.adminToken(operator, operatorID, url.Values{"resource": {adminAPI}, "scope": {scopeAdmin}})
	if granted.status != http.StatusOK || granted.expires <= 0 || granted.expires > 120 {
		t.Fatalf("status %d, %s, a token for %d s; want one for at most 120 s", granted.status, granted.errorCode, granted.expires)
	}
	if a := in.adminToken(in.client(&payments), "payments", url.Values{"resource": {adminAPI}}); a.token != "" {
		t.Error("a token for the operators' API for somebody else")
	}
	if a := in.list(operator, granted.token); a.status != http.StatusOK {
		t.Fatalf("status %d", a.status)
	}
	other := in.token(in.client(&payments), "payments")
	wantToken(t, other)
	for name, a := range map[string]apiAnswer{
		"no token": in.list(operator, ""), "another's connection": in.list(in.client(&payments), granted.token),
		"no certificate": in.list(in.client(nil), granted.token), "another audience": in.list(in.client(&payments), other.Token),
	} {
		if a.status != http.StatusUnauthorized || a.challenge == "" {
			t.Errorf("%s: status %d, challenge %q", name, a.status, a.challenge)
		}
	}

	for name, body := range map[string]map[string]any{
		"localhost": {"client_id": "a", "scope": write, "dns_names": []string{"localhost"}, "usage": "both"},
		"loopback":  {"client_id": "a", "scope": write, "ip_addresses": []string{"127.0.0.1"}, "usage": "both"},
		"operator":  {"client_id": "a", "scope": write, "dns_names": []string{"operator"}, "usage": "both"},
		"our own":   {"client_id": "a", "scope": write, "dns_names": []string{"tokens.example"}, "usage": "both"},
	} {
		if err := in.operate(http.MethodPost, "/clients", body, nil); err == nil {
			t.Errorf("%s: registered", name)
		}
	}
	for _, uri := range []string{in.issuer, in.mtls, in.mtls + "/oauth2", in.issuer + "/pki", adminAPI} {
		if err := in.operate(http.MethodPost, "/resources", map[string]any{"resource": uri, "scope": "x:y"}, nil); err == nil {
			t.Errorf("%s: registered", uri)
		}
	}

	// A token that is good by itself is worth nothing once its certificate is not.
	serial := operatorPair(t, filepath.Join(in.data, "admin")).Leaf.SerialNumber.String()
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"serial": serial}, nil)
	if a := in.list(operator, granted.token); a.status != http.StatusUnauthorized || !strings.Contains(a.challenge, "invalid_token") {
		t.Errorf("after the revocation: status %d, challenge %q", a.status, a.challenge)
	}
	if journal := in.journal(); !strings.Contains(journal, `"actor":"operator"`) {
		t.Error("the operator is not named in the journal")
	}
	wantRefused(t, in.token(in.client(nil), "payments"))
	in.recorded(`"no_certificate"`)
	if strings.Contains(in.journal(), "127.0.0.1") {
		t.Error("an address stands in the journal as it is")
	}
	for outcome, reason := range map[string]string{"granted": "", "refused": "no_certificate"} {
		if !slices.ContainsFunc(in.events(), func(e event) bool {
			return e.Event == issuer.EventToken && e.Outcome == outcome && e.Client == "payments" && e.Reason == reason && (e.Thumbprint != "") == (reason == "") && e.Address == "127.0.0.1"
		}) {
			t.Errorf("no %s token of payments on record", outcome)
		}
	}
}

// event is what these tests read of a record.
type event struct {
	Event      string    `json:"event"`
	Outcome    string    `json:"outcome"`
	Reason     string    `json:"reason"`
	Client     string    `json:"client"`
	Thumbprint string    `json:"x5t#S256"`
	Actor      string    `json:"actor"`
	Time       time.Time `json:"time"`
	Sealed     string    `json:"sealed"`
	// Of what is sealed:
	Address  string            `json:"-"`
	Personal map[string]string `json:"-"`
}

// events are the records of the journal, with what is sealed in them.
func (in *instance) events() []event {
	in.tb.Helper()
	opener := audit.NewOpener(newJournalKeys(inspectStore(in.tb, in.data), 0))
	var all []event
	for line := range strings.Lines(in.journal()) {
		if line == "\n" || strings.HasPrefix(line, `{"frame":`) {
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			in.tb.Fatal(err)
		}
		if e.Sealed != "" {
			personal, err := opener.Open(in.tb.Context(), e.Sealed, e.Time, e.Client, e.Actor)
			if err != nil {
				in.tb.Fatalf("%v in %s", err, line)
			}
			e.Address, e.Personal = personal.Address, personal.Members
		}
		all = append(all, e)
	}
	return all
}

// The profile in the data folder is replaced at half its life, left alone before, and given up when it was moved
// away or when the first operator is one no longer: none of that keeps the service from starting.
func TestRefreshOperator(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "admin")
	s := built(t, data)
	current := func() *x509.Certificate {
		t.Helper()
		return operatorPair(t, dir).Leaf
	}
	refresh := func() {
		t.Helper()
		if err := s.renewOwnOnce(t.Context()); err != nil {
			t.Error(err)
		}
	}
	restart := func(change ...func(*service)) {
		t.Helper()
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = built(t, data, change...)
	}
	// A certificate that begins a minute ago and lives for half of one is past half its life at once.
	short := func(s *service) { s.cfg.Certificate.Lifetime = 30 * time.Second }

	first := current()
	refresh()
	if !current().Equal(first) {
		t.Error("a fresh profile was replaced")
	}
	restart(short)
	if !current().Equal(first) {
		t.Error("a fresh profile was replaced by a restart")
	}
	if err := s.writeOperator(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	due := current()
	refresh()
	if current().Equal(due) || due.Equal(first) {
		t.Error("a profile past half its life was not replaced")
	}

	addOperator(t, s, "alice")
	due = current()
	if err := s.folder.store.DisableClient(t.Context(), operatorID); err != nil {
		t.Fatal(err)
	}
	refresh()
	restart(short)
	if !current().Equal(due) {
		t.Error("the profile of a disabled operator was replaced")
	}
	if err := s.folder.store.RemoveClient(t.Context(), operatorID); err != nil {
		t.Fatal(err)
	}
	refresh()
	restart(short)
	if !current().Equal(due) {
		t.Error("the profile of a removed operator was replaced")
	}

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	refresh()
	restart(short)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the profile that was moved away came back: %v", err)
	}
}

// Somebody who got the first operator's id after it was removed gets nothing from the profile in the data folder.
func TestRefreshOperator_IDOfAnother(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "admin")
	s := built(t, data, func(s *service) {
		s.cfg.Certificate.Lifetime = 2 * time.Second
		s.cfg.Token.MaxLifetime = time.Second
		s.cfg.Token.Lifetime = time.Second
	})
	addOperator(t, s, "alice")
	if err := s.folder.store.RemoveClient(t.Context(), operatorID); err != nil {
		t.Fatal(err)
	}
	other := store.Client{ID: operatorID, AuthMethod: "tls_client_auth", Usage: "client"}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := s.folder.store.AddClient(t.Context(), other, nil); err == nil {
			break
		} else if !errors.Is(err, store.ErrReserved) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := s.refreshOperator(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.folder.store.Certificates(t.Context(), operatorID, "", 10); err != nil || len(rows) != 1 {
		t.Errorf("%d certificates of the id, want the first operator's only, %v", len(rows), err)
	}
	if _, err := profile.Open(dir); err == nil {
		t.Error("the lapsed profile was brought back for another client")
	}
}

// A profile elsewhere is laid down once and is the operator's from then on.
func TestAdminProfileElsewhere(t *testing.T) {
	t.Parallel()
	data, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "mine")
	with := func(s *service) { s.cfg.AdminProfile, s.cfg.Certificate.Lifetime = elsewhere, 30*time.Second }
	s := built(t, data, with)
	first := operatorPair(t, elsewhere).Leaf
	if _, err := os.Stat(filepath.Join(data, "admin")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a profile in the data folder too: %v", err)
	}
	for range 2 {
		if s.operatorDir != "" {
			t.Errorf("the service keeps %s fresh", s.operatorDir)
		}
		if err := s.renewOwnOnce(t.Context()); err != nil {
			t.Error(err)
		}
		if !operatorPair(t, elsewhere).Leaf.Equal(first) {
			t.Error("the operator's own profile was replaced")
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = built(t, data, with)
	}
}

// What the CA library keeps of spent one-time tokens is removed.
func TestRenewOwn_Purges(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	db := s.folder.store.DB()
	old := time.Now().Add(-2 * libraryRetention).Unix()
	if _, err := db.ExecContext(t.Context(), `INSERT INTO ca_kv(bucket, nkey, nvalue, created_at) VALUES ('used_ott', x'01', x'02', ?)`, old); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM ca_kv WHERE nkey = x'01'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if count() != 1 {
		t.Fatal("the row was not added")
	}
	if err := s.renewOwnOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d old rows left", n)
	}
}
