// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const testIssuer = "https://issuer.example:8443"

func newCode(tb testing.TB) Code {
	tb.Helper()
	c, err := NewCode([32]byte{1, 2, 3}, testIssuer)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// rawCode writes a code from parts, with a right checksum.
func rawCode(version byte, url string) string {
	raw := append([]byte{version}, make([]byte, 56)...)
	raw = append(raw, url...)
	raw = append(raw, codeChecksum(raw)...)
	return codePrefix + base64.RawURLEncoding.EncodeToString(raw)
}

func TestCodeRoundTrip(t *testing.T) {
	t.Parallel()
	for _, url := range []string{testIssuer, "https://a", "https://[::1]:8443", "https://localhost/tenant/a"} {
		c, err := NewCode([32]byte{9}, url)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCode(c.String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestNewCodeIsRandom(t *testing.T) {
	t.Parallel()
	a, b := newCode(t), newCode(t)
	if a.ID == b.ID || a.Seed == b.Seed {
		t.Error("two codes share id or seed")
	}
}

func TestNewCodeRefusesURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "http://a", "HTTPS://a", "https://", "https:///x", "https://a?x", "https://a?", "https://a#f", "https://a#",
		"https://u@a", "https://u:p@a", "https://a b", "https://a\x00b", "https://ä", "https://a:0", "https://a:",
		"https://a:99999", "https://:8443", "ftp://a", "https://a%zz", "https://" + strings.Repeat("a", 800),
	} {
		if c, err := NewCode([32]byte{}, url); err == nil {
			t.Errorf("%q accepted: %d bytes", url, len(c.String()))
		}
	}
}

func TestParseCodeRefuses(t *testing.T) {
	t.Parallel()
	good := newCode(t).String()
	flipped := []byte(good) // the root's zeros are written A
	if flipped[20] != 'A' {
		t.Fatal("the example is not what it was")
	}
	flipped[20] = 'B'
	// One stray bit behind the last byte: 61 + 27 bytes leave four such bits in the last character.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	stray := good[:len(good)-1] + alphabet[last|1:last|1+1]
	if stray == good || len(good)%4 == 0 {
		t.Fatal("the example has no stray bits to set")
	}
	cases := map[string]string{
		"empty":            "",
		"prefix only":      codePrefix,
		"no prefix":        strings.TrimPrefix(good, codePrefix),
		"other prefix":     "cb2." + strings.TrimPrefix(good, codePrefix),
		"upper case":       "CB1." + strings.TrimPrefix(good, codePrefix),
		"cut short":        good[:len(good)-1],
		"longer":           good + "A",
		"padding":          good + "=",
		"trailing newline": good + "\n",
		"inner newline":    good[:30] + "\n" + good[30:],
		"leading space":    " " + good,
		"standard base64":  strings.Replace(good, good[30:31], "+", 1),
		"bit flipped":      string(flipped),
		"stray bit":        stray,
		"version 0":        rawCode(0, testIssuer),
		"version 2":        rawCode(2, testIssuer),
		"no url":           rawCode(1, ""),
		"http url":         rawCode(1, "http://issuer.example"),
		"url with NUL":     rawCode(1, "https://issuer.example\x00.evil"),
		"too long":         rawCode(1, "https://"+strings.Repeat("a", 700)),
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseCode(s)
			if !errors.Is(err, ErrBadCode) {
				t.Fatalf("got %v, want ErrBadCode", err)
			}
			if len(s) > 40 && strings.Contains(err.Error(), s[10:40]) {
				t.Error("the error repeats the code")
			}
		})
	}
}

func TestCodeKeepsItsSecretFromLogs(t *testing.T) {
	t.Parallel()
	c := newCode(t)
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("made", "code", c)
	seed := base64.RawURLEncoding.EncodeToString(c.Seed[:])
	if strings.Contains(out.String(), c.String()) || strings.Contains(out.String(), seed[:10]) {
		t.Error("the secret stands in the log")
	}
}

// The key must stay what it is: codes of an older version are redeemed by a newer one.
func TestCodeKeyIsStable(t *testing.T) {
	t.Parallel()
	c := Code{Seed: [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}
	const want = "f6a4ce2b1d834ec63954a3dad701952ef885dc98902234515d8944c3b9ab5195"
	if got := fmt.Sprintf("%x", c.PublicKey()); got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
}

func TestVerifyRedemption(t *testing.T) {
	t.Parallel()
	c, other := newCode(t), newCode(t)
	csr := []byte("the request")
	sig := c.Sign(testIssuer, csr)
	if !VerifyRedemption(c.PublicKey(), testIssuer, c.ID, csr, sig) {
		t.Fatal("the genuine signature is refused")
	}
	bent := bytes.Clone(sig)
	bent[5] ^= 1
	// A tuple without lengths would let bytes move from the issuer to the id.
	shifted := [8]byte{}
	copy(shifted[:], c.ID[:])
	shifted[0] ^= 1
	cases := map[string]bool{
		"other key":      VerifyRedemption(other.PublicKey(), testIssuer, c.ID, csr, sig),
		"other issuer":   VerifyRedemption(c.PublicKey(), testIssuer+"/", c.ID, csr, sig),
		"other id":       VerifyRedemption(c.PublicKey(), testIssuer, shifted, csr, sig),
		"other request":  VerifyRedemption(c.PublicKey(), testIssuer, c.ID, []byte("another"), sig),
		"bent signature": VerifyRedemption(c.PublicKey(), testIssuer, c.ID, csr, bent),
		"no signature":   VerifyRedemption(c.PublicKey(), testIssuer, c.ID, csr, nil),
		"no key":         VerifyRedemption(nil, testIssuer, c.ID, csr, sig),
		"short key":      VerifyRedemption(c.PublicKey()[:31], testIssuer, c.ID, csr, sig),
		"plain digest": VerifyRedemption(c.PublicKey(), testIssuer, c.ID, csr,
			ed25519.Sign(c.privateKey(), csr)),
	}
	for name, accepted := range cases {
		if accepted {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRedemptionTuplesDiffer(t *testing.T) {
	t.Parallel()
	a := redemption("https://a", [8]byte{'b'}, nil)
	b := redemption("https://ab", [8]byte{}, nil)
	if bytes.Equal(a, b) {
		t.Error("two tuples have equal bytes")
	}
	if n := len(a); n != 4*4+len(enrollContext)+len("https://a")+8+32 {
		t.Errorf("the message has %d bytes", n)
	}
}

func TestEnrollRequestDecode(t *testing.T) {
	t.Parallel()
	c := newCode(t)
	csr := []byte("a request of some length")
	r := NewEnrollRequest(c, testIssuer, csr)
	id, gotCSR, sig, err := r.Decode()
	if err != nil {
		t.Fatal(err)
	}
	if id != c.ID || !bytes.Equal(gotCSR, csr) || !VerifyRedemption(c.PublicKey(), testIssuer, id, gotCSR, sig) {
		t.Error("what comes out is not what went in")
	}
	bad := map[string]EnrollRequest{
		"empty":           {},
		"short id":        {r.ID[:4], r.CSR, r.Signature},
		"id with newline": {r.ID + "\n", r.CSR, r.Signature},
		"no csr":          {r.ID, "", r.Signature},
		"padded csr":      {r.ID, r.CSR + "=", r.Signature},
		"huge csr":        {r.ID, strings.Repeat("A", 4*MaxRequestSize), r.Signature},
		"short signature": {r.ID, r.CSR, r.Signature[:40]},
	}
	for name, r := range bad {
		if _, _, _, err := r.Decode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRenewRequestDecode(t *testing.T) {
	t.Parallel()
	got, err := NewRenewRequest([]byte("request")).Decode()
	if err != nil || string(got) != "request" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := (RenewRequest{CSR: "a b"}).Decode(); err == nil {
		t.Error("accepted what is not base64url")
	}
}

// FuzzEnrollmentCode: what is accepted prints back identical, is short, and names an https URL.
func FuzzEnrollmentCode(f *testing.F) {
	f.Add(newCode(f).String())
	f.Add(rawCode(1, "https://a"))
	f.Add(rawCode(1, "https://[::1]:1/x%20y"))
	f.Add(codePrefix)
	// What each check of its own keeps out, and the property would not hold for.
	f.Add(rawCode(2, "https://a"))
	f.Add(rawCode(1, "http://a"))
	f.Add(rawCode(1, "https://a/"+strings.Repeat("a", MaxCodeLength)))
	f.Add(strings.TrimPrefix(rawCode(1, "https://a"), codePrefix))
	f.Add(strings.Replace(rawCode(1, "https://a"), "AAAA", "AAAB", 1))
	f.Add(rawCode(1, "https://a") + "AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCode(s)
		if err != nil {
			// Most mutants break the checksum; give the URL a chance of its own.
			s = rawCode(1, s)
			if c, err = ParseCode(s); err != nil {
				return
			}
		}
		if c.String() != s {
			t.Errorf("%q prints back as %q", s, c.String())
		}
		if len(s) > MaxCodeLength || !strings.HasPrefix(c.URL, "https://") {
			t.Errorf("accepted %q", s)
		}
	})
}
