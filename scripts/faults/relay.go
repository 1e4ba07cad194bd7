// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"net"
	"sync"
	"time"
)

// A fault is what a relay does to what passes it.
type fault int

const (
	passes  fault = iota
	stalled       // nothing passes; what was sent arrives when it is over, as after a cable was out
	dropped       // connections are reset, new ones too
	deaf          // what the caller sends arrives, the answers do not; they are reset when it is over
	halved        // the server's side is closed, the caller's is silent; it is reset when it is over
	delayed       // everything takes some time longer
)

func (f fault) String() string {
	return []string{"passes", "stalled", "dropped", "deaf", "half-closed", "delayed"}[f]
}

// A relay is a TCP proxy: a balancer that gives its connections to its targets in turn, or a line that can be cut. It is
// safe for concurrent use.
type relay struct {
	listener net.Listener
	address  string

	mu      sync.Mutex
	targets []string
	next    int
	fault   fault
	delay   time.Duration
	changed chan struct{} // closed when fault changes
	lines   map[*line]struct{}
	closed  bool
}

// A line is one connection and the one that it is relayed to.
type line struct {
	caller, server *net.TCPConn
	once           sync.Once
	ended          chan struct{}
}

// reset closes both ends, so that whoever is there learns of it at once and what was under way is lost.
func (l *line) reset() {
	l.once.Do(func() {
		close(l.ended)
		for _, c := range []*net.TCPConn{l.caller, l.server} {
			if c != nil {
				_ = c.SetLinger(0) // fails only on a closed connection
				c.Close()
			}
		}
	})
}

// newRelay listens and relays to the targets.
func newRelay(targets ...string) (*relay, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return newRelayAt(address, targets...)
}

func newRelayAt(address string, targets ...string) (*relay, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	r := &relay{
		listener: listener, address: address, targets: targets, changed: make(chan struct{}), lines: make(map[*line]struct{}),
	}
	go r.serve()
	return r, nil
}

func (r *relay) serve() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		go r.carry(c.(*net.TCPConn))
	}
}

// carry relays one connection until either end closes it or a fault does.
func (r *relay) carry(caller *net.TCPConn) {
	l := &line{caller: caller, ended: make(chan struct{})}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		l.reset()
		return
	}
	r.lines[l] = struct{}{}
	r.mu.Unlock()
	defer func() {
		l.reset()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.lines, l)
	}()
	if !r.may(l, true) {
		return
	}
	server, ok := r.dial()
	if !ok {
		return
	}
	r.mu.Lock()
	l.server = server
	r.mu.Unlock()
	select {
	case <-l.ended: // while we dialled
		server.Close()
		return
	default:
	}
	var both sync.WaitGroup
	both.Go(func() { r.copy(l, server, caller, true) })
	both.Go(func() { r.copy(l, caller, server, false) })
	both.Wait()
}

// dial connects to the target whose turn it is, or to one of the others when that one does not take connections.
func (r *relay) dial() (*net.TCPConn, bool) {
	r.mu.Lock()
	targets := append(append([]string(nil), r.targets[r.next%len(r.targets):]...), r.targets[:r.next%len(r.targets)]...)
	r.next++
	r.mu.Unlock()
	for _, target := range targets {
		c, err := net.DialTimeout("tcp", target, 2*time.Second)
		if err == nil {
			return c.(*net.TCPConn), true
		}
	}
	return nil, false
}

// copy relays one direction. The end of one direction is passed on and leaves the other open.
func (r *relay) copy(l *line, to, from *net.TCPConn, asking bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !r.may(l, asking) {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				l.reset()
				return
			}
		}
		if err != nil {
			if !r.may(l, asking) {
				return
			}
			if errors.Is(err, net.ErrClosed) || to.CloseWrite() != nil {
				l.reset()
			}
			return
		}
	}
}

// may waits until something may pass in a direction, and says false when the line is no more.
func (r *relay) may(l *line, asking bool) bool {
	for {
		r.mu.Lock()
		fault, delay, changed := r.fault, r.delay, r.changed
		r.mu.Unlock()
		switch {
		case fault == dropped:
			l.reset()
			return false
		case fault == delayed:
			select {
			case <-time.After(delay):
				return true
			case <-l.ended:
				return false
			}
		case fault == passes || fault == deaf && asking:
			select {
			case <-l.ended:
				return false
			default:
				return true
			}
		}
		select {
		case <-changed:
		case <-l.ended:
			return false
		}
	}
}

// cut begins a fault.
func (r *relay) cut(f fault, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change(f, delay)
	for l := range r.lines {
		switch {
		case f == dropped:
			l.reset()
		case f == halved && l.server != nil:
			_ = l.server.CloseWrite() // fails only on a closed connection
		}
	}
}

// change is for who holds mu.
func (r *relay) change(f fault, delay time.Duration) {
	r.fault, r.delay = f, delay
	close(r.changed)
	r.changed = make(chan struct{})
}

// heal ends a fault.
func (r *relay) heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault == deaf || r.fault == halved {
		for l := range r.lines {
			l.reset()
		}
	}
	r.change(passes, 0)
}

// point has new connections go to other targets, and ends those that there are.
func (r *relay) point(targets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = targets
	for l := range r.lines {
		l.reset()
	}
}

func (r *relay) close() {
	r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for l := range r.lines {
		l.reset()
	}
}
