// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"testing"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/tokens"
)

// protocol is one way of reaching the server.
type protocol struct {
	name string
	tls  uint16
	http string
}

var protocols = []protocol{
	{"TLS1.2/HTTP1.1", tls.VersionTLS12, "HTTP/1.1"},
	{"TLS1.2/HTTP2", tls.VersionTLS12, "HTTP/2.0"},
	{"TLS1.3/HTTP1.1", tls.VersionTLS13, "HTTP/1.1"},
	{"TLS1.3/HTTP2", tls.VersionTLS13, "HTTP/2.0"},
}

// change is what may happen to the client "payments" between two of its requests, with the reason that is recorded.
type change struct {
	name, reason string
	change       func(t *testing.T, s *service, cert tls.Certificate)
	enrol        func(t *testing.T, s *service) tls.Certificate // nil: a client of our own CA
}

// enrolled registers the client to which the change will happen.
func (c change) enrolled(t *testing.T, s *service) tls.Certificate {
	t.Helper()
	if c.enrol == nil {
		return s.enrol(t, "payments")
	}
	return c.enrol(t, s)
}

func enrolForeign(t *testing.T, s *service) tls.Certificate {
	t.Helper()
	return s.enrolForeign(t, "payments", s.partner)
}

// enrolOutliving registers a client whose certificate is valid before its authority's and long after it.
func enrolOutliving(t *testing.T, s *service) tls.Certificate {
	t.Helper()
	s.enrolForeign(t, "payments", s.partner)
	return s.partner.Issue(t, mtlstest.Leaf{
		DNSNames:  []string{dnsName("payments")},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
	})
}

func enrolSelfSigned(t *testing.T, s *service) tls.Certificate {
	t.Helper()
	return s.enrolSelfSigned(t, "payments")
}

var changes = slices.Concat(ownChanges, foreignChanges, selfSignedChanges)

var foreignChanges = []change{
	{"foreign: authority replaced by one of its name", "certificate_untrusted",
		func(t *testing.T, s *service, _ tls.Certificate) {
			other := mtlstest.NewCA(t, "partner").Anchors(t)
			s.registry.changeClient("payments", func(c *Client) { c.Anchors = other })
		}, enrolForeign},
	{"foreign: authority removed", "certificate_untrusted", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.changeClient("payments", func(c *Client) { c.Anchors = nil })
	}, enrolForeign},
	{"foreign: revoked", "certificate_revoked", func(t *testing.T, s *service, cert tls.Certificate) {
		s.lists("payments").publish(t, s.partner, time.Hour, cert.Leaf)
	}, enrolForeign},
	{"foreign: list withdrawn", "revocation_unknown", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.lists("payments").withdraw()
	}, enrolForeign},
	{"foreign: list stale", "revocation_unknown", func(t *testing.T, s *service, _ tls.Certificate) {
		s.lists("payments").publish(t, s.partner, 20*time.Minute)
		s.advance(30 * time.Minute)
	}, enrolForeign},
	{"foreign: authority expired", "certificate_untrusted", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(11 * 365 * 24 * time.Hour)
	}, enrolOutliving},
	{"foreign: before the authority's time", "certificate_untrusted", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(-2 * time.Hour)
	}, enrolOutliving},
	{"foreign: expired", "certificate_expired", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(2 * time.Hour)
	}, enrolForeign},
	{"foreign: subject changed", "subject_mismatch", func(t *testing.T, s *service, _ tls.Certificate) {
		other := subjectOf(t, mtls.SANDNS, dnsName("other"))
		s.registry.changeClient("payments", func(c *Client) { c.Subject = other })
	}, enrolForeign},
	{"foreign: client disabled", "client_disabled", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.changeClient("payments", func(c *Client) { c.Disabled = true })
	}, enrolForeign},
}

var selfSignedChanges = []change{
	{"self-signed: certificate removed", "certificate_not_registered", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.set("payments").publish()
	}, enrolSelfSigned},
	{"self-signed: certificate replaced", "certificate_not_registered",
		func(t *testing.T, s *service, cert tls.Certificate) {
			s.set("payments").publish(mint(t, nil, cert, nil, nil))
		}, enrolSelfSigned},
	{"self-signed: expired", "certificate_expired", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(2 * time.Hour)
	}, enrolSelfSigned},
	{"self-signed: client disabled", "client_disabled", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.changeClient("payments", func(c *Client) { c.Disabled = true })
	}, enrolSelfSigned},
	{"self-signed: method changed", "certificate_untrusted", func(t *testing.T, s *service, _ tls.Certificate) {
		anchors := s.ca.Anchors(t)
		s.registry.changeClient("payments", func(c *Client) { c.AuthMethod, c.Anchors = TLSClientAuth, anchors })
	}, enrolSelfSigned},
}

var ownChanges = []change{
	{"revoked", "certificate_revoked", func(_ *testing.T, s *service, cert tls.Certificate) {
		s.registry.changeCertificate(cert, func(c *Certificate) { c.Revoked = true })
	}, nil},
	{"expired", "certificate_expired", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(2 * time.Hour)
	}, nil},
	{"expired in the inventory", "certificate_expired", func(_ *testing.T, s *service, cert tls.Certificate) {
		s.registry.changeCertificate(cert, func(c *Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	}, nil},
	{"before its time", "certificate_not_yet_valid", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.advance(-2 * time.Hour)
	}, nil},
	{"not in the inventory", "certificate_unknown", func(_ *testing.T, s *service, cert tls.Certificate) {
		s.registry.change(func(r *registry) { delete(r.certificates, mtls.ThumbprintOf(cert.Leaf)) })
	}, nil},
	{"client disabled", "client_disabled", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.changeClient("payments", func(c *Client) { c.Disabled = true })
	}, nil},
	{"client removed", "unknown_client", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.change(func(r *registry) { delete(r.clients, "payments") })
	}, nil},
	{"client registered again", "certificate_of_another_generation", func(_ *testing.T, s *service, _ tls.Certificate) {
		s.registry.changeClient("payments", func(c *Client) { c.Generation++ })
	}, nil},
	{"authority removed", "certificate_untrusted", func(t *testing.T, s *service, _ tls.Certificate) {
		other := mtlstest.NewCA(t, "another").Anchors(t)
		s.registry.changeClient("payments", func(c *Client) { c.Anchors = other })
	}, nil},
	{"subject changed", "subject_mismatch", func(t *testing.T, s *service, _ tls.Certificate) {
		other, err := mtls.ParseSubject(mtls.SANURI, "spiffe://test.example/client/other")
		if err != nil {
			t.Fatal(err)
		}
		s.registry.changeClient("payments", func(c *Client) { c.Subject = other })
	}, nil},
}

// dial returns a client that speaks exactly this protocol, with a session cache of its own.
func (s *service) dial(t *testing.T, cert tls.Certificate, p protocol) (*http.Client, *http.Transport) {
	t.Helper()
	kp, err := mtls.NewKeyPair(cert)
	if err != nil {
		t.Fatal(err)
	}
	cfg := mtls.ClientConfig(kp, s.ca.Pool())
	cfg.MinVersion, cfg.MaxVersion = p.tls, p.tls
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: p.http == "HTTP/2.0"}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}, transport
}

// exchange sends a token request and reports whether it went over a connection that was already open, and whether the
// connection's TLS session was resumed.
func (s *service) exchange(t *testing.T, hc *http.Client, p protocol) (a answer, reused, resumed bool) {
	t.Helper()
	return s.exchangeAt(t, hc, p, s.mtlsURL)
}

// exchangeAt is exchange with a listener that may be another one.
func (s *service) exchangeAt(t *testing.T, hc *http.Client, p protocol, base string) (a answer, reused, resumed bool) {
	t.Helper()
	r := request(t, base+TokenPath, ask("payments"))
	trace := &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			reused = i.Reused
			if c, ok := i.Conn.(*tls.Conn); ok {
				resumed = c.ConnectionState().DidResume
				if v := c.ConnectionState().Version; v != p.tls {
					t.Errorf("TLS version %x, want %x", v, p.tls)
				}
			}
		},
	}
	a = do(t, hc, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if a.proto != p.http {
		t.Errorf("protocol %s, want %s", a.proto, p.http)
	}
	return a, reused, resumed
}

// TLS-08, TLS-09: RFC 8705, Section 2: who the client is is judged at every request: whatever changes after the first
// request on a connection refuses the second on that very connection.
func TestRFC8705_2_JudgedOnKeptAliveConnection(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, c := range changes {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				cert := c.enrolled(t, s)
				hc, _ := s.dial(t, cert, p)
				a, _, _ := s.exchange(t, hc, p)
				a.wantToken(t)
				c.change(t, s, cert)
				a, reused, _ := s.exchange(t, hc, p)
				if !reused {
					t.Fatal("the connection was not kept alive, so nothing is shown")
				}
				a.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
				s.wantReason(t, c.reason)
			})
		}
	}
}

// TLS-07: RFC 8446, Section 2.2; RFC 5246, Section 7.3: a resumed session carries the certificate of the first
// handshake, and it is judged anew.
func TestRFC8446_2_2_JudgedOnResumedSession(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, c := range changes {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				cert := c.enrolled(t, s)
				hc, transport := s.dial(t, cert, p)
				a, _, _ := s.exchange(t, hc, p)
				a.wantToken(t)
				c.change(t, s, cert)
				transport.CloseIdleConnections()
				a, reused, resumed := s.exchange(t, hc, p)
				if reused || !resumed {
					t.Fatalf("reused %v, resumed %v: nothing is shown", reused, resumed)
				}
				a.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
				s.wantReason(t, c.reason)
			})
		}
	}
}

// TLS-07: RFC 8446, Section 4.6.1: a session begun on one listener is resumed on no other, neither on the one that asks
// for no certificate nor on one that does: where it could be, it would bring a certificate past that listener's own
// rules. (A client offers its session to every port of a host.)
func TestRFC8446_4_6_1_SessionOfAnotherListener(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, kind := range kinds {
			t.Run(p.name+"/"+kind.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				cert := kind.enrol(t, s, "payments", s.partner)
				second := mtlstest.Server(t, s.TokenHandler(), s.ca.Issue(t, mtlstest.ServerLeaf()),
					mtls.ClientCertificatesRequested)
				// Configurations made per client could share ticket keys and differ in whom they trust.
				if second.Config.ClientCAs != nil || second.Config.GetConfigForClient != nil {
					t.Error("trust is a matter of the handshake")
				}
				hc, transport := s.dial(t, cert, p)
				a, _, _ := s.exchange(t, hc, p)
				wantBound(t, a, cert, "payments")
				transport.CloseIdleConnections()

				a, _, resumed := s.exchangeAt(t, hc, p, s.public)
				a.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
				if s.wantReason(t, "wrong_listener"); resumed {
					t.Error("the listener that asks for no certificate resumed a session with one")
				}
				a, _, resumed = s.exchangeAt(t, hc, p, second.URL)
				if wantBound(t, a, cert, "payments"); resumed {
					t.Error("a second listener resumed a session of the first")
				}
			})
		}
	}
}

// anyServer offers its one session to every server, whatever name it is asked for.
type anyServer struct{ tls.ClientSessionCache }

func (c anyServer) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }
func (c anyServer) Put(_ string, session *tls.ClientSessionState) {
	c.ClientSessionCache.Put("", session)
}

// TLS-07: RFC 6066, Section 3: a session that is resumed for another server name is still that certificate's, and it is
// judged anew.
func TestRFC6066_3_SessionForAnotherName(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, c := range changes {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				cert := c.enrolled(t, s)
				cache := anyServer{tls.NewLRUClientSessionCache(1)}
				connect := func(name string) *http.Client {
					hc, transport := s.dial(t, cert, p)
					transport.TLSClientConfig.ServerName, transport.TLSClientConfig.ClientSessionCache = name, cache
					return hc
				}
				a, _, _ := s.exchange(t, connect("127.0.0.1"), p)
				wantBound(t, a, cert, "payments")
				a, _, resumed := s.exchange(t, connect("localhost"), p)
				if wantBound(t, a, cert, "payments"); !resumed {
					t.Fatal("the session was not resumed, so nothing is shown")
				}
				c.change(t, s, cert)
				a, _, resumed = s.exchange(t, connect("127.0.0.1"), p)
				a.want(t, http.StatusUnauthorized, tokens.CodeInvalidClient)
				if s.wantReason(t, c.reason); !resumed {
					t.Fatal("the session was not resumed, so nothing is shown")
				}
			})
		}
	}
}

// Without a change, both ways lead to another token, or the two tests above would show nothing.
func TestUnchangedClientIsServedAgain(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, kind := range kinds {
			t.Run(p.name+"/"+kind.name, func(t *testing.T) {
				t.Parallel()
				s := newService(t)
				hc, transport := s.dial(t, kind.enrol(t, s, "payments", s.partner), p)
				for range 2 {
					a, _, _ := s.exchange(t, hc, p)
					a.wantToken(t)
				}
				transport.CloseIdleConnections()
				a, _, resumed := s.exchange(t, hc, p)
				if a.wantToken(t); !resumed {
					t.Error("the session was not resumed")
				}
			})
		}
	}
}

// TLS-09, AT-14: RFC 5280, Section 4.1.2.5: the certificate counts up to its last second, and a token is not given for
// less than one.
func TestRFC5280_4_1_2_5_LastSecond(t *testing.T) {
	t.Parallel()
	s := newService(t)
	peer := mtlstest.PeerOf(s.enrol(t, "payments"))
	end := peer.Certificate().NotAfter
	now := end
	s.now = func() time.Time { return now }
	for left, want := range map[time.Duration]time.Duration{
		time.Minute: time.Minute, 1500 * time.Millisecond: 2 * time.Second, time.Second: time.Second,
	} {
		now = end.Add(-left)
		response, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: peer})
		if err != nil {
			t.Fatalf("%v left: %v", left, err)
		}
		claims := part(t, response.AccessToken, 1)
		if response.ExpiresIn != want || claims["exp"] != jsonNumber(end.Unix()) {
			t.Errorf("%v left: expires_in %v, exp %v, want %v, %v", left, response.ExpiresIn, claims["exp"], want, end.Unix())
		}
	}
	for left, reason := range map[time.Duration]string{
		time.Second - 1: "certificate_expiring", 0: "certificate_expiring", -1: "certificate_expired",
	} {
		now = end.Add(-left)
		_, err := s.Issue(t.Context(), Request{GrantType: ClientCredentials, ClientID: "payments", Peer: peer})
		wantError(t, err, tokens.CodeInvalidClient, reason)
	}
}

// TLS-14: RFC 9113, Section 9.1.1: requests of two connections, interleaved and multiplexed, each see their own
// certificate, under HTTP/1.1 and HTTP/2 alike.
func TestRFC9113_9_1_1_IdentityPerConnection(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			type result struct {
				id, thumbprint, body string
				err                  error
			}
			const clients, each = 3, 8
			results := make(chan result, clients*each)
			for i := range clients {
				id := fmt.Sprint("client-", i)
				cert := s.enrol(t, id)
				hc, _ := s.dial(t, cert, p)
				for range each {
					r := request(t, s.mtlsURL+TokenPath, ask(id))
					go func() {
						body, err := fetch(hc, r)
						results <- result{id, mtls.ThumbprintOf(cert.Leaf).String(), body, err}
					}()
				}
			}
			for range clients * each {
				got := <-results
				if got.err != nil {
					t.Fatal(got.err)
				}
				a := answer{status: http.StatusOK}
				if err := json.Unmarshal([]byte(got.body), &a); err != nil {
					t.Fatal(err)
				}
				claims := part(t, a.Token, 1)
				cnf, _ := claims["cnf"].(map[string]any)
				if claims["sub"] != got.id || cnf["x5t#S256"] != got.thumbprint {
					t.Errorf("%s got the token of %v bound to %v", got.id, claims["sub"], cnf)
				}
			}
		})
	}
}

// fetch returns the body of a successful answer; unlike do it may run on any goroutine.
func fetch(hc *http.Client, r *http.Request) (string, error) {
	res, err := hc.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return string(body), err
}
