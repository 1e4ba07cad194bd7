// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package config reads the program's configuration: a YAML file, then the environment, then flags, each over the one
// before. It is for cmd/certbound and the server; libraries get typed values, never this package's struct.
//
// It refuses an unknown key, a key given twice, a value of the wrong type and every value that would be silently wrong
// later, and names the file and line, the variable or the flag it came from. It refuses YAML anchors, aliases and tags.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Config is the whole configuration. Its zero value is not usable: start from Default or Load.
type Config struct {
	// Data is the folder for database, keys, journal and operator's profile.
	Data string
	// Issuer is the https URL that names the service in every token. It cannot change after the first start.
	Issuer string
	// MTLSURL is the base URL of the mtls listener; empty: the issuer's host with the port of the mtls listener.
	MTLSURL string
	// Public is the address that never asks for a client certificate, host:port.
	Public string
	// MTLS is the address that asks for a client certificate, host:port.
	MTLS string
	// Debug is the address of /metrics, /healthz and /readyz, plain HTTP; empty (or "off" in the file): none.
	Debug string
	// Hosts are further DNS names and addresses of the server's certificate.
	Hosts []string
	// TrustDomain is the SPIFFE trust domain; empty: chosen at the first start. It cannot change afterwards.
	TrustDomain string
	// Database is where the state is kept: the URL of a PostgreSQL database, which may hold a password and is never to be
	// shown; empty or "sqlite": DATA/certbound.db. Load puts here what DatabaseFile holds.
	Database string
	// DatabaseFile is a file with that URL; empty: none.
	DatabaseFile string
	// DatabaseConnections bounds the connections to PostgreSQL, of one process.
	DatabaseConnections int
	// AdminProfile is a folder for the first operator's profile; empty: DATA/admin.
	AdminProfile string
	// KEKFile holds the key-encryption key; empty: DATA/kek, made at the first start.
	KEKFile string
	// Trust are the foreign authorities whose certificates lie in files. They can only be given in the file.
	Trust []Trust

	// FAPI allows only what the FAPI 2.0 Security Profile allows. Load then takes MaxFAPILifetime for a token.max_lifetime
	// that nobody gave.
	FAPI bool

	Token       Token
	Signing     Signing
	Certificate Certificate
	Inventory   Inventory
	Code        Code
	Fetch       Fetch
	Admin       Admin
	Audit       Audit
	TLS         TLS
	HTTP        HTTP
	Limits      Limits
	Proxy       Proxy
	Log         Log

	given map[string]string // key -> where its value came from
}

// MaxFAPILifetime is the longest life of a token with FAPI: the profile leaves it open, but asks for short ones (RFC 9700,
// Section 2.2).
const MaxFAPILifetime = 15 * time.Minute

// Token bounds access tokens.
type Token struct {
	Lifetime    time.Duration // of a token whose client has no own; default 10m
	MaxLifetime time.Duration // of any token; default and limit 1h
}

// Signing governs the keys that sign tokens.
type Signing struct {
	Algorithm string        // ES256, the default, EdDSA, PS256, RS256, ML-DSA-44 or ML-DSA-65
	Rotate    time.Duration // how long a key signs; default 30d, 0 for ever
	Announce  time.Duration // how long it is published before it signs; default 1h
}

// Certificate governs certificates of our own CA.
type Certificate struct {
	Lifetime       time.Duration // of a client's; default 24h
	ServerLifetime time.Duration // of the service's own listeners; default 168h
	// OnFork is what happens when one certificate was renewed into two live ones with different keys, which is a sign
	// of theft: "alarm", the default, or "suspend", which disables the client as well.
	OnFork string
}

// Trust is a foreign authority that may vouch for clients.
type Trust struct {
	Name       string // what clients call it by
	CAFile     string // its certificates, PEM
	CRLFile    string // its revocation lists, DER or PEM; empty: none
	CRLURL     string // where it publishes them, http or https; empty: nowhere
	Revocation string // "hard", "soft" or "off"; empty: hard when a list is named, off when none is
}

// Fetch says where the service may fetch jwks_uri and revocation lists.
type Fetch struct {
	AllowedHosts []string // HOST or HOST:PORT; empty: every host with a public address
	AllowPrivate []string // HOST or HOST:PORT: may also have a private or loopback address
}

// Admin governs the operators' API.
type Admin struct {
	Approvals int // operators that a grant, a change of trust or of keys needs: 1, the default, or 2
}

// Inventory governs what is remembered of certificates of our own CA.
type Inventory struct {
	Keep time.Duration // after they have expired; default 30 days; 0: for ever
}

// Code bounds enrolment codes.
type Code struct {
	Lifetime time.Duration // default 1h, at most 7 days
}

// Audit governs the journal.
type Audit struct {
	Sync         string        // "always", the default, or "interval"
	SyncInterval time.Duration // of "interval"; default 100ms
	SegmentSize  int           // bytes after which the journal goes on in a new file; default 64 MiB
	SegmentAge   time.Duration // and how old a file may become; default 24h
	Retention    time.Duration // of records; default 0, for ever
	RefusalQuota int           // bytes of counted refusals; default 64 MiB
}

// TLS bounds handshakes.
type TLS struct {
	HandshakeTimeout time.Duration // default 10s
	SharedTickets    bool          // whether servers of one database share the keys of session tickets; default false
}

// HTTP bounds requests.
type HTTP struct {
	HeaderTimeout   time.Duration // until the request's header is read; default 10s
	ReadTimeout     time.Duration // until the whole request is read; default 30s
	WriteTimeout    time.Duration // until the answer is written; default 30s
	IdleTimeout     time.Duration // of a kept-alive connection; default 2m
	ShutdownTimeout time.Duration // for requests that run when the service stops; default 30s
}

// Limits bounds what strangers may ask for at once, and how often. Rates are per second; 0 is none.
type Limits struct {
	Exempt             []string // addresses and networks held to no limit of an address; default loopback
	Connections        int      // open at once; default 8192
	AddressConnections int      // of one address, or with IPv6 a /64; default 512, at least 256
	Handshakes         int      // connections without a request yet; default 1024, at least 512
	HandshakeRate      int      // of one network, a /24 or with IPv6 a /56; default 50
	HandshakeTotal     int      // of all networks without a known client; default 500
	AnonymousRate      int      // requests of one address that did not authenticate; default 20
	AnonymousTotal     int      // such requests of all addresses; default 1000
	ClientRate         int      // authenticated requests of one client; default 0
}

// Proxy names who stands in front of the service.
type Proxy struct {
	Trusted []string // addresses and networks whose connections begin with a PROXY protocol header, version 2
}

// Log governs the program's own log on standard error.
type Log struct {
	Level  string // debug, info, warn, error; default info
	Format string // text, json; default text
}

// Overrides are the values of flags; a nil member was not given.
type Overrides struct {
	Data, Issuer, MTLSURL, Public, MTLS, Debug, TrustDomain, Database, AdminProfile *string
	Hosts                                                                           []string // nil: not given
}

// Default returns the configuration of a service that was told nothing.
func Default() Config {
	return Config{
		Data:   "./certbound-data",
		Issuer: "https://localhost:8443",
		Public: "127.0.0.1:8443",
		MTLS:   "127.0.0.1:9443",
		Debug:  "127.0.0.1:9090",

		DatabaseConnections: 16,

		Token:       Token{Lifetime: 10 * time.Minute, MaxLifetime: time.Hour},
		Signing:     Signing{Algorithm: "ES256", Rotate: 30 * day, Announce: time.Hour},
		Certificate: Certificate{Lifetime: day, ServerLifetime: 7 * day, OnFork: "alarm"},
		Inventory:   Inventory{Keep: 30 * day},
		Code:        Code{Lifetime: time.Hour},
		Admin:       Admin{Approvals: 1},
		Audit: Audit{
			Sync: "always", SyncInterval: 100 * time.Millisecond, SegmentSize: 64 << 20, SegmentAge: day, RefusalQuota: 64 << 20,
		},
		TLS: TLS{HandshakeTimeout: 10 * time.Second},
		HTTP: HTTP{
			HeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
			IdleTimeout: 2 * time.Minute, ShutdownTimeout: 30 * time.Second,
		},
		Limits: Limits{
			Exempt:      []string{"127.0.0.0/8", "::1/128"},
			Connections: 8192, AddressConnections: 512, Handshakes: 1024,
			HandshakeRate: 50, HandshakeTotal: 500, AnonymousRate: 20, AnonymousTotal: 1000,
		},
		Log: Log{Level: "info", Format: "text"},
	}
}

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Where string // "FILE:LINE", the name of a variable or flag, or the key
	What  string // what is wrong
	Hint  string // what to do; may be empty
}

// Error returns one line.
func (p *Problem) Error() string {
	text := p.Where + ": " + p.What
	if p.Hint != "" {
		text += "; " + p.Hint
	}
	return text
}

// Problems returns the single problems in an error of Load or Validate, in their order.
func Problems(err error) []*Problem {
	if p, ok := errors.AsType[*Problem](err); ok && error(p) == err {
		return []*Problem{p}
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var out []*Problem
	for _, e := range joined.Unwrap() {
		out = append(out, Problems(e)...)
	}
	return out
}

// Load reads the file at path (empty: none), then the environment through env, which is os.LookupEnv or nil, then the
// flags, each over the one before, and validates the outcome. A variable is CERTBOUND_ and the key in capitals, with
// _ for a dot: CERTBOUND_TOKEN_LIFETIME; its lists are separated by commas; an empty one counts as not set. The error
// holds every Problem found, see Problems.
func Load(path string, env func(string) (string, bool), flags Overrides) (Config, error) {
	c := Default()
	c.given = make(map[string]string)
	if path != "" {
		if err := c.readFile(path); err != nil {
			return Config{}, err
		}
	}
	if env != nil {
		if err := c.readEnvironment(env); err != nil {
			return Config{}, err
		}
	}
	c.readFlags(flags)
	if err := c.readDatabase(); err != nil {
		return Config{}, err
	}
	if c.FAPI && c.given["token.max_lifetime"] == "" {
		c.Token.MaxLifetime = MaxFAPILifetime
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	if debugOff(c.Debug) {
		c.Debug = ""
	}
	return c, nil
}

// PostgreSQL reports whether Database is a URL, and not a file of SQLite.
func (c Config) PostgreSQL() bool { return isPostgreSQL(c.Database) }

// readDatabase takes the URL from its file. What is wrong with that is told without quoting it.
func (c *Config) readDatabase() error {
	if c.DatabaseFile == "" {
		return nil
	}
	fail := func(what, hint string) error {
		return &Problem{Where: c.where("database_file"), What: what, Hint: hint}
	}
	if c.Database != "" {
		return fail("database says as well where the state is kept", "leave one of them empty")
	}
	text, err := readPrivate(c.DatabaseFile)
	if err != nil {
		return fail(err.Error(), "name a file that holds the URL alone, with mode 0600")
	}
	if !isPostgreSQL(text) {
		return fail(c.DatabaseFile+" holds no URL of PostgreSQL", "write postgres://user:password@host:port/name into it")
	}
	c.Database = text
	return nil
}

// readPrivate reads a short text from a file that nobody else can read.
func readPrivate(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", name)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by other users (mode %04o)", name, perm)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err == nil && len(text) > maxText {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxText)
	}
	return strings.TrimSpace(string(text)), err
}

// Explicit reports whether key, such as "issuer" or "token.lifetime", was given by file, environment or flag.
func (c Config) Explicit(key string) bool { return c.given[key] != "" }

// readEnvironment takes the variables that are set.
func (c *Config) readEnvironment(env func(string) (string, bool)) error {
	var errs []error
	for _, s := range c.settings() {
		name := s.variable()
		text, ok := env(name)
		if !ok || text == "" {
			continue
		}
		if err := s.parse(text); err != nil {
			errs = append(errs, &Problem{Where: name, What: err.Error()})
			continue
		}
		c.given[s.key] = name
	}
	return errors.Join(errs...)
}

// readFlags takes the flags that were given.
func (c *Config) readFlags(flags Overrides) {
	for _, f := range []struct {
		key   string
		dst   *string
		value *string
	}{
		{"data", &c.Data, flags.Data},
		{"issuer", &c.Issuer, flags.Issuer},
		{"mtls_url", &c.MTLSURL, flags.MTLSURL},
		{"public", &c.Public, flags.Public},
		{"mtls", &c.MTLS, flags.MTLS},
		{"debug", &c.Debug, flags.Debug},
		{"trust_domain", &c.TrustDomain, flags.TrustDomain},
		{"database", &c.Database, flags.Database},
		{"admin_profile", &c.AdminProfile, flags.AdminProfile},
	} {
		if f.value != nil {
			*f.dst = *f.value
			c.given[f.key] = flagName(f.key)
		}
	}
	if flags.Hosts != nil {
		c.Hosts = flags.Hosts
		c.given["hosts"] = "--host"
	}
}

// where says where a key's value came from.
func (c *Config) where(key string) string {
	if place := c.given[key]; place != "" {
		return fmt.Sprintf("%s (%s)", place, key)
	}
	return key
}
