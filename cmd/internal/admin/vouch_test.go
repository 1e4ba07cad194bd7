// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
)

func pemOf(certs ...*x509.Certificate) string {
	var out bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes everything
	}
	return out.String()
}

func selfSigned(tb testing.TB, leaf mtlstest.Leaf) *x509.Certificate {
	tb.Helper()
	return mtlstest.SelfSigned(tb, leaf).Leaf
}

// pem is a new self-signed certificate of that common name.
func (b *bench) pem(name string) string {
	b.Helper()
	return pemOf(selfSigned(b, mtlstest.Leaf{CommonName: name}))
}

// trust registers a foreign CA.
func (b *bench) trust(name string, ca *mtlstest.CA) {
	b.Helper()
	b.post("/trusts", body("name", name, "ca", pemOf(ca.Certificate())), http.StatusCreated, nil)
}

// body is a JSON object of names and values in turn.
func body(members ...any) string {
	object := make(map[string]any)
	for pair := range slices.Chunk(members, 2) {
		object[fmt.Sprint(pair[0])] = pair[1]
	}
	raw, err := json.Marshal(object)
	if err != nil {
		panic(err) // a test's own strings
	}
	return string(raw)
}

// CA-04, CA-05, CA-18: RFC 8705, Section 2.1.2: a client of a CA registers exactly one of the five subject members, and a
// client with its own certificate none; its keys are given by value or by address, not both (RFC 7591, Section 2).
func TestRFC8705_2_1_2_OneThingVouches(t *testing.T) {
	t.Parallel()
	text := pemOf(selfSigned(t, mtlstest.Leaf{}))
	for name, tt := range map[string]struct {
		req  ClientRequest
		hint string
	}{
		"foreign CA and no member":  {ClientRequest{Trust: "p"}, "exactly one of --subject-dn"},
		"two members":               {ClientRequest{Trust: "p", SANDNS: "a.example", SANURI: "urn:a"}, "exactly one of --subject-dn"},
		"five members":              {ClientRequest{Trust: "p", SubjectDN: "CN=a", SANDNS: "a.example", SANURI: "urn:a", SANIP: "192.0.2.1", SANEmail: "a@b"}, "exactly one of --subject-dn"},
		"malformed member":          {ClientRequest{Trust: "p", SubjectDN: ",,"}, "exactly one of --subject-dn"},
		"member without trust":      {ClientRequest{SANDNS: "a.example"}, "--trust"},
		"member and method":         {ClientRequest{AuthMethod: byCA, SubjectDN: "CN=a"}, "--trust"},
		"self-signed, DN":           {ClientRequest{Certificates: []string{text}, SubjectDN: "CN=a"}, "leave the tls_client_auth_ members out"},
		"self-signed, DNS":          {ClientRequest{Certificates: []string{text}, SANDNS: "a.example"}, "leave the tls_client_auth_ members out"},
		"self-signed, URI":          {ClientRequest{JWKSURI: "https://a.example/jwks", SANURI: "urn:a"}, "leave the tls_client_auth_ members out"},
		"method only, member":       {ClientRequest{AuthMethod: byCertificate, SANIP: "192.0.2.1"}, "leave the tls_client_auth_ members out"},
		"method only":               {ClientRequest{AuthMethod: byCertificate}, "--cert FILE"},
		"certificates and jwks_uri": {ClientRequest{Certificates: []string{text}, JWKSURI: "https://a.example/jwks"}, "--cert or --jwks-uri"},
		"trust and certificates":    {ClientRequest{Trust: "p", Certificates: []string{text}}, "--trust, or --cert"},
		"trust and jwks_uri":        {ClientRequest{Trust: "p", JWKSURI: "https://a.example/jwks"}, "--trust, or --cert"},
		"other method, CA":          {ClientRequest{AuthMethod: byCertificate, Trust: "p"}, "leave token_endpoint_auth_method out"},
		"other method, own":         {ClientRequest{AuthMethod: byCA, Certificates: []string{text}}, "leave token_endpoint_auth_method out"},
		"no such method":            {ClientRequest{AuthMethod: "none"}, "leave token_endpoint_auth_method out"},
		"foreign with a name":       {ClientRequest{Trust: "p", SANDNS: "a.example", DNSNames: []string{"a.example"}}, "leave --dns"},
		"foreign with an address":   {ClientRequest{Trust: "p", SANDNS: "a.example", IPAddresses: []string{"198.51.100.1"}}, "leave --dns"},
		"self-signed with a URI":    {ClientRequest{Certificates: []string{text}, URIs: []string{"https://a.example"}}, "leave --dns"},
		"foreign server":            {ClientRequest{Trust: "p", SANDNS: "a.example", Usage: "server"}, "leave --dns"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.req.ID = "a"
			_, err := testRules(t).client(&tt.req, nil, time.Now())
			checkRefusal(t, err, codeMetadata, tt.hint)
		})
	}
}

func TestForeignClientAccepted(t *testing.T) {
	t.Parallel()
	for kind, tt := range map[mtls.SubjectKind]struct {
		req   ClientRequest
		value string
	}{
		mtls.SubjectDN: {ClientRequest{SubjectDN: `CN=a,O=b\, c`}, `CN=a,O=b\, c`},
		mtls.SANDNS:    {ClientRequest{SANDNS: "a.example"}, "a.example"},
		mtls.SANURI:    {ClientRequest{SANURI: "spiffe://other.example/x"}, "spiffe://other.example/x"},
		mtls.SANIP:     {ClientRequest{SANIP: "2001:db8::1"}, "2001:db8::1"},
		mtls.SANEmail:  {ClientRequest{SANEmail: "a@auth.example"}, "a@auth.example"},
	} {
		tt.req.ID, tt.req.Trust, tt.req.Usage, tt.req.AuthMethod = "a", "partner", "client", byCA
		got, err := testRules(t).client(&tt.req, nil, time.Now())
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		want := store.Client{ID: "a", AuthMethod: byCA, Usage: "client", Trust: "partner", SubjectKind: string(kind), SubjectValue: tt.value}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}

// A client of a foreign CA may be called by its SPIFFE id, but nobody by one of our trust domain: our own CA gives those.
func TestSPIFFEIDs(t *testing.T) {
	t.Parallel()
	foreign := func(id string) ClientRequest { return ClientRequest{ID: id, Trust: "p", SANURI: "urn:a"} }
	for id, ok := range map[string]bool{
		"spiffe://other.example/a":                              true,
		"spiffe://other.example/ns/A_b.-9":                      true,
		"partner-a":                                             true,
		"spiffe://" + testTrustDomain + "/client/a":             false,
		"spiffe://" + testTrustDomain + "/x":                    false,
		"spiffe://" + strings.ToUpper(testTrustDomain) + "/x":   false,
		"SPIFFE://other.example/a":                              false,
		"spiffe://other.example":                                false,
		"spiffe://other.example/":                               false,
		"spiffe://other.example/a/":                             false,
		"spiffe://other.example//a":                             false,
		"spiffe://other.example/a/../b":                         false,
		"spiffe://other.example/./a":                            false,
		"spiffe://other.example/a?b":                            false,
		"spiffe://other.example/a#b":                            false,
		"spiffe://other.example/%61":                            false,
		"spiffe://u@other.example/a":                            false,
		"spiffe://other.example:1/a":                            false,
		"spiffe:///a":                                           false,
		"https://other.example/a":                               false,
		"spiffe://other.example/" + strings.Repeat("a", 255-22): false,
		"spiffe://other.example/" + strings.Repeat("a", 255-23): true,
		"spiffe://other.example/a\n":                            false,
	} {
		req := foreign(id)
		if _, err := testRules(t).client(&req, nil, time.Now()); (err == nil) != ok {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, req := range []ClientRequest{
		{ID: "spiffe://other.example/a"},
		{ID: "spiffe://other.example/a", Certificates: []string{pemOf(selfSigned(t, mtlstest.Leaf{}))}},
	} {
		_, err := testRules(t).client(&req, nil, time.Now())
		checkRefusal(t, err, codeMetadata, "begins with")
	}
}

// What a foreign CA or an own certificate vouches for is not a name of the service, unless the operator insists; and never
// the name of a client of our own CA.
func TestReservedNamesOfOthers(t *testing.T) {
	t.Parallel()
	own := "spiffe://" + testTrustDomain + "/client/b"
	pinned := func(leaf mtlstest.Leaf) ClientRequest {
		return ClientRequest{Certificates: []string{pemOf(selfSigned(t, leaf))}}
	}
	for name, tt := range map[string]struct {
		req   ClientRequest
		never bool
	}{
		"DNS":                        {ClientRequest{Trust: "p", SANDNS: "Auth.example"}, false},
		"DNS, localhost":             {ClientRequest{Trust: "p", SANDNS: "localhost"}, false},
		"address":                    {ClientRequest{Trust: "p", SANIP: "192.0.2.7"}, false},
		"loopback":                   {ClientRequest{Trust: "p", SANIP: "127.0.0.9"}, false},
		"mapped loopback":            {ClientRequest{Trust: "p", SANIP: "::ffff:127.0.0.1"}, false},
		"URI":                        {ClientRequest{Trust: "p", SANURI: "https://auth.example/x"}, false},
		"common name":                {ClientRequest{Trust: "p", SubjectDN: "O=b,CN=auth.example"}, false},
		"common name, in capitals":   {ClientRequest{Trust: "p", SubjectDN: "cn=AUTH.example,O=b"}, false},
		"common name, by OID":        {ClientRequest{Trust: "p", SubjectDN: "O=b+2.5.4.3=localhost"}, false},
		"common name, escaped":       {ClientRequest{Trust: "p", SubjectDN: `CN=\61uth\2eexample`}, false},
		"common name, after a comma": {ClientRequest{Trust: "p", SubjectDN: `O=a\,b,CN=auth.example`}, false},
		"common name, in hex":        {ClientRequest{Trust: "p", SubjectDN: "O=b,CN=" + hexValue(asn1.TagUTF8String, "auth.example", 1)}, false},
		"common name, hex, OID":      {ClientRequest{Trust: "p", SubjectDN: "2.5.4.3=" + hexValue(asn1.TagPrintableString, "LOCALHOST", 1) + " ,O=b"}, false},
		"common name, hex, BMP":      {ClientRequest{Trust: "p", SubjectDN: "CN=" + hexValue(asn1.TagBMPString, "auth.example", 2)}, false},
		"common name, hex, four":     {ClientRequest{Trust: "p", SubjectDN: "CN=" + hexValue(tagUniversalString, "auth.example", 4)}, false},
		"common name, with a dot":    {ClientRequest{Trust: "p", SubjectDN: "CN=auth.example."}, false},
		"common name, an address":    {ClientRequest{Trust: "p", SubjectDN: "CN=127.0.0.1"}, false},
		"our SPIFFE id":              {ClientRequest{Trust: "p", SANURI: own}, true},
		"our SPIFFE id, in capitals": {ClientRequest{Trust: "p", SANURI: "SPIFFE://" + strings.ToUpper(testTrustDomain) + "/client/b"}, true},
		"pinned, common name":        {pinned(mtlstest.Leaf{CommonName: "auth.example"}), false},
		"pinned, DNS":                {pinned(mtlstest.Leaf{DNSNames: []string{"a.example", "localhost"}}), false},
		"pinned, address":            {pinned(mtlstest.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}), false},
		"pinned, URI":                {pinned(mtlstest.Leaf{URIs: []string{"https://auth.example/x"}}), false},
		"pinned, our SPIFFE id":      {pinned(mtlstest.Leaf{URIs: []string{own}}), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.req.ID = "a"
			_, err := testRules(t).client(&tt.req, nil, time.Now())
			if tt.never {
				checkRefusal(t, err, codeMetadata, "only our own CA")
			} else {
				checkRefusal(t, err, codeMetadata, "--allow-reserved")
			}
			tt.req.AllowReserved = true
			if _, err := testRules(t).client(&tt.req, nil, time.Now()); (err != nil) != tt.never {
				t.Errorf("insisted: %v", err)
			}
		})
	}
	for _, dn := range []string{"CN=" + hexValue(asn1.TagUTF8String, "a.example", 1), `CN=\#auth.example`, `O=CN\=auth.example`, `O=auth.example`, `CN=auth.example.org`, `CN=a\,CN\=localhost`} {
		req := ClientRequest{ID: "a", Trust: "p", SubjectDN: dn}
		if _, err := testRules(t).client(&req, nil, time.Now()); err != nil {
			t.Errorf("%s: %v", dn, err)
		}
	}
}

// hexValue is a text of so many octets a character in the hexadecimal form of RFC 4514, Section 2.4.
func hexValue(tag int, text string, octets int) string {
	var content []byte
	for _, c := range []byte(text) {
		content = append(append(content, make([]byte, octets-1)...), c)
	}
	return fmt.Sprintf("#%02x%02x%x", tag, len(content), content)
}

func TestPinnedRefused(t *testing.T) {
	t.Parallel()
	good := selfSigned(t, mtlstest.Leaf{})
	curve, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("host-number-%d.example", i)
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}))
	text := pemOf(good)
	for name, tt := range map[string]struct {
		certs []string
		hint  string
	}{
		"none":                 {[]string{}, "--cert FILE once"},
		"nine":                 {slices.Repeat([]string{text}, maxPinned+1), "--cert FILE once"},
		"empty":                {[]string{""}, "alone"},
		"a chain":              {[]string{text + pemOf(mtlstest.NewCA(t, "ca").Certificate())}, "alone"},
		"DER":                  {[]string{string(good.Raw)}, "alone"},
		"truncated":            {[]string{text[:len(text)-10]}, "alone"},
		"good, then garbage":   {[]string{text, "x"}, "alone"},
		"another block":        {[]string{strings.ReplaceAll(text, "CERTIFICATE", "PUBLIC KEY")}, "alone"},
		"key":                  {[]string{key}, "discard that key"},
		"certificate and key":  {[]string{text + key}, "discard that key"},
		"RSA key":              {[]string{strings.ReplaceAll(key, "PRIVATE", "RSA PRIVATE") + text}, "discard that key"},
		"P-521":                {[]string{pemOf(selfSigned(t, mtlstest.Leaf{Key: curve}))}, "P-256"},
		"RSA 1024":             {[]string{pemOf(selfSigned(t, mtlstest.Leaf{Key: weak}))}, "P-256"},
		"too long":             {[]string{pemOf(selfSigned(t, mtlstest.Leaf{DNSNames: names}))}, "fewer names"},
		"issued by a CA":       {[]string{pemOf(mtlstest.NewCA(t, "ca").Issue(t, mtlstest.Leaf{}).Leaf)}, "certbound trust add"},
		"issued by a namesake": {[]string{namesake(t)}, "certbound trust add"},
		"forged":               {[]string{pemOf(forged(t, good))}, "certbound trust add"},
		"expired": {[]string{pemOf(selfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Second)}))},
			"register one that is valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := testRules(t).pinned(tt.certs, false, time.Now())
			checkRefusal(t, err, codeMetadata, tt.hint)
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("the key is in the error: %v", err)
			}
		})
	}
}

// namesake is a certificate whose issuer has its subject's name, and another key.
func namesake(tb testing.TB) string {
	tb.Helper()
	return pemOf(mtlstest.NewCA(tb, "twin").Issue(tb, mtlstest.Leaf{CommonName: "twin"}).Leaf)
}

// forged is a certificate with one octet of its signature changed.
func forged(tb testing.TB, cert *x509.Certificate) *x509.Certificate {
	tb.Helper()
	other, err := x509.ParseCertificate(flipLast(cert.Raw))
	if err != nil {
		tb.Fatal(err)
	}
	return other
}

// Whether a registered certificate is a CA's and whether its time has come does not matter (RFC 8705, Section 2.2); one
// given twice counts once.
func TestPinnedAccepted(t *testing.T) {
	t.Parallel()
	plain := selfSigned(t, mtlstest.Leaf{})
	authority := selfSigned(t, mtlstest.Leaf{IsCA: true})
	later := selfSigned(t, mtlstest.Leaf{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)})
	got, err := testRules(t).client(&ClientRequest{
		ID: "a", AuthMethod: byCertificate, Certificates: []string{pemOf(plain), pemOf(authority), pemOf(later), "a note\n" + pemOf(plain)},
	}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want := store.Client{ID: "a", AuthMethod: byCertificate, Usage: "client", Certificates: [][]byte{plain.Raw, authority.Raw, later.Raw}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestJWKSURI(t *testing.T) {
	t.Parallel()
	for uri, ok := range map[string]bool{
		"https://a.example/jwks.json": true, "https://a.example:8443/jwks?x=1": true,
		"http://a.example/jwks": false, "HTTP://a.example/jwks": false, "ftp://a.example/jwks": false, "file:///etc/passwd": false,
		"https://u:p@a.example/jwks": false, "https://a.example/jwks#x": false, "https://a.example/jwks#": false, "https:///jwks": false,
		"https:a.example": false, "//a.example/jwks": false, "jwks": false, "https://a.example/a b": false,
		"https://a.example/" + strings.Repeat("a", maxURI): false, "data:application/json,{}": false,
	} {
		_, err := testRules(t).client(&ClientRequest{ID: "a", JWKSURI: uri}, nil, time.Now())
		if (err == nil) != ok {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestForeignAndSelfSignedClients(t *testing.T) {
	b := newBench(t)
	b.refused(http.MethodPost, "/clients", `{"client_id":"a","trust":"partner","tls_client_auth_san_dns":"a.example"}`,
		http.StatusBadRequest, "invalid_client_metadata", "certbound trust add")
	b.trust("partner", mtlstest.NewCA(t, "partner"))
	var made Invitation
	id := "spiffe://other.example/a"
	b.post("/clients", body("client_id", id, "trust", "partner", "tls_client_auth_san_uri", id, "scope", "ledger:read"), http.StatusCreated, &made)
	if diff := cmp.Diff(Invitation{ClientID: id, AuthMethod: byCA}, made); diff != "" {
		t.Errorf("a client that needs no code: %s", diff)
	}
	if e := b.journal.last(t); e.Client != id || e.Detail["trust"] != "partner" || e.Detail["tls_client_auth_san_uri"] != id {
		t.Errorf("recorded %+v", e)
	}
	var client Client
	path := "/clients/spiffe:%2F%2Fother.example%2Fa"
	b.do(http.MethodGet, path, "", http.StatusOK, &client)
	if client.ID != id || client.Trust != "partner" || client.SANURI != id || client.AuthMethod != byCA {
		t.Errorf("shown %+v", client)
	}
	b.refused(http.MethodPost, path+"/invite", "", http.StatusConflict, "invalid_request", "shows who does")
	b.refused(http.MethodPut, path+"/certificates", body("certificates", []string{b.pem("a")}), http.StatusConflict, "invalid_request", "what vouches for it")

	cert := selfSigned(t, mtlstest.Leaf{CommonName: "own"})
	b.post("/clients", body("client_id", "own", "certificates", []string{pemOf(cert)}), http.StatusCreated, &made)
	if made.Code != "" || made.AuthMethod != byCertificate {
		t.Errorf("answer %+v", made)
	}
	thumbprint := mtls.ThumbprintOf(cert).String()
	if e := b.journal.last(t); e.Detail["x5t#S256"] != thumbprint {
		t.Errorf("recorded %+v", e)
	}
	b.do(http.MethodGet, "/clients/own", "", http.StatusOK, &client)
	want := []PinnedCertificate{{Thumbprint: thumbprint, Subject: "CN=own", NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC()}}
	if diff := cmp.Diff(want, client.Certificates); diff != "" {
		t.Error(diff)
	}
	b.post("/clients", `{"client_id":"pub","jwks_uri":"https://pub.example/jwks"}`, http.StatusCreated, nil)
	if e := b.journal.last(t); e.Detail["jwks_uri"] != "https://pub.example/jwks" {
		t.Errorf("recorded %+v", e)
	}
	client = Client{}
	b.do(http.MethodGet, "/clients/pub", "", http.StatusOK, &client)
	if client.JWKSURI != "https://pub.example/jwks" || client.AuthMethod != byCertificate || client.Certificates != nil {
		t.Errorf("shown %+v", client)
	}
	b.refused(http.MethodPut, "/clients/pub/certificates", body("certificates", []string{b.pem("a")}), http.StatusConflict, "invalid_request", "what vouches for it")
}

// While a client rotates, both its certificates are registered; then only the new one.
func TestRotateCertificates(t *testing.T) {
	b := newBench(t)
	before, after := b.pem("before"), b.pem("after")
	b.post("/clients", body("client_id", "own", "certificates", []string{before}), http.StatusCreated, nil)
	b.refused(http.MethodPut, "/clients/nobody/certificates", body("certificates", []string{after}), http.StatusNotFound, "invalid_request", "client list")
	for _, bad := range []string{`{"certificates":[]}`, body("certificates", []string{"x"})} {
		b.refused(http.MethodPut, "/clients/own/certificates", bad, http.StatusBadRequest, "invalid_client_metadata", "")
	}
	count := func(want int) {
		t.Helper()
		row, err := b.store.Client(t.Context(), "own")
		b.must(err)
		if len(row.Certificates) != want {
			t.Errorf("%d certificates, want %d", len(row.Certificates), want)
		}
	}
	var done Change
	b.do(http.MethodPut, "/clients/own/certificates", body("certificates", []string{before, after}), http.StatusOK, &done)
	if e := b.journal.last(t); e.Name != "client.certificates" || e.Client != "own" || len(strings.Fields(e.Detail["x5t#S256"])) != 2 {
		t.Errorf("recorded %+v", e)
	}
	count(2)
	b.journal.fill(true)
	// What takes away holds without the record, what gives does not.
	b.do(http.MethodPut, "/clients/own/certificates", body("certificates", []string{after}), http.StatusOK, &done)
	if !done.AuditPending {
		t.Errorf("answer %+v", done)
	}
	count(1)
	b.refused(http.MethodPut, "/clients/own/certificates", body("certificates", []string{after, before}), http.StatusServiceUnavailable, "temporarily_unavailable", "")
	count(1)
	b.journal.fill(false)
	reserved := pemOf(selfSigned(t, mtlstest.Leaf{DNSNames: []string{"localhost"}}))
	b.refused(http.MethodPut, "/clients/own/certificates", body("certificates", []string{reserved}), http.StatusConflict, "invalid_client_metadata", "--allow-reserved")
	b.do(http.MethodPut, "/clients/own/certificates", body("certificates", []string{reserved}, "allow_reserved", true), http.StatusOK, nil)
	count(1)
}

// CA-24: RFC 8705, Section 2.2: a certificate, and a key, is registered for one client only.
func TestRFC8705_2_2_CertificateOfOneClient(t *testing.T) {
	b := newBench(t)
	key := mtlstest.NewKey(t)
	first := pemOf(selfSigned(t, mtlstest.Leaf{Key: key}))
	b.post("/clients", body("client_id", "a", "certificates", []string{first}), http.StatusCreated, nil)
	b.refused(http.MethodPost, "/clients", body("client_id", "b", "certificates", []string{first}), http.StatusConflict, "invalid_client_metadata", "belongs to one client")
	sameKey := pemOf(selfSigned(t, mtlstest.Leaf{Key: key, CommonName: "other"}))
	b.refused(http.MethodPost, "/clients", body("client_id", "b", "certificates", []string{sameKey}), http.StatusConflict, "invalid_client_metadata", "belongs to one client")
	b.post("/clients", body("client_id", "b", "certificates", []string{b.pem("b")}), http.StatusCreated, nil)
	b.refused(http.MethodPut, "/clients/b/certificates", body("certificates", []string{first}), http.StatusConflict, "invalid_client_metadata", "belongs to one client")
	if e := b.journal.last(t); e.Name != "client.certificates" || e.Outcome != audit.Refused || e.Client != "b" {
		t.Errorf("recorded %+v", e)
	}
}

// DR-07: RFC 7591, Section 5: nobody registers the name by which another client is recognised: not under the same CA, nor
// as a name that our own CA would certify, nor the other way round.
func TestRFC7591_5_SubjectOfAnother(t *testing.T) {
	b := newBench(t)
	b.trust("one", mtlstest.NewCA(t, "one"))
	b.trust("two", mtlstest.NewCA(t, "two"))
	for i, member := range []string{
		`"tls_client_auth_san_dns":"pay.example"`, `"tls_client_auth_san_uri":"https://pay.example/x"`, `"tls_client_auth_san_ip":"2001:db8::1"`,
	} {
		b.post("/clients", fmt.Sprintf(`{"client_id":"f%d","trust":"one",%s}`, i, member), http.StatusCreated, nil)
		b.refused(http.MethodPost, "/clients", `{"client_id":"g","trust":"one",`+member+`}`, http.StatusConflict, "invalid_client_metadata", "belongs to one client")
	}
	b.post("/clients", `{"client_id":"g","trust":"two","tls_client_auth_san_dns":"pay.example"}`, http.StatusCreated, nil)
	const taken = "belongs to one client"
	b.refused(http.MethodPost, "/clients", `{"client_id":"o","dns_names":["a.example","PAY.example"]}`, http.StatusConflict, "invalid_client_metadata", taken)
	b.refused(http.MethodPost, "/clients", `{"client_id":"o","uris":["https://pay.example/x"]}`, http.StatusConflict, "invalid_client_metadata", taken)
	b.refused(http.MethodPost, "/clients", `{"client_id":"o","ip_addresses":["2001:DB8:0::1"]}`, http.StatusConflict, "invalid_client_metadata", taken)

	b.post("/clients", `{"client_id":"o","dns_names":["own.example"],"uris":["https://own.example/x"],"ip_addresses":["198.51.100.1"]}`, http.StatusCreated, nil)
	for _, member := range []string{
		`"tls_client_auth_san_dns":"Own.example"`, `"tls_client_auth_san_uri":"https://own.example/x"`, `"tls_client_auth_san_ip":"198.51.100.1"`,
	} {
		b.refused(http.MethodPost, "/clients", `{"client_id":"h","trust":"two",`+member+`}`, http.StatusConflict, "invalid_client_metadata", taken)
	}
	b.post("/clients", `{"client_id":"h","trust":"two","tls_client_auth_subject_dn":"CN=own.example"}`, http.StatusCreated, nil)
}

// The other client may be on any page.
func TestSubjectOfAnotherBeyondAPage(t *testing.T) {
	b := newBench(t)
	b.trust("one", mtlstest.NewCA(t, "one"))
	for i := range maxPage {
		_, err := b.store.AddClient(t.Context(), store.Client{ID: fmt.Sprintf("c%04d", i), Usage: "client"}, nil)
		b.must(err)
	}
	b.post("/clients", `{"client_id":"zoe","trust":"one","tls_client_auth_san_dns":"pay.example"}`, http.StatusCreated, nil)
	b.refused(http.MethodPost, "/clients", `{"client_id":"o","dns_names":["pay.example"]}`, http.StatusConflict, "invalid_client_metadata", "belongs to one client")
}

// CB-05, TE-11: RFC 8705, Section 3.4; RFC 6749, Section 4.4.2: nobody can be registered for tokens that are not bound, nor
// for another grant than the one that there is: members that say either way, of whatever type, are refused and not ignored.
func TestRFC8705_3_4_EveryClientIsBound(t *testing.T) {
	b := newBench(t)
	for _, member := range []string{
		`"tls_client_certificate_bound_access_tokens":false`, `"tls_client_certificate_bound_access_tokens":true`,
		`"tls_client_certificate_bound_access_tokens":"true"`, `"grant_types":["refresh_token"]`, `"grant_types":["client_credentials"]`,
	} {
		b.refused(http.MethodPost, "/clients", `{"client_id":"odd",`+member+`}`, http.StatusBadRequest, codeRequest, "")
		b.refused(http.MethodGet, "/clients/odd", "", http.StatusNotFound, codeRequest, "")
	}
}
