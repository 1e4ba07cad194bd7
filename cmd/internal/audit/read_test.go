// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// Lines are found where they are, however long they are and however the file is read; what is longer than any record
// takes no memory.
func TestLineReader(t *testing.T) {
	t.Parallel()
	texts := []string{
		"a", strings.Repeat("b", maxLine-1), strings.Repeat("c", maxLine), strings.Repeat("d", 5*maxLine+17), "e", "", "", "f",
	}
	file := strings.Join(texts, "\n")
	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(file), "in halves": iotest.HalfReader(strings.NewReader(file)), "with its end": iotest.DataErrReader(strings.NewReader(file)),
	} {
		lines := newLineReader(r, 0, 0)
		at := int64(0)
		for i, text := range texts {
			line, whole, err := lines.next()
			long := len(text)+1 > maxLine
			if long != errors.Is(err, errLongLine) || !long && (err != nil || string(line) != text) || whole == (i == len(texts)-1) {
				t.Fatalf("%s, line %d: %d bytes, whole %v, %v", name, i+1, len(line), whole, err)
			}
			if lines.offset != at || lines.number != i+1 {
				t.Errorf("%s, line %d is at %d, not at %d as %d", name, i+1, at, lines.offset, lines.number)
			}
			at += int64(len(text)) + 1
		}
		if _, _, err := lines.next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSkipBlank(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, maxLine - 1, maxLine, 3*maxLine + 5} {
		lines := newLineReader(strings.NewReader("\n"+strings.Repeat("\n", n)+"x\n"), 0, 0)
		if _, _, err := lines.next(); err != nil {
			t.Fatal(err)
		}
		more, err := lines.skipBlank()
		line, whole, _ := lines.next()
		if !more || err != nil || string(line) != "x" || !whole || lines.offset != int64(n)+1 || lines.number != n+2 {
			t.Errorf("%d: %v %v %q at %d, line %d", n, more, err, line, lines.offset, lines.number)
		}
		if more, err := newLineReader(strings.NewReader(strings.Repeat("\n", n)), 0, 0).skipBlank(); more || err != nil {
			t.Errorf("%d and no more: %v %v", n, more, err)
		}
	}
	broken := errors.New("the disk failed")
	if _, err := newLineReader(iotest.ErrReader(broken), 0, 0).skipBlank(); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestRecordNumber(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{
		`{"seq":1,`: 1, `{"seq":18446744073709551615,"x"`: 1<<64 - 1, `{"seq":0,`: 0, `{"seq":01,`: 0, `{"seq":-1,`: 0, `{"seq":+1,`: 0, `{"seq":1`: 0,
		`{"seq":18446744073709551616,`: 0, `{"seq":,`: 0, `{"seq": 1,`: 0, `{"frame":{"seq":1,`: 0, ``: 0, `{"seq":1.5,`: 0,
	} {
		if got, ok := recordNumber([]byte(text)); got != want && ok || ok != (want > 0) {
			t.Errorf("%s: %d %v", text, got, ok)
		}
	}
}

// The frame that closes a batch is exactly the one that is written.
func TestClosedBy(t *testing.T) {
	t.Parallel()
	var b batch
	var text []byte
	for i := range 3 {
		line := fmt.Appendf(nil, `{"seq":%d,"x":"y"}`, i+5)
		b.add(uint64(i+5), line)
		text = append(append(text, line...), '\n')
	}
	head := Head{Seq: 7, Chain: [32]byte{1}}
	f := Frame{Seq: 7, Records: 3, Bytes: len(text), Synced: 4, Chain: head.Chain}
	frame := string(appendFrame(nil, &f, text))
	frame = frame[:len(frame)-1]
	if !b.closedBy([]byte(frame), head) {
		t.Fatal(frame)
	}
	for i := range frame {
		if changed := frame[:i] + string(frame[i]^1) + frame[i+1:]; b.closedBy([]byte(changed), head) {
			t.Errorf("closed by %s", changed)
		}
	}
	for _, other := range []string{frame + " ", " " + frame, strings.Replace(frame, ":7,", ": 7,", 1), strings.Replace(frame, "}}", `,"x":1}}`, 1)} {
		if b.closedBy([]byte(other), head) {
			t.Errorf("closed by %s", other)
		}
	}
	if b.closedBy([]byte(frame), Head{Seq: 7}) || b.closedBy([]byte(frame), Head{Seq: 8, Chain: head.Chain}) {
		t.Error("closed by another batch's frame")
	}
}
