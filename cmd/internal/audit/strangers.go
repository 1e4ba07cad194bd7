// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Refusals cost whoever provokes them nothing, so what they may cost the journal is bounded: those of strangers are
// counted by what was refused, network and second, those of a client that authenticated itself are recorded singly up to
// a rate and counted beyond it. A count is recorded with one of those it counts, the first, as a sample.

const (
	maxTallies = 256 // kept apart in one second: of strangers, and as many of clients; further ones are counted together
	maxReasons = 64  // of which further ones are told apart

	singleRate  = 10  // refusals of one client that are recorded singly, each second
	singleBurst = 100 // and at once
	maxClients  = 4096
)

// The networks that count as one caller, as wide as one customer's.
const (
	networkBits4 = 24
	networkBits6 = 56
)

// refusals counts the refusals that are not recorded singly. It is safe for concurrent use; nothing in it blocks.
type refusals struct {
	mu        sync.Mutex
	strangers tallies
	clients   tallies
	rates     map[string]*rate
}

func newRefusals() *refusals {
	return &refusals{
		strangers: make(tallies), clients: make(tallies), rates: make(map[string]*rate),
	}
}

// single says whether a refusal is to be recorded by itself. Otherwise it has been counted, and flush hands it out. The
// event's time must be set.
func (r *refusals) single(e *Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Class == Refusal && asker(e) != "" {
		if r.within(asker(e), e.Time) {
			return true
		}
		r.clients.add(e, true)
		return false
	}
	r.strangers.add(e, false)
	return false
}

// asker is the client that authenticated itself.
func asker(e *Event) string { return cmp.Or(e.Actor, e.Client) }

// flush returns one event for each count, in the order of their times, and begins anew. They belong into the stream of
// refusals, whatever their class.
func (r *refusals) flush(now time.Time) []Event {
	r.mu.Lock()
	counted := [2]tallies{r.strangers, r.clients}
	if len(r.strangers)+len(r.clients) > 0 {
		r.strangers, r.clients = make(tallies), make(tallies)
	}
	maps.DeleteFunc(r.rates, func(_ string, b *rate) bool { return b.idle(now) })
	r.mu.Unlock()
	var out []Event
	for _, t := range counted {
		for k, v := range t {
			out = append(out, v.event(k))
		}
	}
	slices.SortFunc(out, func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Client, b.Client))
	})
	return out
}

// rate is what is left of what a client may have recorded singly.
type rate struct {
	left float64
	at   time.Time
}

// idle says that nothing would be lost with it.
func (b *rate) idle(now time.Time) bool {
	since := now.Sub(b.at)
	return since < 0 || b.left+since.Seconds()*singleRate >= singleBurst
}

// within takes one from what a client may have recorded singly, and says false when there is none left. Clients beyond
// the bound of the table have none.
func (r *refusals) within(client string, now time.Time) bool {
	b := r.rates[client]
	if b == nil {
		if len(r.rates) >= maxClients {
			return false
		}
		b = &rate{left: singleBurst, at: now}
		r.rates[strings.Clone(client)] = b
	}
	if since := now.Sub(b.at); since > 0 {
		b.left = min(b.left+since.Seconds()*singleRate, singleBurst)
		b.at = now
	}
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// tallies counts refusals that are alike.
type tallies map[tallyKey]*tally

type tallyKey struct {
	name, reason string
	network      netip.Prefix // the zero value: of all that were not told apart, or of no address
	client       string       // empty for strangers
	second       int64
	rest         bool // all that were not told apart
}

type tally struct {
	sample Event // its strings are copies
	count  int
}

func (t tallies) add(e *Event, named bool) {
	k := tallyKey{name: e.Name, reason: e.Reason, network: networkOf(e.Address), second: e.Time.Unix()}
	if named {
		k.network, k.client = netip.Prefix{}, asker(e)
	}
	if v := t[k]; v != nil {
		v.count++
		return
	}
	if len(t) >= maxTallies {
		k.network, k.client, k.rest = netip.Prefix{}, "", true
		if v := t[k]; v != nil {
			v.count++
			return
		}
		if len(t) >= maxTallies+maxReasons {
			k = tallyKey{second: 0, reason: "other", rest: true}
			if v := t[k]; v != nil {
				v.count++
				return
			}
		}
	}
	v := &tally{sample: sampleOf(e), count: 1}
	k.name, k.reason, k.client = strings.Clone(k.name), strings.Clone(k.reason), strings.Clone(k.client)
	t[k] = v
}

// sampleOf copies an event, so that it keeps no request in memory.
func sampleOf(e *Event) Event {
	s := *e
	for _, text := range []*string{&s.Name, &s.Outcome, &s.Reason, &s.Client, &s.Actor, &s.Thumbprint, &s.Address, &s.Correlation, &s.Resource} {
		*text = strings.Clone((*text)[:min(len(*text), MaxString)])
	}
	s.Scope, s.Audience = cloned(s.Scope), cloned(s.Audience)
	s.Detail, s.Personal = maps.Clone(s.Detail), maps.Clone(s.Personal)
	return s
}

func cloned(list []string) []string {
	list = slices.Clone(list[:min(len(list), MaxList)])
	for i, text := range list {
		list[i] = strings.Clone(text[:min(len(text), MaxString)])
	}
	return list
}

// event is a count as it is recorded.
func (v *tally) event(k tallyKey) Event {
	e := v.sample
	e.Count = v.count
	switch {
	case k.rest:
		e.Class, e.Reason = Stranger, k.reason // what it says of its sample is not any one client's
		e.Detail = with(e.Detail, "callers", "others")
	case k.network.IsValid():
		e.Personal = with(e.Personal, "network", k.network.String())
	}
	return e
}

func with(m map[string]string, name, value string) map[string]string {
	if m == nil {
		m = make(map[string]string)
	}
	m[name] = value
	return m
}

// networkOf is the network of an address, with or without a port; the zero value when it is none.
func networkOf(address string) netip.Prefix {
	var ip netip.Addr
	if strings.HasPrefix(address, "[") || strings.Count(address, ":") == 1 {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return netip.Prefix{}
		}
		ip = at.Addr()
	} else {
		var err error
		if ip, err = netip.ParseAddr(address); err != nil {
			return netip.Prefix{}
		}
	}
	ip = ip.Unmap().WithZone("")
	bits := networkBits6
	if ip.Is4() {
		bits = networkBits4
	}
	network, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}
