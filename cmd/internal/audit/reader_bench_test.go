// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkReading says how many bytes of a journal are verified, or searched for what is rare, in a second.
func BenchmarkReading(b *testing.B) {
	j := newTestJournal(b)
	for range 40 {
		for range 25 {
			for range 20 {
				j.add(&j.main, "token", `"outcome":"granted","client":"payments","x5t#S256":"z_Jyrfdnv4nWydIrYImUH3jI0GbsncidX8YohmPmMrE","correlation":"G4moQouGW_Z5g41D","jti":"9vskRNo-iAmBSsiY3VE5KQ","scope":["ledger:read"],"aud":["https://ledger.example"],"expires":"2026-11-23T17:25:50.000000Z","sealed":"c.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`)
			}
			f := Frame{Seq: j.main.head.Seq, Records: 20, Bytes: len(j.main.open), Chain: j.main.head.Chain}
			j.main.text = appendFrame(append(j.main.text, j.main.open...), &f, j.main.open)
			j.main.open, j.main.records = nil, 0
		}
		j.checkpoint()
	}
	info, err := os.Stat(filepath.Join(j.dir, j.main.segment))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("verify", func(b *testing.B) {
		b.SetBytes(info.Size())
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Verify(j.dir, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, f := range map[string]Filter{"rare": {TokenID: "none"}, "all": {}} {
		b.Run("search/"+name, func(b *testing.B) {
			b.SetBytes(info.Size())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := (&Reader{Dir: j.dir}).Search(b.Context(), Query{Filter: f}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
