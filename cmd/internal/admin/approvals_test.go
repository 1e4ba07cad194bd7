// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// newPair is a bench that asks for two operators, alice and bob.
func newPair(t *testing.T) *bench {
	t.Helper()
	b := newBenchWith(t, Config{Approvals: 2}, New)
	b.enlist("bob", ScopeAdmin)
	b.certify("alice", "801")
	b.certify("bob", "802")
	return b
}

// held asks for something that has to wait.
func (b *bench) held(method, path, body string) Approval {
	b.Helper()
	var held Approval
	b.do(method, path, body, http.StatusAccepted, &held)
	return held
}

func (b *bench) confirmPath(a Approval) string { return "/approvals/" + a.ID + "/confirm" }

// What makes operators waits for a second one: nothing is there before, no code is made before, and no secret is shown.
func TestGrantWaitsForTheSecond(t *testing.T) {
	b := newPair(t)
	held := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	if held.Kind != "client.add" || held.Target != "olga" || held.Client == nil || held.Client.Scope != "certbound:read" || held.RequestedBy != "alice" ||
		!cmp.Equal(held.Needs, []string{ScopeGrant}) || !held.ExpiresAt.After(held.CreatedAt) {
		t.Errorf("answer %+v", held)
	}
	e := b.journal.last(t)
	if e.Name != "approval.request" || e.Outcome != audit.Granted || e.Actor != "alice" || e.Client != "olga" || e.Detail["kind"] != "client.add" ||
		e.Detail["approval"] != held.ID || e.Scope[0] != ScopeRead {
		t.Errorf("recorded %+v", e)
	}
	b.refused(http.MethodGet, "/clients/olga", "", http.StatusNotFound, "invalid_request", "")
	stats, err := b.store.Stats(t.Context())
	b.must(err)
	if stats.OpenCodes != 2 {
		t.Errorf("%d codes, want those of alice and bob", stats.OpenCodes)
	}
	rows, err := b.store.Pending(t.Context())
	b.must(err)
	if len(rows) != 1 || strings.Contains(string(rows[0].Payload), "cb1.") {
		t.Errorf("waiting: %d, %s", len(rows), rows[0].Payload)
	}
	var list ApprovalList
	b.do(http.MethodGet, "/approvals", "", http.StatusOK, &list)
	if diff := cmp.Diff([]Approval{held}, list.Approvals); diff != "" {
		t.Error(diff)
	}

	b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusForbidden, "invalid_request", "another operator")
	if e := b.journal.last(t); e.Name != "approval.confirm" || e.Outcome != audit.Refused || e.Detail["approval"] != held.ID {
		t.Errorf("recorded %+v", e)
	}
	b.refused(http.MethodGet, "/clients/olga", "", http.StatusNotFound, "invalid_request", "")

	b.as("bob", ScopeGrant)
	var made Invitation
	b.post(b.confirmPath(held), "", http.StatusCreated, &made)
	if _, err := pki.ParseCode(made.Code); err != nil || made.ClientID != "olga" {
		t.Errorf("answer %+v, %v", made, err)
	}
	e = b.journal.last(t)
	if e.Name != "client.add" || e.Outcome != audit.Granted || e.Actor != "bob" || e.Client != "olga" || e.Detail["requested_by"] != "alice" ||
		e.Detail["approval"] != held.ID || e.Detail["usage"] != "client" {
		t.Errorf("recorded %+v", e)
	}
	b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusNotFound, "invalid_request", "approval list")
}

// Everything waits that gives operators' rights, or credentials to who holds them, or changes a trust; nothing else does.
func TestWhatWaits(t *testing.T) {
	b := newPair(t)
	_, err := b.store.AuditSubject(t.Context(), "a")
	b.must(err)
	pinned, other := b.pem("pinned"), b.pem("other")
	ca := pemOf(mtlstest.NewCA(t, "ca").Certificate())
	robot := b.held(http.MethodPost, "/clients", body("client_id", "robot", "scope", "certbound:read", "certificates", []string{pinned, other}))
	trust := b.held(http.MethodPost, "/trusts", body("name", "partner", "ca", ca))
	b.as("bob", ScopeAdmin)
	b.post(b.confirmPath(robot), "", http.StatusCreated, nil)
	b.post(b.confirmPath(trust), "", http.StatusCreated, nil)
	b.as("alice", ScopeAdmin)
	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/clients", `{"client_id":"x","scope":"ledger:read certbound:read"}`, 202},
		{"POST", "/clients", `{"client_id":"a","scope":"ledger:read"}`, 201},
		{"POST", "/clients", `{"client_id":"f","trust":"partner","tls_client_auth_san_dns":"*.example"}`, 201},
		{"POST", "/clients/a/invite", "", 201},
		{"POST", "/clients/bob/invite", "", 202},
		{"POST", "/clients/a/disable", "", 200},
		{"POST", "/clients/a/enable", "", 200},
		{"POST", "/clients/robot/disable", "", 200},
		{"POST", "/clients/robot/enable", "", 202},
		{"PUT", "/clients/robot/certificates", body("certificates", []string{pinned, b.pem("mine")}), 202},
		{"PUT", "/clients/robot/certificates", body("certificates", []string{pinned}), 200},
		{"PUT", "/trusts/partner", body("ca", ca), 202},
		{"DELETE", "/trusts/partner", "", 202},
		{"POST", "/trusts", body("name", "third", "ca", ca), 202},
		{"POST", "/clients/a/erase", "", 202},
		{"POST", "/resources", `{"resource":"urn:x","scope":"a"}`, 201},
		{"DELETE", "/resources?uri=urn:x", "", 200},
		{"POST", "/certificates/revoke", `{"client_id":"bob"}`, 200},
		{"DELETE", "/clients/robot", "", 200},
	} {
		b.do(tt.method, tt.path, tt.body, tt.status, nil)
	}
	if _, err := b.store.StoredAuditSubject(t.Context(), "a"); err != nil {
		t.Errorf("erased by one operator: %v", err)
	}
	row, err := b.store.Client(t.Context(), "bob")
	b.must(err)
	if row.Disabled {
		t.Error("bob is disabled")
	}
}

// Each kind does, when it is confirmed, what it was asked for.
func TestConfirmedIsDone(t *testing.T) {
	b := newPair(t)
	run := func(method, path, request string, status int, out any) {
		t.Helper()
		b.as("alice", ScopeAdmin)
		held := b.held(method, path, request)
		b.as("bob", ScopeAdmin)
		b.post(b.confirmPath(held), "", status, out)
	}
	first, second := selfSigned(t, mtlstest.Leaf{}), selfSigned(t, mtlstest.Leaf{})
	run(http.MethodPost, "/clients", body("client_id", "robot", "scope", "certbound:read", "certificates", []string{pemOf(first)}), http.StatusCreated, nil)
	run(http.MethodPut, "/clients/robot/certificates", body("certificates", []string{pemOf(second)}), http.StatusOK, nil)
	row, err := b.store.Client(t.Context(), "robot")
	b.must(err)
	if diff := cmp.Diff([][]byte{second.Raw}, row.Certificates); diff != "" {
		t.Error(diff)
	}
	b.do(http.MethodPost, "/clients/robot/disable", "", http.StatusOK, nil)
	run(http.MethodPost, "/clients/robot/enable", "", http.StatusOK, nil)
	if row, err = b.store.Client(t.Context(), "robot"); err != nil || row.Disabled {
		t.Errorf("not enabled: %v", err)
	}
	var made Invitation
	run(http.MethodPost, "/clients/bob/invite", "", http.StatusCreated, &made)
	if made.ClientID != "bob" || made.Code == "" {
		t.Errorf("answer %+v", made)
	}
	_, err = b.store.AuditSubject(t.Context(), "robot")
	b.must(err)
	run(http.MethodPost, "/clients/robot/erase", "", http.StatusOK, nil)
	if _, err := b.store.StoredAuditSubject(t.Context(), "robot"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("not erased: %v", err)
	}
	one, two := mtlstest.NewCA(t, "one").Certificate(), mtlstest.NewCA(t, "two").Certificate()
	run(http.MethodPost, "/trusts", body("name", "p", "ca", pemOf(one)), http.StatusCreated, nil)
	run(http.MethodPut, "/trusts/p", body("ca", pemOf(two)), http.StatusOK, nil)
	trust, err := b.store.Trust(t.Context(), "p")
	b.must(err)
	if diff := cmp.Diff([][]byte{two.Raw}, trust.Anchors); diff != "" {
		t.Error(diff)
	}
	run(http.MethodDelete, "/trusts/p", "", http.StatusOK, nil)
	if e := b.journal.last(t); e.Name != "trust.remove" || e.Actor != "bob" || e.Detail["requested_by"] != "alice" || e.Detail["trust"] != "p" {
		t.Errorf("recorded %+v", e)
	}
}

// Who confirms or rejects holds what the request needs; who asked may withdraw.
func TestApprovalNeedsTheSameScopes(t *testing.T) {
	b := newPair(t)
	b.enlist("carol", ScopeAdmin)
	trust := b.held(http.MethodPost, "/trusts", body("name", "p", "ca", pemOf(mtlstest.NewCA(t, "p").Certificate())))
	grant := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read ledger:read"}`)
	if diff := cmp.Diff([]string{ScopeGrant, ScopeRegistry}, grant.Needs); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		held   Approval
		scopes []string
		needed string
	}{
		{trust, []string{ScopeGrant}, ScopeTrust}, {grant, []string{ScopeTrust}, ScopeGrant}, {grant, []string{ScopeGrant}, ScopeRegistry},
	} {
		for _, step := range []struct{ method, path string }{{http.MethodPost, b.confirmPath(tt.held)}, {http.MethodDelete, "/approvals/" + tt.held.ID}} {
			b.as("bob", tt.scopes...)
			var e ErrorBody
			b.do(step.method, step.path, "", http.StatusForbidden, &e)
			if e.Code != "insufficient_scope" || e.Scope != tt.needed {
				t.Errorf("%s by %s: %+v", step.method, tt.scopes, e)
			}
		}
	}
	b.as("bob", ScopeTrust)
	var done Change
	b.do(http.MethodDelete, "/approvals/"+trust.ID, "", http.StatusOK, &done)
	if e := b.journal.last(t); e.Name != "approval.reject" || e.Actor != "bob" || e.Detail["approval"] != trust.ID || e.Detail["kind"] != "trust.add" ||
		e.Detail["target"] != "p" || e.Detail["requested_by"] != "alice" || done.Approval != trust.ID {
		t.Errorf("recorded %+v, answer %+v", e, done)
	}
	b.refused(http.MethodPost, b.confirmPath(trust), "", http.StatusNotFound, "invalid_request", "approval list")
	b.as("alice", ScopeGrant)
	b.do(http.MethodDelete, "/approvals/"+grant.ID, "", http.StatusOK, nil)
	b.refused(http.MethodDelete, "/approvals/"+grant.ID, "", http.StatusNotFound, "invalid_request", "approval list")
}

// What came to differ from what was shown is not done, and what cannot be done any more is refused.
func TestConfirmedIsWhatWasShown(t *testing.T) {
	b := newPair(t)
	b.certify("bob", "901")
	b.enlist("olga", ScopeRead)
	enable := b.held(http.MethodPost, "/clients/olga/enable", "")
	invite := b.held(http.MethodPost, "/clients/olga/invite", "")
	add := b.held(http.MethodPost, "/clients", `{"client_id":"new","scope":"certbound:read"}`)
	b.do(http.MethodDelete, "/clients/olga", "", http.StatusOK, nil)
	b.enlist("olga", ScopeAdmin)
	b.enlist("new")
	b.as("bob", ScopeAdmin)
	for _, held := range []Approval{enable, invite} {
		b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusConflict, "invalid_request", "ask again")
	}
	b.refused(http.MethodPost, b.confirmPath(add), "", http.StatusConflict, "invalid_client_metadata", "certbound client show new")
	b.do(http.MethodDelete, "/clients/olga", "", http.StatusOK, nil)
	b.refused(http.MethodPost, b.confirmPath(enable), "", http.StatusNotFound, "invalid_request", "")
}

// Who asked and was disabled or removed since asked for nothing; a second operator who is disabled confirms nothing.
func TestApprovalOfFormerOperators(t *testing.T) {
	b := newPair(t)
	b.enlist("carol", ScopeAdmin)
	b.certify("carol", "902")
	held := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	b.as("carol", ScopeAdmin)
	b.do(http.MethodPost, "/clients/bob/disable", "", http.StatusOK, nil)
	b.as("bob", ScopeAdmin)
	b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusForbidden, "invalid_request", "another operator")
	b.refused(http.MethodPost, "/clients", `{"client_id":"x","scope":"certbound:read"}`, http.StatusForbidden, "invalid_request", "another operator")
	b.as("carol", ScopeAdmin)
	b.do(http.MethodPost, "/clients/alice/disable", "", http.StatusOK, nil)
	b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusNotFound, "invalid_request", "approval list")
}

// A request that cannot be recorded does not wait, and one whose confirmation cannot be recorded is not done, and goes on
// waiting.
func TestApprovalsNeedTheRecord(t *testing.T) {
	b := newPair(t)
	held := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	rejected := b.held(http.MethodPost, "/clients", `{"client_id":"x","scope":"certbound:read"}`)
	b.journal.fill(true)
	b.refused(http.MethodPost, "/clients", `{"client_id":"y","scope":"certbound:read"}`, http.StatusServiceUnavailable, "temporarily_unavailable", "")
	b.as("bob", ScopeAdmin)
	b.refused(http.MethodPost, b.confirmPath(held), "", http.StatusServiceUnavailable, "temporarily_unavailable", "")
	b.refused(http.MethodGet, "/clients/olga", "", http.StatusNotFound, "invalid_request", "")
	var done Change
	b.do(http.MethodDelete, "/approvals/"+rejected.ID, "", http.StatusOK, &done)
	if !done.AuditPending {
		t.Errorf("answer %+v", done)
	}
	var list ApprovalList
	b.do(http.MethodGet, "/approvals", "", http.StatusOK, &list)
	if len(list.Approvals) != 1 || list.Approvals[0].ID != held.ID {
		t.Errorf("waiting %+v", list)
	}
	b.journal.fill(false)
	b.post(b.confirmPath(held), "", http.StatusCreated, nil) // it was not used up
}

// A request waits for a day.
func TestApprovalExpires(t *testing.T) {
	t.Parallel()
	now := time.Now()
	db, err := store.Open(t.Context(), store.Config{
		Path: filepath.Join(t.TempDir(), "certbound.db"), KEK: make([]byte, 32), Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	a := &api{cfg: Config{Store: db}}
	row, err := db.AddPending(t.Context(), store.Pending{Kind: clientInvite, Payload: []byte(`{}`), RequestedBy: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.waitingRow(t.Context(), row.ID); err != nil {
		t.Error(err)
	}
	now = row.ExpiresAt
	_, _, err = a.waitingRow(t.Context(), row.ID)
	checkRefusal(t, err, codeRequest, "has expired")
}

// A row that this program did not write, or that does not fit it any more, is refused and not guessed at.
func TestUnreadableRequestWaits(t *testing.T) {
	b := newPair(t)
	held := b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	b.as("bob", ScopeAdmin)
	b.refused(http.MethodPost, b.confirmPath(held), `{"x":1}`, http.StatusBadRequest, "invalid_request", "")
	good := `{"target":"olga","needs":["certbound:grant"],"request":{},"shown":{}}`
	for _, row := range []store.Pending{
		{Kind: "client.transmute", Payload: []byte(good)},
		{Kind: clientAdd, Payload: []byte(`{`)},
		{Kind: clientAdd, Payload: []byte(strings.Replace(good, `"request":{}`, `"request":7`, 1))},
	} {
		row.RequestedBy = "alice"
		row, err := b.store.AddPending(t.Context(), row)
		b.must(err)
		b.refused(http.MethodPost, "/approvals/"+row.ID+"/confirm", "", http.StatusServiceUnavailable, "temporarily_unavailable", "")
		_, err = b.store.DropPending(t.Context(), row.ID)
		b.must(err)
	}
	for _, payload := range []string{`[]`, strings.Replace(good, `"shown":{}`, `"shown":7`, 1)} {
		row, err := b.store.AddPending(t.Context(), store.Pending{Kind: clientAdd, Payload: []byte(payload), RequestedBy: "alice"})
		b.must(err)
		b.refused(http.MethodGet, "/approvals", "", http.StatusServiceUnavailable, "temporarily_unavailable", "")
		_, err = b.store.DropPending(t.Context(), row.ID)
		b.must(err)
	}
}

// What cannot be done is refused at once, and does not wait for anybody.
func TestImpossibleDoesNotWait(t *testing.T) {
	b := newPair(t)
	b.refused(http.MethodPost, "/clients", `{"client_id":"bob","scope":"certbound:read"}`, http.StatusConflict, "invalid_client_metadata", "certbound client show bob")
	b.refused(http.MethodPost, "/clients/nobody/invite", "", http.StatusNotFound, "invalid_request", "client list")
}

// Only so many requests wait.
func TestTooManyWait(t *testing.T) {
	b := newPair(t)
	for i := range 100 {
		b.held(http.MethodPost, "/clients", fmt.Sprintf(`{"client_id":"c%d","scope":"certbound:read"}`, i))
	}
	b.refused(http.MethodPost, "/clients", `{"client_id":"x","scope":"certbound:read"}`, http.StatusConflict, "invalid_request", "approval list")
}

// A private key that somebody sent is kept nowhere.
func TestNoPrivateKeyWaits(t *testing.T) {
	b := newPair(t)
	key := "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
	b.refused(http.MethodPost, "/clients", body("client_id", "x", "scope", "certbound:read", "certificates", []string{b.pem("x") + key}),
		http.StatusBadRequest, "invalid_client_metadata", "discard that key")
	rows, err := b.store.Pending(t.Context())
	b.must(err)
	if len(rows) != 0 || strings.Contains(fmt.Sprint(b.journal.events), "c2VjcmV0") {
		t.Errorf("kept: %d rows", len(rows))
	}
}

// What is shown of a certificate is what it is recognised by.
func TestApprovalShowsThumbprints(t *testing.T) {
	b := newPair(t)
	cert := selfSigned(t, mtlstest.Leaf{CommonName: "robot"})
	held := b.held(http.MethodPost, "/clients", body("client_id", "robot", "scope", "certbound:read", "certificates", []string{pemOf(cert)}))
	if len(held.Client.Certificates) != 1 || held.Client.Certificates[0].Thumbprint != mtls.ThumbprintOf(cert).String() {
		raw, _ := json.Marshal(held)
		t.Errorf("shown %s", raw)
	}
}

// Names of the service wait for the second operator, who sees that they are asked for.
func TestReservedNamesWait(t *testing.T) {
	b := newPair(t)
	b.post("/clients", body("client_id", "own", "certificates", []string{b.pem("own")}), http.StatusCreated, nil)
	cert := pemOf(selfSigned(t, mtlstest.Leaf{DNSNames: []string{"localhost"}}))
	for _, held := range []Approval{
		b.held(http.MethodPost, "/clients", `{"client_id":"ledger","dns_names":["localhost"],"allow_reserved":true}`),
		b.held(http.MethodPut, "/clients/own/certificates", body("certificates", []string{cert}, "allow_reserved", true)),
	} {
		if !held.AllowReserved || !cmp.Equal(held.Needs, []string{ScopeRegistry, ScopeGrant}) {
			t.Errorf("shown %+v", held)
		}
		b.as("bob", ScopeAdmin)
		b.do(http.MethodPost, b.confirmPath(held), "", map[string]int{clientAdd: 201, clientCertificates: 200}[held.Kind], nil)
	}
}

// A request to replace something is about what was there when it was asked for. Confirmed later, it would take back what
// was changed since: an older CA, an older key.
func TestStaleApproval(t *testing.T) {
	b := newPair(t)
	add := func(name string, ca *mtlstest.CA) store.Trust {
		return store.Trust{Name: name, Anchors: [][]byte{ca.Certificate().Raw}, Revocation: "off"}
	}
	old, newer := mtlstest.NewCA(t, "old"), mtlstest.NewCA(t, "newer")
	for _, name := range []string{"replaced", "removed", "named", "same"} {
		b.must(b.store.AddTrust(t.Context(), add(name, old)))
	}
	pinned := selfSigned(t, mtlstest.Leaf{})
	for _, id := range []string{"robot", "sleeper"} {
		_, err := b.store.AddClient(t.Context(), store.Client{
			ID: id, AuthMethod: byCertificate, Usage: "client", Scopes: []string{ScopeRead}, Certificates: [][]byte{selfSigned(t, mtlstest.Leaf{}).Raw},
		}, nil)
		b.must(err)
	}
	b.must(b.store.DisableClient(t.Context(), "sleeper"))
	replaced := body("ca", pemOf(old.Certificate()))
	stale := []Approval{
		b.held(http.MethodPut, "/trusts/replaced", replaced),
		b.held(http.MethodDelete, "/trusts/removed", ""),
		b.held(http.MethodPut, "/trusts/same", replaced),
		b.held(http.MethodPost, "/clients", `{"client_id":"f","trust":"named","tls_client_auth_san_dns":"www.localhost","allow_reserved":true}`),
		b.held(http.MethodPut, "/clients/robot/certificates", body("certificates", []string{pemOf(pinned)})),
		b.held(http.MethodPost, "/clients/sleeper/enable", ""),
	}
	for _, name := range []string{"replaced", "removed", "named", "same"} {
		b.must(b.store.ReplaceTrust(t.Context(), add(name, newer)))
	}
	b.must(b.store.ReplaceTrust(t.Context(), add("same", old))) // changed, and changed back
	b.must(b.store.SetClientCertificates(t.Context(), "robot", [][]byte{selfSigned(t, mtlstest.Leaf{}).Raw}))
	b.must(b.store.EnableClient(t.Context(), "sleeper"))
	b.must(b.store.DisableClient(t.Context(), "sleeper"))
	before := b.contents()
	b.as("bob", ScopeAdmin)
	for _, held := range stale {
		var e ErrorBody
		b.post(b.confirmPath(held), "", http.StatusConflict, &e)
		if !strings.Contains(e.Description, "has changed since it was asked for") {
			t.Errorf("%s %s: %+v", held.Kind, held.Target, e)
		}
	}
	if after := b.contents(); after != before {
		t.Errorf("changed:\n%s\n%s", before, after)
	}
}

// The first operator has nobody to ask, so nothing waits until there are two who could enrol others. From then on all
// does: who may revoke would otherwise be rid of the second.
func TestApprovalsBeginWithTheSecond(t *testing.T) {
	b := newBenchWith(t, Config{Approvals: 2}, New)
	b.certify("alice", "801")
	ca := body("ca", pemOf(mtlstest.NewCA(t, "p").Certificate()))
	b.post("/trusts", strings.Replace(ca, "{", `{"name":"p",`, 1), http.StatusCreated, nil)
	b.post("/clients", `{"client_id":"bob","scope":"certbound:admin"}`, http.StatusCreated, nil)
	b.post("/clients/bob/invite", "", http.StatusCreated, nil)
	b.do(http.MethodPut, "/trusts/p", ca, http.StatusOK, nil)
	b.certify("bob", "802")
	b.held(http.MethodPut, "/trusts/p", ca)
	b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	b.post("/certificates/revoke", `{"client_id":"bob"}`, http.StatusOK, nil)
	b.held(http.MethodPut, "/trusts/p", ca)
	b.must(b.store.RemoveClient(t.Context(), "bob"))
	b.held(http.MethodPut, "/trusts/p", ca)
	again, err := New(b.cfg)
	b.must(err)
	b.handler = again
	b.held(http.MethodPut, "/trusts/p", ca)
}

// That two are there is noticed also by who revokes one of them, before that is done.
func TestRevokingTheSecondDoesNotEndApprovals(t *testing.T) {
	b := newBenchWith(t, Config{Approvals: 2}, New)
	b.enlist("bob", ScopeAdmin)
	b.certify("alice", "801")
	b.certify("bob", "802")
	b.post("/certificates/revoke", `{"client_id":"bob"}`, http.StatusOK, nil)
	b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:admin"}`)
}

// That two operators are asked for from now on is on record, once, and holds while the journal fails.
func TestPairingIsRecorded(t *testing.T) {
	b := newPair(t)
	b.journal.fill(true)
	b.do(http.MethodPost, "/clients/bob/disable", "", http.StatusOK, nil)
	b.journal.fill(false)
	b.must(b.box.Flush(t.Context()))
	b.refused(http.MethodPost, "/clients", `{"client_id":"bad id"}`, http.StatusBadRequest, "invalid_client_metadata", "")
	b.held(http.MethodPost, "/clients", `{"client_id":"olga","scope":"certbound:read"}`)
	var got []audit.Event
	for _, e := range b.journal.events {
		if e.Name == "setting.set" {
			got = append(got, e)
		}
	}
	if len(got) != 1 || got[0].Detail[pairedSetting] == "" || got[0].Actor != "alice" || got[0].Outcome != audit.Granted {
		t.Errorf("recorded %+v", got)
	}
}
