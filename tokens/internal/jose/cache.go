// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"crypto/sha256"
	"sync"
)

// Cache remembers what was made of tokens whose signatures verified, by their exact bytes, so that the signature is not
// verified again. It knows nothing of what makes a token bad later: whoever takes something out of it judges key, times,
// audience and binding as if it had been read anew, and puts nothing in that was refused. The values are shared and never
// modified. It is safe for concurrent use; its memory is bounded. What was not asked for longest goes first, about.
type Cache[V any] struct {
	half int // how much either generation may take

	mu         sync.RWMutex
	young, old map[cacheKey]cached[V]
	bytes      int // of young
}

type cacheKey [sha256.Size]byte

type cached[V any] struct {
	value V
	bytes int
}

// CachedBytes is about what an entry takes beside its value: its key and place in a map that has room to grow.
const CachedBytes = 160

// NewCache returns a Cache that takes about so many bytes of memory at most. One of no bytes keeps nothing.
func NewCache[V any](bytes int) *Cache[V] { return &Cache[V]{half: max(0, bytes) / 2} }

// Get returns what was put in for a token of these very bytes. A token over MaxTokenBytes is not looked at.
func (c *Cache[V]) Get(raw string) (value V, ok bool) {
	if c.half == 0 || len(raw) > MaxTokenBytes {
		return value, false
	}
	key := cacheKey(sha256.Sum256([]byte(raw)))
	c.mu.RLock()
	entry, ok := c.young[key]
	late := false
	if !ok {
		entry, late = c.old[key]
	}
	c.mu.RUnlock()
	if late {
		c.put(key, entry)
	}
	return entry.value, ok || late
}

// Put keeps a value of about so many bytes, unless that is more than the Cache has room for.
func (c *Cache[V]) Put(raw string, value V, bytes int) {
	c.put(sha256.Sum256([]byte(raw)), cached[V]{value, bytes + CachedBytes})
}

// put adds an entry to the young ones. When these take half of the room they are the old ones, and those before are gone.
func (c *Cache[V]) put(key cacheKey, entry cached[V]) {
	if entry.bytes > c.half {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes -= c.young[key].bytes // when it comes again
	if c.bytes+entry.bytes > c.half {
		c.old, c.young, c.bytes = c.young, nil, 0
	}
	if c.young == nil {
		c.young = make(map[cacheKey]cached[V])
	}
	c.young[key] = entry
	c.bytes += entry.bytes
}
