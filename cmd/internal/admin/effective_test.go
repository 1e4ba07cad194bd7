// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
)

// What was taken away and may not be so everywhere yet is no success: the answer says from when on it is. It is on record
// as made, and never as refused.
func TestTakeawayThatIsNotEverywhere(t *testing.T) {
	b := newBench(t)
	b.post("/clients", `{"client_id":"payments","scope":"ledger:read"}`, http.StatusCreated, nil)
	by := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	var failing error
	box, err := outbox.New(outbox.Config{Store: b.store, Journal: b.journal, Effective: func(context.Context, int64) error { return failing }})
	b.must(err)
	cfg := b.cfg
	cfg.Recorder, cfg.Durability = outbox.Courteous{Box: box}, func() string { return "single node" }
	b.handler, err = New(cfg)
	b.must(err)
	failing = &outbox.UnsettledError{By: by, Err: errors.New("a replica is silent")}
	for _, path := range []string{"/clients/payments/disable", "/clients/payments/disable", "/certificates/revoke"} {
		body := ""
		if strings.HasSuffix(path, "revoke") {
			body = `{"client_id":"payments"}`
		}
		var e ErrorBody
		header := b.do(http.MethodPost, path, body, http.StatusServiceUnavailable, &e)
		if want := "committed, effective by 2030-01-02T03:04:05Z"; e.Description != want || e.Hint == "" || header.Get("Retry-After") != "1" {
			t.Errorf("%s: %+v, Retry-After %q; want %q", path, e, header.Get("Retry-After"), want)
		}
		if event := b.journal.last(t); event.Outcome != audit.Granted {
			t.Errorf("%s: recorded %+v", path, event)
		}
	}
	// What gives authority is not refused for it.
	b.post("/clients/payments/enable", "", http.StatusOK, nil)
	failing = nil
	var done Revocation
	b.post("/certificates/revoke", `{"client_id":"payments"}`, http.StatusOK, &done)
	if done.Durability != "single node" {
		t.Errorf("the answer says of the database %q", done.Durability)
	}
}

// A commit of which nobody knows is told as that, and not as a refusal.
func TestUnknownCommit(t *testing.T) {
	t.Parallel()
	refused := asError(fmt.Errorf("commit: %w", store.ErrUnknown))
	if refused.Status != http.StatusServiceUnavailable || !strings.Contains(refused.Description, "unknown whether") || !strings.Contains(refused.Hint, "repeat") {
		t.Errorf("%+v", refused)
	}
}

// The status shows the database and the replicas.
func TestStatusShowsTheCluster(t *testing.T) {
	want := Cluster{Database: Database{Kind: "postgresql", Durability: "quorum"}, StateVersion: 7, Replicas: []Replica{{Replica: "a", This: true, Lease: "live", Applied: 7}}}
	b := newBenchWith(t, Config{Cluster: func(context.Context) (Cluster, error) { return want, nil }}, New)
	var status Status
	b.do(http.MethodGet, "/status", "", http.StatusOK, &status)
	if status.StateVersion != 7 || status.Database != want.Database || len(status.Replicas) != 1 || status.Replicas[0] != want.Replicas[0] {
		t.Errorf("%+v", status.Cluster)
	}
	gone := b.cfg
	gone.Cluster = func(context.Context) (Cluster, error) { return Cluster{}, errors.New("gone") }
	var err error
	b.handler, err = New(gone)
	b.must(err)
	b.refused(http.MethodGet, "/status", "", http.StatusServiceUnavailable, codeUnavailable, "again")
}

// A database that says nothing does not keep whoever asks for the status waiting.
func TestStatusOfASilentDatabase(t *testing.T) {
	b := newBenchWith(t, Config{Cluster: func(ctx context.Context) (Cluster, error) {
		<-ctx.Done()
		return Cluster{}, ctx.Err()
	}}, New)
	began := time.Now()
	b.refused(http.MethodGet, "/status", "", http.StatusServiceUnavailable, codeUnavailable, "try again")
	if waited := time.Since(began); waited > 4*statusTime {
		t.Errorf("it took %v", waited)
	}
}
