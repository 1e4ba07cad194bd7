// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package audit writes the journal of decisions: what was granted or refused, to whom and why, one JSON object a line,
// in a file that is only appended to. It is for the program, which hands every decision here before the answer leaves.
//
// An event that could not be written is an error, and the caller refuses what it was about to grant. A line is whole or
// absent. The package holds no tokens, codes or keys: its callers give identifiers only.
package audit

import (
	"context"
	"time"
)

// The two outcomes of a decision.
const (
	Granted = "granted"
	Refused = "refused"
)

// Event is one decision. Empty members are left out of the line. Strings are bounded: what is longer than
// MaxString bytes is cut, and the line says "truncated":true.
type Event struct {
	Time        time.Time         // zero: now
	ID          string            // empty: made by the journal from its start and a sequence number
	Name        string            // what was decided: token.issue, client.add, cert.renew, …
	Outcome     string            // Granted or Refused
	Reason      string            // machine reason of a refusal, such as thumbprint_mismatch
	Client      string            // the client that the decision is about
	Actor       string            // the client that asked, where that is another one
	Thumbprint  string            // of the certificate presented, base64url
	Address     string            // remote address of the caller
	Correlation string            // X-Correlation-Id of the request
	TokenID     string            // jti
	Serial      string            // of the certificate issued or revoked, decimal
	Resource    string            // URI of the resource that the decision is about
	Scope       []string          // at most MaxList entries are written
	Audience    []string          // likewise
	Expires     time.Time         // of the token, code or certificate
	Detail      map[string]string // anything else; keys in order, at most MaxList entries
}

// Log is an open journal. It is safe for concurrent use.
type Log struct{}

// Open makes a new segment in the folder dir, which is created (0700) when it is missing.
func Open(dir string) (*Log, error) { return nil, nil }

// Record appends one line.
func (l *Log) Record(ctx context.Context, e Event) error { return nil }

// Close closes the segment; Record fails from then on.
func (l *Log) Close() error { return nil }
