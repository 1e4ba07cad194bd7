// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// Command oauth2 is a client of Certbound made with golang.org/x/oauth2/clientcredentials and nothing of ours, for
// scripts/interop/run: it gets a token with one certificate and calls a resource server with that token on a connection
// of another. It reads the environment and prints what came of it: "token CODE" or "token ok, call CODE", where a code is
// ok or a registered error code.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "oauth2:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	asking, err := newClient(os.Getenv("TOKEN_CERT"), os.Getenv("TOKEN_KEY"))
	if err != nil {
		return err
	}
	endpoint, err := tokenEndpoint(asking, os.Getenv("ISSUER"))
	if err != nil {
		return err
	}
	config := clientcredentials.Config{
		ClientID:  os.Getenv("CLIENT_ID"),
		TokenURL:  endpoint,
		Scopes:    []string{os.Getenv("SCOPE")},
		AuthStyle: oauth2.AuthStyleInParams, // client_id in the form; the certificate authenticates
	}
	token, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, asking))
	if refusal, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		fmt.Println("token", refusal.ErrorCode)
		return nil
	}
	if err != nil {
		return err
	}
	calling, err := newClient(os.Getenv("CALL_CERT"), os.Getenv("CALL_KEY"))
	if err != nil {
		return err
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, calling)
	resp, err := oauth2.NewClient(ctx, oauth2.StaticTokenSource(token)).Post(os.Getenv("RESOURCE_URL"), "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var body struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return fmt.Errorf("the resource server answered %s: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK && body.Error == "" {
		return fmt.Errorf("the resource server answered %s without a code", resp.Status)
	}
	fmt.Println("token ok, call", cmp.Or(body.Error, "ok"))
	return nil
}

// newClient returns a client that trusts the service's roots and shows a certificate, or none where no file is named.
func newClient(certFile, keyFile string) (*http.Client, error) {
	pem, err := os.ReadFile(os.Getenv("ROOTS"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("ROOTS holds no certificate")
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}, nil
}

// tokenEndpoint reads the service's metadata (RFC 8414), and in them the alias for clients with certificates (RFC 8705,
// Section 5) if there is one.
func tokenEndpoint(client *http.Client, issuer string) (string, error) {
	resp, err := client.Get(issuer + "/.well-known/oauth-authorization-server")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var metadata struct {
		TokenEndpoint string `json:"token_endpoint"`
		Aliases       struct {
			TokenEndpoint string `json:"token_endpoint"`
		} `json:"mtls_endpoint_aliases"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&metadata); err != nil {
		return "", fmt.Errorf("metadata: %w", err)
	}
	return cmp.Or(metadata.Aliases.TokenEndpoint, metadata.TokenEndpoint), nil
}
