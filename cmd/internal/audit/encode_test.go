// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"testing"
	"time"
)

// Times are written by hand as package time would write them, and a year that does not fit in four digits as none.
func TestMoment(t *testing.T) {
	t.Parallel()
	east := time.FixedZone("", 5*60*60+30*60)
	for given, want := range map[time.Time]string{
		time.Date(2026, 11, 23, 18, 9, 7, 123456789, time.UTC): "2026-11-23T18:09:07.123456Z",
		time.Date(2026, 1, 1, 3, 0, 0, 999, east):              "2025-12-31T21:30:00.000000Z",
		time.Date(2024, 2, 29, 23, 59, 59, 999999999, east):    "2024-02-29T18:29:59.999999Z",
		time.Date(0, 1, 1, 0, 0, 0, 1000, time.UTC):            "0000-01-01T00:00:00.000001Z",
		time.Date(9999, 12, 31, 23, 59, 59, 10000, time.UTC):   "9999-12-31T23:59:59.000010Z",
		time.Date(9999, 12, 31, 23, 59, 59, 0, east):           "9999-12-31T18:29:59.000000Z",
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC):           "0001-01-01T00:00:00.000000Z",
		time.Date(-1, 12, 31, 0, 0, 0, 0, time.UTC):            "0001-01-01T00:00:00.000000Z",
		{}: "0001-01-01T00:00:00.000000Z",
	} {
		w := encoder{}
		w.moment(given)
		if got := string(w.b); got != `"`+want+`"` {
			t.Errorf("%v is written as %s, want %s", given, got, want)
		}
	}
	at := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 1000 {
		at = at.Add(1234567*time.Second + 987654321*time.Nanosecond)
		w := encoder{}
		w.moment(at)
		if got, want := string(w.b), `"`+at.Format(timeFormat)+`"`; got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
}
