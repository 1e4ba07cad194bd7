// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package stepca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/db"
	"go.step.sm/crypto/x509util"
	_ "modernc.org/sqlite"

	"github.com/certbound/certbound/pki"
)

const createTable = `CREATE TABLE ca_kv(bucket TEXT NOT NULL, nkey BLOB NOT NULL, nvalue BLOB NOT NULL,
	created_at INTEGER NOT NULL DEFAULT (unixepoch()), PRIMARY KEY(bucket, nkey))`

func openDB(tb testing.TB) *sql.DB {
	tb.Helper()
	dsn := "file:" + filepath.Join(tb.TempDir(), "ca.db") +
		"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)&_txlock=immediate"
	sqlDB, err := sql.Open("sqlite", dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { sqlDB.Close() })
	if _, err := sqlDB.ExecContext(tb.Context(), createTable); err != nil {
		tb.Fatal(err)
	}
	return sqlDB
}

func newHierarchy(tb testing.TB, now time.Time) *Hierarchy {
	tb.Helper()
	h, err := NewHierarchy("Certbound test", now)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func newConfig(tb testing.TB, now time.Time) Config {
	tb.Helper()
	h := newHierarchy(tb, now)
	return Config{
		Root: h.Root, Issuing: h.Issuing, IssuingKey: h.IssuingKey, DB: openDB(tb), Dialect: "sqlite",
		CRLURL: "http://crl.example/crl",
	}
}

func newAuthorityFrom(tb testing.TB, c Config) *Authority {
	tb.Helper()
	a, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := a.Close(); err != nil {
			tb.Error(err)
		}
	})
	return a
}

func newTestAuthority(tb testing.TB) *Authority {
	tb.Helper()
	return newAuthorityFrom(tb, newConfig(tb, time.Now()))
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func request(tb testing.TB, key crypto.Signer) *x509.CertificateRequest {
	tb.Helper()
	der, err := pki.CreateRequest(key)
	if err != nil {
		tb.Fatal(err)
	}
	csr, err := pki.ParseRequest(der)
	if err != nil {
		tb.Fatal(err)
	}
	return csr
}

func profile(usage pki.Usage) pki.Profile {
	now := time.Now()
	return pki.Profile{
		ClientID: "payments", TrustDomain: "abc.certbound.internal", Usage: usage,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
}

// EC-05: RFC 5280, Section 4.2: a certificate of each usage, on each kind of key, is exactly its profile, and a
// verifier who knows the root accepts it for this usage and for no other.
func TestRFC5280_4_2_CertificateOfEachUsage(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	a := newAuthorityFrom(t, c)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(c.Root)
	between.AddCert(c.Issuing)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[pki.Usage]crypto.Signer{pki.UsageClient: newKey(t), pki.UsageServer: edKey, pki.UsageBoth: p384}
	for usage, key := range keys {
		p := profile(usage)
		p.DNSNames = []string{"b.example", "a.example", "localhost"}
		p.IPs = []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1"), netip.MustParseAddr("2001:db8::1")}
		p.URIs = []string{"https://a.example/x?y=1&z=%20"}
		chain, err := a.Sign(t.Context(), request(t, key), p)
		if err != nil {
			t.Fatalf("%s: %v", usage, err)
		}
		if len(chain) != 2 || !chain[1].Equal(c.Issuing) {
			t.Fatalf("%s: the chain is not leaf and issuer", usage)
		}
		p.CRLURL = c.CRLURL
		if err := p.Check(chain[0], key.Public()); err != nil {
			t.Errorf("%s: %v", usage, err)
		}
		for _, eku := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			_, err := chain[0].Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{eku},
			})
			if want := slices.Contains(usage.ExtKeyUsages(), eku); (err == nil) != want {
				t.Errorf("%s for usage %d: %v", usage, eku, err)
			}
		}
	}
}

func TestSignServerCertificate(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	c.CRLURL = ""
	a := newAuthorityFrom(t, c)
	p := profile(pki.UsageServer)
	p.ClientID, p.TrustDomain, p.CommonName = "", "", "Certbound server"
	p.DNSNames = []string{"localhost"}
	chain, err := a.Sign(t.Context(), request(t, newKey(t)), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain[0].URIs) != 0 || len(chain[0].CRLDistributionPoints) != 0 || chain[0].VerifyHostname("localhost") != nil {
		t.Error("the server's certificate is not as asked")
	}
}

// EC-01: RFC 2986, Section 4.2: a request whose signature is another's is refused here too, whatever the fields of
// the parsed value say.
func TestRFC2986_4_2_ForgedRequest(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	mine, theirs := request(t, newKey(t)), request(t, newKey(t))
	forged := *mine
	forged.Raw = bytes.Clone(mine.Raw)
	forged.Raw[len(forged.Raw)-1] ^= 1
	_, err := a.Sign(t.Context(), &forged, profile(pki.UsageClient))
	if refusal, ok := errors.AsType[*pki.RequestError](err); !ok || refusal.Reason != "csr_signature" {
		t.Errorf("forged signature: %v", err)
	}

	// The key in the fields is not the key in the bytes: the bytes count.
	mixed := *mine
	mixed.PublicKey = theirs.PublicKey
	chain, err := a.Sign(t.Context(), &mixed, profile(pki.UsageClient))
	if err != nil {
		t.Fatal(err)
	}
	if !mine.PublicKey.(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
		t.Error("certified a key whose possession nobody proved")
	}
	if _, err := a.Sign(t.Context(), nil, profile(pki.UsageClient)); err == nil {
		t.Error("no request: accepted")
	}
	if n := countRows(t, a, bucketCerts); n != 1 {
		t.Errorf("%d certificates stored, want 1", n)
	}
}

// EC-02: RFC 5280, Section 4.2: a request that asks for names or authority is refused and nothing is stored.
func TestRFC5280_4_2_ForeignNamesInRequest(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	constraints, err := asn1.Marshal(struct{ IsCA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	for name, tmpl := range map[string]*x509.CertificateRequest{
		"CN":      {Subject: pkix.Name{CommonName: "admin"}},
		"own CN":  {Subject: pkix.Name{CommonName: "payments"}},
		"DNS":     {DNSNames: []string{"admin.example"}},
		"NUL":     {DNSNames: []string{"payments\x00.evil"}},
		"CA:TRUE": {ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: constraints}}},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Sign(t.Context(), csr, profile(pki.UsageClient))
		if _, ok := errors.AsType[*pki.RequestError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := countRows(t, a, bucketCerts) + countRows(t, a, bucketTokens); n != 0 {
		t.Errorf("refused requests left %d rows", n)
	}
}

func TestSignRefusesProfile(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	a := newAuthorityFrom(t, c)
	for name, change := range map[string]func(*pki.Profile){
		"no usage":          func(p *pki.Profile) { p.Usage = "" },
		"bad id":            func(p *pki.Profile) { p.ClientID = "Admin" },
		"NUL in id":         func(p *pki.Profile) { p.ClientID = "a\x00b" },
		"NUL in name":       func(p *pki.Profile) { p.DNSNames = []string{"a\x00.b"} },
		"own SPIFFE domain": func(p *pki.Profile) { p.URIs = []string{"spiffe://abc.certbound.internal/client/admin"} },
		"template syntax":   func(p *pki.Profile) { p.DNSNames = []string{"{{ fail }}"} },
		"too long a life":   func(p *pki.Profile) { p.NotAfter = p.NotBefore.Add(MaxLifetime + time.Second) },
		"over already":      func(p *pki.Profile) { p.NotAfter = time.Now().Add(-10 * time.Second) },
		"ends first":        func(p *pki.Profile) { p.NotAfter = p.NotBefore.Add(-time.Second) },
	} {
		p := profile(pki.UsageClient)
		change(&p)
		if _, err := a.Sign(t.Context(), request(t, newKey(t)), p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A refusal is decided before a token is minted and stored.
	if n := countRows(t, a, bucketTokens); n != 0 {
		t.Errorf("refusals left %d tokens", n)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Sign(done, request(t, newKey(t)), profile(pki.UsageClient)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is done: %v", err)
	}
}

// EC-04: RFC 5280, Section 4.1.2.5: the dates are those of the profile to the second, and a certificate does not
// outlive its issuer.
func TestRFC5280_4_1_2_5_Lifetimes(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	a := newAuthorityFrom(t, c)
	for _, life := range []time.Duration{time.Second, 2 * time.Second, time.Hour, MaxLifetime} {
		p := profile(pki.UsageClient)
		p.NotBefore = time.Now().Add(300 * time.Millisecond)
		p.NotAfter = p.NotBefore.Truncate(time.Second).Add(life)
		chain, err := a.Sign(t.Context(), request(t, newKey(t)), p)
		if err != nil {
			t.Errorf("%v: %v", life, err)
			continue
		}
		if !chain[0].NotBefore.Equal(p.NotBefore.Truncate(time.Second)) || !chain[0].NotAfter.Equal(p.NotAfter) {
			t.Errorf("%v: got %v to %v", life, chain[0].NotBefore, chain[0].NotAfter)
		}
	}

	p := profile(pki.UsageClient)
	p.NotBefore, p.NotAfter = c.Issuing.NotAfter.Add(-time.Hour), c.Issuing.NotAfter
	if _, err := a.Sign(t.Context(), request(t, newKey(t)), p); err != nil {
		t.Errorf("up to the issuer's last second: %v", err)
	}
	p.NotAfter = p.NotAfter.Add(time.Second)
	if _, err := a.Sign(t.Context(), request(t, newKey(t)), p); err == nil {
		t.Error("a certificate outlives its issuer")
	}
}

// EC-06: RFC 5280, Section 4.1.2.5: dates through 2049 are UTCTime, later ones GeneralizedTime.
func TestRFC5280_4_1_2_5_TimeEncoding(t *testing.T) {
	t.Parallel()
	turn := time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)
	a := newAuthorityFrom(t, newConfig(t, turn.AddDate(-1, 0, 0)))
	p := profile(pki.UsageClient)
	p.NotBefore, p.NotAfter = turn.Add(-time.Second), turn
	chain, err := a.Sign(t.Context(), request(t, newKey(t)), p)
	if err != nil {
		t.Fatal(err)
	}
	var tbs struct {
		Version       int `asn1:"explicit,tag:0"`
		Serial        *big.Int
		Algorithm     asn1.RawValue
		Issuer        asn1.RawValue
		Validity      struct{ NotBefore, NotAfter asn1.RawValue }
		Subject       asn1.RawValue
		PublicKey     asn1.RawValue
		OptionalParts []asn1.RawValue `asn1:"optional,explicit,tag:3"`
	}
	if _, err := asn1.Unmarshal(chain[0].RawTBSCertificate, &tbs); err != nil {
		t.Fatal(err)
	}
	if v := tbs.Validity.NotBefore; v.Tag != asn1.TagUTCTime || string(v.Bytes) != "491231235959Z" {
		t.Errorf("notBefore: tag %d, %s", v.Tag, v.Bytes)
	}
	if v := tbs.Validity.NotAfter; v.Tag != asn1.TagGeneralizedTime || string(v.Bytes) != "20500101000000Z" {
		t.Errorf("notAfter: tag %d, %s", v.Tag, v.Bytes)
	}
}

// EC-03: RFC 5280, Section 4.1.2.2: serial numbers are positive, of at most 20 octets, unpredictable and unique.
// Ten thousand certificates are signed by the generator that Sign uses, without the storage; a few by Sign.
func TestRFC5280_4_1_2_2_SerialNumbers(t *testing.T) {
	t.Parallel()
	const drafts, signed = 10_000, 20
	c := newConfig(t, time.Now())
	a := newAuthorityFrom(t, c)
	key := newKey(t)
	csr := request(t, key)
	seen := make(map[string]bool, drafts+signed)
	var ones [128]int
	judge := func(serial *big.Int) {
		if serial.Sign() <= 0 || serial.BitLen() > 159 || seen[serial.String()] {
			t.Fatalf("serial number %v", serial)
		}
		seen[serial.String()] = true
		for bit := range ones {
			ones[bit] += int(serial.Bit(bit))
		}
	}
	for range signed {
		chain, err := a.Sign(t.Context(), csr, profile(pki.UsageClient))
		if err != nil {
			t.Fatal(err)
		}
		judge(chain[0].SerialNumber)
	}
	for range drafts {
		cert, err := x509util.CreateCertificate(&x509.Certificate{}, c.Issuing, key.Public(), c.IssuingKey)
		if err != nil {
			t.Fatal(err)
		}
		judge(cert.SerialNumber)
	}
	// Each of the lower 128 bits is a coin: far from half of the throws it would not be one.
	for bit, count := range ones {
		if count < drafts*4/10 || count > drafts*6/10 {
			t.Errorf("bit %d is set %d times of %d", bit, count, drafts)
		}
	}
}

func TestSignConcurrently(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	const workers = 16
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		csr := request(t, newKey(t))
		wg.Go(func() {
			_, err := a.Sign(t.Context(), csr, profile(pki.UsageClient))
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	for _, bucket := range []string{bucketCerts, bucketCertData, bucketTokens} {
		if got := countRows(t, a, bucket); got != workers {
			t.Errorf("%s: %d rows, want %d", bucket, got, workers)
		}
	}
}

// A token serves one signing: it is pinned to its request, and the second use is refused even when many try at
// once.
func TestTokenIsPinnedAndOneTime(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	mine, other := request(t, newKey(t)), request(t, newKey(t))
	p := profile(pki.UsageClient)
	ctx := provisioner.NewContextWithMethod(t.Context(), provisioner.SignMethod)
	token, err := a.mint.token(mine, p, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	opts, err := a.inner.Authorize(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.inner.SignWithContext(ctx, other, provisioner.SignOptions{}, opts...); err == nil {
		t.Error("the token signs another request")
	}
	if _, err := a.inner.Authorize(ctx, token); err == nil {
		t.Error("the token is authorised twice")
	}

	token, err = a.mint.token(mine, p, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var wins sync.WaitGroup
	results := make(chan error, 16)
	for range cap(results) {
		wins.Go(func() {
			_, err := a.inner.Authorize(ctx, token)
			results <- err
		})
	}
	wins.Wait()
	close(results)
	accepted := 0
	for err := range results {
		if err == nil {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("one token was accepted %d times", accepted)
	}
	stale, err := a.mint.token(mine, p, time.Now().Add(-tokenLifetime-libraryLeeway-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.inner.Authorize(ctx, stale); err == nil {
		t.Error("a stale token is authorised")
	}
	foreign, err := newMint()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := foreign.token(mine, p, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.inner.Authorize(ctx, forged); err == nil {
		t.Error("a token of a foreign key is authorised")
	}
}

// The library asks the profile before it signs: what differs is never signed, so never stored.
func TestProfileIsJudgedBeforeSigning(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	csr := request(t, newKey(t))
	registered := wholeSeconds(profile(pki.UsageClient))
	registered.CRLURL = a.crlURL
	minted := registered
	minted.DNSNames = []string{"admin.example"}
	token, err := a.mint.token(csr, minted, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.sign(t.Context(), csr, registered, token); err == nil {
		t.Error("signed a name that is not registered")
	}
	if n := countRows(t, a, bucketCerts); n != 0 {
		t.Errorf("%d certificates stored", n)
	}
}

// What the library made is judged again: the profile, the chain, the issuer's name and the issuer's signature.
func TestProductIsJudged(t *testing.T) {
	t.Parallel()
	a, other := newTestAuthority(t), newTestAuthority(t)
	csr := request(t, newKey(t))
	p := wholeSeconds(profile(pki.UsageClient))
	p.CRLURL = a.crlURL
	good, err := a.Sign(t.Context(), csr, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.checkProduct(good, csr, p); err != nil {
		t.Errorf("the genuine product: %v", err)
	}
	wider := p
	wider.Usage = pki.UsageBoth
	if a.checkProduct(good, csr, wider) == nil {
		t.Error("a product of another usage passes")
	}
	if a.checkProduct(good, request(t, newKey(t)), p) == nil {
		t.Error("a product for another key passes")
	}
	impostor := *a.issuing
	key := newKey(t)
	impostor.PublicKey = key.Public()
	der, err := x509.CreateCertificate(rand.Reader, good[0], &impostor, csr.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]*x509.Certificate{
		"nothing":          nil,
		"no issuer":        good[:1],
		"other issuer":     {good[0], other.issuing},
		"forged signature": {forged, a.issuing},
	} {
		if a.checkProduct(chain, csr, p) == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if other.checkProduct([]*x509.Certificate{good[0], other.issuing}, csr, p) == nil {
		t.Error("another authority's product passes")
	}

	confused := *a
	confused.issuing = other.issuing
	if _, err := confused.Sign(t.Context(), csr, p); err == nil {
		t.Error("Sign hands out a wrong product")
	}
}

func wholeSeconds(p pki.Profile) pki.Profile {
	p.NotBefore, p.NotAfter = p.NotBefore.UTC().Truncate(time.Second), p.NotAfter.UTC().Truncate(time.Second)
	return p
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := newConfig(t, time.Now())
	other := newHierarchy(t, time.Now())
	empty, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "empty.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { empty.Close() })
	sub, subKey, err := newAuthority("Sub", x509util.DefaultIntermediateTemplate, time.Now(), time.Now().Add(time.Hour),
		&Hierarchy{Root: other.Issuing, RootKey: other.IssuingKey})
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no root":         func(c *Config) { c.Root = nil },
		"no issuer":       func(c *Config) { c.Issuing = nil },
		"no key":          func(c *Config) { c.IssuingKey = nil },
		"no database":     func(c *Config) { c.DB = nil },
		"no dialect":      func(c *Config) { c.Dialect = "" },
		"no table":        func(c *Config) { c.DB = empty },
		"other's key":     func(c *Config) { c.IssuingKey = other.IssuingKey },
		"RSA key":         func(c *Config) { c.IssuingKey = rsaKey },
		"other root":      func(c *Config) { c.Root = other.Root },
		"root of others":  func(c *Config) { c.Root, c.Issuing, c.IssuingKey = other.Issuing, sub, subKey },
		"issuer as root":  func(c *Config) { c.Root = c.Issuing },
		"leaf as issuing": func(c *Config) { leaf := *c.Issuing; leaf.IsCA = false; c.Issuing = &leaf },
		"no cRLSign":      func(c *Config) { leaf := *c.Issuing; leaf.KeyUsage = x509.KeyUsageCertSign; c.Issuing = &leaf },
	} {
		c := good
		change(&c)
		if a, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
			a.Close()
		}
	}
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	if err := c.DB.PingContext(t.Context()); err != nil {
		t.Errorf("the caller's database was closed: %v", err)
	}
}

// A restart on the same table goes on: tokens and certificates of before are no hindrance.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := newConfig(t, time.Now())
	for range 2 {
		a, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Sign(t.Context(), request(t, newKey(t)), profile(pki.UsageBoth)); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The library only logs a provisioner that it could not set up, and starts without it.
func TestUninitializedProvisionerFailsTheStart(t *testing.T) {
	t.Parallel()
	a := newTestAuthority(t)
	if err := checkProvisioners(a.inner); err != nil {
		t.Errorf("the genuine one: %v", err)
	}
	c := libraryConfig(a.mint)
	c.AuthorityConfig.Provisioners[0].(*provisioner.JWK).Claims = &provisioner.Claims{
		MinTLSDur: &provisioner.Duration{Duration: -1},
	}
	h := newHierarchy(t, time.Now())
	inner, err := authority.NewEmbedded(
		authority.WithConfig(c), authority.WithX509RootCerts(h.Root),
		authority.WithX509SignerChain([]*x509.Certificate{h.Issuing}, h.IssuingKey),
		authority.WithDatabase(&db.DB{DB: a.kv}), authority.WithQuietInit(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Shutdown() })
	if checkProvisioners(inner) == nil {
		t.Error("started with a broken provisioner")
	}
}

func countRows(tb testing.TB, a *Authority, bucket string) (n int) {
	tb.Helper()
	row := a.kv.db.QueryRowContext(tb.Context(), "SELECT count(*) FROM ca_kv WHERE bucket = ?", bucket)
	if err := row.Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// FuzzCSR: a request that is accepted gives a certificate that is exactly its profile, for the request's key.
func FuzzCSR(f *testing.F) {
	a := newTestAuthority(f)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, key := range []crypto.Signer{newKey(f), edKey} {
		f.Add(request(f, key).Raw)
	}
	f.Add([]byte(strings.Repeat("0", 40)))
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := pki.ParseRequest(der)
		if err != nil {
			return
		}
		p := profile(pki.UsageClient)
		chain, err := a.Sign(t.Context(), csr, p)
		if err != nil {
			t.Fatalf("accepted, but not signed: %v", err)
		}
		p.CRLURL = a.crlURL
		if err := p.Check(chain[0], csr.PublicKey); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	a := newTestAuthority(b)
	csr := request(b, newKey(b))
	p := profile(pki.UsageClient)
	for b.Loop() {
		if _, err := a.Sign(b.Context(), csr, p); err != nil {
			b.Fatal(err)
		}
	}
}
