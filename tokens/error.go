// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import "net/http"

// Registered error codes (RFC 6749, Section 5.2; RFC 6750, Section 3.1; RFC 8707, Section 2).
const (
	CodeInvalidRequest         = "invalid_request"
	CodeInvalidClient          = "invalid_client"
	CodeInvalidGrant           = "invalid_grant"
	CodeUnauthorizedClient     = "unauthorized_client"
	CodeUnsupportedGrantType   = "unsupported_grant_type"
	CodeInvalidScope           = "invalid_scope"
	CodeInvalidTarget          = "invalid_target"
	CodeInvalidToken           = "invalid_token"
	CodeInsufficientScope      = "insufficient_scope"
	CodeServerError            = "server_error"
	CodeTemporarilyUnavailable = "temporarily_unavailable"
)

// Error is a refusal. Code, Description and Scope may be shown to the caller; Reason and Err are for the log and
// the audit record, and never leave the server. None of them ever holds a token.
type Error struct {
	Code        string // a registered code
	Description string // for the developer of the other side; printable ASCII without quotes and backslashes
	Reason      string // what exactly was wrong, as a snake_case word, for example thumbprint_mismatch
	Scope       string // the scope that would have been needed, space-separated, for insufficient_scope
	Err         error  // the cause, if any
}

// Error returns code, reason and cause, for logs.
func (e *Error) Error() string {
	text := e.Code
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Status returns the HTTP status that goes with the code. A code that is not listed above is an error of ours:
// 500.
func (e *Error) Status() int {
	switch e.Code {
	case CodeInvalidRequest, CodeInvalidGrant, CodeUnauthorizedClient, CodeUnsupportedGrantType, CodeInvalidScope,
		CodeInvalidTarget:
		return http.StatusBadRequest
	case CodeInvalidClient, CodeInvalidToken:
		return http.StatusUnauthorized
	case CodeInsufficientScope:
		return http.StatusForbidden
	case CodeTemporarilyUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
