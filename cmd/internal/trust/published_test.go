// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/cmd/internal/trust"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// jwk returns a certificate's key as a JSON Web Key with the certificate in it.
func jwk(t *testing.T, cert *x509.Certificate) map[string]any {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	key := map[string]any{"use": "sig", "x5c": []string{base64.StdEncoding.EncodeToString(cert.Raw)}}
	switch pub := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		n := len(point) / 2
		key["kty"], key["crv"], key["x"], key["y"] = "EC", pub.Params().Name, b64(point[1:1+n]), b64(point[1+n:])
	case *rsa.PublicKey:
		key["kty"], key["n"], key["e"] = "RSA", b64(pub.N.Bytes()), b64(big.NewInt(int64(pub.E)).Bytes())
	case ed25519.PublicKey:
		key["kty"], key["crv"], key["x"] = "OKP", "Ed25519", b64(pub)
	}
	return key
}

func jwks(t *testing.T, keys ...any) []byte {
	t.Helper()
	if keys == nil {
		keys = []any{}
	}
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// publisher is a client that publishes its certificates.
type publisher struct {
	*world
	set issuer.CertificateSet
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	w := newWorld(t)
	return &publisher{world: w, set: w.Certificates(store.Client{ID: "billing", Generation: 1, JWKSURI: w.site.url})}
}

func (p *publisher) contains(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	known, err := p.set.Contains(t.Context(), mtls.ThumbprintOf(cert.Leaf))
	if err != nil {
		return "error"
	}
	return fmt.Sprint(known)
}

// expect asks twice, since what a first question sets off counts at the second.
func (p *publisher) expect(t *testing.T, what string, cert tls.Certificate, want string, fetches int64) {
	t.Helper()
	p.contains(t, cert)
	trust.Settle(p.set)
	if got := p.contains(t, cert); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
	if n := p.site.hits.Load(); n != fetches {
		t.Errorf("%s: %d fetches, want %d", what, n, fetches)
	}
}

// CA-16: RFC 8705, Section 2.2: a certificate is the registered one byte for byte; another one with the same key and the
// same names is not.
func TestRFC8705_2_2_RegisteredCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := mtlstest.NewKey(t)
	mine, next := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: key}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	twin := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: key})
	set := w.Certificates(store.Client{ID: "c", Certificates: [][]byte{mine.Certificate[0], next.Certificate[0]}})
	for cert, want := range map[*tls.Certificate]bool{&mine: true, &next: true, &twin: false} {
		if got, err := set.Contains(t.Context(), mtls.ThumbprintOf(cert.Leaf)); err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	none := w.Certificates(store.Client{ID: "c"})
	for _, thumbprint := range []mtls.Thumbprint{{}, mtls.ThumbprintOf(mine.Leaf)} {
		if got, err := none.Contains(t.Context(), thumbprint); got || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if got, err := set.Contains(t.Context(), mtls.Thumbprint{}); got || err != nil {
		t.Errorf("no certificate is registered: %v, %v", got, err)
	}
}

// CA-18: RFC 7591, Section 2: a client with certificates of its own and a jwks_uri is judged by neither.
func TestRFC7591_2_JWKSAndJWKSURI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	w.site.show(jwks(t, jwk(t, mine.Leaf)))
	set := w.Certificates(store.Client{ID: "c", Certificates: mine.Certificate, JWKSURI: w.site.url})
	if got, err := set.Contains(t.Context(), mtls.ThumbprintOf(mine.Leaf)); got || err != nil { // as if it were unknown
		t.Errorf("got %v, %v", got, err)
	}
	if n := len(w.alarms.with("jwks:c")); n != 1 || w.site.hits.Load() != 0 {
		t.Errorf("%d alarms, %d fetches", n, w.site.hits.Load())
	}
}

// CA-16, CA-23: RFC 8705, Section 2.2.2; RFC 7517, Section 4.7: the first of x5c of each key counts, in base64 of the
// ordinary alphabet, and only if it is of that very key.
func TestRFC7517_4_7_X5C(t *testing.T) {
	t.Parallel()
	ec, other := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	b64 := base64.StdEncoding.EncodeToString
	with := func(change func(key map[string]any)) any {
		key := jwk(t, ec.Leaf)
		change(key)
		return key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ofRSA, ofEd := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: rsaKey}), mtlstest.SelfSigned(t, mtlstest.Leaf{Key: edKey})
	of384, of521 := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: p384}), mtlstest.SelfSigned(t, mtlstest.Leaf{Key: p521})
	rsaWith := func(name string, value any) any {
		key := jwk(t, ofRSA.Leaf)
		key[name] = value
		return key
	}
	ecKey := jwk(t, ec.Leaf)
	for name, tt := range map[string]struct {
		body []byte
		cert tls.Certificate
		want string
	}{
		"P-256":             {jwks(t, jwk(t, ec.Leaf)), ec, "true"},
		"P-384":             {jwks(t, jwk(t, of384.Leaf)), of384, "true"},
		"RSA":               {jwks(t, jwk(t, ofRSA.Leaf)), ofRSA, "true"},
		"Ed25519":           {jwks(t, jwk(t, ofEd.Leaf)), ofEd, "true"},
		"several":           {jwks(t, jwk(t, other.Leaf), jwk(t, ec.Leaf)), ec, "true"},
		"without use":       {jwks(t, with(func(k map[string]any) { delete(k, "use") })), ec, "true"},
		"with a chain":      {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{b64(ec.Leaf.Raw), b64(other.Leaf.Raw)} })), ec, "true"},
		"second of a chain": {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{b64(ec.Leaf.Raw), b64(other.Leaf.Raw)} })), other, "false"},
		"order of a chain":  {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{b64(other.Leaf.Raw), b64(ec.Leaf.Raw)} })), ec, "error"},
		"key of another":    {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{b64(other.Leaf.Raw)} })), other, "error"},
		"y of another":      {jwks(t, with(func(k map[string]any) { k["y"] = jwk(t, other.Leaf)["y"] })), ec, "error"},
		"x and y shifted":   {jwks(t, with(func(k map[string]any) { k["x"], k["y"] = shift(t, k["x"], k["y"]) })), ec, "error"},
		"curve of another":  {jwks(t, with(func(k map[string]any) { k["crv"] = "P-384" })), ec, "error"},
		"type of another":   {jwks(t, with(func(k map[string]any) { k["kty"] = "OKP" })), ec, "error"},
		"no key but x5c":    {jwks(t, map[string]any{"x5c": ecKey["x5c"]}), ec, "error"},
		"n of another":      {jwks(t, rsaWith("n", "AQAB")), ofRSA, "error"},
		"e of another":      {jwks(t, rsaWith("e", "Aw")), ofRSA, "error"},
		"RSA type":          {jwks(t, rsaWith("kty", "EC")), ofRSA, "error"},
		"x of another":      {jwks(t, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": ecKey["x"], "x5c": jwk(t, ofEd.Leaf)["x5c"]}), ofEd, "error"},
		"base64url":         {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{base64.RawURLEncoding.EncodeToString(ec.Leaf.Raw)} })), ec, "error"},
		"line breaks":       {jwks(t, with(func(k map[string]any) { s := b64(ec.Leaf.Raw); k["x5c"] = []string{s[:64] + "\n" + s[64:]} })), ec, "error"},
		"PEM":               {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{string(certs(ec.Leaf))} })), ec, "error"},
		"a string":          {jwks(t, with(func(k map[string]any) { k["x5c"] = b64(ec.Leaf.Raw) })), ec, "error"},
		"an empty chain":    {jwks(t, with(func(k map[string]any) { k["x5c"] = []string{} })), ec, "error"},
		"trailing bytes": {jwks(t, with(func(k map[string]any) {
			k["x5c"] = []string{b64(append(ec.Leaf.Raw[:len(ec.Leaf.Raw):len(ec.Leaf.Raw)], 0))}
		})), ec, "error"},
		"a private key":       {jwks(t, with(func(k map[string]any) { k["d"] = "AAAA" })), ec, "error"},
		"a key for no client": {jwks(t, jwk(t, of521.Leaf)), of521, "error"},
		"for encryption":      {jwks(t, with(func(k map[string]any) { k["use"] = "enc" })), ec, "false"},
		"without x5c":         {jwks(t, with(func(k map[string]any) { delete(k, "x5c") })), ec, "false"},
		"other case":          {jwks(t, with(func(k map[string]any) { k["X5C"] = k["x5c"]; delete(k, "x5c") })), ec, "false"},
		"none":                {jwks(t), ec, "false"},
		"keys in other case":  {[]byte(strings.Replace(string(jwks(t, ecKey)), `"keys"`, `"Keys"`, 1)), ec, "error"},
		"keys null":           {[]byte(`{"keys":null}`), ec, "error"},
		"keys twice":          {[]byte(`{"keys":[],` + string(jwks(t, ecKey))[1:]), ec, "error"},
		"member twice":        {[]byte(strings.Replace(string(jwks(t, ecKey)), `"kty":`, `"kty":"RSA","kty":`, 1)), ec, "error"},
		"something behind":    {append(jwks(t, ecKey), "{}"...), ec, "error"},
		"cut off":             {jwks(t, ecKey)[:100], ec, "error"},
		"an array":            {[]byte(`[]`), ec, "error"},
		"empty":               {nil, ec, "error"},
		"too many keys":       {jwks(t, append(make([]any, 100), ecKey)...), ec, "error"},
		"too long":            {append(jwks(t, ecKey), make([]byte, 256<<10)...), ec, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPublisher(t)
			p.site.show(tt.body)
			p.expect(t, name, tt.cert, strings.Replace(tt.want, "error", "false", 1), 1)
			if tt.want == "error" {
				p.health(t, "jwks:billing", "certificates")
			} else {
				p.health(t, "jwks:billing", "ok")
			}
		})
	}
	// A bad key spoils only itself, and is told of.
	p := newPublisher(t)
	p.site.show(jwks(t, jwk(t, ec.Leaf), map[string]any{"kty": "EC", "x5c": []string{b64(other.Leaf.Raw)}}))
	p.expect(t, "good key", ec, "true", 1)
	p.clock.move(time.Minute)
	p.expect(t, "bad key", other, "false", 2)
	p.health(t, "jwks:billing", "key 1 of the client's set is not used")
	if n := len(p.alarms.with("jwks:billing")); n != 1 {
		t.Errorf("%d alarms", n)
	}
}

// shift moves an octet from y to x, which leaves what both hold together.
func shift(t *testing.T, x, y any) (any, any) {
	t.Helper()
	a, err := base64.RawURLEncoding.DecodeString(x.(string))
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(y.(string))
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(append(a, b[0])), base64.RawURLEncoding.EncodeToString(b[1:])
}

// CA-19: RFC 8705, Section 2.2.2: certificates that nobody published cause at most one fetch in an interval, whether it
// succeeds or fails.
func TestRFC8705_2_2_2_OneRefetch(t *testing.T) {
	t.Parallel()
	mine, stranger := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	p.expect(t, "first", mine, "true", 1)
	for range 50 {
		p.expect(t, "stranger", stranger, "false", 1)
	}
	p.clock.move(30 * time.Second)
	p.expect(t, "stranger later", stranger, "false", 2)
	p.expect(t, "stranger again", stranger, "false", 2)
	p.clock.move(30 * time.Second)
	p.site.fail()
	for range 50 {
		p.expect(t, "failing", stranger, "false", 3)
	}
	p.expect(t, "mine while failing", mine, "true", 3)
}

// CA-20: RFC 8705, Section 2.2.2: a certificate that is published counts after one fetch, which the first attempt with it
// sets off and does not wait for; and one that is taken back no longer than the age to which a set is believed.
func TestRFC8705_2_2_2_Rotation(t *testing.T) {
	t.Parallel()
	old, next := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	p.site.show(jwks(t, jwk(t, old.Leaf)))
	p.expect(t, "old", old, "true", 1)
	p.site.show(jwks(t, jwk(t, old.Leaf), jwk(t, next.Leaf)))
	p.clock.move(time.Minute)
	if got := p.contains(t, next); got != "false" {
		t.Errorf("next, before the fetch: %s", got)
	}
	p.expect(t, "next", next, "true", 2)
	p.expect(t, "old beside it", old, "true", 2)
	if p.changes.Load() != 2 {
		t.Errorf("%d changes announced", p.changes.Load())
	}
	p.site.show(jwks(t, jwk(t, next.Leaf)))
	p.clock.move(4 * time.Minute)
	p.expect(t, "old, taken back, within its age", old, "true", 2)
	p.clock.move(6 * time.Minute)
	p.expect(t, "old, past its age", old, "false", 3)
	p.expect(t, "next", next, "true", 3)
}

// CA-20: RFC 8705, Section 2.2.2: the last good certificates outlive a failure, but not beyond their age.
func TestRFC8705_2_2_2_LastGood(t *testing.T) {
	t.Parallel()
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	p.site.fail()
	p.expect(t, "never fetched", mine, "false", 1)
	p.health(t, "jwks:billing", "503")
	p.clock.move(time.Minute)
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	p.expect(t, "fetched", mine, "true", 2)
	p.health(t, "jwks:billing", "ok")
	p.site.show([]byte("<html>"))
	p.clock.move(10*time.Minute - time.Second)
	if got := p.contains(t, mine); got != "true" {
		t.Errorf("within its age: %s", got)
	}
	p.awaitHits(t, 3) // begun meanwhile, since it is old
	p.awaitHealth(t, "JSON")
	p.clock.move(time.Minute)
	p.expect(t, "past its age", mine, "error", 4)
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	p.clock.move(-time.Hour) // a clock that is set back makes nothing fresh, and stops no fetch
	p.expect(t, "after the clock was set back", mine, "true", 5)
}

func (w *world) awaitHealth(t *testing.T, want string) {
	t.Helper()
	for !strings.Contains(w.Health()["jwks:billing"], want) {
		select {
		case <-t.Context().Done():
			t.Fatalf("health is %q, want %q", w.Health()["jwks:billing"], want)
		case <-time.After(time.Millisecond):
		}
	}
}

func (w *world) awaitHits(t *testing.T, n int64) {
	t.Helper()
	for w.site.hits.Load() < n {
		select {
		case <-t.Context().Done():
			t.Fatalf("%d fetches, want %d", w.site.hits.Load(), n)
		case <-time.After(time.Millisecond):
		}
	}
}

// CA-19: RFC 8705, Section 2.2.2: whoever presents a certificate that the client never published hears no at once, as of
// an unknown client, and never learns that there is a jwks_uri and how it fares: not by an error, nor by waiting.
func TestRFC8705_2_2_2_StrangerHearsNothing(t *testing.T) {
	t.Parallel()
	mine, stranger := mtlstest.SelfSigned(t, mtlstest.Leaf{}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	ask := func(what string) {
		t.Helper()
		for range 3 {
			if known, err := p.set.Contains(impatient, mtls.ThumbprintOf(stranger.Leaf)); known || err != nil {
				t.Errorf("%s: %v, %v", what, known, err)
			}
		}
	}
	hanging := make(chan struct{})
	p.site.set(http.StatusOK, jwks(t, jwk(t, mine.Leaf)), hanging)
	ask("while the first fetch hangs")
	close(hanging)
	p.expect(t, "mine", mine, "true", 1)
	ask("after it")
	p.clock.move(time.Minute)
	hanging = make(chan struct{})
	p.site.set(http.StatusServiceUnavailable, nil, hanging)
	ask("while a later one hangs")
	close(hanging)
	trust.Settle(p.set)
	ask("after it failed")
	p.clock.move(time.Hour)
	ask("when all is too old")
}

// However many ask at once, one fetch is made; its owner waits for it with a certificate that was published before, and
// leaves when it cannot wait any longer.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	p.expect(t, "first", mine, "true", 1)
	p.clock.move(time.Hour)
	release := make(chan struct{})
	p.site.set(http.StatusOK, jwks(t, jwk(t, mine.Leaf)), release)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if known, err := p.set.Contains(ctx, mtls.ThumbprintOf(mine.Leaf)); known || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", known, err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := p.contains(t, mine); got != "true" {
				t.Errorf("got %s", got)
			}
		})
	}
	p.awaitHits(t, 2)
	p.clock.move(time.Minute) // past the interval, but one is under way
	for range 10 {
		wg.Go(func() { _ = p.contains(t, mine) })
	}
	close(release)
	wg.Wait()
	if n := p.site.hits.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
}

// One registration has one set, however often it is asked for; another client or generation has its own.
func TestSetOfRegistration(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := store.Client{ID: "c", Generation: 1, JWKSURI: w.site.url}
	first := w.Certificates(client)
	if w.Certificates(client) != first {
		t.Error("the same registration has two sets")
	}
	for _, other := range []store.Client{
		{ID: "d", Generation: 1, JWKSURI: w.site.url}, {ID: "c", Generation: 2, JWKSURI: w.site.url}, {ID: "c", Generation: 1, JWKSURI: w.site.url + "2"},
	} {
		if w.Certificates(other) == first {
			t.Errorf("%v has the set of another registration", other.ID)
		}
	}
}

// Addresses that the operator did not allow are not asked for certificates, and what they are asked by stays unknown.
func TestRFC8705_2_2_2_AddressIsJudged(t *testing.T) {
	t.Parallel()
	c, w := config(t)
	c.Fetcher = fetch.New(fetch.Config{Roots: w.site.ca.Pool()})
	w.start(t, c)
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	w.site.show(jwks(t, jwk(t, mine.Leaf)))
	for _, uri := range []string{w.site.url, "http" + strings.TrimPrefix(w.site.url, "https"), "https://169.254.169.254/keys"} {
		set := w.Certificates(store.Client{ID: "c", JWKSURI: uri})
		for range 2 {
			if known, err := set.Contains(t.Context(), mtls.ThumbprintOf(mine.Leaf)); known || err != nil {
				t.Errorf("%s: got %v, %v", uri, known, err)
			}
			trust.Settle(set)
		}
		w.health(t, "jwks:c", fetch.ErrRefused.Error())
	}
	if w.site.hits.Load() != 0 {
		t.Error("a fetch was made")
	}
}

// Nothing is fetched within a handshake: a connection with a client's certificate costs the world nothing, and what is
// asked first is what a request asks.
func TestNothingIsFetchedInAHandshake(t *testing.T) {
	t.Parallel()
	p := newPublisher(t)
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	server := mtlstest.NewCA(t, "server")
	running := mtlstest.Server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := mtls.PeerFromRequest(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if known, err := p.set.Contains(r.Context(), peer.Thumbprint()); err != nil || !known {
			http.Error(w, "unknown", http.StatusUnauthorized)
		}
	}), server.Issue(t, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(running.URL, "https://"), &tls.Config{
		RootCAs: server.Pool(), Certificates: []tls.Certificate{mine}, ServerName: "localhost",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if n := p.site.hits.Load(); n != 0 {
		t.Errorf("%d fetches within a handshake", n)
	}
	for _, want := range []int{http.StatusUnauthorized, http.StatusOK} {
		response, err := mtlstest.Client(t, server.Pool(), &mine).Get(running.URL)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		trust.Settle(p.set)
		if n := p.site.hits.Load(); n != 1 || response.StatusCode != want {
			t.Errorf("%d fetches, status %d", n, response.StatusCode)
		}
	}
}

// Run fetches lists before they are stale, and keeps published certificates fresh while they are used.
func TestRunFetches(t *testing.T) {
	t.Parallel()
	c, w := config(t)
	ca := mtlstest.NewCA(t, "partner")
	withdrawn := ca.Issue(t, mtlstest.Leaf{})
	c.Files = []trust.FileTrust{{Name: "p", CAFile: file(t, certs(ca.Certificate())), CRLURL: w.site.url}}
	w.start(t, c)
	w.site.show(w.list(t, ca, crl{number: 1}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		w.Run(ctx)
		close(done)
	}()
	await := func(what, want string) {
		t.Helper()
		for outcome(w.judge(t, "p", withdrawn)) != want {
			select {
			case <-t.Context().Done():
				t.Fatal(what)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	await("the list is not fetched at the start", good)
	w.site.show(w.list(t, ca, crl{number: 2, revoked: []*x509.Certificate{withdrawn.Leaf}}))
	w.clock.move(31 * time.Minute) // half its life
	await("the list is not fetched before it is stale", revoked)
	cancel()
	<-done
}

// Published certificates that are in use are fetched again before they are too old, and no request waits for it; those
// that nobody has asked for in an hour rest, but are remembered.
func TestRunRefreshes(t *testing.T) {
	t.Parallel()
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	p := newPublisher(t)
	p.site.show(jwks(t, jwk(t, mine.Leaf)))
	p.expect(t, "first", mine, "true", 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		p.Run(ctx)
		close(done)
	}()
	p.clock.move(4 * time.Minute)
	p.expect(t, "still fresh", mine, "true", 1)
	p.clock.move(2 * time.Minute)
	p.awaitHits(t, 2)
	p.health(t, "jwks:billing", "ok")
	p.clock.move(time.Hour)
	for there := true; there; _, there = p.Health()["jwks:billing"] {
		time.Sleep(10 * time.Millisecond)
	}
	if n := p.site.hits.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
	cancel()
	<-done
}

// Run prepares for the clients that there are and for those that are added, so that their first request is answered; and
// what a removed or disabled client published, or at another place, is gone from Health.
func TestRunFollowsClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mine := mtlstest.SelfSigned(t, mtlstest.Leaf{})
	w.site.show(jwks(t, jwk(t, mine.Leaf)))
	add := func(id string) store.Client {
		t.Helper()
		client, err := w.store.AddClient(t.Context(), store.Client{
			ID: id, AuthMethod: issuer.SelfSignedTLSClientAuth, JWKSURI: w.site.url + "?" + id,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	ready := func(client store.Client, fetches int64) { // and nobody has asked yet
		t.Helper()
		w.awaitHits(t, fetches)
		set := w.Certificates(client)
		trust.Settle(set)
		if known, err := set.Contains(t.Context(), mtls.ThumbprintOf(mine.Leaf)); !known || err != nil {
			t.Errorf("%s: %v, %v", client.ID, known, err)
		}
	}
	clients := []store.Client{add("a"), add("b")}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		w.Run(ctx)
		close(done)
	}()
	ready(clients[0], 2)
	ready(clients[1], 2)
	ready(add("c"), 3)
	if err := w.store.RemoveClient(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := w.store.DisableClient(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	w.awaitGone(t, "jwks:a")
	w.awaitGone(t, "jwks:b")
	if _, there := w.Health()["jwks:c"]; !there {
		t.Error("what another client publishes is gone")
	}
	if err := w.store.EnableClient(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	ready(clients[1], 4)
	w.health(t, "jwks:b", "ok")
	cancel()
	<-done
}

func (w *world) awaitGone(t *testing.T, name string) {
	t.Helper()
	for deadline := time.After(10 * time.Second); ; {
		if _, there := w.Health()[name]; !there {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s is in Health still", name)
		case <-time.After(time.Millisecond):
		}
	}
}

// IN-06: RFC 5280, Section 5.3.1: what a client publishes is found by the public keys, so that what is bound to a
// compromised one can be denied, wherever else that key was certified.
func TestRFC5280_5_3_1_PublishedCertificatesOfAKey(t *testing.T) {
	t.Parallel()
	p := newPublisher(t)
	key := mtlstest.NewKey(t)
	one, twin, other := mtlstest.SelfSigned(t, mtlstest.Leaf{Key: key}), mtlstest.SelfSigned(t, mtlstest.Leaf{Key: key}), mtlstest.SelfSigned(t, mtlstest.Leaf{})
	hash := func(c tls.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo) }
	keyed := p.set.(interface {
		KeyHash(t mtls.Thumbprint) (key [sha256.Size]byte, known bool)
	})
	if got := p.Holding([][sha256.Size]byte{hash(one)}); len(got) != 0 {
		t.Errorf("before the first fetch: %v", got)
	}
	p.site.show(jwks(t, jwk(t, one.Leaf), jwk(t, other.Leaf), jwk(t, twin.Leaf)))
	p.expect(t, "published", one, "true", 1)
	found := map[mtls.Thumbprint]bool{}
	for _, d := range p.Holding([][sha256.Size]byte{{1}, hash(one)}) {
		found[d.Thumbprint] = true
		if d != (tokens.Denial{Thumbprint: d.Thumbprint}) {
			t.Errorf("found %+v", d)
		}
	}
	for cert, want := range map[*tls.Certificate]bool{&one: true, &twin: true, &other: false} {
		thumbprint := mtls.ThumbprintOf(cert.Leaf)
		if found[thumbprint] != want {
			t.Errorf("found %v, want %v", found[thumbprint], want)
		}
		if key, known := keyed.KeyHash(thumbprint); !known || key != hash(*cert) {
			t.Errorf("key %x, %v", key, known)
		}
	}
	if key, known := keyed.KeyHash(mtls.Thumbprint{1}); known || key != [sha256.Size]byte{} {
		t.Errorf("the key of none: %x, %v", key, known)
	}
	if got := p.Holding(nil); len(got) != 0 {
		t.Errorf("for no key: %v", got)
	}
}
