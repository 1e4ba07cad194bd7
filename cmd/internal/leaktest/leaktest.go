// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package leaktest finds secrets where none may be: tokens, enrolment codes and private keys, whole or in part, in the
// forms in which they get lost, in journals, logs, metrics and errors. It is for the program's tests, which tell it every
// secret that they made and show it everything that was written.
package leaktest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/certbound/certbound/pki"
)

// Secrets are what must not be found. The zero value has none.
type Secrets struct {
	needles map[string]string // from what must not be found to whose it is
	whose   map[string]bool
}

// Len is how many secrets there are, each counted once.
func (s *Secrets) Len() int { return len(s.whose) }

func (s *Secrets) add(whose string, needles ...string) {
	if s.needles == nil {
		s.needles, s.whose = make(map[string]string), make(map[string]bool)
	}
	s.whose[whose] = true
	for _, n := range needles {
		s.needles[n] = whose
	}
}

// Text adds a secret that is text.
func (s *Secrets) Text(whose, text string) { s.add(whose, text) }

// Token adds a token: no part of it may be found that gets it accepted, alone or with what everybody knows.
func (s *Secrets) Token(token string) {
	whose := "token " + fingerprint(token)
	s.add(whose, token)
	if i := strings.LastIndexByte(token, '.'); i >= 0 {
		s.add(whose, token[:i], token[i+1:])
	}
}

// Code adds an enrolment code and what is secret in it.
func (s *Secrets) Code(text string) error {
	code, err := pki.ParseCode(text)
	if err != nil {
		return err
	}
	whose := "code " + fingerprint(text)
	s.add(whose, text)
	s.add(whose, forms(code.Seed[:])...)
	return nil
}

// Key adds a private key: its PKCS #8 form and the numbers in it.
func (s *Secrets) Key(key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	whose := "key " + fingerprint(string(der))
	s.add(whose, forms(der)...)
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		raw, err := key.Bytes()
		if err != nil {
			return err
		}
		s.add(whose, forms(raw)...)
	case ed25519.PrivateKey:
		s.add(whose, forms(key.Seed())...)
	case *rsa.PrivateKey:
		for _, n := range append(key.Primes[:len(key.Primes):len(key.Primes)], key.D) {
			s.add(whose, forms(n.Bytes())...)
			s.add(whose, n.String())
		}
	}
	return nil
}

// Bytes adds a secret of bytes, such as a symmetric key.
func (s *Secrets) Bytes(whose string, raw []byte) { s.add(whose, forms(raw)...) }

// tokenText and codeText are the forms of tokens and codes in a text.
func tokenText() *regexp.Regexp {
	return regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{32,}`)
}

func codeText() *regexp.Regexp { return regexp.MustCompile(`cb1\.[A-Za-z0-9_-]{60,}`) }

// Collect adds every token, code and private key that a text holds.
func (s *Secrets) Collect(text []byte) error {
	for _, token := range tokenText().FindAll(text, -1) {
		s.Token(string(token))
	}
	for _, code := range codeText().FindAll(text, -1) {
		if err := s.Code(string(code)); err != nil {
			continue // a test of what is no code
		}
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		whose := "key " + fingerprint(string(block.Bytes))
		s.add(whose, forms(block.Bytes)...)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			continue // of another form: its bytes are looked for all the same
		}
		if err := s.Key(key); err != nil {
			return err
		}
	}
}

// CollectFolder adds what every file below a folder holds, but those that skip says yes to. Files beyond 1 MiB hold none
// of ours.
func (s *Secrets) CollectFolder(dir string, skip func(name string) bool) error {
	return files(dir, func(name string, info fs.FileInfo) error {
		if skip(name) || info.Size() > 1<<20 {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return s.Collect(text)
	})
}

// Find returns one line for each secret that is in the text, and for each text that has the form of one: whoever it
// belongs to. It names the place and the secret, never what the secret is.
func (s *Secrets) Find(place string, text []byte) []string {
	found := make(map[string]bool)
	for needle, whose := range s.needles {
		if bytes.Contains(text, []byte(needle)) {
			found[whose] = true
		}
	}
	for form, is := range map[string]bool{
		"text of the form of a token": tokenText().Match(text), "text of the form of a code": codeText().Match(text),
		"text of the form of a key": bytes.Contains(text, []byte("PRIVATE KEY")),
	} {
		found[form] = is
	}
	var out []string
	for what, is := range found {
		if is {
			out = append(out, place+" holds "+what)
		}
	}
	return out
}

// FindInFolder is Find for every file below a folder that look says yes to.
func (s *Secrets) FindInFolder(dir string, look func(name string) bool) (looked int, found []string, err error) {
	err = files(dir, func(name string, _ fs.FileInfo) error {
		if !look(name) {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		looked++
		found = append(found, s.Find(name, bytes.TrimRight(text, "\n"))...)
		return nil
	})
	return looked, found, err
}

// files calls f for each regular file below a folder.
func files(dir string, f func(name string, info fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return f(name, info)
	})
}

// forms are the ways in which bytes are found in a text: raw, hexadecimal, in a list of numbers, and in base64, also in
// the middle of something longer.
func forms(raw []byte) []string {
	out := []string{string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), numbers(raw)}
	for shift := range 3 {
		padded := append(make([]byte, shift), raw...)
		whole := len(padded) / 3 * 3
		first := (shift + 2) / 3 * 4 // what the bytes before it have a part in
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			out = append(out, enc.EncodeToString(padded[:whole])[first:])
		}
	}
	return out
}

// numbers is how Go prints bytes with %v.
func numbers(raw []byte) string { return strings.Trim(fmt.Sprint(raw), "[]") }

// fingerprint names a secret without telling it.
func fingerprint(secret string) string {
	var sum uint32 = 2166136261 // FNV-1a
	for _, c := range []byte(secret) {
		sum = (sum ^ uint32(c)) * 16777619
	}
	return fmt.Sprintf("#%08x", sum)
}
