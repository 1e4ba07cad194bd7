// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/pki/stepca"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// Two installations never share a trust domain, an address or localhost is in none, and what is derived is valid.
func TestDeriveTrustDomain(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"auth.example": "auth.example", "AUTH.Example": "auth.example", "localhost": "certbound.internal",
		"a.localhost": "certbound.internal", "127.0.0.1": "certbound.internal", "::1": "certbound.internal",
	} {
		first, err := deriveTrustDomain(host)
		if err != nil {
			t.Fatal(err)
		}
		second, err := deriveTrustDomain(host)
		if err != nil {
			t.Fatal(err)
		}
		label, rest, _ := strings.Cut(first, ".")
		if first == second || len(label) != 8 || rest != want {
			t.Errorf("%s: %s, then %s; want a random label of 8 before %s", host, first, second, want)
		}
		if err := pki.CheckTrustDomain(first); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// Issuer, trust domain and ports are settled at the first start; another value later is refused by name, the same
// one is not.
func TestIdentityIsSettledOnce(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	open := func(change func(*service)) (identity, sockets, error) {
		t.Helper()
		s := &service{cfg: testConfig(t, data), log: discard()}
		change(s)
		err := s.open(t.Context())
		id, bound := s.identity, s.sockets
		if closeErr := s.close(); closeErr != nil {
			t.Error(closeErr)
		}
		return id, bound, err
	}
	first, bound, err := open(func(*service) {})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(first.issuer, "https://localhost:") || !strings.HasSuffix(first.trustDomain, ".certbound.internal") {
		t.Errorf("the identity is %+v", first)
	}
	second, again, err := open(func(*service) {})
	if err != nil || second != first {
		t.Errorf("after a restart: %+v, %v; want %+v", second, err, first)
	}
	if bound.public.Addr().String() != again.public.Addr().String() || bound.mtls.Addr().String() != again.mtls.Addr().String() {
		t.Error("the listeners moved over a restart")
	}
	if got, _, err := open(func(s *service) { s.cfg.TrustDomain = first.trustDomain }); err != nil || got != first {
		t.Errorf("with the trust domain that is stored: %+v, %v", got, err)
	}
	if got, _, err := open(func(s *service) { s.cfg = testConfigWith(t, data, first.issuer) }); err != nil || got != first {
		t.Errorf("with the issuer that is stored: %+v, %v", got, err)
	}
	if got, _, err := open(func(s *service) { s.cfg.MTLSURL = "https://mtls.example" }); err != nil || got.mtlsURL != "https://mtls.example" {
		t.Errorf("with another address of the mtls listener: %+v, %v", got, err)
	}
	for name, change := range map[string]func(*service){
		"trust domain": func(s *service) { s.cfg.TrustDomain = "other.example" },
		"issuer":       func(s *service) { s.cfg = testConfigWith(t, data, "https://other.example") },
	} {
		_, _, err := open(change)
		if refused, ok := errors.AsType[*StartError](err); !ok || !strings.Contains(refused.Message, name) ||
			!strings.Contains(refused.Message, "other.example") || refused.Hint == "" {
			t.Errorf("another %s: %v", name, err)
		}
	}
	// A port of its own choosing is neither replaced nor remembered.
	if _, got, err := open(func(s *service) { s.cfg.Public = again.mtls.Addr().String(); s.cfg.MTLS = "127.0.0.1:0" }); err == nil {
		t.Errorf("two listeners on one port: %v", got.public.Addr())
	}
}

// A folder is one service's: another is told so, and what it would have bound stays free.
func TestFolderIsLocked(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	first := &service{cfg: testConfig(t, data), log: discard()}
	if err := first.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := &service{cfg: testConfig(t, data), log: discard()}
	if err := second.open(t.Context()); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second service on the folder: %v", err)
	}
	if err := errors.Join(second.close(), first.close()); err != nil {
		t.Error(err)
	}
}

// Our own certificate has the names of both listeners, which no client may have.
func TestOwnNames(t *testing.T) {
	t.Parallel()
	s := &service{identity: identity{issuer: "https://Auth.example:8443/tenant", mtlsURL: "https://mtls.example"}}
	s.cfg.Hosts = []string{"Tokens.example.", "192.0.2.7"}
	want := []string{"127.0.0.1", "192.0.2.7", "::1", "auth.example", "localhost", "mtls.example", "tokens.example"}
	if got := s.ownNames(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	dns, ips := splitNames(want)
	if !slices.Equal(dns, want[3:]) || !slices.Equal(ips, []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.7"), netip.IPv6Loopback()}) {
		t.Errorf("DNS names %v, addresses %v", dns, ips)
	}
	endpoints := s.endpoints()
	for _, want := range []string{
		"https://Auth.example:8443/tenant", "https://mtls.example", "https://Auth.example:8443/oauth2", "https://Auth.example:8443/pki",
		"https://Auth.example:8443/.well-known", "https://mtls.example/oauth2", "https://mtls.example/pki", "https://mtls.example/admin",
	} {
		if !slices.Contains(endpoints, want) {
			t.Errorf("%s is not among the endpoints", want)
		}
	}
}

// A hierarchy that would sign what nobody can verify is refused.
func TestHierarchy_Check(t *testing.T) {
	t.Parallel()
	now := time.Now()
	one, err := stepca.NewHierarchy("One", now)
	if err != nil {
		t.Fatal(err)
	}
	two, err := stepca.NewHierarchy("Two", now)
	if err != nil {
		t.Fatal(err)
	}
	good := hierarchy{root: one.Root, issuing: one.Issuing, issuingKey: one.IssuingKey}
	if err := good.check(now); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		h   hierarchy
		now time.Time
	}{
		"another root":  {hierarchy{root: two.Root, issuing: one.Issuing, issuingKey: one.IssuingKey}, now},
		"another key":   {hierarchy{root: one.Root, issuing: one.Issuing, issuingKey: two.IssuingKey}, now},
		"the root's":    {hierarchy{root: one.Root, issuing: one.Issuing, issuingKey: one.RootKey}, now},
		"expired":       {good, one.Issuing.NotAfter},
		"root upstairs": {hierarchy{root: one.Issuing, issuing: one.Root, issuingKey: one.RootKey}, now},
	} {
		if err := tc.h.check(tc.now); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	row, err := sealable(purposeIssuing, one.IssuingKey, now, one.Issuing, one.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseHierarchy(row); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*store.Key){
		"no root":     func(k *store.Key) { k.Chain = k.Chain[:1] },
		"no chain":    func(k *store.Key) { k.Chain = nil },
		"bad issuing": func(k *store.Key) { k.Chain = [][]byte{{1}, one.Root.Raw} },
		"bad root":    func(k *store.Key) { k.Chain = [][]byte{one.Issuing.Raw, {1}} },
		"bad key":     func(k *store.Key) { k.Private = []byte{1} },
	} {
		spoiled := row
		spoil(&spoiled)
		if _, err := parseHierarchy(spoiled); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}

	path := filepath.Join(t.TempDir(), "root.pem")
	for name, tc := range map[string]struct {
		content []byte
		good    bool
	}{
		"right":     {pemOf(one.Root), true},
		"another's": {pemOf(two.Root), false},
		"two":       {append(pemOf(one.Root), pemOf(two.Root)...), false},
		"two alike": {append(pemOf(one.Root), pemOf(one.Root)...), false},
		"empty":     {nil, false},
		"garbage":   {[]byte("not PEM"), false},
	} {
		if err := writeFile(path, tc.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkCopy(path, one.Root); (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		} else if refused, ok := errors.AsType[*StartError](err); err != nil && (!ok || !strings.Contains(refused.Message, path) || refused.Hint == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkCopy(path+".gone", one.Root); err == nil {
		t.Error("a missing copy is not refused")
	}
}

// What is stored is held against itself and against the public copies at every start.
func TestHierarchy_Load(t *testing.T) {
	t.Parallel()
	_, db := testRegistry(t)
	data, now := t.TempDir(), time.Now()
	load := func() (*hierarchy, error) {
		return loadHierarchy(t.Context(), testBox(t, db.Store), db.Store, data, settingCAFiles, "Test", now)
	}
	first, err := load()
	if err != nil {
		t.Fatal(err)
	}
	again, err := load()
	if err != nil || !again.issuing.Equal(first.issuing) || !again.root.Equal(first.root) || !samePublicKey(again.issuingKey.Public(), first.issuingKey.Public()) {
		t.Fatalf("the hierarchy changed over a restart: %v", err)
	}
	if info, err := os.Stat(filepath.Join(data, "ca")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	for _, name := range []string{"root.pem", "issuing.pem"} {
		path := filepath.Join(data, "ca", name)
		kept, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := load(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s alone is missing: %v", name, err)
		}
		if err := os.WriteFile(path, kept, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A restored database in a new folder: the copies are made again, of the same certificates.
	if err := os.RemoveAll(filepath.Join(data, "ca")); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err != nil {
		t.Errorf("the folder is new: %v", err)
	}
	if err := checkCopy(filepath.Join(data, "ca", "root.pem"), first.root); err != nil {
		t.Error(err)
	}
	other, err := stepca.NewHierarchy("Other", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key   crypto.Signer
		chain []*x509.Certificate
		want  string
	}{
		"another key":       {other.IssuingKey, []*x509.Certificate{first.issuing, first.root}, "key"},
		"another hierarchy": {other.IssuingKey, []*x509.Certificate{other.Issuing, other.Root}, "ca"},
	} {
		row, err := sealable(purposeIssuing, tc.key, now, tc.chain...)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.PutKey(t.Context(), row); err != nil {
			t.Fatal(err)
		}
		if _, err := load(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// halves is a key whose public half is another's.
type halves struct {
	crypto.Signer
	public crypto.PublicKey
}

// Public returns the other's.
func (h halves) Public() crypto.PublicKey { return h.public }

// mute is a key that does not sign.
type mute struct{ crypto.Signer }

// Sign fails.
func (mute) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the device is gone")
}

// A signing key is used only when what it signs verifies, and what is published comes from the private keys.
func TestKeyring(t *testing.T) {
	t.Parallel()
	good, other := newKey(t), newKey(t)
	probe := func(signer crypto.Signer) error {
		return issuer.SigningKey{Algorithm: tokens.ES256, Signer: signer}.Probe()
	}
	if err := probe(good); err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]crypto.Signer{
		"another's public half": halves{good, other.Public()}, "no signature": mute{good},
		"another kind's public half": halves{good, ed.Public()},
	} {
		if err := probe(bad); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if _, err := parseSigner([]byte("nothing")); err == nil {
		t.Error("a key that does not parse is not refused")
	}

	_, db := testRegistry(t)
	first, err := loadKeyring(t.Context(), keyringFor(t, db.Store))
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadKeyring(t.Context(), keyringFor(t, db.Store))
	if err != nil {
		t.Fatal(err)
	}
	one, err := first.Signing()
	if err != nil {
		t.Fatal(err)
	}
	if two, err := again.Signing(); err != nil || len(first.Published()) != 1 || one.ID != two.ID || !samePublicKey(one.Signer.Public(), again.Published()[0].Key) {
		t.Errorf("%d keys, %s then %s, %v", len(first.Published()), one.ID, two.ID, err)
	}
	if id, err := tokens.KeyID(one.Signer.Public()); err != nil || id != one.ID {
		t.Errorf("the key's id is %s, want %s, %v", one.ID, id, err)
	}
	if key, err := first.Key(t.Context(), one.ID); err != nil || key.ID != one.ID {
		t.Errorf("the key by its id: %v", err)
	}
	if _, err := first.Key(t.Context(), "other"); !errors.Is(err, tokens.ErrUnknownKey) {
		t.Errorf("an unknown id: %v", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ed)
	if err != nil {
		t.Fatal(err)
	}
	id, err := tokens.KeyID(ed.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, algorithm := range map[string]string{id: "ES256", "another": "EdDSA"} {
		key := store.Key{ID: name, Purpose: purposeSigning, State: keyRetiring, Algorithm: algorithm, Private: der, Until: time.Now().Add(time.Hour)}
		if err := db.PutKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if _, err := loadKeyring(t.Context(), keyringFor(t, db.Store)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("a key of another kind than its algorithm, or of another name than its own: %v", err)
		}
		if err := db.DeleteKey(t.Context(), purposeSigning, name); err != nil {
			t.Fatal(err)
		}
	}
}

// Keys are the same only when kind and value are.
func TestSamePublicKey(t *testing.T) {
	t.Parallel()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := []crypto.PublicKey{newKey(t).Public().(*ecdsa.PublicKey), newKey(t).Public(), ed.Public(), r.Public()}
	for i, a := range keys {
		for j, b := range keys {
			if samePublicKey(a, b) != (i == j) {
				t.Errorf("%T and %T: %t", a, b, i != j)
			}
		}
	}
	if samePublicKey("text", "text") {
		t.Error("what is no key passes for one")
	}
}

// The service's own certificate survives a restart, is made anew for a new name, and is refused when damaged.
func TestOwnCertificate_Restart(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := built(t, data)
	first := s.own.Current().Leaf
	rows, err := s.folder.store.Keys(t.Context(), purposeServer)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*store.Key){
		"no certificate":  func(k *store.Key) { k.Chain = nil },
		"bad certificate": func(k *store.Key) { k.Chain = [][]byte{{1}} },
		"another's":       func(k *store.Key) { k.Chain = [][]byte{s.root.Raw} },
		"bad key":         func(k *store.Key) { k.Private = []byte{1} },
	} {
		row := rows[0]
		spoil(&row)
		if _, err := parseOwn(row); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = built(t, data)
	if !s.own.Current().Leaf.Equal(first) {
		t.Error("a restart made another certificate")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = built(t, data, func(s *service) { s.cfg.Hosts = []string{"tokens.example"}; s.cfg.MTLSURL = "https://mtls.example" })
	second := s.own.Current().Leaf
	if second.VerifyHostname("tokens.example") != nil || second.VerifyHostname("mtls.example") != nil {
		t.Errorf("the certificate has not got the new names: %v", second.DNSNames)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = built(t, data, func(s *service) { s.cfg.Hosts = []string{"tokens.example"}; s.cfg.MTLSURL = "https://mtls.example" })
	if !s.own.Current().Leaf.Equal(second) {
		t.Error("the certificate with the new names was not stored")
	}
}

// The service looks at its own certificates when they are due, and at least every ten minutes, but never in a loop
// that would keep a machine busy when a renewal fails.
func TestNextLook(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	cert := mtlstest.SelfSigned(t, mtlstest.Leaf{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
	own, err := mtls.NewKeyPair(cert)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{own: own}
	for before, want := range map[time.Duration]time.Duration{
		24 * time.Hour: 10 * time.Minute, 5 * time.Minute: 5 * time.Minute, 0: time.Second, -time.Hour: time.Second,
	} {
		if got := s.nextLook(now.Add(-before)); (got - want).Abs() > time.Second {
			t.Errorf("%s before it is due: %s, want %s", before, got, want)
		}
	}
	if got := s.nextLook(now.Add(time.Hour)); got != time.Second {
		t.Errorf("an hour late: %s", got)
	}
}

// A file is replaced whole, with the mode that was asked for, and nothing else is left in the folder.
func TestWriteFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		if err := writeFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(name)
	info, statErr := os.Stat(name)
	if err := errors.Join(err, statErr); err != nil || string(data) != "two" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, mode %v, %v", data, info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := writeFile(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("a file in a missing folder")
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
