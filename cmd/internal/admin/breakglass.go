// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// NewBreakGlass returns what is left when nothing else works, for a socket that only the service's own user can reach:
// below [Prefix], GET /status, POST /certificates/revoke, POST /clients/{id}/disable, POST /clients/{id}/invite for
// clients that hold scopes of the operators' API, POST /tickets/reset, POST /leases/reset, GET /keys and POST /keys/rotate. It asks for no token and no
// scope and waits for no second operator; Config.Actor names the caller "break-glass:" and its user id. Everything is
// recorded, and all of it works while the journal takes no records: those wait in the database.
func NewBreakGlass(cfg Config) (http.Handler, error) {
	if cfg.ResetTickets == nil {
		return nil, errors.New("admin: break-glass needs a way to reset the session tickets")
	}
	// Who can open the socket can read the database: there is no scope to be short of, and nobody else to wait for.
	cfg.Scopes, cfg.StillAuthorized, cfg.InForce, cfg.Approvals = nil, nil, nil, 0
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
		{http.MethodGet, "/audit/heads", "audit.heads", admin, read(a.auditHeads)},
		{http.MethodPost, "/certificates/revoke", "cert.revoke", admin, change(a.revoke)},
		{http.MethodPost, "/clients/{id}/disable", "client.disable", admin, change(a.disableClient)},
		{http.MethodPost, "/clients/{id}/invite", clientInvite, admin, a.asked(clientInvite)},
		{http.MethodPost, "/tickets/reset", "tickets.reset", admin, change(a.resetTickets)},
		{http.MethodPost, "/leases/reset", "leases.reset", admin, change(a.resetLeases)},
		{http.MethodGet, "/keys", "key.list", admin, read(a.listKeys)},
		{http.MethodPost, "/keys/rotate", keyRotate, admin, a.asked(keyRotate)},
	}
}

// restoreOperator gives the service its first operator again when nobody can make one any more: whoever redeems the code
// is it, and nobody who was it before.
func (a *api) restoreOperator(id string) *proposal {
	p := &proposal{event: audit.Event{Client: id, Detail: map[string]string{"restored": "true"}}}
	p.again = "certbound client invite " + shellWord(id) + " makes another code"
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		text, code, err := a.cfg.Authority.NewCode(id)
		if err != nil {
			return nil, unavailable(err)
		}
		client, err := tx.RestoreOperator(ctx, a.cfg.FirstOperator, code)
		if err != nil {
			return nil, clientError(id, err)
		}
		from, err := tx.DeniedBefore(ctx, id)
		if err != nil {
			return nil, unavailable(err)
		}
		return &outcome{answer: invitation(client, text, code.ExpiresAt), from: from}, nil
	}
	return p
}

// resetTickets ends all TLS sessions: clients make full handshakes from then on. It needs no database, unless servers share
// their tickets.
func (a *api) resetTickets(*http.Request, *none) (*deed, error) {
	a.cfg.ResetTickets()
	done := outcome{answer: &Change{Done: "session tickets reset"}, events: []audit.Event{{}}}
	if !a.cfg.SharedTickets {
		return &deed{takes: true, made: &done}, nil
	}
	return &deed{takes: true, do: func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.ResetTicketKeys(ctx); err != nil {
			return nil, unavailable(err)
		}
		made := done
		return &made, nil
	}}, nil
}

// resetLeases ends the wait for replicas that are gone, as others would do by themselves later. It takes from nobody who is
// there: a replica that renews its lease keeps it.
func (a *api) resetLeases(r *http.Request, _ *none) (*deed, error) {
	done := outcome{answer: &Change{Done: "no replicas share this database: there are no leases"}, events: []audit.Event{{}}}
	if a.cfg.ResetLeases == nil {
		return &deed{takes: true, made: &done}, nil
	}
	gone, err := a.cfg.ResetLeases(r.Context())
	if err != nil {
		return nil, unavailable(err)
	}
	done.answer = &Change{Done: "every replica renews its lease: none was removed"}
	if len(gone) > 0 {
		names := strings.Join(gone, ", ")
		done.answer = &Change{Done: "leases removed of replicas that are gone: " + names}
		done.events[0].Detail = map[string]string{"replicas": names}
	}
	return &deed{takes: true, made: &done}, nil
}
