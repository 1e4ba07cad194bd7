// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"net/http"
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
	return nil, errors.ErrUnsupported
}
