// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtlstest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"slices"
	"testing"
)

// body is a TBSCertificate (RFC 5280, Section 4.1) whose fields can be given what crypto/x509 would not write.
type body struct {
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     asn1.RawValue
	Signature  asn1.RawValue
	Issuer     asn1.RawValue
	Validity   asn1.RawValue
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// seal signs the DER of a body.
type seal func(tbs []byte) ([]byte, error)

// sealedBy signs as by does for SHA-256, which is what all but a few certificates here are signed with.
func sealedBy(by crypto.Signer) seal {
	return func(tbs []byte) ([]byte, error) {
		digest := sha256.Sum256(tbs)
		return by.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
}

// forge returns the DER of cert as edit leaves it, signed anew.
func forge(tb testing.TB, cert *x509.Certificate, sign seal, edit func(*body)) []byte {
	tb.Helper()
	var b body
	if _, err := asn1.Unmarshal(cert.RawTBSCertificate, &b); err != nil {
		tb.Fatalf("mtlstest: take a certificate apart: %v", err)
	}
	edit(&b)
	tbs := marshal(tb, b)
	signature, err := sign(tbs)
	if err != nil {
		tb.Fatalf("mtlstest: sign: %v", err)
	}
	return envelope(tb, tbs, b.Signature, signature)
}

// envelope returns the DER of a Certificate of these three parts.
func envelope(tb testing.TB, tbs []byte, algorithm asn1.RawValue, signature []byte) []byte {
	tb.Helper()
	return marshal(tb, []asn1.RawValue{
		{FullBytes: tbs}, algorithm, {FullBytes: marshal(tb, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)})},
	})
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatalf("mtlstest: marshal: %v", err)
	}
	return der
}

// sequence returns the DER of a SEQUENCE of values that are DER already.
func sequence(tb testing.TB, values ...[]byte) []byte {
	tb.Helper()
	return marshal(tb, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: slices.Concat(values...)})
}

// tagged returns the DER of a value under a context-specific tag.
func tagged(tb testing.TB, tag int, compound bool, content []byte) []byte {
	tb.Helper()
	return marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: content})
}

// publicKeyInfo returns a SubjectPublicKeyInfo. A nil parameter is left out.
func publicKeyInfo(tb testing.TB, algorithm asn1.ObjectIdentifier, parameters, key []byte) asn1.RawValue {
	tb.Helper()
	bits := marshal(tb, asn1.BitString{Bytes: key, BitLength: 8 * len(key)})
	return asn1.RawValue{FullBytes: sequence(tb, sequence(tb, marshal(tb, algorithm), parameters), bits)}
}

// attribute is one attribute of a Name: its type, and its value as a tag of the universal class and octets.
type attribute struct {
	oid   asn1.ObjectIdentifier
	tag   int
	value string
}

var (
	oidCN     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidO      = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidPoison = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1} // under the enterprise number for examples, RFC 5612
)

// distinguishedName returns the DER of a Name with the given RDNs, most significant first.
func distinguishedName(tb testing.TB, rdns ...[]attribute) []byte {
	tb.Helper()
	var sets [][]byte
	for _, rdn := range rdns {
		var members [][]byte
		for _, a := range rdn {
			value := marshal(tb, asn1.RawValue{Tag: a.tag, Bytes: []byte(a.value)})
			members = append(members, sequence(tb, marshal(tb, a.oid), value))
		}
		slices.SortFunc(members, slices.Compare)
		sets = append(sets, marshal(tb, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: slices.Concat(members...)}))
	}
	return sequence(tb, sets...)
}

// toyRSA is an RSA key of several small primes. It is made in milliseconds where an honest one takes many more, its
// signatures are as good as any to those who check them, and it would not withstand a factoring.
type toyRSA struct {
	public  rsa.PublicKey
	private *big.Int
}

// newToyRSA returns a key of that many primes of 256 bits each; one bit or two of each are lost in the product.
func newToyRSA(tb testing.TB, primes int) *toyRSA {
	tb.Helper()
	e, one := big.NewInt(65537), big.NewInt(1)
	for {
		n, phi := big.NewInt(1), big.NewInt(1)
		for range primes {
			p, err := rand.Prime(rand.Reader, 256)
			if err != nil {
				tb.Fatalf("mtlstest: prime: %v", err)
			}
			n.Mul(n, p)
			phi.Mul(phi, new(big.Int).Sub(p, one))
		}
		if d := new(big.Int).ModInverse(e, phi); d != nil {
			return &toyRSA{public: rsa.PublicKey{N: n, E: int(e.Int64())}, private: d}
		}
	}
}

func (k *toyRSA) Public() crypto.PublicKey { return &k.public }

// Sign signs by PKCS #1 v1.5 (RFC 8017, Section 8.2.1), with MD5 too.
func (k *toyRSA) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	algorithm, ok := map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.MD5: {1, 2, 840, 113549, 2, 5}, crypto.SHA1: {1, 3, 14, 3, 2, 26}, crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	}[opts.HashFunc()]
	if !ok {
		return nil, errors.New("unknown digest")
	}
	info, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}{pkix.AlgorithmIdentifier{Algorithm: algorithm, Parameters: asn1.NullRawValue}, digest})
	if err != nil {
		return nil, err
	}
	size := k.public.Size()
	padded := slices.Concat([]byte{0, 1}, slices.Repeat([]byte{0xff}, size-3-len(info)), []byte{0}, info)
	s := new(big.Int).Exp(new(big.Int).SetBytes(padded), k.private, k.public.N)
	return s.FillBytes(make([]byte, size)), nil
}

// fakeRSA returns an RSA public key of which nobody knows the private one: enough where only its size is judged.
func fakeRSA(tb testing.TB, bits, exponent int) *rsa.PublicKey {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	if err != nil {
		tb.Fatalf("mtlstest: random number: %v", err)
	}
	return &rsa.PublicKey{N: n.SetBit(n.SetBit(n, bits-1, 1), 0, 1), E: exponent}
}
