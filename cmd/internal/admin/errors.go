// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/tokens"
)

// The codes are registered ones: RFC 6749, Section 5.2; RFC 6750, Section 3.1; RFC 7591, Section 3.2.2; RFC 8707,
// Section 2. What an operator
// needs beyond them is in the status, the description and the hint.
const (
	codeRequest      = "invalid_request"
	codeMetadata     = "invalid_client_metadata"
	codeScope        = "invalid_scope"
	codeTarget       = "invalid_target"
	codeToken        = "invalid_token"
	codeInsufficient = "insufficient_scope"
	codeUnavailable  = "temporarily_unavailable"
)

// Error is a refusal: an HTTP status and the members of the answer, of which Scope is only what an insufficient_scope
// misses. Err is for the log only.
type Error struct {
	Status      int
	Code        string
	Description string
	Hint        string
	Scope       string
	Err         error
}

// Error returns the code and the description; the hint is the answer's business.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Code + ": " + e.Description + ": " + e.Err.Error()
	}
	return e.Code + ": " + e.Description
}

// Unwrap returns the cause that never leaves the process.
func (e *Error) Unwrap() error { return e.Err }

func invalidRequest(description, hint string, err error) *Error {
	return &Error{Status: http.StatusBadRequest, Code: codeRequest, Description: description, Hint: hint, Err: err}
}

func invalidMetadata(hint, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: codeMetadata, Description: fmt.Sprintf(format, args...), Hint: hint}
}

func notFound(description, hint string) *Error {
	return &Error{Status: http.StatusNotFound, Code: codeRequest, Description: description, Hint: hint}
}

func conflict(code, description, hint string) *Error {
	return &Error{Status: http.StatusConflict, Code: code, Description: description, Hint: hint}
}

func unavailable(err error) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Code: codeUnavailable,
		Description: "the service cannot do this now", Hint: "try again; the service's log names the cause", Err: err}
}

// notEverywhere answers a change that was made and is not known to be in force at every replica yet.
func notEverywhere(err *outbox.UnsettledError) *Error {
	by := err.By.UTC().Format(time.RFC3339Nano)
	return &Error{Status: http.StatusServiceUnavailable, Code: codeUnavailable, Err: err,
		Description: "committed, effective by " + by,
		Hint:        "it holds from then on at every replica; repeat it to be told when it does"}
}

// unknown answers a change of which nobody knows whether it was made.
func unknown(err error) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Code: codeUnavailable, Err: err,
		Description: "it is unknown whether the change was made: the database did not say", Hint: "repeat it: what was made already is not made twice"}
}

// unrecorded answers a change that was made and whose record waits: what it gave must not be used before that is written.
func unrecorded(err error, again string) *Error {
	hint := "it is recorded as soon as the journal works again, which the service's log tells: then "
	return &Error{Status: http.StatusServiceUnavailable, Code: codeUnavailable, Err: err,
		Description: "the change was made, but it could not be recorded, so that its answer is kept back",
		Hint:        hint + cmp.Or(again, "try again")}
}

// notAuthorized refuses a caller whose token is not worth any more what it was when it was let in.
func notAuthorized(err error) *Error {
	if failed, ok := errors.AsType[*tokens.Error](err); ok && failed.Status() >= http.StatusInternalServerError {
		return unavailable(err)
	}
	return &Error{Status: http.StatusUnauthorized, Code: codeToken, Err: err,
		Description: "the token is not valid any more", Hint: "ask an operator whether this client or its certificate was disabled or revoked"}
}

// clientError turns what the store says about a client into an answer.
func clientError(id string, err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	if taken, ok := errors.AsType[*store.NameTakenError](err); ok {
		return conflict(codeMetadata,
			fmt.Sprintf("the name '%s' belongs to client '%s'", printable(taken.Name), printable(taken.ClientID)),
			"a name belongs to one client: choose another, or remove that client first")
	}
	if reserved, ok := errors.AsType[*store.ReservedError](err); ok {
		return conflict(codeMetadata, fmt.Sprintf("the id '%s' belonged to a removed client whose last credentials may still be valid", id),
			"it is free from "+reserved.Until.UTC().Format(time.RFC3339)+"; choose another id meanwhile")
	}
	if taken, ok := errors.AsType[*store.CertificateTakenError](err); ok {
		return conflict(codeMetadata, fmt.Sprintf("the certificate is registered for client '%s'", printable(taken.ClientID)),
			"a certificate belongs to one client: make a key and a certificate for each")
	}
	if taken, ok := errors.AsType[*store.AssertionKeyTakenError](err); ok {
		return conflict(codeMetadata, fmt.Sprintf("client '%s' signs its assertions with the key '%s'", printable(taken.ClientID), printable(taken.KeyID)),
			"a key belongs to one client: make one for each")
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return notFound(fmt.Sprintf("no client '%s'", printable(id)), "certbound client list shows all")
	case errors.Is(err, store.ErrExists):
		return conflict(codeMetadata, fmt.Sprintf("client '%s' exists", id),
			"certbound client show "+id+" shows it; certbound client invite "+id+" makes it a new code")
	case errors.Is(err, store.ErrUnknownTrust):
		return invalidMetadata("certbound trust list shows all; certbound trust add NAME --ca FILE adds one", "no such trust")
	case errors.Is(err, store.ErrKeyTaken):
		return conflict(codeMetadata, "the certificate's key belongs to another client", "a key belongs to one client: make one for each")
	case errors.Is(err, store.ErrKeyBlocked):
		return conflict(codeMetadata, "the key was reported compromised", "make a new key, and a new certificate where the client has one")
	case errors.Is(err, store.ErrNotEnrolled):
		return conflict(codeRequest, fmt.Sprintf("client '%s' needs no code: our CA does not vouch for it", id),
			"certbound client show "+id+" shows who does")
	case errors.Is(err, store.ErrNotPinned):
		return conflict(codeRequest, fmt.Sprintf("client '%s' has no certificates of its own registered here", id),
			"certbound client show "+id+" shows what vouches for it")
	case errors.Is(err, store.ErrLastGrantor):
		return conflict(codeRequest, fmt.Sprintf("'%s' is the last client that may give operators' rights", id),
			"give another one the scope "+ScopeAdmin+" or "+ScopeGrant+", and have it enrol, first")
	case errors.Is(err, store.ErrClientDisabled):
		return conflict(codeRequest, fmt.Sprintf("client '%s' is disabled", id), "certbound client enable "+id)
	}
	return unavailable(err)
}

// resourceError turns what the store says about a resource into an answer.
func resourceError(uri string, err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	if used, ok := errors.AsType[*store.InUseError](err); ok {
		return conflict(codeRequest, fmt.Sprintf("resource '%s' is in use by %s", printable(uri), strings.Join(used.ClientIDs, ", ")),
			"certbound client remove each of them first")
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return notFound(fmt.Sprintf("no resource '%s'", printable(uri)), "certbound resource list shows all")
	case errors.Is(err, store.ErrExists):
		return conflict(codeTarget, fmt.Sprintf("resource '%s' exists", printable(uri)), "certbound resource list shows it")
	case errors.Is(err, store.ErrBuiltIn):
		return conflict(codeTarget, fmt.Sprintf("'%s' is part of the service", printable(uri)), "it cannot be removed")
	}
	return unavailable(err)
}

// trustError turns what the store says about a trust into an answer.
func trustError(name string, err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	if used, ok := errors.AsType[*store.InUseError](err); ok {
		return conflict(codeRequest, fmt.Sprintf("trust '%s' vouches for %s", printable(name), strings.Join(used.ClientIDs, ", ")),
			"certbound client remove each of them first")
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return notFound(fmt.Sprintf("no trust '%s' in the registry", printable(name)),
			"certbound trust list shows all; those of a file are changed in the configuration")
	case errors.Is(err, store.ErrExists):
		return conflict(codeRequest, fmt.Sprintf("trust '%s' exists", printable(name)), "certbound trust list shows it")
	}
	return unavailable(err)
}

// approvalError turns what the store says about a request that waits into an answer.
func approvalError(err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrPendingExpired):
		return notFound("no such request waits", "it was confirmed, rejected or has expired; certbound approval list shows all")
	case errors.Is(err, store.ErrSamePerson):
		return &Error{Status: http.StatusForbidden, Code: codeRequest, Err: err,
			Description: "who asked for it cannot confirm it", Hint: "another operator runs certbound approval confirm"}
	case errors.Is(err, store.ErrClientDisabled):
		return &Error{Status: http.StatusForbidden, Code: codeRequest, Err: err,
			Description: "you are no operator any more", Hint: "ask another operator"}
	case errors.Is(err, store.ErrTooManyPending):
		return conflict(codeRequest, "too many requests wait already", "certbound approval list shows them: confirm or reject some")
	}
	return unavailable(err)
}
