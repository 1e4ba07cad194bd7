// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

// Gate says whether this server may decide at all. Where several share a database, one that has lost touch with it must
// not: somebody else may have taken away what it would give. Errors of both methods refuse a request with
// temporarily_unavailable; one with a method RetryAfter() time.Duration says for how long. Both are called concurrently,
// for every token, and must answer from memory.
type Gate interface {
	// Live returns nil as long as this server may decide.
	Live() error
	// Pass is Live for a decision that has been recorded and is about to leave. What changes after Pass returned counts
	// as not yet in force here until the passage was left. The Registry is read once more after it, so what Pass knew to be
	// in force the Registry must know too.
	Pass() (Passage, error)
}

// Passage is one decision on its way out.
type Passage interface {
	// Leave says that the answer has been written, or will never be. It is called once.
	Leave()
}

// writeBound is how long an answer may take from the gate into the hands of the system, where there is a Gate. A client
// that does not read must not keep a revocation from being in force.
const writeBound = time.Second

// noLease is the reason of what a Gate refused.
const noLease = "no_lease"

// live refuses what enters while the Gate is closed.
func (s *Server) live() *tokens.Error {
	if s.gate == nil {
		return nil
	}
	if err := s.gate.Live(); err != nil {
		return unavailable(noLease, err)
	}
	return nil
}

// refuseUnrecorded refuses what entered while the Gate was closed. That is not recorded: nothing was looked at, so the
// record would say no more than that this server was closed, once for every request of every client, in a journal that
// others' refusals need. It is counted, and logged once a minute.
func (s *Server) refuseUnrecorded(ctx context.Context, d Decision, e *tokens.Error) error {
	d.ClientID = claimed(d.ClientID)
	return s.refused(ctx, d, e)
}

// pass judges a decision again, after its record and under a passage of the Gate, and leaves the passage if it refuses.
// The passage is nil without a Gate.
func (s *Server) pass(ctx context.Context, r *Request, decided *Client, t *target, now time.Time) (Passage, *tokens.Error) {
	if s.gate == nil {
		return nil, s.judgeAgain(ctx, r, decided, t, now)
	}
	passage, err := s.gate.Pass()
	if err != nil {
		return nil, unavailable(noLease, err)
	}
	held := false
	defer func() {
		if !held { // also when the Registry panics: a passage that nobody leaves closes the Gate for good
			passage.Leave()
		}
	}()
	if refused := s.judgeAgain(ctx, r, decided, t, now); refused != nil {
		return nil, refused
	}
	held = true
	return passage, nil
}

// judgeAgain judges a decision on what the registry knows now. The record may have waited for the disk, longer than a
// revocation takes to return. Everything comes from memory: the chain was built, and is held to its dates and to what is
// revoked; so this costs next to nothing.
func (s *Server) judgeAgain(ctx context.Context, r *Request, decided *Client, t *target, now time.Time) *tokens.Error {
	client, _, _, refused := s.authenticate(ctx, r.proof(), now)
	if refused != nil || client == decided { // a registry changes a client by another value
		return refused
	}
	again, refused := narrow(client.Grants, r.Resources, r.Scope)
	if refused == nil && !(slices.Equal(again.audience, t.audience) && slices.Equal(again.scope, t.scope)) {
		return unavailable("grants_changed", nil)
	}
	return refused
}

// Done says that the answer has been written, or will never be. Whoever calls Issue on a Server with a Gate must call it,
// and no later than about a second after: until then no change counts as in force here. It may be called again, but not
// concurrently.
func (r *Response) Done() {
	if p := r.passage; p != nil {
		r.passage = nil
		p.Leave()
	}
}

// deliver writes what was decided, whose passage the caller leaves afterwards; nil without a Gate. With one it ends only
// when the system has the whole answer, or when none of what is missing can leave any more because the connection was
// broken off. With HTTP/2 the last frame may still wait behind those of other streams of the connection, for as long as
// http.HTTP2Config.WriteByteTimeout lets a connection stand that takes nothing.
func deliver(w http.ResponseWriter, r *http.Request, passage Passage, contentType string, body []byte) {
	if passage == nil {
		writeUnkept(w, r, http.StatusOK, contentType, body)
		return
	}
	control := http.NewResponseController(w)
	if err := control.SetWriteDeadline(time.Now().Add(writeBound)); err != nil {
		panic(http.ErrAbortHandler) // nothing has been written, and nothing would bound it
	}
	// The deadline of an HTTP/2 stream frees nobody who waits for a connection that takes nothing.
	late := time.AfterFunc(writeBound, func() { mtls.BreakOff(r) })
	defer late.Stop()
	writeUnkept(w, r, http.StatusOK, contentType, body)
	if err := control.Flush(); err != nil {
		mtls.BreakOff(r)
		panic(http.ErrAbortHandler) // ends the connection, or the stream, also where BreakOff cannot
	}
	// Where the server has no timeout of its own, the deadline would meet the next answer of this connection.
	_ = control.SetWriteDeadline(time.Time{})
}

// setRetryAfter says when to come back (RFC 9110, Section 10.2.3): what the error says in whole seconds, at least one, and
// after one second where the Gate was closed and said nothing.
func setRetryAfter(h http.Header, e *tokens.Error, err error) {
	var timed interface{ RetryAfter() time.Duration }
	wait := time.Duration(0)
	if errors.As(err, &timed) {
		wait = max(time.Second, timed.RetryAfter())
	} else if e.Reason == noLease {
		wait = time.Second
	}
	if wait > 0 {
		h.Set("Retry-After", strconv.FormatFloat(math.Ceil(wait.Seconds()), 'f', 0, 64))
	}
}
