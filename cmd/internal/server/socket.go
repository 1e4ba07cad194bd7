// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/tokens/issuer"
)

// socketName is the break-glass socket in the data folder.
const socketName = "admin.sock"

type callerUIDKey struct{}

// breakGlass is the server of the break-glass socket.
func (s *service) breakGlass() (*running, error) {
	cfg := s.adminConfig()
	cfg.Actor = func(ctx context.Context) (clientID, thumbprint, address, correlation string) {
		return "break-glass:" + strconv.Itoa(callerUID(ctx)), "", issuer.Address(ctx), issuer.CorrelationID(ctx)
	}
	api, err := admin.NewBreakGlass(cfg)
	if err != nil {
		return nil, err
	}
	l, err := s.listenSocket()
	if err != nil {
		return nil, err
	}
	s.onClose(func() error {
		return errors.Join(ignoreClosed(l.Close()), ignoreMissing(os.Remove(filepath.Join(s.cfg.Data, socketName))))
	})
	server := s.httpServer(s.entry("socket", s.onlyOurself(api)))
	server.ConnContext = socketContext
	return &running{name: "break-glass", server: server, listener: l}, nil
}

// listenSocket opens the break-glass socket: for whoever is this process's user on this machine, without a token, a
// certificate or a network. A socket left over by a killed process is replaced: the folder's lock says that it is dead.
func (s *service) listenSocket() (net.Listener, error) {
	name := filepath.Join(s.cfg.Data, socketName)
	if err := ignoreMissing(os.Remove(name)); err != nil {
		return nil, fmt.Errorf("replacing the old break-glass socket: %w", err)
	}
	l, err := listenUnix(name)
	if err != nil {
		return nil, fmt.Errorf("the break-glass socket %s: %w", name, err)
	}
	// Narrow before the first accept; the folder itself is 0700 already.
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("the break-glass socket: %w", err), l.Close())
	}
	return l, nil
}

// socketContext notes who is at the other end, which the kernel knows.
func socketContext(ctx context.Context, c net.Conn) context.Context {
	uid, err := peerUID(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerUIDKey{}, uid)
}

// recordSocket records every use of the socket, also a look at the status. It must work without a journal, so a record
// that cannot be written keeps nobody out.
func (s *service) recordSocket(r *http.Request, uid int, allowed bool) {
	e := audit.Event{
		Class: audit.Takeaway, // it must work, and be recorded, on a full disk
		Name:  "break-glass", Outcome: audit.Granted, Actor: "break-glass:" + strconv.Itoa(uid),
		Correlation: issuer.CorrelationID(r.Context()),
		Detail:      map[string]string{"method": r.Method, "path": r.URL.Path},
	}
	if !allowed {
		e.Class, e.Outcome, e.Reason = audit.Stranger, audit.Refused, "another_user"
	}
	s.record(r.Context(), e)
}

// callerUID is the user at the other end of the socket, -1 when the kernel did not say.
func callerUID(ctx context.Context) int {
	if uid, ok := ctx.Value(callerUIDKey{}).(int); ok {
		return uid
	}
	return -1
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// onlyOurself refuses every other user but root, whatever the socket's file mode says.
func (s *service) onlyOurself(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid := callerUID(r.Context())
		allowed := uid == 0 || uid == os.Geteuid()
		s.recordSocket(r, uid, allowed)
		if !allowed {
			refuse(w, http.StatusForbidden, "access_denied", "this socket is for the user that runs the service")
			return
		}
		r = r.WithContext(issuer.WithAddress(r.Context(), "socket uid="+strconv.Itoa(uid)))
		next.ServeHTTP(w, r)
	})
}
