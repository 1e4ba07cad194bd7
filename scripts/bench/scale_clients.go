// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"sync"

	"github.com/certbound/certbound/pki"
)

// A slot of the builder's file: 1 when the certificate is revoked, the scalar of the key (P-256), the length of the
// certificate, big endian, its DER, and zeros.
const (
	slotKey         = 32
	slotCertificate = 1024
	slotSize        = 1 + slotKey + 2 + slotCertificate
)

// population are the clients that the builder made.
type population struct {
	file    *os.File
	issuing []byte      // DER
	base    *tls.Config // what all have in common
	order   []int32     // the numbers of those whose certificates are not revoked, shuffled

	mu    sync.Mutex
	drawn int // how many of order have been given out for the first time
}

// openPopulation opens the builder's file. The order is the same for the same file.
func openPopulation(name, issuingFile, profile string) (*population, error) {
	text, err := os.ReadFile(issuingFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", issuingFile)
	}
	roots, err := readRoots(profile)
	if err != nil {
		return nil, err
	}
	p := &population{issuing: block.Bytes, base: clientConfig(nil, roots)}
	if p.file, err = os.Open(name); err != nil {
		return nil, err
	}
	info, err := p.file.Stat()
	if err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	revoked := make([]byte, 1)
	for i := range int32(info.Size() / slotSize) {
		if _, err := p.file.ReadAt(revoked, int64(i)*slotSize); err != nil {
			return nil, errors.Join(err, p.file.Close())
		}
		if revoked[0] == 0 {
			p.order = append(p.order, i)
		}
	}
	r := rand.New(rand.NewPCG(5, 5))
	r.Shuffle(len(p.order), func(i, j int) { p.order[i], p.order[j] = p.order[j], p.order[i] })
	return p, nil
}

// certificate reads that of a client.
func (p *population) certificate(number int32) (*tls.Certificate, error) {
	slot := make([]byte, slotSize)
	if _, err := p.file.ReadAt(slot, int64(number)*slotSize); err != nil {
		return nil, err
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), slot[1:1+slotKey])
	if err != nil {
		return nil, err
	}
	rest := slot[1+slotKey:]
	n := int(binary.BigEndian.Uint16(rest))
	if n == 0 || n > slotCertificate {
		return nil, errors.New("the builder's file is damaged")
	}
	return &tls.Certificate{Certificate: [][]byte{rest[2 : 2+n], p.issuing}, PrivateKey: key}, nil
}

// A draw chooses the next client by its place in the order.
type draw func() (int, error)

// fresh draws clients that never came before, until there are none left.
func (p *population) fresh() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn == len(p.order) {
		return 0, errors.New("every client has come: there are too few for so many rounds")
	}
	p.drawn++
	return p.drawn - 1, nil
}

// known goes round the first n clients, n = 0 standing for all that ever came: each time it is the turn of the one that
// has not come for longest, which is the worst order for whoever remembers some of them.
func (p *population) known(n int) draw {
	next := 0
	return func() (int, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		among := n
		if n == 0 {
			among = p.drawn
		}
		if among == 0 || among > len(p.order) {
			return 0, errors.New("too few clients have come")
		}
		next = (next + 1) % among
		return next, nil
	}
}

// callers make what a target asks with: a token for the client that is drawn.
func (p *population) callers(endpoint *url.URL, d draw) func() (caller, error) {
	return p.asking(d, func(id string, _ *tls.Certificate) ([]byte, error) {
		body := "grant_type=client_credentials&client_id=" + id + "&scope=bench"
		return post(endpoint.Host, endpoint.Path, "application/x-www-form-urlencoded", body), nil
	})
}

// renewals ask for a new certificate for the key that the client has.
func (p *population) renewals(endpoint *url.URL, d draw) func() (caller, error) {
	return p.asking(d, func(_ string, cert *tls.Certificate) ([]byte, error) {
		csr, err := pki.CreateRequest(cert.PrivateKey.(*ecdsa.PrivateKey))
		if err != nil {
			return nil, err
		}
		body, err := json.Marshal(pki.NewRenewRequest(csr))
		return post(endpoint.Host, "/pki/renew", "application/json", string(body)), err
	})
}

func (p *population) asking(d draw, request func(id string, cert *tls.Certificate) ([]byte, error)) func() (caller, error) {
	return func() (caller, error) {
		place, err := d()
		if err != nil {
			return caller{}, err
		}
		number := p.order[place]
		cert, err := p.certificate(number)
		if err != nil {
			return caller{}, err
		}
		config := p.base.Clone()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		c := caller{config: config}
		c.request, err = request(fmt.Sprintf("svc-%08d", number), cert)
		return c, err
	}
}

// renewalAnswer wants a certificate in the answer.
func renewalAnswer(body []byte) error {
	var answer pki.EnrollResponse
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	if block == nil {
		return errors.New("the answer holds no certificate")
	}
	_, err := x509.ParseCertificate(block.Bytes)
	return err
}
