// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/certbound/certbound/tokens/internal/jose"
)

// Defaults of KeySetConfig. Together they are how long a key is trusted that the issuer has removed.
const (
	DefaultMaxAge          = 5 * time.Minute
	DefaultStaleWhileError = 5 * time.Minute
)

// Further defaults and bounds of KeySetConfig.
const (
	defaultRefetchInterval = 10 * time.Second
	fetchTimeout           = 10 * time.Second
	retryInterval          = time.Second // between failed fetches, so that a recovered issuer is noticed soon
)

// KeySetConfig says where the keys of an issuer are and how long they may be relied on. A key that the issuer
// removes is trusted for at most MaxAge longer, or MaxAge + StaleWhileError when the issuer cannot be reached.
type KeySetConfig struct {
	URL    string       // the issuer's jwks_uri; https
	Client *http.Client // how to reach it, and which roots to trust; nil means the system's. Never follows redirects.

	MaxAge          time.Duration    // age at which keys are fetched again before use; 0 means 5 min
	StaleWhileError time.Duration    // how much longer they serve while fetching fails; 0 means 5 min, negative none
	RefetchInterval time.Duration    // at most one fetch in this time because of unknown key ids; 0 means 10 s
	Now             func() time.Time // nil means time.Now

	// KeyTypes are further kinds of keys to read, such as mldsa.Types() of package tokens/mldsa. A Verifier accepts what
	// they verify where its Algorithms name their algorithm.
	KeyTypes []KeyType
}

// KeySet are the keys of one issuer, read from its JSON Web Key Set and kept fresh on demand: nothing runs while
// nobody asks. However many ask at once, one fetch is under way; made-up key ids cause no more than one fetch in
// RefetchInterval. When the keys are too old and cannot be fetched, it has none. Safe for concurrent use.
type KeySet struct {
	url      string
	client   *http.Client
	maxAge   time.Duration
	stale    time.Duration
	interval time.Duration
	now      func() time.Time
	types    []jose.KeyType

	mu        sync.Mutex
	keys      map[string]PublicKey
	fetched   time.Time     // when the fetch that gave keys began; zero before the first
	attempted time.Time     // when the last fetch began
	err       error         // why the last fetch failed; nil when it did not
	underway  chan struct{} // closed when the fetch under way has ended; nil when there is none
}

// NewKeySet returns a KeySet that has not fetched anything yet. The error says which field cannot be used.
func NewKeySet(c KeySetConfig) (*KeySet, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("tokens: key set URL %q is not an https URL", c.URL)
	}
	if c.MaxAge < 0 || c.RefetchInterval < 0 {
		return nil, errors.New("tokens: a duration of the key set is negative")
	}
	k := &KeySet{
		url:      c.URL,
		client:   withoutRedirects(c.Client),
		maxAge:   orDefault(c.MaxAge, DefaultMaxAge),
		stale:    max(0, orDefault(c.StaleWhileError, DefaultStaleWhileError)),
		interval: orDefault(c.RefetchInterval, defaultRefetchInterval),
		now:      c.Now,
	}
	for _, t := range c.KeyTypes {
		k.types = append(k.types, t)
	}
	k.interval = min(k.interval, k.maxAge)
	if k.now == nil {
		k.now = time.Now
	}
	return k, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// withoutRedirects copies the client: a key set is where the issuer said it is, and nowhere else.
func withoutRedirects(c *http.Client) *http.Client {
	if c == nil {
		c = &http.Client{Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		}}
	}
	own := *c
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}

// Key returns the issuer's key with this id. It answers from memory while the keys are fresh; otherwise it waits
// for a fetch, which all callers share and which outlives the ctx of any of them. The error wraps ErrUnknownKey,
// ErrKeysUnavailable, or ctx.Err() when ctx was done first.
func (k *KeySet) Key(ctx context.Context, id string) (PublicKey, error) {
	return k.key(ctx, id, k.interval)
}

// NamedKey is Key for an id that the issuer itself has just named over TLS, as a page of its deny feed does. Strangers
// cannot make such ids up, so it is fetched for at once however lately theirs were, though no more than once a second.
func (k *KeySet) NamedKey(ctx context.Context, id string) (PublicKey, error) {
	return k.key(ctx, id, min(k.interval, retryInterval))
}

// key fetches for an unknown id if no fetch has begun within interval.
func (k *KeySet) key(ctx context.Context, id string, interval time.Duration) (PublicKey, error) {
	key, wait, err := k.lookup(id, interval)
	if wait == nil {
		return key, err
	}
	select {
	case <-wait:
	case <-ctx.Done():
		return PublicKey{}, fmt.Errorf("%w: %w", ErrKeysUnavailable, ctx.Err())
	}
	return k.settled(id)
}

// lookup answers from memory, or returns a channel that is closed when a fetch worth waiting for has ended.
func (k *KeySet) lookup(id string, interval time.Duration) (PublicKey, <-chan struct{}, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	key, known := k.keys[id]
	tolerated := k.err != nil && k.usable(now, k.maxAge+k.stale)
	if known && (tolerated || k.usable(now, k.maxAge)) {
		if !k.usable(now, k.maxAge/4*3) {
			k.fetch(now, interval) // in good time, so that nobody has to wait for it
		}
		return key, nil, nil
	}
	if k.fetch(now, interval); k.underway != nil {
		return PublicKey{}, k.underway, nil
	}
	key, err := k.answer(id, now)
	return key, nil, err
}

// settled answers from memory after a fetch, successful or not.
func (k *KeySet) settled(id string) (PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.answer(id, k.now())
}

// answer is the last word from memory, which may be stale when fetching failed.
func (k *KeySet) answer(id string, now time.Time) (PublicKey, error) {
	usable := k.usable(now, k.maxAge+k.stale)
	if key, known := k.keys[id]; known && usable {
		return key, nil
	}
	if k.err != nil { // an unknown id may be a new one that we could not hear of
		return PublicKey{}, fmt.Errorf("%w: %w", ErrKeysUnavailable, k.err)
	}
	if !usable {
		return PublicKey{}, ErrKeysUnavailable
	}
	return PublicKey{}, ErrUnknownKey
}

// usable reports whether there are keys that were fetched less than age ago, by the monotonic clock and by the
// wall clock: the one stands still while the machine sleeps, the other can be set back.
func (k *KeySet) usable(now time.Time, age time.Duration) bool {
	if k.fetched.IsZero() {
		return false
	}
	return max(now.Sub(k.fetched), now.Round(0).Sub(k.fetched.Round(0))) < age
}

// fetch begins a fetch unless one is under way or began within interval.
func (k *KeySet) fetch(now time.Time, interval time.Duration) {
	if k.err != nil {
		interval = min(interval, retryInterval)
	}
	if k.underway != nil || !k.attempted.IsZero() && now.Sub(k.attempted) < interval {
		return
	}
	done := make(chan struct{})
	k.underway, k.attempted = done, now
	go func() {
		keys, err := k.download()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.err = err; err == nil {
			k.keys, k.fetched = keys, now // the set may have changed since the request was sent
		}
		k.underway = nil
		close(done)
	}()
}

// download reads the key set once. Its time is bounded by itself and not by the request of whoever asked first.
func (k *KeySet) download() (map[string]PublicKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	// What a cache on the way has kept would be trusted for its age longer (RFC 9111, Section 5.2.1.4).
	request.Header.Set("Cache-Control", "no-cache")
	response, err := k.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch key set: status %d", response.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, jose.MaxKeySetBytes+1))
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	list, err := jose.ParseKeySet(data, k.types...)
	if err != nil {
		return nil, fmt.Errorf("fetch key set: %w", err)
	}
	keys := make(map[string]PublicKey, len(list))
	for _, key := range list {
		keys[key.ID] = PublicKey{ID: key.ID, Algorithm: string(key.Algorithm), Key: key.Key}
	}
	return keys, nil
}
