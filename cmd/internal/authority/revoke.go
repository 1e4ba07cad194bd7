// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
)

const (
	// crlLife is how long a list stays good, crlRefresh how old a cached one may be: the difference is
	// how long the service may be down before relying parties of the list notice.
	crlLife    = 24 * time.Hour
	crlRefresh = time.Hour
)

// crlState is the list as last signed.
type crlState struct {
	der         []byte
	made        time.Time
	revocations uint64 // how many had been seen when its entries were read
}

// Revoke takes certificates away, with everything renewed from them unless the selection says only, in the transaction
// tx, which the caller commits together with the record. When that is done it is in force: the very next request on any
// connection is judged by it. Of what our CA did not issue it takes away what the store's Revoke says, or it is
// store.ErrNotRevocable.
func (a *Authority) Revoke(ctx context.Context, tx *store.Store, s store.Selection, reason pki.Reason) (store.Revocation, error) {
	r, err := tx.Revoke(ctx, s, int(reason), a.cfg.Now())
	if err != nil {
		a.revocations.Add(1) // an error of the database leaves it unknown what took effect
	}
	return r, err
}

// changed notes that something was revoked, by whatever way, so that the next reader of the list signs a new one. It is
// called when the transaction was committed, or when that failed and it is unknown whether it was, while others wait to
// write: it must not wait for a reader, who may be waiting for the database.
func (a *Authority) changed(c store.Change) {
	if c.Revoked || c.Full {
		a.revocations.Add(1)
	}
}

// CRL returns the DER of the current revocation list (RFC 5280, Section 5). It signs a new one after a
// revocation and when the last is an hour old, and blocks meanwhile.
func (a *Authority) CRL(ctx context.Context) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, revocations := a.cfg.Now(), a.revocations.Load()
	if a.crl.der != nil && a.crl.revocations == revocations && now.Sub(a.crl.made) < crlRefresh && !now.Before(a.crl.made) {
		return a.crl.der, nil
	}
	rows, err := a.cfg.Store.RevokedCertificates(ctx, now)
	if err != nil {
		return nil, fmt.Errorf("reading what was revoked: %w", err)
	}
	number, err := a.cfg.Store.NextCRLNumber(ctx)
	if err != nil {
		return nil, fmt.Errorf("numbering the revocation list: %w", err)
	}
	list := make([]pki.Revoked, 0, len(rows))
	for _, c := range rows {
		serial, ok := new(big.Int).SetString(c.Serial, 10)
		if !ok {
			return nil, fmt.Errorf("serial number %q of the inventory is not decimal", c.Serial)
		}
		list = append(list, pki.Revoked{Serial: serial, At: c.RevokedAt, Reason: pki.Reason(c.Reason)})
	}
	der, err := pki.CreateCRL(a.cfg.Issuing, a.cfg.IssuingKey, big.NewInt(number), now, now.Add(crlLife), list)
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list: %w", err)
	}
	a.crl = crlState{der: der, made: now, revocations: revocations}
	return der, nil
}
