// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// MaxRequestSize is the greatest size of a certificate request in bytes of DER.
const MaxRequestSize = 16 << 10

// RequestError says why a certificate request was refused.
type RequestError struct {
	// Reason is for logs and records: csr_size, csr_malformed, csr_names, csr_attributes, csr_key or
	// csr_signature.
	Reason string
	// Detail is for the one who sent the request. It never repeats bytes of the request.
	Detail string
}

// Error returns the detail.
func (e *RequestError) Error() string { return "certificate request: " + e.Detail }

// CreateRequest makes the request that [ParseRequest] wants: a key, proof that it is held, and nothing else.
func CreateRequest(key crypto.Signer) ([]byte, error) {
	if err := CheckPublicKey(key.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate request: %w", err)
	}
	return der, nil
}

// ParseRequest reads a PKCS #10 request (RFC 2986) and judges it before anything is spent on it. Accepted is a
// request that carries a key and the proof of its possession and nothing else: a subject, a subjectAltName or any
// other requested extension or attribute is refused, not ignored, because a certificate gets its names and usages
// from the registry, and one who asks for others should hear it. Every error is a *[RequestError].
func ParseRequest(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > MaxRequestSize {
		return nil, &RequestError{"csr_size", fmt.Sprintf("longer than %d bytes", MaxRequestSize)}
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, &RequestError{"csr_malformed", "cannot be read, or an extension stands in it twice"}
	}
	if err := checkRequestContent(csr); err != nil {
		return nil, err
	}
	// The key is judged before its signature, so that nobody buys a check with a key of 16384 bits.
	if err := CheckPublicKey(csr.PublicKey); err != nil {
		return nil, &RequestError{"csr_key", err.Error()}
	}
	if !isGoodSignature(csr.SignatureAlgorithm) {
		return nil, &RequestError{"csr_signature", "signed with an algorithm that is not accepted"}
	}
	if csr.CheckSignature() != nil {
		return nil, &RequestError{"csr_signature", "not signed by the key it carries"}
	}
	return csr, nil
}

func checkRequestContent(csr *x509.CertificateRequest) error {
	if len(csr.Subject.Names) > 0 || !isEmptySequence(csr.RawSubject) {
		return &RequestError{"csr_names", "asks for a subject; leave it empty, the registry names the client"}
	}
	if len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.URIs)+len(csr.EmailAddresses) > 0 {
		return &RequestError{"csr_names", "asks for names; leave them out, the registry names the client"}
	}
	// Requested extensions are an attribute too. x509 drops attributes that it cannot read, so they are counted in
	// the raw form (RFC 2986, Section 4.1).
	var tbs struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	rest, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &tbs)
	if err != nil || len(rest) > 0 || tbs.Version != 0 {
		return &RequestError{"csr_malformed", "not a PKCS #10 request of version 1"}
	}
	if len(tbs.Attributes) > 0 {
		return &RequestError{"csr_attributes", "asks for extensions or carries attributes; leave them out"}
	}
	return nil
}

// isEmptySequence reports whether der is the empty SEQUENCE.
func isEmptySequence(der []byte) bool { return len(der) == 2 && der[0] == 0x30 && der[1] == 0 }

// CheckPublicKey accepts ECDSA keys on P-256 and P-384, Ed25519 keys, and RSA keys of 2048 to 4096 bits with an
// odd public exponent above 1 that do not carry the fingerprint of the Infineon library (ROCA, CVE-2017-15361).
func CheckPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k == nil || (k.Curve != elliptic.P256() && k.Curve != elliptic.P384()) {
			return errors.New("ECDSA keys must be on P-256 or P-384")
		}
		return nil
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return errors.New("an Ed25519 key has 32 bytes")
		}
		return nil
	case *rsa.PublicKey:
		return checkRSA(k)
	}
	return errors.New("keys must be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")
}

// KeyHash is the SHA-256 digest of the key's SubjectPublicKeyInfo (RFC 5280, Section 4.1.2.7), written anew, so
// that one key has one hash however a request encoded it.
func KeyHash(pub crypto.PublicKey) ([32]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encode public key: %w", err)
	}
	return sha256.Sum256(spki), nil
}

func checkRSA(k *rsa.PublicKey) error {
	if k == nil || k.N == nil || k.N.BitLen() < 2048 || k.N.BitLen() > 4096 {
		return errors.New("RSA keys must have 2048 to 4096 bits")
	}
	if k.N.Bit(0) == 0 || k.E <= 1 || k.E%2 == 0 {
		return errors.New("the RSA modulus and public exponent must be odd, and the exponent above 1")
	}
	if isROCA(k.N) {
		return errors.New("the RSA key was made by a generator known to be weak (ROCA, CVE-2017-15361)")
	}
	return nil
}

// isROCA is the fingerprint of Nemec, Sys, Svenda, Klinec and Matyas, "The Return of Coppersmith's Attack", CCS
// 2017, Section 3: the weak generator makes primes k·M + (65537^a mod M), so modulo every prime that divides M the
// modulus is a power of 65537. A sound modulus passes for one by chance about once in 2^28.
func isROCA(n *big.Int) bool {
	primes := [...]uint64{
		3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107,
		109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
	}
	var p, rest big.Int
	for _, prime := range primes {
		rest.Mod(n, p.SetUint64(prime))
		if !isPowerOf65537(rest.Uint64(), prime) {
			return false
		}
	}
	return true
}

func isPowerOf65537(r, prime uint64) bool {
	g := 65537 % prime
	for x := uint64(1); ; {
		if x == r {
			return true
		}
		if x = x * g % prime; x == 1 {
			return false
		}
	}
}

// isGoodSignature tells the signature algorithms that are accepted: none with SHA-1 or MD5, which x509 still
// checks on requests and revocation lists (RFC 9325, Section 4.1 advises against them).
func isGoodSignature(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
		return true
	}
	return false
}
