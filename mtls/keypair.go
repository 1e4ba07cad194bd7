// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// maxKeyFile bounds what is read of a certificate or key file.
const maxKeyFile = 1 << 20

// KeyPair is a certificate chain with its private key that can be exchanged while it is in use. It is safe for
// concurrent use and always holds a pair that fits: a new one takes the place of the old whole, or not at all.
type KeyPair struct {
	certFile, keyFile string // empty when the pair did not come from files
	current           atomic.Pointer[tls.Certificate]
}

// NewKeyPair returns a pair that holds c. It fails when c is empty, does not parse, or its key is not the
// certificate's.
func NewKeyPair(c tls.Certificate) (*KeyPair, error) {
	kp := &KeyPair{}
	if err := kp.Replace(c); err != nil {
		return nil, err
	}
	return kp, nil
}

// LoadKeyPair returns the pair in two PEM files: the certificate chain, leaf first, and the private key. Its errors
// name the file at fault.
func LoadKeyPair(certFile, keyFile string) (*KeyPair, error) {
	kp := &KeyPair{certFile: certFile, keyFile: keyFile}
	if err := kp.Reload(); err != nil {
		return nil, err
	}
	return kp, nil
}

// Current returns the pair in use, with its Leaf set. It never blocks. The value is shared and must not be modified; it
// stays as it is when the pair is exchanged.
func (kp *KeyPair) Current() *tls.Certificate {
	return kp.current.Load()
}

// Replace puts c into use. When c is empty, does not parse, or its key is not the certificate's, it fails and the pair
// in use stays.
func (kp *KeyPair) Replace(c tls.Certificate) error {
	leaf, err := checkPair(c)
	if err != nil {
		return err
	}
	c.Leaf = leaf
	kp.current.Store(&c)
	return nil
}

// checkPair returns the parsed leaf of c.
func checkPair(c tls.Certificate) (*x509.Certificate, error) {
	if len(c.Certificate) == 0 {
		return nil, errors.New("mtls: key pair without a certificate")
	}
	var leaf *x509.Certificate
	for i, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("mtls: parse certificate %d of the chain: %w", i, err)
		}
		if i == 0 {
			leaf = cert
		}
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("mtls: key pair without a private key that can sign")
	}
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("mtls: the private key is not the certificate's")
	}
	return leaf, nil
}

// Reload reads the files again. When one is missing, damaged or does not fit the other, it fails with an error that
// names the file, and the pair in use stays. A pair that did not come from files has nothing to reload: an error.
func (kp *KeyPair) Reload() error {
	if kp.certFile == "" {
		return errors.New("mtls: key pair was not loaded from files")
	}
	err := kp.load()
	if err == nil {
		return nil
	}
	// Between the two reads another process may have exchanged the files: what did not fit a moment ago may fit now.
	return kp.load()
}

func (kp *KeyPair) load() error {
	certPEM, err := readFile(kp.certFile)
	if err != nil {
		return fmt.Errorf("mtls: read certificate: %w", err)
	}
	if _, err := parseCertificates(certPEM); err != nil {
		return fmt.Errorf("mtls: certificate file %s: %w", kp.certFile, err)
	}
	keyPEM, err := readFile(kp.keyFile)
	if err != nil {
		return fmt.Errorf("mtls: read private key: %w", err)
	}
	if block, _ := pem.Decode(keyPEM); block == nil {
		return fmt.Errorf("mtls: private key file %s: no PEM data, empty or truncated", kp.keyFile)
	}
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("mtls: private key file %s for certificate file %s: %w", kp.keyFile, kp.certFile, err)
	}
	return kp.Replace(c)
}

// readFile reads a whole file of at most maxKeyFile bytes.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxKeyFile)
	}
	return data, nil
}

// Watch calls Reload at every interval, which must be positive, until ctx is done, and then returns. A failure is given to onError, which may
// be nil, and the pair in use stays. It reads the files each time, because a symbolic link on the way to them may
// change without a trace in their own times, as it does with mounted secrets.
func (kp *KeyPair) Watch(ctx context.Context, every time.Duration, onError func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := kp.Reload(); err != nil && onError != nil {
				onError(err)
			}
		}
	}
}

// ParseCertificates reads the certificates of a PEM file in their order. There must be at least one and nothing else:
// a block of another type, a damaged block or a truncated one is an error, because a file of trust anchors that is
// read in part would change whom one trusts. Text between the blocks is skipped.
func ParseCertificates(pemData []byte) ([]*x509.Certificate, error) {
	certs, err := parseCertificates(pemData)
	if err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	return certs, nil
}

func parseCertificates(pemData []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	begun := bytes.Count(pemData, []byte("-----BEGIN "))
	for rest := pemData; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q among certificates", strings.ToValidUTF8(block.Type, "?"))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(certs), err)
		}
		certs = append(certs, cert)
	}
	if len(certs) != begun {
		return nil, errors.New("damaged or truncated PEM block")
	}
	if begun == 0 {
		return nil, errors.New("no certificate found, want PEM")
	}
	return certs, nil
}
