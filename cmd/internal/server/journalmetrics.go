// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certbound/certbound/cmd/internal/audit"
)

// journalTimes is told of each group of records that was made durable.
type journalTimes struct{ sync, group prometheus.Histogram }

func newJournalTimes() *journalTimes {
	return &journalTimes{
		sync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certbound_journal_sync_duration_seconds", Help: "Time that the disk took to make a group of records durable.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .25, 1}}),
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certbound_journal_group_size", Help: "Records that were made durable together.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128}}),
	}
}

func (t *journalTimes) observe(records int, d time.Duration) {
	t.sync.Observe(d.Seconds())
	t.group.Observe(float64(records))
}

// journalCollector reads the journal's own counts when it is asked.
type journalCollector struct {
	log *audit.Log

	records, bytes, waiting, dropped, full, room, checkpoint *prometheus.Desc
}

func newJournalCollector(log *audit.Log) *journalCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("certbound_journal_"+name, help, nil, nil)
	}
	return &journalCollector{
		log:        log,
		records:    desc("records_total", "Records written to the journal."),
		bytes:      desc("bytes_total", "Bytes written to the journal."),
		waiting:    desc("waiting", "Requests that wait until their record is durable."),
		dropped:    desc("dropped_total", "Refusals that were not recorded, because there was no room for them."),
		full:       desc("full", "1 while the journal's disk is full, so that only what takes authority away is served, else 0."),
		room:       desc("room_bytes", "Bytes on the disk that are kept ready for records."),
		checkpoint: desc("checkpoint_seconds", "When the newest durable checkpoint was signed, in Unix time; 0: there is none."),
	}
}

// Describe implements prometheus.Collector.
func (c *journalCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *journalCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.log.Stats()
	full, checkpoint := 0.0, 0.0
	if s.Full {
		full = 1
	}
	if !s.Checkpoint.IsZero() {
		checkpoint = float64(s.Checkpoint.UnixMilli()) / 1000
	}
	for _, m := range []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{c.records, prometheus.CounterValue, float64(s.Records)},
		{c.bytes, prometheus.CounterValue, float64(s.Bytes)},
		{c.waiting, prometheus.GaugeValue, float64(s.Waiting)},
		{c.dropped, prometheus.CounterValue, float64(s.Dropped)},
		{c.full, prometheus.GaugeValue, full},
		{c.room, prometheus.GaugeValue, float64(s.Room)},
		{c.checkpoint, prometheus.GaugeValue, checkpoint},
	} {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value)
	}
}
