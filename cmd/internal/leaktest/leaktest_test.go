// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package leaktest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/certbound/certbound/pki"
)

// Every form in which a secret may get lost is found, and what is no secret is not.
func TestFind(t *testing.T) {
	t.Parallel()
	code, err := pki.NewCode([32]byte{1}, "https://tokens.example")
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	const header, claims = "eyJhbGciOiJFUzI1NiJ9", "eyJzdWIiOiJwYXltZW50cyJ9"
	signature := base64.RawURLEncoding.EncodeToString(append(scalar, scalar...))
	signature = "Z" + signature[1:]
	token := header + "." + claims + "." + signature
	var s Secrets
	if err := s.Collect(fmt.Appendf(nil, "token %s\ncode %s\n%s", token, code, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))); err != nil {
		t.Fatal(err)
	}
	for _, key := range []any{ec, ed, rsaKey} {
		if err := s.Key(key); err != nil {
			t.Fatal(err)
		}
	}
	s.Bytes("kek", []byte("0123456789abcdef0123456789abcdef"))
	s.Text("password", "correct horse")
	if s.Len() != 7 {
		t.Errorf("%d secrets", s.Len())
	}
	for name, text := range map[string]string{
		"a token": token, "its signature": signature, "its claims": "x" + header + "." + claims, "a code": code.String(),
		"a seed in hex": hex.EncodeToString(code.Seed[:]), "a seed in the code's text": code.String()[60:85],
		"a seed, printed": fmt.Sprint(code.Seed), "a key in PEM": "-----BEGIN PRIVATE KEY-----", "a key in hex": fmt.Sprintf("%X", der),
		"a key in base64": base64.StdEncoding.EncodeToString(der), "a scalar": string(scalar), "a scalar in hex": hex.EncodeToString(scalar),
		"a scalar in the middle": base64.RawURLEncoding.EncodeToString(append([]byte("ab"), append(scalar, 1, 2)...)),
		"an Ed25519 seed":        base64.RawURLEncoding.EncodeToString(ed.Seed()), "an RSA prime": rsaKey.Primes[0].String(),
		"a symmetric key": base64.StdEncoding.EncodeToString([]byte("x0123456789abcdef0123456789abcdef")), "text": "the correct horse battery",
		"somebody's token": header + ".AAAAAAAAAAAAAAAA." + strings.Repeat("B", 43), "somebody's code": "cb1." + strings.Repeat("C", 70),
	} {
		found := s.Find("log", []byte("before "+text+" after"))
		if len(found) == 0 {
			t.Errorf("%s is not found", name)
		}
		for _, line := range found {
			if !strings.HasPrefix(line, "log holds ") || strings.Contains(line, text) {
				t.Errorf("%s: said %q", name, line)
			}
		}
	}
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", header, hex.EncodeToString(code.ID[:]), base64.StdEncoding.EncodeToString(public), "cb1.…", "-----BEGIN CERTIFICATE-----", hex.EncodeToString(make([]byte, 32)),
	} {
		if found := s.Find("log", []byte(text)); len(found) > 0 {
			t.Errorf("in %q: %v", text, found)
		}
	}
}

func TestFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	code, err := pki.NewCode([32]byte{1}, "https://tokens.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"code": code.String(), "audit/a.jsonl": hex.EncodeToString(code.Seed[:]) + "\n\n\n", "audit/b.jsonl": "{}", "other": code.String()} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var s Secrets
	isJournal := func(name string) bool { return filepath.Ext(name) == ".jsonl" }
	if err := s.CollectFolder(dir, isJournal); err != nil || s.Len() != 1 {
		t.Fatalf("%d secrets, %v", s.Len(), err)
	}
	looked, found, err := s.FindInFolder(dir, isJournal)
	if err != nil || looked != 2 || len(found) != 1 || !strings.Contains(found[0], "a.jsonl holds code #") {
		t.Errorf("looked into %d, found %v, %v", looked, found, err)
	}
}
