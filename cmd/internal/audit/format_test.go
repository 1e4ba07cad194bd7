// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFrame(t *testing.T) {
	t.Parallel()
	id := Identity{Installation: "i", Replica: "r1", Incarnation: 3}
	chain := id.genesis(streamMain, Head{})
	var batch []byte
	for _, text := range []string{`{"seq":1,"event":"a"`, `{"seq":2,"event":"b"`} {
		start := len(batch)
		batch, chain = appendChain(append(batch, text...), start, chain)
	}
	want := Frame{Seq: 2, Records: 2, Bytes: len(batch), Synced: 0, Chain: chain}
	line := bytes.TrimSuffix(appendFrame(nil, &want, batch), []byte("\n"))
	got, err := parseFrame(line, batch)
	if err != nil || got != want {
		t.Fatalf("frame is %+v, %v", got, err)
	}
	for i := range line {
		bad := bytes.Clone(line)
		bad[i] ^= 1
		if _, err := parseFrame(bad, batch); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	for i := range batch {
		bad := bytes.Clone(batch)
		bad[i] ^= 1
		if _, err := parseFrame(line, bad); err == nil {
			t.Errorf("accepted the batch %q", bad)
		}
	}
	first, second, _ := bytes.Cut(batch, []byte("\n"))
	body, sum, ok := splitChain(first)
	if !ok || string(body) != `{"seq":1,"event":"a"` || sum != link(id.genesis(streamMain, Head{}), body) {
		t.Errorf("split into %q, %x, %v", body, sum, ok)
	}
	if _, sum, ok = splitChain(bytes.TrimSpace(second)); !ok || sum != chain {
		t.Errorf("the chain of the second is %x, %v", sum, ok)
	}
}

func TestSegmentName(t *testing.T) {
	t.Parallel()
	name := segmentName(streamRefusals, 7, 12345)
	stream, incarnation, first, ok := parseSegmentName(name)
	if diff := cmp.Diff([]any{streamRefusals, uint64(7), uint64(12345), true}, []any{stream, incarnation, first, ok}); diff != "" {
		t.Errorf("%s (-want +got)\n%s", name, diff)
	}
	for _, name := range []string{"", "audit", "audit-1-2.jsonl", "audit-00000001-0000000000000002.jsonl.tmp", "other-00000001-0000000000000002.jsonl"} {
		if _, _, _, ok := parseSegmentName(name); ok {
			t.Errorf("%q is taken for a segment", name)
		}
	}
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := Checkpoint{Journal: "i/r1/3", Seq: 2, Head: "h", Previous: "p", Time: time.Now(), Key: base64.RawURLEncoding.EncodeToString(public), Next: "n"}
	c.sign(private)
	if err := c.Verify(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Checkpoint){
		"journal": func(c *Checkpoint) { c.Journal += "1" }, "seq": func(c *Checkpoint) { c.Seq++ },
		"head": func(c *Checkpoint) { c.Head += "1" }, "previous": func(c *Checkpoint) { c.Previous = "" },
		"time": func(c *Checkpoint) { c.Time = c.Time.Add(time.Second) }, "next": func(c *Checkpoint) { c.Next = "" },
		"key": func(c *Checkpoint) { c.Key = "" }, "signature": func(c *Checkpoint) { c.Signature = c.Signature[1:] },
	} {
		bad := c
		change(&bad)
		if bad.Verify() == nil {
			t.Errorf("another %s is accepted", name)
		}
	}
}
