// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package trust keeps what the service believes of others: the foreign authorities that may vouch for clients, what
// those authorities revoked, and the certificates that clients publish at a jwks_uri. It is for the server, which asks
// it when it turns a registered client into one that the token service can judge.
//
// It refuses a set of anchors that is empty, damaged, read in part or holds anything but CA certificates: at the start
// it does not begin, and later it keeps the last good set and raises an alarm. It believes no revocation list that none
// of the authority's own certificates signed, none that is older than the one in use, and never takes the absence of a
// list for the absence of revocations unless it was told to. Nothing is fetched within a TLS handshake.
package trust

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

// Values of FileTrust.Revocation and store.Trust.Revocation.
const (
	Hard = "hard" // a certificate whose status is unknown is refused
	Soft = "soft" // it is let through, and an alarm is raised
	Off  = "off"  // revocation is not judged
)

// ErrUnknown says that no trust has this name.
var ErrUnknown = errors.New("no such trust")

// Store is what the Manager reads of the database; *store.Store is one.
type Store interface {
	Trusts(ctx context.Context) ([]store.Trust, error)
	OnChange(func(store.Change))
}

// Events is told of alarms, for metrics. Its method is called concurrently and must not block.
type Events interface {
	// TrustAlarm reports that something is wrong with what name stands for, such as "trust:partner" or "jwks:billing".
	TrustAlarm(name, what string)
}

// FileTrust is a foreign authority whose certificates lie in a file. It stands over one of the same name in the
// database.
type FileTrust struct {
	// Name is what clients call it by.
	Name string
	// CAFile holds its certificates in PEM. The self-signed ones are the anchors and the others intermediates; when none
	// is self-signed, all are anchors.
	CAFile string
	// CRLFile and CRLURL say where its revocation lists are: DER, or PEM with one or several. Both may be given; the
	// list with the higher number counts. Every list must be signed by a certificate of CAFile.
	CRLFile string
	CRLURL  string
	// Revocation is Hard, Soft or Off; empty means Hard when a list is named and Off when none is.
	Revocation string
}

// Config is what New needs. Store and Fetcher are required.
type Config struct {
	Store   Store
	Fetcher *fetch.Fetcher
	Files   []FileTrust
	Events  Events           // may be nil
	Logger  *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now
}

// Manager holds the trusts. It is safe for concurrent use.
type Manager struct{}

// New reads the files of c and returns a Manager. It fails on every CA file that cannot be used, and on a trust that is
// told to judge revocation without a list. A revocation list that cannot be read is no reason not to begin: with Hard,
// its authority's clients are refused until there is one. Nothing is fetched and nothing runs before Run.
func New(c Config) (*Manager, error) { return nil, errors.ErrUnsupported }

// Anchors returns the anchors of a trust and what judges its revocations, nil when that is Off. The same anchors are
// the same pointer until their bytes change. The Revocation stays up to date by itself. The error is ErrUnknown, or
// says why the database could not be read or what in it is damaged.
func (m *Manager) Anchors(ctx context.Context, name string) (*mtls.Anchors, issuer.Revocation, error) {
	return nil, nil, errors.ErrUnsupported
}

// Certificates returns the certificates that a client of the method self_signed_tls_client_auth registered: those in
// its row, or those at its JWKSURI, which are fetched when they are first asked for.
func (m *Manager) Certificates(client store.Client) issuer.CertificateSet { return nil }

// OnChange registers f to be called after each change of anchors, revocation lists or published certificates that may
// alter a decision, so that whoever remembers a client made of them drops it. f must not call Reload, nor wait.
func (m *Manager) OnChange(f func()) {}

// Run keeps everything up to date until ctx is done, and then returns: it looks at the files every two seconds, and
// fetches lists and published certificates in good time before they are too old.
func (m *Manager) Run(ctx context.Context) {}

// Reload reads all files and the database and fetches every list now. What cannot be used stays as it was; the error
// tells all of it.
func (m *Manager) Reload(ctx context.Context) error { return errors.ErrUnsupported }

// Health tells how each trust and each client's published certificates are: "ok", or what is wrong with them. The names
// are "trust:NAME" and "jwks:CLIENT".
func (m *Manager) Health() map[string]string { return nil }
