// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package admin is the operators' HTTP API below /admin/v1 and the rules of registration: which client ids, names, scopes
// and resources may be registered at all. It is for the program's server, which mounts it behind its own resource guard:
// this package trusts that every request it sees came with a verified token, asks the server who the actor is and which
// scopes it holds, and holds every route against those.
//
// It refuses what is not exactly one JSON object of known members, what the caller's scopes do not cover, names that are
// reserved or belong to another client, scopes and resources that nobody declared, resources that could be taken for the
// service itself, foreign CAs that are our own, and any change that gives authority and could not be recorded. What takes
// authority away holds even when the journal fails. Where two operators are asked for, what gives operators' rights or
// changes a trust waits for the second.
package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens"
)

// Prefix is where the API lives on the mtls listener; the issuer followed by Prefix is its resource.
const Prefix = "/admin/v1"

// ScopePrefix begins the scopes that only the API's own resource declares.
const ScopePrefix = "certbound:"

// Pages of lists.
const (
	defaultPage = 100
	maxPage     = 500
)

// Authority is the part of the certificate authority that operators reach.
type Authority interface {
	// NewCode makes a one-time enrolment code: its text for the caller, its public half for the store.
	NewCode(clientID string) (text string, code store.Code, err error)
	// Revoke takes certificates away in the transaction tx, in force when that is committed.
	Revoke(ctx context.Context, tx *store.Store, s store.Selection, reason pki.Reason) (store.Revocation, error)
}

// Recorder puts decisions where they cannot be lost, before the answer leaves: an outbox.Box.
type Recorder interface {
	// Change makes a change together with its records. With audit.Takeaway it is made also when the record has to wait:
	// then pending is true. With audit.Decision pending beside an error says that the change holds all the same.
	Change(ctx context.Context, class audit.Class, f func(tx *store.Store) ([]audit.Event, error)) (pending bool, err error)
	// Record writes a decision that changed nothing.
	Record(ctx context.Context, e audit.Event) error
}

// Config is what the API is made of. Store, Authority, Recorder, Issuer, TrustDomain, Actor and Published are required.
type Config struct {
	Store     *store.Store
	Authority Authority
	Recorder  Recorder

	// Issuer is the issuer identifier, TrustDomain the SPIFFE trust domain of our clients.
	Issuer, TrustDomain string
	// Reserved are the service's own DNS names and addresses, besides localhost and the loopback ones.
	Reserved []string
	// Endpoints are addresses that no resource may equal or be a prefix of, besides the issuer.
	Endpoints []string
	// MaxTokenTTL is the longest that a token lives here, and so what a client may be given: 0 stands for one hour.
	MaxTokenTTL time.Duration
	// Version is shown by GET /status.
	Version string

	// Actor says who asks, from the request's context: client id, thumbprint of its certificate, address of its
	// connection, correlation id of the request.
	Actor func(context.Context) (clientID, thumbprint, address, correlation string)
	// Scopes says what the caller may do, from the request's context: those of the verified token that the client still
	// holds. Nil stands for certbound:admin at every request. NewBreakGlass does not ask.
	Scopes func(context.Context) []string
	// StillAuthorized says whether whoever asks may still do so, from the request's context: whether its client and its
	// certificate are what they were when its token was let in. It is asked before every change, and may answer from memory.
	// Any error refuses; one that is a *tokens.Error of the service's own failing does so with 503. Nil is not asked, and
	// NewBreakGlass does not ask.
	StillAuthorized func(context.Context) error
	// InForce is that question asked of the transaction in which a change is made, and of nothing else: whether the caller's
	// client and certificate are in force there, as function InForce tells, and which of its scopes it holds there. Errors are
	// those of StillAuthorized. It must be given where Scopes is. NewBreakGlass does not ask.
	InForce func(ctx context.Context, tx *store.Store) (scopes []string, err error)
	// Approvals is how many operators it takes to give scopes of this API, or credentials to who holds them, and to
	// change a trust: 2, or 0 or 1 for one. Two are asked for from the first change on that finds two clients who can
	// give scopes of this API, since the first operator has nobody to ask; and then always, since one who may revoke the
	// others would otherwise be rid of them.
	Approvals int

	// FirstOperator is the client that break-glass registers anew when nobody can give scopes of this API any more. New
	// does not use it.
	FirstOperator store.Client
	// OwnCAs are the service's own CA certificates, which no trust may hold.
	OwnCAs []*x509.Certificate
	// FileTrusts are the names of the trusts that the configuration's files hold.
	FileTrusts []string
	// TrustHealth says for each trust, by "trust:" and its name, "ok" or what is wrong. Nil: not known.
	TrustHealth func() map[string]string
	// Published returns what is to be denied when these public keys are compromised, given by the hashes of their
	// SubjectPublicKeyInfo, because of certificates and keys that clients publish elsewhere, so that no table has them: as far
	// as it knows, from memory. store.Deny fills in times.
	Published func(keys [][sha256.Size]byte) []tokens.Denial
	// ResourceMetadata is the URL of the API's metadata, named in its challenges (RFC 9728, Section 5.1). Empty: there are none.
	ResourceMetadata string
	// Journal is what is shown of the journal. Nil: there is none to be seen.
	Journal Journal
	// Durability is what a revocation's answer says of the database. Nil: nothing.
	Durability func() string
	// Cluster tells of the database and of the replicas that share it. Nil: nothing is shown.
	Cluster func(context.Context) (Cluster, error)
	// ResetTickets makes session tickets resume nothing any more. NewBreakGlass requires it; New does not use it.
	ResetTickets func()
	// ResetLeases removes the rows of replicas that do not renew them, and names those replicas; it may take seconds. Nil:
	// no replicas share the database. New does not use it.
	ResetLeases func(context.Context) ([]string, error)
	// Followers waits, at most so long, until the clients that run resource servers know what is denied now, and says which
	// do. Nil: there is no deny feed.
	Followers func(ctx context.Context, wait time.Duration) ([]Follower, error)
	// SharedTickets says that the store has keys of session tickets that all servers share: they are reset too.
	SharedTickets bool
	// Keys are the token signing keys. Nil: they cannot be seen or changed here.
	Keys Keys

	// Logger is told of inner failures. Nil discards. Now is the clock; nil is time.Now.
	Logger *slog.Logger
	Now    func() time.Time
}

// api holds what the handlers share.
type api struct {
	cfg   Config
	rules rules
	kinds map[string]kind
	reads reads

	// onlyOperators limits invitations to clients that hold scopes of the operators' API.
	onlyOperators bool
	// paired says that two operators are asked for.
	paired atomic.Bool
}

// New returns the API as one handler for the paths below [Prefix]; it answers those alone. It is safe for concurrent use.
func New(cfg Config) (http.Handler, error) {
	a, err := newAPI(cfg)
	if err != nil {
		return nil, err
	}
	return a.router(a.routes()), nil
}

func newAPI(cfg Config) (*api, error) {
	switch {
	case cfg.Store == nil || cfg.Authority == nil || cfg.Recorder == nil || cfg.Actor == nil:
		return nil, errors.New("admin: a store, an authority, a recorder and an actor are required")
	case cfg.Published == nil:
		return nil, errors.New("admin: it must be known what clients publish elsewhere, whose tokens a compromised key takes away")
	case cfg.Issuer == "" || cfg.TrustDomain == "":
		return nil, errors.New("admin: the issuer and the trust domain are required")
	case (cfg.Scopes == nil) != (cfg.InForce == nil):
		return nil, errors.New("admin: the caller's scopes must be judged in the transaction too")
	case cfg.Approvals < 0 || cfg.Approvals > 2:
		return nil, errors.New("admin: approvals are by one operator or by two")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	rules, err := newRules(cfg)
	if err != nil {
		return nil, err
	}
	a := &api{cfg: cfg, rules: rules}
	a.kinds = a.allKinds()
	return a, nil
}

// route is one method of one path.
type route struct {
	method, path string
	event        string   // what the record calls it
	scopes       []string // of which whoever asks must hold one; the action may ask for more
	action       action
}

// action is what a route does: it shows something, or it changes something. A change is judged and made in one
// transaction, once its body was read; judge must read from api.db, and may be called several times.
type action struct {
	show  func(*http.Request) (any, error)
	body  func() any // a new empty request body; nil where nothing is changed
	judge func(*http.Request, any) (*deed, error)
}

// routes is the whole API and who may ask for what.
func (a *api) routes() []route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	one := func(scopes ...string) []string { return scopes }
	return []route{
		{get, "/clients", "client.list", one(ScopeRead), read(a.listClients)},
		{get, "/clients/{id}", "client.show", one(ScopeRead), read(a.showClient)},
		{post, "/clients", clientAdd, one(ScopeRegistry, ScopeGrant), a.asked(clientAdd)},
		{del, "/clients/{id}", "client.remove", one(ScopeRegistry), change(a.removeClient)},
		{post, "/clients/{id}/enable", clientEnable, one(ScopeRegistry, ScopeGrant), a.asked(clientEnable)},
		{post, "/clients/{id}/disable", "client.disable", one(ScopeRevoke), change(a.disableClient)},
		{post, "/clients/{id}/invite", clientInvite, one(ScopeEnroll, ScopeGrant), a.asked(clientInvite)},
		{put, "/clients/{id}/certificates", clientCertificates, one(ScopeRegistry, ScopeGrant, ScopeRevoke), a.asked(clientCertificates)},
		{post, "/clients/{id}/erase", auditErase, one(ScopeKeys), a.asked(auditErase)},
		{get, "/resources", "resource.list", one(ScopeRead), read(a.listResources)},
		{post, "/resources", "resource.add", one(ScopeRegistry), change(a.addResource)},
		{del, "/resources", "resource.remove", one(ScopeRegistry), change(a.removeResource)},
		{get, "/trusts", "trust.list", one(ScopeRead), read(a.listTrusts)},
		{get, "/trusts/{id}", "trust.show", one(ScopeRead), read(a.showTrust)},
		{post, "/trusts", trustAdd, one(ScopeTrust), a.asked(trustAdd)},
		{put, "/trusts/{id}", trustReplace, one(ScopeTrust), a.asked(trustReplace)},
		{del, "/trusts/{id}", trustRemove, one(ScopeTrust), a.asked(trustRemove)},
		{get, "/certificates", "cert.list", one(ScopeRead), read(a.listCertificates)},
		{post, "/certificates/revoke", "cert.revoke", one(ScopeRevoke), change(a.revoke)},
		{get, "/approvals", "approval.list", one(ScopeRead), read(a.listApprovals)},
		{post, "/approvals/{id}/confirm", approvalConfirm, one(ScopeGrant, ScopeTrust, ScopeKeys), change(a.confirm)},
		{del, "/approvals/{id}", "approval.reject", one(ScopeGrant, ScopeTrust, ScopeKeys), change(a.rejectApproval)},
		{get, "/audit", eventRead, one(ScopeRead), read(a.searchAudit)},
		{get, "/audit/heads", "audit.heads", one(ScopeRead), read(a.auditHeads)},
		{get, "/keys", "key.list", one(ScopeRead), read(a.listKeys)},
		{post, "/keys/rotate", keyRotate, one(ScopeKeys), a.asked(keyRotate)},
		{get, "/status", "status.show", one(ScopeRead), read(a.status)},
	}
}

func (a *api) router(routes []route) http.Handler {
	paths := make(map[string]map[string]http.HandlerFunc)
	for _, rt := range routes {
		if paths[rt.path] == nil {
			paths[rt.path] = make(map[string]http.HandlerFunc)
		}
		paths[rt.path][rt.method] = a.guarded(rt)
	}
	// Encoded paths let an id hold a slash, as the SPIFFE ids of foreign clients do.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	for path, methods := range paths {
		r.HandleFunc(Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			handler, ok := methods[r.Method]
			if !ok {
				// RFC 9110, Section 15.5.6.
				w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
				a.refuse(w, r, &Error{Status: http.StatusMethodNotAllowed, Code: codeRequest,
					Description: "this path does not answer that method", Hint: "see the Allow header"})
				return
			}
			handler(w, r)
		})
	}
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.refuse(w, r, notFound("no such path", "check the address; the operators' API lives below "+Prefix))
	})
	return r
}

// guarded lets nobody through to a route who holds none of its scopes.
func (a *api) guarded(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := a.needAny(r.Context(), rt.scopes); err != nil {
			a.refuseChange(w, r, about(rt.event, pathID(r)), err)
			return
		}
		if rt.action.body == nil {
			a.show(w, r, rt)
			return
		}
		a.change(w, r, rt)
	}
}

// show answers a route that changes nothing.
func (a *api) show(w http.ResponseWriter, r *http.Request, rt route) {
	answer, err := rt.action.show(r)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// change answers a route that changes something. Whoever asks may take its time over the body, so what it may do is
// judged when that is read.
func (a *api) change(w http.ResponseWriter, r *http.Request, rt route) {
	in := rt.action.body()
	if err := readBody(w, r, in); err != nil {
		a.refuseChange(w, r, about(rt.event, pathID(r)), err)
		return
	}
	done, err := a.alter(r, rt, in)
	if errors.Is(err, outbox.ErrUnsettled) { // it was made, and is on record as that
		a.refuse(w, r, err)
		return
	}
	if err != nil {
		a.refuseChange(w, r, about(rt.event, target(r, in)), err)
		return
	}
	writeJSON(w, cmp.Or(done.status, http.StatusOK), done.answer)
}

// stillMay refuses a caller who lost, since its request was let in, the right to ask.
func (a *api) stillMay(ctx context.Context, scopes []string) error {
	if a.cfg.StillAuthorized != nil {
		if err := a.cfg.StillAuthorized(ctx); err != nil {
			return notAuthorized(err)
		}
	}
	return a.needAny(ctx, scopes)
}

// none is the body of requests that have nothing to say.
type none struct{}

// deed is a change that was judged and not made. Once it is begun, do makes it through the transaction tx, in which its
// record is kept too. do may be called twice.
type deed struct {
	// takes marks a change that only takes authority away: it is made also when the record has to wait.
	takes bool
	do    func(ctx context.Context, tx *store.Store) (*outcome, error)
	// made is what was done already, outside of the database: it is only recorded. Then do is nil.
	made *outcome
	// again tells the operator what to do when the change was made, and could not be answered because its record waits.
	// Empty: repeat it.
	again string
}

// outcome is what a deed did: the answer to it, and what to record about it.
type outcome struct {
	answer any
	status int    // of the answer; 0 is 200
	name   string // what the record calls it; empty is what it calls the route
	events []audit.Event
	before []audit.Event               // complete, and recorded before the others
	after  func(context.Context) error // made when the change is in force; its error says what is not known, the change holds
	from   time.Time                   // when what it gives is good everywhere: the answer waits for that, if it is soon
}

// waits is an answer that can say that the record of what it tells has to wait.
type waits interface{ auditPending() }

// read is an action that changes nothing.
func read(f func(*http.Request) (any, error)) action { return action{show: f} }

// change is an action that changes something.
func change[In any](f func(*http.Request, *In) (*deed, error)) action {
	return action{
		body:  func() any { return new(In) },
		judge: func(r *http.Request, in any) (*deed, error) { return f(r, in.(*In)) },
	}
}

// perform makes a change together with its record. What gives authority is made only while the journal takes records,
// and not answered when it failed just then.
func (a *api) perform(ctx context.Context, name string, d *deed) (*outcome, error) {
	class := audit.Decision
	if d.takes {
		class = audit.Takeaway
	}
	done, pending := d.made, false
	if done != nil {
		for _, event := range a.granted(ctx, cmp.Or(done.name, name), done.events) {
			event.Class = class
			pending = a.cfg.Recorder.Record(ctx, event) != nil || pending
		}
		return done.said(pending), nil
	}
	pending, err := a.cfg.Recorder.Change(ctx, class, func(tx *store.Store) ([]audit.Event, error) {
		var err error
		if done, err = d.do(ctx, tx); err != nil {
			return nil, err
		}
		return append(done.before, a.granted(ctx, cmp.Or(done.name, name), done.events)...), nil
	})
	if err != nil && pending && !errors.Is(err, outbox.ErrUnsettled) {
		return nil, unrecorded(err, d.again)
	}
	if err != nil {
		return nil, asError(err)
	}
	a.await(ctx, done.from)
	if done.after != nil {
		if err := done.after(ctx); err != nil {
			return nil, unavailable(err)
		}
	}
	return done.said(pending), nil
}

// maxAwaited bounds the wait of an answer for what it gives: longer than between the clocks of two replicas.
const maxAwaited = 8 * time.Second

// await waits until then. What a client was given in the second in which it was disabled is refused like what it had before,
// so whoever enables it again is answered when that is over.
func (a *api) await(ctx context.Context, then time.Time) {
	if wait := then.Sub(a.cfg.Now()); wait > 0 {
		select {
		case <-time.After(min(wait, maxAwaited)):
		case <-ctx.Done():
		}
	}
}

// granted completes the events of a change.
func (a *api) granted(ctx context.Context, name string, events []audit.Event) []audit.Event {
	out := make([]audit.Event, 0, len(events))
	for _, event := range events {
		event.Name, event.Outcome = name, audit.Granted
		out = append(out, a.by(ctx, event))
	}
	return out
}

// said has the answer say whether the record waits.
func (o *outcome) said(pending bool) *outcome {
	if answer, ok := o.answer.(waits); ok && pending {
		answer.auditPending()
	}
	return o
}

// maxNameable bounds what is repeated of a name that nobody has, and each segment of a URI: it is shorter than the
// signature of any token and than any enrolment code.
const maxNameable = 63

// nameable is what may be recorded of a name that was not found to be anybody's: what looks like one, or nothing.
func nameable(name string) string {
	path, spiffe := strings.CutPrefix(name, "spiffe://")
	if !spiffe && strings.Contains(name, "/") {
		return ""
	}
	for segment := range strings.SplitSeq(path, "/") {
		odd := func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-:+", c)
		}
		if len(segment) > maxNameable || strings.ContainsFunc(segment, odd) {
			return ""
		}
	}
	return name
}

// refuseChange records that a change was refused, then answers. A refusal gives nothing, so it leaves also when the
// journal fails.
func (a *api) refuseChange(w http.ResponseWriter, r *http.Request, event audit.Event, err error) {
	event.Class, event.Outcome, event.Reason = audit.Refusal, audit.Refused, asError(err).Code
	if err := a.record(context.WithoutCancel(r.Context()), event); err != nil {
		a.cfg.Logger.ErrorContext(r.Context(), "a refusal could not be recorded", "event", event.Name, "error", err)
	}
	a.refuse(w, r, err)
}

// about is an event of that name about a client, a trust or a request that waits. What the caller named may be no name at
// all: a token or a code that was meant for elsewhere is not recorded.
func about(name, target string) audit.Event {
	event := audit.Event{Name: name}
	target = nameable(target)
	noun, _, _ := strings.Cut(name, ".")
	switch {
	case target == "":
	case noun == "trust" || noun == "approval":
		event.Detail = map[string]string{noun: target}
	default:
		event.Client = target
	}
	return event
}

// target is the client or trust that a request is about, by its path or by its body.
func target(r *http.Request, in any) string {
	switch in := in.(type) {
	case *ClientRequest:
		return in.ID
	case *RevokeRequest:
		return in.ClientID
	case *TrustRequest:
		return cmp.Or(pathID(r), in.Name)
	}
	return pathID(r)
}

func (a *api) record(ctx context.Context, event audit.Event) error {
	return a.cfg.Recorder.Record(ctx, a.by(ctx, event))
}

// by completes an event with who asked and when.
func (a *api) by(ctx context.Context, event audit.Event) audit.Event {
	event.Time = a.cfg.Now()
	event.Actor, event.Thumbprint, event.Address, event.Correlation = a.cfg.Actor(ctx)
	return event
}

func asError(err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	switch unsettled, ok := errors.AsType[*outbox.UnsettledError](err); {
	case ok:
		return notEverywhere(unsettled)
	case errors.Is(err, store.ErrUnknown):
		return unknown(err)
	}
	return unavailable(err)
}

// refuse answers an error; its cause goes to the log alone.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	refused := asError(err)
	if refused.Status >= http.StatusInternalServerError {
		_, _, _, correlation := a.cfg.Actor(r.Context())
		level := slog.LevelError
		if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
			level = slog.LevelInfo // the operator hung up: nobody need be woken
		}
		a.cfg.Logger.Log(r.Context(), level, "an operator's request failed", "path", r.URL.Path, "error", err, "correlation", correlation)
	}
	if refused.Code == codeToken || refused.Scope != "" {
		w.Header().Set("WWW-Authenticate", a.challenge(refused))
	}
	if refused.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1") // RFC 9110, Section 10.2.3
	}
	writeJSON(w, refused.Status, ErrorBody{Code: refused.Code, Description: refused.Description, Hint: refused.Hint, Scope: refused.Scope})
}

// challenge says how to ask, and which scope a token would need (RFC 6750, Section 3; RFC 9728, Section 5.1).
func (a *api) challenge(refused *Error) string {
	challenge := fmt.Sprintf(`Bearer realm="%s", error="%s"`, a.cfg.Issuer, refused.Code)
	if refused.Scope != "" {
		challenge += fmt.Sprintf(`, scope="%s"`, refused.Scope)
	}
	if a.cfg.ResourceMetadata != "" {
		challenge += fmt.Sprintf(`, resource_metadata="%s"`, a.cfg.ResourceMetadata)
	}
	return challenge
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"server_error"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the caller is gone: there is nobody to tell
}

// pathID is the id or name in the path, or empty where the path has none or is not decodable: nothing has that id.
func pathID(r *http.Request) string {
	id, err := url.PathUnescape(mux.Vars(r)["id"])
	if err != nil {
		return ""
	}
	return id
}

// page reads the parameters of a list: where it goes on, and how many at most.
func page(r *http.Request) (after string, limit int, err error) {
	query, err := parameters(r, "after", "limit", "client_id")
	if err != nil {
		return "", 0, err
	}
	limit = defaultPage
	if raw := query.Get("limit"); raw != "" {
		limit, err = strconv.Atoi(raw)
		if err != nil || limit < 1 || limit > maxPage {
			return "", 0, invalidRequest("limit is not a number from 1 to "+strconv.Itoa(maxPage), "leave it out", err)
		}
	}
	return query.Get("after"), limit, nil
}

// parameters reads the query strictly: known names only, each once.
func parameters(r *http.Request, names ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalidRequest("the query is malformed", "encode it as a form", err)
	}
	for name, values := range query {
		if !slices.Contains(names, name) {
			return nil, invalidRequest(fmt.Sprintf("unknown parameter '%s'", printable(name)), "this path takes "+strings.Join(names, ", "), nil)
		}
		if len(values) > 1 {
			return nil, invalidRequest(fmt.Sprintf("parameter '%s' occurs twice", name), "send it once", nil)
		}
	}
	return query, nil
}
