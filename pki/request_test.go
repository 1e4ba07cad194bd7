// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"testing"
)

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newRequest(tb testing.TB, tmpl *x509.CertificateRequest, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// refusedFor fails unless ParseRequest refuses der for this reason.
func refusedFor(t *testing.T, der []byte, reason string) {
	t.Helper()
	_, err := ParseRequest(der)
	refusal, ok := errors.AsType[*RequestError](err)
	if !ok || refusal.Reason != reason {
		t.Errorf("got %v (%#v), want a refusal for %s", err, refusal, reason)
	}
}

func TestParseRequestAcceptsBareKeys(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{newKey(t), p384, edKey, rsaKey} {
		der, err := CreateRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := ParseRequest(der)
		if err != nil {
			t.Errorf("%T: %v", key, err)
			continue
		}
		if !csr.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Errorf("%T: another key comes out", key)
		}
	}
}

// EC-01: RFC 2986, Section 4.2: a request is accepted only when the key that it carries signed it.
func TestRFC2986_4_2_ProofOfPossession(t *testing.T) {
	t.Parallel()
	der, err := CreateRequest(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	other, err := CreateRequest(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := splitRequest(t, der), splitRequest(t, other)
	mine.Signature = theirs.Signature
	forged, err := asn1.Marshal(mine)
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, forged, "csr_signature")

	theirs.TBS = asn1.RawValue{FullBytes: splitRequest(t, der).TBS.FullBytes}
	swapped, err := asn1.Marshal(theirs)
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, swapped, "csr_signature")
}

// rawRequest is a CertificationRequest in its three parts (RFC 2986, Section 4.2).
type rawRequest struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

func splitRequest(tb testing.TB, der []byte) rawRequest {
	tb.Helper()
	var r rawRequest
	if _, err := asn1.Unmarshal(der, &r); err != nil {
		tb.Fatal(err)
	}
	return r
}

// EC-02, CA-13: RFC 5280, Section 4.2: nothing is taken from a request but its key: one that asks for a name, for
// authority, for a usage or for anything else is refused.
func TestRFC5280_4_2_NothingIsTakenFromTheRequest(t *testing.T) {
	t.Parallel()
	extension := func(t *testing.T, id asn1.ObjectIdentifier, value any) []pkix.Extension {
		t.Helper()
		der, err := asn1.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return []pkix.Extension{{Id: id, Critical: true, Value: der}}
	}
	type basicConstraints struct {
		IsCA bool
	}
	victim, err := url.Parse("spiffe://certbound.internal/client/admin")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		tmpl   x509.CertificateRequest
		reason string
	}{
		"common name":   {x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}, "csr_names"},
		"organisation":  {x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"x"}}}, "csr_names"},
		"NUL in CN":     {x509.CertificateRequest{Subject: pkix.Name{CommonName: "a\x00b"}}, "csr_names"},
		"foreign URI":   {x509.CertificateRequest{URIs: []*url.URL{victim}}, "csr_names"},
		"DNS name":      {x509.CertificateRequest{DNSNames: []string{"localhost"}}, "csr_names"},
		"NUL in DNS":    {x509.CertificateRequest{DNSNames: []string{"a.example\x00.evil"}}, "csr_names"},
		"IP address":    {x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}, "csr_names"},
		"e-mail":        {x509.CertificateRequest{EmailAddresses: []string{"a@b"}}, "csr_names"},
		"CA:TRUE":       {x509.CertificateRequest{ExtraExtensions: extension(t, asn1.ObjectIdentifier{2, 5, 29, 19}, basicConstraints{true})}, "csr_attributes"},
		"keyCertSign":   {x509.CertificateRequest{ExtraExtensions: extension(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{4}, BitLength: 6})}, "csr_attributes"},
		"server usage":  {x509.CertificateRequest{ExtraExtensions: extension(t, asn1.ObjectIdentifier{2, 5, 29, 37}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}})}, "csr_attributes"},
		"unknown":       {x509.CertificateRequest{ExtraExtensions: extension(t, asn1.ObjectIdentifier{1, 2, 3}, 1)}, "csr_attributes"},
		"otherName SAN": {x509.CertificateRequest{ExtraExtensions: extension(t, asn1.ObjectIdentifier{2, 5, 29, 17}, []asn1.RawValue{{Class: 2, Tag: 8, Bytes: []byte("x")}})}, "csr_attributes"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refusedFor(t, newRequest(t, &c.tmpl, newKey(t)), c.reason)
		})
	}
}

// Attributes that x509 does not understand are dropped by it silently, so they are refused here.
func TestParseRequestRefusesUnknownAttributes(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	attribute, err := asn1.Marshal(struct {
		ID     asn1.ObjectIdentifier
		Values []string `asn1:"set"`
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, []string{"challenge"}})
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, rebuiltRequest(t, key, func(tbs *rawTBS) {
		tbs.Attributes = asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: attribute}
	}), "csr_attributes")
	// The rebuilt form itself is sound: without the attribute it is accepted.
	if _, err := ParseRequest(rebuiltRequest(t, key, func(*rawTBS) {})); err != nil {
		t.Errorf("the unchanged request: %v", err)
	}
	refusedFor(t, rebuiltRequest(t, key, func(tbs *rawTBS) { tbs.Version = 3 }), "csr_malformed")
}

type rawTBS struct {
	Version    int
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Attributes asn1.RawValue
}

// rebuiltRequest changes the signed part of a sound request and signs it again.
func rebuiltRequest(t *testing.T, key *ecdsa.PrivateKey, change func(*rawTBS)) []byte {
	t.Helper()
	r := splitRequest(t, newRequest(t, &x509.CertificateRequest{}, key))
	var tbs rawTBS
	if _, err := asn1.Unmarshal(r.TBS.FullBytes, &tbs); err != nil {
		t.Fatal(err)
	}
	change(&tbs)
	der, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	h := crypto.SHA256.New()
	h.Write(der)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	r.TBS = asn1.RawValue{FullBytes: der}
	r.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	out, err := asn1.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParseRequestRefusesForm(t *testing.T) {
	t.Parallel()
	der, err := CreateRequest(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, nil, "csr_malformed")
	refusedFor(t, []byte("-----BEGIN CERTIFICATE REQUEST-----"), "csr_malformed")
	refusedFor(t, der[:len(der)-1], "csr_malformed")
	refusedFor(t, append(bytes.Clone(der), 0), "csr_malformed")
	refusedFor(t, make([]byte, MaxRequestSize+1), "csr_size")
	// The bound holds for requests that are otherwise sound.
	long := newRequest(t, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(bytes.Repeat([]byte("a"), MaxRequestSize))},
	}, newKey(t))
	refusedFor(t, long, "csr_size")
}

// EC-09: RFC 9325, Section 4.5: keys that are weak, of unwanted kinds, or so great that checking them costs too
// much are refused, and so are signatures over SHA-1.
func TestRFC9325_4_5_KeyPolicy(t *testing.T) {
	t.Parallel()
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, newRequest(t, &x509.CertificateRequest{}, p224), "csr_key")
	refusedFor(t, newRequest(t, &x509.CertificateRequest{}, p521), "csr_key")
	if _, err := CreateRequest(p521); err == nil {
		t.Error("CreateRequest takes a key that ParseRequest refuses")
	}

	odd := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.Add(n, big.NewInt(12345)) // no power of 65537 modulo 3
	}
	cases := map[string]crypto.PublicKey{
		"nil":               nil,
		"a string":          "key",
		"nil RSA":           (*rsa.PublicKey)(nil),
		"nil ECDSA":         (*ecdsa.PublicKey)(nil),
		"short Ed25519":     ed25519.PublicKey(make([]byte, 31)),
		"RSA 1024":          &rsa.PublicKey{N: odd(1024), E: 65537},
		"RSA 2047":          &rsa.PublicKey{N: odd(2047), E: 65537},
		"RSA 4097":          &rsa.PublicKey{N: odd(4097), E: 65537},
		"RSA 16384":         &rsa.PublicKey{N: odd(16384), E: 65537},
		"exponent 1":        &rsa.PublicKey{N: rsa2048.N, E: 1},
		"exponent -3":       &rsa.PublicKey{N: rsa2048.N, E: -3},
		"exponent even":     &rsa.PublicKey{N: rsa2048.N, E: 65536},
		"modulus even":      &rsa.PublicKey{N: new(big.Int).Add(odd(2048), big.NewInt(1)), E: 65537},
		"weak generator":    &rsa.PublicKey{N: rocaModulus(t), E: 65537},
		"RSA by value":      rsa2048.PublicKey,
		"ECDSA, no curve":   &ecdsa.PublicKey{},
		"private, not pub.": rsa2048,
	}
	for name, pub := range cases {
		if CheckPublicKey(pub) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, bits := range []uint{2048, 3072, 4096} {
		if err := CheckPublicKey(&rsa.PublicKey{N: odd(bits), E: 3}); err != nil {
			t.Errorf("RSA %d: %v", bits, err)
		}
	}
	if err := CheckPublicKey(&rsa2048.PublicKey); err != nil {
		t.Error(err)
	}
}

// rocaModulus makes a modulus of the weak form: (65537^a mod M)·(65537^b mod M), with multiples of M added.
func rocaModulus(t *testing.T) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for p := int64(2); p <= 701; p++ {
		if big.NewInt(p).ProbablyPrime(20) {
			m.Mul(m, big.NewInt(p))
		}
	}
	factor := func(a, k int64) *big.Int {
		f := new(big.Int).Exp(big.NewInt(65537), big.NewInt(a), m)
		return f.Add(f, new(big.Int).Mul(m, big.NewInt(k)))
	}
	n := new(big.Int).Mul(factor(123456789, 1<<60), factor(987654321, 1<<61))
	if n.BitLen() < 2048 || n.BitLen() > 4096 || n.Bit(0) == 0 {
		t.Fatalf("the example has %d bits", n.BitLen())
	}
	return n
}

func TestParseRequestRefusesSHA1(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	r := splitRequest(t, newRequest(t, &x509.CertificateRequest{}, key))
	h := crypto.SHA1.New()
	h.Write(r.TBS.FullBytes)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA1)
	if err != nil {
		t.Fatal(err)
	}
	r.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	r.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
	der, err := asn1.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		t.Fatalf("the example proves nothing: x509 refuses it too: %v", err)
	}
	refusedFor(t, der, "csr_signature")
}

func TestKeyHash(t *testing.T) {
	t.Parallel()
	a, b := newKey(t), newKey(t)
	ha, err := KeyHash(a.Public())
	if err != nil {
		t.Fatal(err)
	}
	again, _ := KeyHash(&a.PublicKey)
	hb, _ := KeyHash(b.Public())
	if ha != again || ha == hb {
		t.Error("one key must have one hash, and two keys two")
	}
	if _, err := KeyHash("key"); err == nil {
		t.Error("a string has a key hash")
	}
}
