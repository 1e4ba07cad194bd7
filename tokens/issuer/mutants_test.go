// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// The tests of this file stand for checks that no other test missed when they were deleted (scripts/mutate).

// RFC 8259, Section 7: strings are written byte for byte as they should be, and not only so that they read the same.
func TestRFC8259_7_Strings(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"":             `""`,
		"a b~\x7f":     "\"a b~\x7f\"",
		`"\`:           `"\"\\"`,
		"\x00\n\x1f":   `"\u0000\u000a\u001f"`,
		"é€𝄞":          `"é€𝄞"`,
		"\x80a\xff":    "\"\ufffda\ufffd\"",
		"a\xc3":        "\"a\ufffd\"",
		"a\ufffdb":     "\"a\ufffdb\"",
		"\xed\xa0\x80": "\"\ufffd\ufffd\ufffd\"", // a surrogate
	} {
		if got := string(appendString(nil, s)); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

// RFC 6749, Section 3.3: there is no empty scope, so there is no member for it.
func TestRFC6749_3_3_NoScopeNoMember(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		scope []string
		want  string
	}{{nil, ""}, {[]string{"a"}, `,"scope":"a"`}, {[]string{"a", "b"}, `,"scope":"a b"`}} {
		if got := string(appendScope(nil, tc.scope)); got != tc.want {
			t.Errorf("%q: %s", tc.scope, got)
		}
	}
}

// RFC 6749, Appendices A.1 and B: the bounds of what a client_id is, and of what percent-encoding is.
func TestRFC6749_A_1_ClientIDBounds(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		" ": true, "~": true, "\x1f": false, "\x7f": false, "": false,
		strings.Repeat("a", maxClientID): true, strings.Repeat("a", maxClientID+1): false,
	} {
		if isClientID(s) != ok {
			t.Errorf("%.9q of %d bytes: %v", s, len(s), !ok)
		}
	}
	for _, s := range []string{"%", "%4", "%4z", "%z4", "%4/", "%:0", "%00", "%ff"} {
		if got, ok := decodeText(s); ok {
			t.Errorf("%q reads as %q", s, got)
		}
	}
	for c := range 256 {
		if got, want := unhex(byte(c)), strings.IndexByte("0123456789abcdef", byte(c)|0x20); c != '@' && c != 'P' {
			if c < '0' || '9' < c && c < 'A' {
				want = -1
			}
			if got != want {
				t.Errorf("%q is %d", byte(c), got)
			}
		}
	}
}

// RFC 6749, Section 4.4.2: what is a form and what is not.
func TestRFC6749_4_4_2_FormMediaType(t *testing.T) {
	t.Parallel()
	const form = "application/x-www-form-urlencoded"
	for contentType, ok := range map[string]bool{
		form: true, form + ";charset=UTF-8": true, form + "; charset=utf-8": true, strings.ToUpper(form): true, form + "; a=b": true,
		form + "; a": false, form + ";charset=latin1": false, form + ";charset=": false, "text/plain": false, "": false,
	} {
		if isForm([]string{contentType}) != ok {
			t.Errorf("%q: %v", contentType, !ok)
		}
	}
	if isForm(nil) || isForm([]string{form, form}) {
		t.Error("none, or two")
	}
}

// A body whose end did not arrive is refused, also when what did arrive is a request.
func TestBodyBreaksOff(t *testing.T) {
	t.Parallel()
	s := newService(t)
	cert := s.enrol(t, "payments")
	body := io.MultiReader(strings.NewReader(ask("payments")), iotest.ErrReader(io.ErrUnexpectedEOF))
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, body)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	s.serveToken(w, r, mtlstest.PeerOf(cert))
	if d := s.journal.last(t); w.Code != http.StatusBadRequest || d.Reason != "body_unreadable" {
		t.Errorf("%d %s, recorded as %q", w.Code, w.Body, d.Reason)
	}
}

// The record has the address that a middleware found, or else the connection's; the answer has a correlation id only
// where there is one.
func TestAddressAndCorrelation(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, nil)
	if got := callerAddress(r); got != r.RemoteAddr {
		t.Errorf("address %q", got)
	}
	if got := callerAddress(r.WithContext(WithAddress(t.Context(), "192.0.2.9"))); got != "192.0.2.9" {
		t.Errorf("address %q", got)
	}
	for _, id := range []string{"", "c1"} {
		w := httptest.NewRecorder()
		WriteError(w, r.WithContext(WithCorrelationID(t.Context(), id)), "realm", refusal(tokens.CodeInvalidRequest, "x", "a~b"))
		if got, ok := w.Header()[CorrelationHeader]; ok != (id != "") || ok && got[0] != id {
			t.Errorf("%q: %q", id, got)
		}
		if !strings.Contains(w.Body.String(), `"a~b"`) {
			t.Errorf("description: %s", w.Body)
		}
	}
}

// RFC 9110, Section 11.1: a scheme is a token of bounded length, in all its characters.
func TestRFC9110_11_1_Scheme(t *testing.T) {
	t.Parallel()
	for authorization, want := range map[string]string{
		"Basic x": "Basic", "a-Z_09 x": "a-Z_09", "!#$%&'*+^`|~. x": "!#$%&'*+^`|~.", strings.Repeat("s", 32) + " x": strings.Repeat("s", 32),
		"": "Bearer", "Basic": "Bearer", " x": "Bearer", strings.Repeat("s", 33) + " x": "Bearer", "\x80 x": "Bearer", "é x": "Bearer", `"a" x`: "Bearer",
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, TokenPath, nil)
		r.Header["Authorization"] = []string{authorization}
		if got := triedScheme(r); got != want {
			t.Errorf("%q: %q", authorization, got)
		}
	}
	for c := range 256 {
		want := strings.IndexByte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", byte(c)) >= 0
		if isLetterOrDigit(byte(c)) != want {
			t.Errorf("%q: %v", byte(c), !want)
		}
	}
}

// oddRegistry answers as no Registry should.
type oddRegistry struct {
	Registry
	client *Client
	err    error
}

func (r oddRegistry) Client(context.Context, string) (*Client, error) { return r.client, r.err }

// An answer of the Registry is believed only when it is without error and of the client that was asked for.
func TestOddRegistry(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	good, err := s.registry.Client(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	other := *good
	other.ID = "orders"
	down := errors.New("down")
	for name, tc := range map[string]struct {
		registry oddRegistry
		code     string
	}{
		"a client and an error":      {oddRegistry{client: good, err: down}, tokens.CodeTemporarilyUnavailable},
		"a client that is not found": {oddRegistry{client: good, err: ErrNotFound}, tokens.CodeInvalidClient},
		"no client and no error":     {oddRegistry{}, tokens.CodeInvalidClient},
		"another client":             {oddRegistry{client: &other}, tokens.CodeInvalidClient},
	} {
		tc.registry.Registry = s.registry
		odd := *s.Server
		odd.registry = tc.registry
		client, err := odd.Authenticate(t.Context(), "payments", peer)
		if refused, ok := errors.AsType[*tokens.Error](err); !ok || refused.Code != tc.code || client != nil {
			t.Errorf("%s: %v, %v", name, client, err)
		}
	}
}

// The inventory is asked only where it has a say: an outage of it is none for others.
func TestInventoryAskedWhereItCounts(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	s.registry.change(func(r *registry) { r.inventoryErr = errors.New("down") })
	if _, reason := s.Explain(t.Context(), "payments", nil); reason != "no_certificate" {
		t.Errorf("without a certificate: %q", reason)
	}
	if _, reason := s.Explain(t.Context(), "payments", peer); reason != "registry_failed" {
		t.Errorf("of our own CA: %q", reason)
	}
	s.registry.changeClient("payments", func(c *Client) { c.Inventory = false })
	if _, reason := s.Explain(t.Context(), "payments", peer); reason != "" {
		t.Errorf("of another CA: %q", reason)
	}
}

// A token ends with its certificate, also where the inventory says later.
func TestTokenEndsWithItsCertificate(t *testing.T) {
	t.Parallel()
	s := newService(t)
	soon := time.Now().Add(2 * time.Minute)
	cert := s.enrol(t, "payments", func(l *mtlstest.Leaf) { l.NotAfter = soon })
	for _, later := range []time.Duration{time.Hour, 0, -time.Minute} {
		s.registry.changeCertificate(cert, func(c *Certificate) { c.NotAfter = soon.Add(later) })
		response := s.issue(t, Request{GrantType: ClientCredentials, ClientID: "payments", Peer: mtlstest.PeerOf(cert)})
		if bound := time.Until(soon.Add(min(later, 0))) + 2*time.Second; response.ExpiresIn > bound {
			t.Errorf("inventory %v later: %v, want at most %v", later, response.ExpiresIn, bound)
		}
	}
}

// What the server's own failures are is in its log: a refusal that could not be recorded, and what is not the caller's
// fault. Refusals are not.
func TestFailuresAreLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := newService(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	})
	refuse := func() string {
		log.Reset()
		if _, err := s.Authenticate(t.Context(), "nobody", nil); err == nil {
			t.Error("not refused")
		}
		return log.String()
	}
	if text := refuse(); text != "" {
		t.Errorf("logged: %s", text)
	}
	s.journal.fail(errors.New("disk full"))
	if text := refuse(); !strings.Contains(text, "refusal not recorded") || !strings.Contains(text, "disk full") {
		t.Errorf("logged: %s", text)
	}
	s.journal.fail(nil)
	s.registry.change(func(r *registry) { r.clientErr = errors.New("down") })
	if text := refuse(); !strings.Contains(text, "registry_failed") {
		t.Errorf("logged: %s", text)
	}
	if n := s.events.refused.Load(); n != 0 {
		t.Errorf("%d tokens are counted as refused, where none was asked for", n)
	}
}

// RFC 3986, Sections 2 and 4.3: what can be a resource: an absolute URI of the characters that a URI may have.
func TestRFC3986_4_3_Resources(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"https://a.example", "urn:a:b", "a:/x", "https://a.example/~a?b=c"} {
		if !isResource(s) {
			t.Errorf("%q is none", s)
		}
	}
	for _, c := range " \x1f\x7f\"\\<>#^`{|}é" {
		if s := "https://a.example/x" + string(c); isResource(s) {
			t.Errorf("%q is one", s)
		}
	}
	for _, s := range []string{"", "a", "/x", "https:", "://x"} {
		if isResource(s) {
			t.Errorf("%q is one", s)
		}
	}
}

// RFC 9110, Section 5.6.4: a quoted-string keeps what it may hold and escapes the two that would end it.
func TestRFC9110_5_6_4_QuotedString(t *testing.T) {
	t.Parallel()
	if got, want := quote("a ~\x7f\x1f\"\\é"), `"a ~\"\\"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := thumbprintText(mtls.Thumbprint{}); got != "" {
		t.Errorf("no thumbprint is %q", got)
	}
	one := mtls.Thumbprint{1}
	if got := thumbprintText(one); got != one.String() {
		t.Errorf("%q", got)
	}
}

// RFC 8414, Section 2: each thing alone makes an issuer identifier, or a lifetime, that cannot be used; the bounds of
// lifetimes can.
func TestRFC8414_2_ConfigurationBounds(t *testing.T) {
	t.Parallel()
	good := newService(t)
	config := Config{
		Issuer: "https://a.example", MTLSURL: "https://a.example:9443", Registry: good.registry, Keys: good.keys, Recorder: good.journal,
	}
	for name, tc := range map[string]struct {
		edit func(*Config)
		ok   bool
	}{
		"as it is":            {func(*Config) {}, true},
		"one second":          {func(c *Config) { c.Lifetime = time.Second }, true},
		"at the bound":        {func(c *Config) { c.Lifetime, c.MaxLifetime = time.Minute, time.Minute }, true},
		"above the bound":     {func(c *Config) { c.Lifetime, c.MaxLifetime = time.Minute+time.Second, time.Minute }, false},
		"negative":            {func(c *Config) { c.Lifetime = -time.Second }, false},
		"negative bound":      {func(c *Config) { c.MaxLifetime = -time.Second }, false},
		"half a second":       {func(c *Config) { c.Lifetime = time.Second / 2 }, false},
		"percent-encoding":    {func(c *Config) { c.Issuer = "https://a.example/%20" }, false},
		"unusual characters":  {func(c *Config) { c.Issuer = "https://a.example/x[y" }, false},
		"encoded for nothing": {func(c *Config) { c.Issuer = "https://a.example/%41" }, false},
	} {
		c := config
		tc.edit(&c)
		s, err := New(c)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		w := httptest.NewRecorder() // without Scopes and Logger
		s.MetadataHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		if w.Code != http.StatusOK || strings.Contains(w.Body.String(), "scopes_supported") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

// A document that cannot be written is an error that nobody keeps, and nothing follows it; so is a token that cannot be
// signed, and the log has it.
func TestOwnFailures(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := newService(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	cert := s.enrol(t, "payments")
	s.keys.published = []tokens.PublicKey{{ID: "a"}}
	w := httptest.NewRecorder()
	s.KeysHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, KeysPath, nil))
	if w.Code != http.StatusInternalServerError || w.Header().Get("Cache-Control") != "no-store" ||
		strings.Count(w.Body.String(), "\n") != 1 || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	s.keys.signing.Algorithm = "none"
	_, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: mtlstest.PeerOf(cert)})
	wantError(t, err, tokens.CodeServerError, "signing_failed")
	if !strings.Contains(log.String(), "level=ERROR msg=\"request refused\"") {
		t.Errorf("logged: %s", log.String())
	}
}

// MD-03: RFC 8414, Section 2: what New refuses as an issuer, CheckIdentifier refuses beforehand, and nothing else.
func TestRFC8414_2_CheckIdentifier(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]bool{
		"https://tokens.example": true, "https://tokens.example:8443/t1": true,
		"http://tokens.example": false, "https://": false, "https://tokens.example/?x": false, "https://u@tokens.example": false,
		"https://tokens.example/a%20b": false, "https://tokens.example/a//b": false, "https://tokens.example/a/../b": false,
	} {
		if err := CheckIdentifier(raw); (err == nil) != want {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
