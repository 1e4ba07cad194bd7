// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// instance is a running service for one test.
type instance struct {
	tb     testing.TB
	data   string
	issuer string
	mtls   string
	debug  string
	stop   func() error
	logs   *syncBuffer
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testConfig is the default configuration on free ports.
func testConfig(tb testing.TB, data string) config.Config {
	tb.Helper()
	port := "127.0.0.1:0"
	cfg, err := config.Load("", nil, config.Overrides{Data: &data, Public: &port, MTLS: &port, Debug: &port})
	if err != nil {
		tb.Fatal(err)
	}
	return cfg
}

// How often, and how far apart, a port that is taken is tried again.
const (
	portTries = 60
	portPause = 500 * time.Millisecond
)

// start runs the service until the test ends or stop is called.
func start(tb testing.TB, cfg config.Config) *instance {
	tb.Helper()
	in, err := tryStart(tb, cfg)
	// A later start wants the ports of the first one, which another test's connections may have meanwhile.
	for try := 0; errors.Is(err, syscall.EADDRINUSE) && try < portTries; try++ {
		time.Sleep(portPause)
		in, err = tryStart(tb, cfg)
	}
	if err != nil {
		tb.Fatalf("the service did not start: %v\n%s", err, in.logs)
	}
	return in
}

func tryStart(tb testing.TB, cfg config.Config) (*instance, error) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	in := &instance{tb: tb, data: cfg.Data, logs: &syncBuffer{}}
	ready, pipe := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := Run(ctx, cfg, Options{
			Stdout: pipe, Version: "test",
			Logger: slog.New(slog.NewTextHandler(in.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		pipe.CloseWithError(errors.Join(err, io.EOF))
		done <- err
	}()
	in.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	tb.Cleanup(func() {
		if err := in.stop(); err != nil {
			tb.Errorf("the service did not stop cleanly: %v", err)
		}
	})
	line := make([]byte, 512)
	n, err := ready.Read(line)
	if err != nil {
		err = in.stop()
		in.stop = func() error { return nil }
		return in, err
	}
	if !strings.HasPrefix(string(line[:n]), "ready issuer=") {
		tb.Fatalf("the service said %q", line[:n])
	}
	var about struct {
		Issuer  string `json:"issuer"`
		MTLSURL string `json:"mtls_url"`
		Debug   string `json:"debug"`
	}
	doc, err := os.ReadFile(filepath.Join(cfg.Data, "serve.json"))
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(doc, &about); err != nil {
		tb.Fatal(err)
	}
	in.issuer, in.mtls, in.debug = about.Issuer, about.MTLSURL, about.Debug
	return in, nil
}

// roots are the anchors that a test client trusts.
func (in *instance) roots() *x509.CertPool {
	in.tb.Helper()
	data, err := os.ReadFile(filepath.Join(in.data, "ca", "root.pem"))
	if err != nil {
		in.tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return pool
}

// operate calls the operators' API with the profile in the data folder.
func (in *instance) operate(method, path string, body, into any) error {
	in.tb.Helper()
	p, err := profile.Open(filepath.Join(in.data, "admin"))
	if err != nil {
		in.tb.Fatal(err)
	}
	op, err := profile.NewOperator(p)
	if err != nil {
		in.tb.Fatal(err)
	}
	return op.Do(in.tb.Context(), method, path, body, into)
}

func (in *instance) mustOperate(method, path string, body, into any) {
	in.tb.Helper()
	if err := in.operate(method, path, body, into); err != nil {
		in.tb.Fatalf("%s %s: %v", method, path, err)
	}
}

// ledger is the resource that the tests' clients use.
const (
	ledger = "https://ledger.test"
	write  = "ledger:write"
)

func (in *instance) addLedger() {
	in.tb.Helper()
	in.mustOperate(http.MethodPost, "/resources", map[string]any{"resource": ledger, "scope": write}, nil)
}

// addClient registers a client and returns its code.
func (in *instance) addClient(id string) pki.Code {
	in.tb.Helper()
	return in.register(map[string]any{"client_id": id, "scope": write})
}

// register registers a client as it is described, and returns its code.
func (in *instance) register(client map[string]any) pki.Code {
	in.tb.Helper()
	var added struct {
		Code string `json:"code"`
	}
	in.mustOperate(http.MethodPost, "/clients", client, &added)
	code, err := pki.ParseCode(added.Code)
	if err != nil {
		in.tb.Fatal(err)
	}
	return code
}

// enrolled registers and enrols a client and returns its certificate.
func (in *instance) enrolled(id string) tls.Certificate {
	in.tb.Helper()
	return in.enrolledWith(map[string]any{"client_id": id, "scope": write})
}

// enrolledWith is enrolled for a client as it is described.
func (in *instance) enrolledWith(client map[string]any) tls.Certificate {
	in.tb.Helper()
	key := newKey(in.tb)
	status, res := in.redeem(in.register(client), key)
	if status != http.StatusOK {
		in.tb.Fatalf("enrolling %v: status %d", client, status)
	}
	return pair(in.tb, res, key)
}

// redeem presents a code with a key.
func (in *instance) redeem(code pki.Code, key crypto.Signer) (int, pki.EnrollResponse) {
	in.tb.Helper()
	return in.certify(in.client(nil), in.issuer+pathEnroll, pki.NewEnrollRequest(code, in.issuer, newCSR(in.tb, key)))
}

// certify posts a request for a certificate.
func (in *instance) certify(c *http.Client, address string, request any) (int, pki.EnrollResponse) {
	in.tb.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		in.tb.Fatal(err)
	}
	res, err := c.Post(address, "application/json", bytes.NewReader(body))
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	var answer pki.EnrollResponse
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
			in.tb.Fatal(err)
		}
	}
	return res.StatusCode, answer
}

// client is an HTTP client with its own connections, showing cert when it is not nil.
func (in *instance) client(cert *tls.Certificate, change ...func(*tls.Config)) *http.Client {
	in.tb.Helper()
	cfg := &tls.Config{RootCAs: in.roots(), ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	h2 := true
	for _, f := range change {
		f(cfg)
		h2 = h2 && len(cfg.NextProtos) == 0
	}
	t := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: h2}
	in.tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

// tokenAnswer is what the token endpoint said.
type tokenAnswer struct {
	Status int
	Token  string `json:"access_token"`
	Error  string `json:"error"`
	Header http.Header
	Reused bool
}

// token asks for a token as client id.
func (in *instance) token(c *http.Client, id string) tokenAnswer {
	in.tb.Helper()
	res, err := c.PostForm(in.mtls+pathToken, url.Values{"grant_type": {"client_credentials"}, "client_id": {id}})
	if err != nil {
		in.tb.Fatal(err)
	}
	defer res.Body.Close()
	answer := tokenAnswer{Status: res.StatusCode, Header: res.Header}
	if res.TLS != nil {
		answer.Reused = res.TLS.DidResume
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		in.tb.Fatal(err)
	}
	return answer
}

// wantRefused checks the answer to a client whose certificate no longer authenticates it.
func wantRefused(tb testing.TB, a tokenAnswer) {
	tb.Helper()
	if a.Status != http.StatusUnauthorized || a.Error != "invalid_client" || a.Token != "" {
		tb.Errorf("got status %d, error %q, token %t; want 401 invalid_client and no token", a.Status, a.Error, a.Token != "")
	}
	if got := a.Header.Get("Content-Type"); got != "application/json" {
		tb.Errorf("content type %q", got)
	}
	if a.Header.Get("WWW-Authenticate") == "" {
		tb.Error("a 401 without WWW-Authenticate")
	}
}

func wantToken(tb testing.TB, a tokenAnswer) {
	tb.Helper()
	if a.Status != http.StatusOK || a.Token == "" {
		tb.Fatalf("got status %d, error %q; want a token", a.Status, a.Error)
	}
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newCSR(tb testing.TB, key crypto.Signer) []byte {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// pair joins an answer's certificate and the key it was asked for with.
func pair(tb testing.TB, res pki.EnrollResponse, key crypto.Signer) tls.Certificate {
	tb.Helper()
	certs, err := mtls.ParseCertificates([]byte(res.Certificate))
	if err != nil {
		tb.Fatal(err)
	}
	out := tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

func thumbprint(cert tls.Certificate) string { return mtls.ThumbprintOf(cert.Leaf).String() }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testConfigWith is testConfig with an issuer of its own.
func testConfigWith(tb testing.TB, data, issuer string) config.Config {
	tb.Helper()
	port := "127.0.0.1:0"
	cfg, err := config.Load("", nil, config.Overrides{Data: &data, Issuer: &issuer, Public: &port, MTLS: &port, Debug: &port})
	if err != nil {
		tb.Fatal(err)
	}
	return cfg
}
