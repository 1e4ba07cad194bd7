// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"strconv"
	"strings"
	"sync"
	"testing"
)

// What was put in comes out for the very bytes of its token, and for no others.
func TestCacheByExactBytes(t *testing.T) {
	t.Parallel()
	c := NewCache[int](1 << 20)
	c.Put("a.b.c", 1, 100)
	c.Put("a.b.d", 2, 100)
	for raw, want := range map[string]int{"a.b.c": 1, "a.b.d": 2} {
		if got, ok := c.Get(raw); !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", raw, got, ok, want)
		}
	}
	for _, raw := range []string{"", "a.b.C", "a.b.c ", "a.b", "a.b"} {
		if got, ok := c.Get(raw); ok || got != 0 {
			t.Errorf("%q: %d, %v, want nothing", raw, got, ok)
		}
	}
	c.Put("a.b.c", 3, 100)
	if got, _ := c.Get("a.b.c"); got != 3 {
		t.Errorf("the later value is %d, want 3", got)
	}
	long := strings.Repeat("x", MaxTokenBytes)
	for raw, want := range map[string]bool{long: true, long + "x": false} {
		c.Put(raw, 4, 100)
		if _, ok := c.Get(raw); ok != want {
			t.Errorf("of %d bytes: found %v, want %v", len(raw), ok, want)
		}
	}
}

// The bytes of all that is kept stay within the bound, and what is asked for stays while the rest goes.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	const room, each = 100 * (1000 + CachedBytes), 1000
	c := NewCache[int](room)
	used := func() int {
		n := 0
		for _, m := range []map[cacheKey]cached[int]{c.young, c.old} {
			for _, e := range m {
				n += e.bytes
			}
		}
		return n
	}
	c.Put("favourite", -1, each)
	most := 0
	for i := range 1000 {
		c.Put(strconv.Itoa(i), i, each)
		most = max(most, used())
		if used() > room {
			t.Fatalf("%d bytes after %d entries, want at most %d", used(), i+2, room)
		}
		if _, ok := c.Get("favourite"); !ok {
			t.Fatalf("what is asked for all the time went with entry %d", i)
		}
		if _, ok := c.Get(strconv.Itoa(max(0, i-20))); !ok {
			t.Fatalf("the one before the last 20 is gone after entry %d", i)
		}
		if c.bytes > room/2 {
			t.Fatalf("the young ones count %d bytes, want at most %d", c.bytes, room/2)
		}
	}
	if most < room/2+each {
		t.Errorf("no more than %d bytes were ever used of %d", most, room)
	}
	if _, ok := c.Get("0"); ok {
		t.Error("the first is still there")
	}
}

// An entry counts once however often it is put in, and does not push the others out as long as all have room.
func TestCacheCountsAnEntryOnce(t *testing.T) {
	t.Parallel()
	c := NewCache[int](10 * (1000 + CachedBytes))
	c.Put("other", 1, 1000)
	for i := range 100 {
		c.Put("same", i, 1000)
	}
	for i := range 3 {
		c.Put(strconv.Itoa(i), i, 1000)
	}
	if len(c.young) != 5 || c.bytes != c.half || c.old != nil {
		t.Errorf("%d young entries of %d bytes, %d old ones", len(c.young), c.bytes, len(c.old))
	}
}

// An entry of half of the room is kept, a larger one is not, and a Cache without room keeps nothing at all.
func TestCacheWithoutRoom(t *testing.T) {
	t.Parallel()
	const room = 2 * (1000 + CachedBytes)
	c := NewCache[int](room)
	c.Put("large", 1, 1001)
	if _, ok := c.Get("large"); ok {
		t.Error("an entry that is larger than half of the room is kept")
	}
	c.Put("right", 1, 1000)
	if _, ok := c.Get("right"); !ok {
		t.Error("an entry of half of the room is not kept")
	}
	for _, bytes := range []int{0, -1, -1 << 40} {
		c := NewCache[int](bytes)
		c.Put("a", 1, -CachedBytes)
		if _, ok := c.Get("a"); ok {
			t.Errorf("a Cache of %d bytes keeps something", bytes)
		}
	}
}

// Many at once lose nothing that was just put in.
func TestCacheConcurrently(t *testing.T) {
	t.Parallel()
	c := NewCache[int](1 << 20)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 200 {
				raw := strconv.Itoa(worker*1000 + i)
				c.Put(raw, i, 10)
				if got, ok := c.Get(raw); !ok || got != i {
					t.Errorf("%s: %d, %v", raw, got, ok)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkCacheGet(b *testing.B) {
	c := NewCache[int](1 << 20)
	raw := strings.Repeat("x", 700)
	c.Put(raw, 1, 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := c.Get(raw); !ok {
			b.Fatal("gone")
		}
	}
}
