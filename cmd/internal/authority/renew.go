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
// So is whether the renewal forks: that is an alarm, and may suspend the client. Errors are *tokens.Error.
func (a *Authority) Renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest, from Caller) (*pki.EnrollResponse, error) {
	cert, err := a.renew(ctx, clientID, parent, req, from)
	if err != nil {
		return nil, a.refused(ctx, "cert.renew", clientID, from, err)
	}
	return a.answer(cert)
}

// renewed is the event of a renewal, for the first time or again.
func renewed(cert store.Certificate, fresh bool, parent [32]byte, from Caller) audit.Event {
	event := issued("cert.renew", cert, fresh, from)
	if event.Detail == nil {
		event.Detail = make(map[string]string)
	}
	event.Detail["renewed_from"] = mtls.Thumbprint(parent).String()
	return event
}

func (a *Authority) renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest, from Caller) (store.Certificate, error) {
	der, err := req.Decode()
	if err != nil {
		return store.Certificate{}, malformed(err)
	}
	csr, hash, err := parseRequest(der)
	if err != nil {
		return store.Certificate{}, err
	}
	now := a.cfg.Now()
	client, err := a.renewable(ctx, clientID, parent.Thumbprint(), now)
	if err != nil {
		return store.Certificate{}, err
	}
	if err := a.checkKey(ctx, clientID, hash); err != nil {
		return store.Certificate{}, err
	}
	child, err := a.cfg.Store.Child(ctx, parent.Thumbprint(), hash, now)
	if err == nil {
		return child, a.record(ctx, renewed(child, false, parent.Thumbprint(), from))
	}
	if !errors.Is(err, store.ErrNotFound) {
		return store.Certificate{}, unavailable(err)
	}
	profile, err := a.profile(client, now)
	if err != nil {
		return store.Certificate{}, unavailable(err)
	}
	cert, err := a.sign(ctx, csr, profile, client)
	if err != nil {
		return store.Certificate{}, err
	}
	var renewal store.Renewal
	err = a.change(ctx, func(tx *store.Store) ([]audit.Event, error) {
		var err error
		if renewal, err = tx.AddRenewal(ctx, parent.Thumbprint(), cert, a.cfg.SuspendOnFork, now); err != nil {
			return nil, renewError(err)
		}
		events := forked(renewal, from)
		if !renewal.Suspended {
			fresh := renewal.Certificate.Thumbprint == cert.Thumbprint
			events = append(events, renewed(renewal.Certificate, fresh, parent.Thumbprint(), from))
		}
		return events, nil
	})
	if renewal.Fork != nil {
		a.alarm(ctx, renewal, from)
	}
	if err != nil {
		return store.Certificate{}, err
	}
	if renewal.Suspended {
		return store.Certificate{}, refusal("invalid_client", "suspended_on_fork", "client authentication failed")
	}
	return renewal.Certificate, nil
}

// forked are the events of a renewal that left two live children of one certificate with different keys. A client has one
// key at a time, so two parties hold the parent's: the client and a thief, and nobody can tell which renewed first. The
// renewal stands, unless clients are to be suspended: a signal that anybody with a stolen key can raise must not lock out
// by default. The events are recorded with the renewal, so that the alarm is on record exactly when there is a fork.
func forked(r store.Renewal, from Caller) []audit.Event {
	if r.Fork == nil {
		return nil
	}
	child := r.Certificate
	events := []audit.Event{{
		Name: "renew.fork", Outcome: audit.Granted, Client: child.ClientID, Serial: child.Serial,
		Thumbprint: mtls.Thumbprint(child.Thumbprint).String(), Address: from.Address, Correlation: from.Correlation,
		Detail: map[string]string{
			"renewed_from": mtls.Thumbprint(child.RenewedFrom).String(),
			"sibling":      mtls.Thumbprint(r.Fork.Sibling).String(),
		},
	}}
	// What took effect, or that it could not.
	suspended := audit.Event{
		Name: "client.suspend", Outcome: audit.Granted, Reason: "renew_fork", Client: child.ClientID,
		Address: from.Address, Correlation: from.Correlation,
	}
	switch r.Fork.Suspension {
	case store.SuspensionNone:
		return events
	case store.SuspensionLastGrantor:
		suspended.Outcome, suspended.Reason = audit.Refused, "last_grantor"
	}
	return append(events, suspended)
}

// alarm tells the metrics and the log of a fork, whatever became of its record.
func (a *Authority) alarm(ctx context.Context, r store.Renewal, from Caller) {
	if a.cfg.Forked != nil {
		a.cfg.Forked()
	}
	a.cfg.Logger.WarnContext(ctx, "one certificate was renewed into two live ones with different keys: one of them may be a thief's",
		"client", r.Certificate.ClientID, "parent", mtls.Thumbprint(r.Certificate.RenewedFrom).String(),
		"suspension", string(r.Fork.Suspension), "address", from.Address, "correlation", from.Correlation)
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
