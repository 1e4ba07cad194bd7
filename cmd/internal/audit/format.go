// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// A segment is a text of lines, each one JSON object, so that jq and tail read it:
//
//	{"seq":41,"time":"…","event":"token.issue",…,"chain":"…"}    a record
//	{"seq":42,…,"chain":"…"}
//	{"frame":{"seq":42,"records":2,"bytes":812,"synced":40,"chain":"…","crc32c":"…"}}
//
// Records come in batches, each closed by its frame; what was written together is synced together. A segment is filled
// with newlines before it is written, so an empty line is the end of what it holds. The chain of a record is a hash over
// the chain of the one before it and its own line up to that member.

// The streams of a journal: what was decided, and refusals of whoever could not be told, which may be dropped.
const (
	streamMain     = "audit"
	streamRefusals = "refusals"
)

// Head is where a chain stands: the sequence number of its last record and that record's chain.
type Head struct {
	Seq   uint64
	Chain [sha256.Size]byte
}

// Identity says whose journal it is. A process that opens a journal begins a new incarnation.
type Identity struct {
	Installation string `json:"installation"`
	Replica      string `json:"replica"`
	Incarnation  uint64 `json:"incarnation"`
}

// String is how a checkpoint names the journal.
func (i Identity) String() string {
	return i.Installation + "/" + i.Replica + "/" + strconv.FormatUint(i.Incarnation, 10)
}

// genesis is what the first record of an incarnation is chained to.
func (i Identity) genesis(stream string, previous Head) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "certbound-journal-v1\n%s\n%s\n%d\n%x\n", stream, i, previous.Seq, previous.Chain)
	return [sha256.Size]byte(h.Sum(nil))
}

// link is the chain of a record whose line, up to its chain member, is body.
func link(previous [sha256.Size]byte, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(previous[:])
	h.Write(body)
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}

const (
	chainMember = `,"chain":"`
	chainText   = 43 // base64url without padding
)

// appendChain ends a record: b holds its line up to here, previous is the chain before it.
func appendChain(b []byte, start int, previous [sha256.Size]byte) ([]byte, [sha256.Size]byte) {
	sum := link(previous, b[start:])
	b = append(b, chainMember...)
	b = base64.RawURLEncoding.AppendEncode(b, sum[:])
	return append(b, '"', '}', '\n'), sum
}

// splitChain takes a record's line without its newline apart. It says false when the line does not end in a chain.
func splitChain(line []byte) (body []byte, chain [sha256.Size]byte, ok bool) {
	const tail = len(chainMember) + chainText + len(`"}`)
	at := len(line) - tail
	if at <= 0 || !bytes.HasPrefix(line[at:], []byte(chainMember)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, chain, false
	}
	chain, ok = parseChain(line[at+len(chainMember) : len(line)-len(`"}`)])
	return line[:at], chain, ok
}

// parseChain reads the text of a chain.
func parseChain(text []byte) (chain [sha256.Size]byte, ok bool) {
	if len(text) != chainText {
		return chain, false
	}
	n, err := base64.RawURLEncoding.Strict().Decode(chain[:], text)
	return chain, err == nil && n == len(chain)
}

func chainString(chain [sha256.Size]byte) string {
	return base64.RawURLEncoding.EncodeToString(chain[:])
}

const recordStart = `{"seq":`

// recordNumber reads the number that a record's line begins with.
func recordNumber(line []byte) (uint64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(recordStart))
	if !ok {
		return 0, false
	}
	digits, _, ok := bytes.Cut(rest[:min(len(rest), 21)], []byte(","))
	if !ok || len(digits) == 0 || digits[0] == '0' {
		return 0, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	return seq, err == nil
}

// Frame closes a batch.
type Frame struct {
	Seq     uint64            // of the batch's last record
	Records int               // how many there are
	Bytes   int               // of their lines, newlines included
	Synced  uint64            // the last record known to be durable when this was written
	Chain   [sha256.Size]byte // of the last record
}

const (
	frameStart = `{"frame":{"seq":`
	crcMember  = `,"crc32c":"`
)

// appendFrame appends the frame's line. batch is the text of its records; the checksum covers it and the frame.
func appendFrame(b []byte, f *Frame, batch []byte) []byte {
	start := len(b)
	b = append(b, frameStart...)
	b = strconv.AppendUint(b, f.Seq, 10)
	b = append(b, `,"records":`...)
	b = strconv.AppendInt(b, int64(f.Records), 10)
	b = append(b, `,"bytes":`...)
	b = strconv.AppendInt(b, int64(f.Bytes), 10)
	b = append(b, `,"synced":`...)
	b = strconv.AppendUint(b, f.Synced, 10)
	b = append(b, chainMember...)
	b = base64.RawURLEncoding.AppendEncode(b, f.Chain[:])
	b = append(b, '"')
	sum := frameSum(batch, b[start:])
	b = append(b, crcMember...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, "\"}}\n"...)
}

// frameSum is the CRC-32C of a batch's records and of its frame up to the checksum.
func frameSum(batch, frame []byte) [4]byte {
	table := crc32.MakeTable(crc32.Castagnoli) // the package keeps one
	sum := crc32.Update(crc32.Checksum(batch, table), table, frame)
	return [4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// isFrame says whether a line claims to be a frame.
func isFrame(line []byte) bool { return bytes.HasPrefix(line, []byte(`{"frame":`)) }

var errFrame = errors.New("the frame of a batch is damaged")

// readFrame reads a frame's line, without its newline, whether it fits a batch or not.
func readFrame(line []byte) (Frame, bool) {
	if !isFrame(line) || len(line) > frameRoom {
		return Frame{}, false
	}
	var wire struct {
		Frame struct {
			Seq     uint64 `json:"seq"`
			Records int    `json:"records"`
			Bytes   int    `json:"bytes"`
			Synced  uint64 `json:"synced"`
			Chain   string `json:"chain"`
		} `json:"frame"`
	}
	if json.Unmarshal(line, &wire) != nil {
		return Frame{}, false
	}
	chain, ok := parseChain([]byte(wire.Frame.Chain))
	w := &wire.Frame
	return Frame{Seq: w.Seq, Records: w.Records, Bytes: w.Bytes, Synced: w.Synced, Chain: chain}, ok && w.Records >= 0 && w.Bytes >= 0
}

// parseFrame reads a frame's line without its newline and holds it to the records before it, of which batch must end in.
// It accepts only the very bytes that appendFrame writes.
func parseFrame(line, batch []byte) (Frame, error) {
	f, ok := readFrame(line)
	if !ok || f.Bytes > len(batch) {
		return Frame{}, errFrame
	}
	if want := appendFrame(nil, &f, batch[len(batch)-f.Bytes:]); !bytes.Equal(want, append(bytes.Clone(line), '\n')) {
		return Frame{}, errFrame
	}
	return f, nil
}

// segmentName is the file of a segment whose first record is first. Names sort in the order of the records.
func segmentName(stream string, incarnation, first uint64) string {
	return fmt.Sprintf("%s-%08d-%016d.jsonl", stream, incarnation, first)
}

// parseSegmentName reads a file's name and says false when it is none of a segment.
func parseSegmentName(name string) (stream string, incarnation, first uint64, ok bool) {
	stream, rest, _ := strings.Cut(strings.TrimSuffix(name, ".jsonl"), "-")
	inc, seq, _ := strings.Cut(rest, "-")
	incarnation, err1 := strconv.ParseUint(inc, 10, 64)
	first, err2 := strconv.ParseUint(seq, 10, 64)
	ok = err1 == nil && err2 == nil && (stream == streamMain || stream == streamRefusals) &&
		segmentName(stream, incarnation, first) == name
	return stream, incarnation, first, ok
}

// Checkpoint is a signed statement of where the chain stood. Each is signed with a key that the one before it named, and
// whose private half is wiped after that, so that nobody can sign the past again.
type Checkpoint struct {
	Journal   string    `json:"journal"`  // the Identity as text
	Seq       uint64    `json:"seq"`      // of the record before the checkpoint
	Head      string    `json:"head"`     // its chain, base64url
	Previous  string    `json:"previous"` // head of the checkpoint before, empty for the first
	Time      time.Time `json:"time"`     // UTC, microseconds
	Key       string    `json:"key"`      // Ed25519 public key of this signature, base64url
	Next      string    `json:"next"`     // public key of the next checkpoint's signature
	Signature string    `json:"signature"`
}

// message is what is signed.
func (c *Checkpoint) message() []byte {
	return fmt.Appendf(nil, "certbound-checkpoint-v1\n%s\n%d\n%s\n%s\n%s\n%s\n%s\n",
		c.Journal, c.Seq, c.Head, c.Previous, c.Time.UTC().Format(timeFormat), c.Key, c.Next)
}

// sign signs the checkpoint with the key whose public half it names.
func (c *Checkpoint) sign(key ed25519.PrivateKey) {
	c.Signature = base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, c.message()))
}

// Verify reports whether the checkpoint is signed by the key that it names. Whether that is the right key, the
// checkpoint before it says.
func (c *Checkpoint) Verify() error {
	key, err := base64.RawURLEncoding.Strict().DecodeString(c.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return errors.New("the key of the checkpoint is malformed")
	}
	signature, err := base64.RawURLEncoding.Strict().DecodeString(c.Signature)
	if err != nil || !ed25519.Verify(key, c.message(), signature) {
		return errors.New("the signature of the checkpoint is wrong")
	}
	return nil
}

// timeFormat is RFC 3339 with microseconds, UTC.
const timeFormat = "2006-01-02T15:04:05.000000Z"
