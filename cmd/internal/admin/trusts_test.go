// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// authority makes a self-signed CA certificate and its key.
func authority(tb testing.TB, name string, edit func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert, key
}

// revocations is a list of that CA that goes stale at next.
func revocations(tb testing.TB, ca *x509.Certificate, key *ecdsa.PrivateKey, next time.Time) []byte {
	tb.Helper()
	now := earlier(time.Now(), next.Add(-time.Hour))
	der, err := pki.CreateCRL(ca, key, big.NewInt(1), now, next, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func earlier(x, y time.Time) time.Time {
	if x.Before(y) {
		return x
	}
	return y
}

func TestTrustAccepted(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "partner")
	middle := ca.Intermediate(t, "issuing").Certificate()
	other, key := authority(t, "second", nil)
	crl := revocations(t, other, key, time.Now().Add(time.Hour))
	got, err := testRules(t).trust(&TrustRequest{
		Name: "partner", CRL: crl, CA: "the partner's\n" + pemOf(middle, ca.Certificate(), other, middle),
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want := store.Trust{
		Name: "partner", Anchors: [][]byte{ca.Certificate().Raw, other.Raw}, Intermediates: [][]byte{middle.Raw}, CRL: crl, Revocation: "hard",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl})
	got, err = testRules(t).trust(&TrustRequest{Name: "partner", CA: pemOf(other), CRL: text, Revocation: "soft"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.CRL, crl) || got.Revocation != "soft" {
		t.Error("a list in PEM is not kept as DER")
	}
}

// Where there is a list, what it does not say refuses, unless the operator says otherwise.
func TestRevocationModes(t *testing.T) {
	t.Parallel()
	ca := pemOf(mtlstest.NewCA(t, "partner").Certificate())
	for name, tt := range map[string]struct {
		url, mode string
		want      string // empty: refused
	}{
		"neither": {"", "", "off"}, "off": {"", "off", "off"}, "hard, no list": {"", "hard", ""}, "soft, no list": {"", "soft", ""},
		"list": {"http://ca.example/crl", "", "hard"}, "hard": {"http://ca.example/crl", "hard", "hard"}, "soft": {"https://ca.example/crl", "soft", "soft"},
		"list, off": {"http://ca.example/crl", "off", "off"}, "other": {"http://ca.example/crl", "Hard", ""},
	} {
		got, err := testRules(t).trust(&TrustRequest{Name: "a", CA: ca, CRLURL: tt.url, Revocation: tt.mode}, time.Now())
		if tt.want == "" {
			checkRefusal(t, err, codeRequest, "")
			continue
		}
		if err != nil || got.Revocation != tt.want || got.CRLURL != tt.url {
			t.Errorf("%s: %q, %v", name, got.Revocation, err)
		}
	}
}

func TestTrustRefused(t *testing.T) {
	t.Parallel()
	ca, key := authority(t, "partner", nil)
	stranger, strangerKey := authority(t, "stranger", nil)
	twin, twinKey := authority(t, "partner", nil)
	expired, _ := authority(t, "partner", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	notCA, _ := authority(t, "partner", func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = 0 })
	many := make([]*x509.Certificate, maxAuthorities+1)
	for i := range many {
		many[i] = ca
	}
	text := pemOf(ca)
	private := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("secret")}))
	crl := revocations(t, ca, key, time.Now().Add(time.Hour))
	crlText := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl})
	for name, tt := range map[string]struct {
		req  TrustRequest
		hint string
	}{
		"no name":              {TrustRequest{CA: text}, "a name begins"},
		"bad name":             {TrustRequest{Name: "Partner", CA: text}, "a name begins"},
		"name with a slash":    {TrustRequest{Name: "a/b", CA: text}, "a name begins"},
		"no CA":                {TrustRequest{Name: "a"}, "publishes them"},
		"garbage":              {TrustRequest{Name: "a", CA: "x"}, "publishes them"},
		"truncated":            {TrustRequest{Name: "a", CA: text + text[:100]}, "publishes them"},
		"another block":        {TrustRequest{Name: "a", CA: text + string(crlText)}, "publishes them"},
		"a private key":        {TrustRequest{Name: "a", CA: text + private}, "discard that key"},
		"too many":             {TrustRequest{Name: "a", CA: pemOf(many...)}, "at most 32"},
		"expired":              {TrustRequest{Name: "a", CA: text + pemOf(expired)}, "present certificates only"},
		"not a CA":             {TrustRequest{Name: "a", CA: text + pemOf(notCA)}, "CA certificates"},
		"a client":             {TrustRequest{Name: "a", CA: pemOf(selfSigned(t, mtlstest.Leaf{}))}, "CA certificates"},
		"intermediate alone":   {TrustRequest{Name: "a", CA: pemOf(mtlstest.NewCA(t, "x").Intermediate(t, "y").Certificate())}, "self-signed root"},
		"list twice":           {TrustRequest{Name: "a", CA: text, CRL: crl, CRLURL: "http://ca.example/crl"}, "one of the two"},
		"list of another":      {TrustRequest{Name: "a", CA: text, CRL: revocations(t, stranger, strangerKey, time.Now().Add(time.Hour))}, "one of these certificates signed"},
		"list of a namesake":   {TrustRequest{Name: "a", CA: text, CRL: revocations(t, twin, twinKey, time.Now().Add(time.Hour))}, "one of these certificates signed"},
		"stale list":           {TrustRequest{Name: "a", CA: text, CRL: staleList(t, ca, key)}, "fetch the present one"},
		"damaged list":         {TrustRequest{Name: "a", CA: text, CRL: crl[:len(crl)-1]}, "publishes it"},
		"forged list":          {TrustRequest{Name: "a", CA: text, CRL: flipLast(crl)}, "one of these certificates signed"},
		"two lists":            {TrustRequest{Name: "a", CA: text, CRL: slices.Concat(crlText, crlText)}, "publishes it"},
		"list in another PEM":  {TrustRequest{Name: "a", CA: text, CRL: []byte(text)}, "publishes it"},
		"address of a file":    {TrustRequest{Name: "a", CA: text, CRLURL: "file:///etc/passwd"}, "http or https"},
		"address, ldap":        {TrustRequest{Name: "a", CA: text, CRLURL: "ldap://ca.example/cn=x"}, "http or https"},
		"address with user":    {TrustRequest{Name: "a", CA: text, CRLURL: "http://u:p@ca.example/crl"}, "http or https"},
		"address without host": {TrustRequest{Name: "a", CA: text, CRLURL: "http:///crl"}, "http or https"},
		"relative address":     {TrustRequest{Name: "a", CA: text, CRLURL: "/crl"}, "http or https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := testRules(t).trust(&tt.req, time.Now())
			checkRefusal(t, err, codeRequest, tt.hint)
		})
	}
}

// staleList was good an hour ago. The judgement of the list itself would refuse it too, without saying why.
func staleList(tb testing.TB, ca *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	return revocations(tb, ca, key, time.Now().Add(-time.Minute))
}

func flipLast(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// Our own CA is no foreign one, under whatever certificate: its clients count only with a certificate of the inventory.
func TestOwnCAIsNoTrust(t *testing.T) {
	t.Parallel()
	root := mtlstest.NewCA(t, "ours")
	issuing := root.Intermediate(t, "ours, issuing")
	r := testRules(t)
	r.ownCAs = []*x509.Certificate{root.Certificate(), issuing.Certificate()}
	renamed := selfSigned(t, mtlstest.Leaf{CommonName: "another name", Key: root.Key(), IsCA: true, KeyUsage: x509.KeyUsageCertSign})
	foreign := mtlstest.NewCA(t, "foreign").Certificate()
	for name, cert := range map[string]*x509.Certificate{
		"root": root.Certificate(), "issuing": issuing.Certificate(), "root's key": renamed,
		"another of our root's": root.Intermediate(t, "other").Certificate(), "another of our issuing's": issuing.Intermediate(t, "other").Certificate(),
	} {
		_, err := r.trust(&TrustRequest{Name: "a", CA: pemOf(foreign, cert)}, time.Now())
		if err == nil || !strings.Contains(err.Error(), "of our own CA") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.trust(&TrustRequest{Name: "a", CA: pemOf(foreign)}, time.Now()); err != nil {
		t.Error(err)
	}
}

func TestTrusts(t *testing.T) {
	b := newBenchWith(t, Config{
		FileTrusts:  []string{"filed"},
		TrustHealth: func() map[string]string { return map[string]string{"trust:filed": "ok", "trust:partner": "stale"} },
	}, New)
	ca, key := authority(t, "partner", nil)
	next := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	request := body("name", "partner", "ca", pemOf(ca), "crl", revocations(t, ca, key, next))
	b.post("/trusts", request, http.StatusCreated, nil)
	if e := b.journal.last(t); e.Name != "trust.add" || e.Detail["trust"] != "partner" || e.Detail["anchors"] != mtls.ThumbprintOf(ca).String() ||
		e.Detail["revocation"] != "hard" {
		t.Errorf("recorded %+v", e)
	}
	b.refused(http.MethodPost, "/trusts", request, http.StatusConflict, "invalid_request", "trust list")
	if e := b.journal.last(t); e.Name != "trust.add" || e.Outcome != audit.Refused || e.Detail["trust"] != "partner" {
		t.Errorf("recorded %+v", e)
	}
	var list TrustList
	b.do(http.MethodGet, "/trusts", "", http.StatusOK, &list)
	want := []Trust{
		{Name: "filed", Source: "file", Health: "ok", Anchors: []PinnedCertificate{}, Intermediates: []PinnedCertificate{}},
		{Name: "partner", Source: "registry", Health: "stale", Revocation: "hard", CRLNextUpdate: &next, Intermediates: []PinnedCertificate{},
			Anchors: []PinnedCertificate{{mtls.ThumbprintOf(ca).String(), "CN=partner", ca.NotBefore.UTC(), ca.NotAfter.UTC()}}},
	}
	if diff := cmp.Diff(want, list.Trusts, cmpopts.IgnoreFields(Trust{}, "CreatedAt", "UpdatedAt")); diff != "" {
		t.Error(diff)
	}
	var one Trust
	b.do(http.MethodGet, "/trusts/partner", "", http.StatusOK, &one)
	if diff := cmp.Diff(list.Trusts[1], one); diff != "" || one.CreatedAt == nil {
		t.Error(diff)
	}
	b.do(http.MethodGet, "/trusts/filed", "", http.StatusOK, &one)
	b.refused(http.MethodGet, "/trusts/nobody", "", http.StatusNotFound, "invalid_request", "trust list")
	var status Status
	b.do(http.MethodGet, "/status", "", http.StatusOK, &status)
	if status.Trusts != 1 {
		t.Errorf("%d trusts", status.Trusts)
	}

	other, _ := authority(t, "partner", nil)
	b.refused(http.MethodPut, "/trusts/partner", body("ca", pemOf(other)), http.StatusBadRequest, "invalid_request", "one of these certificates signed")
	b.do(http.MethodPut, "/trusts/partner", body("ca", pemOf(other), "revocation", "off", "crl_url", ""), http.StatusOK, nil)
	if e := b.journal.last(t); e.Name != "trust.replace" || e.Detail["anchors"] != mtls.ThumbprintOf(other).String() {
		t.Errorf("recorded %+v", e)
	}
	row, err := b.store.Trust(t.Context(), "partner")
	b.must(err)
	if len(row.Anchors) != 1 || !slices.Equal(row.Anchors[0], other.Raw) || row.CRL != nil || row.Revocation != "off" {
		t.Errorf("stored %+v", row)
	}
	b.refused(http.MethodPut, "/trusts/partner", body("name", "else", "ca", pemOf(ca)), http.StatusBadRequest, "invalid_request", "leave the name out")
	b.refused(http.MethodPut, "/trusts/nobody", body("ca", pemOf(ca)), http.StatusNotFound, "invalid_request", "trust list")
	b.refused(http.MethodPut, "/trusts/filed", body("ca", pemOf(ca)), http.StatusNotFound, "invalid_request", "configuration")
	b.refused(http.MethodPut, "/trusts/partner", body("ca", "x"), http.StatusBadRequest, "invalid_request", "")

	b.post("/clients", `{"client_id":"a","trust":"partner","tls_client_auth_san_dns":"a.example"}`, http.StatusCreated, nil)
	b.refused(http.MethodDelete, "/trusts/partner", "", http.StatusConflict, "invalid_request", "client remove")
	b.do(http.MethodDelete, "/clients/a", "", http.StatusOK, nil)
	var done Change
	b.do(http.MethodDelete, "/trusts/partner", "", http.StatusOK, &done)
	if e := b.journal.last(t); e.Name != "trust.remove" || e.Detail["trust"] != "partner" || done.Trust != "partner" {
		t.Errorf("recorded %+v, answer %+v", e, done)
	}
	b.refused(http.MethodDelete, "/trusts/partner", "", http.StatusNotFound, "invalid_request", "trust list")
}

// A trust that could not be recorded is not there, or is as it was; removing one holds.
func TestTrustsNeedTheRecord(t *testing.T) {
	b := newBench(t)
	ca, other := mtlstest.NewCA(t, "one").Certificate(), mtlstest.NewCA(t, "two").Certificate()
	b.post("/trusts", body("name", "old", "ca", pemOf(ca)), http.StatusCreated, nil)
	b.journal.fill(true)
	b.refused(http.MethodPost, "/trusts", body("name", "new", "ca", pemOf(ca)), http.StatusServiceUnavailable, "temporarily_unavailable", "")
	b.refused(http.MethodPut, "/trusts/old", body("ca", pemOf(other)), http.StatusServiceUnavailable, "temporarily_unavailable", "")
	rows, err := b.store.Trusts(t.Context())
	b.must(err)
	if len(rows) != 1 || !slices.Equal(rows[0].Anchors[0], ca.Raw) {
		t.Errorf("stored %d trusts", len(rows))
	}
	var done Change
	b.do(http.MethodDelete, "/trusts/old", "", http.StatusOK, &done)
	if !done.AuditPending {
		t.Errorf("answer %+v", done)
	}
}

// A revocation list makes a long body; nothing else may.
func TestTrustBodyBound(t *testing.T) {
	b := newBench(t)
	long := strings.Repeat("x", maxBody)
	b.refused(http.MethodPost, "/trusts", body("name", "a", "ca", long), http.StatusBadRequest, "invalid_request", "publishes them")
	b.refused(http.MethodPost, "/trusts", body("name", "a", "ca", strings.Repeat("x", maxTrustBody)), http.StatusRequestEntityTooLarge, "invalid_request", "send less")
	b.refused(http.MethodPost, "/trusts", `{"name":"a","ca":"x","-":true}`, http.StatusBadRequest, "invalid_request", "documents")
	b.refused(http.MethodPost, "/clients", body("client_id", long), http.StatusRequestEntityTooLarge, "invalid_request", "send less")
}

// What a replacement does not mention stays: a list is dropped, or not judged by any more, only when that is said.
func TestReplacedTrustKeepsItsRevocation(t *testing.T) {
	b := newBench(t)
	ca, key := authority(t, "partner", nil)
	crl := revocations(t, ca, key, time.Now().Add(time.Hour))
	next := revocations(t, ca, key, time.Now().Add(2*time.Hour))
	const address, other = "http://ca.example/crl", "https://ca.example/other"
	listed := store.Trust{CRL: crl, Revocation: "hard"}
	fetched := store.Trust{CRLURL: address, Revocation: "soft"}
	stale := store.Trust{CRL: staleList(t, ca, key), Revocation: "hard"}
	unjudged := store.Trust{CRLURL: address, Revocation: "off"}
	for name, tt := range map[string]struct {
		before  store.Trust
		members []any
		want    store.Trust // without Revocation: refused
	}{
		"nothing said, list":       {listed, nil, listed},
		"nothing said, stale list": {stale, nil, stale},
		"stale list off":           {stale, []any{"revocation", "off"}, store.Trust{CRL: stale.CRL, Revocation: "off"}},
		"stale list once more":     {fetched, []any{"crl", stale.CRL}, store.Trust{}},
		"nothing said, address":    {fetched, nil, fetched},
		"nothing said, off":        {unjudged, nil, unjudged},
		"nothing said, none":       {store.Trust{Revocation: "off"}, nil, store.Trust{Revocation: "off"}},
		"null":                     {fetched, []any{"crl", nil, "crl_url", nil, "revocation", nil}, fetched},
		"empty list":               {listed, []any{"crl", ""}, listed},
		"empty mode":               {fetched, []any{"revocation", ""}, fetched},
		"list anew":                {listed, []any{"crl", next}, store.Trust{CRL: next, Revocation: "hard"}},
		"list for an address":      {fetched, []any{"crl", next}, store.Trust{CRL: next, Revocation: "soft"}},
		"and no address":           {fetched, []any{"crl", next, "crl_url", ""}, store.Trust{CRL: next, Revocation: "soft"}},
		"address for a list":       {listed, []any{"crl_url", address}, store.Trust{CRLURL: address, Revocation: "hard"}},
		"another address":          {fetched, []any{"crl_url", other}, store.Trust{CRLURL: other, Revocation: "soft"}},
		"first list":               {store.Trust{Revocation: "off"}, []any{"crl", next}, store.Trust{CRL: next, Revocation: "hard"}},
		"no first list":            {store.Trust{Revocation: "off"}, []any{"crl_url", ""}, store.Trust{Revocation: "off"}},
		"other mode":               {listed, []any{"revocation", "soft"}, store.Trust{CRL: crl, Revocation: "soft"}},
		"judged again":             {unjudged, []any{"revocation", "hard"}, store.Trust{CRLURL: address, Revocation: "hard"}},
		"switched off":             {fetched, []any{"revocation", "off"}, unjudged},
		"dropped":                  {fetched, []any{"revocation", "off", "crl_url", ""}, store.Trust{Revocation: "off"}},
		"list dropped":             {listed, []any{"revocation", "off", "crl_url", ""}, store.Trust{Revocation: "off"}},
		"dropped and said nothing": {fetched, []any{"crl_url", ""}, store.Trust{}},
		"dropped, was off":         {unjudged, []any{"crl_url", ""}, store.Trust{}},
		"dropped and hard":         {listed, []any{"revocation", "hard", "crl_url", ""}, store.Trust{}},
	} {
		row := tt.before
		row.Name, row.Anchors = "p", [][]byte{ca.Raw}
		b.must(b.store.AddTrust(t.Context(), row))
		request := body(append([]any{"ca", pemOf(ca)}, tt.members...)...)
		if tt.want.Revocation == "" {
			b.refused(http.MethodPut, "/trusts/p", request, http.StatusBadRequest, "invalid_request", "")
			tt.want = tt.before
		} else {
			var got Trust
			b.do(http.MethodPut, "/trusts/p", request, http.StatusOK, &got)
			e := b.journal.last(t)
			if got.Revocation != tt.want.Revocation || got.PreviousRevocation != tt.before.Revocation ||
				e.Detail["revocation"] != tt.want.Revocation || e.Detail["previous_revocation"] != tt.before.Revocation {
				t.Errorf("%s: answer %+v, recorded %+v", name, got, e)
			}
		}
		got, err := b.store.Trust(t.Context(), "p")
		b.must(err)
		if !slices.Equal(got.CRL, tt.want.CRL) || got.CRLURL != tt.want.CRLURL || got.Revocation != tt.want.Revocation {
			t.Errorf("%s: %d bytes, %q, %s", name, len(got.CRL), got.CRLURL, got.Revocation)
		}
		b.must(b.store.RemoveTrust(t.Context(), "p"))
	}
	// The kept list is the one of the old CA: nobody is judged by it under another.
	b.post("/trusts", body("name", "p", "ca", pemOf(ca), "crl", crl), http.StatusCreated, nil)
	twin, _ := authority(t, "partner", nil)
	b.refused(http.MethodPut, "/trusts/p", body("ca", pemOf(twin)), http.StatusBadRequest, "invalid_request", "one of these certificates signed")
}

// What waits for a second operator says the same about revocation as what was asked for.
func TestWaitingTrustDropsItsList(t *testing.T) {
	b := newPair(t)
	ca, _ := authority(t, "partner", nil)
	b.must(b.store.AddTrust(t.Context(), store.Trust{Name: "p", Anchors: [][]byte{ca.Raw}, CRLURL: "http://ca.example/crl", Revocation: "hard"}))
	held := b.held(http.MethodPut, "/trusts/p", body("ca", pemOf(ca), "revocation", "off", "crl_url", ""))
	if held.Trust.Revocation != "off" || held.Trust.PreviousRevocation != "hard" || held.Trust.CRLURL != "" {
		t.Errorf("shown %+v", held.Trust)
	}
	b.as("bob", ScopeAdmin)
	b.post(b.confirmPath(held), "", http.StatusOK, nil)
	row, err := b.store.Trust(t.Context(), "p")
	b.must(err)
	if row.CRLURL != "" || row.Revocation != "off" {
		t.Errorf("stored %+v", row)
	}
}
