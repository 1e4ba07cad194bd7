// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

func certPEM(c tls.Certificate) []byte {
	var out []byte
	for _, der := range c.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func keyPEM(tb testing.TB, c tls.Certificate) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

type pairFiles struct{ cert, key string }

func writeFile(tb testing.TB, name string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func writePair(tb testing.TB, c tls.Certificate) pairFiles {
	tb.Helper()
	dir := tb.TempDir()
	f := pairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	writeFile(tb, f.cert, certPEM(c))
	writeFile(tb, f.key, keyPEM(tb, c))
	return f
}

// A pair that cannot be read whole leaves the last good one in use, and the error names the file.
func TestKeyPairKeepsTheLastGood(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "ca").Intermediate(t, "sub")
	good, next := ca.Issue(t, mtlstest.Leaf{}), ca.Issue(t, mtlstest.Leaf{})
	for name, tc := range map[string]struct {
		breakIt func(tb testing.TB, f pairFiles)
		names   func(f pairFiles) string
	}{
		"certificate missing":   {func(tb testing.TB, f pairFiles) { _ = os.Remove(f.cert) }, certName},
		"certificate empty":     {func(tb testing.TB, f pairFiles) { writeFile(tb, f.cert, nil) }, certName},
		"certificate truncated": {func(tb testing.TB, f pairFiles) { writeFile(tb, f.cert, certPEM(next)[:900]) }, certName},
		"certificate damaged": {func(tb testing.TB, f pairFiles) {
			writeFile(tb, f.cert, []byte(strings.Replace(string(certPEM(next)), "MII", "MIA", 1)))
		}, certName},
		"certificate is a key": {func(tb testing.TB, f pairFiles) { writeFile(tb, f.cert, keyPEM(tb, next)) }, certName},
		"certificate huge": {func(tb testing.TB, f pairFiles) {
			writeFile(tb, f.cert, append(certPEM(good), make([]byte, 2<<20)...))
		}, certName},
		"certificate other's":  {func(tb testing.TB, f pairFiles) { writeFile(tb, f.cert, certPEM(next)) }, keyName},
		"key missing":          {func(tb testing.TB, f pairFiles) { _ = os.Remove(f.key) }, keyName},
		"key empty":            {func(tb testing.TB, f pairFiles) { writeFile(tb, f.key, nil) }, keyName},
		"key truncated":        {func(tb testing.TB, f pairFiles) { writeFile(tb, f.key, keyPEM(tb, good)[:100]) }, keyName},
		"key is a certificate": {func(tb testing.TB, f pairFiles) { writeFile(tb, f.key, certPEM(good)) }, keyName},
		"key other's":          {func(tb testing.TB, f pairFiles) { writeFile(tb, f.key, keyPEM(tb, next)) }, keyName},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := writePair(t, good)
			kp, err := mtls.LoadKeyPair(f.cert, f.key)
			if err != nil {
				t.Fatal(err)
			}
			before := kp.Current()
			tc.breakIt(t, f)
			if err = kp.Reload(); err == nil {
				t.Fatal("Reload accepted it")
			}
			if !strings.Contains(err.Error(), tc.names(f)) {
				t.Errorf("error %q does not name %s", err, tc.names(f))
			}
			if kp.Current() != before {
				t.Error("the last good pair is gone")
			}
			if _, err := mtls.LoadKeyPair(f.cert, f.key); err == nil {
				t.Error("LoadKeyPair accepted it")
			}
			writeFile(t, f.cert, certPEM(next))
			writeFile(t, f.key, keyPEM(t, next))
			if err := kp.Reload(); err != nil {
				t.Fatal(err)
			}
			if !mtls.ThumbprintOf(next.Leaf).Matches(kp.Current().Leaf) || len(kp.Current().Certificate) != 2 {
				t.Error("the new pair is not in use")
			}
		})
	}
}

func certName(f pairFiles) string { return f.cert }
func keyName(f pairFiles) string  { return f.key }

func TestKeyPairReplace(t *testing.T) {
	t.Parallel()
	good, next := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	kp, err := mtls.NewKeyPair(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]tls.Certificate{
		"empty":            {},
		"no certificate":   {PrivateKey: next.PrivateKey},
		"no key":           {Certificate: next.Certificate},
		"key that is none": {Certificate: next.Certificate, PrivateKey: "key"},
		"other key":        {Certificate: next.Certificate, PrivateKey: good.PrivateKey},
		"other leaf":       {Certificate: next.Certificate, PrivateKey: good.PrivateKey, Leaf: good.Leaf},
		"not DER":          {Certificate: [][]byte{{1, 2, 3}}, PrivateKey: good.PrivateKey},
		"chain not DER":    {Certificate: [][]byte{good.Certificate[0], {1}}, PrivateKey: good.PrivateKey},
	} {
		if err := kp.Replace(bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if _, err := mtls.NewKeyPair(bad); err == nil {
			t.Errorf("%s made a pair", name)
		}
		if !mtls.ThumbprintOf(good.Leaf).Matches(kp.Current().Leaf) {
			t.Fatalf("%s: the last good pair is gone", name)
		}
	}
	next.Leaf = good.Leaf // a wrong leaf is not believed
	if err := kp.Replace(next); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kp.Current().Leaf.Raw, next.Certificate[0]) {
		t.Error("Leaf is not the first certificate")
	}
	if err := kp.Reload(); err == nil {
		t.Error("a pair without files was reloaded")
	}
}

// A pair is exchanged whole: nobody sees the certificate of one with the key of another.
func TestKeyPairIsNeverHalf(t *testing.T) {
	t.Parallel()
	pairs := []tls.Certificate{mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})}
	kp, err := mtls.NewKeyPair(pairs[0])
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				if err := kp.Replace(pairs[i%2]); err != nil {
					t.Error(err)
				}
				if _, err := mtls.NewKeyPair(*kp.Current()); err != nil {
					t.Errorf("half a pair: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestKeyPairWatch(t *testing.T) {
	t.Parallel()
	good, next := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	f := writePair(t, good)
	kp, err := mtls.LoadKeyPair(f.cert, f.key)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var failures int
		go kp.Watch(ctx, time.Minute, func(error) { failures++ })
		writeFile(t, f.key, keyPEM(t, next))
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if failures != 1 || !mtls.ThumbprintOf(good.Leaf).Matches(kp.Current().Leaf) {
			t.Errorf("%d failures reported, want 1 and the good pair", failures)
		}
		writeFile(t, f.cert, certPEM(next))
		time.Sleep(time.Minute)
		synctest.Wait()
		if failures != 1 || !mtls.ThumbprintOf(next.Leaf).Matches(kp.Current().Leaf) {
			t.Errorf("%d failures reported, want 1 and the new pair", failures)
		}
		cancel()
		synctest.Wait()
	})
}

func TestParseCertificates(t *testing.T) {
	t.Parallel()
	one, two := mtlstest.NewCA(t, "one").Certificate(), mtlstest.NewCA(t, "two").Certificate()
	both := certPEM(tls.Certificate{Certificate: [][]byte{one.Raw, two.Raw}})
	certs, err := mtls.ParseCertificates(slices.Concat([]byte("# ours\n"), both, []byte("\n")))
	if err != nil || len(certs) != 2 || !certs[0].Equal(one) || !certs[1].Equal(two) {
		t.Fatalf("%d certificates, %v; want both", len(certs), err)
	}
	text := string(both)
	for name, data := range map[string]string{
		"empty":            "",
		"no PEM":           "certificate",
		"DER":              string(one.Raw),
		"truncated":        text[:len(text)-40],
		"first damaged":    strings.Replace(text, "\n", "\n!", 1),
		"not certificates": strings.ReplaceAll(text, "CERTIFICATE", "TRUSTED CERTIFICATE"),
		"mixed":            text + string(keyPEM(t, mtlstest.SelfSigned(t, mtlstest.Leaf{}))),
		"garbage inside":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
	} {
		if certs, err := mtls.ParseCertificates([]byte(data)); err == nil || certs != nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
