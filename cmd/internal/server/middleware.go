// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/gorilla/mux"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// maxBody bounds every request's body before anything reads it; handlers bound theirs further. The largest that one
// takes is a foreign CA with its revocation list.
const maxBody = 1<<20 + 4<<10

// maxDrain is how much of a body that nobody wanted is read before an HTTP/2 answer leaves: some clients lose the
// answer when their stream is reset while they still send.
const maxDrain = 512 << 10

// entry is the first of ours to see a request: it bounds the body, gives the request its correlation id,
// and turns a panic into an answer instead of a cut connection.
func (s *service) entry(listener string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		correlation := newCorrelation()
		w.Header()[issuer.CorrelationHeader] = []string{correlation}
		body := r.Body
		r.Body = http.MaxBytesReader(w, body, maxBody)
		ctx := issuer.WithCaller(r.Context(), host(r.RemoteAddr), correlation)
		r = r.WithContext(ctx)
		sw := &statusWriter{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.metrics.panics.Inc()
			s.log.Error("a request handler panicked", "listener", listener, "path", r.URL.Path,
				"panic", p, "stack", string(debug.Stack()), "correlation", correlation)
			if sw.status != 0 {
				// Half an answer must not look like a whole one: the connection is cut.
				panic(http.ErrAbortHandler)
			}
			issuer.WriteError(w, r, s.identity.issuer, &tokens.Error{
				Code: "server_error", Reason: "panic", Description: "the request failed inside the service",
			})
		}()
		next.ServeHTTP(sw, r)
		if sw.status >= http.StatusInternalServerError {
			s.limits.Spare(ctx) // what we could not answer is not held against the caller's address
		}
		if r.ProtoMajor == 2 {
			_, _ = io.CopyN(io.Discard, body, maxDrain) // whatever comes of it, the answer stands
		}
	})
}

// measure counts requests by route, never by the path that the caller typed.
func (s *service) measure(listener string) mux.MiddlewareFunc {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			route := "unknown"
			if m := mux.CurrentRoute(r); m != nil {
				if name := m.GetName(); name != "" {
					route = name
				}
			}
			s.count(s.metrics.route(listener, route), next).ServeHTTP(w, r)
		})
	}
}

// count counts the requests of a route.
func (s *service) count(route *routeMetrics, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw, ok := w.(*statusWriter) // entry's: one is enough on the way to a token
		if !ok {
			sw = &statusWriter{ResponseWriter: w}
		}
		next.ServeHTTP(sw, r)
		route.request(cmp.Or(sw.status, http.StatusOK), time.Since(start))
	})
}

// straight hands requests of exactly this path to h, and all others to next. A router matches patterns one after the
// other and copies the request twice, which is as much work as everything else before a token is signed.
func straight(path string, h, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == path {
			h.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// statusWriter remembers the status of an answer, 0 as long as there is none.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status and passes it on.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write begins the answer when WriteHeader did not.
func (w *statusWriter) Write(p []byte) (int, error) {
	w.status = cmp.Or(w.status, http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// newCorrelation names a request so that an operator can find its record from the answer's header.
func newCorrelation() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// host is the address without its port.
func host(remote string) string {
	h, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return h
}
