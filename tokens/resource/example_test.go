// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package resource_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/resource"
)

// A handler is guarded in three lines, once the issuer's keys are known. The server must listen on TLS that asks for
// client certificates: see mtls.ServerConfig.
func Example() {
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: "https://issuer.example/.well-known/jwks.json"})
	if err != nil {
		log.Fatal(err)
	}
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{
		Issuer:   "https://issuer.example",
		Audience: "https://orders.example",
		Keys:     keys,
	})
	if err != nil {
		log.Fatal(err)
	}
	guard, err := resource.New(resource.Config{Verifier: verifier})
	if err != nil {
		log.Fatal(err)
	}
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := resource.Claims(r.Context())
		fmt.Fprintf(w, "hello %s\n", claims.ClientID)
	})
	mux := http.NewServeMux()
	mux.Handle("/orders", guard.Protect(api, "orders:read"))

	// A request without a token is told what is needed.
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/orders", nil))
	fmt.Println(answer.Code, answer.Header().Get("WWW-Authenticate"))
	// Output: 401 Bearer realm="https://orders.example"
}
