// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/tokens/internal/jose"
)

// Defaults and bounds of DenyFeedConfig and of how a DenyFeed asks. The issuer signs its feed anew every 5 s.
const (
	DefaultDenyFeedMaxAge = 30 * time.Second
	minDenyFeedMaxAge     = 10 * time.Second
	maxDenyFeedMaxAge     = time.Hour

	denyFeedPath    = "/oauth2/denied"
	denyPollTimeout = 15 * time.Second
	denyPollPause   = 100 * time.Millisecond // after an answer that said nothing new and was not waited for
	denyRetryLeast  = 250 * time.Millisecond
	denyRetryMost   = 5 * time.Second
	denyAlarmTick   = time.Second
	// denyPruneAfter is how long a denial is kept beyond its end: a Verifier may allow this much to clocks.
	denyPruneAfter = maxLeeway + maxAhead
)

// ErrDenyFeedStale says that what is denied is not known: nothing was heard of the issuer's feed for too long, or ever.
var ErrDenyFeedStale = errors.New("tokens: what is denied is not known now")

// Stale is what a DenyFeed answers for tokens that are not denied as far as it knows, while it has heard nothing for too
// long. The zero value is neither: it is for the operator to say.
type Stale int

const (
	// StaleRefuse refuses every token as temporarily_unavailable: what is revoked is never accepted longer than MaxAge. A
	// request that was accepted before goes on, also with Denials of package resource, until it is heard that it is denied.
	StaleRefuse Stale = iota + 1
	// StaleAllow accepts them, and raises the alarm: an issuer that is down, or cut off, stops nobody.
	StaleAllow
)

// DenyFeedEvents is told when a DenyFeed begins to know what is denied, and when it ceases to: once at each change, one
// call after the other. An alarm hangs on DenyFeedStale.
type DenyFeedEvents interface {
	DenyFeedFresh()
	DenyFeedStale(cause error) // the last failure, or ErrDenyListFull; it holds no token
}

// DenyFeedConfig says whose feed is followed, and how.
type DenyFeedConfig struct {
	Issuer string // exactly the "iss" of the feed; required, an https URL
	URL    string // where the feed is; "" means the issuer's own /oauth2/denied. https, without query
	// Keys are the signature keys of this issuer and of no other, as for a Verifier; required. Of a KeySet it asks NamedKey.
	Keys Keys

	Algorithms []string // acceptable algorithms; nil means ES256, PS256 and EdDSA

	// Client brings a token with each request: one for the resource Issuer + "/oauth2/denied" with the scope "denied",
	// which a client gets that runs a resource server. A Transport of package tokens/client does. Required; redirects are
	// never followed.
	Client *http.Client

	MaxAge time.Duration // how old the last word of the issuer may be; 0 means 30 s, else 10 s to 1 h
	Stale  Stale         // what to do when it is older: StaleRefuse or StaleAllow; required, unless FAPI is true

	// FAPI is for a resource server under the FAPI 2.0 Security Profile, which must know what is revoked (Section 5.3.4):
	// Stale is StaleRefuse where nothing else is said, and algorithms that the profile does not have are an error (Section 5.4).
	FAPI bool

	Logger *slog.Logger     // gets a line at each change of DenyFeedEvents; nil means none are written
	Events DenyFeedEvents   // may be nil
	Now    func() time.Time // nil means time.Now
}

// DenyFeed knows which access tokens of an issuer are refused although they have not expired, for VerifierConfig.Denied:
// it follows the issuer's signed feed while Run runs. Whatever the feed says, and however it fails, what was denied once
// stays denied until it has ended anyway. Safe for concurrent use.
//
// Until it has heard everything once, it accepts nothing, with StaleAllow too. It asks behind the last position that it
// was told. After "certbound store restore" the positions of all denials are higher than any that were told before, so a
// DenyFeed hears them all once more and is not stale for longer than the issuer was away. Of an issuer whose newest
// position is lower than one that it has told, because it has lost what it knew or is a replica that lags, a DenyFeed
// becomes no fresher and asks for everything from the beginning, since what is denied next may get positions that were
// another's. Neither takes back what is denied already.
type DenyFeed struct {
	issuer     string
	audience   string
	url        string
	keys       Keys
	algorithms []string
	client     *http.Client
	maxAge     time.Duration
	stale      Stale
	logger     *slog.Logger
	events     DenyFeedEvents
	now        func() time.Time

	list  DenyList
	heard chan struct{}             // closed when all was heard once
	fresh atomic.Pointer[time.Time] // when the issuer last said that this is all; nil before
	full  atomic.Bool               // the list had no room: something is missing in it

	running atomic.Bool
	// These are Run's alone.
	position int64                      // everything up to here is in the list, or missing
	missing  struct{ from, upTo int64 } // what did not fit into the list, when it is full
	whole    bool                       // everything is asked for next, as in the beginning
	pruned   time.Time

	mu    sync.Mutex // for telling
	began time.Time
	last  error // of the last poll
	told  told
}

type told int

const (
	toldNothing told = iota
	toldFresh
	toldStale
)

// NewDenyFeed returns a DenyFeed that has heard nothing yet. The error says which field cannot be used.
func NewDenyFeed(c DenyFeedConfig) (*DenyFeed, error) {
	if err := checkIssuer(c.Issuer); err != nil {
		return nil, err
	}
	f := &DenyFeed{
		issuer: c.Issuer, audience: c.Issuer + denyFeedPath, url: c.URL, keys: c.Keys, algorithms: slices.Clone(c.Algorithms),
		maxAge: orDefault(c.MaxAge, DefaultDenyFeedMaxAge), stale: c.Stale, logger: c.Logger, events: c.Events, now: c.Now,
		whole: true, heard: make(chan struct{}),
	}
	if f.url == "" {
		f.url = f.audience
	}
	if u, err := url.Parse(f.url); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("tokens: the URL of the deny feed is not an https URL without user, query and fragment")
	}
	if c.Keys == nil {
		return nil, errors.New("tokens: no keys")
	}
	if c.Client == nil {
		return nil, errors.New("tokens: no client that brings a token to the deny feed")
	}
	if f.maxAge < minDenyFeedMaxAge || f.maxAge > maxDenyFeedMaxAge {
		return nil, fmt.Errorf("tokens: the deny feed's age %v is not within %v and %v", f.maxAge, minDenyFeedMaxAge, maxDenyFeedMaxAge)
	}
	if c.FAPI && f.stale == 0 {
		f.stale = StaleRefuse
	}
	if f.stale != StaleRefuse && f.stale != StaleAllow {
		return nil, errors.New("tokens: it is not said whether a stale deny feed refuses or allows")
	}
	var err error
	if f.algorithms, err = checkAlgorithms(f.algorithms); err != nil {
		return nil, err
	}
	for _, a := range f.algorithms {
		if c.FAPI && a != ES256 && a != PS256 && a != EdDSA {
			return nil, fmt.Errorf("tokens: the FAPI 2.0 profile does not have the algorithm %s", a)
		}
	}
	f.client = withoutRedirects(c.Client)
	if f.logger == nil {
		f.logger = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.began = f.now()
	return f, nil
}

// Denied is for VerifierConfig.Denied. It does not block. The error wraps ErrDenyFeedStale or ErrDenyListFull.
func (f *DenyFeed) Denied(_ context.Context, c *Claims, keyID string) (bool, error) {
	if f.list.Denies(c, keyID) {
		return true, nil
	}
	return false, f.Err()
}

// Denies reports whether a token is denied as far as is known, see DenyList.Denies.
func (f *DenyFeed) Denies(c *Claims, keyID string) bool { return f.list.Denies(c, keyID) }

// OnAdd is DenyList.OnAdd.
func (f *DenyFeed) OnAdd(call func()) { f.list.OnAdd(call) }

// Err returns why no token is accepted now, or nil: whether a server that depends on the feed is ready.
func (f *DenyFeed) Err() error {
	fresh := f.fresh.Load()
	switch {
	case f.full.Load():
		return ErrDenyListFull
	case fresh == nil:
		return fmt.Errorf("%w: not all of it was heard yet", ErrDenyFeedStale)
	case f.stale != StaleAllow && !f.young(*fresh):
		return fmt.Errorf("%w: nothing was heard for more than %v", ErrDenyFeedStale, f.maxAge)
	}
	return nil
}

// Wait blocks until Run has heard all that is denied for the first time, so that a server does not begin with refusals, or
// until ctx is done. The error then wraps ctx.Err() and says what failed last.
func (f *DenyFeed) Wait(ctx context.Context) error {
	select {
	case <-f.heard:
		return nil
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		return fmt.Errorf("%w: %w (%v)", ErrDenyFeedStale, ctx.Err(), f.last)
	}
}

// young reports whether the issuer's word is not too old, by the monotonic clock and by the wall clock: the one stands
// still while the machine sleeps, the other can be set back.
func (f *DenyFeed) young(at time.Time) bool {
	now := f.now()
	return max(now.Sub(at), now.Round(0).Sub(at.Round(0))) < f.maxAge
}

// Run follows the feed until ctx is done, and returns ctx.Err(). It asks again after each failure, at most 5 s later. One
// call at a time: a second one returns another error at once.
func (f *DenyFeed) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return errors.New("tokens: the deny feed is being followed already")
	}
	defer f.running.Store(false)
	f.mu.Lock()
	f.began = f.now()
	f.mu.Unlock()
	var alarm sync.WaitGroup
	alarm.Go(func() { f.watch(ctx) })
	defer alarm.Wait()
	var retry denyRetry
	for ctx.Err() == nil {
		began := time.Now()
		news, err := f.poll(ctx)
		f.tell(err)
		sleep(ctx, retry.pause(err, news, time.Since(began)))
	}
	return ctx.Err()
}

// denyRetry counts failures since the last success.
type denyRetry int

// pause is how long to wait before asking again.
func (r *denyRetry) pause(err error, news bool, took time.Duration) time.Duration {
	if err != nil {
		most := min(denyRetryLeast<<min(*r, 10), denyRetryMost)
		*r++
		return most/2 + rand.N(most/2+1) // many may have lost the same issuer at once
	}
	*r = 0
	if news {
		return 0
	}
	return max(0, denyPollPause-took)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// watch notices when silence has become too long.
func (f *DenyFeed) watch(ctx context.Context) {
	tick := time.NewTicker(denyAlarmTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.retell()
		}
	}
}

// tell notes how a poll ended.
func (f *DenyFeed) tell(err error) {
	f.mu.Lock()
	f.last = err
	f.mu.Unlock()
	f.retell()
}

// retell says whether what is denied is known, where that has changed. In the beginning there is time to find out.
func (f *DenyFeed) retell() {
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh := f.fresh.Load()
	state, since := toldFresh, f.began
	if fresh != nil {
		since = *fresh
	}
	switch {
	case f.full.Load() || !f.young(since):
		state = toldStale
	case fresh == nil:
		state = toldNothing
	}
	if state == toldNothing || state == f.told {
		return
	}
	f.told = state
	if state == toldFresh {
		f.logger.Info("what is denied is known", "issuer", f.issuer, "denials", f.list.Len())
		if f.events != nil {
			f.events.DenyFeedFresh()
		}
		return
	}
	f.logger.Error("what is denied is not known", "issuer", f.issuer, "refused", f.Err() != nil, "cause", f.last)
	if f.events != nil {
		f.events.DenyFeedStale(f.last)
	}
}

// poll asks once, and reports whether it is further than before.
func (f *DenyFeed) poll(ctx context.Context) (news bool, err error) {
	raw, err := f.fetch(ctx)
	if err != nil {
		f.client.CloseIdleConnections() // what does not answer may be a connection that is dead
		return false, fmt.Errorf("deny feed: %w", err)
	}
	if news, err = f.take(ctx, raw); err != nil {
		err = fmt.Errorf("deny feed: %w", err)
	}
	return news, err
}

// fetch returns what the feed answers. What it asks behind, it has: that is its acknowledgement.
func (f *DenyFeed) fetch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, min(denyPollTimeout, f.maxAge))
	defer cancel()
	from := f.url
	switch {
	case f.full.Load():
		from += "?since=" + strconv.FormatInt(f.missing.from, 10)
	case !f.whole:
		from += "?since=" + strconv.FormatInt(f.position, 10)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Accept", "application/"+DenyType)
	request.Header.Set("Cache-Control", "no-cache")
	response, err := f.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", response.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxDenyDocument+1))
	return string(data), err
}

// take adds what a page denies, and judges whether that is all there is. Before its signature has verified, nothing in
// the page counts.
func (f *DenyFeed) take(ctx context.Context, raw string) (news bool, err error) {
	page, err := f.open(ctx, raw)
	if err != nil {
		return false, err
	}
	now := f.now()
	if page.IssuedAt.After(now.Add(defaultLeeway)) {
		return false, errors.New("the page is from the future")
	}
	// A page that begins behind our position leaves something out; only one from the beginning will do then.
	if f.whole = page.From > f.position; f.whole {
		return false, errors.New("the page begins behind what is known")
	}
	if err := f.add(page); err != nil {
		return false, err
	}
	news = page.Seq > f.position
	f.position = max(f.position, page.Seq)
	age := now.Round(0).Sub(page.IssuedAt)
	switch {
	case page.Head < f.position:
		f.startOver()
		return false, errors.New("the page is of somebody who knows less")
	case page.Seq < page.Head:
		return news, nil
	case age >= f.maxAge:
		return news, errors.New("the page is old")
	}
	fresh := now.Add(-max(0, age)) // with a monotonic clock of its own
	old := f.fresh.Load()
	if old == nil || old.Before(fresh) {
		f.fresh.Store(&fresh)
	}
	if old == nil {
		close(f.heard)
	}
	// The issuer's clock says what has ended: ours may jump.
	if now := page.IssuedAt.Add(-denyPruneAfter); now.Sub(f.pruned) >= time.Minute {
		f.pruned = now
		f.list.Prune(now)
	}
	return news, nil
}

// startOver has everything asked for, as in the beginning. What is missing stays so until it has been heard.
func (f *DenyFeed) startOver() {
	f.position, f.whole, f.missing.from = 0, true, 0
	if !f.full.Load() {
		f.missing.upTo = 0
	}
}

// add puts the entries into the list. Where one finds no room, the DenyFeed is full until the same part of the feed has
// been heard again and fits.
func (f *DenyFeed) add(page *DenyPage) error {
	if err := f.list.Add(page.Entries...); err != nil {
		f.missing.from, f.missing.upTo = min(f.missing.from, page.From), max(f.missing.upTo, page.Seq)
		f.full.Store(true)
		f.list.Prune(page.IssuedAt.Add(-denyPruneAfter))
		return err
	}
	if page.From <= f.missing.from { // of an earlier part that was missing, nothing is any more
		f.missing.from = max(f.missing.from, page.Seq)
		f.full.Store(f.missing.from < f.missing.upTo)
	}
	return nil
}

// key returns the key of a page. After an emergency that is one that nobody has heard of, and what strangers asked for must
// not delay the page that denies the old one.
func (f *DenyFeed) key(ctx context.Context, id string) (PublicKey, error) {
	if keys, ok := f.keys.(interface {
		NamedKey(ctx context.Context, id string) (PublicKey, error)
	}); ok {
		return keys.NamedKey(ctx, id)
	}
	return f.keys.Key(ctx, id)
}

// open returns the page if the issuer signed it as one of its feed.
func (f *DenyFeed) open(ctx context.Context, raw string) (*DenyPage, error) {
	signed, err := jose.ParseUpTo(raw, maxDenyDocument)
	if err != nil {
		return nil, err
	}
	header := signed.Header()
	if header.Type != DenyType {
		return nil, errors.New("the page is a JWT of another type")
	}
	if !slices.Contains(f.algorithms, string(header.Algorithm)) {
		return nil, errors.New("the page is signed with an algorithm that is not allowed")
	}
	if f.list.Denies(&Claims{}, header.KeyID) { // whoever stole it would have all be well
		return nil, errors.New("the page is signed by a key that is denied")
	}
	key, err := f.key(ctx, header.KeyID)
	if err != nil {
		return nil, err
	}
	payload, err := signed.Verify(asJOSE(&key))
	if err != nil {
		return nil, err
	}
	page, err := readDenyPage(payload)
	if err != nil {
		return nil, err
	}
	if page.Issuer != f.issuer {
		return nil, errors.New("the page is of another issuer")
	}
	if page.Audience != f.audience {
		return nil, errors.New("the page is for another audience")
	}
	return page, nil
}
