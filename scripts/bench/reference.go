// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// serveReference serves the reference with the certificate of a profile folder until ctx ends.
func serveReference(ctx context.Context, profile string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
	if err != nil {
		return err
	}
	roots, err := readRoots(profile)
	if err != nil {
		return err
	}
	server, err := newReference(pair, roots)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		_ = server.Close() // nothing is lost
	}()
	fmt.Printf("ready address=%s\n", listener.Addr())
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newReference is the least that a token endpoint over mutual TLS does: TLS 1.3 that demands a certificate of the CA
// and has crypto/tls verify it, a form, one JWT signed with ES256, a JSON answer. It knows no clients, keeps nothing,
// decides nothing and records nothing.
func newReference(pair tls.Certificate, clientCAs *x509.CertPool) (*http.Server, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &http.Server{
		Handler: &reference{key: key},
		TLSConfig: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{pair},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    clientCAs,
		},
	}, nil
}

func readRoots(profile string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(filepath.Join(profile, "roots.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s/roots.pem holds no certificate", profile)
	}
	return roots, nil
}

type reference struct {
	key *ecdsa.PrivateKey
}

type referenceClaims struct {
	Issuer       string            `json:"iss"`
	Subject      string            `json:"sub"`
	ClientID     string            `json:"client_id"`
	Audience     string            `json:"aud"`
	Scope        string            `json:"scope"`
	IssuedAt     int64             `json:"iat"`
	Expires      int64             `json:"exp"`
	ID           string            `json:"jti"`
	Confirmation map[string]string `json:"cnf"`
}

type referenceAnswer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
}

// referenceThumbprint stands for the thumbprint, which the reference is spared: the digest of no certificate.
const referenceThumbprint = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"

func (s *reference) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	if r.Method != http.MethodPost || r.ParseForm() != nil || r.PostForm.Get("grant_type") != "client_credentials" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	token, err := s.token(r.PostForm.Get("client_id"), r.PostForm.Get("scope"))
	if err != nil {
		http.Error(w, "no token", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	answer := referenceAnswer{AccessToken: token, TokenType: "Bearer", ExpiresIn: 600, Scope: r.PostForm.Get("scope")}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *reference) token(clientID, scope string) (string, error) {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	now := time.Now()
	payload, err := json.Marshal(referenceClaims{
		Issuer: "https://localhost:8443", Subject: clientID, ClientID: clientID, Audience: resourceURI, Scope: scope,
		IssuedAt: now.Unix(), Expires: now.Add(10 * time.Minute).Unix(), ID: base64.RawURLEncoding.EncodeToString(id),
		Confirmation: map[string]string{"x5t#S256": referenceThumbprint},
	})
	if err != nil {
		return "", err
	}
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"reference","typ":"at+jwt"}`))
	signed := head + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(signed))
	sigR, sigS, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	sigR.FillBytes(signature[:32])
	sigS.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
