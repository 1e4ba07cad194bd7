// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/fetch"
	"github.com/certbound/certbound/mtls/mtlstest"
)

// site is a server with TLS on a loopback address, and what reached it.
type site struct {
	url, host string // host with port
	ca        *mtlstest.CA
	requests  atomic.Int64
	accepted  atomic.Int64 // connections
}

type countingListener struct {
	net.Listener
	accepted *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

func serve(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	s := &site{ca: mtlstest.NewCA(t, "web")}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		handler(w, r)
	}))
	srv.Listener = countingListener{srv.Listener, &s.accepted}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{s.ca.Issue(t, mtlstest.ServerLeaf())}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.url, s.host = srv.URL, srv.Listener.Addr().String()
	return s
}

// fetcher trusts the site, and may go to it when private is true.
func (s *site) fetcher(private bool) *fetch.Fetcher {
	c := fetch.Config{Roots: s.ca.Pool(), Timeout: 5 * time.Second}
	if private {
		c.AllowPrivate = []string{s.host}
	}
	return fetch.New(c)
}

func write(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func TestGet(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "Cookie", "Accept-Encoding", "Referer"} {
			if r.Header.Get(name) != "" {
				t.Errorf("%s was sent", name)
			}
		}
		_, _ = fmt.Fprint(w, r.Method, r.URL.RequestURI(), r.Header.Get("Accept"))
	})
	f := s.fetcher(true)
	for range 2 {
		got, err := f.Get(t.Context(), s.url+"/keys?x=1", 100, "application/jwk-set+json", "application/json")
		if want := "GET/keys?x=1application/jwk-set+json, application/json"; err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if s.accepted.Load() != 2 {
		t.Errorf("%d connections for two fetches: an address is only judged when it is dialled", s.accepted.Load())
	}
}

// CA-19: RFC 8705, Section 2.2.2: a jwks_uri is fetched by https only, and nothing is asked at an address on this
// machine, whatever it is called.
func TestRFC8705_2_2_2_LoopbackIsNotAsked(t *testing.T) {
	t.Parallel()
	s := serve(t, write("secret"))
	f := s.fetcher(false)
	port := s.host[strings.LastIndex(s.host, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost", "localhost.", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "127.1.2.3"} {
		if got, err := f.Get(t.Context(), "https://"+host+port+"/", 100); err == nil {
			t.Errorf("%s: got %q", host, got)
		}
		if got, err := f.GetSigned(t.Context(), "http://"+host+port+"/", 100); err == nil {
			t.Errorf("%s: got %q", host, got)
		}
	}
	if s.accepted.Load() != 0 {
		t.Error("a connection was made")
	}
	if _, err := f.Get(t.Context(), s.url, 100); !errors.Is(err, fetch.ErrRefused) || strings.Contains(err.Error(), "secret") {
		t.Errorf("error is %v", err)
	}
}

// CA-19: RFC 8705, Section 2.2.2: the address of clouds' metadata and others of the link are refused even for a host
// that may be private.
func TestRFC8705_2_2_2_LinkLocalIsNeverAsked(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"169.254.169.254", "[fe80::1]", "[fe80::1%25lo]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]",
		"[2002:7f00:1::]", "[64:ff9b::7f00:1]", "255.255.255.255", "224.0.0.1", "[ff02::1]", "0.0.0.0"} {
		f := fetch.New(fetch.Config{AllowPrivate: []string{strings.ReplaceAll(host, "%25", "%")}, Timeout: time.Second})
		if _, err := f.Get(t.Context(), "https://"+host+"/", 100); !errors.Is(err, fetch.ErrRefused) {
			t.Errorf("%s: error is %v", host, err)
		}
	}
}

// CA-19: RFC 8705, Section 2.2.2: only https, and for documents with a signature of their own http too.
func TestRFC8705_2_2_2_Scheme(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(write("list"))
	t.Cleanup(plain.Close)
	f := fetch.New(fetch.Config{AllowPrivate: []string{"127.0.0.1"}})
	if got, err := f.Get(t.Context(), plain.URL, 100); !errors.Is(err, fetch.ErrRefused) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := f.GetSigned(t.Context(), plain.URL, 100); err != nil || string(got) != "list" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", "ftp://127.0.0.1/", "file:///etc/passwd", "//127.0.0.1/", "127.0.0.1", "https:127.0.0.1", "https://",
		"https://:443/", "https://u@127.0.0.1/", "https://u:topsecret@127.0.0.1/", "https://127.0.0.1/#f", "https://u:topsecret@[::1/",
		"https://127.0.0.1/" + strings.Repeat("a", 2048), "gopher://127.0.0.1/"} {
		if _, err := f.GetSigned(t.Context(), bad, 100); !errors.Is(err, fetch.ErrRefused) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: error is %v", bad, err)
		}
	}
}

// CA-19: RFC 8705, Section 2.2.2: a redirect is not followed, neither within the site nor to http nor inwards.
func TestRFC8705_2_2_2_Redirect(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := serve(t, nil)
		target := s.url + "/elsewhere"
		s2 := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, status) })
		f := fetch.New(fetch.Config{Roots: s2.ca.Pool(), AllowPrivate: []string{s.host, s2.host}})
		_, err := f.Get(t.Context(), s2.url, 1<<20)
		if err == nil || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("%d: error is %v", status, err)
		}
		if s.accepted.Load() != 0 || s2.requests.Load() != 1 {
			t.Errorf("%d: it was followed", status)
		}
	}
}

// Hosts are those that the operator named, if he named any.
func TestAllowedHosts(t *testing.T) {
	t.Parallel()
	s := serve(t, write("keys"))
	_, port, _ := net.SplitHostPort(s.host)
	for _, tt := range []struct {
		allowed, private []string
		url              string
		want             bool
	}{
		{nil, []string{"127.0.0.1"}, s.url, true},
		{nil, []string{s.host}, s.url, true},
		{nil, []string{"127.0.0.1:1"}, s.url, false},
		{nil, []string{"localhost"}, s.url, false},
		{nil, []string{"LocalHost."}, "https://localhost:" + port, true},
		{nil, []string{"localhost"}, "https://LOCALHOST:" + port, true},
		{[]string{"other.example"}, []string{s.host}, s.url, true}, // named as private is named
		{[]string{s.host}, nil, s.url, false},                      // named, but not as private
		{[]string{"other.example"}, nil, s.url, false},
	} {
		f := fetch.New(fetch.Config{Roots: s.ca.Pool(), AllowedHosts: tt.allowed, AllowPrivate: tt.private})
		if _, err := f.Get(t.Context(), tt.url, 100); (err == nil) != tt.want {
			t.Errorf("allowed %v, private %v: %s: error is %v", tt.allowed, tt.private, tt.url, err)
		}
	}
	f := fetch.New(fetch.Config{AllowedHosts: []string{"keys.example", "[2001:DB8::1]:8443"}})
	for _, host := range []string{"other.example", "keys.example.other.example", "xkeys.example", "[2001:db8::1]", "[2001:db8::1]:443"} {
		_, err := f.Get(t.Context(), "https://"+host+"/", 100)
		if !errors.Is(err, fetch.ErrRefused) || !strings.Contains(err.Error(), "not among those") {
			t.Errorf("%s: error is %v", host, err)
		}
	}
	_, err := f.Get(t.Context(), "https://[2001:db8:0::1]:8443/", 100) // named, but leads nowhere
	if !errors.Is(err, fetch.ErrRefused) || !strings.Contains(err.Error(), "Internet") {
		t.Errorf("error is %v", err)
	}
}

// CA-19: RFC 8705, Section 2.2.2: a name that has a public address when it is looked up first and a private one when
// it is dialled gains nothing: the dialled address is what is judged.
func TestRFC8705_2_2_2_Rebinding(t *testing.T) {
	t.Parallel()
	s := serve(t, write("secret"))
	_, port, _ := net.SplitHostPort(s.host)
	for name, answers := range map[string][][]byte{
		"private":             {{127, 0, 0, 1}},
		"rebound":             {{192, 0, 2, 1}, {127, 0, 0, 1}},
		"metadata":            {{169, 254, 169, 254}},
		"mapped":              {net.ParseIP("::ffff:127.0.0.1").To16()},
		"loopback of IPv6":    {net.IPv6loopback},
		"network translation": {net.ParseIP("64:ff9b::7f00:1")},
		"6to4":                {net.ParseIP("2002:7f00:1::1")},
	} {
		resolver, asked := nameServer(t, answers)
		f := fetch.New(fetch.Config{Roots: s.ca.Pool(), Resolver: resolver, Timeout: 2 * time.Second})
		for range len(answers) + 1 {
			if got, err := f.Get(t.Context(), "https://keys.example:"+port+"/", 100); err == nil {
				t.Errorf("%s: got %q", name, got)
			}
		}
		if asked.Load() == 0 {
			t.Errorf("%s: the name was not resolved", name)
		}
	}
	if s.accepted.Load() != 0 {
		t.Error("a connection was made")
	}
	// The same name reaches the site when the operator says that it may: the refusals above were of the address.
	resolver, _ := nameServer(t, [][]byte{{127, 0, 0, 1}})
	f := fetch.New(fetch.Config{Roots: s.ca.Pool(), Resolver: resolver, AllowPrivate: []string{"keys.example"}})
	if _, err := f.Get(t.Context(), "https://keys.example:"+port+"/", 100); s.accepted.Load() != 1 {
		t.Errorf("error is %v", err) // the certificate is not for this name, but it was dialled
	}
}

// nameServer is a real name server on a loopback address that gives its answers in turn, the last one for ever.
func nameServer(t *testing.T, answers [][]byte) (*net.Resolver, *atomic.Int64) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var asked atomic.Int64
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := answer(buf[:n], answers, &asked); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}, &asked
}

// answer makes a reply of RFC 1035, Section 4, to a query with one question.
func answer(query []byte, answers [][]byte, asked *atomic.Int64) []byte {
	end := 12 + bytes.IndexByte(query[12:], 0) + 5
	if end > len(query) {
		return nil
	}
	address := answers[min(int(asked.Load()), len(answers)-1)]
	kind := query[end-3]
	want := map[int]byte{4: 1, 16: 28}[len(address)]
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	if kind != want {
		return reply // no address of this kind
	}
	asked.Add(1)
	reply[7] = 1
	reply = append(reply, 0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, byte(len(address)))
	return append(reply, address...)
}

// CA-19: RFC 8705, Section 2.2.2: a body is read to the limit and no further, with or without an announced length.
func TestRFC8705_2_2_2_HugeBody(t *testing.T) {
	t.Parallel()
	var written atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced" {
			w.Header().Set("Content-Length", "1073741824")
		}
		block := make([]byte, 1<<16)
		for range 1 << 14 {
			n, err := w.Write(block)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	f := s.fetcher(true)
	for _, path := range []string{"/", "/announced"} {
		if got, err := f.Get(t.Context(), s.url+path, 1000); err == nil || !strings.Contains(err.Error(), "longer than 1000 bytes") {
			t.Errorf("%s: got %d bytes, %v", path, len(got), err)
		}
	}
	if n := written.Load(); n > 32<<20 { // what socket buffers take
		t.Errorf("%d bytes were taken", n)
	}
	exact := serve(t, write("12345"))
	for limit, want := range map[int64]bool{4: false, 5: true, 0: false, -1: false} {
		if _, err := exact.fetcher(true).Get(t.Context(), exact.url, limit); (err == nil) != want {
			t.Errorf("limit %d: error is %v", limit, err)
		}
	}
}

// CA-19: RFC 8705, Section 2.2.2: whoever is slow is cut off, be it in the header or in the body.
func TestRFC8705_2_2_2_SlowBody(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"header", "body"} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if part == "body" {
				_, _ = io.WriteString(w, "{")
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		f := fetch.New(fetch.Config{Roots: s.ca.Pool(), AllowPrivate: []string{s.host}, Timeout: 200 * time.Millisecond})
		begun := time.Now()
		if _, err := f.Get(t.Context(), s.url, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error is %v", part, err)
		}
		if d := time.Since(begun); d > 3*time.Second {
			t.Errorf("%s: it took %v", part, d)
		}
	}
}

// CA-19: RFC 8705, Section 2.2.2: nothing is decompressed, so nothing can grow.
func TestRFC8705_2_2_2_CompressedBody(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 8<<20))
	_ = z.Close()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", strings.TrimPrefix(r.URL.Path, "/"))
		_, _ = w.Write(bomb.Bytes())
	})
	for coding, want := range map[string]bool{"gzip": false, "br": false, "identity": true, "": true} {
		got, err := s.fetcher(true).Get(t.Context(), s.url+"/"+coding, 1<<20)
		if (err == nil) != want || want && !bytes.Equal(got, bomb.Bytes()) {
			t.Errorf("%q: got %d bytes, %v", coding, len(got), err)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	if _, err := s.fetcher(true).Get(t.Context(), s.url+"/?key=topsecret", 100); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error is %v", err)
	}
}

// A server that cannot prove its name tells nothing, and an error shows no more of the URL than the host.
func TestServerIsVerified(t *testing.T) {
	t.Parallel()
	s := serve(t, write("keys"))
	f := fetch.New(fetch.Config{Roots: mtlstest.NewCA(t, "other").Pool(), AllowPrivate: []string{s.host}})
	_, err := f.Get(t.Context(), s.url+"/?key=topsecret", 100)
	if err == nil || strings.Contains(err.Error(), "topsecret") || !strings.Contains(err.Error(), s.host) {
		t.Errorf("error is %v", err)
	}
	if s.requests.Load() != 0 {
		t.Error("a request was sent")
	}
}

// A proxy named in the environment would dial for us, unjudged.
func TestNoProxy(t *testing.T) {
	proxy := serve(t, write("proxied"))
	t.Setenv("HTTP_PROXY", "http://"+proxy.host)
	t.Setenv("HTTPS_PROXY", "http://"+proxy.host)
	f := fetch.New(fetch.Config{Timeout: time.Second})
	_, _ = f.GetSigned(t.Context(), "http://192.0.2.1/", 100)
	_, _ = f.Get(t.Context(), "https://192.0.2.1/", 100)
	if proxy.accepted.Load() != 0 {
		t.Error("the proxy was used")
	}
}

// Fetches wait for their turn no longer than their caller.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f := s.fetcher(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	for range 20 {
		go func() {
			_, _ = f.Get(ctx, s.url, 100)
			done <- struct{}{}
		}()
	}
	for s.requests.Load() < 8 {
		select {
		case <-t.Context().Done():
			t.Fatal("they do not begin")
		case <-time.After(time.Millisecond):
		}
	}
	if n := s.accepted.Load(); n > 8 {
		t.Errorf("%d fetches at once", n)
	}
	cancel()
	for range 20 {
		<-done
	}
	if n := s.accepted.Load(); n > 8 {
		t.Errorf("%d fetches were made", n)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	u, err := fetch.Parse("https://keys.example/a?b", "https")
	if want := (&url.URL{Scheme: "https", Host: "keys.example", Path: "/a", RawQuery: "b"}); err != nil || *u != *want {
		t.Errorf("got %v, %v", u, err)
	}
}
