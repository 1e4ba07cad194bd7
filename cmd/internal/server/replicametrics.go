// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/certbound/certbound/cmd/internal/replica"
)

// replicaCollector reads how this replica stands when it is asked.
type replicaCollector struct {
	status func() replica.Status

	remaining, applied, lag, took, failures, lapses, lead, drift, alarm, passages, durable *prometheus.Desc
}

func newReplicaCollector(status func() replica.Status) *replicaCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("certbound_replica_"+name, help, nil, nil)
	}
	return &replicaCollector{
		status:    status,
		remaining: desc("lease_remaining_seconds", "What is left of the lease; 0: there is none, and nothing is granted. Alert on 0 for more than 5 s."),
		applied:   desc("applied_version", "Version of the state that decisions rest on here."),
		lag:       desc("lag_versions", "How many versions the database was seen to be ahead of that. Alert on more than 0 for 5 s."),
		took:      desc("lease_renewal_seconds", "How long the last renewal of the lease took. Alert above 1 s."),
		failures:  desc("lease_renewal_failures_total", "Renewals of the lease that failed."),
		lapses:    desc("lease_lapses_total", "Times that the lease ended before it was renewed. Alert on any increase."),
		lead:      desc("database_clock_offset_seconds", "By how much the database's clock is ahead of this machine's. Above 1 s there is no lease."),
		drift:     desc("clock_drift_seconds", "By how much the time of day moved against the clock since boot between two renewals."),
		alarm:     desc("clock_alarm", "1 while the time of day was so wrong that nothing is granted until it has been right for a while. Alert on 1."),
		passages:  desc("passages", "Answers that were decided and are being written."),
		durable:   desc("database_quorum", "1 when a commit waits for other servers of the database; 0: a failover may undo revocations."),
	}
}

// Describe implements prometheus.Collector.
func (c *replicaCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *replicaCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.status()
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, m := range []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{c.remaining, prometheus.GaugeValue, s.Remaining.Seconds()},
		{c.applied, prometheus.GaugeValue, float64(s.Applied)},
		{c.lag, prometheus.GaugeValue, float64(max(0, s.Newest-s.Applied))},
		{c.took, prometheus.GaugeValue, s.RenewalTook.Seconds()},
		{c.failures, prometheus.CounterValue, float64(s.Failures)},
		{c.lapses, prometheus.CounterValue, float64(s.Lapses)},
		{c.lead, prometheus.GaugeValue, s.DatabaseLead.Seconds()},
		{c.drift, prometheus.GaugeValue, s.Drift.Seconds()},
		{c.alarm, prometheus.GaugeValue, flag(s.ClockAlarm)},
		{c.passages, prometheus.GaugeValue, float64(s.Passages)},
		{c.durable, prometheus.GaugeValue, flag(s.Durable)},
	} {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value)
	}
}
