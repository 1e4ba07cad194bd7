// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unsigned is a token in form only.
func unsigned(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"k"}`)) + "." + encode([]byte(claims)) + "." + encode(make([]byte, 64))
}

// Without a profile a token is shown and nothing is believed.
func TestInspectWithoutProfile(t *testing.T) {
	t.Parallel()
	got, err := Inspect(t.Context(), nil, unsigned(`{"aud":["a","b"],"exp":1700000000,"cnf":{"x5t#S256":"t"}}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Inspection{Reason: ReasonUnverified, Explanation: got.Explanation, Claims: map[string]any{
		"aud": []any{"a", "b"}, "exp": json.Number("1700000000"), "cnf": map[string]any{"x5t#S256": "t"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInspectMalformed(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "a.b.c", "nonsense", unsigned(`{}`) + ".x", unsigned(`{"a":1,"a":2}`), strings.Repeat("a", 1<<20)} {
		got, err := Inspect(t.Context(), nil, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Valid || got.Reason != ReasonMalformed || got.Claims != nil {
			t.Errorf("%.40q: %+v", raw, got)
		}
	}
}

func TestAudienceOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		aud  any
		want string
	}{{"a", "a"}, {[]any{"a", "b"}, "a"}, {[]any{}, ""}, {[]any{1}, ""}, {nil, ""}, {json.Number("1"), ""}} {
		if got := audienceOf(map[string]any{"aud": tt.aud}); got != tt.want {
			t.Errorf("%v: %q", tt.aud, got)
		}
	}
}

func TestReadCertificateRefused(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{empty, empty + ".missing"} {
		if _, err := ReadCertificate(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
