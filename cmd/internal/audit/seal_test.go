// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memoryKeys keeps the keys in memory.
type memoryKeys struct {
	mu       sync.Mutex
	days     map[string][]byte
	subjects map[string][]byte
	calls    int
	failing  error
}

func newMemoryKeys() *memoryKeys {
	return &memoryKeys{days: map[string][]byte{}, subjects: map[string][]byte{}}
}

func (m *memoryKeys) made(in map[string][]byte, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.failing != nil {
		return nil, m.failing
	}
	if in[name] == nil {
		in[name] = make([]byte, 32)
		_, _ = rand.Read(in[name])
	}
	return bytes.Clone(in[name]), nil
}

func (m *memoryKeys) stored(in map[string][]byte, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in[name] == nil {
		return nil, ErrErased
	}
	return bytes.Clone(in[name]), nil
}

func (m *memoryKeys) erase(in map[string][]byte, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(in, name)
}

func (m *memoryKeys) Day(_ context.Context, day string) ([]byte, error) { return m.made(m.days, day) }
func (m *memoryKeys) Subject(_ context.Context, id string) ([]byte, error) {
	return m.made(m.subjects, id)
}
func (m *memoryKeys) StoredDay(_ context.Context, day string) ([]byte, error) {
	return m.stored(m.days, day)
}
func (m *memoryKeys) StoredSubject(_ context.Context, id string) ([]byte, error) {
	return m.stored(m.subjects, id)
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func personal() Event {
	return Event{
		Time: noon, Name: "token.issue", Outcome: Granted, Client: "payments", Address: "192.0.2.1",
		Personal: map[string]string{"dn": "CN=Ann Example", "mail": "ann@example.org"},
	}
}

// sealedOf seals an event and returns the member's value.
func sealedOf(t *testing.T, s *sealer, e Event) string {
	t.Helper()
	b, err := s.append(t.Context(), []byte(`{"seq":1`), &e)
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Sealed string }
	if err := json.Unmarshal(append(b, '}'), &record); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return record.Sealed
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s, opener := newSealer(keys), NewOpener(keys)
	want := Personal{Address: "192.0.2.1", Members: personal().Personal}
	for name, tt := range map[string]struct {
		change func(*Event)
		who    string
	}{
		"a client":              {func(*Event) {}, "c."},
		"an actor":              {func(e *Event) { e.Actor = "admin" }, "a."},
		"a client alone":        {func(e *Event) { e.Class = Refusal }, "c."},
		"what takes away":       {func(e *Event) { e.Class = Takeaway }, "c."},
		"a stranger":            {func(e *Event) { e.Class = Stranger }, "n."},
		"nobody":                {func(e *Event) { e.Client = "" }, "n."},
		"the last of a day":     {func(e *Event) { e.Time = time.Date(2026, 11, 23, 23, 59, 59, 999999999, time.UTC) }, "c."},
		"before 1970":           {func(e *Event) { e.Time = time.Date(1969, 12, 31, 23, 0, 0, 0, time.UTC) }, "c."},
		"a day of another zone": {func(e *Event) { e.Time = noon.In(time.FixedZone("", -14*3600)) }, "c."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := personal()
			tt.change(&e)
			sealed := sealedOf(t, s, e)
			if !strings.HasPrefix(sealed, tt.who) {
				t.Errorf("sealed as %.2s", sealed)
			}
			if again := sealedOf(t, s, e); again == sealed {
				t.Error("the same nonce twice")
			}
			got, err := opener.Open(t.Context(), sealed, e.Time, e.Client, e.Actor)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got)\n%s", err, diff)
			}
			if _, err := opener.Open(t.Context(), sealed, e.Time.AddDate(0, 0, 1), e.Client, e.Actor); !errors.Is(err, ErrErased) {
				t.Errorf("on another day: %v", err)
			}
		})
	}
}

// What an operator records of a client is sealed under the client's key, but for where the operator came from.
func TestSealOfTwo(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s, opener := newSealer(keys), NewOpener(keys)
	e := personal()
	e.Actor = "admin"
	sealed := sealedOf(t, s, e)
	open := func() (Personal, error) { return opener.Open(t.Context(), sealed, e.Time, e.Client, e.Actor) }
	check := func(want Personal, wantErr error) {
		t.Helper()
		got, err := open()
		if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, wantErr) {
			t.Errorf("%v (-want +got)\n%s", err, diff)
		}
	}
	check(Personal{e.Address, e.Personal}, nil)
	secret := keys.subjects["admin"]
	keys.erase(keys.subjects, "admin")
	check(Personal{"", e.Personal}, nil)
	keys.erase(keys.subjects, "payments")
	check(Personal{}, ErrErased)
	keys.subjects["admin"] = secret
	check(Personal{e.Address, nil}, nil)
	s.forget("payments")
	e.Address = ""
	if sealed = sealedOf(t, s, e); !strings.HasPrefix(sealed, "c.") || strings.Contains(sealed, " ") {
		t.Errorf("without an address: %s", sealed)
	}
	check(Personal{"", e.Personal}, nil)
	sealed += " x"
	if _, err := open(); err == nil {
		t.Error("opened with a second part that is none")
	}
	// Neither half of it is written when one key cannot be had.
	keys.failing = errors.New("no database")
	s.forget("payments")
	e.Address = "192.0.2.1"
	if b, err := s.append(t.Context(), []byte("x"), &e); err == nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	e.Class = Takeaway
	if got := sealedOf(t, s, e); got != "none" {
		t.Errorf("sealed %q", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s, opener := newSealer(keys), NewOpener(keys)
	sealed := sealedOf(t, s, personal())
	if _, err := s.keys.Subject(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "c", "c.", ".", "x." + sealed[2:], "n." + sealed[2:], "a." + sealed[2:], sealed[:20], sealed + "=", sealed[:len(sealed)-2], "c.AA", "none.",
	} {
		if _, err := opener.Open(t.Context(), bad, noon, "payments", "orders"); err == nil {
			t.Errorf("opened %q", bad)
		}
	}
	if _, err := opener.Open(t.Context(), sealed, noon, "orders", ""); !errors.Is(err, ErrErased) {
		t.Errorf("with another's secret: %v", err)
	}
	if _, err := opener.Open(t.Context(), sealed, noon, "", ""); err == nil {
		t.Error("opened without a subject")
	}
}

// A deleted secret or day takes what it sealed with it, also from a process that has used it, and a live subject goes on
// under a new one.
func TestErasure(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s, opener := newSealer(keys), NewOpener(keys)
	open := func(sealed, client string) error {
		_, err := opener.Open(t.Context(), sealed, noon, client, "")
		return err
	}
	other := personal()
	other.Client = "orders"
	old, others := sealedOf(t, s, personal()), sealedOf(t, s, other)
	keys.erase(keys.subjects, "payments")
	s.forget("payments")
	if err := open(old, "payments"); !errors.Is(err, ErrErased) {
		t.Errorf("after erasure: %v", err)
	}
	fresh := sealedOf(t, s, personal())
	if err := open(fresh, "payments"); err != nil {
		t.Errorf("what came after the erasure: %v", err)
	}
	if err := open(old, "payments"); !errors.Is(err, ErrErased) {
		t.Errorf("with the new secret: %v", err)
	}
	if err := open(others, "orders"); err != nil {
		t.Errorf("another's: %v", err)
	}
	keys.erase(keys.days, "2026-11-23")
	s.forgetBefore(noon.AddDate(0, 0, 1))
	if err := errors.Join(open(others, "orders"), open(fresh, "payments")); !errors.Is(err, ErrErased) {
		t.Errorf("after the day's key: %v", err)
	}
	calls := keys.calls
	sealedOf(t, s, other)
	if keys.calls == calls {
		t.Error("a cipher of the deleted day is still in use")
	}
}

// slowKeys returns a secret only when told to.
type slowKeys struct {
	*memoryKeys
	asked, answer chan struct{}
}

func (s slowKeys) Subject(ctx context.Context, id string) ([]byte, error) {
	secret, err := s.memoryKeys.Subject(ctx, id)
	s.asked <- struct{}{}
	<-s.answer
	return secret, err
}

// A secret that was read before it was erased is not used for longer than by the record that read it.
func TestErasureMeetsALookup(t *testing.T) {
	t.Parallel()
	keys := slowKeys{newMemoryKeys(), make(chan struct{}), make(chan struct{})}
	s := newSealer(keys)
	done := make(chan error, 1)
	go func() {
		e := personal()
		_, err := s.append(context.Background(), nil, &e)
		done <- err
	}()
	<-keys.asked
	keys.erase(keys.subjects, "payments")
	s.forget("payments")
	keys.answer <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s.ciphers.get(cipherKey{dayOf(noon), "payments"}) != nil {
		t.Error("the erased secret's cipher was kept")
	}
}

func TestSealWithoutKeys(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	keys.failing = errors.New("no database")
	s := newSealer(keys)
	for class, want := range map[Class]string{Takeaway: "none", Refusal: "none", Stranger: "none"} {
		e := personal()
		e.Class = class
		sealed := sealedOf(t, s, e)
		if sealed != want {
			t.Errorf("class %d: sealed is %q", class, sealed)
		}
		if _, err := NewOpener(keys).Open(t.Context(), sealed, noon, "payments", ""); !errors.Is(err, ErrUnsealed) {
			t.Errorf("class %d: %v", class, err)
		}
	}
	e := personal()
	if b, err := s.append(t.Context(), nil, &e); !errors.Is(err, keys.failing) || len(b) > 0 {
		t.Errorf("a decision: %q, %v", b, err)
	}
	keys.failing = nil
	if got := sealedOf(t, s, e); !strings.HasPrefix(got, "c.") {
		t.Errorf("a failure was kept: %q", got)
	}
	// What says nothing of a person needs no key.
	keys.failing = errors.New("no database")
	if b, err := s.append(t.Context(), nil, &Event{Name: "x"}); err != nil || len(b) > 0 {
		t.Errorf("nothing personal: %q, %v", b, err)
	}
}

func TestNilSealer(t *testing.T) {
	t.Parallel()
	e := personal()
	b, err := newSealer(nil).append(t.Context(), []byte(`{"seq":1`), &e)
	const want = `{"seq":1,"address":"192.0.2.1","personal":{"dn":"CN=Ann Example","mail":"ann@example.org"}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v", b, err)
	}
}

func TestSealTruncates(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s := newSealer(keys)
	e := personal()
	e.Address = strings.Repeat("x", MaxString+1)
	got, err := NewOpener(keys).Open(t.Context(), sealedOf(t, s, e), noon, e.Client, "")
	if err != nil || len(got.Address) != MaxString {
		t.Errorf("%d bytes, %v", len(got.Address), err)
	}
}

func TestCiphersAreBounded(t *testing.T) {
	t.Parallel()
	keys := newMemoryKeys()
	s := newSealer(keys)
	s.ciphers.bound = 3
	for round := range 3 {
		for i := range 10 {
			e := personal()
			e.Client = fmt.Sprint("client", i)
			sealed := sealedOf(t, s, e)
			if _, err := NewOpener(keys).Open(t.Context(), sealed, noon, e.Client, ""); err != nil {
				t.Fatal(err)
			}
			if got := len(s.ciphers.entries); got != min(3, round*10+i+1) {
				t.Fatalf("%d ciphers are kept", got)
			}
		}
	}
	var forward, backward []string
	for e := s.ciphers.first; e != nil; e = e.older {
		forward = append(forward, e.key.id)
	}
	for e := s.ciphers.last; e != nil; e = e.newer {
		backward = append([]string{e.key.id}, backward...)
	}
	want := []string{"client9", "client8", "client7"}
	if diff := cmp.Diff(want, forward); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want, backward); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	s.ciphers.get(cipherKey{dayOf(noon), "client7"})
	e := personal()
	sealedOf(t, s, e)
	if s.ciphers.get(cipherKey{dayOf(noon), "client7"}) == nil || s.ciphers.get(cipherKey{dayOf(noon), "client8"}) != nil {
		t.Error("what was used last was let go")
	}
}

// token is a token's record: nothing personal but the address.
func tokenEvent() Event {
	return Event{Time: noon, Name: "token.issue", Outcome: Granted, Client: "payments", Address: "192.0.2.1"}
}

func BenchmarkSeal(b *testing.B) {
	s := newSealer(newMemoryKeys())
	e := tokenEvent()
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = s.append(context.Background(), buf[:0], &e); err != nil {
			b.Fatal(err)
		}
	}
}
