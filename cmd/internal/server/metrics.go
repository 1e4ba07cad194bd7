// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what operators alert on. Labels come from fixed sets only: never an id, a name or anything
// that a caller typed.
type metrics struct {
	registry     *prometheus.Registry
	tokens       prometheus.Counter
	tokenTime    prometheus.Histogram
	refusals     *prometheus.CounterVec
	introspected *prometheus.CounterVec
	certificates *prometheus.CounterVec
	requests     *prometheus.CounterVec
	requestTime  *prometheus.HistogramVec
	panics       prometheus.Counter
	expiry       *prometheus.GaugeVec
	renewFailed  prometheus.Counter
	forks        prometheus.Counter
	pruned       prometheus.Counter
	trustAlarms  prometheus.Counter
	routes       sync.Map // *routeMetrics by listener and route
}

func newMetrics(version string, h *hierarchy) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		tokens: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certbound_tokens_issued_total", Help: "Access tokens issued."}),
		tokenTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certbound_token_duration_seconds", Help: "Time from a token request to its decision.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .25, 1}}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certbound_token_refusals_total", Help: "Token requests refused, by registered error and reason."}, []string{"error", "reason"}),
		introspected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certbound_introspections_total", Help: "Answers to clients that asked about a token, by whether it was active for them."}, []string{"active"}),
		certificates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certbound_certificate_requests_total", Help: "Enrolments and renewals, by outcome."}, []string{"kind", "outcome"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certbound_http_requests_total", Help: "Requests by listener, route and status."}, []string{"listener", "route", "status"}),
		requestTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "certbound_http_request_duration_seconds", Help: "Time to answer a request, by listener and route.",
			Buckets: []float64{.0005, .0025, .01, .05, .25, 1, 5}}, []string{"listener", "route"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certbound_panics_total", Help: "Request handlers that panicked."}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "certbound_certificate_not_after_seconds", Help: "When the service's own certificates expire, in Unix time."}, []string{"certificate"}),
		renewFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certbound_own_renewal_failures_total", Help: "Failed renewals of the service's own certificate or the operator's profile."}),
	}
	m.forks = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "certbound_renewal_forks_total", Help: "Certificates renewed into two live ones with different keys: a sign of theft."})
	m.pruned = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "certbound_inventory_pruned_total", Help: "Certificates that expired longer ago than inventory.keep, removed from the inventory."})
	m.trustAlarms = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "certbound_trust_alarms_total", Help: "Foreign CAs, revocation lists and key sets that could not be used as they are; the log and /readyz name them."})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "certbound_build_info", Help: "Always 1; the label says which version runs."}, []string{"version"})
	m.registry.MustRegister(m.tokens, m.tokenTime, m.refusals, m.introspected, m.certificates, m.requests, m.requestTime,
		m.panics, m.expiry, m.renewFailed, m.forks, m.pruned, m.trustAlarms, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build.WithLabelValues(version).Set(1)
	m.notAfter("root", h.root.NotAfter)
	m.notAfter("issuing", h.issuing.NotAfter)
	return m
}

// TokenIssued implements issuer.Events.
func (m *metrics) TokenIssued(d time.Duration) {
	m.tokens.Inc()
	m.tokenTime.Observe(d.Seconds())
}

// TokenRefused implements issuer.Events.
func (m *metrics) TokenRefused(code, reason string) { m.refusals.WithLabelValues(code, reason).Inc() }

// TokenIntrospected implements issuer.Events.
func (m *metrics) TokenIntrospected(active bool) {
	m.introspected.WithLabelValues(strconv.FormatBool(active)).Inc()
}

// TrustAlarm implements trust.Events. The name goes to the log and not into a label.
func (m *metrics) TrustAlarm(string, string) { m.trustAlarms.Inc() }

func (m *metrics) certificate(kind, outcome string) {
	m.certificates.WithLabelValues(kind, outcome).Inc()
}

// routeMetrics are the requests of one route of one listener. What counts the successful ones is looked up only once.
type routeMetrics struct {
	requests *prometheus.CounterVec // by status
	ok       prometheus.Counter
	time     prometheus.Observer
}

// route returns what counts the requests of a route, of which there is a fixed set.
func (m *metrics) route(listener, route string) *routeMetrics {
	name := [2]string{listener, route}
	if known, ok := m.routes.Load(name); ok {
		return known.(*routeMetrics)
	}
	requests := m.requests.MustCurryWith(prometheus.Labels{"listener": listener, "route": route})
	made, _ := m.routes.LoadOrStore(name, &routeMetrics{
		requests: requests, ok: requests.WithLabelValues(strconv.Itoa(http.StatusOK)),
		time: m.requestTime.WithLabelValues(listener, route),
	})
	return made.(*routeMetrics)
}

func (m *routeMetrics) request(status int, d time.Duration) {
	if status == http.StatusOK {
		m.ok.Inc()
	} else {
		m.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	}
	m.time.Observe(d.Seconds())
}

func (m *metrics) notAfter(certificate string, t time.Time) {
	m.expiry.WithLabelValues(certificate).Set(float64(t.Unix()))
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
