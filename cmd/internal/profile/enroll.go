// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens/client"
)

// EnrollOptions say what to redeem and where to keep what comes of it.
type EnrollOptions struct {
	// Code is the one-time code as printed by `certbound client add`; space around it is ignored.
	Code string
	// Dir is the profile folder; empty means a folder named after the client id in the working directory.
	Dir string
	// Replace permits to overwrite a profile of another root, issuer or client.
	Replace bool
}

// Enroll redeems a code: it makes a key, has it certified and writes the profile. It blocks for four requests to the
// service, until ctx ends.
//
// If it is interrupted, the same call with the same code finishes the work with the same key: the key lies in the
// folder's pending subfolder or, while the client id that names the folder is not known, in
// .certbound-enroll-<id of the code> in the working directory. Once the service has refused the code, no call can finish
// it, so nothing is left behind. A code is never redeemed for a folder that already holds a foreign profile, when the
// folder was named.
func Enroll(ctx context.Context, o EnrollOptions) (*Profile, error) {
	code, err := pki.ParseCode(strings.TrimSpace(o.Code))
	if err != nil {
		return nil, &Error{
			Message: fmt.Sprintf("this is not a usable enrolment code: %v", errors.Unwrap(err)),
			Hint:    "copy the whole code, from cb1. to the end, or ask an operator for a new one (certbound client invite ID)",
			Err:     err,
		}
	}
	if o.Dir != "" && !o.Replace {
		if err := sameProfile(o.Dir, identity{issuer: code.URL, roots: [][32]byte{code.Root}}); err != nil {
			return nil, err
		}
	}
	desk := newDesk(code, o.Dir)
	_, missing := os.Lstat(desk.dir)
	unlock, err := lock(ctx, desk.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	files, err := redeem(ctx, code, desk)
	if err != nil {
		desk.clear(refusedForGood(err), errors.Is(missing, fs.ErrNotExist))
		return nil, err
	}
	files.Replace = o.Replace
	return desk.finish(ctx, files)
}

// desk is where an enrolment keeps its key until it has a home.
type desk struct {
	dir       string // locked while the enrolment runs
	key       string // the key's file
	temporary bool   // dir goes when the work is done
	home      string // the profile's folder, empty while it depends on the client id
}

// newDesk finds the place. A key made by an earlier run without a named folder is used up before a new one is made.
func newDesk(code pki.Code, dir string) desk {
	id := hex.EncodeToString(code.ID[:])
	staging := ".certbound-enroll-" + id
	anonymous := desk{dir: staging, key: filepath.Join(staging, keyFile), temporary: true, home: dir}
	if _, err := os.Lstat(anonymous.key); err == nil || dir == "" {
		return anonymous
	}
	// The code's id in the name: a key certified for one client is not to be offered for another.
	return desk{dir: dir, key: filepath.Join(dir, pendingDir, "enroll-"+id+".pem"), home: dir}
}

// finish installs the profile and only then removes the pending key.
func (d desk) finish(ctx context.Context, f Files) (*Profile, error) {
	home := d.home
	if home == "" {
		home = f.ClientID
	}
	var err error
	if home == d.dir {
		err = f.install(home)
		if other, is := errors.AsType[*Error](err); is && errors.Is(err, errOtherProfile) {
			other.Hint = "overwrite it with --replace and the same code, whose certificate waits there; for another folder the code is used up: " +
				"ask an operator for a new one (certbound client invite " + ShellWord(f.ClientID) + ")"
		}
	} else {
		err = Write(ctx, home, f)
	}
	if err != nil {
		return nil, err
	}
	if d.temporary {
		err = os.RemoveAll(d.dir)
	} else {
		err = os.RemoveAll(filepath.Join(d.dir, pendingDir))
	}
	if err != nil {
		return nil, folderError(home, err)
	}
	return Open(home)
}

// refusedForGood reports whether the service judged the code or the request itself, so that asking again is in vain.
func refusedForGood(err error) bool {
	refused, ok := errors.AsType[*APIError](err)
	return ok && refused.Status >= 400 && refused.Status < 500 &&
		(refused.Code == "invalid_grant" || refused.Code == "invalid_request")
}

// clear takes away what no later run can use: the key when it will never be certified, and the folder when this run made
// it and nothing is in it. What cannot be removed does no harm.
func (d desk) clear(refused, made bool) {
	if refused {
		_ = os.Remove(d.key)
	}
	_ = os.Remove(filepath.Join(d.dir, pendingDir)) // only when it is empty
	left, err := os.ReadDir(d.dir)
	if err == nil && (made || d.temporary) && len(left) == 1 && left[0].Name() == lockFile {
		_ = os.RemoveAll(d.dir)
	}
}

// redeem talks to the service: root, metadata, certificate, each verified by the one before.
func redeem(ctx context.Context, code pki.Code, d desk) (Files, error) {
	root, err := fetchRoot(ctx, code)
	if err != nil {
		return Files{}, err
	}
	hc := httpClient(mtls.ClientConfig(nil, poolOf([]*x509.Certificate{root})))
	defer hc.CloseIdleConnections()
	// Discover compares the issuer in the document with the one in the code (RFC 8414, Section 3.3).
	metadata, err := client.Discover(ctx, hc, code.URL)
	if err != nil {
		return Files{}, unreachable(code.URL, err)
	}
	key, err := pendingKey(d.key)
	if err != nil {
		return Files{}, err
	}
	csr, err := pki.CreateRequest(key)
	if err != nil {
		return Files{}, fmt.Errorf("make a certificate request: %w", err)
	}
	origin, err := originOf(code.URL)
	if err != nil {
		return Files{}, err
	}
	var answer pki.EnrollResponse
	request := pki.NewEnrollRequest(code, metadata.Issuer, csr)
	if err := call(ctx, hc, http.MethodPost, origin+"/pki/enroll", request, &answer); err != nil {
		return Files{}, explainEnroll(code.URL, err)
	}
	files, err := accept(answer, expectation{
		issuer: metadata.Issuer, endpoint: metadata.MTLSTokenEndpoint(), key: key, root: root, now: time.Now(),
	})
	if err != nil {
		return Files{}, unexpected(code.URL, err)
	}
	return files, nil
}

// fetchRoot gets the root certificate that the code names by its digest.
//
// This is the one connection that verifies no certificate: there is nothing yet to verify it with. It carries nothing
// secret, is used for this one request only, and what it brings is believed only if its SHA-256 is in the code.
func fetchRoot(ctx context.Context, code pki.Code) (*x509.Certificate, error) {
	origin, err := originOf(code.URL)
	if err != nil {
		return nil, err
	}
	hc := httpClient(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer hc.CloseIdleConnections()
	data, err := get(ctx, hc, origin+"/pki/roots.pem")
	if err != nil {
		return nil, unreachable(code.URL, err)
	}
	roots, err := mtls.ParseCertificates(data)
	if err != nil {
		return nil, unreachable(code.URL, fmt.Errorf("roots.pem: %w", err))
	}
	i := slices.IndexFunc(roots, func(c *x509.Certificate) bool { return sha256.Sum256(c.Raw) == code.Root })
	if i < 0 || !roots[i].IsCA {
		return nil, &Error{
			Message: fmt.Sprintf("the service at %s does not have the root certificate that the code names", code.URL),
			Hint:    "do not go on: the code is of another service, or somebody stands between; ask the operator",
		}
	}
	return roots[i], nil
}

func get(ctx context.Context, hc *http.Client, location string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d", location, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", location, maxFile)
	}
	return data, nil
}

// expectation is what an answer must agree with.
type expectation struct {
	issuer   string
	clientID string // empty at enrolment: the answer tells
	endpoint string // the token endpoint, empty to keep what the answer says
	key      crypto.Signer
	root     *x509.Certificate
	now      time.Time
}

// accept turns the service's answer into files, after checking that the certificate is for our key, from our root and
// for the client that the answer names.
func accept(a pki.EnrollResponse, want expectation) (Files, error) {
	if err := pki.CheckClientID(a.ClientID); err != nil {
		return Files{}, err
	}
	if want.clientID != "" && a.ClientID != want.clientID {
		return Files{}, fmt.Errorf("the answer is for the client %q", a.ClientID)
	}
	if a.Issuer != want.issuer {
		return Files{}, fmt.Errorf("the answer names the issuer %q", a.Issuer)
	}
	for _, location := range []string{a.MTLSURL, a.TokenEndpoint} {
		if _, err := originOf(location); err != nil {
			return Files{}, err
		}
	}
	if want.endpoint != "" && a.TokenEndpoint != want.endpoint {
		return Files{}, fmt.Errorf("the answer's token endpoint %q is not the metadata's", a.TokenEndpoint)
	}
	chain, err := mtls.ParseCertificates([]byte(a.Certificate))
	if err != nil {
		return Files{}, fmt.Errorf("certificate: %w", err)
	}
	roots, err := mtls.ParseCertificates([]byte(a.Roots))
	if err != nil {
		return Files{}, fmt.Errorf("roots: %w", err)
	}
	if !slices.ContainsFunc(roots, want.root.Equal) {
		return Files{}, errors.New("our root is not among the answer's roots")
	}
	if err := checkCertificate(chain, a.ClientID, want); err != nil {
		return Files{}, err
	}
	return Files{
		Issuer: a.Issuer, ClientID: a.ClientID, MTLSURL: a.MTLSURL, TokenEndpoint: a.TokenEndpoint,
		Roots: roots, Chain: chain, Key: want.key,
	}, nil
}

func checkCertificate(chain []*x509.Certificate, clientID string, want expectation) error {
	if len(chain) == 0 {
		return errors.New("there is no certificate in the answer")
	}
	leaf := chain[0]
	if !sameKey(leaf.PublicKey, want.key.Public()) {
		return errors.New("the certificate is for another key")
	}
	intermediates := poolOf(chain[1:])
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         poolOf([]*x509.Certificate{want.root}),
		Intermediates: intermediates,
		CurrentTime:   want.now,
		// Any one of these: a certificate may be registered for servers only.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	return checkClientURI(leaf, clientID)
}

// checkClientURI demands exactly one SPIFFE ID, of the form that our authority gives to this client.
func checkClientURI(leaf *x509.Certificate, clientID string) error {
	found := 0
	for _, u := range leaf.URIs {
		if u.Scheme != "spiffe" {
			continue
		}
		if u.String() != pki.ClientURI(u.Host, clientID) {
			return errors.New("the certificate is for another client")
		}
		found++
	}
	if found != 1 {
		return errors.New("the certificate does not name the client")
	}
	return nil
}
