// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// foreignCommands are the commands of scripts that make what Certbound does not: other CAs and their certificates.
//
//	ca NAME [CN]              make a CA, whose certificate is NAME.pem; it is called CN, or NAME
//	issue CA NAME [KIND=V…]   have it issue NAME.pem and NAME.key; KIND is cn, o, dns, uri, ip, email or life (a duration)
//	selfsign NAME [KIND=V…]   make NAME.pem and NAME.key, self-signed
//	crl CA FILE LIFE [NAME…]  write its revocation list with NAME.pem…; it goes stale after LIFE, which may be negative
//	keyset FILE NAME…         write a JSON Web Key Set with the certificates NAME.pem…
//	publish CA FILE           serve FILE over https, with a certificate of CA; sets $PUBLISHED to its address
func foreignCommands(t *testing.T) map[string]func(*testscript.TestScript, bool, []string) {
	command := func(least int, f func(*testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < least {
				ts.Fatalf("see foreignCommands for the usage")
			}
			f(ts, args)
		}
	}
	return map[string]func(*testscript.TestScript, bool, []string){
		"ca": command(1, func(ts *testscript.TestScript, args []string) {
			ca := mtlstest.NewCA(t, args[len(args)-1])
			authorities(ts)[args[0]] = ca
			writePEM(ts, args[0]+".pem", "CERTIFICATE", ca.Certificate().Raw)
		}),
		"issue": command(2, func(ts *testscript.TestScript, args []string) {
			writePair(ts, args[1], authorities(ts)[args[0]].Issue(t, leafOf(ts, args[2:])))
		}),
		"selfsign": command(1, func(ts *testscript.TestScript, args []string) {
			writePair(ts, args[0], mtlstest.SelfSigned(t, leafOf(ts, args[1:])))
		}),
		"crl": command(3, func(ts *testscript.TestScript, args []string) {
			writeCRL(ts, authorities(ts)[args[0]], args[1], args[2], args[3:])
		}),
		"keyset": command(1, func(ts *testscript.TestScript, args []string) { writeKeySet(ts, args[0], args[1:]) }),
		"publish": command(2, func(ts *testscript.TestScript, args []string) {
			file := ts.MkAbs(args[1])
			serve := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				content, _ := os.ReadFile(file) // what is gone is empty
				w.Header().Set("Content-Type", "application/jwk-set+json")
				_, _ = w.Write(content)
			})
			cert := authorities(ts)[args[0]].Issue(t, mtlstest.ServerLeaf())
			ts.Setenv("PUBLISHED", mtlstest.Server(t, serve, cert, mtls.ClientCertificatesIgnored).URL+"/"+args[1])
		}),
	}
}

func authorities(ts *testscript.TestScript) map[string]*mtlstest.CA {
	return ts.Value("authorities").(map[string]*mtlstest.CA)
}

func leafOf(ts *testscript.TestScript, args []string) mtlstest.Leaf {
	leaf := mtlstest.Leaf{Subject: &pkix.Name{}}
	for _, arg := range args {
		kind, value, _ := strings.Cut(arg, "=")
		switch kind {
		case "cn":
			leaf.Subject.CommonName = value
		case "o":
			leaf.Subject.Organization = []string{value}
		case "dns":
			leaf.DNSNames = append(leaf.DNSNames, value)
		case "uri":
			leaf.URIs = append(leaf.URIs, value)
		case "ip":
			leaf.IPs = append(leaf.IPs, net.ParseIP(value))
		case "email":
			leaf.Emails = append(leaf.Emails, value)
		case "life":
			life, err := time.ParseDuration(value)
			ts.Check(err)
			leaf.NotAfter = time.Now().Add(life)
		default:
			ts.Fatalf("unknown kind of name %q", kind)
		}
	}
	return leaf
}

func writePair(ts *testscript.TestScript, name string, cert tls.Certificate) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	ts.Check(err)
	writePEM(ts, name+".pem", "CERTIFICATE", cert.Certificate...)
	writePEM(ts, name+".key", "PRIVATE KEY", key)
}

func writePEM(ts *testscript.TestScript, name, kind string, blocks ...[]byte) {
	var out bytes.Buffer
	for _, block := range blocks {
		ts.Check(pem.Encode(&out, &pem.Block{Type: kind, Bytes: block}))
	}
	ts.Check(os.WriteFile(ts.MkAbs(name), out.Bytes(), 0o600))
}

// readCertificate is the first certificate of NAME.pem.
func readCertificate(ts *testscript.TestScript, name string) *x509.Certificate {
	block, _ := pem.Decode([]byte(ts.ReadFile(name + ".pem")))
	if block == nil {
		ts.Fatalf("%s.pem holds no certificate", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	return cert
}

// writeKeySet writes the keys as RFC 8705, Section 2.2.2 wants them: with the certificate in x5c.
func writeKeySet(ts *testscript.TestScript, file string, names []string) {
	keys := []map[string]any{}
	for _, name := range names {
		cert := readCertificate(ts, name)
		point, err := cert.PublicKey.(*ecdsa.PublicKey).Bytes()
		ts.Check(err)
		encode := base64.RawURLEncoding.EncodeToString
		keys = append(keys, map[string]any{
			"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:]),
			"x5c": []string{base64.StdEncoding.EncodeToString(cert.Raw)},
		})
	}
	content, err := json.Marshal(map[string]any{"keys": keys})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(file), content, 0o600))
}

// writeCRL numbers its lists by the clock, so that a later one counts as newer.
func writeCRL(ts *testscript.TestScript, ca *mtlstest.CA, file, life string, names []string) {
	lives, err := time.ParseDuration(life)
	ts.Check(err)
	now := time.Now()
	var revoked []pki.Revoked
	for _, name := range names {
		revoked = append(revoked, pki.Revoked{Serial: readCertificate(ts, name).SerialNumber, At: now})
	}
	der, err := pki.CreateCRL(ca.Certificate(), ca.Key(), big.NewInt(now.UnixNano()), now.Add(min(0, lives)-time.Minute), now.Add(lives), revoked)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(file), der, 0o600))
}
