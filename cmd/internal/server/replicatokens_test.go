// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// IN-06, RV-05: RFC 7662, Section 2.2, RFC 7009, Section 2.1: what one replica has issued is active at the other. Once its
// revocation is answered at one it is active at neither, though both have just said that it is; the same by operators.
func TestRFC7662_2_2_TakenAwayAtAnotherReplica(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	d := newDesk(t, i.config())
	both := []*instance{d.instance, start(t, i.config())}
	var asks, gives [2]*http.Client // connections that are there already: an answer is not late by a handshake
	for k, in := range both {
		asks[k], gives[k] = in.client(&d.guard), in.client(&d.payments)
	}
	active := func(k int, token string) bool {
		t.Helper()
		status, body := both[k].introspect(asks[k], "guard", token, "")
		if status != http.StatusOK || body != `{"active":false}` && !strings.HasPrefix(body, `{"active":true,`) {
			t.Fatalf("%d %s", status, body)
		}
		return body != `{"active":false}`
	}
	issue := func(k int) string {
		t.Helper()
		a := both[k].token(gives[k], d.id)
		wantToken(t, a)
		for range 2 { // the second answer is from memory
			for other := range both {
				if !active(other, a.Token) {
					t.Errorf("what replica %d has issued is not active at %d", k, other)
				}
			}
		}
		return a.Token
	}
	gone := func(k int, token string) {
		t.Helper()
		for _, other := range []int{1 - k, k} { // first where nobody took it away
			if active(other, token) {
				t.Errorf("taken away at replica %d, it is active at %d", k, other)
			}
		}
	}
	for round := range 20 {
		token, k := issue(round%2), round/2%2
		res, err := gives[k].PostForm(both[k].mtls+pathRevoke, url.Values{"token": {token}, "client_id": {d.id}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatal(res.Status)
		}
		gone(k, token)
	}
	token := issue(1)
	d.mustOperate(http.MethodPost, "/clients/"+d.id+"/disable", nil, nil)
	gone(0, token)
}

// CA-29: RFC 7523, Section 3: an assertion is good once, at whichever replica; of two that are asked at the same moment one
// gives a token.
func TestRFC7523_3_OneAssertionAtTwoReplicas(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := start(t, i.config()), start(t, i.config())
	one.addLedger()
	a := one.addAsserter("reports")
	b := *a
	b.instance = two
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{CommonName: "any"})
	at := []*asserter{a, &b}
	connections := []*http.Client{one.client(&cert), two.client(&cert)}
	for first := range at {
		used := a.assertion(nil)
		wantToken(t, at[first].ask(connections[first], used))
		wantRefused(t, at[1-first].ask(connections[1-first], used))
		wantRefused(t, at[first].ask(connections[first], used))
	}
	for range 5 {
		used := a.assertion(nil)
		answers := make([]tokenAnswer, len(at))
		var wg sync.WaitGroup
		for k := range at {
			wg.Go(func() { answers[k] = at[k].ask(connections[k], used) })
		}
		wg.Wait()
		if (answers[0].Token == "") == (answers[1].Token == "") {
			t.Errorf("one assertion at two replicas at once: %+v", answers)
		}
	}
}

// kid is the name of the key that signed a token.
func kid(t *testing.T, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	var header struct {
		KeyID string `json:"kid"`
	}
	if err == nil {
		err = json.Unmarshal(raw, &header)
	}
	if err != nil || header.KeyID == "" {
		t.Fatalf("%s: %v", head, err)
	}
	return header.KeyID
}

// A key that was announced at one replica is published at the other when that was answered, signs at both when its time has
// come, and what it signs at one is good at the other, as is still what was signed before.
func TestReplicas_PlannedRotation(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	first, second := i.config(), i.config()
	first.Signing.Announce, second.Signing.Announce = time.Second, time.Second
	one, two := start(t, first), start(t, second)
	cert := one.auditor("auditor")
	old := one.operatorsToken(cert, "auditor")
	var done admin.Rotation
	one.mustOperate(http.MethodPost, "/keys/rotate", admin.RotateRequest{}, &done)
	next := ""
	var due time.Time
	for _, key := range done.Keys {
		if key.State == keyAnnounced && key.Until != nil {
			next, due = key.ID, *key.Until
		}
	}
	if next == "" {
		t.Fatalf("answered %+v", done)
	}
	for name, in := range map[string]*instance{"one": one, "two": two} {
		if keys := in.get(in.public() + pathKeys); !strings.Contains(keys, next) || !strings.Contains(keys, kid(t, old)) {
			t.Errorf("%s does not publish both keys: %s", name, keys)
		}
	}
	// A replica looks once a minute whether something is due to the keys, and when it starts.
	if err := two.stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(due))
	two = start(t, second)
	tokens := make(map[*instance]string)
	for name, in := range map[string]*instance{"one": one, "two": two} {
		eventually(t, 10*time.Second, name+" signs with the new key", func() bool {
			tokens[in] = in.operatorsToken(cert, "auditor")
			return kid(t, tokens[in]) == next
		})
	}
	check := func(in *instance, cert tls.Certificate, token, what string) {
		t.Helper()
		if got := in.use(cert, token); got != http.StatusOK {
			t.Errorf("%s: %d", what, got)
		}
	}
	for _, in := range []*instance{one, two} {
		check(in, cert, old, "a token of the old key")
		check(in, cert, tokens[one], "a token that one signed")
		check(in, cert, tokens[two], "a token that two signed")
	}
}
