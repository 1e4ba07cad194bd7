// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const crlLife = 2 * time.Hour

func mustCRL(tb testing.TB, der []byte) *CRL {
	tb.Helper()
	crl, err := ParseCRL(der)
	if err != nil {
		tb.Fatal(err)
	}
	return crl
}

func createCRL(tb testing.TB, ca *testCA, number int64, revoked ...Revoked) *CRL {
	tb.Helper()
	der, err := CreateCRL(ca.cert, ca.key, big.NewInt(number), testNow(), testNow().Add(crlLife), revoked)
	if err != nil {
		tb.Fatal(err)
	}
	return mustCRL(tb, der)
}

// EC-10: RFC 5280, Sections 5.2.3 and 5.3.1: the next list names the revoked certificate with time and reason, its
// number is greater than the last one's, and it says when it goes stale.
func TestRFC5280_5_2_3_NextListNamesTheRevoked(t *testing.T) {
	t.Parallel()
	ca := plainCA(t)
	cert := ca.sign(t, template(t), newKey(t).Public())
	before := createCRL(t, ca, 7)
	if _, revoked, err := before.Revoked(cert); err != nil || revoked {
		t.Fatalf("before: %v, %v", revoked, err)
	}
	entries := []Revoked{
		{Serial: big.NewInt(5), At: testNow().Add(-time.Hour), Reason: Unspecified},
		{Serial: cert.SerialNumber, At: testNow().Add(-time.Minute), Reason: KeyCompromise},
	}
	after := createCRL(t, ca, 8, entries...)
	got, revoked, err := after.Revoked(cert)
	if err != nil || !revoked {
		t.Fatalf("after: %v, %v", revoked, err)
	}
	byValue := cmp.Comparer(func(a, b *big.Int) bool { return a.Cmp(b) == 0 })
	if diff := cmp.Diff(entries[1], got, byValue); diff != "" {
		t.Error(diff)
	}
	if after.Len() != 2 || after.Number().Cmp(before.Number()) <= 0 {
		t.Errorf("%d entries, number %v after %v", after.Len(), after.Number(), before.Number())
	}
	if !after.NextUpdate().Equal(testNow().Add(crlLife)) {
		t.Errorf("goes stale at %v", after.NextUpdate())
	}
}

func TestCreateCRLRefuses(t *testing.T) {
	t.Parallel()
	ca, other := plainCA(t), plainCA(t)
	noCRL := newCA(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	one := big.NewInt(1)
	cases := map[string]struct {
		ca      *testCA
		number  *big.Int
		next    time.Duration
		revoked []Revoked
	}{
		"no number":       {ca, nil, crlLife, nil},
		"number 0":        {ca, new(big.Int), crlLife, nil},
		"number too long": {ca, new(big.Int).Lsh(one, 160), crlLife, nil},
		"stale at birth":  {ca, one, 0, nil},
		"no serial":       {ca, one, crlLife, []Revoked{{At: testNow()}}},
		"serial 0":        {ca, one, crlLife, []Revoked{{Serial: new(big.Int), At: testNow()}}},
		"unknown reason":  {ca, one, crlLife, []Revoked{{Serial: one, At: testNow(), Reason: 7}}},
		"hold":            {ca, one, crlLife, []Revoked{{Serial: one, At: testNow(), Reason: 6}}},
		"other's key":     {&testCA{ca.cert, other.key}, one, crlLife, nil},
		"no cRLSign":      {noCRL, one, crlLife, nil},
	}
	for name, c := range cases {
		if _, err := CreateCRL(c.ca.cert, c.ca.key, c.number, testNow(), testNow().Add(c.next), c.revoked); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// XP-11: RFC 5280, Section 6.3.3: a list counts only from the right issuer, signed by its key, which may sign
// lists, and between thisUpdate and nextUpdate.
func TestRFC5280_6_3_3_ListIsJudged(t *testing.T) {
	t.Parallel()
	ca, other := plainCA(t), plainCA(t) // both named alike
	elsewhere := newCA(t, func(c *x509.Certificate) { c.Subject.CommonName = "Other CA" })
	noID := &testCA{cert: new(x509.Certificate), key: other.key}
	*noID.cert = *other.cert
	noID.cert.SubjectKeyId = nil
	noUsage := *ca.cert
	noUsage.KeyUsage = x509.KeyUsageCertSign
	notCA := *ca.cert
	notCA.IsCA = false
	absent := *ca.cert
	absent.KeyUsage = 0
	renamed, rekeyed := *ca.cert, *ca.cert
	renamed.RawSubject = elsewhere.cert.RawSubject
	rekeyed.SubjectKeyId = other.cert.SubjectKeyId
	old := *ca.cert
	old.Version, old.BasicConstraintsValid, old.IsCA = 1, false, false
	crl := createCRL(t, ca, 1)
	cases := map[string]struct {
		issuer *x509.Certificate
		at     time.Time
		ok     bool
	}{
		"at thisUpdate":          {ca.cert, testNow(), true},
		"within":                 {ca.cert, testNow().Add(time.Hour), true},
		"at nextUpdate":          {ca.cert, testNow().Add(crlLife), true},
		"a moment after it":      {ca.cert, testNow().Add(crlLife + 999*time.Millisecond), true},
		"a second early":         {ca.cert, testNow().Add(-time.Second), false},
		"stale by a second":      {ca.cert, testNow().Add(crlLife + time.Second), false},
		"other issuer":           {elsewhere.cert, testNow(), false},
		"same key, other name":   {&renamed, testNow(), false},
		"same key, other key id": {&rekeyed, testNow(), false},
		"version 1":              {&old, testNow(), false},
		"same name, other key":   {other.cert, testNow(), false},
		"same name, no key id":   {noID.cert, testNow(), false},
		"issuer without cRLSign": {&noUsage, testNow(), false},
		"issuer without usage":   {&absent, testNow(), false},
		"issuer is no authority": {&notCA, testNow(), false},
	}
	for name, c := range cases {
		if err := crl.Check(c.issuer, c.at); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// XP-11, XP-15: RFC 5280, Section 6.3.3 (g): a list whose bytes or signature were changed, or that is signed with
// SHA-1, is refused.
func TestRFC5280_6_3_3_SignatureOfTheList(t *testing.T) {
	t.Parallel()
	ca := plainCA(t)
	revoked := []Revoked{{Serial: big.NewInt(0x1234567890), At: testNow()}}
	der, err := CreateCRL(ca.cert, ca.key, big.NewInt(1), testNow(), testNow().Add(crlLife), revoked)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.Index(der, 0x78)
	bent := slices.Clone(der)
	bent[at] ^= 1
	if mustCRL(t, bent).Check(ca.cert, testNow()) == nil {
		t.Error("a changed serial number went unnoticed")
	}

	var parts rawRequest // a CertificateList has the same three parts
	if _, err := asn1.Unmarshal(der, &parts); err != nil {
		t.Fatal(err)
	}
	sha1 := asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	sha256OID, err := asn1.Marshal(parts.Algorithm.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	sha1OID, err := asn1.Marshal(sha1)
	if err != nil {
		t.Fatal(err)
	}
	weak := signedWithSHA1(t, ca, parts, sha256OID, sha1OID)
	list, err := x509.ParseRevocationList(weak)
	if err != nil || list.CheckSignatureFrom(ca.cert) != nil {
		t.Fatalf("the example proves nothing: x509 refuses it too: %v", err)
	}
	if mustCRL(t, weak).Check(ca.cert, testNow()) == nil {
		t.Error("SHA-1 accepted")
	}
}

// signedWithSHA1 rewrites the algorithm inside and outside and signs again.
func signedWithSHA1(t *testing.T, ca *testCA, parts rawRequest, oldOID, newOID []byte) []byte {
	t.Helper()
	var tbs []asn1.RawValue
	if _, err := asn1.Unmarshal(parts.TBS.FullBytes, &tbs); err != nil {
		t.Fatal(err)
	}
	for i := range tbs {
		if slices.Equal(tbs[i].Bytes, oldOID) {
			tbs[i] = asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: newOID}
		}
	}
	der, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	h := crypto.SHA1.New()
	h.Write(der)
	sig, err := ca.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA1)
	if err != nil {
		t.Fatal(err)
	}
	parts.TBS = asn1.RawValue{FullBytes: der}
	parts.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
	parts.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	out, err := asn1.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// XP-12: RFC 5280, Sections 5.2 and 5.3: a list with a critical extension that is not understood, on itself or on
// one entry, is not used; nor is a delta list, one with an issuing distribution point, or one of another's entries.
func TestRFC5280_5_2_UnknownCriticalExtension(t *testing.T) {
	t.Parallel()
	ca := plainCA(t)
	ext := func(critical bool, value []byte, id ...int) []pkix.Extension {
		return []pkix.Extension{{Id: id, Critical: critical, Value: value}}
	}
	null, sequence := []byte{5, 0}, []byte{0x30, 0}
	cases := map[string]struct {
		list, entry []pkix.Extension
		ok          bool
	}{
		"none":                        {nil, nil, true},
		"unknown on the list":         {ext(false, null, 1, 2, 3), nil, true},
		"unknown on an entry":         {nil, ext(false, null, 1, 2, 3), true},
		"critical on the list":        {ext(true, null, 1, 2, 3), nil, false},
		"critical on an entry":        {nil, ext(true, null, 1, 2, 3), false},
		"delta":                       {ext(true, []byte{2, 1, 1}, 2, 5, 29, 27), nil, false},
		"delta, not critical":         {ext(false, []byte{2, 1, 1}, 2, 5, 29, 27), nil, false},
		"distribution point":          {ext(true, sequence, 2, 5, 29, 28), nil, false},
		"distribution point, not cr.": {ext(false, sequence, 2, 5, 29, 28), nil, false},
		"other's entry":               {nil, ext(true, sequence, 2, 5, 29, 29), false},
		"other's entry, not critical": {nil, ext(false, sequence, 2, 5, 29, 29), false},
		"doubled on the list":         {append(ext(false, null, 1, 2, 3), ext(false, null, 1, 2, 3)...), nil, false},
		"doubled on an entry":         {nil, append(ext(false, null, 1, 2, 3), ext(false, null, 1, 2, 3)...), false},
	}
	for name, c := range cases {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: testNow(), NextUpdate: testNow().Add(crlLife), ExtraExtensions: c.list,
			RevokedCertificateEntries: []x509.RevocationListEntry{
				{SerialNumber: big.NewInt(1), RevocationTime: testNow()},
				{SerialNumber: big.NewInt(2), RevocationTime: testNow(), ExtraExtensions: c.entry},
			},
		}, ca.cert, ca.key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCRL(der); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// XP-13: RFC 5280, Section 5.1.2.6: a serial number counts only together with its issuer, by name and by key.
func TestRFC5280_5_1_2_6_SerialOfAnotherIssuer(t *testing.T) {
	t.Parallel()
	ca, sameName := plainCA(t), plainCA(t)
	otherName := newCA(t, func(c *x509.Certificate) { c.Subject.CommonName = "Other CA" })
	renamed := *ca.cert
	renamed.RawSubject = otherName.cert.RawSubject
	tmpl := template(t)
	crl := createCRL(t, ca, 1, Revoked{Serial: tmpl.SerialNumber, At: testNow()})
	key := newKey(t).Public()
	if _, revoked, err := crl.Revoked(ca.sign(t, tmpl, key)); err != nil || !revoked {
		t.Errorf("own certificate: %v, %v", revoked, err)
	}
	for name, issuer := range map[string]*testCA{
		"other name and key": otherName, "other key": sameName, "other name": {&renamed, ca.key},
	} {
		if _, revoked, err := crl.Revoked(issuer.sign(t, tmpl, key)); !errors.Is(err, ErrNotCovered) || revoked {
			t.Errorf("%s: %v, %v", name, revoked, err)
		}
	}
}

func TestParseCRLRefusesForm(t *testing.T) {
	t.Parallel()
	for name, der := range map[string][]byte{
		"nil": nil, "text": []byte("-----BEGIN X509 CRL-----"),
	} {
		if _, err := ParseCRL(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseCRL(make([]byte, MaxCRLSize+1)); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("judged after reading: %v", err)
	}
	ca := plainCA(t)
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: testNow(), NextUpdate: testNow().Add(crlLife)}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	var parts rawRequest
	if _, err := asn1.Unmarshal(der, &parts); err != nil {
		t.Fatal(err)
	}
	// Version, algorithm, issuer, thisUpdate, nextUpdate, extensions: the fifth and the sixth must be there.
	for name, drop := range map[string]int{"no nextUpdate": 4, "no number": 5} {
		var tbs []asn1.RawValue
		if _, err := asn1.Unmarshal(parts.TBS.FullBytes, &tbs); err != nil {
			t.Fatal(err)
		}
		if len(tbs) != 6 {
			t.Fatalf("the list has %d parts", len(tbs))
		}
		short, err := asn1.Marshal(slices.Delete(tbs, drop, drop+1))
		if err != nil {
			t.Fatal(err)
		}
		parts := parts
		parts.TBS = asn1.RawValue{FullBytes: short}
		der, err := asn1.Marshal(parts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x509.ParseRevocationList(der); err != nil {
			t.Fatalf("the example proves nothing: x509 refuses it too: %v", err)
		}
		if _, err := ParseCRL(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
