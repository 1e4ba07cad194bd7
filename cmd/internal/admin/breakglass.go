// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"

	"github.com/certbound/certbound/cmd/internal/audit"
)

// NewBreakGlass returns what is left when nothing else works, for a socket that only the service's own user can reach:
// below [Prefix], GET /status, POST /certificates/revoke, POST /clients/{id}/disable, POST /clients/{id}/invite for
// clients that hold scopes of the operators' API, and POST /tickets/reset. It asks for no token and no scope and waits
// for no second operator; Config.Actor names the caller "break-glass:" and its user id. Everything is recorded; what
// takes authority away holds also when it could not be.
func NewBreakGlass(cfg Config) (http.Handler, error) {
	if cfg.ResetTickets == nil {
		return nil, errors.New("admin: break-glass needs a way to reset the session tickets")
	}
	// Who can open the socket can read the database: there is no scope to be short of, and nobody else to wait for.
	cfg.Scopes, cfg.StillAuthorized, cfg.Approvals = nil, nil, 0
	a, err := newAPI(cfg)
	if err != nil {
		return nil, err
	}
	a.onlyOperators = true
	return a.router(a.breakGlassRoutes()), nil
}

func (a *api) breakGlassRoutes() []route {
	admin := []string{ScopeAdmin}
	return []route{
		{http.MethodGet, "/status", "status.show", admin, read(a.status)},
		{http.MethodPost, "/certificates/revoke", "cert.revoke", admin, change(a.revoke)},
		{http.MethodPost, "/clients/{id}/disable", "client.disable", admin, change(a.disableClient)},
		{http.MethodPost, "/clients/{id}/invite", clientInvite, admin, a.asked(clientInvite)},
		{http.MethodPost, "/tickets/reset", "tickets.reset", admin, change(a.resetTickets)},
	}
}

// restoreOperator gives the service its first operator again when nobody can make one any more: whoever redeems the code
// is it, and nobody who was it before.
func (a *api) restoreOperator(id string) *proposal {
	return &proposal{event: audit.Event{Client: id, Detail: map[string]string{"restored": "true"}}, do: func(ctx context.Context) (*outcome, error) {
		text, code, err := a.cfg.Authority.NewCode(id)
		if err != nil {
			return nil, unavailable(err)
		}
		client, err := a.cfg.Store.RestoreOperator(ctx, a.cfg.FirstOperator, code)
		if err != nil {
			return nil, clientError(id, err)
		}
		return &outcome{
			answer: invitation(client, text, code.ExpiresAt),
			undo:   func(context.Context) error { return nil }, // the code leaves with the answer or not at all
		}, nil
	}}
}

// resetTickets ends all TLS sessions: clients make full handshakes from then on.
func (a *api) resetTickets(*http.Request, *none) (*outcome, error) {
	a.cfg.ResetTickets()
	answer := &Change{Done: "session tickets reset"}
	return &outcome{answer: answer, events: []audit.Event{{}}, pending: func() { answer.AuditPending = true }}, nil
}
