// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"errors"
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
	// crlSkew is how far another replica's clock may be ahead of ours before its list looks wrong.
	crlSkew = 5 * time.Second
	// crlTries bounds how often a list is made anew because another replica has published one meanwhile.
	crlTries = 5
	// changesAtOnce is how many changes are looked through at once for revocations.
	changesAtOnce = 256
)

// crlState is the list that was given out last.
type crlState struct {
	list        store.RevocationList
	revocations uint64 // how many had been seen when it was found to be good
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

// CRL returns the DER of the current revocation list (RFC 5280, Section 5). After a revocation, and when the last is an hour
// old, it signs a new one and blocks meanwhile. All replicas give out the same list: whoever needs a new one stores it, and
// no list is given out that is not stored.
func (a *Authority) CRL(ctx context.Context) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, revocations := a.cfg.Now(), a.revocations.Load()
	if a.crl.revocations == revocations && fresh(a.crl.list, now) {
		return a.crl.list.DER, nil
	}
	for range crlTries {
		list, err := a.currentList(ctx, now)
		if err != nil {
			return nil, err
		}
		if list != nil {
			a.crl = crlState{list: *list, revocations: revocations}
			return list.DER, nil
		}
	}
	return nil, errors.New("other replicas keep publishing revocation lists")
}

// fresh reports whether a list is young enough to be given out.
func fresh(l store.RevocationList, now time.Time) bool {
	age := now.Sub(l.MadeAt)
	return l.DER != nil && age < crlRefresh && age >= -crlSkew
}

// currentList returns the stored list, or stores a new one when that is needed. Nil: another replica stored one meanwhile.
func (a *Authority) currentList(ctx context.Context, now time.Time) (*store.RevocationList, error) {
	stored, err := a.cfg.Store.RevocationList(ctx)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if fresh(stored, now) && a.ours(stored) {
		revoked, err := a.revokedSince(ctx, stored.Covers)
		if err != nil {
			return nil, err
		}
		if !revoked {
			return &stored, nil
		}
	}
	made, err := a.makeList(ctx, now)
	if err != nil {
		return nil, err
	}
	published, err := a.cfg.Store.PublishRevocationList(ctx, *made)
	if err != nil || !published {
		return nil, err
	}
	return made, nil
}

// ours reports whether a stored list is one that our issuing CA signed: whoever writes to the database cannot do that.
func (a *Authority) ours(l store.RevocationList) bool {
	list, err := pki.ParseCRL(l.DER)
	return err == nil && list.Check(a.cfg.Issuing, l.MadeAt) == nil
}

// revokedSince reports whether anything was revoked after a version of the state, or may have been.
func (a *Authority) revokedSince(ctx context.Context, version int64) (bool, error) {
	for {
		changes, err := a.cfg.Store.ChangesSince(ctx, version, changesAtOnce)
		if err != nil {
			return false, err
		}
		for _, c := range changes {
			if c.Revoked || c.Full {
				return true, nil
			}
			version = c.Version
		}
		if len(changes) < changesAtOnce {
			return false, nil
		}
	}
}

// makeList signs a list of everything that is revoked.
func (a *Authority) makeList(ctx context.Context, now time.Time) (*store.RevocationList, error) {
	version, err := a.cfg.Store.Version(ctx) // before the rows: what is revoked meanwhile is on the list or in a later version
	if err != nil {
		return nil, err
	}
	rows, err := a.cfg.Store.Revoked(ctx, now)
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
		list = append(list, pki.Revoked{Serial: serial, At: c.At, Reason: pki.Reason(c.Reason)})
	}
	der, err := pki.CreateCRL(a.cfg.Issuing, a.cfg.IssuingKey, big.NewInt(number), now, now.Add(crlLife), list)
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list: %w", err)
	}
	return &store.RevocationList{Number: number, Covers: version, MadeAt: now, DER: der}, nil
}
