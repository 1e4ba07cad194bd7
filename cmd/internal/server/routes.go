// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/authority"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
	"github.com/certbound/certbound/tokens/resource"
)

// The paths of the service. They are fixed: they never move under the issuer's path.
const (
	pathKeys       = "/.well-known/jwks.json"
	pathToken      = "/oauth2/token"
	pathIntrospect = "/oauth2/introspect"
	pathRevoke     = "/oauth2/revoke"
	pathDenied     = "/oauth2/denied"
	pathEnroll     = "/pki/enroll"
	pathRenew      = "/pki/renew"
	pathRoots      = "/pki/roots.pem"
	pathCRL        = "/crl"
	pathWhoami     = "/whoami"
)

// publicRouter serves those who have no certificate, on the listener that never asks for one.
func (s *service) publicRouter() http.Handler {
	r := s.router("public")
	for _, path := range s.issuer.MetadataPaths() {
		get(r, path, "metadata", s.issuer.MetadataHandler())
	}
	get(r, pathKeys, "jwks", s.publishedKeys())
	for _, guard := range []*resource.Guard{s.guard, s.feedGuard} {
		if path := guard.MetadataPath(); path != "" { // on the issuer's host, which our own resources are named after
			get(r, path, "resource_metadata", guard.MetadataHandler())
		}
	}
	for path, name := range map[string]string{pathToken: "token", pathIntrospect: "introspect", pathRevoke: "revoke"} {
		r.Handle(path, s.issuer.MisdirectedHandler(path)).Name(name)
	}
	s.shared(r)
	return s.entry("public", r)
}

// mtlsRouter serves those who come with a certificate, on the listener that asks for one.
func (s *service) mtlsRouter(operators http.Handler) http.Handler {
	r := s.router("mtls")
	token := s.issuer.TokenHandler()
	if s.cfg.Audit.Sync != "interval" { // else nobody waits for the journal, which expects nobody
		token = s.pace.wrap(token)
	}
	token = s.count(s.metrics.route("mtls", "token"), token)
	introspect := s.count(s.metrics.route("mtls", "introspect"), s.issuer.IntrospectionHandler())
	r.Handle(pathRevoke, s.issuer.RevocationHandler()).Name("revoke")
	handle(r, pathDenied, "denied", s.guardedFeed, http.MethodGet)
	post(r, pathRenew, "renew", s.renew)
	get(r, pathWhoami, "whoami", http.HandlerFunc(s.whoami))
	r.PathPrefix(admin.Prefix + "/").Handler(operators).Name("admin")
	s.shared(r)
	return s.entry("mtls", straight(pathToken, token, straight(pathIntrospect, introspect, r)))
}

// publishedKeys serves the key set. A replica that does not know whether a key was removed says so: whoever verifies goes by
// what it has for a bounded time then, and by what it was told anew for longer.
func (s *service) publishedKeys() http.Handler {
	keys := s.issuer.KeysHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := s.live()
		if err == nil {
			_, err = s.keys.keys(r.Context())
		}
		if err != nil {
			issuer.WriteError(w, r, s.identity.issuer, &tokens.Error{
				Code: tokens.CodeTemporarilyUnavailable, Reason: "no_keys", Err: again{err},
				Description: "what keys there are cannot be told now: try again",
			})
			return
		}
		keys.ServeHTTP(w, r)
	})
}

// shared are the paths that both listeners answer.
func (s *service) shared(r *mux.Router) {
	post(r, pathEnroll, "enroll", s.enroll)
	get(r, pathRoots, "roots", http.HandlerFunc(s.roots))
	get(r, pathCRL, "crl", http.HandlerFunc(s.crl))
}

// debugRouter serves the operator's monitoring, in plain HTTP on its own listener.
func (s *service) debugRouter() http.Handler {
	r := s.router("debug")
	get(r, "/metrics", "metrics", s.metrics.handler())
	get(r, "/healthz", "healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	}))
	get(r, "/readyz", "readyz", http.HandlerFunc(s.ready))
	return s.entry("debug", r)
}

// router is a router whose own refusals are JSON like everybody else's.
func (s *service) router(listener string) *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.Use(s.measure(listener))
	r.NotFoundHandler = s.measure(listener)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "not_found", "there is nothing at this path")
	}))
	return r
}

func get(r *mux.Router, path, name string, h http.Handler) {
	handle(r, path, name, h, http.MethodGet, http.MethodHead)
}

func post(r *mux.Router, path, name string, h http.HandlerFunc) {
	handle(r, path, name, h, http.MethodPost)
}

// handle routes a path's methods to h and refuses all others, saying which there are (RFC 9110, Section 15.5.6).
func handle(r *mux.Router, path, name string, h http.Handler, methods ...string) {
	r.Handle(path, h).Methods(methods...).Name(name)
	r.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		refuse(w, http.StatusMethodNotAllowed, "invalid_request", "this path does not answer to this method")
	}).Name(name)
}

const (
	certifyTime = 15 * time.Second // of a request for a certificate, until its transaction begins
	crlTime     = 10 * time.Second // of making the revocation list
)

// enroll redeems a one-time code.
func (s *service) enroll(w http.ResponseWriter, r *http.Request) {
	var req pki.EnrollRequest
	s.certify(w, r, &req, "enroll", func(ctx context.Context, from authority.Caller) (*pki.EnrollResponse, error) {
		if err := s.live(); err != nil {
			return nil, err
		}
		return s.authority.Enroll(ctx, req, from)
	})
}

// renew signs afresh for the client whose certificate the connection shows.
func (s *service) renew(w http.ResponseWriter, r *http.Request) {
	var req pki.RenewRequest
	s.certify(w, r, &req, "renew", func(ctx context.Context, from authority.Caller) (*pki.EnrollResponse, error) {
		client, peer, err := s.authenticateByCertificate(r)
		if err != nil {
			return nil, err
		}
		return s.authority.Renew(ctx, client, peer, req, from)
	})
}

// certify reads a JSON request, has it answered with a certificate and counts the result.
func (s *service) certify(w http.ResponseWriter, r *http.Request, into any, kind string,
	answer func(context.Context, authority.Caller) (*pki.EnrollResponse, error)) {
	// Who hangs up must not leave a redeemed code without its record, and a database that is silent keeps nobody for ever.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), certifyTime)
	defer cancel()
	res, err := (*pki.EnrollResponse)(nil), readJSON(w, r, into)
	if unreadable, ok := errors.AsType[*tokens.Error](err); ok {
		s.record(ctx, audit.Event{
			Class: audit.Stranger, Name: "cert." + kind, Outcome: audit.Refused, Reason: unreadable.Reason,
			Address: issuer.Address(ctx), Correlation: issuer.CorrelationID(ctx),
		})
	}
	if err == nil {
		res, err = answer(ctx, authority.Caller{Address: issuer.Address(ctx), Correlation: issuer.CorrelationID(ctx)})
	}
	if err != nil {
		s.metrics.certificate(kind, "refused")
		if failed, ok := errors.AsType[*tokens.Error](err); ok && failed.Code == tokens.CodeTemporarilyUnavailable {
			err = again{err}
		}
		issuer.WriteError(w, r, s.identity.issuer, err)
		return
	}
	s.limits.Spare(ctx) // a redeemed code is as good as a certificate
	s.metrics.certificate(kind, "granted")
	writeJSON(w, http.StatusOK, res)
}

// authenticateByCertificate finds whose certificate this is and then authenticates that client by the one
// function that everything else uses. The inventory only names the client; it proves nothing by itself.
func (s *service) authenticateByCertificate(r *http.Request) (string, *mtls.Peer, error) {
	// Without a certificate the peer is nil, and one that is not in the inventory names no client: both are
	// left to Authenticate, which refuses them and puts them on record.
	peer, _ := mtls.PeerFromRequest(r)
	row, err := s.folder.store.Certificate(r.Context(), peer.Thumbprint())
	if err != nil && !isNotFound(err) {
		return "", nil, &tokens.Error{Code: "temporarily_unavailable", Reason: "internal_failure", Err: err, Description: "try again"}
	}
	if _, err := s.renewals.Authenticate(r.Context(), row.ClientID, peer); err != nil {
		return "", nil, err
	}
	s.limits.Authenticated(r.Context(), row.ClientID, peer.Thumbprint())
	return row.ClientID, peer, nil
}

// roots hands out the root certificate.
func (s *service) roots(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = io.WriteString(w, s.authority.RootsPEM())
}

// crl hands out the revocation list as DER (RFC 5280, Section 4.2.1.13).
func (s *service) crl(w http.ResponseWriter, r *http.Request) {
	// Others wait for the list meanwhile, however patient this reader is.
	ctx, cancel := context.WithTimeout(r.Context(), crlTime)
	defer cancel()
	der, err := s.authority.CRL(ctx)
	if err != nil {
		s.log.Error("the revocation list could not be made", "error", err)
		refuse(w, http.StatusServiceUnavailable, "temporarily_unavailable", "the revocation list cannot be had now: try again")
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(der)
}

// ready says whether this service should be sent requests, and if not, why.
func (s *service) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	checks := map[string]string{"serving": "ok", "database": "ok", "journal": "ok", "certificate": "ok"}
	status := http.StatusOK
	fail := func(name, why string) { checks[name], status = why, http.StatusServiceUnavailable }
	if s.draining.Load() {
		fail("serving", "stopping")
	}
	if _, err := s.folder.store.Version(ctx); err != nil {
		fail("database", "unreachable")
	}
	if s.member != nil {
		checks["lease"] = "ok"
		if err := s.member.Live(); err != nil {
			fail("lease", err.Error())
		}
	}
	switch err := s.folder.journal.Err(); {
	case errors.Is(err, audit.ErrFull):
		fail("journal", "the disk is full: only what takes authority away is served")
	case err != nil:
		fail("journal", "cannot be written: nothing is granted")
	}
	if !time.Now().Before(s.own.Current().Leaf.NotAfter) {
		fail("certificate", "expired")
	}
	// A foreign authority in trouble is told here and costs no readiness: the last good state serves.
	maps.Copy(checks, s.trust.Health())
	writeJSON(w, status, checks)
}

// maxEnrollBody bounds a request for a certificate: the greatest one in base64, and its envelope.
const maxEnrollBody = 64 << 10

// readJSON reads one JSON object of known members and nothing behind it.
func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	malformed := func(reason, description string) error {
		return &tokens.Error{Code: "invalid_request", Reason: reason, Description: description}
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return malformed("content_type", "the body must be application/json")
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEnrollBody))
	if err != nil {
		return malformed("body_unreadable", "the body is too large or could not be read")
	}
	if err := admin.Decode(raw, into); err != nil {
		return malformed("malformed_json", "the body is not the JSON object that this path expects")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"server_error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the caller is gone: there is nobody to tell
}

// refuse answers what is no OAuth endpoint in the same form.
func refuse(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}
