// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"testing"
)

// serve has a client run resource servers of these resources.
func (s *service) serve(id string, resources ...string) {
	s.servers.change(func(s *servers) { s.of[id] = resources })
}

// about returns the body of a question about a token; further parameters come as name, value, name, value.
func about(id, token string, more ...string) string {
	v := url.Values{"client_id": {id}, "token": {token}}
	for i := 0; i < len(more); i += 2 {
		v.Add(more[i], more[i+1])
	}
	return v.Encode()
}

func accept(types ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header["Accept"] = types }
}

// ask sends a question about a token.
func (s *service) ask(tb testing.TB, cert *tls.Certificate, target, body string, edit ...func(*http.Request)) answer {
	tb.Helper()
	res, err := s.client(tb, cert).Do(request(tb, target, body, edit...))
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	a := answer{status: res.StatusCode, proto: res.Proto, header: res.Header, body: string(raw)}
	if a.status != http.StatusOK {
		a.check(tb)
	}
	return a
}

// introspect asks the introspection endpoint.
func (s *service) introspect(tb testing.TB, cert *tls.Certificate, body string, edit ...func(*http.Request)) answer {
	tb.Helper()
	return s.ask(tb, cert, s.mtlsURL+IntrospectPath, body, edit...)
}
