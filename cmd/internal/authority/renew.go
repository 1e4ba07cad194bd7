// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"errors"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// Renew signs afresh, from the registry, for a client that has just been authenticated by the
// certificate parent. Repeated from the same parent with the same key it returns the same child while
// that is valid and unrevoked, so that a lost answer makes no second certificate.
//
// The caller must have authenticated the connection; the state of parent and client is nevertheless
// judged again inside the transaction that adds the child, because a revocation may come in between.
// Errors are *tokens.Error.
func (a *Authority) Renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest, from Caller) (*pki.EnrollResponse, error) {
	cert, fresh, err := a.renew(ctx, clientID, parent, req)
	if err != nil {
		return nil, a.refused(ctx, "cert.renew", clientID, from, err)
	}
	event := audit.Event{
		Name: "cert.renew", Outcome: "granted", Client: clientID,
		Thumbprint: mtls.Thumbprint(cert.Thumbprint).String(), Serial: cert.Serial,
		Address: from.Address, Correlation: from.Correlation, Expires: cert.NotAfter,
		Detail: map[string]string{"renewed_from": parent.Thumbprint().String()},
	}
	if !fresh {
		event.Reason = "repeated"
	}
	if err := a.record(ctx, event); err != nil {
		return nil, err
	}
	return a.answer(cert)
}

func (a *Authority) renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest) (_ store.Certificate, fresh bool, _ error) {
	der, err := req.Decode()
	if err != nil {
		return store.Certificate{}, false, malformed(err)
	}
	csr, hash, err := parseRequest(der)
	if err != nil {
		return store.Certificate{}, false, err
	}
	now := a.cfg.Now()
	client, err := a.renewable(ctx, clientID, parent.Thumbprint(), now)
	if err != nil {
		return store.Certificate{}, false, err
	}
	if err := a.checkKey(ctx, clientID, hash); err != nil {
		return store.Certificate{}, false, err
	}
	child, err := a.cfg.Store.Child(ctx, parent.Thumbprint(), hash, now)
	if err == nil {
		return child, false, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return store.Certificate{}, false, unavailable(err)
	}
	profile, err := a.profile(client, now)
	if err != nil {
		return store.Certificate{}, false, unavailable(err)
	}
	cert, err := a.sign(ctx, csr, profile, client)
	if err != nil {
		return store.Certificate{}, false, err
	}
	stored, err := a.cfg.Store.AddRenewal(ctx, parent.Thumbprint(), cert, now)
	if err != nil {
		return store.Certificate{}, false, renewError(err)
	}
	return stored, stored.Thumbprint == cert.Thumbprint, nil
}

// renewable finds the client that may renew from this parent. The transaction judges the same again; this
// comes first because an earlier child is returned without a transaction, and spares a signature.
func (a *Authority) renewable(ctx context.Context, clientID string, parent [32]byte, now time.Time) (store.Client, error) {
	client, err := a.cfg.Store.Client(ctx, clientID)
	if err != nil {
		return store.Client{}, renewError(err)
	}
	old, err := a.cfg.Store.Certificate(ctx, parent)
	switch {
	case err != nil:
		return store.Client{}, renewError(err)
	case client.Disabled:
		return store.Client{}, renewError(store.ErrClientDisabled)
	case old.ClientID != client.ID || old.Generation != client.Generation:
		return store.Client{}, renewError(store.ErrGeneration)
	case !old.RevokedAt.IsZero():
		return store.Client{}, renewError(store.ErrRevoked)
	case now.After(old.NotAfter):
		return store.Client{}, renewError(store.ErrExpired)
	}
	return client, nil
}

// renewError maps what the transaction found; whatever takes the certificate's authority away answers
// as a failed authentication would.
func renewError(err error) error {
	switch {
	case errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrExpired), errors.Is(err, store.ErrNotFound),
		errors.Is(err, store.ErrClientDisabled), errors.Is(err, store.ErrGeneration):
		return refusal("invalid_client", "parent_not_valid", "client authentication failed")
	case errors.Is(err, store.ErrKeyBlocked):
		return errKeyBlocked
	case errors.Is(err, store.ErrKeyTaken):
		return errKeyTaken
	default:
		return unavailable(err)
	}
}
