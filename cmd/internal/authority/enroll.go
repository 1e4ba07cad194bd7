// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// errCode is the one answer to everything wrong with a code, so that nobody learns which ids exist.
var errCode = refusal("invalid_grant", "code_refused",
	"the enrolment code is not valid: it may be mistyped, expired, replaced or used already; ask the operator for a new one")

// Enroll redeems a one-time code for a certificate. The code's holder proves possession by signing the
// request with the key hidden in the code, so that a relayed or phished redemption certifies nothing but
// the holder's own key. The same code with the same key returns the same certificate, so that a lost
// answer burns nothing; with another key it is refused and recorded as a conflict.
//
// Errors are *tokens.Error. Nothing is stored for a refused request.
func (a *Authority) Enroll(ctx context.Context, req pki.EnrollRequest, from Caller) (*pki.EnrollResponse, error) {
	cert, err := a.redeem(ctx, req, from)
	if err != nil {
		return nil, a.refused(ctx, "cert.enroll", cert.ClientID, from, err)
	}
	return a.answer(cert)
}

// issued is the event of handing out a certificate, for the first time or again.
func issued(name string, cert store.Certificate, fresh bool, from Caller) audit.Event {
	event := audit.Event{
		Name: name, Outcome: audit.Granted, Client: cert.ClientID,
		Thumbprint: mtls.Thumbprint(cert.Thumbprint).String(), Serial: cert.Serial,
		Address: from.Address, Correlation: from.Correlation, Expires: cert.NotAfter,
	}
	if !fresh {
		event.Reason = "repeated"
		return event
	}
	// By these the row can be made again, when a database is restored from a backup that does not have it.
	event.Detail = map[string]string{
		"generation": strconv.FormatUint(cert.Generation, 10), "not_before": cert.NotBefore.UTC().Format(time.RFC3339),
		"key": base64.RawURLEncoding.EncodeToString(cert.KeyHash[:]),
	}
	return event
}

// redeem walks a redemption from its bytes to the row in the inventory and the record. The returned certificate names
// the client as soon as the code has proved genuine, also beside an error.
func (a *Authority) redeem(ctx context.Context, req pki.EnrollRequest, from Caller) (store.Certificate, error) {
	var none store.Certificate
	// All lengths are bounded before anything is looked up.
	id, der, sig, err := req.Decode()
	if err != nil {
		return none, malformed(err)
	}
	code, err := a.cfg.Store.Code(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return none, errCode
	}
	if err != nil {
		return none, unavailable(err)
	}
	if !pki.VerifyRedemption(code.PublicKey, a.cfg.Issuer, id, der, sig) {
		return none, errCode
	}
	none.ClientID = code.ClientID
	csr, hash, err := parseRequest(der)
	if err != nil {
		return none, err
	}
	if !code.UsedAt.IsZero() {
		cert, err := a.again(ctx, code, hash, from)
		if err == nil {
			err = a.record(ctx, issued("cert.enroll", cert, false, from))
		}
		return withClient(cert, code.ClientID), err
	}
	client, err := a.invited(ctx, code)
	if err != nil {
		return none, err
	}
	if err := a.checkKey(ctx, client.ID, hash); err != nil {
		return none, err
	}
	now := a.cfg.Now()
	profile, err := a.profile(client, now)
	if err != nil {
		return none, unavailable(err)
	}
	cert, err := a.sign(ctx, csr, profile, client)
	if err != nil {
		return none, err
	}
	// Signed first, redeemed after: a certificate that loses this race is not in the inventory, so it
	// authenticates nobody, and it is never returned.
	var stored store.Certificate
	err = a.change(ctx, func(tx *store.Store) ([]audit.Event, error) {
		var err error
		if stored, err = tx.Redeem(ctx, id, hash, cert, from.Address, now); err != nil {
			return nil, err
		}
		event := issued("cert.enroll", stored, stored.Thumbprint == cert.Thumbprint, from)
		if event.Detail != nil {
			event.Detail["code"] = hex.EncodeToString(id[:])
		}
		return []audit.Event{event}, nil
	})
	if err != nil {
		return none, a.redeemError(ctx, err, code, from)
	}
	return stored, nil
}

// again answers a code that was redeemed before.
func (a *Authority) again(ctx context.Context, code store.Code, hash [32]byte, from Caller) (store.Certificate, error) {
	if code.Void || !a.cfg.Now().Before(code.ExpiresAt) {
		return store.Certificate{}, errCode
	}
	if code.UsedKey != hash {
		return store.Certificate{}, a.conflict(ctx, code, from)
	}
	cert, err := a.cfg.Store.Certificate(ctx, code.Certificate)
	if errors.Is(err, store.ErrNotFound) {
		return store.Certificate{}, errCode // it expired so long ago that the inventory has forgotten it
	}
	if err != nil {
		return store.Certificate{}, unavailable(err)
	}
	if !cert.RevokedAt.IsZero() || !a.cfg.Now().Before(cert.NotAfter) {
		return store.Certificate{}, errCode
	}
	if _, err := a.invited(ctx, code); err != nil {
		return store.Certificate{}, err
	}
	// The key may have been reported compromised meanwhile, with another certificate that it also has.
	if err := a.checkKey(ctx, code.ClientID, hash); err != nil {
		return store.Certificate{}, err
	}
	return cert, nil
}

// invited finds the client of a code that may still be redeemed.
func (a *Authority) invited(ctx context.Context, code store.Code) (store.Client, error) {
	if code.Void || !a.cfg.Now().Before(code.ExpiresAt) {
		return store.Client{}, errCode
	}
	client, err := a.cfg.Store.Client(ctx, code.ClientID)
	if errors.Is(err, store.ErrNotFound) {
		return store.Client{}, errCode
	}
	if err != nil {
		return store.Client{}, unavailable(err)
	}
	if client.Disabled || client.Generation != code.Generation {
		return store.Client{}, errCode
	}
	return client, nil
}

// redeemError maps what the transaction found to what the caller may know.
func (a *Authority) redeemError(ctx context.Context, err error, code store.Code, from Caller) error {
	switch {
	case errors.Is(err, store.ErrCodeUsed):
		used, readErr := a.cfg.Store.Code(ctx, code.ID)
		if readErr != nil {
			used = code
		}
		return a.conflict(ctx, used, from)
	case errors.Is(err, store.ErrCodeExpired), errors.Is(err, store.ErrCodeVoid), errors.Is(err, store.ErrNotFound),
		errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrClientDisabled), errors.Is(err, store.ErrGeneration):
		return errCode
	case errors.Is(err, store.ErrKeyBlocked):
		return errKeyBlocked
	case errors.Is(err, store.ErrKeyTaken):
		return errKeyTaken
	}
	if e, ok := errors.AsType[*tokens.Error](err); ok {
		return e
	}
	return unavailable(err)
}

// conflict is the signal that two parties hold one code: recorded with both addresses, refused as any
// other wrong code.
func (a *Authority) conflict(ctx context.Context, code store.Code, from Caller) error {
	a.cfg.Logger.WarnContext(ctx, "an enrolment code was presented with a second key",
		"client", code.ClientID, "address", from.Address, "first_address", code.UsedFrom, "correlation", from.Correlation)
	err := a.record(ctx, audit.Event{
		Class: audit.Decision, Name: "enroll.conflict", Outcome: audit.Refused, Reason: "code_used_with_another_key", Client: code.ClientID,
		Address: from.Address, Correlation: from.Correlation,
		Personal: map[string]string{"first_address": code.UsedFrom},
	})
	if err != nil {
		return err
	}
	return &tokens.Error{Code: errCode.Code, Description: errCode.Description, Reason: "code_used_with_another_key"}
}

// refused records a refusal and hands back the error the caller may see.
func (a *Authority) refused(ctx context.Context, name, clientID string, from Caller, err error) error {
	var e *tokens.Error
	if !errors.As(err, &e) {
		e = unavailable(err)
	}
	if e.Err != nil {
		level := slog.LevelDebug
		if e.Status() >= 500 {
			level = slog.LevelError
		}
		a.cfg.Logger.Log(ctx, level, "a certificate request failed", "event", name, "client", clientID,
			"error", e.Err, "correlation", from.Correlation)
	}
	// What takes nothing away and gives nothing may be lost when the journal fails: the caller is
	// refused either way.
	class := audit.Refusal
	if clientID == "" {
		class = audit.Stranger // nothing that was sent proved to be anybody's
	}
	if recErr := a.record(ctx, audit.Event{
		Class: class, Name: name, Outcome: audit.Refused, Reason: e.Reason, Client: clientID,
		Address: from.Address, Correlation: from.Correlation,
	}); recErr != nil {
		a.cfg.Logger.ErrorContext(ctx, "a refusal could not be recorded", "event", name, "error", recErr)
	}
	return e
}

// malformed is the refusal of a request whose members cannot be read.
func malformed(err error) *tokens.Error {
	return &tokens.Error{
		Code: "invalid_request", Reason: "malformed_member", Err: err,
		Description: "a member of the request is missing, too long or not base64url without padding",
	}
}

// parseRequest reads the certificate request and hashes its key.
func parseRequest(der []byte) (*x509.CertificateRequest, [32]byte, error) {
	csr, err := pki.ParseRequest(der)
	if err != nil {
		return nil, [32]byte{}, &tokens.Error{
			Code: "invalid_request", Reason: "csr_refused", Err: fmt.Errorf("reading the request: %w", err),
			Description: "the certificate request is not acceptable: it needs a valid signature, a P-256, P-384, Ed25519 or RSA 2048 to 4096 key, and no names of its own",
		}
	}
	hash, err := pki.KeyHash(csr.PublicKey)
	if err != nil {
		return nil, hash, unavailable(err)
	}
	return csr, hash, nil
}

// withClient names the client of a certificate that may not exist.
func withClient(c store.Certificate, clientID string) store.Certificate {
	c.ClientID = clientID
	return c
}
