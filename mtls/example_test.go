// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/certbound/certbound/mtls"
)

// A server that knows its clients by the certificates they present.
func Example() {
	kp, err := mtls.LoadKeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := mtls.PeerFromRequest(r)
		if err != nil || peer.CheckValidity(time.Now()) != nil {
			http.Error(w, "no usable certificate", http.StatusUnauthorized)
			return
		}
		fmt.Fprintln(w, peer.Thumbprint())
	})
	inner, err := net.Listen("tcp", "127.0.0.1:9443")
	if err != nil {
		log.Fatal(err)
	}
	cfg := mtls.ServerConfig(kp, mtls.ClientCertificatesRequested)
	srv := &http.Server{Handler: handler}
	mtls.ConfigureServer(srv, cfg)
	log.Fatal(srv.Serve(mtls.NewListener(inner, cfg)))
}

func ExampleSubject_Matches() {
	s, err := mtls.ParseSubject(mtls.SANURI, "spiffe://prod.example/client/payments")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Kind(), s.Matches(nil))
	// Output: tls_client_auth_san_uri false
}
