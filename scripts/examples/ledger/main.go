// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command ledger is a small resource server: an API that accepts a token only on the connection of the certificate
// that the token is bound to. It is meant to be read and copied.
//
// It runs on a profile folder made by "certbound enroll" for a client registered with --usage both (or server), so
// that the same folder gives it the certificate it serves with, the roots it trusts and the issuer it believes:
//
//	ledger --profile DIR --audience https://ledger.example --listen 127.0.0.1:7443
//
// POST /entries books one entry and needs the scope given by --scope. Nothing else is served but what a client has to know
// to get a token for it (RFC 9728), where the audience is a URL. There is no path on which it would look at a token without
// the certificate of the connection. It follows the issuer's deny feed, and so has
// to be a --server of its resource there: what is revoked is refused at once, and everything is when it cannot know.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/resource"
)

type options struct {
	profile, listen, audience, scope string
}

func main() {
	var o options
	flag.StringVar(&o.profile, "profile", "ledger", "the `folder` made by certbound enroll")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:7443", "the `address` to serve on")
	flag.StringVar(&o.audience, "audience", "", "the resource `URI` that tokens must be meant for")
	flag.StringVar(&o.scope, "scope", "ledger:write", "the `scope` that booking needs")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	p, err := openProfile(o.profile)
	if err != nil {
		return err
	}
	keys, err := p.keys()
	if err != nil {
		return err
	}
	feed, closeFeed, err := p.feed(ctx, keys)
	if err != nil {
		return err
	}
	defer closeFeed()
	handler, err := newHandler(p.Issuer, o, keys, feed)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	// A certificate is asked for and not demanded, so that a caller without one is told what is wrong.
	config := mtls.ServerConfig(p.keyPair, mtls.ClientCertificatesRequested)
	server := &http.Server{Handler: handler, ReadTimeout: 30 * time.Second}
	mtls.ConfigureServer(server, config)
	go p.keyPair.Watch(ctx, time.Minute, func(err error) { slog.Warn("certificate not reloaded", "error", err) })
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()

	fmt.Printf("ready listen=%s audience=%s issuer=%s\n", listener.Addr(), o.audience, p.Issuer)
	if err := server.Serve(mtls.NewListener(listener, config)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// A profile is what the ledger needs from the folder of an enrolled client.
type profile struct {
	Issuer   string `json:"issuer"`
	ClientID string `json:"client_id"`
	MTLSURL  string `json:"mtls_url"`

	keyPair *mtls.KeyPair // renewed in place by "certbound renew"
	roots   *x509.CertPool
	client  *http.Client // trusts the issuer's roots and no other
}

func openProfile(dir string) (*profile, error) {
	data, err := os.ReadFile(filepath.Join(dir, "profile.json"))
	if err != nil {
		return nil, err
	}
	var p profile
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "profile.json"), err)
	}
	p.keyPair, err = mtls.LoadKeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "roots.pem"))
	if err != nil {
		return nil, err
	}
	p.roots = x509.NewCertPool()
	if !p.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: holds no certificate", filepath.Join(dir, "roots.pem"))
	}
	p.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(nil, p.roots), ForceAttemptHTTP2: true},
	}
	return &p, nil
}

// keys are the issuer's signing keys, fetched when they are needed.
func (p *profile) keys() (*tokens.KeySet, error) {
	issuer, err := url.Parse(p.Issuer)
	if err != nil {
		return nil, err
	}
	issuer.Path = "/.well-known/jwks.json" // Certbound's keys are there whatever the issuer's path
	return tokens.NewKeySet(tokens.KeySetConfig{URL: issuer.String(), Client: p.client})
}

// feed follows what the issuer has revoked, until ctx is done or it is closed. It returns when that is known.
func (p *profile) feed(ctx context.Context, keys tokens.Keys) (feed *tokens.DenyFeed, closeFeed func(), err error) {
	ctx, stop := context.WithCancel(ctx)
	bearer, err := client.New(ctx, client.Config{
		Issuer: p.Issuer, ClientID: p.ClientID, KeyPair: p.keyPair, Roots: p.roots, Origins: []string{p.MTLSURL},
		Resources: []string{p.Issuer + "/oauth2/denied"}, Scopes: []string{"denied"},
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	closeFeed = func() { stop(); bearer.Close() }
	feed, err = tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: p.Issuer, URL: p.MTLSURL + "/oauth2/denied", Keys: keys, Client: &http.Client{Transport: bearer},
		Stale: tokens.StaleRefuse, Logger: slog.Default(),
	})
	if err == nil {
		go func() { _ = feed.Run(ctx) }()
		soon, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		err = feed.Wait(soon)
	}
	if err != nil {
		closeFeed()
		return nil, nil, err
	}
	return feed, closeFeed, nil
}

// newHandler returns what is served, behind the guard that checks tokens of the issuer for the audience, and ends requests
// whose token is revoked. The guard sees all paths, so that it can answer for the metadata, too.
func newHandler(issuer string, o options, keys tokens.Keys, feed *tokens.DenyFeed) (http.Handler, error) {
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: issuer, Audience: o.audience, Keys: keys, Denied: feed.Denied})
	if err != nil {
		return nil, err
	}
	config := resource.Config{Verifier: verifier, Realm: "ledger", Logger: slog.Default(), Denials: feed}
	if resource.CheckIdentifier(o.audience) == nil { // a URN has no place for metadata
		config.Metadata = &resource.Metadata{Scopes: []string{o.scope}}
	}
	guard, err := resource.New(config)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /entries", &book{})
	return guard.Protect(mux, o.scope), nil
}

// A book counts the entries booked. It is served behind the guard only, so a request that arrives here bears a valid
// token of the certificate at the other end.
type book struct {
	entries atomic.Int64
}

func (b *book) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	claims, ok := resource.Claims(r.Context())
	if !ok {
		http.Error(w, "served without its guard", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"booked_by": claims.ClientID, "entries": b.entries.Add(1)})
}
