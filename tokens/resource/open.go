// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/certbound/certbound/tokens"
)

// ErrDenied is the cause (context.Cause) with which a request's context ends whose token was revoked while the request
// was under way.
var ErrDenied = errors.New("resource: the token was revoked while its request was under way")

// maxOpen bounds the requests that a Guard with Denials lets be under way at once. What is remembered of each is small
// beside what net/http needs for it.
const maxOpen = 1 << 17

// Denials is what is revoked: a *tokens.DenyFeed or a *tokens.DenyList.
type Denials interface {
	// Denies reports whether a token is refused; it does not block.
	Denies(c *tokens.Claims, keyID string) bool
	// OnAdd has call called whenever more may be denied, from now on.
	OnAdd(call func())
}

// opened are the requests under way.
type opened struct {
	denials Denials
	logger  *slog.Logger

	mu    sync.Mutex
	ring  open // its neighbours are the first and the last; itself none
	count int
	limit int
}

// open is a request under way.
type open struct {
	before, after *open // of opened.mu
	claims        *tokens.Claims
	keyID         string
	remote        string

	mu       sync.Mutex
	response http.ResponseWriter // nil once the handler has returned
	cancel   context.CancelCauseFunc
	cut      bool
}

func newOpened(d Denials, logger *slog.Logger) *opened {
	o := &opened{denials: d, logger: logger, limit: maxOpen}
	o.ring.before, o.ring.after = &o.ring, &o.ring
	d.OnAdd(o.sweep)
	return o
}

// serveOpen calls next, and ends the request when its token is denied meanwhile: its context is cancelled, what next
// reads and writes fails, and the connection is closed, or with HTTP/2 the stream reset.
func (g *Guard) serveOpen(next http.Handler, w http.ResponseWriter, r *http.Request, e *open) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	e.response, e.cancel, e.remote = w, cancel, r.RemoteAddr
	err := g.open.enter(e)
	defer g.open.leave(e)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.allowed()
	next.ServeHTTP(w, r.WithContext(ctx))
	if g.open.leave(e) {
		panic(http.ErrAbortHandler) // whatever was written must not look complete
	}
}

// enter returns an error when too many requests are under way, or the token is denied by now: since it was judged, and
// before it could be found here.
func (o *opened) enter(e *open) error {
	if !o.push(e) {
		return &tokens.Error{
			Code:        tokens.CodeTemporarilyUnavailable,
			Description: "too many requests are under way",
			Reason:      "too_many_open",
		}
	}
	if o.denials.Denies(e.claims, e.keyID) {
		return &tokens.Error{
			Code:        tokens.CodeInvalidToken,
			Description: "the access token is not valid on this connection",
			Reason:      "denied",
		}
	}
	return nil
}

// push reports whether there was room.
func (o *opened) push(e *open) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count >= o.limit {
		return false
	}
	o.count++
	e.before, e.after = o.ring.before, &o.ring
	e.before.after, e.after.before = e, e
	return true
}

// leave is called when the handler has returned: from then on nothing touches its response. It reports whether the
// request was cut off.
func (o *opened) leave(e *open) bool {
	o.mu.Lock()
	if e.after != nil {
		o.count--
		e.before.after, e.after.before = e.after, e.before
		e.before, e.after = nil, nil
	}
	o.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.response = nil
	return e.cut
}

// sweep cuts off all requests whose token is denied by now.
func (o *opened) sweep() {
	var found []*open
	o.mu.Lock()
	for e := o.ring.after; e != &o.ring; e = e.after {
		if o.denials.Denies(e.claims, e.keyID) {
			found = append(found, e)
		}
	}
	o.mu.Unlock()
	for _, e := range found {
		if e.interrupt() {
			o.logger.LogAttrs(context.Background(), slog.LevelInfo, "request cut off", slog.String("reason", "denied"),
				slog.String("client_id", e.claims.ClientID), slog.String("remote", e.remote))
		}
	}
}

// interrupt cuts the request off, and reports whether it was under way and nobody had done so yet.
func (e *open) interrupt() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.response == nil || e.cut {
		return false
	}
	e.cut = true
	e.cancel(ErrDenied)
	// A handler that hangs on its connection does not see its context. Where a middleware hides the connection, it is
	// closed when the handler returns.
	over := time.Unix(1, 0)
	connection := http.NewResponseController(e.response)
	_ = connection.SetReadDeadline(over)
	_ = connection.SetWriteDeadline(over)
	return true
}
