// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certbound/certbound/cmd/internal/admission"
	"github.com/certbound/certbound/cmd/internal/config"
)

// buildLimits makes the limits that hold for both listeners together.
func (s *service) buildLimits() error {
	exempt, err := prefixes(s.cfg.Limits.Exempt)
	if err != nil {
		return err
	}
	proxies, err := prefixes(s.cfg.Proxy.Trusted)
	if err != nil {
		return err
	}
	l := s.cfg.Limits
	s.limits, err = admission.New(admission.Config{
		Exempt: exempt, Proxies: proxies, HeaderTimeout: s.cfg.TLS.HandshakeTimeout,
		Connections: l.Connections, AddressConnections: l.AddressConnections, Handshakes: l.Handshakes,
		HandshakeRate: l.HandshakeRate, HandshakeTotal: l.HandshakeTotal,
		AnonymousRate: l.AnonymousRate, AnonymousTotal: l.AnonymousTotal, ClientRate: l.ClientRate,
		Logger: s.log,
	})
	if err != nil {
		return err
	}
	return s.metrics.registry.Register(newLimitsCollector(s.limits))
}

func prefixes(texts []string) ([]netip.Prefix, error) {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		var err error
		if list[i], err = config.ParsePrefix(text); err != nil {
			return nil, fmt.Errorf("%q %w", text, err)
		}
	}
	return list, nil
}

// limited is a listener for strangers: everything below TLS, in the handshake and before a handler that is bounded by
// limits is bounded here.
func (s *service) limited(name string, h http.Handler, socket net.Listener, cfg *tls.Config) *running {
	s.limits.ConfigureTLS(cfg)
	server := s.httpServer(s.limits.Handler(h))
	server.ConnContext = s.limits.ConnContext
	return &running{name: name, server: server, listener: s.limits.Listener(socket), tls: cfg}
}

// limitsCollector shows the limiter's counters as metrics.
type limitsCollector struct {
	limits                                                    *admission.Limiter
	connections, handshakes, refused, limited, addressLimited *prometheus.Desc
}

func newLimitsCollector(l *admission.Limiter) *limitsCollector {
	return &limitsCollector{
		limits:      l,
		connections: prometheus.NewDesc("certbound_connections", "Open connections of the public and the mtls listener.", nil, nil),
		handshakes: prometheus.NewDesc("certbound_handshakes_in_flight",
			"Of these, the ones that have not brought a request yet.", nil, nil),
		refused: prometheus.NewDesc("certbound_connections_refused_total",
			"Connections reset before a key was touched for them, by the limit.", []string{"limit"}, nil),
		limited: prometheus.NewDesc("certbound_requests_limited_total",
			"Requests answered with 429, by the limit. They are in no record.", []string{"limit"}, nil),
		addressLimited: prometheus.NewDesc("certbound_address_limits_off",
			"1 while the limits of one address are off because most clients come from it.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *limitsCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *limitsCollector) Collect(ch chan<- prometheus.Metric) {
	stats := c.limits.Stats()
	gauge := func(d *prometheus.Desc, n int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
	}
	gauge(c.connections, stats.Connections)
	gauge(c.handshakes, stats.Handshakes)
	off := 0
	if stats.SwitchedOff {
		off = 1
	}
	gauge(c.addressLimited, off)
	for i, n := range stats.Refused {
		kind, desc := admission.Kind(i), c.refused
		if kind.OfRequests() {
			desc = c.limited
		}
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), kind.String())
	}
}
