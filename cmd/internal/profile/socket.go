// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// Socket calls the admin API of the break-glass socket, which asks for no certificate and no token: whoever may open
// it is an operator. It is safe for concurrent use and must be closed.
type Socket struct {
	path string
	http *http.Client
}

// NewSocket makes the client of the socket at path, which is DATA/admin.sock of a running service. It does not connect.
func NewSocket(path string) *Socket {
	return &Socket{path: path, http: &http.Client{
		Timeout:       callTimeout,
		CheckRedirect: noRedirect,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, path)
		}},
	}}
}

// longestSocketPath is what fits into a socket's address, without its final NUL.
const longestSocketPath = 107

// dialSocket connects to the socket at path. Where the path is longer than an address holds it goes through the open
// folder, as the service did when it made the socket; only Linux has such a way.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > longestSocketPath && runtime.GOOS == "linux" {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// Close closes the connections.
func (s *Socket) Close() { s.http.CloseIdleConnections() }

// Do calls a path of the admin API as Operator.Do does. A refusal is an *APIError, a socket that does not answer an
// *Error.
func (s *Socket) Do(ctx context.Context, method, path string, in, out any) error {
	err := call(ctx, s.http, method, "http://break-glass"+adminPath+path, in, out)
	_, refused := errors.AsType[*APIError](err)
	_, waits := errors.AsType[*AcceptedError](err)
	if err == nil || refused || waits || errors.Is(err, context.Canceled) {
		return err
	}
	hint := "look whether the service runs, and at its log"
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = "the service has it in its data folder, DATA/admin.sock, while it runs"
	case errors.Is(err, fs.ErrPermission):
		hint = "run it as the user that the service runs as"
	case errors.Is(err, syscall.EINVAL):
		hint = "the path of a socket has at most 107 bytes: name it from a folder nearer to it"
	}
	return &Error{Message: fmt.Sprintf("cannot talk to the service at the socket %s: %v", s.path, cause(err)), Hint: hint, Err: err}
}

// cause is what the system said, without the address that nobody typed.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
