// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
	"github.com/certbound/certbound/tokens/resource"
)

const (
	// scopeDenied is the scope of the deny feed, which every client has that runs a resource server.
	scopeDenied = "denied"
	// feedBeat is how often the feed is signed anew while nothing is denied, so that silence shows.
	feedBeat = 5 * time.Second
	// feedPages bounds the signed pages that are kept for others who ask for the same.
	feedPages = 64
	// feedReaders bounds who is remembered to follow, clientReaders of one client, readerLife for how long.
	feedReaders   = 10_000
	clientReaders = 2_000
	readerLife    = 30 * time.Second
	// followersInterval is how often other replicas are told of readers, followersPause how often is looked who has what.
	followersInterval = 100 * time.Millisecond
	followersPause    = 20 * time.Millisecond
)

// feed tells resource servers what is denied: in pages that are signed once for all who wait for the same.
type feed struct {
	denials  *denials
	rows     denialRows
	sign     func(tokens.DenyPage) (string, error)
	resource string
	beat     time.Duration
	waiting  atomic.Int64

	mu      sync.Mutex // also held while a page is made
	pages   map[int64]string
	head    int64 // of pages
	began   time.Time
	period  uint64        // counts the beats
	changed chan struct{} // closed, and replaced, when something may have been denied
	closed  bool
	readers map[reader]follow
	of      map[string]int       // how many of them a client has
	missed  map[string]time.Time // when one of a client's was last not remembered
}

// denialRows is where the denials are.
type denialRows interface {
	Denials(ctx context.Context, after int64, limit int) ([]store.Denied, int64, error)
}

// reader is one follower of the feed. Two instances of one client that show the same certificate from the same address count as one.
type reader struct {
	client      string
	certificate mtls.Thumbprint
	address     string
}

// follow is how far a reader is: it has everything up to the position.
type follow struct {
	position int64
	seen     time.Time
	saved    struct { // what other replicas were told
		position int64
		at       time.Time
	}
}

func newFeed(d *denials, db *store.Store, sign func(tokens.DenyPage) (string, error), resource string, beat time.Duration) *feed {
	f := &feed{
		denials: d, rows: db, sign: sign, resource: resource, beat: beat,
		pages: make(map[int64]string), changed: make(chan struct{}), readers: make(map[reader]follow),
		of: make(map[string]int), missed: make(map[string]time.Time),
	}
	db.OnChange(f.wake) // after the denials', so that who wakes finds them changed
	return f
}

// wake has everybody look who waits.
func (f *feed) wake(c store.Change) {
	if !c.Denials && !c.Full {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// close ends all waiting, so that the service can stop.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.changed)
	}
}

// watchFeed tells how many resource servers follow: fewer than usual means that some would not hear of a revocation.
func (m *metrics) watchFeed(f *feed) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certbound_feed_waiting", Help: "Requests that wait for news of what is denied."},
			func() float64 { return float64(f.waiting.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certbound_denials", Help: "Tokens, certificates, clients and keys that are denied now."},
			func() float64 { return float64(f.denials.list.Len()) }))
}

// errStopping says that the service stops.
var errStopping = errors.New("the service is stopping")

// next returns the page behind the position since, and whether it was waited for. When there is nothing behind it, it
// waits until there is, or for the next beat, whose page says so. A negative since asks for everything, and does not wait.
func (f *feed) next(ctx context.Context, since int64) (page string, waited bool, err error) {
	joined := false
	var joinedAt uint64
	for {
		f.mu.Lock()
		changed, closed := f.changed, f.closed
		f.mu.Unlock()
		if closed {
			return "", waited, errStopping
		}
		if err := f.denials.current(ctx); err != nil {
			return "", waited, err
		}
		f.mu.Lock()
		left := f.turn(time.Now())
		if !joined {
			joined, joinedAt = true, f.period
			if left == f.beat { // nobody waited for this beat: it is this one's
				joinedAt--
			}
		}
		if since < f.head || f.period != joinedAt {
			page, err := f.page(ctx, min(max(since, 0), f.head))
			f.mu.Unlock()
			return page, waited, err
		}
		f.mu.Unlock()
		waited = true
		wait := time.NewTimer(left)
		f.waiting.Add(1)
		select {
		case <-changed:
		case <-wait.C:
		case <-ctx.Done():
		}
		f.waiting.Add(-1)
		wait.Stop()
		if err := ctx.Err(); err != nil {
			return "", true, err
		}
	}
}

// turn begins a new beat when the last one is over, and returns how long this one lasts. f.mu is held.
func (f *feed) turn(now time.Time) time.Duration {
	if head := f.denials.head(); head != f.head {
		f.head = head
		clear(f.pages)
	}
	left := f.beat - now.Sub(f.began)
	if left <= 0 || left > f.beat {
		f.began, left = now, f.beat
		f.period++
		clear(f.pages)
	}
	return left
}

// page returns the page behind a position, signed in this beat. f.mu is held.
func (f *feed) page(ctx context.Context, from int64) (string, error) {
	if p, ok := f.pages[from]; ok {
		return p, nil
	}
	p := tokens.DenyPage{Audience: f.resource, From: from, Seq: f.head, Head: f.head}
	if from < f.head {
		ctx, cancel := context.WithTimeout(ctx, denialsTimeout)
		defer cancel()
		list, upTo, err := f.rows.Denials(ctx, from, tokens.MaxDenyPageEntries)
		if err != nil {
			return "", err
		}
		p.Seq, p.Entries = fill(list, upTo)
		p.Head = max(p.Head, p.Seq) // what was denied just now
	}
	signed, err := f.sign(p)
	if err != nil {
		return "", err
	}
	if len(f.pages) >= feedPages {
		clear(f.pages)
	}
	f.pages[from] = signed
	return signed, nil
}

// fill takes as many denials as a page has room for, and returns the position up to which these are all.
func fill(list []store.Denied, upTo int64) (int64, []tokens.Denial) {
	out := make([]tokens.Denial, 0, len(list))
	var one []byte
	size := 0
	for i := range list {
		one = list[i].AppendJSON(one[:0])
		if size += len(one) + 1; size > tokens.MaxDenyPageBytes && i > 0 {
			return list[i-1].Position, out
		}
		out = append(out, list[i].Denial)
	}
	return upTo, out
}

// acknowledge notes that a reader has everything up to a position.
func (f *feed) acknowledge(r reader, position int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, known := f.readers[r]
	if !known {
		if !f.room(r.client) {
			f.forget(now)
		}
		if !f.room(r.client) {
			f.missed[r.client] = now
			return
		}
		f.of[r.client]++
	}
	f.readers[r] = follow{position: position, seen: now, saved: old.saved}
}

// room reports whether one more reader of a client may be remembered. f.mu is held.
func (f *feed) room(client string) bool {
	return len(f.readers) < feedReaders && f.of[client] < clientReaders
}

// forget forgets who has long been silent. f.mu is held.
func (f *feed) forget(now time.Time) {
	for r, at := range f.readers {
		if now.Sub(at.seen) <= readerLife {
			continue
		}
		delete(f.readers, r)
		if f.of[r.client]--; f.of[r.client] == 0 {
			delete(f.of, r.client)
		}
	}
}

// unsaved returns those readers of which other replicas should hear: who is further, or was not spoken of for a while.
func (f *feed) unsaved(now time.Time) (list []store.Follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r, at := range f.readers {
		if at.saved.position == at.position && now.Sub(at.saved.at) < readerLife/3 || !at.seen.After(at.saved.at) {
			continue
		}
		list = append(list, store.Follower{ClientID: r.client, Certificate: r.certificate, Address: r.address, Position: at.position, SeenAt: at.seen})
		at.saved.position, at.saved.at = at.position, at.seen
		f.readers[r] = at
	}
	return list
}

// hear notes what other replicas know of readers.
func (f *feed) hear(list []store.Follower) {
	for _, l := range list {
		r := reader{l.ClientID, l.Certificate, l.Address}
		f.mu.Lock()
		newer := f.readers[r].seen.Before(l.SeenAt)
		f.mu.Unlock()
		if !newer {
			continue
		}
		f.acknowledge(r, l.Position, l.SeenAt)
		f.mu.Lock()
		if at, kept := f.readers[r]; kept { // they know
			at.saved.position, at.saved.at = l.Position, l.SeenAt
			f.readers[r] = at
		}
		f.mu.Unlock()
	}
}

// has reports whether every follower that a client has now has everything up to a position; a client without one has
// not, nor one that has more than are remembered.
func (f *feed) has(client string, position int64, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, missed := f.missed[client]; missed {
		if now.Sub(at) <= readerLife {
			return false
		}
		delete(f.missed, client)
	}
	found := false
	for r, at := range f.readers {
		if r.client != client || now.Sub(at.seen) > readerLife {
			continue
		}
		if at.position < position {
			return false
		}
		found = true
	}
	return found
}

// keepFollowers tells other replicas who follows here, until ctx is done.
func (s *service) keepFollowers(ctx context.Context) {
	tick := time.NewTicker(followersInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if list := s.feed.unsaved(now); len(list) > 0 {
				if err := s.folder.store.SaveFollowers(ctx, list); err != nil && ctx.Err() == nil {
					s.log.Warn("other replicas could not be told who follows what is denied", "error", err)
				}
			}
		}
	}
}

// followers waits, at most so long, until every client that runs a resource server has what is denied now, and says which
// have. It fails only when that cannot be known.
func (s *service) followers(ctx context.Context, wait time.Duration) ([]admin.Follower, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	position, err := s.folder.store.DenialSeq(ctx)
	if err != nil {
		return nil, err
	}
	resources, err := s.registry.allResources(ctx)
	if err != nil {
		return nil, err
	}
	var list []admin.Follower
	for _, res := range resources {
		for _, id := range res.Servers {
			list = append(list, admin.Follower{ClientID: id})
		}
	}
	slices.SortFunc(list, func(a, b admin.Follower) int { return strings.Compare(a.ClientID, b.ClientID) })
	list = slices.Compact(list)
	for {
		if s.shares() {
			others, err := s.folder.store.Followers(ctx, time.Now().Add(-readerLife))
			if err != nil && ctx.Err() == nil {
				return nil, err
			}
			s.feed.hear(others)
		}
		missing := false
		for i := range list {
			list[i].Has = s.feed.has(list[i].ClientID, position, time.Now())
			missing = missing || !list[i].Has
		}
		if !missing {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return list, nil
		case <-time.After(followersPause):
		}
	}
}

// deniedResource is the deny feed as a resource.
func (s *service) deniedResource() string { return s.identity.issuer + issuer.DeniedPath }

// feedHandler serves the deny feed, guarded by our own bound tokens.
func (s *service) feedHandler() (http.Handler, error) {
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: s.identity.issuer, Audience: s.deniedResource(), Keys: s.keys, Denied: s.denials.Denied,
		Algorithms: signingAlgorithms(),
	})
	if err != nil {
		return nil, err
	}
	cfg := resource.Config{
		Verifier: verifier, Realm: s.identity.issuer, Authorize: s.authorizeFollower, Refused: s.followerRefused,
	}
	if resource.CheckIdentifier(s.deniedResource()) == nil { // as for the operators' API
		cfg.Metadata = &resource.Metadata{Scopes: []string{scopeDenied}}
	}
	guard, err := resource.New(cfg)
	if err != nil {
		return nil, err
	}
	s.feedGuard = guard
	hint, err := json.Marshal(map[string]string{
		"error_description": "a token for this resource and scope is needed: the token endpoint gives one to clients that run a resource server",
		"resource":          s.deniedResource(), "scope": scopeDenied,
	})
	if err != nil {
		return nil, err
	}
	protected := guard.Protect(withPeer(http.HandlerFunc(s.serveFeed)), scopeDenied)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protected.ServeHTTP(hinting{w, append(hint, '\n')}, r)
	}), nil
}

// hinting tells those who come without a token how they get one. The guard tells them no more than that one is needed.
type hinting struct {
	http.ResponseWriter
	hint []byte
}

func (w hinting) WriteHeader(status int) {
	header := w.Header()
	if status != http.StatusUnauthorized || header.Get("Content-Type") != "" {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	scheme, rest, more := strings.Cut(header.Get("WWW-Authenticate"), ", ")
	scheme += `, scope="` + scopeDenied + `"`
	if more {
		scheme += ", " + rest
	}
	header.Set("WWW-Authenticate", scheme)
	header.Set("Content-Type", "application/json")
	w.ResponseWriter.WriteHeader(status)
	_, _ = w.Write(w.hint) // the caller is gone: there is nobody to tell
}

// Unwrap is for http.ResponseController.
func (w hinting) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// authorizeFollower holds a verified token against the registry as it is now.
func (s *service) authorizeFollower(ctx context.Context, claims *tokens.Claims, peer *mtls.Peer) error {
	client, err := s.issuer.StillHolds(ctx, claims, peer)
	if err != nil {
		if e, ok := errors.AsType[*tokens.Error](err); ok && e.Code == tokens.CodeInvalidClient {
			return &tokens.Error{Code: tokens.CodeInvalidToken, Reason: e.Reason, Description: "the token is not valid on this connection", Err: e}
		}
		return err
	}
	s.limits.Authenticated(ctx, client.ID, peer.Thumbprint())
	if len(scopesAt(client, s.deniedResource())) == 0 {
		return &tokens.Error{Code: tokens.CodeInsufficientScope, Reason: "no_resource_server", Description: "this client runs no resource server", Scope: scopeDenied}
	}
	return nil
}

// serveFeed answers one poll. since is the position up to which the caller has everything, and so its acknowledgement;
// without it the caller is told everything from the beginning.
func (s *service) serveFeed(w http.ResponseWriter, r *http.Request) {
	since, err := readSince(r.URL.RawQuery)
	if err != nil {
		issuer.WriteError(w, r, s.identity.issuer, err)
		return
	}
	claims, _ := resource.Claims(r.Context())
	if since >= 0 && since <= s.denials.head() {
		s.feed.acknowledge(reader{claims.ClientID, claims.Thumbprint, host(r.RemoteAddr)}, since, time.Now())
	}
	page, waited, err := s.feed.next(r.Context(), since)
	if err == nil && waited {
		// A wait must not outlive what was decided about who waits.
		peer, _ := r.Context().Value(peerKey{}).(*mtls.Peer)
		err = s.authorizeFollower(r.Context(), claims, peer)
	}
	if err == nil {
		err = s.live() // what this replica knows may be old
	}
	if err != nil {
		if _, ok := errors.AsType[*tokens.Error](err); !ok {
			err = &tokens.Error{Code: tokens.CodeTemporarilyUnavailable, Reason: "no_feed", Err: again{err},
				Description: "what is denied cannot be told now: try again"}
		}
		issuer.WriteError(w, r, s.identity.issuer, err)
		return
	}
	w.Header().Set("Content-Type", "application/"+tokens.DenyType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, page) // the caller is gone: there is nobody to tell
}

// readSince reads the query; without since it is -1.
func readSince(query string) (int64, error) {
	if query == "" {
		return -1, nil
	}
	values, err := url.ParseQuery(query)
	if err == nil && len(values) == 1 && len(values["since"]) == 1 {
		if n, err := strconv.ParseUint(values.Get("since"), 10, 63); err == nil {
			return int64(n), nil
		}
	}
	return 0, &tokens.Error{Code: tokens.CodeInvalidRequest, Reason: "query", Description: "the query is since=N, a position of the feed, or nothing"}
}
