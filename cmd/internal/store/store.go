// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package store keeps what the service must not forget: clients and their generations, enrolment codes, the inventory
// of certificates, revocations, resources, sealed private keys and settings. It is for the program's own packages;
// libraries declare the two or three methods they need.
//
// Transact joins changes in one transaction, with the records of them in the outbox, where they wait for the journal.
// Every rule that must hold under concurrency is judged inside the transaction that writes, so two replicas or two
// requests cannot both win. The package refuses a database of another application, of a newer program, a damaged one,
// and one whose keys were sealed under another key-encryption key. It holds no row per token.
//
// Times are kept in microseconds and come back in UTC; a zero time means "not happened".
package store

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Sentinels to branch on with errors.Is. An error may carry more words than its sentinel.
var (
	// ErrNotFound says that no such row exists, or that the client was removed.
	ErrNotFound = errors.New("not found")
	// ErrExists says that the id, URI, serial number or thumbprint is already there.
	ErrExists = errors.New("already exists")
	// ErrReserved says that a removed client's id is not free yet; see ReservedError for the time.
	ErrReserved = errors.New("the id is reserved until the last credentials of its former owner have expired")
	// ErrNameTaken says that a DNS name, address or URI belongs to another client; see NameTakenError.
	ErrNameTaken = errors.New("the name belongs to another client")
	// ErrLastGrantor says that nobody could give administrators' scopes any more.
	ErrLastGrantor = errors.New("this is the last enabled client that holds certbound:admin or certbound:grant")
	// ErrGrantorLeft says that somebody can still give administrators' scopes.
	ErrGrantorLeft = errors.New("another client can still give administrators' scopes")
	// ErrInUse says that clients still depend on the resource or the trust; see InUseError.
	ErrInUse = errors.New("clients still depend on it")
	// ErrUnknownTrust says that a client names a trust that does not exist.
	ErrUnknownTrust = errors.New("no such trust")
	// ErrCertificateTaken says that the certificate is registered for another client; see CertificateTakenError.
	ErrCertificateTaken = errors.New("the certificate is registered for another client")
	// ErrNotEnrolled says that another CA or the client's own certificate vouches for the client: our CA gives it nothing.
	ErrNotEnrolled = errors.New("our CA does not vouch for this client")
	// ErrNotRevocable says that certificates of the client are not ours to revoke: it can be disabled.
	ErrNotRevocable = errors.New("our CA does not vouch for this client: its certificates cannot be revoked here")
	// ErrNotPinned says that the client has no certificates registered by value which could be replaced.
	ErrNotPinned = errors.New("the client has no registered certificates of its own")
	// ErrAuthority says that scopes of administrators need our CA or a registered certificate.
	ErrAuthority = errors.New("a client with a certbound: scope needs our CA or a registered certificate")
	// ErrSamePerson says that a request needs somebody else than who made it to confirm it.
	ErrSamePerson = errors.New("another operator than the one who asked must confirm it")
	// ErrPendingExpired says that a request was not confirmed in time.
	ErrPendingExpired = errors.New("the request was not confirmed in time")
	// ErrTooManyPending says that too many requests wait for confirmation.
	ErrTooManyPending = errors.New("too many requests wait for confirmation: confirm or reject some")
	// ErrBuiltIn says that the row belongs to the service itself and cannot be removed.
	ErrBuiltIn = errors.New("built in: it cannot be removed")
	// ErrCodeUsed says that the enrolment code was redeemed by another key.
	ErrCodeUsed = errors.New("the enrolment code was used by another key")
	// ErrCodeExpired says that the enrolment code's time is over.
	ErrCodeExpired = errors.New("the enrolment code has expired")
	// ErrCodeVoid says that a newer code, or disabling or removing the client, made the code void.
	ErrCodeVoid = errors.New("the enrolment code is void")
	// ErrClientDisabled says that the client is disabled.
	ErrClientDisabled = errors.New("the client is disabled")
	// ErrGeneration says that the client was removed and added again since: what belonged to the former one is void.
	ErrGeneration = errors.New("it belongs to an earlier generation of the client")
	// ErrRevoked says that the certificate is revoked.
	ErrRevoked = errors.New("the certificate is revoked")
	// ErrExpired says that the certificate has expired.
	ErrExpired = errors.New("the certificate has expired")
	// ErrKeyBlocked says that the public key was reported compromised.
	ErrKeyBlocked = errors.New("the public key is blocked: it was reported compromised")
	// ErrKeyTaken says that another client has used the public key.
	ErrKeyTaken = errors.New("the public key belongs to another client")
	// ErrLocked says that another process uses the data folder.
	ErrLocked = errors.New("the data folder is in use by another process")
	// ErrWrongKEK says that the key-encryption key is not the one that the database was sealed with.
	ErrWrongKEK = errors.New("wrong key-encryption key")
	// ErrNewerSchema says that a newer program wrote the database.
	ErrNewerSchema = errors.New("written by a newer version of certbound")
	// ErrOlderSchema says that the database was not brought up to date yet.
	ErrOlderSchema = errors.New("written by an older version of certbound")
	// ErrDraft says that the file is what is left of a copy or a backup that was cut short.
	ErrDraft = errors.New("it is an unfinished copy of a database, of a run that was cut short")
	// ErrForeign says that the file is a database of another application.
	ErrForeign = errors.New("not a certbound database")
	// ErrLeaseLost says that the replica has no such lease any more: its row went, or a later incarnation took it over.
	ErrLeaseLost = errors.New("the lease belongs to another incarnation, or was removed")
	// ErrUnknown says that a commit may or may not have been made, or may not outlive a failure of the database.
	ErrUnknown = errors.New("it is unknown whether the change was committed")
	// ErrFull says that the disk is full: nothing was changed.
	ErrFull = errors.New("the disk is full")
	// ErrSync says that the disk failed to keep what was written: nothing is written any more.
	ErrSync = errors.New("the database could not be synced: restart the service")
	// ErrUnavailable says that the database cannot be reached, or does not get to it: nothing was changed, try again.
	ErrUnavailable = errors.New("the database is not available now")
	// ErrDamaged says that the database file is corrupt or truncated.
	ErrDamaged = errors.New("damaged or truncated database")
)

// NameTakenError names the client that already has a DNS name, an address or a URI. It is ErrNameTaken.
type NameTakenError struct {
	Name     string // as it was asked for
	ClientID string // who has it
}

// Error describes the conflict.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("the name %q belongs to client %q", e.Name, e.ClientID)
}

// Is reports whether target is ErrNameTaken.
func (e *NameTakenError) Is(target error) bool { return target == ErrNameTaken }

// ReservedError says until when a removed client's id stays reserved. It is ErrReserved.
type ReservedError struct {
	ClientID string
	Until    time.Time
}

// Error describes the reservation.
func (e *ReservedError) Error() string {
	return fmt.Sprintf("the id %q is reserved until %s: credentials of its former owner may still be valid",
		e.ClientID, e.Until.UTC().Format(time.RFC3339))
}

// Is reports whether target is ErrReserved.
func (e *ReservedError) Is(target error) bool { return target == ErrReserved }

// CertificateTakenError names the client that already has a certificate. It is ErrCertificateTaken.
type CertificateTakenError struct {
	Thumbprint [32]byte // SHA-256 of the certificate
	ClientID   string   // who has it
}

// Error describes the conflict.
func (e *CertificateTakenError) Error() string {
	return fmt.Sprintf("the certificate %s is registered for client %q",
		base64.RawURLEncoding.EncodeToString(e.Thumbprint[:]), e.ClientID)
}

// Is reports whether target is ErrCertificateTaken.
func (e *CertificateTakenError) Is(target error) bool { return target == ErrCertificateTaken }

// AssertionKeyTakenError names the client that already signs its assertions with a key. It is ErrKeyTaken.
type AssertionKeyTakenError struct {
	KeyID    string // what whoever asked calls the key
	ClientID string // who has it
}

// Error describes the conflict.
func (e *AssertionKeyTakenError) Error() string {
	return fmt.Sprintf("the key %q is that with which client %q signs its assertions", e.KeyID, e.ClientID)
}

// Is reports whether target is ErrKeyTaken.
func (e *AssertionKeyTakenError) Is(target error) bool { return target == ErrKeyTaken }

// InUseError names clients that depend on a resource or a trust, whichever is not empty. It is ErrInUse.
type InUseError struct {
	URI       string   // of the resource
	Trust     string   // name of the trust
	ClientIDs []string // at most ten, in order
}

// Error describes the dependency.
func (e *InUseError) Error() string {
	if e.Trust != "" {
		return fmt.Sprintf("the trust %q is used by %q", e.Trust, e.ClientIDs)
	}
	return fmt.Sprintf("the resource %q is used by %q", e.URI, e.ClientIDs)
}

// Is reports whether target is ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// Config is what Open needs.
type Config struct {
	// Path of SQLite's database file. Its folder is created (0700) when it is missing.
	Path string
	// URL of a PostgreSQL database, as postgres://user:password@host:port/name?sslmode=verify-full, instead of Path. With
	// several hosts, separated by commas, it is the one that takes writes. The tables are in its current schema: the first
	// of the role's search_path. The password appears in no error and no log.
	URL string
	// MaxConnections bounds the connections to PostgreSQL. Zero means 16, and fewer than 8 is 8.
	MaxConnections int
	// KEK is the key-encryption key, 32 bytes; see LoadKEK.
	KEK []byte
	// MaxTokenLife is how long a token may live: the ids of removed clients stay reserved that much longer than their
	// last certificate. Zero means one hour.
	MaxTokenLife time.Duration
	// FileTrusts are names of trusts that come from the configuration's files and have no row here. Clients may name
	// them; AddTrust refuses them as existing.
	FileTrusts []string
	// Logger receives what is odd but not fatal; nil discards it.
	Logger *slog.Logger
	// Fatal is told, once, that a sync failed: what the database then holds on disk is unknown until it is opened again,
	// so nothing is written any more, and the process must end. It must not block. Nil: only ErrSync says so.
	Fatal func(error)
	// Replica names who uses the database, for the outbox that each replica has for itself. Empty is a name like others.
	Replica string
	// Now is the clock for created and updated times; nil is time.Now.
	Now func() time.Time
	// AnyCondition opens also a database that must not be served as it is: a backup, one that is being restored or one that
	// was moved elsewhere. It is for whoever looks after databases.
	AnyCondition bool
	// ReadOnly opens a database that is there, and whose schema is this program's, and never writes to it.
	ReadOnly bool
}

// Store is the database. It is safe for concurrent use. Reading methods never wait for writing ones. The one that
// Transact hands out is a transaction: for one goroutine, and only until the function that was given it returns.
type Store struct {
	*core
	read, write conn    // the pools of core, or the transaction
	tx          *change // nil but in a transaction
}

// core is what a Store and its transactions share.
type core struct {
	pools
	dialect dialect
	sealer  sealer
	logger  *slog.Logger
	now     func() time.Time
	maxLife time.Duration
	files   []string // names of the trusts that have no row
	fatal   func(error)
	replica string
	holders *searchers // where the driver does not prepare queries by itself; else nil

	anyCondition bool // open also what must not be served

	mu       sync.Mutex
	onChange []func(Change)
	failed   error // the sync that failed: nothing is written any more
}

// conn is what a pool and a transaction can both do.
type conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Client is one registered client.
type Client struct {
	ID string
	// Generation counts how often the id was given to a new owner, from 1. AddClient sets it.
	Generation uint64
	Disabled   bool
	RemovedAt  time.Time // zero for every client that the reading methods return
	// AuthMethod is "tls_client_auth", "self_signed_tls_client_auth" (RFC 8705, Section 2) or "private_key_jwt". AddClient takes an empty
	// one for the former.
	AuthMethod string
	// SubjectKind is one of the five tls_client_auth_… member names of RFC 8705, Section 2.1.2, or empty. Under one
	// Trust, a subject belongs to one client only.
	SubjectKind, SubjectValue string
	// Certificates are the client's own, DER, for self_signed_tls_client_auth: 1 to 8, several while it rotates. Each
	// belongs to one client only. Empty when JWKSURI has them.
	Certificates [][]byte
	// JWKSURI is where the client publishes its own certificates (RFC 8705, Section 2.2.2); one client's only.
	JWKSURI string
	// JWKS is the JSON Web Key Set of public keys that a client of private_key_jwt signs its assertions with, when JWKSURI
	// has none (RFC 7591, Section 2). It is not read here.
	JWKS string
	// DNS, IPs and URIs are names in the client's certificate; each belongs to one client only.
	DNS, IPs, URIs []string
	// Usage is "client", "server" or "both".
	Usage             string
	Scopes, Resources []string
	// TokenTTL is the client's own token lifetime; zero is the service's default.
	TokenTTL time.Duration
	// Trust names the foreign CA that vouches for the client; with tls_client_auth, empty is our own CA.
	Trust                string
	CreatedAt, UpdatedAt time.Time
	// BuiltIn marks the client that the service registers for itself, such as its first operator.
	BuiltIn bool
}

// Code is an enrolment code as the server keeps it: nothing in it redeems anything.
type Code struct {
	ID         [8]byte
	PublicKey  []byte // Ed25519, 32 bytes
	ClientID   string
	Generation uint64
	CreatedAt  time.Time
	ExpiresAt  time.Time
	UsedAt     time.Time // zero: open
	UsedKey    [32]byte  // SHA-256 of the public key that redeemed it
	// Certificate is the thumbprint of the certificate that it was redeemed for.
	Certificate [32]byte
	// UsedFrom is the network address of whoever redeemed it.
	UsedFrom string
	Void     bool
}

// Certificate is one row of the inventory.
type Certificate struct {
	Thumbprint [32]byte // SHA-256 of DER
	Serial     string   // decimal
	ClientID   string
	Generation uint64
	NotBefore  time.Time
	NotAfter   time.Time
	KeyHash    [32]byte // SHA-256 of the SubjectPublicKeyInfo
	DER        []byte
	// RenewedFrom is the thumbprint of the certificate that authenticated the renewal; zero when enrolled.
	RenewedFrom [32]byte
	RevokedAt   time.Time // zero: not revoked
	Reason      int       // RFC 5280, Section 5.3.1; meaningful once revoked
	CreatedAt   time.Time
}

// Renewal is what AddRenewal did.
type Renewal struct {
	Certificate Certificate // to hand out
	// Fork is not nil when this renewal left two live children of one certificate with different keys.
	Fork *Fork
	// Suspended says that this renewal forked and disabled the client: nothing is to be handed out.
	Suspended bool
}

// Suspension is what a fork did to the client.
type Suspension string

// The suspensions.
const (
	SuspensionNone        Suspension = ""             // it was not asked for
	SuspensionDone        Suspension = "done"         // the client was disabled in the transaction of the renewal
	SuspensionLastGrantor Suspension = "last_grantor" // it was not: nobody could give administrators' scopes any more
)

// Fork is a renewal that left two live children of one certificate with different keys.
type Fork struct {
	Sibling    [32]byte // thumbprint of an earlier child with another key
	Suspension Suspension
}

// Selection says which certificates to revoke: by exactly one of Thumbprints, Serial and ClientID.
type Selection struct {
	Thumbprints [][32]byte
	Serial      string // decimal
	// ClientID selects every certificate of the client that has not expired, of all generations.
	ClientID string
	// Only leaves the certificates alone that were renewed from the selected ones.
	Only bool
}

// Revocation is what Revoke did.
type Revocation struct {
	Revoked []Certificate // newly
	Already []Certificate // were revoked before; their time and reason are kept
	// Disabled are clients that were disabled, because nothing less would have taken their certificates away. What they
	// had registered is among Revoked, in the form of the inventory, though it is not in there.
	Disabled []string
	// Blocked are hashes (SHA-256 of the SubjectPublicKeyInfo) of the public keys that were blocked, those of Revoked too.
	Blocked [][32]byte
}

// Resource is one registered protected resource.
type Resource struct {
	URI     string
	Scopes  []string
	Servers []string // ids of the clients that run it
	// BuiltIn marks the service's own resources, which cannot be removed.
	BuiltIn   bool
	CreatedAt time.Time
}

// Trust is a foreign CA that may vouch for clients.
type Trust struct {
	Name          string
	Anchors       [][]byte // certificates, DER: one at least
	Intermediates [][]byte // certificates, DER; may be empty
	// CRLURL is where the CA publishes its revocation list; CRL is one that was given by value, DER. Both may be empty.
	CRLURL string
	CRL    []byte
	// Revocation is "hard" (an unknown status refuses), "soft" (it raises an alarm) or "off".
	Revocation           string
	CreatedAt, UpdatedAt time.Time
}

// Pending is an operator's request that waits until another operator confirms it.
type Pending struct {
	ID          string // random; AddPending sets it
	Kind        string // what is asked for, in the words of who made it
	Payload     []byte // all that is needed to do it; at most 4 MiB
	RequestedBy string // client id of the operator
	CreatedAt   time.Time
	ExpiresAt   time.Time // 24 hours later
}

// Key is a private key of the service. It is sealed in the database and unsealed here.
type Key struct {
	ID        string
	Purpose   string   // such as "signing", "root", "issuing", "server"
	State     string   // what the owner of the purpose makes of it, such as "announced", "active", "retiring"
	Chain     [][]byte // certificates, DER, leaf first; may be empty
	Private   []byte   // PKCS #8, DER; of ML-DSA the seed
	Algorithm string
	CreatedAt time.Time
	// Since is when it came into its state, Until when that ends: zero where it has no end yet.
	Since, Until time.Time
}

// Entry is a record that waits in the outbox.
type Entry struct {
	ID   string // unique for ever: by it a record is known that was written before
	Body []byte // sealed in the database
	// NotedAt is when the change was made; Note sets it.
	NotedAt time.Time
}

// Change tells what a committed transaction changed, so that caches can drop it.
type Change struct {
	ClientIDs   []string
	Thumbprints [][32]byte
	Revoked     bool // some of Thumbprints were revoked
	// Blocked are hashes (SHA-256 of the SubjectPublicKeyInfo) of public keys that authenticate nobody from now on.
	Blocked   [][32]byte
	Resources bool
	Trusts    bool
	Keys      bool // sealed keys
	Denials   bool // there are more of them
	Tickets   bool // no session ticket of before may be resumed any more
	Journals  bool `json:",omitempty"` // a journal was begun: those of the other replicas should speak of it
	// AuditSubjects are those whose secret in the journal was deleted.
	AuditSubjects []string
	// Full says that anything may have changed: nothing that is remembered may be believed any more.
	Full    bool
	Version int64 // of the state, after the change
}

// Stats are counts of rows.
type Stats struct {
	Clients      int64 // neither removed nor disabled
	Disabled     int64
	Resources    int64
	Certificates int64 // neither expired nor revoked
	Revoked      int64 // revoked and not expired
	OpenCodes    int64
	Trusts       int64 // in the database: those of the configuration's files are not counted
	Version      int64
}
