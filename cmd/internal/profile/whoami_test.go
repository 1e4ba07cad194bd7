// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/certbound/certbound/mtls"
)

func TestWhoami(t *testing.T) {
	t.Parallel()
	s := newService(t)
	p := s.enrolled(t)
	s.set(func() {
		s.whoami = func(w http.ResponseWriter, r *http.Request) {
			peer, err := mtls.PeerFromRequest(r)
			if err != nil {
				answerJSON(w, http.StatusOK, map[string]any{"certificate": nil, "client": nil, "hint": "no certificate"})
				return
			}
			answerJSON(w, http.StatusOK, map[string]any{
				"certificate": map[string]any{"x5t#S256": peer.Thumbprint().String(), "dns_names": []string{"a.example"}},
				"client":      map[string]any{"client_id": r.URL.Query().Get("client_id"), "authenticates": true},
			})
		}
	})
	got, err := p.Visitor().Whoami(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Certificate.Thumbprint != mtls.ThumbprintOf(p.Certificate()).String() || got.Client.ClientID != clientID || !got.Client.Authenticates {
		t.Errorf("%+v %+v", got.Certificate, got.Client)
	}
	if !got.As(clientID) || got.As("other") || (&Arrival{}).As("") || (&Arrival{Client: &ArrivedClient{ClientID: "a"}}).As("a") {
		t.Error("it is taken for another client than it authenticates")
	}
	nobody := p.Visitor()
	nobody.KeyPair, nobody.ClientID = nil, "a&b"
	if got, err := nobody.Whoami(t.Context()); err != nil || got.Certificate != nil || got.Client != nil || got.Hint == "" {
		t.Errorf("%+v, %v", got, err)
	}
	s.set(func() {
		s.whoami = func(w http.ResponseWriter, r *http.Request) {
			answerJSON(w, http.StatusTooManyRequests, map[string]any{"error": "slow_down", "hint": r.URL.RawQuery})
		}
	})
	_, err = nobody.Whoami(t.Context())
	if refused, ok := errors.AsType[*APIError](err); !ok || refused.Code != "slow_down" || refused.Hint != "client_id=a%26b" {
		t.Errorf("error %v", err)
	}
	nobody.MTLSURL = s.mtls.URL + "0"
	if message, _ := wantHint(t, func() error { _, err := nobody.Whoami(t.Context()); return err }()); !strings.Contains(message, "cannot talk") {
		t.Errorf("error %s", message)
	}
}
