// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var equal = cmp.Options{cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()}

// file writes text to a file and returns its name.
func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "certbound.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func environment(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got, err := Load("", nil, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, equal); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got.Issuer != "https://localhost:8443" || got.Explicit("issuer") || got.Token.Lifetime != 10*time.Minute ||
		got.Token.MaxLifetime != time.Hour || got.Certificate.Lifetime != 24*time.Hour || got.Code.Lifetime != time.Hour {
		t.Errorf("defaults are %+v", got)
	}
}

// The example sets every key, each with a comment, to its default.
func TestExample(t *testing.T) {
	t.Parallel()
	got, err := Load(file(t, Example()), nil, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, equal); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, s := range got.settings() {
		if !got.Explicit(s.key) {
			t.Errorf("%s is not in the example", s.key)
		}
	}
	lines := strings.Split(Example(), "\n")
	const asked = "RS256 and ML-DSA\n# only where they are asked to."
	if plain := strings.ReplaceAll(Example(), "\n  #", "\n#"); !strings.Contains(plain, asked) {
		t.Error("whoever signs with RS256 is not told that resource servers have to be asked to accept it")
	}
	for i, line := range lines {
		if len(line) > 110 {
			t.Errorf("line %d is too long", i+1)
		}
		name, value, isKey := strings.Cut(strings.TrimSpace(line), ":")
		if isKey && value != "" && !strings.HasPrefix(name, "#") && !strings.Contains(lines[i-1], "# ") {
			t.Errorf("%s has no comment", name)
		}
	}
}

const everything = `# all of it
data: /srv/certbound
issuer: https://tokens.example/a
mtls_url: 'https://mtls.example:9443'
public: ":8443"
mtls: '[::1]:9443'
debug: off
hosts: [tokens.example, "192.0.2.1"]
trust_domain: example.internal
database: sqlite
database_connections: 20
admin_profile: /home/op
kek_file: /run/kek
trust:
  - name: partner
    ca_file: /etc/partner.pem
    crl_url: http://crl.partner.example/ca.crl
    revocation: soft
  - {name: other.ca_2, ca_file: "o.pem", crl_file: o.crl}
fapi: true
token: {lifetime: 5m, max_lifetime: 14m}
signing: {algorithm: PS256, rotate: 7d, announce: 15m}
certificate:
  lifetime: 7d
  server_lifetime: 30d
  on_fork: suspend
inventory: {keep: 2d}
code:
  lifetime: 15m
fetch:
  allowed_hosts: [keys.partner.example, "crl.partner.example:8080"]
  allow_private: ["10.1.2.3", "[::1]:8443"]
admin: {approvals: 2}
audit: {sync: interval, sync_interval: 50ms, segment_size: 1048576, segment_age: 12h, retention: 30d, refusal_quota: 2000000}
tls:
  handshake_timeout: 3s
  shared_tickets: true
http:
  header_timeout: 4s
  read_timeout: 5s
  write_timeout: 6s
  idle_timeout: 1m30s
  shutdown_timeout: 0s
limits:
  exempt: ["192.0.2.1", "2001:db8::/32"]
  connections: 513
  address_connections: 257
  handshakes: 514
  handshake_rate: 1
  handshake_total: 2
  anonymous_rate: 3
  anonymous_total: 4
  client_rate: 5
proxy: {trusted: ["10.0.0.0/8"]}
log:
  level: debug
  format: json
`

func TestLoadFile(t *testing.T) {
	t.Parallel()
	got, err := Load(file(t, everything), nil, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Data: "/srv/certbound", Issuer: "https://tokens.example/a", MTLSURL: "https://mtls.example:9443", Public: ":8443",
		MTLS: "[::1]:9443", Debug: "", Hosts: []string{"tokens.example", "192.0.2.1"}, TrustDomain: "example.internal",
		Database: "sqlite", DatabaseConnections: 20, AdminProfile: "/home/op", KEKFile: "/run/kek",
		FAPI: true, Token: Token{5 * time.Minute, 14 * time.Minute},
		Signing: Signing{"PS256", 7 * 24 * time.Hour, 15 * time.Minute},
		Trust: []Trust{
			{"partner", "/etc/partner.pem", "", "http://crl.partner.example/ca.crl", "soft"},
			{"other.ca_2", "o.pem", "o.crl", "", ""},
		},
		Certificate: Certificate{7 * 24 * time.Hour, 30 * 24 * time.Hour, "suspend"},
		Fetch: Fetch{
			AllowedHosts: []string{"keys.partner.example", "crl.partner.example:8080"},
			AllowPrivate: []string{"10.1.2.3", "[::1]:8443"},
		},
		Admin: Admin{2}, Inventory: Inventory{48 * time.Hour}, Code: Code{15 * time.Minute},
		Audit:  Audit{"interval", 50 * time.Millisecond, 1 << 20, 12 * time.Hour, 30 * 24 * time.Hour, 2_000_000},
		TLS:    TLS{3 * time.Second, true},
		HTTP:   HTTP{4 * time.Second, 5 * time.Second, 6 * time.Second, 90 * time.Second, 0},
		Limits: Limits{[]string{"192.0.2.1", "2001:db8::/32"}, 513, 257, 514, 1, 2, 3, 4, 5},
		Proxy:  Proxy{[]string{"10.0.0.0/8"}},
		Log:    Log{"debug", "json"},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A flag stands over the environment, which stands over the file, which stands over the default.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	name := file(t, "issuer: https://file.example\ndata: from-file\npublic: 127.0.0.1:1\nhosts: [file.example]\ntoken:\n  lifetime: 1m\n")
	env := environment(map[string]string{
		"CERTBOUND_ISSUER": "https://env.example", "CERTBOUND_PUBLIC": "127.0.0.1:2", "CERTBOUND_TOKEN_LIFETIME": "2m",
		"CERTBOUND_HOSTS": "a.example, b.example", "CERTBOUND_DATA": "", "CERTBOUND_PROFILE": "elsewhere",
	})
	public := "127.0.0.1:3"
	got, err := Load(name, env, Overrides{Public: &public})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Issuer, want.Data, want.Public = "https://env.example", "from-file", "127.0.0.1:3"
	want.Hosts, want.Token.Lifetime = []string{"a.example", "b.example"}, 2*time.Minute
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !got.Explicit("issuer") || got.Explicit("mtls") {
		t.Error("what was given is not known")
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	s := func(s string) *string { return &s }
	got, err := Load("", nil, Overrides{
		Data: s("d"), Issuer: s("https://i.example"), MTLSURL: s("https://m.example"), Public: s(":1"), MTLS: s(":2"),
		Debug: s(""), TrustDomain: s("t"), Database: s("sqlite"), AdminProfile: s("p"), Hosts: []string{"h.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Data, want.Issuer, want.MTLSURL, want.Public, want.MTLS = "d", "https://i.example", "https://m.example", ":1", ":2"
	want.Debug, want.TrustDomain, want.Database, want.AdminProfile, want.Hosts = "", "t", "sqlite", "p", []string{"h.example"}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Each mistake is named with its place, and what to do about it.
func TestFileProblems(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, want string }{
		{"unknown key", "data: d\nisuer: x\n", `:2: unknown key "isuer"; the keys here are data, issuer,`},
		{"unknown key in a section", "token:\n  livetime: 1m\n", `:2: unknown key "token.livetime"; the keys here are lifetime, max_lifetime`},
		{"dotted key", "token.lifetime: 1m\n", `:1: unknown key "token.lifetime"`},
		{"unknown section", "tokens:\n  lifetime: 1m\n", `:1: unknown key "tokens"`},
		{"twice", "data: a\nissuer: https://x.example\ndata: b\n", `:3: the key "data" is already in line 1; keep one`},
		{"twice in a section", "log:\n  level: info\n  level: warn\n", `:3: the key "log.level" is already in line 2`},
		{"section twice", "log:\n  level: info\nlog:\n  format: json\n", `:3: the key "log" is already in line 1`},
		{"number for a string", "data: 7\n", ":1: data: must be a string, not a number; put it in double quotes"},
		{"nothing for a string", "\n\ndata:\n", ":3: data: must be a string, not nothing; write a value, or leave the key out"},
		{"list for a string", "data: [a]\n", ":1: data: must be a string, not a list; write the one value, as text in double quotes"},
		{"number for a duration", "token:\n  lifetime: 600\n", ":2: token.lifetime: must be a duration, not a number; write it like 10m"},
		{"bad duration", "token:\n  lifetime: soon\n", ":2: token.lifetime: not a duration: write it like 10m"},
		{"string for a list", "hosts: a.example\n", ":1: hosts: must be a list, not a string; write it like [a.example, b.example]"},
		{"number in a list", "hosts:\n  - a.example\n  - 7\n", ":1: hosts: line 3 must be a string, not a number"},
		{"string for authorities", "trust: a.pem\n", ":1: trust: must be a list, not a string"},
		{"string for an authority", "trust:\n  - a.pem\n", ":2: an authority must hold keys with values, not a string; the keys here are name,"},
		{"unknown key of an authority", "trust:\n  - name: a\n    cafile: a.pem\n", `:3: unknown key "cafile" in trust; the keys here are name, ca_file,`},
		{"authority's key twice", "trust:\n  - name: a\n    name: b\n", `:3: the key "name" is given twice for one authority`},
		{"authority's key of the wrong type", "trust:\n  - name: 7\n", ":2: trust: name: must be a string, not a number"},
		{"authority's merge", "trust:\n  - <<: {name: a}\n", ":2: a key must be a plain word"},
		{"authorities twice", "trust: []\ntrust: []\n", `:2: the key "trust" is already in line 1`},
		{"value of an authority", "data: d\ntrust: [{name: a}]\n", `:2 (trust): authority "a": no ca_file is named`},
		{"word for a number", "admin:\n  approvals: two\n", ":2: admin.approvals: must be a whole number"},
		{"fraction", "admin: {approvals: 1.5}\n", ":1: admin.approvals: must be a whole number"},
		{"huge number", "admin: {approvals: 99999999999999999999}\n", ":1: admin.approvals: must be a"},
		{"string for a section", "token: 10m\n", ":1: token must hold keys with values, not a string"},
		{"list for the file", "- data\n", ":1: the file must hold keys with values, not a list"},
		{"anchor", "data: &x d\n", ":1: data: must be a string, not an anchor or an alias"},
		{"alias", "data: d\nissuer: *x\n", ":2: issuer: must be a string, not an anchor or an alias"},
		{"tag", "data: !!str d\n", ":1: data: must be a string, not a tag"},
		{"merge", "<<: {data: d}\n", ":1: a key must be a plain word"},
		{"second document", "data: d\n---\ndata: e\n", ":3: a second document; keep one"},
		{"no YAML", "data: d\nissuer: a: b\n", ":2: no YAML: "},
		{"tab", "log:\n\tlevel: info\n", ":2: no YAML: "},
		{"value", "data: d\nissuer: http://x\n", `:2 (issuer): "http://x" does not begin with https://`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			name := file(t, test.text)
			_, err := Load(name, nil, Overrides{})
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.HasPrefix(err.Error(), name+test.want) {
				t.Errorf("error is %q", strings.ReplaceAll(err.Error(), name, "FILE"))
			}
			if len(Problems(err)) != 1 || strings.Contains(err.Error(), "\n") {
				t.Errorf("problems are %v", Problems(err))
			}
		})
	}
}

func TestSeveralProblems(t *testing.T) {
	t.Parallel()
	_, err := Load(file(t, "a: 1\ndata: 2\nb: 3\n"), nil, Overrides{})
	got := Problems(err)
	if len(got) != 3 || !strings.HasSuffix(got[2].Where, ":3") || got[2].What != `unknown key "b"` || got[2].Hint == "" {
		t.Errorf("problems are %v", got)
	}
	if Problems(nil) != nil || Problems(os.ErrNotExist) != nil {
		t.Error("problems found in other errors")
	}
}

func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	if _, err := Load("/nonexistent/c.yaml", nil, Overrides{}); err == nil || !strings.Contains(err.Error(), "/nonexistent/c.yaml") {
		t.Errorf("error is %v", err)
	}
	name := file(t, strings.Repeat("# long\n", maxFile/7+1))
	if _, err := Load(name, nil, Overrides{}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("error is %v", err)
	}
}

func TestEnvironmentProblems(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{"CERTBOUND_TOKEN_LIFETIME": "long", "CERTBOUND_HTTP_IDLE_TIMEOUT": "5",
		"CERTBOUND_TRUST": "partner", "CERTBOUND_ADMIN_APPROVALS": "two"})
	_, err := Load("", env, Overrides{})
	if got := Problems(err); len(got) != 4 || got[0].Where != "CERTBOUND_TRUST" ||
		got[0].What != "can only be given in the file" || got[2].What != "not a number" {
		t.Errorf("error is %v", err)
	}
	env = environment(map[string]string{"CERTBOUND_TOKEN_LIFETIME": "long", "CERTBOUND_HTTP_IDLE_TIMEOUT": "5"})
	_, err = Load("", env, Overrides{})
	if got := Problems(err); len(got) != 2 || got[0].Where != "CERTBOUND_TOKEN_LIFETIME" {
		t.Errorf("error is %v", err)
	}
	_, err = Load("", environment(map[string]string{"CERTBOUND_ISSUER": "http://x"}), Overrides{})
	if err == nil || !strings.HasPrefix(err.Error(), "CERTBOUND_ISSUER (issuer): ") {
		t.Errorf("error is %v", err)
	}
	issuer := "http://x"
	_, err = Load("", nil, Overrides{Issuer: &issuer})
	if err == nil || !strings.HasPrefix(err.Error(), "--issuer (issuer): ") {
		t.Errorf("error is %v", err)
	}
}

// MD-03: RFC 8414, Section 2: the issuer is an https URL without query and fragment.
func TestRFC8414_2_IssuerForm(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"https://localhost:8443", "https://tokens.example", "https://tokens.example/a/b", "https://192.0.2.1:1", "https://[::1]:8443",
	} {
		if _, err := Load("", nil, Overrides{Issuer: &good}); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"", "http://localhost:8443", "localhost:8443", "https://", "https://:8443", "https://x.example?", "https://x.example?a=b",
		"https://x.example#", "https://x.example#f", "https://u@x.example", "https://u:p@x.example", "https://x.example/",
		"https://x.example/a/", "HTTPS://x.example", "https://X.example", "https://x.example:", "https://x.example:0",
		"https://x.example:65536", "https://x.example:08", "https://x y.example", "https://*.example", "https://x.example\n",
		"https://h/te%20n", "https://h/a//b", "https://h/a/../b", "https://h/./a", "https://h//", "https://lo_cal:1", "https://10.256",
		"https://é.example", "//x.example", "https://x.example/%zz", "https://x..example", "https://" + strings.Repeat("a.", 300) + "example",
	} {
		if _, err := Load("", nil, Overrides{Issuer: &bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"data":                        func(c *Config) { c.Data = "" },
		"data ":                       func(c *Config) { c.Data = "a\x00b" },
		"data  ":                      func(c *Config) { c.Data = "\xff" },
		"admin_profile":               func(c *Config) { c.AdminProfile = strings.Repeat("x", maxText+1) },
		"mtls_url":                    func(c *Config) { c.MTLSURL = "http://x.example" },
		"mtls_url ":                   func(c *Config) { c.MTLSURL = "https://x.example/a" },
		"public":                      func(c *Config) { c.Public = "" },
		"public ":                     func(c *Config) { c.Public = "127.0.0.1" },
		"public  ":                    func(c *Config) { c.Public = "127.0.0.1:65536" },
		"public   ":                   func(c *Config) { c.Public = "127.0.0.1:http" },
		"mtls":                        func(c *Config) { c.MTLS = c.Public },
		"debug":                       func(c *Config) { c.Debug = c.MTLS },
		"hosts":                       func(c *Config) { c.Hosts = []string{"*.example"} },
		"hosts ":                      func(c *Config) { c.Hosts = []string{"a.example:1"} },
		"hosts  ":                     func(c *Config) { c.Hosts = []string{""} },
		"hosts   ":                    func(c *Config) { c.Hosts = []string{"a", "a"} },
		"hosts    ":                   func(c *Config) { c.Hosts = make([]string, maxHosts+1) },
		"hosts      ":                 func(c *Config) { c.Hosts = []string{"lo_cal"} },
		"hosts     ":                  func(c *Config) { c.Hosts = []string{"fe80::1%eth0"} },
		"trust_domain":                func(c *Config) { c.TrustDomain = "Example" },
		"trust_domain ":               func(c *Config) { c.TrustDomain = "spiffe://x" },
		"trust_domain  ":              func(c *Config) { c.TrustDomain = strings.Repeat("a", 256) },
		"database":                    func(c *Config) { c.Database = "mysql://x" },
		"database ":                   func(c *Config) { c.Database = "postgres://u:se cret@db/x" },
		"database_connections":        func(c *Config) { c.DatabaseConnections = 7 },
		"database_connections ":       func(c *Config) { c.DatabaseConnections = 1001 },
		"token.lifetime":              func(c *Config) { c.Token.Lifetime = 0 },
		"token.lifetime ":             func(c *Config) { c.Token = Token{31 * time.Minute, 30 * time.Minute} },
		"token.max_lifetime":          func(c *Config) { c.Token.MaxLifetime = time.Hour + 1 },
		"signing.algorithm ":          func(c *Config) { c.FAPI, c.Token.MaxLifetime, c.Signing.Algorithm = true, time.Minute*15, "RS256" },
		"token.max_lifetime ":         func(c *Config) { c.FAPI, c.Token.MaxLifetime = true, 15*time.Minute+1 },
		"signing.algorithm":           func(c *Config) { c.Signing.Algorithm = "HS256" },
		"signing.rotate":              func(c *Config) { c.Signing.Rotate = 24*time.Hour - 1 },
		"signing.rotate ":             func(c *Config) { c.Signing.Rotate = -1 },
		"signing.announce":            func(c *Config) { c.Signing.Announce = 10*time.Minute - 1 },
		"signing.announce ":           func(c *Config) { c.Signing.Rotate, c.Signing.Announce = 24*time.Hour, 24*time.Hour },
		"certificate.server_lifetime": func(c *Config) { c.Certificate.ServerLifetime = time.Minute },
		"certificate.on_fork":         func(c *Config) { c.Certificate.OnFork = "ignore" },
		"admin.approvals":             func(c *Config) { c.Admin.Approvals = 0 },
		"admin.approvals ":            func(c *Config) { c.Admin.Approvals = 3 },
		"fetch.allowed_hosts":         func(c *Config) { c.Fetch.AllowedHosts = []string{"https://a.example"} },
		"fetch.allowed_hosts ":        func(c *Config) { c.Fetch.AllowedHosts = []string{"*.example"} },
		"fetch.allowed_hosts  ":       func(c *Config) { c.Fetch.AllowedHosts = make([]string, maxHosts+1) },
		"fetch.allow_private":         func(c *Config) { c.Fetch.AllowPrivate = []string{"a.example:0"} },
		"trust":                       func(c *Config) { c.Trust = []Trust{{CAFile: "a"}} },
		"trust ":                      func(c *Config) { c.Trust = []Trust{{Name: "A b", CAFile: "a"}} },
		"trust  ":                     func(c *Config) { c.Trust = []Trust{{Name: "-a", CAFile: "a"}} },
		"trust   ":                    func(c *Config) { c.Trust = []Trust{{Name: strings.Repeat("a", maxName+1), CAFile: "a"}} },
		"trust    ":                   func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a"}, {Name: "a", CAFile: "b"}} },
		"trust     ":                  func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a", CRLURL: "ldap://x"}} },
		"trust      ":                 func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a", CRLURL: "http://u:p@x"}} },
		"trust       ":                func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a", CRLFile: "c", Revocation: "firm"}} },
		"trust        ":               func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a", Revocation: "hard"}} },
		"trust         ":              func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a", CRLFile: "c", Revocation: "off"}} },
		"trust          ":             func(c *Config) { c.Trust = make([]Trust, maxTrusts+1) },
		"trust           ":            func(c *Config) { c.Trust = []Trust{{Name: "a", CAFile: "a\x00"}} },
		"certificate.lifetime":        func(c *Config) { c.Certificate.Lifetime = -time.Hour },
		"code.lifetime":               func(c *Config) { c.Code.Lifetime = 7*24*time.Hour + 1 },
		"tls.handshake_timeout":       func(c *Config) { c.TLS.HandshakeTimeout = 0 },
		"http.idle_timeout":           func(c *Config) { c.HTTP.IdleTimeout = 2 * time.Hour },
		"audit.sync":                  func(c *Config) { c.Audit.Sync = "never" },
		"audit.retention":             func(c *Config) { c.Audit.Retention = 24*time.Hour - 1 },
		"audit.retention ":            func(c *Config) { c.Audit.Retention = -1 },
		"inventory.keep":              func(c *Config) { c.Inventory.Keep = 24*time.Hour - 1 },
		"inventory.keep ":             func(c *Config) { c.Inventory.Keep = -1 },
		"inventory.keep  ":            func(c *Config) { c.Inventory.Keep = maxRetention + 1 },
		"audit.refusal_quota":         func(c *Config) { c.Audit.RefusalQuota = 1<<20 - 1 },
		"limits.exempt":               func(c *Config) { c.Limits.Exempt = []string{"localhost"} },
		"limits.exempt ":              func(c *Config) { c.Limits.Exempt = make([]string, maxHosts+1) },
		"limits.connections":          func(c *Config) { c.Limits.Connections = 511 },
		"limits.address_connections":  func(c *Config) { c.Limits.AddressConnections = 255 },
		"limits.handshakes":           func(c *Config) { c.Limits.Handshakes = 511 },
		"limits.handshake_rate":       func(c *Config) { c.Limits.HandshakeRate = -1 },
		"limits.handshake_total":      func(c *Config) { c.Limits.HandshakeTotal = -1 },
		"limits.anonymous_rate":       func(c *Config) { c.Limits.AnonymousRate = -1 },
		"limits.anonymous_total":      func(c *Config) { c.Limits.AnonymousTotal = maxRate + 1 },
		"limits.client_rate":          func(c *Config) { c.Limits.ClientRate = -1 },
		"proxy.trusted":               func(c *Config) { c.Proxy.Trusted = []string{"10.1.2.3/8"} },
		"proxy.trusted ":              func(c *Config) { c.Proxy.Trusted = []string{"0.0.0.0/0"} },
		"proxy.trusted  ":             func(c *Config) { c.Proxy.Trusted = []string{"::/0"} },
		"proxy.trusted   ":            func(c *Config) { c.Proxy.Trusted = []string{"::ffff:10.0.0.1"} },
		"proxy.trusted    ":           func(c *Config) { c.Proxy.Trusted = []string{"fe80::1%eth0"} },
		"audit.sync_interval":         func(c *Config) { c.Audit.SyncInterval = time.Millisecond },
		"audit.segment_size":          func(c *Config) { c.Audit.SegmentSize = 64<<10 - 1 },
		" audit.segment_size":         func(c *Config) { c.Audit.SegmentSize = 1<<30 + 1 },
		"audit.segment_age":           func(c *Config) { c.Audit.SegmentAge = time.Second },
		"log.level":                   func(c *Config) { c.Log.Level = "loud" },
		"log.format":                  func(c *Config) { c.Log.Format = "" },
	} {
		c := Default()
		change(&c)
		key := strings.TrimSpace(name)
		got := Problems(c.Validate())
		if len(got) != 1 || got[0].Where != key || got[0].What == "" || got[0].Hint == "" {
			t.Errorf("%s: problems are %v", key, got)
		}
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Public, c.MTLS, c.Debug = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0" },
		func(c *Config) { c.Code.Lifetime = 7 * 24 * time.Hour },
		func(c *Config) { c.Token.Lifetime = time.Hour },
		func(c *Config) { c.Signing = Signing{"RS256", 0, 7 * 24 * time.Hour} },
		func(c *Config) { c.Signing = Signing{"EdDSA", 24 * time.Hour, 10 * time.Minute} },
		func(c *Config) { c.Audit.Retention, c.Audit.RefusalQuota = 24*time.Hour, 1<<20 },
		func(c *Config) { c.Inventory.Keep = 24 * time.Hour },
		func(c *Config) { c.Inventory.Keep = 0 },
		func(c *Config) { c.Limits = Limits{Connections: 512, AddressConnections: 256, Handshakes: 512} },
		func(c *Config) { c.Proxy.Trusted = []string{"192.0.2.1", "10.0.0.0/8", "2001:db8::1", "2001:db8::/32"} },
	} {
		c := Default()
		change(&c)
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// A database URL may hold a password: it is taken, and never shown.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	const url = "postgres://u:secret@a:5432,b:5433/x?sslmode=verify-full"
	c, err := Load("", nil, Overrides{Database: new(url)})
	if err != nil || c.Database != url || !c.PostgreSQL() {
		t.Errorf("%v", err)
	}
	if Default().PostgreSQL() {
		t.Error("the default is PostgreSQL")
	}
	for _, bad := range []string{"mysql://u:secret@db/x", "postgres:u:secret@db/x", "postgres://u:secret @db/x", "postgres://u:secret#@db/x"} {
		_, err := Load("", nil, Overrides{Database: &bad})
		if err == nil || !strings.Contains(err.Error(), "--database") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error is %v", bad, err)
		}
	}
}

// The URL may lie in a file, which only its owner can read.
func TestDatabaseFile(t *testing.T) {
	t.Parallel()
	const url = "postgres://u:secret@db/x"
	name := filepath.Join(t.TempDir(), "database")
	env := func(key string) (string, bool) { return name, key == "CERTBOUND_DATABASE_FILE" }
	for _, test := range []struct {
		text string
		mode os.FileMode
		want bool
	}{
		{url + "\n", 0o600, true}, {url, 0o400, true},
		{url, 0o640, false}, {url, 0o604, false}, {"secret", 0o600, false}, {"sqlite", 0o600, false}, {"", 0o600, false},
		{url + strings.Repeat("secret", 1000), 0o600, false}, {"postgres://u:secret\n@db/x", 0o600, false},
	} {
		os.Remove(name)
		if err := errors.Join(os.WriteFile(name, []byte(test.text), 0o600), os.Chmod(name, test.mode)); err != nil {
			t.Fatal(err)
		}
		c, err := Load("", env, Overrides{})
		if (err == nil) != test.want || err != nil && strings.Contains(err.Error(), "secret") || test.want && c.Database != url {
			t.Errorf("%q with mode %v: %v", test.text, test.mode, err)
		}
	}
	if err := os.WriteFile(name, []byte(url), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load("", env, Overrides{Database: new("sqlite")}); err == nil || !strings.Contains(err.Error(), "DATABASE_FILE") {
		t.Errorf("with a database besides: %v", err)
	}
	name += "x"
	if _, err := Load("", env, Overrides{}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("without the file: %v", err)
	}
}

// A password in a URL is refused without being shown.
func TestPasswordsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"https://u:secret@x.example", "http://u:secret@x.example", "https://u:secret@x y", "https://u:secret@:%zz"} {
		_, err := Load("", nil, Overrides{Issuer: &url})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("error is %v", err)
		}
	}
}

func TestVariables(t *testing.T) {
	t.Parallel()
	c := Default()
	names := map[string]bool{}
	for _, s := range c.settings() {
		names[s.variable()] = true
	}
	if !names["CERTBOUND_ISSUER"] || !names["CERTBOUND_MTLS_URL"] || !names["CERTBOUND_LOG_LEVEL"] || len(names) != len(c.settings()) {
		t.Errorf("variables are %v", slices.Sorted(maps.Keys(names)))
	}
}

// FuzzConfig: what is accepted is valid, and means the same after it was written anew; an unknown key is refused with
// its line, whatever stands around it.
func FuzzConfig(f *testing.F) {
	f.Add(everything)
	f.Add(Example())
	f.Add("data: \"a\\u0041\\n\"\nhosts: []\n")
	f.Add("data: |\n  block\n")
	f.Add("? a\n: b\n")
	f.Add("{data: d, token: {lifetime: 1m}}")
	f.Add("---\n...\n")
	f.Fuzz(func(t *testing.T, text string) {
		read := func(text string) (Config, error) {
			c := Default()
			c.given = map[string]string{}
			if err := c.readYAML("f", []byte(text)); err != nil {
				return Config{}, err
			}
			return c, c.Validate()
		}
		c, err := read(text)
		if err != nil {
			if err.Error() == "" || len(Problems(err)) == 0 {
				t.Errorf("error is %q", err)
			}
			return
		}
		again, err := read(c.encode(false))
		if err != nil {
			t.Fatalf("%v in\n%s", err, c.encode(false))
		}
		if diff := cmp.Diff(c, again, equal); diff != "" {
			t.Errorf("(-first +again)\n%s", diff)
		}
		body := c.encode(false)
		// Top-level keys come before the first section, so an own line at the top is one more of them.
		const extra = "unheard_of: x\n"
		_, err = read(extra + body)
		want := "f:1: unknown key \"unheard_of\""
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v", err)
		}
		_, err = read(body + "  unheard_of: x\n")
		want = "f:" + strconv.Itoa(strings.Count(body, "\n")+1) + ": unknown key \"log.unheard_of\""
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	})
}
