// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// setting is one key: its place in a Config and what Example says about it. File, environment and Example all go
// through this one table, so that none of them can forget a key.
type setting struct {
	key   string // with a dot between section and name
	doc   string // lines of at most 100 characters
	value any    // *string, *int, *bool, *[]string, *[]Trust or *time.Duration
}

// settings returns the table over c, in the order of Example.
func (c *Config) settings() []setting {
	return []setting{
		{"data", "Folder for the database, the keys, the journal and the operator's profile.", &c.Data},
		{"issuer", "The https URL that names this service in every token. It is stored at the first start\n" +
			"and cannot change afterwards.", &c.Issuer},
		{"mtls_url", "Base URL of the mtls listener. Empty: the issuer's host with the port of the listener.", &c.MTLSURL},
		{"public", "Address that never asks for a client certificate: metadata, keys, enrolment.", &c.Public},
		{"mtls", "Address that asks for a client certificate: tokens, renewal, the operators' API.", &c.MTLS},
		{"debug", "Address of /metrics, /healthz and /readyz, plain HTTP. \"off\": none.", &c.Debug},
		{"hosts", "Further DNS names and addresses in the server's certificate. The issuer's host and\n" +
			"localhost are always in it.", &c.Hosts},
		{"trust_domain", "SPIFFE trust domain of the clients' certificates. Empty: chosen at the first start.\n" +
			"It cannot change afterwards.", &c.TrustDomain},
		{"database", "Where the state is kept. Empty or \"sqlite\": certbound.db in the data folder, for one server. Several\n" +
			"share a PostgreSQL database: postgres://user:password@host:port/name?sslmode=verify-full, with further\n" +
			"hosts behind a comma if one may take another's place. Its tables are in the role's first schema.", &c.Database},
		{"database_file", "A file (mode 0600) that holds that URL instead, so that its password is neither here, nor in the\n" +
			"environment, nor among a command's arguments.", &c.DatabaseFile},
		{"database_connections", "Connections of this server to PostgreSQL, at least 8.", &c.DatabaseConnections},
		{"admin_profile", "Folder for the first operator's profile. Empty: admin in the data folder.", &c.AdminProfile},
		{"kek_file", "File with the key-encryption key, 32 bytes in base64. Empty: kek in the data folder,\n" +
			"made at the first start.", &c.KEKFile},
		{"trust", "Foreign authorities that may vouch for clients, whose certificates lie in files. They stand over those\n" +
			"that operators add. Files are read again when they change. Each has\n" +
			"  name: what client add --trust calls it by\n" +
			"  ca_file: its certificates in PEM; the self-signed ones are trusted, the others lead to them\n" +
			"  crl_file, crl_url: where its revocation lists are, both optional; a URL may be http or https\n" +
			"  revocation: what if a certificate's status is unknown: hard refuses it, soft raises an alarm, off does\n" +
			"    not look; hard when a list is named", &c.Trust},
		{"fapi", "Whether only what the FAPI 2.0 Security Profile allows may be configured: ES256, PS256 or EdDSA, and\n" +
			"tokens of at most 15m, which is then the default of token.max_lifetime. What contradicts it, also a key\n" +
			"that is still published, keeps the service from starting.", &c.FAPI},
		{"token.lifetime", "Life of a token, unless its client has its own.", &c.Token.Lifetime},
		{"token.max_lifetime", "Longest life of any token, at most 1h.", &c.Token.MaxLifetime},
		{"signing.algorithm", "What tokens are signed with: ES256, EdDSA (Ed25519), PS256, RS256 for old partners, or ML-DSA-44 and\n" +
			"ML-DSA-65 (RFC 9964), whose tokens have 4 and 5 KB. Resource servers accept those of RS256 and ML-DSA\n" +
			"only where they are asked to. After a change a key of the new one is announced, and the old key goes\n" +
			"on until that is used. The same at all servers.", &c.Signing.Algorithm},
		{"signing.rotate", "How long a key signs before the next one does, at least 1d. 0s: until certbound keys rotate.",
			&c.Signing.Rotate},
		{"signing.announce", "How long a key is published before it signs, 10m to 7d: longer than resource servers remember keys\n" +
			"without asking again.", &c.Signing.Announce},
		{"certificate.lifetime", "Life of a client's certificate from our CA.", &c.Certificate.Lifetime},
		{"certificate.server_lifetime", "Life of the certificate of the service's own listeners. It is renewed in time.",
			&c.Certificate.ServerLifetime},
		{"certificate.on_fork", "What to do when one certificate was renewed into two live ones with different keys, a sign of\n" +
			"theft: \"alarm\", or \"suspend\", which disables the client as well.", &c.Certificate.OnFork},
		{"code.lifetime", "Life of an enrolment code, at most 7d.", &c.Code.Lifetime},
		{"inventory.keep", "How long certificates of our CA stay in the inventory after they have expired, at least 1d: a day's worth\n" +
			"of renewals is 1 KB a client. Each client's newest stays, and the one that its renewals began with,\n" +
			"so that revoking that takes what came of it; who revokes one that is gone names the client instead.\n" +
			"0s: for ever.", &c.Inventory.Keep},
		{"fetch.allowed_hosts", "Hosts that clients' jwks_uri and revocation lists may be fetched from, as HOST or HOST:PORT.\n" +
			"Empty: every host with a public address.", &c.Fetch.AllowedHosts},
		{"fetch.allow_private", "Hosts, in the same form, that may be at a loopback address or in a private network.",
			&c.Fetch.AllowPrivate},
		{"admin.approvals", "How many operators it takes to give administrators' scopes and to change trusts and keys: 1 or 2.",
			&c.Admin.Approvals},
		{"audit.sync", "When a record is on disk. \"always\": before the answer leaves, so that nothing that was given is\n" +
			"ever unrecorded. \"interval\": up to audit.sync_interval later, which costs less; a crash of the\n" +
			"machine (not of the program) then loses the records of that time, and the tokens are out there.", &c.Audit.Sync},
		{"audit.sync_interval", "How much time \"interval\" may lose, 10ms to 10s.", &c.Audit.SyncInterval},
		{"audit.segment_size", "Bytes after which the journal goes on in a new file, 64 KiB to 1 GiB.", &c.Audit.SegmentSize},
		{"audit.segment_age", "How old a file of the journal may become, 1m to 365d.", &c.Audit.SegmentAge},
		{"audit.retention", "How long records are kept, at least 1d: then whole files of the journal are removed, and the keys\n" +
			"of what concerns persons are deleted to the day. 0s: for ever.", &c.Audit.Retention},
		{"audit.refusal_quota", "Bytes for the files of counted refusals, at least 1 MiB: the oldest are dropped, and that is recorded.",
			&c.Audit.RefusalQuota},
		{"tls.handshake_timeout", "Time for a TLS handshake.", &c.TLS.HandshakeTimeout},
		{"tls.shared_tickets", "Whether all servers of a database resume each other's TLS sessions, also after a restart. The keys for\n" +
			"that are as good as every client's certificate: they lie in the database, sealed under the\n" +
			"key-encryption key, for two hours at most. false: a client's first connection to each server, and\n" +
			"after its restart, is a full handshake. The same at all servers.", &c.TLS.SharedTickets},
		{"http.header_timeout", "Time to read a request's header.", &c.HTTP.HeaderTimeout},
		{"http.read_timeout", "Time to read a whole request.", &c.HTTP.ReadTimeout},
		{"http.write_timeout", "Time to write an answer.", &c.HTTP.WriteTimeout},
		{"http.idle_timeout", "How long a connection without a request is kept.", &c.HTTP.IdleTimeout},
		{"http.shutdown_timeout", "Time for running requests when the service stops.", &c.HTTP.ShutdownTimeout},
		{"limits.exempt", "Addresses and networks that no limit of an address or a network holds for.", &c.Limits.Exempt},
		{"limits.connections", "Open connections, at least 512. A quarter is kept for known networks: those, a /24 or with IPv6\n" +
			"a /56, where a client authenticated within a day. One may hold up to 64 KiB.", &c.Limits.Connections},
		{"limits.address_connections", "Open connections of one address, or with IPv6 of one /64; at least 256.", &c.Limits.AddressConnections},
		{"limits.handshakes", "Open connections that have not brought a request yet, at least 512. A quarter is kept for known\n" +
			"networks.", &c.Limits.Handshakes},
		{"limits.handshake_rate", "TLS handshakes of one network a second; 0: no limit. Ten seconds' worth, and always 512, may come\n" +
			"at once. Those of connections on which a client then authenticates are given back.", &c.Limits.HandshakeRate},
		{"limits.handshake_total", "TLS handshakes a second of all networks that are not known; 0: no limit. One costs about half a\n" +
			"millisecond of a processor.", &c.Limits.HandshakeTotal},
		{"limits.anonymous_rate", "Requests a second that did not authenticate, of one address; 0: no limit. Ten seconds' worth may\n" +
			"come at once, and 512 may be begun together: what goes beyond is paid for afterwards. Authenticated\n" +
			"requests count towards no limit of an address.", &c.Limits.AnonymousRate},
		{"limits.anonymous_total", "Such requests a second of all addresses; 0: no limit. Known networks and certificates go on.",
			&c.Limits.AnonymousTotal},
		{"limits.client_rate", "Authenticated requests a second of one client; 0: no limit. Ten seconds' worth may come at once.",
			&c.Limits.ClientRate},
		{"proxy.trusted", "Addresses and networks of load balancers. Each of their connections must begin with a header of the\n" +
			"PROXY protocol, version 2, and comes from the address in it. Nobody else's header is read.", &c.Proxy.Trusted},
		{"log.level", "What is logged to standard error: debug, info, warn or error.", &c.Log.Level},
		{"log.format", "How it is written: text or json.", &c.Log.Format},
	}
}

// variable returns the name of the environment variable.
func (s setting) variable() string {
	return "CERTBOUND_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// flagName returns the name of the flag for a key that has one.
func flagName(key string) string {
	return "--" + strings.ReplaceAll(key, "_", "-")
}

// parse sets the value from text; a list is separated by commas.
func (s setting) parse(text string) error {
	switch v := s.value.(type) {
	case *string:
		*v = text
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("not a number")
		}
		*v = n
	case *bool:
		if text != "true" && text != "false" {
			return errors.New("neither true nor false")
		}
		*v = text == "true"
	case *[]Trust:
		return errors.New("can only be given in the file")
	case *[]string:
		*v = nil
		for item := range strings.SplitSeq(text, ",") {
			*v = append(*v, strings.TrimSpace(item))
		}
	case *time.Duration:
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		*v = d
	}
	return nil
}

// day is a unit that time.ParseDuration does not know; here it is 24 hours.
const day = 24 * time.Hour

// maxDays bounds a number of days so that it cannot overflow.
const maxDays = 36500

// parseDuration reads a duration such as 10m, 1h30m or 7d.
func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 32); err == nil && n <= maxDays {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	return 0, errors.New("not a duration: write it like 10m, 1h30m or 7d")
}

// formatDuration writes a duration without the units that are zero: 10m, not 10m0s.
func formatDuration(d time.Duration) string {
	text := d.String()
	if before, ok := strings.CutSuffix(text, "m0s"); ok {
		text = before + "m"
	}
	if before, ok := strings.CutSuffix(text, "h0m"); ok {
		text = before + "h"
	}
	return text
}

// yaml returns the value as YAML on one line.
func (s setting) yaml() string {
	switch v := s.value.(type) {
	case *string:
		return quote(*v)
	case *int:
		return strconv.Itoa(*v)
	case *bool:
		return strconv.FormatBool(*v)
	case *[]string:
		items := make([]string, len(*v))
		for i, item := range *v {
			items[i] = quote(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	case *[]Trust:
		items := make([]string, len(*v))
		for i := range *v {
			items[i] = (*v)[i].yaml()
		}
		return "[" + strings.Join(items, ", ") + "]"
	case *time.Duration:
		return formatDuration(*v)
	}
	return ""
}

// members returns the table over t, in the order of the file.
func (t *Trust) members() []setting {
	return []setting{
		{key: "name", value: &t.Name},
		{key: "ca_file", value: &t.CAFile},
		{key: "crl_file", value: &t.CRLFile},
		{key: "crl_url", value: &t.CRLURL},
		{key: "revocation", value: &t.Revocation},
	}
}

// yaml returns t as YAML on one line.
func (t *Trust) yaml() string {
	var items []string
	for _, s := range t.members() {
		items = append(items, s.key+": "+s.yaml())
	}
	return "{" + strings.Join(items, ", ") + "}"
}

// quote returns s as a YAML string in double quotes, which a JSON string is.
func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""` // a string always has a JSON form
	}
	return string(text)
}

// Example returns a commented file that sets every key to its default.
func Example() string {
	c := Default()
	return "# Configuration of certbound. Every key is shown with its default.\n" +
		"# A flag stands over a variable, a variable over this file; token.lifetime is CERTBOUND_TOKEN_LIFETIME.\n" +
		"# Durations are written like 30s, 10m, 1h30m or 7d.\n" + c.encode(true)
}

// encode writes all settings as YAML.
func (c *Config) encode(comments bool) string {
	var b strings.Builder
	section := ""
	for _, s := range c.settings() {
		prefix, name, nested := strings.Cut(s.key, ".")
		indent := ""
		if !nested {
			name = prefix
		} else {
			indent = "  "
			if prefix != section {
				section = prefix
				fmt.Fprintf(&b, "\n%s:\n", section)
			}
		}
		if comments {
			if !nested {
				b.WriteString("\n")
			}
			for line := range strings.SplitSeq(s.doc, "\n") {
				fmt.Fprintf(&b, "%s# %s\n", indent, line)
			}
		}
		fmt.Fprintf(&b, "%s%s: %s\n", indent, name, s.yaml())
	}
	return b.String()
}
