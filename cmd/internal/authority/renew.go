// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"errors"
	"slices"
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
	cert, fresh, err := a.renew(ctx, clientID, parent, req, from)
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

func (a *Authority) renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest, from Caller) (_ store.Certificate, fresh bool, _ error) {
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
	fresh = stored.Thumbprint == cert.Thumbprint
	if fresh {
		err = a.watchFork(ctx, stored, from)
	}
	return stored, fresh, err
}

// watchFork looks for another live child of the same parent with another key. A client has one key at a time, so two
// parties hold the parent's: the client and a thief, and nobody can tell which renewed first. The renewal stands,
// unless clients are to be suspended: a signal that anybody with a stolen key can raise must not lock out by default.
func (a *Authority) watchFork(ctx context.Context, child store.Certificate, from Caller) error {
	siblings, err := a.cfg.Store.Siblings(ctx, child.RenewedFrom, a.cfg.Now())
	if err != nil {
		return unavailable(err)
	}
	i := slices.IndexFunc(siblings, func(s store.Certificate) bool { return s.KeyHash != child.KeyHash })
	if i < 0 {
		return nil
	}
	if a.cfg.Forked != nil {
		a.cfg.Forked()
	}
	a.cfg.Logger.WarnContext(ctx, "one certificate was renewed into two live ones with different keys: one of them may be a thief's",
		"client", child.ClientID, "parent", mtls.Thumbprint(child.RenewedFrom).String(), "address", from.Address, "correlation", from.Correlation)
	err = a.record(ctx, audit.Event{
		Name: "renew.fork", Outcome: "granted", Client: child.ClientID, Serial: child.Serial,
		Thumbprint: mtls.Thumbprint(child.Thumbprint).String(), Address: from.Address, Correlation: from.Correlation,
		Detail: map[string]string{
			"renewed_from": mtls.Thumbprint(child.RenewedFrom).String(),
			"sibling":      mtls.Thumbprint(siblings[i].Thumbprint).String(),
		},
	})
	if err != nil || !a.cfg.SuspendOnFork {
		return err
	}
	if err := a.cfg.Store.DisableClient(ctx, child.ClientID); err != nil && !errors.Is(err, store.ErrLastGrantor) {
		return unavailable(err)
	}
	if err := a.record(ctx, audit.Event{
		Name: "client.suspend", Outcome: "granted", Reason: "renew_fork", Client: child.ClientID,
		Address: from.Address, Correlation: from.Correlation,
	}); err != nil {
		return err
	}
	return refusal("invalid_client", "suspended_on_fork", "client authentication failed")
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
