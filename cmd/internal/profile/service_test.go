// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// service is the part of Certbound that a profile talks to, over real TLS: it certifies whom it is told to, with the
// rules of enrolment and renewal that matter to the client, and can be made to misbehave.
type service struct {
	tb     testing.TB
	root   *mtlstest.CA
	ca     *mtlstest.CA
	public *mtlstest.Running
	mtls   *mtlstest.Running

	mu       sync.Mutex
	code     pki.Code
	redeemed map[[32]byte]pki.EnrollResponse // by key
	renewed  map[[64]byte]pki.EnrollResponse // by parent certificate and key
	requests []string
	leaf     mtlstest.Leaf                            // what certificates look like, apart from key and names
	spoil    func(*pki.EnrollResponse)                // changes an answer before it leaves
	drop     int                                      // so many answers get lost after the work was done
	redirect string                                   // where enrolment is sent
	refuse   func(http.ResponseWriter)                // how enrolment is refused
	issuer   string                                   // in metadata and answers
	admin    func(http.ResponseWriter, *http.Request) // the admin API
	token    func(http.ResponseWriter, *http.Request) // the token endpoint
	whoami   func(http.ResponseWriter, *http.Request)
}

const clientID = "payments"

func newService(tb testing.TB) *service {
	tb.Helper()
	s := &service{
		tb: tb, redeemed: map[[32]byte]pki.EnrollResponse{}, renewed: map[[64]byte]pki.EnrollResponse{},
		root: mtlstest.NewCA(tb, "root"),
	}
	s.ca = s.root.Intermediate(tb, "issuing")
	public := http.NewServeMux()
	public.HandleFunc("GET /pki/roots.pem", func(w http.ResponseWriter, _ *http.Request) {
		s.note("roots")
		_, _ = w.Write(encodeCertificates([]*x509.Certificate{s.root.Certificate()}))
	})
	public.HandleFunc("GET /.well-known/oauth-authorization-server", s.metadata)
	public.HandleFunc("POST /pki/enroll", s.enroll)
	private := http.NewServeMux()
	private.HandleFunc("POST /pki/renew", s.renew)
	private.HandleFunc("POST /oauth2/token", s.tokenEndpoint)
	private.HandleFunc("/admin/v1/", func(w http.ResponseWriter, r *http.Request) { s.admin(w, r) })
	private.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { s.whoami(w, r) })
	s.public = mtlstest.Server(tb, public, s.ca.Issue(tb, mtlstest.ServerLeaf()), mtls.ClientCertificatesIgnored)
	s.mtls = mtlstest.Server(tb, private, s.ca.Issue(tb, mtlstest.ServerLeaf()), mtls.ClientCertificatesRequested)
	s.issuer = s.public.URL
	s.invite()
	return s
}

// invite makes the code that the service accepts from now on, and returns it as an operator would.
func (s *service) invite() string {
	s.tb.Helper()
	code, err := pki.NewCode(sha256.Sum256(s.root.Certificate().Raw), s.public.URL)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code = code
	s.redeemed = map[[32]byte]pki.EnrollResponse{}
	return code.String()
}

func (s *service) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, what)
}

func (s *service) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if r == what {
			n++
		}
	}
	return n
}

func (s *service) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *service) metadata(w http.ResponseWriter, _ *http.Request) {
	s.note("metadata")
	answerJSON(w, http.StatusOK, map[string]any{"issuer": s.issuer, "token_endpoint": s.mtls.URL + "/oauth2/token"})
}

func (s *service) enroll(w http.ResponseWriter, r *http.Request) {
	s.note("enroll")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		s.refuse(w)
		return
	}
	if s.redirect != "" {
		http.Redirect(w, r, s.redirect, http.StatusTemporaryRedirect)
		return
	}
	var request pki.EnrollRequest
	if json.NewDecoder(r.Body).Decode(&request) != nil {
		answerJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	id, csr, signature, err := request.Decode()
	if err != nil || id != s.code.ID || !pki.VerifyRedemption(s.code.PublicKey(), s.public.URL, id, csr, signature) {
		answerJSON(w, http.StatusForbidden, map[string]any{"error": "invalid_grant", "error_description": "unknown code"})
		return
	}
	parsed, hash := s.request(csr)
	if _, known := s.redeemed[hash]; !known {
		if len(s.redeemed) > 0 {
			answerJSON(w, http.StatusForbidden, map[string]any{"error": "invalid_grant", "error_description": "used"})
			return
		}
		s.redeemed[hash] = s.certify(parsed.PublicKey)
	}
	s.send(w, s.redeemed[hash])
}

func (s *service) renew(w http.ResponseWriter, r *http.Request) {
	s.note("renew")
	s.mu.Lock()
	defer s.mu.Unlock()
	peer, err := mtls.PeerFromRequest(r)
	if err != nil || peer.VerifiedBy(s.ca.Anchors(s.tb), time.Now()) != nil {
		answerJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	var request pki.RenewRequest
	if json.NewDecoder(r.Body).Decode(&request) != nil {
		answerJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	csr, err := request.Decode()
	if err != nil {
		answerJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	parsed, hash := s.request(csr)
	parent := peer.Thumbprint()
	key := [64]byte(append(parent[:], hash[:]...))
	if _, known := s.renewed[key]; !known {
		s.renewed[key] = s.certify(parsed.PublicKey)
	}
	s.send(w, s.renewed[key])
}

func (s *service) request(csr []byte) (*x509.CertificateRequest, [32]byte) {
	parsed, err := pki.ParseRequest(csr)
	if err != nil {
		s.tb.Error(err)
		return &x509.CertificateRequest{}, [32]byte{}
	}
	hash, err := pki.KeyHash(parsed.PublicKey)
	if err != nil {
		s.tb.Error(err)
	}
	return parsed, hash
}

// send answers, or loses the answer: the work is done, the client does not learn of it.
func (s *service) send(w http.ResponseWriter, answer pki.EnrollResponse) {
	if s.drop > 0 {
		s.drop--
		panic(http.ErrAbortHandler)
	}
	if s.spoil != nil {
		s.spoil(&answer)
	}
	answerJSON(w, http.StatusOK, answer)
}

func (s *service) certify(pub crypto.PublicKey) pki.EnrollResponse {
	leaf := s.leaf
	leaf.CommonName, leaf.URIs = clientID, []string{pki.ClientURI("x.example", clientID)}
	return s.respond(s.ca, leaf, pub)
}

func (s *service) respond(ca *mtlstest.CA, leaf mtlstest.Leaf, pub crypto.PublicKey) pki.EnrollResponse {
	leaf.Key = publicOnly{pub}
	var chain []*x509.Certificate
	for _, der := range ca.Issue(s.tb, leaf).Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			s.tb.Error(err)
		}
		chain = append(chain, cert)
	}
	return pki.EnrollResponse{
		ClientID: clientID, Issuer: s.issuer, MTLSURL: s.mtls.URL, TokenEndpoint: s.mtls.URL + "/oauth2/token",
		Certificate: string(encodeCertificates(chain)),
		Roots:       string(encodeCertificates([]*x509.Certificate{s.root.Certificate()})),
	}
}

// publicOnly lets the test authority certify a key that it does not have.
type publicOnly struct{ crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.PublicKey }
func (publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no private key")
}

func (s *service) tokenEndpoint(w http.ResponseWriter, r *http.Request) {
	s.note("token")
	s.mu.Lock()
	token := s.token
	s.mu.Unlock()
	if token != nil {
		token(w, r)
		return
	}
	peer, err := mtls.PeerFromRequest(r)
	if err != nil {
		answerJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	_ = r.ParseForm()
	answerJSON(w, http.StatusOK, map[string]any{
		"access_token": peer.Thumbprint().String() + "." + base64.RawURLEncoding.EncodeToString([]byte(r.PostForm.Encode())),
		"token_type":   "Bearer", "expires_in": 600, "scope": r.PostForm.Get("scope"),
	})
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// enrolled returns a profile enrolled at the service.
func (s *service) enrolled(tb testing.TB) *Profile {
	tb.Helper()
	p, err := Enroll(tb.Context(), EnrollOptions{Code: s.invite(), Dir: filepath.Join(tb.TempDir(), "profile")})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// files are a profile made without a service.
func files(tb testing.TB, ca *mtlstest.CA, leaf mtlstest.Leaf) Files {
	tb.Helper()
	cert := ca.Issue(tb, leaf)
	return Files{
		Issuer: "https://issuer.example", ClientID: clientID, MTLSURL: "https://issuer.example:9443",
		TokenEndpoint: "https://issuer.example:9443/oauth2/token",
		Roots:         []*x509.Certificate{ca.Certificate()}, Chain: []*x509.Certificate{cert.Leaf},
		Key: cert.PrivateKey.(crypto.Signer),
	}
}

func write(tb testing.TB, dir string, f Files) {
	tb.Helper()
	if err := Write(context.Background(), dir, f); err != nil {
		tb.Fatal(err)
	}
}

// wantHint checks that an error tells the human what was wrong and what to do, in one line each.
func wantHint(tb testing.TB, err error) (message, hint string) {
	tb.Helper()
	if err == nil {
		tb.Error("no error")
		return "", ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		message, hint = e.Message, e.Hint
	} else if e, ok := errors.AsType[*APIError](err); ok {
		message, hint = e.Error(), e.Hint
	} else if e, ok := errors.AsType[*LapsedError](err); ok {
		message, hint = e.Error(), e.Hint()
	}
	if message == "" || hint == "" {
		tb.Errorf("error %T %v has no message or no hint", err, err)
	}
	for _, s := range []string{message, hint} {
		for _, r := range s {
			if r < ' ' {
				tb.Errorf("%q is not one line", s)
			}
		}
	}
	return message, hint
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// decodeForm gives back the token request that the test's token endpoint has put into its token.
func decodeForm(tb testing.TB, s string) string {
	tb.Helper()
	form, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return string(form)
}
