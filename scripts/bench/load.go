// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// requestTimeout ends a connection that hangs, and with it the run.
const requestTimeout = 10 * time.Second

// A target is a token endpoint and the process that serves it.
type target struct {
	name    string
	address string
	config  *tls.Config // with the client's certificate; keeps no sessions
	request []byte      // the whole request, HTTP/1.1
	pid     int
	// callers, when not nil, gives each connection that does not resume another one a client of its own, in place of
	// config and request.
	callers func() (caller, error)
	answer  func(body []byte) error // judges an answer; nil: it must be a token's
	// next, when not nil, is what is asked next, in place of request; taken, when not nil, gets every answer.
	next  func() []byte
	taken func(body []byte) error
}

// A caller is a client that asks once or on one connection.
type caller struct {
	config  *tls.Config
	request []byte
}

// A mode is how tokens are asked for.
type mode struct {
	name        string
	connections int
	dial        bool // a connection for every token
	resume      bool // which resumes the session of the one before
	// bounds are the ratios to the reference that we promise, by the value of audit.sync.
	bounds map[string]float64
}

// modes returns what is measured.
func modes() []mode {
	return []mode{
		{name: "kept alive, 64 connections", connections: 64, bounds: map[string]float64{"always": 1.25, "interval": 1.10}},
		{name: "kept alive, 8 connections", connections: 8, bounds: map[string]float64{"always": 1.8, "interval": 1.15}},
		{name: "full handshake, 64 connecting", connections: 64, dial: true,
			bounds: map[string]float64{"always": 1.15, "interval": 1.05}},
		{name: "resumed, 64 connecting", connections: 64, dial: true, resume: true,
			bounds: map[string]float64{"always": 1.2, "interval": 1.08}},
	}
}

func newTarget(name, address, path, form string, config *tls.Config, pid int) *target {
	return &target{
		name: name, address: address, config: config, pid: pid,
		request: post(address, path, "application/x-www-form-urlencoded", form),
	}
}

// post is a whole request.
func post(address, path, contentType, body string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		path, address, contentType, len(body), body)
}

// A worker asks for one token after the other.
type worker struct {
	target  *target
	mode    mode
	config  *tls.Config
	request []byte
	conn    *tls.Conn
	reader  *bufio.Reader
	waits   []time.Duration // for each token, the connection included where it is new
}

func newWorker(t *target, m mode) *worker {
	w := &worker{target: t, mode: m}
	if t.callers == nil {
		w.become(caller{t.config.Clone(), t.request})
	}
	return w
}

func (w *worker) become(c caller) {
	w.config, w.request = c.config, c.request
	if w.mode.resume {
		w.config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
}

func (w *worker) connect(ctx context.Context) error {
	if w.target.callers != nil && (w.config == nil || !w.mode.resume) {
		c, err := w.target.callers()
		if err != nil {
			return err
		}
		w.become(c)
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: requestTimeout}, Config: w.config}
	conn, err := dialer.DialContext(ctx, "tcp", w.target.address)
	if err != nil {
		return err
	}
	w.conn, w.reader = conn.(*tls.Conn), bufio.NewReader(conn)
	return nil
}

func (w *worker) close() {
	if w.conn != nil {
		_ = w.conn.Close() // the answer is here already
		w.conn = nil
	}
}

// first connects and takes one token, whose answer it reads closely. It leaves the session to resume, and the
// connection to keep.
func (w *worker) first(ctx context.Context) error {
	if err := w.connect(ctx); err != nil {
		return err
	}
	body, err := w.ask()
	if err != nil {
		return err
	}
	judge := w.target.answer
	if judge == nil {
		judge = tokenAnswer
	}
	if err := judge(body); err != nil {
		return err
	}
	if w.mode.dial {
		w.close()
	}
	return nil
}

func tokenAnswer(body []byte) error {
	var answer struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AccessToken == "" || answer.TokenType != "Bearer" {
		return errors.New("the answer is no token response")
	}
	return nil
}

// next takes one token in the worker's mode.
func (w *worker) next(ctx context.Context) error {
	if !w.mode.dial {
		_, err := w.ask()
		return err
	}
	if err := w.connect(ctx); err != nil {
		return err
	}
	defer w.close()
	if w.conn.ConnectionState().DidResume != w.mode.resume {
		return fmt.Errorf("a handshake was resumed: %t, want %t", !w.mode.resume, w.mode.resume)
	}
	_, err := w.ask()
	return err
}

func (w *worker) ask() ([]byte, error) {
	if err := w.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	request := w.request
	if w.target.next != nil {
		request = w.target.next()
	}
	if _, err := w.conn.Write(request); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	if w.target.taken != nil {
		return body, w.target.taken(body)
	}
	return body, nil
}

// A sample is what one round came to.
type sample struct {
	tokens int
	cpu    time.Duration // of the server, per token
	rate   float64       // tokens a second of wall time
	p99    time.Duration // that a caller waits
}

// load runs one round: for the time given, or until so many tokens if limit is above zero.
func load(ctx context.Context, t *target, m mode, duration time.Duration, limit int) (sample, error) {
	workers := make([]*worker, m.connections)
	for i := range workers {
		workers[i] = newWorker(t, m)
		defer workers[i].close()
		if err := workers[i].first(ctx); err != nil {
			return sample{}, fmt.Errorf("%s, %s: %w", t.name, m.name, err)
		}
	}
	before, err := cpuTime(t.pid)
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	tokens, err := drive(ctx, workers, begin.Add(duration), limit)
	if err != nil {
		return sample{}, fmt.Errorf("%s, %s: %w", t.name, m.name, err)
	}
	elapsed := time.Since(begin)
	after, err := cpuTime(t.pid)
	if err != nil {
		return sample{}, err
	}
	return sample{
		tokens: tokens, cpu: (after - before) / time.Duration(tokens), rate: float64(tokens) / elapsed.Seconds(),
		p99: p99(workers),
	}, nil
}

// p99 returns how long a hundredth of all tokens took at least.
func p99(workers []*worker) time.Duration {
	var waits []time.Duration
	for _, w := range workers {
		waits = append(waits, w.waits...)
	}
	slices.Sort(waits)
	return waits[len(waits)*99/100]
}

// drive lets all workers ask until the time, the limit or the first error, and returns how many tokens they got.
func drive(ctx context.Context, workers []*worker, until time.Time, limit int) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var count atomic.Int64
	var group sync.WaitGroup
	for _, w := range workers {
		group.Go(func() {
			// At least one token, however busy the machine is.
			for ctx.Err() == nil && (time.Now().Before(until) || count.Load() == 0) && (limit <= 0 || count.Load() < int64(limit)) {
				begin := time.Now()
				if err := w.next(ctx); err != nil {
					cancel(err)
					return
				}
				w.waits = append(w.waits, time.Since(begin))
				count.Add(1)
			}
		})
	}
	group.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return int(count.Load()), nil
}
