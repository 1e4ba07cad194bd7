// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Package profile keeps a client's identity in a folder: who it is, whom it trusts, its certificate and key. It is for
// the verbs of the command line and for the server, which lays down its operator's folder itself. It enrols with a
// one-time code or takes a certificate of another CA, renews over mutual TLS what the service's own CA issued, and
// holds the operators' clients of the admin API and of the break-glass socket.
//
// A profile folder looks so:
//
//	profile.json             issuer, client id and endpoints
//	roots.pem                the roots that vouch for the service
//	cert.pem, key.pem        links through current, for programs that want file names
//	current -> gen-000002    the generation in use, one link swapped by rename
//	gen-000001, gen-000002   the last two generations: cert.pem and key.pem (0600)
//	pending/                 keys of requests whose answer has not arrived yet
//	lock                     held by whoever changes the folder
//
// Certificate and key are never mismatched, whenever the program or the machine stops. A key is on disk before the
// request for it is sent, so that a second run completes the first.
//
// It refuses: to overwrite a profile of another root, issuer or client unasked, to trust a service whose root is not
// the one in the code, to use a certificate that is not for our key, client and root, and files that are incomplete.
package profile

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/client"
)

// Error is a failure told to a human: one line for what was wrong, one for what to do.
type Error struct {
	// Message says what was wrong.
	Message string
	// Hint says what to do; may be empty.
	Hint string
	// Err is the cause, for errors.Is; may be nil. Its text is part of Message where it helps.
	Err error
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// LapsedError says that the profile's certificate has expired, so that it cannot renew itself any more.
type LapsedError struct {
	// Dir is the profile's folder, ClientID its client, NotAfter the end of its certificate.
	Dir, ClientID string
	NotAfter      time.Time
	// External says that the certificate came from elsewhere, where the next one has to come from too.
	External bool
}

// Error says that the profile has lapsed and when.
func (e *LapsedError) Error() string {
	return fmt.Sprintf("the profile %s has lapsed: the certificate of %q expired at %s", e.Dir, e.ClientID,
		e.NotAfter.UTC().Format(time.RFC3339))
}

// Hint names the commands that bring the profile back.
func (e *LapsedError) Hint() string {
	if e.External {
		return newFilesHint(e.Dir)
	}
	return fmt.Sprintf("ask an operator for a new code (certbound client invite %s), "+
		"then: certbound enroll - --profile %s", e.ClientID, ShellWord(e.Dir))
}

// APIError is a refusal by the service, in the form that all its endpoints answer with.
type APIError struct {
	// Status is the HTTP status.
	Status int
	// Code is the error code, Description and Hint are for humans; each may be empty.
	Code, Description, Hint string
	// Scope is what the token lacks, with insufficient_scope; may be empty.
	Scope string
}

// Error returns the description, or what is known without one.
func (e *APIError) Error() string {
	switch {
	case e.Description != "":
		return e.Description
	case e.Code != "":
		return fmt.Sprintf("the service answered %d %s", e.Status, e.Code)
	default:
		return fmt.Sprintf("the service answered %d", e.Status)
	}
}

// Profile is an opened profile folder. It is safe for concurrent use.
type Profile struct {
	dir     string
	info    info
	roots   []*x509.Certificate
	keyPair *mtls.KeyPair
	exposed string // who else can read the key; empty: nobody

	mu  sync.Mutex // serialises renewals of this value; the folder's lock serialises processes
	key crypto.Signer
}

// info is profile.json.
type info struct {
	Issuer        string `json:"issuer"`
	ClientID      string `json:"client_id"`
	MTLSURL       string `json:"mtls_url"`
	TokenEndpoint string `json:"token_endpoint"`
	// External is true for a certificate that the service's own CA did not issue, and so cannot renew.
	External bool `json:"external_certificate,omitempty"`
}

// Open reads a profile folder. A lapsed one gives a *LapsedError, a missing or damaged one an *Error that names the
// file. Open waits for nobody: a renewal under way is seen as not yet done.
func Open(dir string) (*Profile, error) {
	p, err := load(dir)
	if err != nil {
		return nil, err
	}
	if err := p.checkDates(time.Now()); err != nil {
		return nil, err
	}
	return p, nil
}

// Read reads a profile folder as Open does, without judging the certificate's dates: for whoever only looks at it.
func Read(dir string) (*Profile, error) { return load(dir) }

// Lapsed returns the *LapsedError of a profile whose certificate has expired by now, else nil.
func (p *Profile) Lapsed(now time.Time) *LapsedError {
	lapsed, _ := errors.AsType[*LapsedError](p.checkDates(now))
	return lapsed
}

// Warning says in one line that other users can read the private key; empty when they cannot.
func (p *Profile) Warning() string { return p.exposed }

func (p *Profile) checkDates(now time.Time) error {
	leaf := p.Certificate()
	if now.After(leaf.NotAfter) {
		return &LapsedError{Dir: p.dir, ClientID: p.info.ClientID, NotAfter: leaf.NotAfter, External: p.info.External}
	}
	if now.Before(leaf.NotBefore) {
		return &Error{
			Message: fmt.Sprintf("the certificate in %s is not valid before %s", p.dir,
				leaf.NotBefore.UTC().Format(time.RFC3339)),
			Hint: "set this machine's clock",
		}
	}
	return nil
}

// Dir returns the folder.
func (p *Profile) Dir() string { return p.dir }

// Issuer returns the issuer's URL.
func (p *Profile) Issuer() string { return p.info.Issuer }

// ClientID returns the client's id.
func (p *Profile) ClientID() string { return p.info.ClientID }

// MTLSURL returns the base of the listener that asks for certificates, without a trailing slash.
func (p *Profile) MTLSURL() string { return strings.TrimSuffix(p.info.MTLSURL, "/") }

// TokenEndpoint returns where tokens are had.
func (p *Profile) TokenEndpoint() string { return p.info.TokenEndpoint }

// External reports whether the certificate came from elsewhere than the service's own CA: it does not renew itself.
func (p *Profile) External() bool { return p.info.External }

// Certificate returns the certificate in use.
func (p *Profile) Certificate() *x509.Certificate { return p.keyPair.Current().Leaf }

// KeyPair returns the key pair; it follows the renewals made through this Profile.
func (p *Profile) KeyPair() *mtls.KeyPair { return p.keyPair }

// Roots returns a new pool of the roots that vouch for the service.
func (p *Profile) Roots() *x509.CertPool { return poolOf(p.roots) }

// Token fetches a token for the given scopes and resource; without scopes the service gives all that the client may
// have there, and "" leaves the resource to the service. A refusal is an *APIError.
func (p *Profile) Token(ctx context.Context, scopes []string, resource string) (client.Token, error) {
	var resources []string
	if resource != "" {
		resources = []string{resource}
	}
	t, err := p.transport(ctx, scopes, resources, nil)
	if err != nil {
		return client.Token{}, err
	}
	defer t.Close()
	token, err := t.Token(ctx)
	if err != nil {
		return client.Token{}, p.explain(err)
	}
	return token, nil
}

// transport makes a token client from what the folder knows; it asks the network nothing.
func (p *Profile) transport(ctx context.Context, scopes, resources, origins []string) (*client.Transport, error) {
	t, err := client.New(ctx, client.Config{
		Issuer:    p.info.Issuer,
		ClientID:  p.info.ClientID,
		KeyPair:   p.keyPair,
		Roots:     p.Roots(),
		Scopes:    scopes,
		Resources: resources,
		Origins:   origins,
		Metadata:  &client.Metadata{Issuer: p.info.Issuer, TokenEndpoint: p.info.TokenEndpoint},
	})
	if err != nil {
		return nil, &Error{
			Message: fmt.Sprintf("profile %s: %v", p.dir, err),
			Hint:    "enrol again, or repair profile.json",
			Err:     err,
		}
	}
	return t, nil
}

// Resolve returns the first of the flag, the environment's value and the default that is not empty.
func Resolve(flag, environment, fallback string) string {
	return cmp.Or(flag, environment, fallback)
}

// originOf is scheme and host of an URL: the paths of the service never move under an issuer's path.
func originOf(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q is not an https URL", s)
	}
	return "https://" + u.Host, nil
}

func poolOf(roots []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	return pool
}
