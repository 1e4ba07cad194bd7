// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // the subject key identifier of RFC 5280, Section 4.2.1.2 (1)
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/pki/stepca"
)

// idOf names the clients: all names are of one length.
func idOf(number int) string { return fmt.Sprintf("svc-%08d", number) }

// serialSize is the length of the serial numbers.
const serialSize = 16

// mint makes clients. One certificate is made by the service's own certificate authority; the others are that one with
// another serial number, name and key, signed again: the same to the byte but for these, in a fiftieth of the time. Safe
// for concurrent use once it is made.
type mint struct {
	options
	trustDomain string
	key         *ecdsa.PrivateKey // of the issuing CA
	model       *x509.Certificate
	algorithm   asn1.RawValue
	library     []store.LibraryRow // what the CA library stored of the model
	now         time.Time
}

// client is one of them.
type client struct {
	key []byte // the scalar of its private key
	row store.Loaded
}

// newMint makes the model, whose own rows of the CA library stay in the database.
func newMint(ctx context.Context, db *store.Store, o options) (*mint, error) {
	m := &mint{options: o, now: time.Now()}
	var err error
	if m.trustDomain, err = db.Setting(ctx, "trust_domain"); err != nil {
		return nil, err
	}
	keys, err := db.Keys(ctx, "ca-issuing")
	if err != nil {
		return nil, err
	}
	if len(keys) != 1 || len(keys[0].Chain) != 2 {
		return nil, errors.New("the installation has no issuing CA: start it once")
	}
	private, err := x509.ParsePKCS8PrivateKey(keys[0].Private)
	if err != nil {
		return nil, err
	}
	var ok bool
	if m.key, ok = private.(*ecdsa.PrivateKey); !ok || m.key.Curve != elliptic.P256() {
		return nil, errors.New("the issuing key is not one of P-256")
	}
	issuing, err := x509.ParseCertificate(keys[0].Chain[0])
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(keys[0].Chain[1])
	if err != nil {
		return nil, err
	}
	ca, err := stepca.New(stepca.Config{Root: root, Issuing: issuing, IssuingKey: m.key, DB: db.DB(), Dialect: db.Dialect()})
	if err != nil {
		return nil, err
	}
	return m, errors.Join(m.makeModel(ctx, db, ca), ca.Close())
}

func (m *mint) makeModel(ctx context.Context, db *store.Store, ca *stepca.Authority) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	request, err := pki.ParseRequest(der)
	if err != nil {
		return err
	}
	// Every other serial number has a zero octet before it.
	for range 64 {
		chain, err := ca.Sign(ctx, request, m.profile(0))
		if err != nil {
			return err
		}
		m.model = chain[0]
		if n := m.model.SerialNumber.BitLen(); n > 8*(serialSize-1) && n < 8*serialSize {
			return m.readModel(ctx, db)
		}
	}
	return errors.New("the certificate authority makes serial numbers of another length")
}

// readModel reads what belongs to the model.
func (m *mint) readModel(ctx context.Context, db *store.Store) error {
	var parts struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}
	if _, err := asn1.Unmarshal(m.model.Raw, &parts); err != nil {
		return err
	}
	m.algorithm = parts.Algorithm
	if m.model.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return errors.New("the certificate authority signs in another way")
	}
	serial := m.model.SerialNumber.String()
	for _, bucket := range []string{"x509_certs", "x509_certs_data"} {
		row := store.LibraryRow{Bucket: bucket, Key: []byte(serial)}
		err := db.DB().QueryRowContext(ctx, "SELECT nvalue FROM ca_kv WHERE bucket = $1 AND nkey = $2", bucket, row.Key).Scan(&row.Value)
		if err != nil {
			return fmt.Errorf("the CA library's %s: %w", bucket, err)
		}
		m.library = append(m.library, row)
	}
	token := store.LibraryRow{Bucket: "used_ott"}
	err := db.DB().QueryRowContext(ctx, "SELECT nkey, nvalue FROM ca_kv WHERE bucket = $1 ORDER BY created_at DESC LIMIT 1",
		token.Bucket).Scan(&token.Key, &token.Value)
	m.library = append(m.library, token)
	return err
}

func (m *mint) profile(number int) pki.Profile {
	return pki.Profile{
		ClientID: idOf(number), TrustDomain: m.trustDomain, Usage: pki.UsageClient,
		NotBefore: m.now.Add(-time.Minute), NotAfter: m.now.Add(m.lifetime),
	}
}

// client makes the client of a number.
func (m *mint) client(number int) (client, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return client{}, err
	}
	serial := make([]byte, serialSize)
	_, _ = rand.Read(serial) // never fails
	serial[0] = serial[0]&0x7f | 0x40
	der, err := m.certificate(number, serial, key.PublicKey().Bytes())
	if err != nil {
		return client{}, err
	}
	point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), key.PublicKey().Bytes())
	if err != nil {
		return client{}, err
	}
	hash, err := pki.KeyHash(point)
	if err != nil {
		return client{}, err
	}
	uri := pki.ClientURI(m.trustDomain, idOf(number))
	row := store.Loaded{
		Client: store.Client{
			ID: idOf(number), AuthMethod: "tls_client_auth", SubjectKind: string(mtls.SANURI), SubjectValue: uri,
			Usage: string(pki.UsageClient), Scopes: []string{m.scope},
		},
		Certificate: store.Certificate{
			Thumbprint: sha256.Sum256(der), Serial: new(big.Int).SetBytes(serial).String(),
			NotBefore: m.model.NotBefore, NotAfter: m.model.NotAfter, KeyHash: hash, DER: der, CreatedAt: m.now,
		},
	}
	row.Code = store.Code{
		PublicKey: random(32), CreatedAt: m.now, ExpiresAt: m.now.Add(time.Hour), UsedAt: m.now,
		UsedKey: hash, Certificate: row.Certificate.Thumbprint, UsedFrom: "192.0.2.10",
	}
	copy(row.Code.ID[:], random(len(row.Code.ID)))
	if m.takesAway(number) {
		row.Certificate.RevokedAt, row.Certificate.Reason = m.now, int(pki.KeyCompromise)
	}
	for _, model := range m.library {
		row.Library = append(row.Library, m.libraryRow(model, row.Certificate))
	}
	return client{key: key.Bytes(), row: row}, nil
}

// takesAway spreads the revoked ones evenly.
func (m *mint) takesAway(number int) bool {
	return number*m.revoked/m.clients != (number+1)*m.revoked/m.clients
}

// libraryRow is what the CA library would have stored of a certificate.
func (m *mint) libraryRow(model store.LibraryRow, cert store.Certificate) store.LibraryRow {
	row := store.LibraryRow{Bucket: model.Bucket, Key: []byte(cert.Serial), Value: model.Value}
	switch model.Bucket {
	case "x509_certs":
		row.Value = cert.DER
	case "used_ott": // nobody reads it, and it is random text anyway
		row.Key = []byte(base64.RawURLEncoding.EncodeToString(random(len(model.Key)))[:len(model.Key)])
		row.Value = []byte(base64.RawURLEncoding.EncodeToString(random(len(model.Value)))[:len(model.Value)])
	}
	return row
}

// certificate is the model's with another serial number, name and key.
func (m *mint) certificate(number int, serial, point []byte) ([]byte, error) {
	tbs := bytes.Clone(m.model.RawTBSCertificate)
	model := m.model.RawSubjectPublicKeyInfo[len(m.model.RawSubjectPublicKeyInfo)-len(point):]
	for _, change := range []struct {
		from, to []byte
		times    int
	}{
		{m.model.SerialNumber.Bytes(), serial, 1},
		{[]byte(idOf(0)), []byte(idOf(number)), 2}, // common name and URI
		{model, point, 1},
		{m.model.SubjectKeyId, keyID(point), 1},
	} {
		if len(change.from) != len(change.to) || bytes.Count(tbs, change.from) != change.times {
			return nil, fmt.Errorf("the model has %x in another form", change.from)
		}
		tbs = bytes.ReplaceAll(tbs, change.from, change.to)
	}
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, m.algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
}

func keyID(point []byte) []byte {
	id := sha1.Sum(point)
	return id[:]
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
