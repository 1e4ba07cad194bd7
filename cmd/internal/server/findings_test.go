// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// A folder whose database is gone is not begun anew: that would be another CA under the same name. Nothing in it is
// changed, so that the database put back makes it whole again.
func TestLostDatabaseIsNotReplaced(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	cert := in.enrolled("payments")
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(cfg.Data, "ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	database, away := filepath.Join(cfg.Data, "certbound.db"), filepath.Join(t.TempDir(), "certbound.db")
	if err := os.Rename(database, away); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"", "admin", "ca"} { // also when more than the database went
		if gone != "" {
			if err := os.Rename(filepath.Join(cfg.Data, gone), filepath.Join(filepath.Dir(away), gone)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tryStart(t, cfg); err == nil || !strings.Contains(err.Error(), database) {
			t.Fatalf("without the database and %q: %v", gone, err)
		}
		if _, err := os.Stat(database); !os.IsNotExist(err) {
			t.Fatalf("a database was made: %v", err)
		}
		if gone != "" {
			if err := os.Rename(filepath.Join(filepath.Dir(away), gone), filepath.Join(cfg.Data, gone)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Rename(away, database); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(filepath.Join(cfg.Data, "ca", "root.pem")); err != nil || !bytes.Equal(now, root) {
		t.Errorf("the root changed: %v", err)
	}
	again := start(t, cfg)
	wantToken(t, again.token(again.client(&cert), "payments"))
}

// What Run would refuse, Check refuses before anything is stored, so that a mistake in the issuer binds nothing.
func TestCheckRefusesWhatRunWould(t *testing.T) {
	t.Parallel()
	for _, issuer := range []string{
		"https://h.example/te%20n", "https://h.example/a//b", "https://h.example/a/../b", "https://lo_cal:1", "https://h.example/?x",
	} {
		cfg := testConfig(t, t.TempDir())
		cfg.Issuer = issuer
		if err := Check(cfg); err == nil {
			t.Errorf("%s was found good", issuer)
		}
		if _, err := tryStart(t, cfg); err == nil {
			t.Errorf("%s was served", issuer)
		}
		if entries, err := os.ReadDir(cfg.Data); err != nil || len(entries) > 0 {
			t.Errorf("%s left %v in the data folder, %v", issuer, entries, err)
		}
	}
	cfg := testConfig(t, t.TempDir())
	cfg.Hosts = []string{"Tokens.Example.", "192.0.2.7"}
	if err := Check(cfg); err != nil {
		t.Errorf("good names: %v", err)
	}
	cfg.Hosts = []string{"*.example"}
	if Check(cfg) == nil {
		t.Error("a wildcard name was found good")
	}
	cfg.Hosts, cfg.KEKFile = nil, filepath.Join(t.TempDir(), "none")
	if Check(cfg) == nil {
		t.Error("a missing key-encryption key was found good")
	}
}

// A service that can grant nothing is not ready.
func TestReadinessKnowsTheJournal(t *testing.T) {
	t.Parallel()
	s := &service{cfg: testConfig(t, t.TempDir()), log: discard()}
	t.Cleanup(func() { _ = s.close() }) // the journal is closed already, which is the point
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	ready := func() (int, string) {
		w := httptest.NewRecorder()
		s.ready(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if code, body := ready(); code != http.StatusOK || !strings.Contains(body, `"journal":"ok"`) {
		t.Errorf("at first: %d %s", code, body)
	}
	if err := s.folder.journal.Close(); err != nil {
		t.Fatal(err)
	}
	_ = s.folder.journal.Record(context.Background(), audit.Event{Name: "test"})
	if code, body := ready(); code != http.StatusServiceUnavailable || strings.Contains(body, `"journal":"ok"`) {
		t.Errorf("without a journal: %d %s", code, body)
	}
}

// The operator's profile is renewed at half of its own life, however short that is, while the service runs.
func TestOperatorProfileIsKeptFresh(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, t.TempDir())
	cfg.Certificate.Lifetime = 6 * time.Second
	in := start(t, cfg)
	dir := filepath.Join(in.data, "admin")
	serial := func() string {
		p, err := profile.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return p.Certificate().SerialNumber.String()
	}
	first := serial()
	deadline := time.Now().Add(20 * time.Second)
	for serial() == first {
		if time.Now().After(deadline) {
			t.Fatal("the profile was not renewed")
		}
		time.Sleep(50 * time.Millisecond)
	}
	in.mustOperate(http.MethodGet, "/clients", nil, nil)
}

// A member in another letter case, or one that stands twice, is not what was signed over and is refused.
func TestEnroll_MembersAreExact(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	code := in.addClient("payments")
	good, err := json.Marshal(pki.NewEnrollRequest(code, in.issuer, newCSR(t, newKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"letter case": strings.Replace(string(good), `"id"`, `"ID"`, 1),
		"twice":       strings.Replace(string(good), `{"id"`, `{"id":"AAAAAAAAAAA","id"`, 1),
	} {
		res, err := in.client(nil).Post(in.issuer+pathEnroll, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", name, res.StatusCode)
		}
	}
	res, err := in.client(nil).Post(in.issuer+pathEnroll, "application/json", bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("the exact request: status %d", res.StatusCode)
	}
}

// Over HTTP/2 a refusal arrives whole although its request's body was not wanted.
func TestRefusalsOfLongBodiesArrive(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	c := in.client(nil)
	for range 5 {
		res, err := c.Post(in.mtls+pathToken, "application/x-www-form-urlencoded", io.LimitReader(zeros{}, 300<<10))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.ProtoMajor != 2 || res.StatusCode != http.StatusRequestEntityTooLarge || !bytes.Contains(body, []byte(`"invalid_request"`)) {
			t.Errorf("HTTP/%d: status %d, %v: %s", res.ProtoMajor, res.StatusCode, err, body)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// EC-10: RFC 5280, Section 5: what a removed client held is on the next revocation list.
func TestRFC5280_5_RemovedClientIsOnTheList(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	_ = in.get(in.issuer + pathCRL) // one from before is cached
	in.mustOperate(http.MethodDelete, "/clients/payments", nil, nil)
	list, err := pki.ParseCRL([]byte(in.get(in.issuer + pathCRL)))
	if err != nil {
		t.Fatal(err)
	}
	if list.Len() != 1 {
		t.Errorf("%d entries, want the removed client's certificate", list.Len())
	}
	if revoked, ok, err := list.Revoked(cert.Leaf); !ok || err != nil || revoked.Reason != pki.CessationOfOperation {
		t.Errorf("on the list: %t, %v, %v", ok, revoked.Reason, err)
	}
}

// Every refusal has a line in the journal that the answer's correlation id finds: also those that the guard of the
// operators' API makes, those of unreadable requests, and every use of the socket.
func TestEveryRefusalIsOnRecord(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	cert := in.enrolled("payments")
	c := in.client(&cert)
	do := func(method, address, contentType, authorization, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res
	}
	token := in.token(c, "payments").Token
	for name, res := range map[string]*http.Response{
		"no operator's token":    do(http.MethodGet, in.mtls+"/admin/v1/clients", "application/json", "", ""),
		"a forged one":           do(http.MethodGet, in.mtls+"/admin/v1/clients", "application/json", "Bearer a.b.c", ""),
		"another audience's":     do(http.MethodGet, in.mtls+"/admin/v1/clients", "application/json", "Bearer "+token, ""),
		"an unreadable enrol":    do(http.MethodPost, in.mtls+pathEnroll, "application/json", "", "{"),
		"an unreadable renewal":  do(http.MethodPost, in.mtls+pathRenew, "text/plain", "", "{}"),
		"a form that is no form": do(http.MethodPost, in.mtls+pathToken, "application/json", "", "{}"),
	} {
		id := res.Header.Get("X-Correlation-Id")
		if res.StatusCode < 400 || id == "" || !in.recorded(`"correlation":"`+id+`"`) {
			t.Errorf("%s: status %d, correlation %q, not on record", name, res.StatusCode, id)
		}
	}
	res, err := in.socketClient().Get("http://certbound/admin/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if id := res.Header.Get("X-Correlation-Id"); id == "" || !strings.Contains(in.journal(), id) {
		t.Errorf("a look through the socket (%d) is not on record", res.StatusCode)
	}
	if strings.Contains(in.journal(), token) {
		t.Error("a token in the journal")
	}
}

// A data folder whose path is longer than a socket's address has its break-glass socket all the same, and the client
// that the command line uses reaches it.
func TestBreakGlassAtALongPath(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	in := start(t, testConfig(t, data))
	socket := profile.NewSocket(filepath.Join(data, socketName))
	defer socket.Close()
	var status struct {
		Issuer string `json:"issuer"`
	}
	if err := socket.Do(t.Context(), http.MethodGet, "/status", nil, &status); err != nil || status.Issuer != in.issuer {
		t.Errorf("through the socket: %q, %v", status.Issuer, err)
	}
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(data, socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket after the stop: %v", err)
	}
}

// Possession of an operator's token ends with its certificate also for a request that was let in before: one whose body
// comes slowly changes nothing after the revocation has returned.
func TestRevokedOperatorWithASlowBody(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	for how, takeAway := range map[string]func(id string, serial string){
		"revoked": func(_, serial string) {
			in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"serial": serial}, nil)
		},
		"disabled": func(id, _ string) { in.mustOperate(http.MethodPost, "/clients/"+id+"/disable", nil, nil) },
		"removed":  func(id, _ string) { in.mustOperate(http.MethodDelete, "/clients/"+id, nil, nil) },
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			id := "op-" + how
			var added struct {
				Code string `json:"code"`
			}
			in.mustOperate(http.MethodPost, "/clients", map[string]any{"client_id": id, "scope": scopeAdmin}, &added)
			code, err := pki.ParseCode(added.Code)
			if err != nil {
				t.Fatal(err)
			}
			key := newKey(t)
			_, res := in.redeem(code, key)
			cert := pair(t, res, key)
			c := in.client(&cert)
			granted := in.adminToken(c, id, url.Values{"resource": {in.issuer + "/admin/v1"}})
			body, slow := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.mtls+"/admin/v1/clients", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+granted.token)
			status := make(chan int, 1)
			go func() {
				res, err := c.Do(req)
				if err != nil {
					status <- 0
					return
				}
				res.Body.Close()
				status <- res.StatusCode
			}()
			if _, err := io.WriteString(slow, `{"client_id":"`); err != nil {
				t.Fatal(err)
			}
			// The request is inside when another one on the same connection has been answered.
			if a := in.token(c, id); a.Status != http.StatusOK && a.Error != "invalid_target" {
				t.Fatalf("status %d %s", a.Status, a.Error)
			}
			takeAway(id, cert.Leaf.SerialNumber.String())
			if _, err := io.WriteString(slow, `mallory-`+how+`","scope":"`+scopeAdmin+`"}`); err != nil {
				t.Fatal(err)
			}
			slow.Close()
			if got := <-status; got != http.StatusUnauthorized {
				t.Errorf("a slow request of a %s operator: status %d, want 401", how, got)
			}
			if in.operate(http.MethodGet, "/clients/mallory-"+how, nil, nil) == nil {
				t.Errorf("a %s operator made another one", how)
			}
		})
	}
}

// A key that was reported compromised authenticates nobody, also not a client of another CA that certified the same
// key, at once and after a restart.
func TestCompromisedKeyOfAnotherAuthority(t *testing.T) {
	t.Parallel()
	partner := mtlstest.NewCA(t, "partner")
	cfg := testConfig(t, t.TempDir())
	in := start(t, cfg)
	in.addLedger()
	in.mustOperate(http.MethodPost, "/trusts", map[string]any{"name": "partner", "ca": certificatePEM(partner.Certificate())}, nil)
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "feed", "trust": "partner", "tls_client_auth_san_dns": "feed.example", "scope": write,
	}, nil)
	key := newKey(t)
	status, res := in.redeem(in.addClient("payments"), key)
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	own := pair(t, res, key)
	feed := partner.Issue(t, mtlstest.Leaf{CommonName: "feed", DNSNames: []string{"feed.example"}, Key: key})
	wantToken(t, in.token(in.client(&own), "payments"))
	wantToken(t, in.token(in.client(&feed), "feed"))
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"x5t#S256": thumbprint(own), "reason": "keyCompromise"}, nil)
	wantRefused(t, in.token(in.client(&own), "payments"))
	wantRefused(t, in.token(in.client(&feed), "feed"))
	if err := in.stop(); err != nil {
		t.Fatal(err)
	}
	in = start(t, cfg)
	wantRefused(t, in.token(in.client(&feed), "feed"))
}

// A4: when nobody can give scopes any more, break-glass brings the first operator back: whoever redeems the code is it,
// and the certificates from before are worth nothing.
func TestBreakGlassRestoresTheOperator(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": operatorID, "reason": "keyCompromise"}, nil)
	if in.operate(http.MethodGet, "/clients", nil, nil) == nil {
		t.Fatal("a revoked operator still reads the clients")
	}
	socket := profile.NewSocket(filepath.Join(in.data, socketName))
	defer socket.Close()
	var invited struct {
		Code string `json:"code"`
	}
	if err := socket.Do(t.Context(), http.MethodPost, "/clients/"+operatorID+"/invite", nil, &invited); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "operator")
	p, err := profile.Enroll(t.Context(), profile.EnrollOptions{Code: invited.Code, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	op, err := profile.NewOperator(p)
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	if err := op.Do(t.Context(), http.MethodGet, "/clients", nil, nil); err != nil {
		t.Errorf("the restored operator: %v", err)
	}
	if in.operate(http.MethodGet, "/clients", nil, nil) == nil {
		t.Error("the operator's certificate from before still counts")
	}
	if !strings.Contains(in.journal(), `"restored":"true"`) {
		t.Error("the restoration is not on record")
	}
}

// What our CA did not issue it cannot revoke, and does not say that it did: a foreign client is disabled instead, or its
// key barred.
func TestRevokingWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	in := start(t, testConfig(t, t.TempDir()))
	in.addLedger()
	pinned := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "feed"})
	in.mustOperate(http.MethodPost, "/clients", map[string]any{
		"client_id": "feed", "scope": write, "certificates": []string{certificatePEM(pinned.Leaf)},
	}, nil)
	wantToken(t, in.token(in.client(&pinned), "feed"))
	err := in.operate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "feed"}, nil)
	if refused, ok := errors.AsType[*profile.APIError](err); !ok || refused.Status != http.StatusConflict || !strings.Contains(refused.Hint, "client disable feed") {
		t.Errorf("revoking a registered certificate: %v", err)
	}
	wantToken(t, in.token(in.client(&pinned), "feed"))
	var done struct {
		Disabled []string `json:"disabled"`
	}
	in.mustOperate(http.MethodPost, "/certificates/revoke", map[string]any{"client_id": "feed", "reason": "keyCompromise"}, &done)
	if len(done.Disabled) != 1 || done.Disabled[0] != "feed" {
		t.Errorf("disabled %v", done.Disabled)
	}
	wantRefused(t, in.token(in.client(&pinned), "feed"))
	in.mustOperate(http.MethodPost, "/clients/feed/enable", nil, nil)
	wantRefused(t, in.token(in.client(&pinned), "feed")) // the key stays barred
}
