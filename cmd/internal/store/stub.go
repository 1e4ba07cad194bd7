// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/cipher"
	"database/sql"
	"errors"
	"time"
)

var errTODO = errors.New("not built yet")

type sealer struct{ aead cipher.AEAD }

// FolderLock is held by the process that uses a data folder.
type FolderLock struct{}

// Lock takes the lock of the data folder dir, or fails with ErrLocked at once.
func Lock(dir string) (*FolderLock, error) { return nil, errTODO }

// Unlock releases the folder.
func (l *FolderLock) Unlock() error { return errTODO }

// KEKSource says where the key-encryption key comes from; the zero value is the file "kek" in the data folder.
type KEKSource struct {
	Value string // the key itself, base64, from the environment; wins
	File  string // a file that must exist
}

// LoadKEK returns the key-encryption key, 32 bytes, and makes dir/kek when the database file dbPath does not exist.
func LoadKEK(dir, dbPath string, src KEKSource) ([]byte, error) { return nil, errTODO }

// Open opens the database, or makes it.
func Open(ctx context.Context, cfg Config) (*Store, error) { return nil, errTODO }

// DB returns a pool for the CA library's table ca_kv.
func (s *Store) DB() *sql.DB { return s.shared }

// Close closes the database.
func (s *Store) Close() error { return errTODO }

// OnChange registers f to be called after each committed change.
func (s *Store) OnChange(f func(Change)) {}

// Version returns the version of the state.
func (s *Store) Version(ctx context.Context) (int64, error) { return 0, errTODO }

// Stats counts rows.
func (s *Store) Stats(ctx context.Context, now time.Time) (Stats, error) { return Stats{}, errTODO }

// Setting returns a stored setting, or ErrNotFound.
func (s *Store) Setting(ctx context.Context, name string) (string, error) { return "", errTODO }

// SetOnce stores a setting unless there is one, and returns the stored one.
func (s *Store) SetOnce(ctx context.Context, name, value string) (string, error) { return "", errTODO }

// PutKey inserts or replaces a key by purpose and id.
func (s *Store) PutKey(ctx context.Context, k Key) error { return errTODO }

// Keys returns the keys of a purpose, oldest first.
func (s *Store) Keys(ctx context.Context, purpose string) ([]Key, error) { return nil, errTODO }

// DeleteKey deletes a key, or returns ErrNotFound.
func (s *Store) DeleteKey(ctx context.Context, purpose, id string) error { return errTODO }

// AddClient registers a client, with its first enrolment code unless code is nil.
func (s *Store) AddClient(ctx context.Context, c Client, code *Code) (Client, error) {
	return Client{}, errTODO
}

// Client returns a client, or ErrNotFound.
func (s *Store) Client(ctx context.Context, id string) (Client, error) { return Client{}, errTODO }

// Clients lists clients in the order of their ids, from the one behind after.
func (s *Store) Clients(ctx context.Context, after string, limit int) ([]Client, error) {
	return nil, errTODO
}

// DisableClient disables a client and voids its open codes.
func (s *Store) DisableClient(ctx context.Context, id string) error { return errTODO }

// EnableClient enables a client.
func (s *Store) EnableClient(ctx context.Context, id string) error { return errTODO }

// RemoveClient removes a client and voids its open codes.
func (s *Store) RemoveClient(ctx context.Context, id string) error { return errTODO }

// Invite stores a new enrolment code for a client and voids the older ones.
func (s *Store) Invite(ctx context.Context, clientID string, code Code) error { return errTODO }

// Code returns an enrolment code, or ErrNotFound.
func (s *Store) Code(ctx context.Context, id [8]byte) (Code, error) { return Code{}, errTODO }

// Redeem uses an enrolment code for a certificate.
func (s *Store) Redeem(ctx context.Context, id [8]byte, keyHash [32]byte, cert Certificate, now time.Time) (Certificate, error) {
	return Certificate{}, errTODO
}

// AddCertificate adds a certificate to the inventory.
func (s *Store) AddCertificate(ctx context.Context, cert Certificate) error { return errTODO }

// AddRenewal adds a certificate that renews parent.
func (s *Store) AddRenewal(ctx context.Context, parent [32]byte, cert Certificate, now time.Time) (Certificate, error) {
	return Certificate{}, errTODO
}

// Certificate returns a certificate by its thumbprint, or ErrNotFound.
func (s *Store) Certificate(ctx context.Context, thumbprint [32]byte) (Certificate, error) {
	return Certificate{}, errTODO
}

// CertificateBySerial returns a certificate by its decimal serial number, or ErrNotFound.
func (s *Store) CertificateBySerial(ctx context.Context, serial string) (Certificate, error) {
	return Certificate{}, errTODO
}

// Certificates lists certificates, oldest first, from the one behind the serial number after.
func (s *Store) Certificates(ctx context.Context, clientID, after string, limit int) ([]Certificate, error) {
	return nil, errTODO
}

// Child returns the valid, unrevoked certificate that renewed parent with the same key, or ErrNotFound.
func (s *Store) Child(ctx context.Context, parent, keyHash [32]byte, now time.Time) (Certificate, error) {
	return Certificate{}, errTODO
}

// Revoke revokes certificates.
func (s *Store) Revoke(ctx context.Context, sel Selection, reason int, now time.Time) (Revocation, error) {
	return Revocation{}, errTODO
}

// RevokedCertificates lists the revoked certificates that expire after notAfter, by serial number.
func (s *Store) RevokedCertificates(ctx context.Context, notAfter time.Time) ([]Certificate, error) {
	return nil, errTODO
}

// NextCRLNumber returns the next number for a revocation list, from 1.
func (s *Store) NextCRLNumber(ctx context.Context) (int64, error) { return 0, errTODO }

// KeyBlocked reports whether a public key was reported compromised.
func (s *Store) KeyBlocked(ctx context.Context, keyHash [32]byte) (bool, error) {
	return false, errTODO
}

// KeyOwner returns the client that used a public key, "" when nobody did.
func (s *Store) KeyOwner(ctx context.Context, keyHash [32]byte) (string, error) { return "", errTODO }

// AddResource registers a resource, or returns ErrExists.
func (s *Store) AddResource(ctx context.Context, r Resource) error { return errTODO }

// RemoveResource removes a resource, or returns ErrNotFound, ErrBuiltIn or an InUseError.
func (s *Store) RemoveResource(ctx context.Context, uri string) error { return errTODO }

// Resource returns a resource, or ErrNotFound.
func (s *Store) Resource(ctx context.Context, uri string) (Resource, error) {
	return Resource{}, errTODO
}

// Resources lists all resources in the order of their URIs.
func (s *Store) Resources(ctx context.Context) ([]Resource, error) { return nil, errTODO }
