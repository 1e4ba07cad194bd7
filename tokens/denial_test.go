// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/tokenstest"
)

func thumbprint(n uint64) (t mtls.Thumbprint) {
	binary.BigEndian.PutUint64(t[:], n+1)
	return t
}

func denied(t *testing.T, l *tokens.DenyList, want bool, c tokens.Claims, kid string) {
	t.Helper()
	if got := l.Denies(&c, kid); got != want {
		t.Errorf("denied: %v, want %v, of %+v signed by %q", got, want, c, kid)
	}
}

// Each kind of denial refuses the tokens that it names, and no others.
func TestDenyListKinds(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	good := tokens.Claims{ID: "t1", ClientID: "c1", IssuedAt: at, Thumbprint: thumbprint(1)}
	change := func(f func(*tokens.Claims)) tokens.Claims { c := good; f(&c); return c }
	until := at.Add(time.Hour)
	for name, test := range map[string]struct {
		denial tokens.Denial
		other  tokens.Claims
		kid    string // that other was signed with
	}{
		"token":      {tokens.Denial{TokenID: "t1", Until: until}, change(func(c *tokens.Claims) { c.ID = "t2" }), "k1"},
		"thumbprint": {tokens.Denial{Thumbprint: thumbprint(1), Until: until}, change(func(c *tokens.Claims) { c.Thumbprint = thumbprint(2) }), "k1"},
		"client":     {tokens.Denial{ClientID: "c1", IssuedBefore: at.Add(1), Until: until}, change(func(c *tokens.Claims) { c.ClientID = "c2" }), "k1"},
		"later":      {tokens.Denial{ClientID: "c1", IssuedBefore: at.Add(time.Second), Until: until}, change(func(c *tokens.Claims) { c.IssuedAt = at.Add(time.Second) }), "k1"},
		"key":        {tokens.Denial{KeyID: "k1", Until: until}, good, "k2"},
	} {
		var l tokens.DenyList
		denied(t, &l, false, good, "k1")
		if err := l.Add(test.denial); err != nil {
			t.Fatal(name, err)
		}
		denied(t, &l, true, good, "k1")
		denied(t, &l, false, test.other, test.kid)
		denied(t, &l, false, tokens.Claims{}, "")
		if !test.denial.Denies(&good, "k1") || test.denial.Denies(&test.other, test.kid) || test.denial.Denies(&tokens.Claims{}, "") {
			t.Errorf("%s: the denial and the list differ", name)
		}
	}
}

// A denial that could mean anything, or would never end, is refused, and those beside it are added all the same.
func TestDenyListRefuses(t *testing.T) {
	t.Parallel()
	until := time.Unix(1_800_000_000, 0)
	for name, d := range map[string]tokens.Denial{
		"nothing":          {Until: until},
		"two":              {TokenID: "a", KeyID: "a", Until: until},
		"no end":           {TokenID: "a"},
		"client for ever":  {ClientID: "a", Until: until},
		"key with a time":  {KeyID: "a", IssuedBefore: until, Until: until},
		"a text too long":  {TokenID: strings.Repeat("a", 8<<10+1), Until: until},
		"print and client": {Thumbprint: thumbprint(1), ClientID: "a", IssuedBefore: until, Until: until},
	} {
		var l tokens.DenyList
		if err := l.Add(d, tokens.Denial{TokenID: "b", Until: until}); err == nil {
			t.Errorf("%s: no error", name)
		}
		denied(t, &l, true, tokens.Claims{ID: "b"}, "")
		if l.Len() != 1 {
			t.Errorf("%s: %d entries", name, l.Len())
		}
	}
	if err := new(tokens.DenyList).Add(tokens.Denial{TokenID: strings.Repeat("a", 8<<10), Until: until}); err != nil {
		t.Error(err)
	}
}

// What is denied stays so until the record ends, whatever is added or pruned meanwhile.
func TestDenyListKeepsWhatDeniesMore(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	long, short := at.Add(time.Hour), at.Add(time.Minute)
	for _, order := range [][2]time.Time{{long, short}, {short, long}} {
		var l tokens.DenyList
		for i, until := range order {
			before := at.Add(time.Duration(1-i) * time.Second) // the later one denies less
			err := l.Add(tokens.Denial{TokenID: "t", Until: until}, tokens.Denial{KeyID: "k", Until: until},
				tokens.Denial{Thumbprint: thumbprint(1), Until: until},
				tokens.Denial{ClientID: "c", IssuedBefore: before, Until: until})
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, now := range []time.Time{at, short, short.Add(1), long, long.Add(1)} {
			l.Prune(now)
			want := !now.After(long)
			denied(t, &l, want, tokens.Claims{ID: "t"}, "")
			denied(t, &l, want, tokens.Claims{}, "k")
			denied(t, &l, want, tokens.Claims{Thumbprint: thumbprint(1)}, "")
			denied(t, &l, want, tokens.Claims{ClientID: "c", IssuedAt: at}, "")
			if l.Len() != map[bool]int{true: 4}[want] {
				t.Errorf("%d entries at %v", l.Len(), now)
			}
		}
	}
}

// Whoever adds without end is told so, and what is denied stays denied; what ends makes room again.
func TestDenyListIsBounded(t *testing.T) {
	t.Parallel()
	var l tokens.DenyList
	until := time.Unix(1_800_000_000, 0)
	text := strings.Repeat("x", 8<<10-8)
	fill := func() (n int) {
		for n < 1<<20 {
			id := fmt.Sprintf("%08d", n) + text
			d := []tokens.Denial{{TokenID: id, Until: until}, {ClientID: id, IssuedBefore: until, Until: until}, {KeyID: id, Until: until}}[n%3]
			if err := l.Add(d); errors.Is(err, tokens.ErrDenyListFull) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
		t.Fatal("it has no bound")
		return n
	}
	n := fill()
	for l.Add(tokens.Denial{Thumbprint: thumbprint(uint64(l.Len())), Until: until}) == nil {
		if l.Len() > n+1000 {
			t.Fatal("thumbprints have no bound")
		}
	}
	if err := l.Add(tokens.Denial{TokenID: fmt.Sprintf("%08d", 0) + text, Until: until.Add(1)}); err != nil {
		t.Errorf("what is there already takes no room: %v", err)
	}
	if err := l.Add(tokens.Denial{ClientID: fmt.Sprintf("%08d", 1) + text, IssuedBefore: until, Until: until.Add(1)}); err != nil {
		t.Errorf("what is there already takes no room: %v", err)
	}
	denied(t, &l, true, tokens.Claims{ID: fmt.Sprintf("%08d", n/3*3-3) + text}, "")
	for _, d := range []tokens.Denial{{TokenID: "new"}, {KeyID: "new"}, {ClientID: "new", IssuedBefore: until}, {Thumbprint: thumbprint(1 << 50)}} {
		d.Until = until
		if err := l.Add(d); !errors.Is(err, tokens.ErrDenyListFull) {
			t.Errorf("%+v: %v", d, err)
		}
	}
	l.Prune(until.Add(2))
	if l.Len() != 0 {
		t.Fatal(l.Len(), "entries are left")
	}
	if again := fill(); again != n {
		t.Errorf("%d entries after all were forgotten, %d before", again, n)
	}
}

// The bound is kept to the byte.
func TestDenyListBound(t *testing.T) {
	t.Parallel()
	var l tokens.DenyList
	until := time.Unix(1_800_000_000, 0)
	const entry, longest, room = 160, 8 << 10, 64 << 20
	n := room / (entry + longest)
	for i := range n {
		if err := l.Add(tokens.Denial{TokenID: fmt.Sprintf("%0*d", longest, i), Until: until}); err != nil {
			t.Fatal(i, err)
		}
	}
	left := room - n*(entry+longest) - entry
	if err := l.Add(tokens.Denial{TokenID: strings.Repeat("x", left+1), Until: until}); !errors.Is(err, tokens.ErrDenyListFull) {
		t.Errorf("a byte too many: %v", err)
	}
	if err := l.Add(tokens.Denial{TokenID: strings.Repeat("x", left), Until: until}); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

// Looking a token up makes no garbage, however many are denied.
func TestDenyListAllocatesNothing(t *testing.T) { // not parallel: it counts allocations
	l := denyList(t, 50_000)
	c := tokens.Claims{ID: "none", ClientID: "nobody", IssuedAt: time.Unix(1_800_000_000, 0), Thumbprint: thumbprint(1 << 40)}
	if n := testing.AllocsPerRun(1000, func() {
		if l.Denies(&c, "no key") {
			t.Fatal("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A list may be read while it is written.
func TestDenyListConcurrently(t *testing.T) {
	t.Parallel()
	var l tokens.DenyList
	var all sync.WaitGroup
	until := time.Unix(1_800_000_000, 0)
	for g := range 4 {
		all.Go(func() {
			for i := range 500 {
				id := fmt.Sprint(g, i)
				if err := l.Add(tokens.Denial{TokenID: id, Until: until}); err != nil || !l.Denies(&tokens.Claims{ID: id}, "") {
					t.Error(id, err)
				}
				l.Prune(until.Add(-time.Second))
			}
		})
	}
	all.Wait()
	if l.Len() != 2000 {
		t.Error(l.Len())
	}
}

func denyList(tb testing.TB, n int) *tokens.DenyList {
	var l tokens.DenyList
	until := time.Unix(1_800_000_000, 0)
	for i := range n {
		if err := l.Add(tokens.Denial{Thumbprint: thumbprint(uint64(i)), Until: until}); err != nil {
			tb.Fatal(err)
		}
	}
	err := l.Add(tokens.Denial{TokenID: "t", Until: until}, tokens.Denial{KeyID: "k", Until: until},
		tokens.Denial{ClientID: "c", IssuedBefore: until, Until: until})
	if err != nil {
		tb.Fatal(err)
	}
	return &l
}

func BenchmarkDenyList(b *testing.B) {
	c := tokens.Claims{ID: "none", ClientID: "nobody", IssuedAt: time.Unix(1_800_000_000, 0), Thumbprint: thumbprint(1 << 40)}
	for _, n := range []int{0, 50_000} {
		l := denyList(b, n)
		if n == 0 {
			l = new(tokens.DenyList)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if l.Denies(&c, "no key") {
					b.Fatal("denied")
				}
			}
		})
	}
}

// Of several errors the first is told.
func TestDenyListFirstError(t *testing.T) {
	t.Parallel()
	until := time.Unix(1_800_000_000, 0)
	long := tokens.Denial{TokenID: strings.Repeat("a", 8<<10+1), Until: until}
	err := new(tokens.DenyList).Add(long, tokens.Denial{}, tokens.Denial{TokenID: "a", Until: until})
	if err == nil || !strings.Contains(err.Error(), "longer") {
		t.Error(err)
	}
}

// A verifier asks, about each token, also one that it has accepted before, whether it was revoked; it asks about no
// token that is bad anyway; and while that cannot be known nothing is accepted.
func TestVerifierAsksWhatIsDenied(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var l tokens.DenyList
	var asked int
	var failed error
	v, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer: tokenstest.URL, Audience: tokenstest.Audience, Keys: f.issuer.Keys(),
		Denied: func(_ context.Context, c *tokens.Claims, keyID string) (bool, error) {
			asked++
			return l.Denies(c, keyID), failed
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	raw := f.issuer.Token(t, f.peer)
	claims := accepted(t, v, raw, f.peer)
	accepted(t, v, raw, f.peer)
	refused(t, v, raw, nil, "no_certificate")
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	failed = errors.New("no feed")
	var e *tokens.Error
	if _, err := v.Verify(t.Context(), raw, f.peer); !errors.As(err, &e) || e.Code != tokens.CodeTemporarilyUnavailable ||
		e.Reason != "revocations_unavailable" || !errors.Is(err, failed) {
		t.Errorf("while it is not known: %v", err)
	}
	failed = nil
	accepted(t, v, raw, f.peer)
	if err := l.Add(tokens.Denial{TokenID: claims.ID, Until: claims.Expires}); err != nil {
		t.Fatal(err)
	}
	refused(t, v, raw, f.peer, "denied")
	other := f.issuer.Token(t, f.peer)
	accepted(t, v, other, f.peer)
	if err := l.Add(tokens.Denial{KeyID: f.issuer.Keys()[0].ID, Until: claims.Expires}); err != nil {
		t.Fatal(err)
	}
	refused(t, v, other, f.peer, "denied")
}

// Whoever asked for it is called when something was added, and finds it there; also when not all found room.
func TestDenyListOnAdd(t *testing.T) {
	t.Parallel()
	var l tokens.DenyList
	var first, second int
	l.OnAdd(func() { first = l.Len() })
	l.OnAdd(func() { second++ })
	if err := l.Add(); err != nil || second != 0 {
		t.Errorf("%v, called %d times for nothing", err, second)
	}
	d := tokens.Denial{TokenID: "a", Until: time.Unix(1_900_000_000, 0)}
	if err := l.Add(d); err != nil || first != 1 || second != 1 {
		t.Errorf("%v, %d, called %d times", err, first, second)
	}
	d.TokenID = "b"
	if err := l.Add(tokens.Denial{}, d); err == nil || first != 2 || second != 2 {
		t.Errorf("%v, %d, called %d times", err, first, second)
	}
}
