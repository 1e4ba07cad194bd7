// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The limits of what may be configured.
const (
	maxTokenLifetime       = time.Hour
	maxCertificateLifetime = 397 * day
	maxCodeLifetime        = 7 * day
	maxTimeout             = time.Hour
	maxURL                 = 512
	maxText                = 4096
	maxHosts               = 100
	maxTrusts              = 1000
	maxName                = 64
	maxConnections         = 1_000_000
	maxRate                = 1_000_000
	minSegment             = 64 << 10
	maxSegment             = 1 << 30
	minDatabaseConnections = 8
	maxDatabaseConnections = 1000
)

// checker collects problems.
type checker struct {
	config *Config
	errs   []error
}

func (k *checker) fail(key, what, hint string) {
	k.errs = append(k.errs, &Problem{Where: k.config.where(key), What: what, Hint: hint})
}

// Validate refuses a configuration that cannot work or would be silently wrong. The error holds every Problem found.
func (c Config) Validate() error {
	k := &checker{config: &c}
	k.checkTexts()
	k.checkIssuer()
	k.checkMTLSURL()
	k.checkListeners()
	k.checkHosts()
	k.checkTrustDomain()
	k.checkDatabase()
	k.checkDurations()
	k.checkTrusts()
	k.checkFetch("fetch.allowed_hosts", k.config.Fetch.AllowedHosts)
	k.checkFetch("fetch.allow_private", k.config.Fetch.AllowPrivate)
	k.checkLimits()
	k.checkPrefixes("limits.exempt", k.config.Limits.Exempt, 0)
	k.checkPrefixes("proxy.trusted", k.config.Proxy.Trusted, 1) // all of the Internet could say where it comes from
	if n := k.config.Admin.Approvals; n != 1 && n != 2 {
		k.fail("admin.approvals", fmt.Sprintf("%d is out of range", n), "write 1 or 2")
	}
	k.checkSigning()
	k.checkFAPI()
	k.checkChoice("certificate.on_fork", c.Certificate.OnFork, "alarm", "suspend")
	k.checkAudit()
	k.checkChoice("audit.sync", c.Audit.Sync, "always", "interval")
	if n := c.Audit.SegmentSize; n < minSegment || n > maxSegment {
		k.fail("audit.segment_size", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("write a number of bytes from %d to %d", minSegment, maxSegment))
	}
	k.checkChoice("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.checkChoice("log.format", c.Log.Format, "text", "json")
	return errors.Join(k.errs...)
}

// checkTexts refuses in any string what no value may hold.
func (k *checker) checkTexts() {
	for _, s := range k.config.settings() {
		var values []string
		switch v := s.value.(type) {
		case *string:
			values = []string{*v}
		case *[]string:
			values = *v
		case *[]Trust:
			for _, t := range *v {
				values = append(values, t.Name, t.CAFile, t.CRLFile, t.CRLURL, t.Revocation)
			}
		}
		for _, v := range values {
			if len(v) > maxText || strings.ContainsFunc(v, isControl) || !isUTF8(v) {
				k.fail(s.key, "it is too long or has characters that cannot be printed", "write it anew")
				break
			}
		}
	}
	if k.config.Data == "" {
		k.fail("data", "no data folder is named", "name one, such as ./certbound-data")
	}
}

func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufeff'
}

func isUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }

// checkIssuer holds the issuer to RFC 8414, Section 2: an https URL without query and fragment. Clients compare it
// character by character, so it must also be written in its one usual form.
func (k *checker) checkIssuer() {
	if what, hint := checkURL(k.config.Issuer); what != "" {
		k.fail("issuer", what, hint)
		return
	}
	if strings.HasSuffix(k.config.Issuer, "/") {
		k.fail("issuer", fmt.Sprintf("%q ends with a slash", k.config.Issuer), "drop it: the issuer is compared character by character")
	}
}

func (k *checker) checkMTLSURL() {
	text := k.config.MTLSURL
	if text == "" {
		return
	}
	if what, hint := checkURL(text); what != "" {
		k.fail("mtls_url", what, hint)
		return
	}
	if u, err := url.Parse(text); err != nil || u.Path != "" {
		k.fail("mtls_url", fmt.Sprintf("%q has a path", text), "write it like https://mtls.example:9443")
	}
}

// checkURL says what is wrong with an https base URL.
func checkURL(text string) (what, hint string) {
	const like = "write it like https://localhost:8443"
	if text == "" {
		return "no URL is given", like
	}
	if len(text) > maxURL {
		return fmt.Sprintf("the URL is longer than %d characters", maxURL), like
	}
	u, err := url.Parse(text)
	switch {
	case strings.Contains(text, "@"): // first, since the others show the URL
		return "the URL has a user name or password in it", "take it out"
	case err != nil || strings.ContainsAny(text, " \\\"<>^`{|}") || strings.ContainsFunc(text, notASCII):
		return fmt.Sprintf("%q is no URL", text), like
	case u.Scheme != "https":
		return fmt.Sprintf("%q does not begin with https://", text), "tokens are only issued over TLS: " + like
	case strings.ContainsAny(text, "?#"):
		return fmt.Sprintf("%q has a query or a fragment", text), "drop what begins with ? or #"
	case u.Hostname() == "" || strings.HasSuffix(u.Host, ":"):
		return fmt.Sprintf("%q names no host, or an empty port", text), like
	case !strings.HasPrefix(text, "https://"+strings.ToLower(u.Host)):
		return fmt.Sprintf("%q has capitals in its scheme or host", text), "write both in small letters"
	case checkServedName(u.Hostname()) != "":
		return fmt.Sprintf("the host of %q %s", text, checkServedName(u.Hostname())), like
	case u.Port() != "" && !validPort(u.Port(), 1):
		return fmt.Sprintf("%q has a port that does not exist", text), "ports go from 1 to 65535"
	case strings.Contains(text, "%"):
		return fmt.Sprintf("%q has percent-encoding", text), "leave it out: routers and clients would not agree on its form"
	case u.Path != "" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/":
		return fmt.Sprintf("%q has an empty, . or .. segment in its path", text), "write the path as it is after they are resolved"
	}
	return "", ""
}

func notASCII(r rune) bool { return r >= 0x80 }

func validPort(text string, lowest uint64) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n >= lowest && strconv.FormatUint(n, 10) == text
}

func (k *checker) checkListeners() {
	c := k.config
	addresses := map[string]string{}
	for _, l := range []struct{ key, address string }{{"public", c.Public}, {"mtls", c.MTLS}, {"debug", c.Debug}} {
		if l.key == "debug" && debugOff(l.address) {
			continue
		}
		host, port, err := net.SplitHostPort(l.address)
		if err != nil || !validPort(port, 0) || host != "" && checkHost(host) != "" {
			k.fail(l.key, fmt.Sprintf("%q is no address to listen on", l.address), "write it like 127.0.0.1:8443 or :8443")
			continue
		}
		if other, taken := addresses[l.address]; taken && port != "0" {
			k.fail(l.key, fmt.Sprintf("%q is also the address of %s", l.address, other), "give each listener its own port")
		}
		addresses[l.address] = l.key
	}
}

// debugOff reports whether the debug listener is not wanted.
func debugOff(address string) bool { return address == "" || address == "off" }

func (k *checker) checkHosts() {
	if len(k.config.Hosts) > maxHosts {
		k.fail("hosts", fmt.Sprintf("more than %d names", maxHosts), "name fewer")
		return
	}
	for i, host := range k.config.Hosts {
		if what := checkServedName(host); what != "" {
			k.fail("hosts", fmt.Sprintf("%q %s", host, what), "name hosts without port, such as tokens.example or 192.0.2.1")
		} else if slices.Contains(k.config.Hosts[:i], host) {
			k.fail("hosts", fmt.Sprintf("%q is named twice", host), "name it once")
		}
	}
}

// checkServedName says what keeps host from standing in our own certificate. That is stricter than what can be looked up: a
// name there has no underscores, and does not end like an address.
func checkServedName(host string) string {
	if what := checkHost(host); what != "" {
		return what
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	if strings.Contains(host, "_") || strings.Trim(last, "0123456789") == "" {
		return "is neither a DNS name that a certificate can carry nor an address"
	}
	return ""
}

// checkHost says what keeps host from being a DNS name or an address.
func checkHost(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "is an address with a zone"
		}
		return ""
	}
	if strings.Contains(host, "*") {
		return "is a pattern, not a name"
	}
	if len(host) > 253 {
		return "is too long for a DNS name"
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return !isLetterOrDigit(r) && r != '-' && r != '_' }) {
			return "is neither a DNS name nor an address"
		}
	}
	return ""
}

func isLetterOrDigit(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// checkTrusts holds every foreign authority to what the program can do with it. Whether its files can be read shows at
// the start.
func (k *checker) checkTrusts() {
	if len(k.config.Trust) > maxTrusts {
		k.fail("trust", fmt.Sprintf("more than %d authorities", maxTrusts), "name fewer")
		return
	}
	names := make(map[string]bool)
	for _, t := range k.config.Trust {
		what, hint := t.check()
		if what == "" && names[t.Name] {
			what, hint = "the name is given twice", "give each authority a name of its own"
		}
		if what != "" {
			k.fail("trust", fmt.Sprintf("authority %q: %s", t.Name, what), hint)
		}
		names[t.Name] = true
	}
}

// check says what is wrong with t.
func (t *Trust) check() (what, hint string) {
	listed := t.CRLFile != "" || t.CRLURL != ""
	switch {
	case !isTrustName(t.Name):
		return "the name cannot be used", fmt.Sprintf("use at most %d small letters, digits, dots, dashes and underscores, a letter or digit first", maxName)
	case t.CAFile == "":
		return "no ca_file is named", "name the file with its certificates in PEM"
	case t.CRLURL != "" && !isListURL(t.CRLURL):
		return "crl_url is no http or https URL", "write it like http://crl.example/ca.crl"
	case !slices.Contains([]string{"", "hard", "soft", "off"}, t.Revocation):
		return fmt.Sprintf("revocation: %q is not known", t.Revocation), "write hard, soft, off"
	case !listed && (t.Revocation == "hard" || t.Revocation == "soft"):
		return "revocation is to be judged, but no list is named", "name a crl_file or a crl_url, or write revocation: off"
	case listed && t.Revocation == "off":
		return "a list is named, but revocation is off", "write revocation: hard, or drop crl_file and crl_url"
	}
	return "", ""
}

func isTrustName(name string) bool {
	foreign := func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789.-_", r) }
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, foreign) && !strings.ContainsAny(name[:1], ".-_")
}

// isListURL is as strict as the fetcher, which would refuse the others at every attempt.
func isListURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil &&
		!strings.ContainsAny(text, "# ") && len(text) <= maxURL
}

// checkFetch checks a list of hosts with or without port.
func (k *checker) checkFetch(key string, hosts []string) {
	if len(hosts) > maxHosts {
		k.fail(key, fmt.Sprintf("more than %d hosts", maxHosts), "name fewer")
		return
	}
	for _, text := range hosts {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			host, port = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), "443"
		}
		if checkHost(host) != "" || !validPort(port, 1) {
			k.fail(key, fmt.Sprintf("%q is no host", text), "write it like keys.example or keys.example:8443")
		}
	}
}

// checkTrustDomain holds the trust domain to the SPIFFE ID standard, Section 2.1.
func (k *checker) checkTrustDomain() {
	domain := k.config.TrustDomain
	foreign := func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789.-_", r) }
	if len(domain) > 255 || strings.ContainsFunc(domain, foreign) {
		k.fail("trust_domain", fmt.Sprintf("%q is no SPIFFE trust domain", domain),
			"use small letters, digits, dots, dashes and underscores, without spiffe:// and path")
	}
}

// isPostgreSQL reports whether a value of database is the URL of a PostgreSQL database.
func isPostgreSQL(value string) bool {
	return strings.HasPrefix(value, "postgres://") || strings.HasPrefix(value, "postgresql://")
}

// checkDatabase never quotes the value: a database URL may hold a password. Whether the URL means something is for who
// opens the database.
func (k *checker) checkDatabase() {
	value := k.config.Database
	if value != "" && value != "sqlite" && !isPostgreSQL(value) {
		k.fail("database", "it names a kind of database that is not known", `leave it empty, or write "sqlite" or postgres://user:password@host:port/name`)
	}
	if strings.ContainsAny(value, " #") {
		k.fail("database", "it holds a space or a #", "write %20 or %23 for it")
	}
	if n := k.config.DatabaseConnections; n < minDatabaseConnections || n > maxDatabaseConnections {
		k.fail("database_connections", fmt.Sprintf("%d is out of range", n),
			fmt.Sprintf("write a number from %d to %d", minDatabaseConnections, maxDatabaseConnections))
	}
}

// The bounds of what is kept of the journal.
const (
	minRetention    = day
	maxRetention    = 100 * 366 * day
	minKeep         = day // longer than any token lives
	minRefusalQuota = 1 << 20
	maxRefusalQuota = 1 << 30
)

func (k *checker) checkAudit() {
	a := k.config.Audit
	if d := a.Retention; d != 0 && (d < minRetention || d > maxRetention) {
		k.fail("audit.retention", formatDuration(d)+" is out of range", "give it at least 1d, or 0s to keep records for ever")
	}
	if n := a.RefusalQuota; n < minRefusalQuota || n > maxRefusalQuota {
		k.fail("audit.refusal_quota", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("give it between %d and %d bytes", minRefusalQuota, maxRefusalQuota))
	}
}

func (k *checker) checkDurations() {
	c := k.config
	if d := c.Inventory.Keep; d != 0 && (d < minKeep || d > maxRetention) {
		k.fail("inventory.keep", formatDuration(d)+" is out of range", "give it at least 1d, or 0s to keep certificates for ever")
	}
	for _, d := range []struct {
		key      string
		value    time.Duration
		min, max time.Duration
	}{
		{"token.max_lifetime", c.Token.MaxLifetime, time.Second, maxTokenLifetime},
		{"token.lifetime", c.Token.Lifetime, time.Second, maxTokenLifetime},
		{"certificate.lifetime", c.Certificate.Lifetime, time.Second, maxCertificateLifetime},
		{"certificate.server_lifetime", c.Certificate.ServerLifetime, time.Hour, maxCertificateLifetime},
		{"code.lifetime", c.Code.Lifetime, time.Second, maxCodeLifetime},
		{"audit.sync_interval", c.Audit.SyncInterval, 10 * time.Millisecond, 10 * time.Second},
		{"audit.segment_age", c.Audit.SegmentAge, time.Minute, 365 * day},
		{"tls.handshake_timeout", c.TLS.HandshakeTimeout, time.Second, maxTimeout},
		{"http.header_timeout", c.HTTP.HeaderTimeout, time.Second, maxTimeout},
		{"http.read_timeout", c.HTTP.ReadTimeout, time.Second, maxTimeout},
		{"http.write_timeout", c.HTTP.WriteTimeout, time.Second, maxTimeout},
		{"http.idle_timeout", c.HTTP.IdleTimeout, time.Second, maxTimeout},
		{"http.shutdown_timeout", c.HTTP.ShutdownTimeout, 0, maxTimeout},
	} {
		if d.value < d.min || d.value > d.max {
			k.fail(d.key, formatDuration(d.value)+" is out of range",
				fmt.Sprintf("give it between %s and %s", formatDuration(d.min), formatDuration(d.max)))
			continue
		}
		if d.key == "token.lifetime" && d.value > c.Token.MaxLifetime {
			k.fail(d.key, fmt.Sprintf("%s is longer than token.max_lifetime, %s", formatDuration(d.value),
				formatDuration(c.Token.MaxLifetime)), "shorten it, or raise token.max_lifetime to at most 1h")
		}
	}
}

// The bounds of signing keys. A key is announced for at least as long as resource servers remember keys by default, and
// go by them when they cannot ask.
const (
	minAnnounce = 10 * time.Minute
	maxAnnounce = 7 * day
	minRotate   = day
	maxRotate   = 397 * day
)

// checkFAPI refuses what the FAPI 2.0 Security Profile does not allow. Everything else that it asks for holds always: bound
// tokens only, no secrets, no algorithm but its own for assertions, TLS 1.2 with its suites and TLS 1.3.
func (k *checker) checkFAPI() {
	c := k.config
	if !c.FAPI {
		return
	}
	if !slices.Contains([]string{"ES256", "PS256", "EdDSA"}, c.Signing.Algorithm) { // FAPI 2.0, Section 5.4
		k.fail("signing.algorithm", fmt.Sprintf("%q is not one of the FAPI 2.0 profile, and fapi is true", c.Signing.Algorithm),
			"write ES256, PS256 or EdDSA, or fapi: false")
	}
	if d := c.Token.MaxLifetime; d > MaxFAPILifetime {
		k.fail("token.max_lifetime", fmt.Sprintf("%s is long for a token, and fapi is true", formatDuration(d)),
			fmt.Sprintf("shorten it to at most %s, or write fapi: false", formatDuration(MaxFAPILifetime)))
	}
}

func (k *checker) checkSigning() {
	c := k.config.Signing
	k.checkChoice("signing.algorithm", c.Algorithm, "ES256", "EdDSA", "PS256", "RS256", "ML-DSA-44", "ML-DSA-65")
	if d := c.Rotate; d != 0 && (d < minRotate || d > maxRotate) {
		k.fail("signing.rotate", formatDuration(d)+" is out of range",
			fmt.Sprintf("give it between %s and %s, or 0s to go on with one key", formatDuration(minRotate), formatDuration(maxRotate)))
	}
	if d := c.Announce; d < minAnnounce || d > maxAnnounce {
		k.fail("signing.announce", formatDuration(d)+" is out of range",
			fmt.Sprintf("give it between %s and %s", formatDuration(minAnnounce), formatDuration(maxAnnounce)))
	} else if c.Rotate > 0 && d >= c.Rotate {
		k.fail("signing.announce", fmt.Sprintf("%s is not shorter than signing.rotate, %s", formatDuration(d), formatDuration(c.Rotate)),
			"shorten it, or raise signing.rotate")
	}
}

// checkLimits keeps room for many clients behind one address, and for the burst in which they come back.
func (k *checker) checkLimits() {
	l := k.config.Limits
	for _, n := range []struct {
		key             string
		value, min, max int
	}{
		{"limits.connections", l.Connections, 512, maxConnections},
		{"limits.address_connections", l.AddressConnections, 256, maxConnections},
		{"limits.handshakes", l.Handshakes, 512, maxConnections},
		{"limits.handshake_rate", l.HandshakeRate, 0, maxRate},
		{"limits.handshake_total", l.HandshakeTotal, 0, maxRate},
		{"limits.anonymous_rate", l.AnonymousRate, 0, maxRate},
		{"limits.anonymous_total", l.AnonymousTotal, 0, maxRate},
		{"limits.client_rate", l.ClientRate, 0, maxRate},
	} {
		if n.value < n.min || n.value > n.max {
			k.fail(n.key, fmt.Sprintf("%d is out of range", n.value), fmt.Sprintf("give it between %d and %d", n.min, n.max))
		}
	}
}

// checkPrefixes checks a list of addresses and networks, none wider than minBits.
func (k *checker) checkPrefixes(key string, values []string, minBits int) {
	if len(values) > maxHosts {
		k.fail(key, fmt.Sprintf("more than %d networks", maxHosts), "name fewer")
		return
	}
	for _, text := range values {
		p, err := ParsePrefix(text)
		switch {
		case err != nil:
			k.fail(key, fmt.Sprintf("%q %v", text, err), "write it like 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32")
		case p.Bits() < minBits:
			k.fail(key, fmt.Sprintf("%q is everybody", text), "name the networks of your load balancers")
		}
	}
}

// ParsePrefix reads an address, or a network without bits beyond its mask.
func ParsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, errors.New("is neither an address nor a network")
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("has bits beyond its mask; the network is %s", p.Masked())
	}
	return p, nil
}

func (k *checker) checkChoice(key, value string, choices ...string) {
	if !slices.Contains(choices, value) {
		k.fail(key, fmt.Sprintf("%q is not known", value), "write "+strings.Join(choices, ", "))
	}
}
