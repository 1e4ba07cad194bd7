// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtlstest

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
)

// Verdict is what must become of a client that presents an exhibit.
type Verdict int

const (
	// RefusedInHandshake means that the server breaks off the handshake, in TLS 1.2 and 1.3. It says nothing of what
	// would come after it.
	RefusedInHandshake Verdict = iota + 1
	// RefusedByAnchors means that the handshake is completed and that Peer.VerifiedBy(Anchors, Now) fails with Err. The
	// leaf matches Subject.
	RefusedByAnchors
	// RefusedBySubject means that VerifiedBy accepts the chain and that Subject does not match the leaf.
	RefusedBySubject
	// Accepted means that VerifiedBy accepts the chain and Subject matches: these look wrong, or nearly so, and are
	// not; or show that the exhibits beside them are refused for their defect alone.
	Accepted
)

// String returns the name of the constant.
func (v Verdict) String() string {
	switch v {
	case RefusedInHandshake:
		return "RefusedInHandshake"
	case RefusedByAnchors:
		return "RefusedByAnchors"
	case RefusedBySubject:
		return "RefusedBySubject"
	case Accepted:
		return "Accepted"
	default:
		return "Verdict(?)"
	}
}

// Exhibit is a certificate chain with one defect, and what it is judged by.
type Exhibit struct {
	// Name is the defect.
	Name string
	// Clause is what the defect offends, or what lets it pass.
	Clause string
	// Chain is what the client presents, leaf first. Its Leaf is set unless crypto/x509 cannot parse it. The key does not
	// always fit: see Presenter.
	Chain tls.Certificate
	// Anchors are those that may vouch for the client. They use presented intermediates.
	Anchors *mtls.Anchors
	// Subject is what the client registered to be recognised by.
	Subject mtls.Subject
	// Now is the time of the judgement, which is the time the exhibit was made.
	Now time.Time
	// Must is what has to happen.
	Must Verdict
	// Err is what VerifiedBy answers where Must is RefusedByAnchors, for errors.Is.
	Err error
}

// Peer returns the peer that presents the exhibit, as a completed handshake would give it; nil when its leaf cannot be
// parsed.
func (e Exhibit) Peer() *mtls.Peer {
	if e.Chain.Leaf == nil {
		return nil
	}
	return PeerOf(e.Chain)
}

// Presenter returns a client that trusts roots and presents cert as it is, fit or not, which Client would refuse to do.
// version limits it to one version of TLS, such as tls.VersionTLS12; zero leaves that to the server. It keeps no
// connections and no sessions.
func Presenter(tb testing.TB, roots *x509.CertPool, cert tls.Certificate, version uint16) *http.Client {
	tb.Helper()
	cfg := mtls.ClientConfig(nil, roots)
	cfg.ClientSessionCache = nil
	if version != 0 {
		cfg.MinVersion, cfg.MaxVersion = version, version
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	transport := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// Museum returns certificates with one defect each, and some that only look like it. All are made anew at every call,
// in a fraction of a second, and are good for an hour. Names are unique.
func Museum(tb testing.TB) []Exhibit {
	tb.Helper()
	m := &museum{tb: tb, now: time.Now(), root: NewCA(tb, "root"), other: NewCA(tb, "other"), known: map[string]bool{}}
	m.trust = m.trusting(m.root.cert)
	m.sound()
	m.dates()
	m.signatures()
	m.issuers()
	m.nameConstraints()
	m.usages()
	m.strangers()
	m.sizes()
	m.keys()
	m.encodings()
	m.alternativeNames()
	m.subjects()
	return m.exhibits
}

// museum is under construction.
type museum struct {
	tb          testing.TB
	now         time.Time
	root, other *CA           // ours and a stranger's
	trust       *mtls.Anchors // in root
	exhibits    []Exhibit
	known       map[string]bool
}

// add puts e on show. What it leaves out is as for an honest client of root whose subject is CN=client.
func (m *museum) add(e Exhibit) {
	m.tb.Helper()
	if m.known[e.Name] {
		m.tb.Fatalf("mtlstest: two exhibits %q", e.Name)
	}
	m.known[e.Name] = true
	if e.Anchors == nil {
		e.Anchors = m.trust
	}
	if e.Subject.IsZero() {
		e.Subject = m.subject(mtls.SubjectDN, "CN=client")
	}
	if e.Must == RefusedByAnchors && e.Err == nil {
		e.Err = mtls.ErrUntrusted
	}
	e.Now = m.now
	m.exhibits = append(m.exhibits, e)
}

func (m *museum) subject(kind mtls.SubjectKind, value string) mtls.Subject {
	m.tb.Helper()
	s, err := mtls.ParseSubject(kind, value)
	if err != nil {
		m.tb.Fatalf("mtlstest: subject: %v", err)
	}
	return s
}

func (m *museum) trusting(roots ...*x509.Certificate) *mtls.Anchors {
	m.tb.Helper()
	a, err := mtls.NewAnchors(mtls.AnchorsConfig{Roots: roots, UsePresented: true})
	if err != nil {
		m.tb.Fatalf("mtlstest: anchors: %v", err)
	}
	return a
}

// edit changes the template of a certificate before it is signed.
type edit func(*x509.Certificate)

// issue returns what ca gives to the client CN=client, with the chain as Issue makes it.
func (m *museum) issue(ca *CA, edits ...edit) tls.Certificate {
	m.tb.Helper()
	return m.issueTo(ca, NewKey(m.tb), edits...)
}

func (m *museum) issueTo(ca *CA, key crypto.Signer, edits ...edit) tls.Certificate {
	m.tb.Helper()
	t := m.client(edits...)
	leaf := sign(m.tb, t, ca.cert, key.Public(), ca.key)
	return tls.Certificate{Certificate: append([][]byte{leaf.Raw}, ca.chain...), PrivateKey: key, Leaf: leaf}
}

func (m *museum) client(edits ...edit) *x509.Certificate {
	m.tb.Helper()
	t := Leaf{CommonName: "client"}.template(m.tb)
	for _, e := range edits {
		e(t)
	}
	return t
}

// below returns an authority under ca, which may be none at all after the edits.
func (m *museum) below(ca *CA, name string, edits ...edit) *CA {
	m.tb.Helper()
	return m.belowWith(ca, name, NewKey(m.tb), edits...)
}

func (m *museum) belowWith(ca *CA, name string, key crypto.Signer, edits ...edit) *CA {
	m.tb.Helper()
	t := authority(m.tb, name)
	for _, e := range edits {
		e(t)
	}
	cert := sign(m.tb, t, ca.cert, key.Public(), ca.key)
	return &CA{cert: cert, key: key, chain: append([][]byte{cert.Raw}, ca.chain...), root: ca.root}
}

// rootWith returns a self-signed authority.
func (m *museum) rootWith(name string, key crypto.Signer, edits ...edit) *CA {
	m.tb.Helper()
	t := authority(m.tb, name)
	for _, e := range edits {
		e(t)
	}
	cert := sign(m.tb, t, t, key.Public(), key)
	return &CA{cert: cert, key: key, root: cert}
}

// forged returns an honest client's certificate of ca after change, which may be one that cannot be parsed.
func (m *museum) forged(ca *CA, change func(*body), edits ...edit) tls.Certificate {
	m.tb.Helper()
	c := m.issue(ca, edits...)
	return m.first(c, forge(m.tb, c.Leaf, sealedBy(ca.key), change))
}

// first returns c with another leaf.
func (m *museum) first(c tls.Certificate, der []byte) tls.Certificate {
	c.Certificate = append([][]byte{der}, c.Certificate[1:]...)
	c.Leaf, _ = x509.ParseCertificate(der)
	return c
}

// behind returns c with other certificates behind its leaf.
func behind(c tls.Certificate, others ...[]byte) tls.Certificate {
	c.Certificate = append([][]byte{c.Certificate[0]}, others...)
	return c
}

func extension(id []int, critical bool, value []byte) pkix.Extension {
	return pkix.Extension{Id: id, Critical: critical, Value: value}
}
