// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

// hand hands out answers, one for each request, and keeps what was asked.
type hand struct {
	status  int
	answers []string
	asked   []string
	headers http.Header
	idle    int   // how often connections were closed
	cut     error // that ends a body
}

func (h *hand) RoundTrip(r *http.Request) (*http.Response, error) {
	h.asked, h.headers = append(h.asked, r.URL.String()), r.Header
	if len(h.answers) == 0 {
		return nil, errors.New("nobody there")
	}
	body := h.answers[0]
	h.answers = h.answers[1:]
	return &http.Response{StatusCode: h.status, Header: http.Header{"Location": {"/elsewhere"}}, Body: io.NopCloser(io.MultiReader(strings.NewReader(body), ending{h.cut})), Request: r}, nil
}

// ending is the end of a body.
type ending struct{ err error }

func (e ending) Read([]byte) (int, error) { return 0, cmp.Or(e.err, io.EOF) }

func (h *hand) CloseIdleConnections() { h.idle++ }

// followed is a DenyFeed that is polled by hand, at a time that the test sets.
type followed struct {
	*tokens.DenyFeed
	hand   *hand
	issuer *tokenstest.Issuer
	now    time.Time
}

// until is the end of all denials here.
var until = time.Unix(1_900_000_000, 0)

func tokenDenied(id string) tokens.Denial { return tokens.Denial{TokenID: id, Until: until} }

func newFollowed(tb testing.TB, change func(*tokens.DenyFeedConfig)) *followed {
	tb.Helper()
	f := &followed{hand: &hand{status: http.StatusOK}, issuer: tokenstest.New(tb), now: time.Unix(1_800_000_000, 0)}
	c := f.config()
	if change != nil {
		change(&c)
	}
	var err error
	if f.DenyFeed, err = tokens.NewDenyFeed(c); err != nil {
		tb.Fatal(err)
	}
	return f
}

func (f *followed) config() tokens.DenyFeedConfig {
	return tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, Keys: f.issuer.Keys(), Client: &http.Client{Transport: f.hand}, Stale: tokens.StaleRefuse,
		Now: func() time.Time { return f.now },
	}
}

// page is a good page of now that was changed.
func (f *followed) page(tb testing.TB, from, seq, head int64, entries ...tokens.Denial) string {
	tb.Helper()
	return f.issuer.DenyPage(tb, tokens.DenyPage{IssuedAt: f.now, From: from, Seq: seq, Head: head, Entries: entries})
}

// hears has the feed hear a page, and checks what comes of it; problem is a part of the error.
func (f *followed) hears(t *testing.T, raw string, news bool, problem string) {
	t.Helper()
	f.hand.answers = []string{raw}
	got, err := f.Poll(t.Context())
	if err != nil && !strings.HasPrefix(err.Error(), "deny feed: ") {
		t.Errorf("%v does not say what failed", err)
	}
	if got != news || (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
		t.Errorf("news: %v, %v; want %v, %q", got, err, news, problem)
	}
}

func (f *followed) wantAsked(t *testing.T, query string) {
	t.Helper()
	if got := f.hand.asked[len(f.hand.asked)-1]; got != tokenstest.DenyFeed+query {
		t.Errorf("asked %s, want %s", got, query)
	}
}

func (f *followed) wantDenied(t *testing.T, want bool, ids ...string) {
	t.Helper()
	for _, id := range ids {
		c := &tokens.Claims{ID: id}
		if got := f.Denies(c, ""); got != want {
			t.Errorf("%s denied: %v", id, got)
		}
		if got, err := f.Denied(t.Context(), c, ""); got != want || got && err != nil {
			t.Errorf("%s denied: %v, %v", id, got, err)
		}
	}
}

func (f *followed) wantErr(t *testing.T, want error) {
	t.Helper()
	if err := f.Err(); !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	if _, err := f.Denied(t.Context(), &tokens.Claims{ID: "never denied"}, ""); !errors.Is(err, want) {
		t.Errorf("asked: %v, want %v", err, want)
	}
}

// Until all was heard once, nothing is accepted; then each page adds, and the position is the acknowledgement.
func TestDenyFeedFollows(t *testing.T) {
	t.Parallel()
	for _, stale := range []tokens.Stale{tokens.StaleRefuse, tokens.StaleAllow} {
		f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.Stale = stale })
		f.wantErr(t, tokens.ErrDenyFeedStale)
		f.hears(t, f.page(t, 0, 2, 3, tokenDenied("a"), tokenDenied("b")), true, "")
		f.wantAsked(t, "")
		f.wantDenied(t, true, "a", "b")
		f.wantErr(t, tokens.ErrDenyFeedStale) // there is more
		f.hears(t, f.page(t, 2, 3, 3, tokenDenied("c")), true, "")
		f.wantAsked(t, "?since=2")
		f.wantDenied(t, true, "a", "b", "c")
		f.wantDenied(t, false, "d")
		f.wantErr(t, nil)
		f.hears(t, f.page(t, 3, 3, 3), false, "")
		f.wantAsked(t, "?since=3")
		if f.hand.headers.Get("Accept") != "application/certbound-deny+jwt" || f.hand.headers.Get("Cache-Control") != "no-cache" {
			t.Errorf("%v", f.hand.headers)
		}
		f.hears(t, f.page(t, 1, 4, 4, tokenDenied("b"), tokenDenied("c"), tokenDenied("d")), true, "")
		f.wantDenied(t, true, "a", "b", "c", "d")
	}
}

// Of an issuer that has nothing denied, that is known at once.
func TestDenyFeedOfNothing(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	f.hears(t, f.page(t, 0, 0, 0), false, "")
	f.wantErr(t, nil)
	f.hears(t, f.page(t, 0, 0, 0), false, "")
	f.wantAsked(t, "?since=0")
}

// RFC 8725, Sections 3.8, 3.9 and 3.11: only what the issuer's keys signed, as a page of the feed, for the feed, counts. What is refused
// adds nothing, and does not keep the feed fresh.
func TestRFC8725_3_DenyFeedRefuses(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	// signed changes header and payload of a good page before it is signed.
	signed := func(change func(header, payload map[string]any)) func(*followed) string {
		return func(f *followed) string {
			header := map[string]any{"alg": "ES256", "typ": tokens.DenyType, "kid": f.issuer.Keys()[0].ID}
			payload := map[string]any{"iss": tokenstest.URL, "aud": tokenstest.DenyFeed, "iat": f.now.Unix(), "from": 1, "seq": 2, "head": 2,
				"entries": []any{map[string]any{"jti": "new", "until": until.Unix()}}}
			change(header, payload)
			h, _ := json.Marshal(header)
			p, _ := json.Marshal(payload)
			return f.issuer.Sign(t, string(h), string(p))
		}
	}
	claim := func(name string, value any) func(*followed) string {
		return signed(func(_, payload map[string]any) { payload[name] = value })
	}
	without := func(name string) func(*followed) string {
		return signed(func(_, payload map[string]any) { delete(payload, name) })
	}
	entry := func(value any) func(*followed) string { return claim("entries", []any{value}) }
	header := func(name string, value any) func(*followed) string {
		return signed(func(header, _ map[string]any) { header[name] = value })
	}
	for name, test := range map[string]struct {
		make    func(*followed) string
		problem string
	}{
		"good":               {signed(func(_, _ map[string]any) {}), ""},
		"further member":     {claim("more", true), ""},
		"the future, nearly": {claim("iat", at.Unix()+10), ""},
		"type":               {header("typ", "at+jwt"), "another type"},
		"media type":         {header("typ", "application/certbound-deny+jwt"), "another type"},
		"no type":            {signed(func(h, _ map[string]any) { delete(h, "typ") }), "another type"},
		"algorithm":          {header("alg", "RS256"), "not allowed"},
		"key":                {header("kid", "x"), "unknown key"},
		"another's": {func(f *followed) string {
			o := *f
			o.issuer = tokenstest.New(t)
			return o.page(t, 1, 2, 2, tokenDenied("new"))
		}, "unknown key"},
		"denied key": {func(f *followed) string {
			_ = f.List().Add(tokens.Denial{KeyID: f.issuer.Keys()[0].ID, Until: until})
			return f.page(t, 1, 2, 2, tokenDenied("new"))
		}, "key that is denied"},
		"signature": {func(f *followed) string {
			raw := f.page(t, 1, 2, 2, tokenDenied("new"))
			return raw[:len(raw)-86] + f.page(t, 1, 2, 2)[len(f.page(t, 1, 2, 2))-86:]
		}, "signature"},
		"no JWT":  {func(*followed) string { return "no" }, "parts"},
		"nothing": {func(*followed) string { return "" }, "parts"},
		"too large": {func(f *followed) string {
			return f.page(t, 1, 2, 2, tokenDenied("new")) + strings.Repeat("x", tokens.MaxDenyDocument)
		}, "too large"},
		"issuer":           {claim("iss", "https://other.example"), "another issuer"},
		"audience":         {claim("aud", tokenstest.URL), "another audience"},
		"audiences":        {claim("aud", []string{tokenstest.DenyFeed}), "claim aud"},
		"the future":       {claim("iat", at.Unix()+11), "future"},
		"no time":          {without("iat"), "claim iat"},
		"no issuer":        {without("iss"), "claim iss"},
		"no audience":      {without("aud"), "claim aud"},
		"no beginning":     {without("from"), "claim from"},
		"no end":           {without("seq"), "claim seq"},
		"no head":          {without("head"), "claim head"},
		"no entries":       {without("entries"), "claim entries"},
		"too many entries": {claim("entries", make([]int, tokens.MaxDenyPageEntries+1)), "claim entries"},
		"negative":         {claim("from", -1), "claim from"},
		"fraction":         {claim("seq", 2.5), "claim seq"},
		"text":             {claim("head", "2"), "claim head"},
		"enormous":         {claim("head", json.Number("9223372036854775808")), "claim head"},
		"from behind seq":  {signed(func(_, p map[string]any) { p["from"], p["seq"], p["head"] = 1, 0, 2 }), "no order"},
		"seq behind head":  {claim("head", 1), "no order"},
		"member twice": {func(f *followed) string {
			return f.issuer.Sign(t, fmt.Sprintf(`{"alg":"ES256","typ":%q,"kid":%q}`, tokens.DenyType, f.issuer.Keys()[0].ID), `{"iss":"a","iss":"b"}`)
		}, "duplicate"},
		"gap":                  {claim("from", 2), "begins behind"},
		"no object":            {entry("jti"), "not an object"},
		"kind":                 {entry(map[string]any{"sub": "x", "until": until.Unix()}), "not known here"},
		"member":               {entry(map[string]any{"jti": "x", "until": until.Unix(), "unless": true}), "not known here"},
		"two kinds":            {entry(map[string]any{"jti": "x", "kid": "k", "until": until.Unix()}), "exactly one"},
		"no kind":              {entry(map[string]any{"until": until.Unix()}), "exactly one"},
		"no until":             {entry(map[string]any{"jti": "x"}), "no end"},
		"client without time":  {entry(map[string]any{"client_id": "x", "until": until.Unix()}), "before when"},
		"token before time":    {entry(map[string]any{"jti": "x", "iat_before": 1, "until": until.Unix()}), "before when"},
		"no thumbprint":        {entry(map[string]any{"x5t#S256": "x", "until": until.Unix()}), "claim x5t#S256"},
		"empty":                {entry(map[string]any{"jti": "", "until": until.Unix()}), "claim jti"},
		"until text":           {entry(map[string]any{"jti": "x", "until": "1"}), "claim until"},
		"iat_before text":      {entry(map[string]any{"client_id": "x", "iat_before": "1", "until": until.Unix()}), "claim iat_before"},
		"kid number":           {entry(map[string]any{"kid": 1, "until": until.Unix()}), "claim kid"},
		"client number":        {entry(map[string]any{"client_id": 1, "iat_before": 1, "until": until.Unix()}), "claim client_id"},
		"good and bad entries": {claim("entries", []any{map[string]any{"jti": "new", "until": until.Unix()}, 1}), "entry 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFollowed(t, nil)
			f.now = at
			f.hears(t, f.page(t, 0, 1, 1, tokenDenied("old")), true, "")
			raw := test.make(f)
			if test.problem == "" {
				f.hears(t, raw, true, "")
				f.wantDenied(t, true, "old", "new")
				return
			}
			f.now = at.Add(20 * time.Second) // so that what is from the future is
			if name == "the future" {
				f.now = at
			}
			f.hears(t, raw, false, test.problem)
			f.wantDenied(t, true, "old")
			f.wantDenied(t, false, "new")
			f.now = at.Add(30 * time.Second)
			f.wantErr(t, tokens.ErrDenyFeedStale)
		})
	}
}

// A page may be all of what it can be, and each kind of entry comes over.
func TestDenyFeedKinds(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	before := f.now.Add(-time.Minute)
	entries := []tokens.Denial{
		{TokenID: "a", Until: until}, {KeyID: "k", Until: until}, {Thumbprint: thumbprint(7), Until: until},
		{ClientID: "c", IssuedBefore: before, Until: until},
	}
	for n := len(entries); n < tokens.MaxDenyPageEntries; n++ {
		entries = append(entries, tokens.Denial{Thumbprint: thumbprint(uint64(n + 100)), Until: until})
	}
	f.hears(t, f.page(t, 0, 5000, 5000, entries...), true, "")
	f.wantErr(t, nil)
	for _, c := range []struct {
		claims tokens.Claims
		kid    string
		denied bool
	}{
		{tokens.Claims{ID: "a"}, "x", true},
		{tokens.Claims{ID: "b"}, "k", true},
		{tokens.Claims{Thumbprint: thumbprint(7)}, "x", true},
		{tokens.Claims{Thumbprint: thumbprint(8)}, "x", false},
		{tokens.Claims{ClientID: "c", IssuedAt: before.Add(-time.Second)}, "x", true},
		{tokens.Claims{ClientID: "c", IssuedAt: before}, "x", false},
	} {
		denied, err := f.Denied(t.Context(), &c.claims, c.kid)
		if denied != c.denied || err != nil || f.Denies(&c.claims, c.kid) != c.denied {
			t.Errorf("%+v: %v, %v", c, denied, err)
		}
	}
}

// An end and a moment within a second are those of the next one, so that no token slips through; names are escaped.
func TestDenialAppendJSON(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	for _, test := range []struct {
		denial tokens.Denial
		want   string
	}{
		{tokens.Denial{TokenID: `a"`, Until: at}, `{"jti":"a\"","until":1800000000}`},
		{tokens.Denial{KeyID: "k", Until: at.Add(1)}, `{"kid":"k","until":1800000001}`},
		{tokens.Denial{ClientID: "c", IssuedBefore: at.Add(time.Second - 1), Until: at.Add(time.Second)}, `{"client_id":"c","iat_before":1800000001,"until":1800000001}`},
		{tokens.Denial{Thumbprint: thumbprint(0), Until: at}, `{"x5t#S256":"AAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","until":1800000000}`},
	} {
		if got := string(test.denial.AppendJSON(nil)); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}

// What is denied once stays so, whatever comes. An issuer that knows less than it has told makes nothing fresh, and is asked
// for everything from the beginning: it may deny something else at a position that the DenyFeed has heard of.
func TestDenyFeedNeverGoesBack(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	f.hears(t, f.page(t, 0, 5, 5, tokenDenied("a")), true, "")
	began := f.now
	f.now = began.Add(20 * time.Second)
	// A replica that lags, or an issuer that has lost what it told: what it adds counts, but it cannot say that this is all.
	f.hears(t, f.page(t, 4, 4, 4, tokenDenied("b")), false, "knows less")
	f.wantAsked(t, "?since=5")
	f.wantDenied(t, true, "a", "b")
	f.wantErr(t, nil)
	// What it denies behind that is no part of everything.
	f.hears(t, f.page(t, 4, 5, 5, tokenDenied("other")), false, "begins behind")
	f.wantAsked(t, "")
	f.wantDenied(t, false, "other")
	f.hears(t, f.page(t, 0, 3, 5), true, "")
	f.wantAsked(t, "")
	f.now = began.Add(30*time.Second - 1)
	f.wantErr(t, nil)
	f.now = began.Add(30 * time.Second)
	f.wantErr(t, tokens.ErrDenyFeedStale)
	f.hears(t, f.page(t, 3, 5, 5, tokenDenied("other")), true, "")
	f.wantAsked(t, "?since=3")
	f.wantErr(t, nil)
	f.wantDenied(t, true, "a", "b", "other")
	// A part of what is known already, as after a gap.
	f.hears(t, f.page(t, 6, 7, 7, tokenDenied("c")), false, "begins behind")
	f.wantDenied(t, false, "c")
	f.hears(t, f.page(t, 0, 3, 6), false, "")
	f.wantAsked(t, "")
	f.hears(t, f.page(t, 5, 7, 7, tokenDenied("c")), true, "")
	f.wantAsked(t, "?since=5")
	f.wantErr(t, nil)
	f.wantDenied(t, true, "a", "b", "other", "c")
}

// A page that is replayed adds what it says, and makes nothing fresher; one that is old does not make it fresh at all.
func TestDenyFeedReplayed(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	at := f.now
	first := f.page(t, 0, 1, 1, tokenDenied("a"))
	f.hears(t, first, true, "")
	f.now = at.Add(10 * time.Second)
	f.hears(t, f.page(t, 1, 1, 1), false, "")
	f.hears(t, first, false, "") // it does not take back what was known later
	f.now = at.Add(39 * time.Second)
	f.wantErr(t, nil)
	f.hears(t, first, false, "old")
	f.now = at.Add(40 * time.Second)
	f.wantErr(t, tokens.ErrDenyFeedStale)
	f.hears(t, first, false, "old")
	f.wantErr(t, tokens.ErrDenyFeedStale)
	old := f.issuer.DenyPage(t, tokens.DenyPage{IssuedAt: f.now.Add(-30 * time.Second), From: 1, Seq: 2, Head: 2, Entries: []tokens.Denial{tokenDenied("b")}})
	f.hears(t, old, true, "old")
	f.wantDenied(t, true, "a", "b")
	f.wantErr(t, tokens.ErrDenyFeedStale)
	// A page of the near future is not fresh for longer than one of now.
	ahead := f.issuer.DenyPage(t, tokens.DenyPage{IssuedAt: f.now.Add(10 * time.Second), From: 2, Seq: 2, Head: 2})
	f.hears(t, ahead, false, "")
	f.now = f.now.Add(30 * time.Second)
	f.wantErr(t, tokens.ErrDenyFeedStale)
}

// StaleAllow accepts while nothing is heard, but still nothing that was denied.
func TestDenyFeedStaleAllow(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.Stale, c.MaxAge = tokens.StaleAllow, 10*time.Second })
	f.hears(t, f.page(t, 0, 1, 1, tokenDenied("a")), true, "")
	f.now = f.now.Add(time.Hour)
	f.wantErr(t, nil)
	f.wantDenied(t, true, "a")
}

// FA-02: RFC 7009, Section 3: a resource server under the FAPI 2.0 profile refuses what it cannot know, unless it is told to
// allow it, and believes no feed that is signed as the profile does not have it.
func TestDenyFeedFAPI(t *testing.T) {
	t.Parallel()
	for stale, want := range map[tokens.Stale]error{0: tokens.ErrDenyFeedStale, tokens.StaleRefuse: tokens.ErrDenyFeedStale, tokens.StaleAllow: nil} {
		f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.FAPI, c.Stale = true, stale })
		f.hears(t, f.page(t, 0, 0, 0), false, "")
		f.wantErr(t, nil)
		f.now = f.now.Add(time.Hour)
		f.wantErr(t, want)
	}
	for problem, change := range map[string]func(*tokens.DenyFeedConfig){
		"":                             func(c *tokens.DenyFeedConfig) { c.Algorithms = []string{tokens.EdDSA, tokens.PS256, tokens.ES256} },
		"not have the algorithm RS256": func(c *tokens.DenyFeedConfig) { c.Algorithms = []string{tokens.ES256, tokens.RS256} },
		"ML-DSA-44":                    func(c *tokens.DenyFeedConfig) { c.Algorithms = []string{tokens.MLDSA44} },
		"not said":                     func(c *tokens.DenyFeedConfig) { c.Stale = tokens.StaleAllow + 1 },
	} {
		c := (&followed{hand: &hand{}, issuer: tokenstest.New(t)}).config()
		c.FAPI, c.Stale = true, 0
		change(&c)
		if _, err := tokens.NewDenyFeed(c); (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: %v", problem, err)
		}
	}
}

// The wall clock that is set back does not make old knowledge fresh, nor does a monotonic clock that stood still.
func TestDenyFeedClocks(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	start := time.Now() // with a monotonic reading
	f.now = start
	f.hears(t, f.page(t, 0, 0, 0), false, "")
	f.now = start.Add(31 * time.Second)
	f.wantErr(t, tokens.ErrDenyFeedStale)
	f.now = start.Round(0).Add(31 * time.Second) // slept: the wall clock alone went on
	f.wantErr(t, tokens.ErrDenyFeedStale)
	f.now = start.Add(time.Second)
	f.wantErr(t, nil)
}

// What has ended is forgotten, some minutes later, by the issuer's clock.
func TestDenyFeedForgetsWhatHasEnded(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	end := f.now.Add(time.Hour)
	f.hears(t, f.page(t, 0, 1, 1, tokens.Denial{TokenID: "a", Until: end}), true, "")
	f.now = end.Add(2 * time.Minute)
	f.hears(t, f.page(t, 1, 1, 1), false, "")
	f.wantDenied(t, true, "a")
	f.now = end.Add(2*time.Minute + 59*time.Second)
	f.hears(t, f.page(t, 1, 1, 1), false, "")
	f.wantDenied(t, true, "a") // not looked at again so soon
	f.now = end.Add(3 * time.Minute)
	f.hears(t, f.page(t, 1, 1, 1), false, "")
	f.wantDenied(t, false, "a")
}

// A list without room refuses everything, and asks for the same part again until it fits.
func TestDenyFeedFull(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.Stale = tokens.StaleAllow })
	f.hears(t, f.page(t, 0, 2, 2, tokenDenied("a")), true, "")
	end := f.now.Add(time.Hour)
	text := strings.Repeat("x", 8000)
	for n := 0; ; n++ {
		if err := f.List().Add(tokens.Denial{TokenID: fmt.Sprint(text, n), Until: end}); err != nil {
			break
		}
	}
	long := tokens.Denial{TokenID: text + "long", Until: until}
	f.hears(t, f.page(t, 2, 6, 6, long, long), false, "full")
	f.wantErr(t, tokens.ErrDenyListFull)
	f.hears(t, f.page(t, 1, 4, 6, long, tokens.Denial{TokenID: text + "other", Until: until}), false, "full")
	f.wantAsked(t, "?since=2")
	f.hears(t, f.page(t, 2, 2, 2), false, "") // of a lagging replica: it has not what is missing
	f.wantAsked(t, "?since=1")
	f.wantErr(t, tokens.ErrDenyListFull)
	f.hears(t, f.page(t, 1, 1, 1), false, "knows less") // nor does one that knows still less make it whole
	f.hears(t, f.page(t, 0, 2, 2), true, "")
	f.wantAsked(t, "?since=0")
	f.wantErr(t, tokens.ErrDenyListFull)
	f.now = end.Add(2*time.Minute + time.Second)
	f.hears(t, f.page(t, 1, 3, 6, long), false, "full") // and then there is room
	f.hears(t, f.page(t, 2, 6, 6, long), true, "")      // but not all of what is missing
	f.wantErr(t, tokens.ErrDenyListFull)
	f.hears(t, f.page(t, 0, 4, 6, long), false, "")
	f.wantErr(t, tokens.ErrDenyListFull)
	f.hears(t, f.page(t, 4, 6, 6, long), false, "")
	f.wantAsked(t, "?since=4")
	f.wantErr(t, nil)
	f.hears(t, f.page(t, 6, 6, 6), false, "")
	f.wantAsked(t, "?since=6")
	f.wantDenied(t, true, "a", text+"long")
	f.hears(t, f.page(t, 5, 5, 5), false, "knows less")
	f.hears(t, f.page(t, 0, 3, 6), true, "")
	f.wantErr(t, nil) // nothing is missing any more
}

// What is not a page is silence, and closes connections that may be dead.
func TestDenyFeedSilence(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, nil)
	good := f.page(t, 0, 0, 0)
	for _, status := range []int{401, 403, 503, 204, 302} {
		f.hand.status = status
		f.hears(t, good, false, fmt.Sprint("status ", status))
	}
	f.wantErr(t, tokens.ErrDenyFeedStale)
	if f.hand.idle != 5 || len(f.hand.asked) != 5 {
		t.Errorf("closed %d times, asked %v", f.hand.idle, f.hand.asked)
	}
	if _, err := f.Poll(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody there") {
		t.Error(err)
	}
	f.hand.status, f.hand.cut = http.StatusOK, io.ErrUnexpectedEOF
	f.hears(t, good, false, "unexpected EOF")
	f.wantErr(t, tokens.ErrDenyFeedStale)
	f.hand.cut = nil
	f.hears(t, good, false, "")
	if f.hand.idle != 7 {
		t.Errorf("closed %d times", f.hand.idle)
	}
}

// What can't be used is named.
func TestNewDenyFeed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change  func(*tokens.DenyFeedConfig)
		problem string
	}{
		"good":           {func(*tokens.DenyFeedConfig) {}, ""},
		"URL":            {func(c *tokens.DenyFeedConfig) { c.URL = "https://mtls.example:8443/oauth2/denied" }, ""},
		"least age":      {func(c *tokens.DenyFeedConfig) { c.MaxAge = 10 * time.Second }, ""},
		"most age":       {func(c *tokens.DenyFeedConfig) { c.MaxAge = time.Hour }, ""},
		"algorithm":      {func(c *tokens.DenyFeedConfig) { c.Algorithms = []string{tokens.RS256} }, ""},
		"no issuer":      {func(c *tokens.DenyFeedConfig) { c.Issuer = "" }, "issuer"},
		"http":           {func(c *tokens.DenyFeedConfig) { c.Issuer = "http://issuer.example" }, "issuer"},
		"no keys":        {func(c *tokens.DenyFeedConfig) { c.Keys = nil }, "no keys"},
		"no client":      {func(c *tokens.DenyFeedConfig) { c.Client = nil }, "no client"},
		"not said":       {func(c *tokens.DenyFeedConfig) { c.Stale = 0 }, "not said"},
		"unknown":        {func(c *tokens.DenyFeedConfig) { c.Stale = tokens.StaleAllow + 1 }, "not said"},
		"age":            {func(c *tokens.DenyFeedConfig) { c.MaxAge = 10*time.Second - 1 }, "age"},
		"long age":       {func(c *tokens.DenyFeedConfig) { c.MaxAge = time.Hour + 1 }, "age"},
		"negative":       {func(c *tokens.DenyFeedConfig) { c.MaxAge = -time.Minute }, "age"},
		"none":           {func(c *tokens.DenyFeedConfig) { c.Algorithms = []string{"none"} }, "algorithm"},
		"URL unreadable": {func(c *tokens.DenyFeedConfig) { c.URL = "https://x\x00" }, "URL"},
		"URL of http":    {func(c *tokens.DenyFeedConfig) { c.URL = "http://x/" }, "URL"},
		"URL no host":    {func(c *tokens.DenyFeedConfig) { c.URL = "https:///x" }, "URL"},
		"URL query":      {func(c *tokens.DenyFeedConfig) { c.URL = "https://x/?since=1" }, "URL"},
		"URL fragment":   {func(c *tokens.DenyFeedConfig) { c.URL = "https://x/#a" }, "URL"},
		"URL user":       {func(c *tokens.DenyFeedConfig) { c.URL = "https://u:secret@x/" }, "URL"},
	} {
		c := (&followed{hand: &hand{}, issuer: tokenstest.New(t)}).config()
		test.change(&c)
		feed, err := tokens.NewDenyFeed(c)
		if (err == nil) != (test.problem == "") || (feed != nil) != (err == nil) || err != nil && (!strings.Contains(err.Error(), test.problem) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v, want %q", name, err, test.problem)
		}
	}
	f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.URL = "https://mtls.example/denied" })
	f.hears(t, f.page(t, 0, 0, 0), false, "")
	if f.hand.asked[0] != "https://mtls.example/denied" {
		t.Error(f.hand.asked)
	}
}

// After failures it waits longer each time, up to a bound and never the same; after news not at all. One success ends it.
func TestDenyFeedPause(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	most := []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second}
	longest, shortest := make([]time.Duration, 40), make([]time.Duration, 40)
	for range 200 {
		var r tokens.DenyRetry
		for n := range longest {
			d := r.Pause(failed, true, time.Hour)
			longest[n] = max(longest[n], d)
			if shortest[n] == 0 || d < shortest[n] {
				shortest[n] = d
			}
		}
	}
	for n := range longest {
		bound := most[min(n, len(most)-1)]
		if longest[n] > bound || longest[n] < bound*9/10 || shortest[n] < bound/2 || shortest[n] > bound*6/10 {
			t.Errorf("after %d failures %v to %v", n+1, shortest[n], longest[n])
		}
	}
	var r tokens.DenyRetry
	for range 10 {
		r.Pause(failed, false, 0)
	}
	for _, test := range []struct {
		news       bool
		took, want time.Duration
	}{{true, 0, 0}, {false, 0, 100 * time.Millisecond}, {false, 30 * time.Millisecond, 70 * time.Millisecond}, {false, time.Second, 0}} {
		if got := r.Pause(nil, test.news, test.took); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
	if d := r.Pause(failed, false, 0); d > 250*time.Millisecond {
		t.Errorf("%v after the first failure since a success", d)
	}
}

// alarms are the changes that a DenyFeed told, in order.
type alarms struct {
	mu     sync.Mutex
	told   []string
	causes []error
}

func (a *alarms) DenyFeedFresh()            { a.tell("fresh", nil) }
func (a *alarms) DenyFeedStale(cause error) { a.tell("stale", cause) }

func (a *alarms) tell(what string, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told, a.causes = append(a.told, what), append(a.causes, cause)
}

func (a *alarms) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.told, " ")
}

// clock is the real one, shifted.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) shift(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += by
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// RV-06, FA-02: RFC 7009, Section 3: a resource server that follows the feed refuses a revoked token at once, refuses everything when it has
// heard nothing for too long, says so once, and recovers by itself.
func TestDenyFeedRun(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.DenyFeedServer(t)
	var log bytes.Buffer
	told, clock := &alarms{}, &clock{}
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: server.URL, Keys: issuer.Keys(), Client: server.Client, Stale: tokens.StaleRefuse,
		Events: told, Logger: slog.New(slog.NewTextHandler(&log, nil)), Now: clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- feed.Run(ctx) }()
	eventually(t, "all is heard", func() bool { return feed.Err() == nil && told.String() == "fresh" })
	if err := feed.Run(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("run twice: %v", err)
	}
	added := make(chan struct{}, 10)
	feed.OnAdd(func() { added <- struct{}{} })
	eventually(t, "it waits", func() bool { return server.Acknowledged() == 0 })
	began := time.Now()
	server.Deny(tokenDenied("a"))
	<-added
	if took := time.Since(began); took > time.Second {
		t.Errorf("told after %v", took)
	}
	if !feed.Denies(&tokens.Claims{ID: "a"}, "") {
		t.Error("not denied")
	}
	eventually(t, "it is acknowledged", func() bool { return server.Acknowledged() == 1 })
	if n := server.Polls(); n > 20 {
		t.Errorf("asked %d times", n)
	}
	server.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	eventually(t, "it fails", func() bool { n := server.Polls(); return n > 4 })
	clock.shift(30 * time.Second)
	eventually(t, "the alarm", func() bool { return told.String() == "fresh stale" })
	if err := feed.Err(); !errors.Is(err, tokens.ErrDenyFeedStale) {
		t.Error(err)
	}
	clock.shift(-30 * time.Second)
	server.Answer(nil)
	eventually(t, "it recovers", func() bool { return told.String() == "fresh stale fresh" })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if cause := told.causes[1]; cause == nil || !strings.Contains(cause.Error(), "status 503") {
		t.Error(cause)
	}
	if n := strings.Count(log.String(), "\n"); n != 3 || strings.Count(log.String(), "level=ERROR") != 1 || !strings.Contains(log.String(), "refused=true") {
		t.Errorf("%s", &log)
	}
	// It can be run again, from where it is.
	ctx, stop = context.WithCancel(t.Context())
	stop()
	if err := feed.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Who waits is told when all is known, or what failed; without a clock of its own it takes the real one.
func TestDenyFeedWait(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.DenyFeedServer(t)
	server.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: server.URL, Keys: issuer.Keys(), Client: server.Client, Stale: tokens.StaleRefuse})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { _ = feed.Run(ctx) })
	eventually(t, "it asks again", func() bool { return server.Polls() > 1 })
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := feed.Wait(done); !errors.Is(err, tokens.ErrDenyFeedStale) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "status 418") {
		t.Error(err)
	}
	server.Answer(nil)
	if err := feed.Wait(t.Context()); err != nil || feed.Err() != nil {
		t.Error(err, feed.Err())
	}
}

// Silence raises the alarm although no request has failed, and so does a feed that was never heard, but not at once.
func TestDenyFeedAlarm(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.DenyFeedServer(t)
	server.Answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	told, clock := &alarms{}, &clock{}
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: server.URL, Keys: issuer.Keys(), Client: server.Client, Stale: tokens.StaleAllow, Events: told, Now: clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { _ = feed.Run(ctx) })
	eventually(t, "it asks", func() bool { return server.Polls() == 1 })
	if told.String() != "" {
		t.Error(told)
	}
	clock.shift(30 * time.Second)
	eventually(t, "the alarm", func() bool { return told.String() == "stale" })
	if err := feed.Err(); !errors.Is(err, tokens.ErrDenyFeedStale) {
		t.Errorf("nothing was heard ever: %v", err)
	}
}

// Each change is told once: when all is known, when nothing was heard for too long, and when the list is full.
func TestDenyFeedTells(t *testing.T) {
	t.Parallel()
	told := &alarms{}
	f := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.Events = told })
	want := func(changes string) {
		t.Helper()
		if told.String() != changes {
			t.Errorf("told %q, want %q", told, changes)
		}
	}
	began := f.now
	f.hears(t, f.page(t, 0, 1, 2, tokenDenied("a")), true, "")
	want("")
	f.now = began.Add(30 * time.Second)
	f.hears(t, "", false, "parts")
	f.hears(t, "", false, "parts")
	want("stale")
	f.now = began
	f.hears(t, "", false, "parts")
	want("stale")
	f.hears(t, f.page(t, 1, 2, 2, tokenDenied("b")), true, "")
	f.hears(t, f.page(t, 2, 2, 2), false, "")
	want("stale fresh")
	for n := 0; f.List().Add(tokenDenied(fmt.Sprint(strings.Repeat("x", 8000), n))) == nil; n++ {
	}
	f.hears(t, f.page(t, 2, 3, 3, tokenDenied(strings.Repeat("y", 8000))), false, "full")
	want("stale fresh stale")
	f.hears(t, "", false, "parts")
	want("stale fresh stale")
	if !errors.Is(told.causes[2], tokens.ErrDenyListFull) || !strings.Contains(fmt.Sprint(told.causes[0]), "parts") {
		t.Error(told.causes)
	}
}

// The alarm counts from the issuer's last word, and not from when it was heard or the program began.
func TestDenyFeedAlarmCounts(t *testing.T) {
	t.Parallel()
	issuer := tokenstest.New(t)
	server := issuer.DenyFeedServer(t)
	page := issuer.DenyPage(t, tokens.DenyPage{IssuedAt: time.Now().Add(-25 * time.Second)})
	server.Answer(func(w http.ResponseWriter, r *http.Request) {
		if server.Polls() > 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, page)
	})
	told, clock := &alarms{}, &clock{}
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: tokenstest.URL, URL: server.URL, Keys: issuer.Keys(), Client: server.Client, Stale: tokens.StaleAllow, Events: told, Now: clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { _ = feed.Run(ctx) })
	eventually(t, "it is heard", func() bool { return told.String() == "fresh" })
	clock.shift(5 * time.Second)
	eventually(t, "the alarm", func() bool { return told.String() == "fresh stale" })
}

// FuzzDenyFeed has a DenyFeed hear pages in any order and form: some good, some cut or changed, some with nonsense signed
// by the issuer. It never forgets what it was told, passes nothing over, and never takes silence for an answer.
func FuzzDenyFeed(f *testing.F) {
	f.Add([]byte{0, 0, 3, 3, 0, 3, 5, 5, 1, 5, 5, 5}, "", "")
	f.Add([]byte{0, 9, 12, 12, 2, 0, 3, 9, 3, 1, 2, 2}, `{"iss":"https://issuer.example"}`, "a.b.c")
	f.Add([]byte{4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 2, 2, 6, 0, 1, 1}, `{"entries":[{"jti":"a"}]}`, "..")
	f.Add([]byte{0, 0, 9, 9, 1, 4, 4, 4, 0, 4, 9, 9, 0, 0, 3, 9, 0, 3, 9, 9}, "", "")
	issuer := tokenstest.New(f)
	f.Fuzz(func(t *testing.T, script []byte, payload, raw string) {
		w := newFollowed(t, func(c *tokens.DenyFeedConfig) { c.Keys = issuer.Keys() })
		w.issuer = issuer
		must, position := map[string]bool{}, int64(0)
		header := fmt.Sprintf(`{"alg":"ES256","typ":%q,"kid":%q}`, tokens.DenyType, issuer.Keys()[0].ID)
		for ; len(script) >= 4 && len(must) < 200; script = script[4:] {
			kind, from, seq, head := script[0]%7, int64(script[1]), int64(script[2]), int64(script[3])
			id := fmt.Sprint("t", binary.BigEndian.Uint32(script))
			good := w.page(t, from, seq, head, tokenDenied(id))
			before := w.Err()
			switch kind {
			case 0, 1:
				w.hand.answers = []string{good}
			case 2:
				w.hand.answers = []string{good[:len(good)*int(script[1])/256]}
			case 3:
				changed := []byte(good)
				changed[len(good)*int(script[1])/256] ^= 1
				w.hand.answers = []string{string(changed)}
			case 4:
				w.hand.answers = []string{issuer.Sign(t, header, payload)}
			case 5:
				w.hand.answers = []string{raw}
			case 6:
				w.now = w.now.Add(time.Duration(script[1]) * time.Second)
				before = w.Err()
			}
			_, err := w.Poll(t.Context())
			order := from <= seq && seq <= head
			if kind < 2 && order && from <= position {
				must[id] = true
				position = max(position, seq)
				if fresh := seq == head && head >= position; fresh != (w.Err() == nil) && (fresh || before != nil) {
					t.Fatalf("position %d, page %d %d %d: %v, %v", position, from, seq, head, err, w.Err())
				}
				if head < position { // all of it again
					position = 0
				}
			} else if kind != 4 && before != nil && w.Err() == nil {
				t.Fatalf("fresh by kind %d, %d %d %d at %d", kind, from, seq, head, position)
			} else if kind == 4 && (err == nil || strings.Contains(err.Error(), "knows less") || strings.Contains(err.Error(), "is old")) {
				return // a page of another's making: its position is not known here
			}
			for id := range must {
				if !w.Denies(&tokens.Claims{ID: id}, "") {
					t.Fatalf("%s is not denied any more", id)
				}
			}
		}
	})
}

// A15: after an emergency the page that denies the old key is signed by one that nobody has heard of. It is believed at
// once, whatever keys strangers have asked for.
func TestDenyFeedNewKey(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *network, k *tokens.KeySet, old, fresh *tokenstest.Issuer) {
		feed, hand := &followed{issuer: fresh, now: time.Now()}, &hand{status: http.StatusOK}
		feed.hand = hand
		c := feed.config()
		c.Keys = k
		var err error
		if feed.DenyFeed, err = tokens.NewDenyFeed(c); err != nil {
			t.Fatal(err)
		}
		wantKey(t, k, old)
		time.Sleep(10 * time.Second)
		wantNoKey(t, k, "made up", tokens.ErrUnknownKey) // which uses up what strangers may cause
		feed.now = time.Now()
		feed.hears(t, feed.page(t, 0, 1, 1), false, tokens.ErrUnknownKey.Error())
		n.set(nil, 0, fresh)
		time.Sleep(time.Second)
		feed.now = time.Now()
		denial := tokens.Denial{KeyID: old.Keys()[0].ID, Until: feed.now.Add(time.Hour)}
		feed.hears(t, feed.page(t, 0, 1, 1, denial), true, "")
		if !feed.Denies(&tokens.Claims{}, old.Keys()[0].ID) {
			t.Error("the old key is not denied")
		}
	})
}
