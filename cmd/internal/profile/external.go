// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/client"
)

// AddOptions say which certificate a profile is made of, and for which service.
type AddOptions struct {
	// Issuer, RootFile and ClientID name the service, the PEM file of the roots that vouch for it, and the client that
	// the certificate is registered for. Where Dir holds a profile already, its own stand for those left empty.
	Issuer, RootFile, ClientID string
	// CertFile and KeyFile are PEM files: the certificate followed by its intermediates, and its private key.
	CertFile, KeyFile string
	// Replace permits to overwrite a profile of another root, issuer or client.
	Replace bool
}

// Add makes a profile of a certificate that there is already: one from a foreign CA or a self-signed one, registered
// with the service. The files are copied; when they change, Add is called again and gives the profile a new generation.
// It asks the service for its metadata only, so it does not find out whether the certificate is accepted, and blocks
// for that one request and for the folder's lock, until ctx ends.
func Add(ctx context.Context, dir string, o AddOptions) (*Profile, error) {
	f, err := o.files(dir)
	if err != nil {
		return nil, err
	}
	service, err := Discover(ctx, f.Issuer, f.Roots)
	if err != nil {
		return nil, err
	}
	f.MTLSURL, f.TokenEndpoint = service.MTLSURL, service.TokenEndpoint
	made := expectation{key: f.Key, now: time.Now()}
	f.External = !issuedBy(f, made)
	if err := Write(ctx, dir, f); err != nil {
		return nil, err
	}
	return Open(dir)
}

// files gathers what is known without asking the network.
func (o AddOptions) files(dir string) (Files, error) {
	have, err := o.known(dir)
	if err != nil {
		return Files{}, err
	}
	f := Files{Issuer: cmp.Or(o.Issuer, have.Issuer), ClientID: cmp.Or(o.ClientID, have.ClientID), Replace: o.Replace}
	rootFile := o.RootFile
	if rootFile == "" && have.Issuer != "" {
		rootFile = filepath.Join(dir, rootsFile)
	}
	if f.Issuer == "" || f.ClientID == "" || rootFile == "" {
		return Files{}, &Error{
			Message: fmt.Sprintf("there is no profile in %s yet, so issuer, root and client id are needed", dir),
			Hint:    fmt.Sprintf("certbound profile add %s --issuer URL --root FILE --client-id ID --cert FILE --key FILE", ShellWord(dir)),
		}
	}
	if err := CheckClientID(f.ClientID); err != nil {
		return Files{}, &Error{Message: err.Error(), Hint: "name the client by the id that it is registered with", Err: err}
	}
	if f.Roots, err = ReadRoots(rootFile); err != nil {
		return Files{}, err
	}
	pair, err := LoadKeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return Files{}, err
	}
	current := pair.Current()
	if f.Key, err = signer(current.PrivateKey); err != nil {
		return Files{}, err
	}
	for _, der := range current.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return Files{}, fmt.Errorf("%s: %w", o.CertFile, err)
		}
		f.Chain = append(f.Chain, cert)
	}
	return f, checkFileDates(o.CertFile, current.Leaf, time.Now())
}

// known is what the folder holds, nothing for a folder without a profile.
func (o AddOptions) known(dir string) (info, error) {
	if _, err := os.Lstat(filepath.Join(dir, infoFile)); errors.Is(err, fs.ErrNotExist) || o.Replace {
		return info{}, nil
	}
	return readInfo(dir)
}

// issuedBy reports whether one of the profile's roots vouches for the certificate as the service's own CA does: then
// the service renews it.
func issuedBy(f Files, want expectation) bool {
	for _, root := range f.Roots {
		want.root = root
		if checkCertificate(f.Chain, f.ClientID, want) == nil {
			return true
		}
	}
	return false
}

func signer(key crypto.PrivateKey) (crypto.Signer, error) {
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return s, nil
}

func checkFileDates(path string, leaf *x509.Certificate, now time.Time) error {
	err := mtls.NewPeer(leaf).CheckValidity(now)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mtls.ErrExpired):
		return &Error{
			Message: fmt.Sprintf("the certificate in %s expired at %s", path, leaf.NotAfter.UTC().Format(time.RFC3339)),
			Hint:    "get a new one where it came from", Err: err,
		}
	}
	return &Error{
		Message: fmt.Sprintf("the certificate in %s: %v", path, err),
		Hint:    "wait for its time, or set this machine's clock", Err: err,
	}
}

// LoadKeyPair reads a certificate and its key from PEM files; a failure is an *Error that names the file.
func LoadKeyPair(certFile, keyFile string) (*mtls.KeyPair, error) {
	pair, err := mtls.LoadKeyPair(certFile, keyFile)
	if err != nil {
		return nil, &Error{
			Message: err.Error(), Err: err,
			Hint: "name two PEM files: the certificate, followed by its intermediates, and its private key without a passphrase",
		}
	}
	return pair, nil
}

// ReadRoots reads the certificates of a PEM file that vouch for the service.
func ReadRoots(path string) ([]*x509.Certificate, error) {
	roots, err := readCertificates(path)
	if err != nil {
		return nil, &Error{
			Message: err.Error(), Err: err,
			Hint: "name a PEM file with the root certificate of the service: DATA/ca/root.pem of its machine",
		}
	}
	return roots, nil
}

// ReadCertificates returns the certificates of a PEM file, each in PEM again. A file that holds anything else, such as a
// key, is refused.
func ReadCertificates(path string) ([]string, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, &Error{Message: err.Error(), Hint: "name a PEM file that holds certificates", Err: err}
	}
	blocks := make([]string, 0, len(certs))
	for _, cert := range certs {
		blocks = append(blocks, string(encodeCertificates([]*x509.Certificate{cert})))
	}
	return blocks, nil
}

// ReadFile reads a file of at most a MiB that must not be empty; errors name it.
func ReadFile(path string) ([]byte, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, bare(err))
	}
	return data, nil
}

// Service is where a service is reached.
type Service struct{ Issuer, MTLSURL, TokenEndpoint string }

// Discover asks an issuer for its endpoints, trusting the roots alone.
func Discover(ctx context.Context, issuer string, roots []*x509.Certificate) (Service, error) {
	hc := httpClient(mtls.ClientConfig(nil, poolOf(roots)))
	defer hc.CloseIdleConnections()
	metadata, err := client.Discover(ctx, hc, issuer)
	if err != nil {
		return Service{}, unreachable(issuer, err)
	}
	endpoint := metadata.MTLSTokenEndpoint()
	origin, err := originOf(endpoint)
	if err != nil {
		return Service{}, unexpected(issuer, err)
	}
	return Service{Issuer: metadata.Issuer, MTLSURL: origin, TokenEndpoint: endpoint}, nil
}

// newFilesHint says how a profile of an existing certificate gets the next one.
func newFilesHint(dir string) string {
	return fmt.Sprintf("get a new certificate where this one came from, then: certbound profile add %s --cert FILE --key FILE", ShellWord(dir))
}
