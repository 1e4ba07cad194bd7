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
// So is whether the renewal forks, see [Authority.ReportForks]. Errors are *tokens.Error.
func (a *Authority) Renew(ctx context.Context, clientID string, parent *mtls.Peer, req pki.RenewRequest, from Caller) (*pki.EnrollResponse, error) {
	cert, fresh, err := a.renew(ctx, clientID, parent, req, from)
	// Also after a refusal: it may be the repetition of a renewal whose alarm could not be raised.
	if alarm := a.ReportForks(ctx); err == nil && alarm != nil {
		err = alarm
	}
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
	renewal, err := a.cfg.Store.AddRenewal(ctx, parent.Thumbprint(), cert,
		store.Renewer{Address: from.Address, Correlation: from.Correlation, Suspend: a.cfg.SuspendOnFork}, now)
	switch {
	case err != nil:
		return store.Certificate{}, false, renewError(err)
	case renewal.Suspended:
		return store.Certificate{}, false, refusal("invalid_client", "suspended_on_fork", "client authentication failed")
	}
	return renewal.Certificate, renewal.Certificate.Thumbprint == cert.Thumbprint, nil
}

// ReportForks raises the alarm about every renewal that left two live children of one certificate with different keys
// and was not reported yet. A client has one key at a time, so two parties hold the parent's: the client and a thief,
// and nobody can tell which renewed first. The renewal stands, unless clients are to be suspended: a signal that anybody
// with a stolen key can raise must not lock out by default.
//
// Each renewal calls it. The service calls it at its start and from time to time too, because whoever forked may not
// come again when the journal or the process failed in between. A fork is recorded once at least; the error, a
// *tokens.Error, says that some were not.
func (a *Authority) ReportForks(ctx context.Context) error {
	a.alarms.Lock()
	defer a.alarms.Unlock()
	forks, err := a.cfg.Store.Forks(ctx)
	if err != nil {
		return unavailable(err)
	}
	for _, fork := range forks {
		if err := a.reportFork(ctx, fork); err != nil {
			return err
		}
	}
	return nil
}

func (a *Authority) reportFork(ctx context.Context, fork store.Fork) error {
	child := fork.Certificate
	if !a.alarmed[child.Thumbprint] { // a journal that fails again and again repeats neither
		a.alarmed[child.Thumbprint] = true
		if a.cfg.Forked != nil {
			a.cfg.Forked()
		}
		a.cfg.Logger.WarnContext(ctx, "one certificate was renewed into two live ones with different keys: one of them may be a thief's",
			"client", child.ClientID, "parent", mtls.Thumbprint(child.RenewedFrom).String(), "suspension", string(fork.Suspension),
			"address", fork.Address, "correlation", fork.Correlation)
	}
	if err := a.record(ctx, audit.Event{
		Name: "renew.fork", Outcome: "granted", Client: child.ClientID, Serial: child.Serial,
		Thumbprint: mtls.Thumbprint(child.Thumbprint).String(), Address: fork.Address, Correlation: fork.Correlation,
		Detail: map[string]string{
			"renewed_from": mtls.Thumbprint(child.RenewedFrom).String(),
			"sibling":      mtls.Thumbprint(fork.Sibling).String(),
			"forked_at":    fork.At.Format(time.RFC3339),
		},
	}); err != nil {
		return err
	}
	if err := a.recordSuspension(ctx, fork); err != nil {
		return err
	}
	if err := a.cfg.Store.DropFork(ctx, child.Thumbprint); err != nil {
		return unavailable(err)
	}
	delete(a.alarmed, child.Thumbprint)
	return nil
}

// recordSuspension tells what the fork did to the client: what took effect already, or that it could not.
func (a *Authority) recordSuspension(ctx context.Context, fork store.Fork) error {
	event := audit.Event{
		Name: "client.suspend", Outcome: "granted", Reason: "renew_fork", Client: fork.Certificate.ClientID,
		Address: fork.Address, Correlation: fork.Correlation,
	}
	switch fork.Suspension {
	case store.SuspensionNone:
		return nil
	case store.SuspensionLastGrantor:
		event.Outcome, event.Reason = "refused", "last_grantor"
	}
	return a.record(ctx, event)
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
