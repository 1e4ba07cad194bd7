// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/resource"
)

// The bodies of these functions are the Go of the README, line by line: TestReadmeGo compares them, the compiler does
// the rest.
var _, _ = readmeResourceServer, readmeClient

func readmeResourceServer(
	issuer, audience string, httpClient *http.Client, keyPair *mtls.KeyPair, api http.Handler, listener net.Listener,
) error {
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: issuer + "/.well-known/jwks.json", Client: httpClient})
	if err != nil {
		return err
	}
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: issuer, Audience: audience, Keys: keys})
	if err != nil {
		return err
	}
	guard, err := resource.New(resource.Config{Verifier: verifier})
	if err != nil {
		return err
	}
	config := mtls.ServerConfig(keyPair, mtls.ClientCertificatesRequested)
	server := &http.Server{Handler: guard.Protect(api, "ledger:write")}
	mtls.ConfigureServer(server, config)
	return server.Serve(mtls.NewListener(listener, config))
}

func readmeClient(ctx context.Context, issuer string, keyPair *mtls.KeyPair, roots *x509.CertPool) error {
	transport, err := client.New(ctx, client.Config{
		Issuer:   issuer,
		ClientID: "payments",
		KeyPair:  keyPair, // mtls.LoadKeyPair("payments/cert.pem", "payments/key.pem")
		Roots:    roots,
		Scopes:   []string{"ledger:write"},
		Origins:  []string{"https://localhost:7443"}, // nobody else is sent the token
	})
	if err != nil {
		return err
	}
	defer transport.Close()
	response, err := (&http.Client{Transport: transport}).Post("https://localhost:7443/entries", "", nil)
	if err != nil {
		return err
	}
	return response.Body.Close()
}
