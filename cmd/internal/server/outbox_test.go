// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/pki"
)

// testBox is an outbox of a database, with a journal of its own.
func testBox(tb testing.TB, db *store.Store) *outbox.Box {
	tb.Helper()
	journal, err := audit.Open(tb.Context(), audit.Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := journal.Close(); err != nil {
			tb.Error(err)
		}
	})
	box, err := outbox.New(outbox.Config{Store: db, Journal: journal})
	if err != nil {
		tb.Fatal(err)
	}
	return box
}

// What waits in the outbox is seen from outside, and for how long.
func TestOutboxMetrics(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	look := func() string {
		w := httptest.NewRecorder()
		s.metrics.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		return w.Body.String()
	}
	for _, line := range []string{"\ncertbound_audit_outbox_records 0\n", "\ncertbound_audit_outbox_oldest_timestamp_seconds 0\n"} {
		if text := look(); !strings.Contains(text, line) {
			t.Errorf("no %q", line)
		}
	}
	if err := s.folder.journal.Close(); err != nil { // it takes nothing any more
		t.Fatal(err)
	}
	before := time.Now()
	pending, err := s.folder.outbox.Change(t.Context(), audit.Takeaway, func(tx *store.Store) ([]audit.Event, error) {
		return []audit.Event{{Name: "resource.remove"}}, tx.AddResource(t.Context(), store.Resource{URI: "urn:x"})
	})
	if err != nil || !pending {
		t.Fatalf("pending %t, %v", pending, err)
	}
	text := look()
	_, oldest, _ := strings.Cut(text, "\ncertbound_audit_outbox_oldest_timestamp_seconds ")
	oldest, _, _ = strings.Cut(oldest, "\n")
	at, err := strconv.ParseFloat(oldest, 64)
	if !strings.Contains(text, "\ncertbound_audit_outbox_records 1\n") || err != nil || at < float64(before.Unix()) || at > float64(time.Now().Unix()+1) {
		t.Errorf("the oldest waits since %q, %v", oldest, err)
	}
}

// A start finds what an earlier one left. A journal that takes nothing keeps it waiting and the service starting; a row that
// cannot be read does not let it start, for it would be lost.
func TestStartWithRecordsThatWait(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir())
	leave := func(id string, body []byte) {
		t.Helper()
		note := func(tx *store.Store) error { return tx.Note(store.Entry{ID: id, Body: body}) }
		if err := s.folder.store.Transact(t.Context(), note); err != nil {
			t.Fatal(err)
		}
	}
	event := func(id string) []byte {
		body, err := audit.EncodeEvent(audit.Event{ID: id, Name: "client.add", Outcome: audit.Granted, Client: id})
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	leave("A", event("A"))
	if err := s.openOutbox(t.Context()); err != nil || s.folder.outbox.Stats().Waiting != 0 {
		t.Errorf("%v, %+v", err, s.folder.outbox.Stats())
	}
	in := &instance{tb: t, data: s.cfg.Data}
	if n := in.granted("client.add", "A"); n != 1 {
		t.Errorf("%d on record", n)
	}
	if err := s.folder.journal.Close(); err != nil {
		t.Fatal(err)
	}
	leave("B", event("B"))
	if err := s.openOutbox(t.Context()); err != nil || s.folder.outbox.Stats().Waiting != 1 {
		t.Errorf("%v, %+v", err, s.folder.outbox.Stats())
	}
	leave("C", []byte("no event"))
	if err := s.openOutbox(t.Context()); err == nil || !strings.Contains(err.Error(), `"C"`) {
		t.Errorf("a row that cannot be read: %v", err)
	}
}

// unsynced is an error of the disk, as SQLite reports it.
type unsynced struct{}

func (unsynced) Error() string { return "disk I/O error" }
func (unsynced) Code() int     { return 1034 } // SQLITE_IOERR_FSYNC

// A database that the disk does not keep ends the process.
func TestFailedSyncOfTheDatabaseEndsTheService(t *testing.T) {
	t.Parallel()
	s := built(t, t.TempDir(), func(s *service) { s.fatal = make(chan error, 1) })
	err := s.folder.store.Transact(t.Context(), func(*store.Store) error { return unsynced{} })
	if failure := s.failure(); !errors.Is(err, store.ErrSync) || !errors.Is(failure, store.ErrSync) {
		t.Errorf("%v, the service ends with %v", err, failure)
	}
}

// The environment of a child process that serves a data folder until it kills itself at a point of a change.
const (
	crashData  = "CERTBOUND_TEST_CRASH_DATA"
	crashPoint = "CERTBOUND_TEST_CRASH_POINT"
	crashEvent = "CERTBOUND_TEST_CRASH_EVENT"
	crashSync  = "CERTBOUND_TEST_CRASH_SYNC"
)

// serveUntilKilled is the child.
func serveUntilKilled(t *testing.T, data string) {
	point, event := outbox.Point(os.Getenv(crashPoint)), os.Getenv(crashEvent)
	var begun atomic.Bool
	cfg := testConfig(t, data)
	cfg.Audit.Sync = os.Getenv(crashSync)
	err := Run(t.Context(), cfg, Options{
		Stdout: os.Stdout, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		reached: func(p outbox.Point, e string) {
			begun.CompareAndSwap(false, e == event)
			if p != point || !begun.Load() {
				return
			}
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(err)
			}
			select {} // the signal is under way
		},
	})
	t.Fatalf("the service ended by itself: %v", err)
}

// child is a process that serves a data folder.
type child struct {
	*instance
	cmd    *exec.Cmd
	starts int // it took: each begins a run of the journal
}

// serving starts a child that dies at the point of a change of that event, or at none.
func serving(t *testing.T, data, sync string, point outbox.Point, event string) *child {
	t.Helper()
	for starts := 1; ; starts++ {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashBetweenChangeAndRecord$", "-test.count=1")
		cmd.Env = append(os.Environ(), crashData+"="+data, crashPoint+"="+string(point), crashEvent+"="+event, crashSync+"="+sync)
		c := &child{&instance{tb: t, data: data, logs: &syncBuffer{}}, cmd, starts}
		cmd.Stderr = c.logs
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buffered := bufio.NewReader(out)
		line, err := buffered.ReadString('\n')
		if _, scanned := fmt.Sscanf(line, "ready issuer=%s mtls=%s", &c.issuer, &c.mtls); err == nil && scanned == nil {
			return c
		}
		more, _ := io.ReadAll(buffered) // it ends; what it said is what counts
		said := line + string(more)
		ended := cmd.Wait()
		// It wants the ports of the one before it, which another test's connections may have meanwhile.
		if starts > portTries || !strings.Contains(said, syscall.EADDRINUSE.Error()) {
			t.Fatalf("the child said %q, %v, %v\n%s", said, err, ended, c.logs)
		}
		time.Sleep(portPause)
	}
}

// died waits for the child's death by its own hand, or by ours.
func (c *child) died() {
	c.tb.Helper()
	err := c.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		c.tb.Fatalf("the child ended with %v\n%s", err, c.logs)
	}
}

func (c *child) kill() {
	c.tb.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.tb.Fatal(err)
	}
	c.died()
}

// crashCase is a change of whose process each point is a death.
type crashCase struct {
	event string
	// prepare readies a change about the id, and returns how to ask for it, and how many of it hold.
	prepare func(in *instance, id string) (ask func(*instance) error, held func(*instance) int)
	sync    string // audit.sync
	// once says that a repetition of what holds is refused, since the first answer, with its code, is lost.
	once bool
}

func crashCases(t *testing.T) map[string]crashCase {
	certificates := func(in *instance, id string) (list struct {
		Certificates []struct{ Status string }
	}) {
		in.mustOperate(http.MethodGet, "/certificates?client_id="+id, nil, &list)
		return list
	}
	exists := func(path string) func(*instance) int {
		return func(in *instance) int {
			if in.operate(http.MethodGet, path, nil, nil) != nil {
				return 0
			}
			return 1
		}
	}
	post := func(c *http.Client, address string, request any) error {
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		res, err := c.Post(address, "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d, %w", res.StatusCode, err)
		}
		return nil
	}
	cases := map[string]crashCase{
		"client add": {event: "client.add", once: true, prepare: func(_ *instance, id string) (func(*instance) error, func(*instance) int) {
			return func(in *instance) error {
				return in.operate(http.MethodPost, "/clients", map[string]any{"client_id": id, "scope": write}, nil)
			}, exists("/clients/" + id)
		}},
		"trust add": {event: "trust.add", once: true, prepare: func(_ *instance, id string) (func(*instance) error, func(*instance) int) {
			ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mtlstest.NewCA(t, id).Certificate().Raw}))
			return func(in *instance) error {
				return in.operate(http.MethodPost, "/trusts", map[string]any{"name": id, "ca": ca}, nil)
			}, exists("/trusts/" + id)
		}},
		"revoke": {event: "cert.revoke", prepare: func(in *instance, id string) (func(*instance) error, func(*instance) int) {
			serial := in.enrolled(id).Leaf.SerialNumber.String()
			return func(in *instance) error {
				return in.operate(http.MethodPost, "/certificates/revoke", map[string]any{"serial": serial}, nil)
			}, func(in *instance) int { return strings.Count(fmt.Sprint(certificates(in, id)), "revoked") }
		}},
		"revoke a token": {event: "token.revoke", prepare: func(in *instance, id string) (func(*instance) error, func(*instance) int) {
			cert := in.auditor(id)
			token := in.operatorsToken(cert, id)
			return func(in *instance) error { return in.revokeToken(cert, id, token) }, func(in *instance) int {
				if in.use(cert, token) == http.StatusUnauthorized {
					return 1
				}
				return 0
			}
		}},
		"enroll": {event: "cert.enroll", prepare: func(in *instance, id string) (func(*instance) error, func(*instance) int) {
			code, key := in.addClient(id), newKey(t)
			request := pki.NewEnrollRequest(code, in.issuer, newCSR(t, key))
			return func(in *instance) error { return post(in.client(nil), in.issuer+pathEnroll, request) },
				func(in *instance) int { return len(certificates(in, id).Certificates) }
		}},
		"renew": {event: "cert.renew", prepare: func(in *instance, id string) (func(*instance) error, func(*instance) int) {
			cert, request := in.enrolled(id), pki.NewRenewRequest(newCSR(t, newKey(t)))
			return func(in *instance) error { return post(in.client(&cert), in.mtls+pathRenew, request) },
				func(in *instance) int { return len(certificates(in, id).Certificates) - 1 }
		}},
	}
	lazy := cases["enroll"]
	lazy.sync = "interval"
	cases["enroll, synced later"] = lazy
	for name, tt := range cases {
		tt.sync = cmp.Or(tt.sync, "always")
		cases[name] = tt
	}
	return cases
}

// granted counts what is on record of a change, without repetitions that found it done.
func (in *instance) granted(name, id string) int {
	in.tb.Helper()
	ids := make(map[string]bool)
	n := 0
	for line := range strings.Lines(in.journal()) {
		var e struct {
			ID, Event, Outcome, Reason, Client string
			Detail                             map[string]string
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			in.tb.Fatal(err)
		}
		if e.Event != name || e.Outcome != audit.Granted || e.Reason == "repeated" || e.Detail["changed"] == "nothing" ||
			e.Client != id && e.Detail["trust"] != id {
			continue
		}
		n++
		if ids[e.ID] || e.ID == "" {
			in.tb.Errorf("%s %s: two records with the id %q", name, id, e.ID)
		}
		ids[e.ID] = true
	}
	return n
}

// RV-05: RFC 7009, Section 2: killing the process before and after each of the steps that join a change with its record, the
// revocation of a token among them: afterwards nothing happened, or it happened and is on record once.
// Whoever asked asks again and finds it so.
func TestCrashBetweenChangeAndRecord(t *testing.T) {
	if data := os.Getenv(crashData); data != "" {
		serveUntilKilled(t, data)
		return
	}
	t.Parallel()
	for name, tt := range crashCases(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			points := []outbox.Point{outbox.Noted, outbox.Committed, outbox.Recorded, outbox.Dropping}
			asks, helds := make([]func(*instance) error, len(points)), make([]func(*instance) int, len(points))
			in := serving(t, data, tt.sync, "", "")
			starts := in.starts
			in.addLedger()
			for i := range points {
				asks[i], helds[i] = tt.prepare(in.instance, fmt.Sprint("c", i))
			}
			in.kill()
			for i, point := range points {
				id, ask, held := fmt.Sprint("c", i), asks[i], helds[i]
				in = serving(t, data, tt.sync, point, tt.event)
				starts += in.starts
				answered := ask(in.instance)
				in.died()
				if (answered == nil) != (point == outbox.Dropping) {
					t.Errorf("%s: the answer is %v", point, answered)
				}
				want := 1
				if point == outbox.Noted {
					want = 0
				}
				in = serving(t, data, tt.sync, "", "")
				starts += in.starts
				if got, recorded := held(in.instance), in.granted(tt.event, id); got != want || recorded != want {
					t.Errorf("%s: %d hold, %d on record, want %d", point, got, recorded, want)
				}
				if err := ask(in.instance); (err == nil) != (want == 0 || !tt.once) {
					t.Errorf("%s: asked again: %v", point, err)
				}
				if got, recorded := held(in.instance), in.granted(tt.event, id); got != 1 || recorded != 1 {
					t.Errorf("%s: %d hold, %d on record after the repetition", point, got, recorded)
				}
				in.kill()
			}
			if report, err := audit.Verify(filepath.Join(data, "audit"), nil); err != nil || report.Incarnations != starts {
				t.Errorf("the journal: %+v, %v", report, err)
			}
		})
	}
}

// fullBox is an outbox whose journal has been closed: it takes no records.
func fullBox(tb testing.TB, db *store.Store) *outbox.Box {
	tb.Helper()
	journal, err := audit.Open(tb.Context(), audit.Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	if err := journal.Close(); err != nil {
		tb.Fatal(err)
	}
	box, err := outbox.New(outbox.Config{Store: db, Journal: journal})
	if err != nil {
		tb.Fatal(err)
	}
	return box
}
