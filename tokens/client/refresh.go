// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// refreshFrom and refreshSpread place the refresh between 70 and 85 percent of a token's life, at random, so
	// that a fleet started together does not ask together.
	refreshFrom, refreshSpread = 0.70, 0.15
	// minBackoff and maxBackoff bound the pause after a failed fetch; it doubles with every failure.
	minBackoff, maxBackoff = time.Second, time.Minute
	// minStaleInterval is the least time between two fetches provoked by resource servers that refuse our tokens.
	minStaleInterval = 10 * time.Second
	// skew is how long before its end a token is no longer sent, for the way and for the clocks.
	skew = 10 * time.Second
)

// slot is the place of one token in a generation. The generation's lock guards it.
type slot struct {
	token     Token
	usable    time.Time // the token is sent before this
	refresh   time.Time // a new one is fetched from this on
	err       error     // of the last fetch, nil when it went well
	failures  int
	retry     time.Time // no fetch before this
	staled    time.Time // when a resource server last provoked a fetch
	under     *flight   // the fetch under way, nil when none
	lastTaken time.Time
}

// flight is one fetch and all who wait for it. The result may be read once done is closed.
type flight struct {
	done  chan struct{}
	token Token
	err   error
}

// Token returns a token for the configured scopes and resources, from the cache when there is one. It blocks for a
// fetch when there is none, until ctx ends; the fetch itself goes on for others.
//
// The token is of use only on connections that present the key pair's current certificate.
func (t *Transport) Token(ctx context.Context) (Token, error) {
	return t.tokenFor(ctx, t.want)
}

// TokenFor is Token for other scopes and resources than the configured ones.
func (t *Transport) TokenFor(ctx context.Context, scopes, resources []string) (Token, error) {
	return t.tokenFor(ctx, newRequest(scopes, resources))
}

func (t *Transport) tokenFor(ctx context.Context, want request) (Token, error) {
	g, err := t.enter()
	if err != nil {
		return Token{}, err
	}
	defer g.leave()
	return t.token(ctx, g, want)
}

// Err returns the failure of the last fetch for the configured scopes and resources, nil when it went well or none
// was made with this certificate. While an older token still serves, Err is the only place where a failing refresh
// shows besides the log.
func (t *Transport) Err() error {
	t.mu.Lock()
	g := t.current
	t.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.tokens[t.key(g, t.want)]; s != nil {
		return s.err
	}
	return nil
}

// token returns a token of the generation g. A token that is due is fetched beside the request, which takes the old
// one; only a request without a usable token waits.
func (t *Transport) token(ctx context.Context, g *generation, want request) (Token, error) {
	token, f, err := t.take(g, want)
	if f == nil {
		return token, err
	}
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
}

// take returns a token or an error at once, or the fetch to wait for.
func (t *Transport) take(g *generation, want request) (Token, *flight, error) {
	now := time.Now()
	key := t.key(g, want)
	// The outer lock too: after Close has begun to wait for the fetches, none may start.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return Token{}, nil, ErrClosed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.slot(key)
	s.lastTaken = now
	due := !now.Before(s.refresh) || !now.Before(s.usable)
	if due && s.under == nil && !now.Before(s.retry) {
		t.start(g, key, want, s)
	}
	switch {
	case now.Before(s.usable):
		return s.token, nil, nil
	case s.under != nil:
		return Token{}, s.under, nil
	default:
		return Token{}, nil, s.err
	}
}

// slot finds or makes the slot; the caller holds the lock. When there are too many, the one not taken for the
// longest goes, unless a fetch for it is under way.
func (g *generation) slot(key cacheKey) *slot {
	if s := g.tokens[key]; s != nil {
		return s
	}
	if len(g.tokens) >= maxCachedTokens {
		var oldest cacheKey
		for k, s := range g.tokens {
			if s.under == nil && (oldest == "" || s.lastTaken.Before(g.tokens[oldest].lastTaken)) {
				oldest = k
			}
		}
		delete(g.tokens, oldest)
	}
	s := &slot{}
	g.tokens[key] = s
	return s
}

// start begins the one fetch for a slot; the caller holds both locks.
func (t *Transport) start(g *generation, key cacheKey, want request, s *slot) {
	f := &flight{done: make(chan struct{})}
	s.under = f
	g.requests++
	t.fetches.Go(func() {
		defer g.leave()
		f.token, f.err = t.fetch(t.ctx, g, want)
		if f.err != nil && t.ctx.Err() != nil {
			f.err = ErrClosed
		}
		g.settle(s, f, time.Now())
		close(f.done)
		if f.err != nil {
			t.config.Logger.Warn("token refresh failed", "issuer", t.config.Issuer, "client_id", t.config.ClientID,
				"error", f.err)
		}
	})
}

// settle puts the result of a fetch into the slot. A failure leaves the old token in its place.
func (g *generation) settle(s *slot, f *flight, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.under = nil
	s.err = f.err
	if f.err != nil {
		s.retry = now.Add(backoff(s.failures, f.err))
		s.failures++
		return
	}
	life := f.token.Expires.Sub(now)
	s.token = f.token
	s.usable = f.token.Expires.Add(-min(skew, life/10))
	s.refresh = now.Add(time.Duration(float64(life) * (refreshFrom + refreshSpread*rand.Float64())))
	s.retry, s.failures = time.Time{}, 0
}

// backoff is the pause after a failure: doubling, at random between half and whole, at least what the issuer asks.
func backoff(failures int, err error) time.Duration {
	pause := min(minBackoff<<min(failures, 10), maxBackoff)
	pause = pause/2 + rand.N(pause/2)
	if refused, ok := errors.AsType[*Error](err); ok {
		pause = max(pause, refused.RetryAfter)
	}
	return pause
}

// stale makes the slot fetch anew if it still holds the refused token, and reports whether a retry makes sense.
// A resource server that refuses everything provokes one fetch in ten seconds, not one per request.
func (t *Transport) stale(g *generation, want request, refused Token) bool {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.tokens[t.key(g, want)]
	if s == nil || s.token.AccessToken != refused.AccessToken {
		return true // somebody has replaced it already
	}
	if !s.staled.IsZero() && now.Sub(s.staled) < minStaleInterval {
		return false
	}
	s.staled = now
	s.usable = time.Time{}
	return true
}
