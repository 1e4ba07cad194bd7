// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// The journal waits for those that are being answered and for those that were and come back at once, each once, and for
// nobody for longer than they have for that.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p pace
		const begin, end, wait, almost = "begin", "end", "wait", "almost"
		for i, step := range []struct {
			what string
			want int
		}{
			{begin, 1}, {begin, 2}, {begin, 3},
			{end, 3}, {end, 3}, {end, 3}, // all three may come back
			{begin, 3}, {begin, 3}, // two do
			{almost, 3}, {end, 3},
			{wait, 1},            // the others do not, and one is still being answered
			{end, 1}, {begin, 1}, // a caller alone is not taken for two
			{end, 1}, {wait, 0}, // it left
			{begin, 1}, {end, 1}, {almost, 1}, // a time of its own begins
		} {
			switch step.what {
			case begin:
				p.begin()
			case end:
				p.end()
			case wait:
				time.Sleep(returnsWithin)
			case almost:
				time.Sleep(returnsWithin - 1)
			}
			if got := p.expected(); got != step.want {
				t.Errorf("step %d, %s: %d expected, want %d", i, step.what, got, step.want)
			}
		}
	})
}

// A request is counted while it is answered, also when its handler panics.
func TestPaceWrap(t *testing.T) {
	t.Parallel()
	var p pace
	h := p.wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if p.expected() != 1 {
			t.Errorf("%d expected while one is answered", p.expected())
		}
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() { _ = recover() }()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, pathToken, nil))
	}()
	if p.inFlight != 0 {
		t.Errorf("%d in flight after all", p.inFlight)
	}
}
