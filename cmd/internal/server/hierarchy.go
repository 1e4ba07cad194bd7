// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki/stepca"
)

// Purposes of the certificate authority's sealed keys. The root's is read by nobody while the service
// runs; it lies beside the others until the operator moves it away.
const (
	purposeIssuing = "ca-issuing"
	purposeRoot    = "ca-root"
	keyID          = "1"
)

// hierarchy is the certificate authority as loaded for running: the root without its key.
type hierarchy struct {
	root, issuing *x509.Certificate
	issuingKey    crypto.Signer
}

// loadHierarchy reads root and issuing CA, making them at the first start, and holds them against the
// public copies in DATA/ca: whoever distributes those files must distribute the truth.
//
// written is the name of the setting that says whether the folder has its copies.
func loadHierarchy(ctx context.Context, box *outbox.Box, db *store.Store, data, written, name string, now time.Time) (*hierarchy, error) {
	rows, err := db.Keys(ctx, purposeIssuing)
	if err != nil {
		return nil, fmt.Errorf("reading the issuing CA: %w", err)
	}
	if len(rows) == 0 {
		if rows, err = makeHierarchy(ctx, box, name, now); err != nil {
			return nil, err
		}
	}
	h, err := parseHierarchy(rows[0])
	if err != nil {
		return nil, err
	}
	if err := h.check(now); err != nil {
		return nil, err
	}
	return h, h.files(ctx, filepath.Join(data, "ca"), written, db)
}

// makeHierarchy stores a new certificate authority and returns the row of its issuing CA, or of the one that another
// replica has stored meanwhile.
func makeHierarchy(ctx context.Context, box *outbox.Box, name string, now time.Time) (rows []store.Key, _ error) {
	made, err := stepca.NewHierarchy(name, now)
	if err != nil {
		return nil, fmt.Errorf("making the certificate authority: %w", err)
	}
	root, err := sealable(purposeRoot, made.RootKey, now, made.Root)
	if err != nil {
		return nil, err
	}
	issuing, err := sealable(purposeIssuing, made.IssuingKey, now, made.Issuing, made.Root)
	if err != nil {
		return nil, err
	}
	err = changeOnce(ctx, box, audit.Event{
		Name: "ca.create", Serial: made.Issuing.SerialNumber.String(), Expires: made.Issuing.NotAfter,
		Thumbprint: mtls.ThumbprintOf(made.Issuing).String(), Detail: map[string]string{"root": mtls.ThumbprintOf(made.Root).String()},
	}, func(tx *store.Store) (first bool, err error) {
		if rows, err = tx.Keys(ctx, purposeIssuing); err != nil || len(rows) > 0 {
			return false, err
		}
		rows = []store.Key{issuing}
		// The issuing CA last: its row is what says that the hierarchy is whole.
		return true, errors.Join(tx.PutKey(ctx, root), tx.PutKey(ctx, issuing))
	})
	if err != nil {
		return nil, fmt.Errorf("storing the certificate authority: %w", err)
	}
	return rows, nil
}

// sealable is a key with its chain as the store seals it.
func sealable(purpose string, key crypto.Signer, now time.Time, chain ...*x509.Certificate) (store.Key, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return store.Key{}, fmt.Errorf("encoding the key of %s: %w", purpose, err)
	}
	row := store.Key{ID: keyID, Purpose: purpose, State: "active", Private: der, CreatedAt: now}
	for _, c := range chain {
		row.Chain = append(row.Chain, c.Raw)
	}
	return row, nil
}

func parseHierarchy(row store.Key) (*hierarchy, error) {
	if len(row.Chain) != 2 {
		return nil, errors.New("the stored issuing CA has no chain to its root: restore the database from a backup")
	}
	h := &hierarchy{}
	var err error
	if h.issuing, err = x509.ParseCertificate(row.Chain[0]); err != nil {
		return nil, fmt.Errorf("the stored issuing certificate: %w", err)
	}
	if h.root, err = x509.ParseCertificate(row.Chain[1]); err != nil {
		return nil, fmt.Errorf("the stored root certificate: %w", err)
	}
	h.issuingKey, err = parseSigner(row.Private)
	return h, err
}

// check refuses a hierarchy that would sign what nobody can verify.
func (h *hierarchy) check(now time.Time) error {
	if err := h.issuing.CheckSignatureFrom(h.root); err != nil {
		return fmt.Errorf("the issuing certificate is not signed by the root: %w", err)
	}
	if !samePublicKey(h.issuing.PublicKey, h.issuingKey.Public()) {
		return errors.New("the issuing key does not belong to the issuing certificate")
	}
	if !now.Before(h.issuing.NotAfter) {
		return fmt.Errorf("the issuing certificate expired at %s", h.issuing.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// files writes the public copies where there are none yet, and refuses copies that differ later.
func (h *hierarchy) files(ctx context.Context, dir, setting string, db *store.Store) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of the CA's certificates: %w", err)
	}
	_, err := db.Setting(ctx, setting)
	first := errors.Is(err, store.ErrNotFound)
	if err != nil && !first {
		return fmt.Errorf("reading settings: %w", err)
	}
	copies := map[string]*x509.Certificate{"root.pem": h.root, "issuing.pem": h.issuing}
	// A database that was restored is served in a new folder, which has neither. One that has lost one of them was changed.
	none := true
	for name := range copies {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			none = false
		}
	}
	for name, cert := range copies {
		path := filepath.Join(dir, name)
		if first || none {
			block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
			if err := writeFile(path, block, 0o644); err != nil {
				return err
			}
			continue
		}
		if err := checkCopy(path, cert); err != nil {
			return err
		}
	}
	if !first {
		return nil
	}
	_, err = db.SetOnce(ctx, setting, "written")
	return err
}

// checkCopy names the file that is not what it should be.
func checkCopy(path string, want *x509.Certificate) error {
	hint := "put the file back from a copy of the data folder; the certificate itself is not secret"
	data, err := os.ReadFile(path)
	if err != nil {
		return &StartError{Message: fmt.Sprintf("the CA file %s cannot be read: %v", path, errors.Unwrap(err)), Hint: hint}
	}
	certs, err := mtls.ParseCertificates(data)
	if err != nil {
		return &StartError{Message: fmt.Sprintf("the CA file %s is damaged: %v", path, err), Hint: hint}
	}
	if len(certs) != 1 || !bytes.Equal(certs[0].Raw, want.Raw) {
		return &StartError{Message: fmt.Sprintf("the CA file %s does not hold this installation's certificate", path), Hint: hint}
	}
	return nil
}

// samePublicKey compares keys of the kinds that this program makes or accepts.
func samePublicKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *ecdsa.PublicKey:
		return a.Equal(b)
	case ed25519.PublicKey:
		return a.Equal(b)
	case *rsa.PublicKey:
		return a.Equal(b)
	}
	return false
}
