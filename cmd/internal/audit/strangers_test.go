// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func stranger(address, reason string) Event {
	return Event{
		Class: Stranger, Time: noon, Name: "token.issue", Outcome: Refused, Reason: reason, Client: "claimed", Address: address,
		Thumbprint: "A4Dt", Correlation: "c1",
	}
}

func TestStrangersAreCounted(t *testing.T) {
	t.Parallel()
	r := newRefusals()
	add := func(e Event) {
		t.Helper()
		if r.single(&e) {
			t.Errorf("%+v is to be recorded singly", e)
		}
	}
	for i := range 200 {
		add(stranger(fmt.Sprintf("192.0.2.%d:%d", i, 1000+i), "unknown_client"))
	}
	add(stranger("192.0.3.1", "unknown_client"))                  // another network
	add(stranger("192.0.2.1", "thumbprint_mismatch"))             // another reason
	add(stranger("::ffff:192.0.2.9", "unknown_client"))           // the first network
	add(stranger("2001:db8:0:100::1", "unknown_client"))          // a /56
	add(stranger("[2001:db8:0:1ff:8000::1]:4", "unknown_client")) // the same
	add(stranger("fe80::1%eth0", "unknown_client"))               // a zone is no network
	add(stranger("2001:db8:0:200::1", "unknown_client"))          // another
	add(stranger("socket uid=5", "unknown_client"))               // none
	later := stranger("192.0.2.1", "unknown_client")
	later.Time = noon.Add(time.Second)
	add(later)
	other := stranger("192.0.2.1", "unknown_client")
	other.Name = "cert.enroll"
	add(other)

	got := map[string]int{}
	for _, e := range r.flush(noon.Add(time.Second)) {
		if e.Class != Stranger || e.Client != "claimed" || e.Correlation != "c1" || e.Thumbprint != "A4Dt" || e.Address == "" {
			t.Errorf("the sample is %+v", e)
		}
		got[fmt.Sprint(e.Time.Second(), e.Name, e.Reason, e.Personal["network"])] += e.Count
	}
	want := map[string]int{
		"0token.issueunknown_client192.0.2.0/24": 201, "0token.issueunknown_client192.0.3.0/24": 1,
		"0token.issuethumbprint_mismatch192.0.2.0/24": 1, "0token.issueunknown_client2001:db8:0:100::/56": 2,
		"0token.issueunknown_client2001:db8:0:200::/56": 1, "0token.issueunknown_clientfe80::/56": 1,
		"0token.issueunknown_client": 1, "1token.issueunknown_client192.0.2.0/24": 1, "0cert.enrollunknown_client192.0.2.0/24": 1,
	}
	want = keyed(want)
	if diff := cmp.Diff(want, keyed(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if again := r.flush(noon.Add(2 * time.Second)); len(again) > 0 {
		t.Errorf("counted twice: %+v", again)
	}
}

// keyed forgets the spaces that Sprint puts between some operands.
func keyed(m map[string]int) map[string]int {
	out := make(map[string]int, len(m))
	for k, v := range m {
		out[strings.ReplaceAll(k, " ", "")] = v
	}
	return out
}

// However many networks, reasons and clients come, memory and what is written each second are bounded, and none is lost
// from the count.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	r := newRefusals()
	const n = 20_000
	for i := range n {
		e := stranger(fmt.Sprintf("10.%d.%d.1", i>>8&255, i&255), fmt.Sprint("reason", i%500))
		r.single(&e)
		f := Event{Class: Refusal, Time: noon, Name: "token.issue", Client: fmt.Sprint("client", i), Reason: "invalid_scope", Address: "192.0.2.1"}
		r.single(&f)
	}
	if len(r.strangers) > maxTallies+maxReasons+1 || len(r.clients) > maxTallies+maxReasons+1 || len(r.rates) > maxClients {
		t.Errorf("%d, %d and %d are kept", len(r.strangers), len(r.clients), len(r.rates))
	}
	count := map[Class]int{}
	others := 0
	for _, e := range r.flush(noon) {
		count[e.Class] += e.Count
		if e.Detail["callers"] == "others" {
			others++
		} else if e.Class == Stranger && e.Personal["network"] == "" {
			t.Errorf("no network in %+v", e)
		}
	}
	// The clients beyond those kept apart are counted among the others.
	if count[Stranger]+count[Refusal] != n+n-maxClients || count[Refusal] != maxTallies || others < 2 || others > 2*(maxReasons+1) {
		t.Errorf("counted %v, %d others", count, others)
	}
}

func TestRefusalsOfAClient(t *testing.T) {
	t.Parallel()
	r := newRefusals()
	now := noon
	singles := func(client string, n int) (singly int) {
		for range n {
			e := Event{Class: Refusal, Time: now, Name: "token.issue", Client: client, Reason: "invalid_scope", Address: "192.0.2.1"}
			if r.single(&e) {
				singly++
			}
		}
		return singly
	}
	if got := singles("payments", 250); got != singleBurst {
		t.Errorf("%d at once", got)
	}
	byActor := Event{Class: Refusal, Time: now, Name: "client.add", Client: "x", Actor: "payments", Reason: "invalid_request"}
	if r.single(&byActor) {
		t.Error("whom an operator asks about pays for the operator")
	}
	if got := singles("orders", 1); got != 1 {
		t.Error("one client spends what is another's")
	}
	now = now.Add(time.Second)
	if got := singles("payments", 50); got != singleRate {
		t.Errorf("%d after a second", got)
	}
	now = now.Add(-time.Hour) // a clock that is set back gives nothing
	if got := singles("payments", 5); got != 0 {
		t.Errorf("%d with the clock set back", got)
	}
	now = noon.Add(time.Second)
	counted := r.flush(now)
	total := 0
	for _, e := range counted {
		if asker(&e) != "payments" || e.Class != Refusal || e.Personal != nil {
			t.Errorf("counted %+v", e)
		}
		total += e.Count
	}
	if total != 1+150+40+5 {
		t.Errorf("%d were counted", total)
	}
	now = now.Add(time.Hour)
	if got := singles("payments", 250); got != singleBurst {
		t.Errorf("%d after an hour", got)
	}
	r.flush(now.Add(time.Hour))
	if len(r.rates) != 0 {
		t.Errorf("%d idle clients are kept", len(r.rates))
	}
	// A refusal that names no client is a stranger's, whatever it is called.
	if got := singles("", 1); got != 0 {
		t.Error("nobody's refusal is recorded singly")
	}
}

func TestSamplesAreCopies(t *testing.T) {
	t.Parallel()
	r := newRefusals()
	detail := map[string]string{"k": "v"}
	scope := []string{"a"}
	for range 2 {
		e := stranger("192.0.2.1", "x")
		e.Client, e.Detail, e.Scope = strings.Repeat("y", 3*MaxString), detail, scope
		r.single(&e)
	}
	detail["k"], scope[0] = "changed", "changed"
	got := r.flush(noon)
	if len(got) != 1 || got[0].Detail["k"] != "v" || got[0].Scope[0] != "a" || len(got[0].Client) != MaxString || got[0].Count != 2 {
		t.Errorf("got %+v", got)
	}
	if len(detail) != 1 {
		t.Error("the caller's map was changed")
	}
}

func TestRefusalsConcurrently(t *testing.T) {
	t.Parallel()
	r := newRefusals()
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				e := stranger("192.0.2.1", "x")
				r.single(&e)
				if i%100 == 0 {
					for _, e := range r.flush(noon) {
						mu.Lock()
						total += e.Count
						mu.Unlock()
					}
				}
			}
		})
	}
	wg.Wait()
	for _, e := range r.flush(noon) {
		total += e.Count
	}
	if total != 8*500 {
		t.Errorf("%d were counted", total)
	}
}

func BenchmarkStranger(b *testing.B) {
	r := newRefusals()
	e := stranger("192.0.2.1:4711", "unknown_client")
	b.ReportAllocs()
	for b.Loop() {
		r.single(&e)
	}
}

func BenchmarkRefusalOfAClient(b *testing.B) {
	r := newRefusals()
	e := stranger("192.0.2.1:4711", "unknown_client")
	e.Class = Refusal
	b.ReportAllocs()
	for b.Loop() {
		r.single(&e)
	}
}
