// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

// A step passes on the answer that it wants, and on no other.
func TestAnswerWant(t *testing.T) {
	t.Parallel()
	thief := answer{status: 401, challenge: `Bearer realm="ledger", error="invalid_token", error_description="no"`}
	revoked := answer{status: 401, challenge: `Bearer realm="https://localhost"`, body: `{"error":"invalid_client"}`}
	tests := []struct {
		name   string
		answer answer
		status int
		code   string
		ok     bool
	}{
		{"accepted", answer{status: 200, body: `{"entries":1}`}, 200, "", true},
		{"accepted where refusal is due", answer{status: 200}, 401, "invalid_token", false},
		{"code in the challenge", thief, 401, "invalid_token", true},
		{"code in the body", revoked, 401, "invalid_client", true},
		{"refused for another reason", thief, 401, "insufficient_scope", false},
		{"refused with another status", thief, 403, "invalid_token", false},
		{"refused where none is due", revoked, 401, "", false},
		{"no OAuth answer", answer{status: 401, body: "Unauthorized"}, 401, "invalid_client", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if err := test.answer.want(test.status, test.code); (err == nil) != test.ok {
				t.Errorf("want(%d, %q) = %v", test.status, test.code, err)
			}
		})
	}
}

// Where the metadata is stands in the challenge, wherever in it.
func TestAnswerMetadata(t *testing.T) {
	t.Parallel()
	for challenge, want := range map[string]string{
		`Bearer realm="ledger", error="invalid_token", resource_metadata="https://ledger.example/m", scope="s"`: "https://ledger.example/m",
		`Bearer resource_metadata="https://ledger.example/m"`:                                                   "https://ledger.example/m",
		`Bearer realm="ledger"`: "",
		``:                      "",
	} {
		if got := (answer{challenge: challenge}).metadata(); got != want {
			t.Errorf("%s: %q", challenge, got)
		}
	}
}

// The screen shows enough of a token to recognise it, and not the token.
func TestAnswerShown(t *testing.T) {
	t.Parallel()
	token := strings.Repeat("eyJ", 40)
	shown := answer{status: 200, body: `{"access_token":"` + token + `"}`}.shown()
	if strings.Contains(shown, token) || !strings.Contains(shown, token[:12]+"…") {
		t.Errorf("shown: %s", shown)
	}
}
