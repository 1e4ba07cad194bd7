// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// maxJudgements is how often a change is judged that comes out differently in its transaction than right before it.
const maxJudgements = 3

// errOtherwise undoes a transaction in which a change came out as one of the other class than right before it.
var errOtherwise = errors.New("judged otherwise in the transaction")

// within is a transaction in which a change is judged and made, and what its caller may do by what the transaction sees.
type within struct {
	tx     *store.Store
	scopes []string
}

type withinKey struct{}

// db is what a request reads from: the transaction in which it is judged, or the store.
func (a *api) db(ctx context.Context) *store.Store {
	if w, ok := ctx.Value(withinKey{}).(*within); ok {
		return w.tx
	}
	return a.cfg.Store
}

// isWithin reports whether a change is being judged in its transaction.
func isWithin(ctx context.Context) bool {
	_, ok := ctx.Value(withinKey{}).(*within)
	return ok
}

// alter has a change judged, made and recorded in one transaction, in which nobody else changes anything: neither another
// operator nor another replica. What takes the caller's authority away comes before, and then this is refused, or after.
//
// It is judged once before that, too: most refusals need not wait for the turn to write, and what only takes authority
// away is made by other rules when the journal is full.
func (a *api) alter(r *http.Request, rt route, in any) (*outcome, error) {
	if err := a.stillMay(r.Context(), rt.scopes); err != nil {
		return nil, err
	}
	if _, err := a.twoNeeded(r.Context()); err != nil {
		// What takes authority away is done all the same; what gives it asks again.
		a.cfg.Logger.ErrorContext(r.Context(), "it is not known whether two operators are needed", "error", err)
	}
	for range maxJudgements {
		before, err := rt.action.judge(r, in)
		if err != nil {
			return nil, err
		}
		d := *before
		if before.made == nil {
			d.do = a.judgedWithin(r, rt, in, before.takes)
		}
		done, err := a.perform(r.Context(), rt.event, &d)
		if !errors.Is(err, errOtherwise) {
			return done, err
		}
	}
	return nil, conflict(codeRequest, "others change what it is about at the same time", "try again")
}

// judgedWithin judges a change in its transaction, and makes it there.
func (a *api) judgedWithin(r *http.Request, rt route, in any, takes bool) func(context.Context, *store.Store) (*outcome, error) {
	// Nobody who hangs up breaks off a transaction.
	ctx := context.WithoutCancel(r.Context())
	held := a.scopes(ctx)
	return func(_ context.Context, tx *store.Store) (*outcome, error) {
		w := &within{tx: tx, scopes: held}
		if a.cfg.InForce != nil {
			var err error
			if w.scopes, err = a.cfg.InForce(ctx, tx); err != nil {
				return nil, notAuthorized(err)
			}
		}
		ctx := context.WithValue(ctx, withinKey{}, w)
		if err := a.needAny(ctx, rt.scopes); err != nil {
			return nil, err
		}
		paired, err := a.pairWithin(ctx)
		if err != nil {
			return nil, unavailable(err)
		}
		d, err := rt.action.judge(r.WithContext(ctx), in)
		if err != nil {
			return nil, err
		}
		if d.takes != takes {
			return nil, errOtherwise
		}
		done, err := d.do(ctx, tx)
		if err != nil {
			return nil, err
		}
		done.before = append(paired, done.before...)
		return done, nil
	}
}

// errNotRegistered says that a client has not registered, or no longer, the certificate that it shows.
var errNotRegistered = errors.New("the certificate is not registered")

// InForce returns a client as it is in the transaction tx, in which it must be enabled and the certificate in force that it
// shows: another replica may have ended either a moment ago. A certificate of our CA must be in the inventory, of the
// client's present generation and not revoked, any other registered, and its key not blocked. An error that is none of
// package tokens' refuses for one of these reasons. Time is judged too; whoever asks has shown that it has the key.
func InForce(ctx context.Context, tx *store.Store, id string, thumbprint mtls.Thumbprint, now time.Time) (store.Client, error) {
	client, err := tx.Client(ctx, id)
	if err == nil && client.Disabled {
		err = store.ErrClientDisabled
	}
	if err != nil {
		return store.Client{}, unlessRefused(err)
	}
	key, err := keyInForce(ctx, tx, client, thumbprint, now)
	if err != nil {
		return store.Client{}, unlessRefused(err)
	}
	blocked, err := tx.KeyBlocked(ctx, key)
	if err == nil && blocked {
		err = store.ErrKeyBlocked
	}
	return client, unlessRefused(err)
}

// keyInForce returns the SHA-256 of the public key of the client's certificate.
func keyInForce(ctx context.Context, tx *store.Store, client store.Client, thumbprint mtls.Thumbprint, now time.Time) (key [32]byte, err error) {
	if !enrols(client) {
		return registeredKey(client, thumbprint, now)
	}
	row, err := tx.Certificate(ctx, thumbprint)
	switch {
	case err != nil:
		return key, err
	case row.ClientID != client.ID || row.Generation != client.Generation:
		return key, store.ErrGeneration
	case !row.RevokedAt.IsZero():
		return key, store.ErrRevoked
	case now.After(row.NotAfter):
		return key, store.ErrExpired
	}
	return row.KeyHash, nil
}

// registeredKey is keyInForce for a client that registered its certificates by value. Those that are known by their
// address, or by another CA's word, hold no scopes of this API.
func registeredKey(client store.Client, thumbprint mtls.Thumbprint, now time.Time) (key [32]byte, err error) {
	for _, der := range client.Certificates {
		if !thumbprint.Equal(sha256.Sum256(der)) {
			continue
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return key, err
		}
		if now.After(cert.NotAfter) {
			return key, store.ErrExpired
		}
		return sha256.Sum256(cert.RawSubjectPublicKeyInfo), nil
	}
	return key, errNotRegistered
}

// unlessRefused makes what is no refusal a failure of the service.
func unlessRefused(err error) error {
	for _, refusal := range []error{
		store.ErrNotFound, store.ErrClientDisabled, store.ErrGeneration, store.ErrRevoked, store.ErrExpired, store.ErrKeyBlocked, errNotRegistered,
	} {
		if err == nil || errors.Is(err, refusal) {
			return err
		}
	}
	return &tokens.Error{Code: tokens.CodeTemporarilyUnavailable, Reason: "store_failed", Err: err}
}

// pairWithin is pair in a transaction: when two operators are there before a change, that is kept with it.
func (a *api) pairWithin(ctx context.Context) ([]audit.Event, error) {
	paired, found, err := a.foundTwo(ctx)
	if err != nil || paired || !found {
		return nil, err
	}
	return a.setPaired(ctx, a.db(ctx))
}
