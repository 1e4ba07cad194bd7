// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// What several replicas may not do is found, and what they may do is not.
func TestJudgeSeveral(t *testing.T) {
	t.Parallel()
	revoked := time.Date(2026, 1, 2, 3, 4, 13, 300e6, time.UTC)
	const late = `{"seq":13,"time":"2026-01-02T03:04:13.400000Z","event":"token","outcome":"granted","client":"c","x5t#S256":"x1","jti":"t3"}`
	taken := func(sent, received, issued time.Duration) token {
		return token{
			id: "t3", client: "c", thumbprint: "x1", sent: revoked.Add(sent), received: revoked.Add(received),
			issued: revoked.Add(issued).Truncate(time.Second),
		}
	}
	early := strings.Replace(late, "13.400000", "13.200000", 1)
	for name, tt := range map[string]struct {
		line     string
		received []token
		until    time.Duration // when authority is asked back for
		want     string
	}{
		"recorded late and not given":                    {line: late},
		"recorded late and given":                        {late, []token{taken(-200e6, 200e6, -200e6)}, 0, "token t3 was given to c 100ms after"},
		"decided before, arrives late":                   {early, []token{taken(-200e6, 5e9, -200e6)}, 0, ""},
		"asked for afterwards":                           {early, []token{taken(1e6, 200e6, -200e6)}, 0, "was asked for 1ms after"},
		"iat in a later second":                          {early, []token{taken(-200e6, 2e9, 1e9)}, 0, "has an iat 700ms after"},
		"iat in a later second, when it is back":         {strings.Replace(late, "13.4", "15.4", 1), []token{taken(2e9, 2.2e9, 2e9)}, 1.9e9, ""},
		"asked for afterwards, given when it is back":    {early, []token{taken(1e6, 200e6, -200e6)}, 100e6, ""},
		"asked for afterwards, given before it was back": {early, []token{taken(1e6, 50e6, -200e6)}, 100e6, "was asked for 1ms after"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, lines, inv := scene()
			b.several = true
			b.losses[0].at = revoked
			if tt.until != 0 {
				b.losses[0].until = revoked.Add(tt.until)
			}
			b.tokens = append(b.tokens, tt.received...)
			j, err := read(t, append(lines, tt.line))
			if err != nil {
				t.Fatal(err)
			}
			err = b.judge(j, inv)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("it says %v, want %q", err, tt.want)
			}
		})
	}
}

// An event that two replicas recorded is one; a token that two recorded is a fault, and so is what is wrong in either.
func TestMerge(t *testing.T) {
	t.Parallel()
	_, lines, _ := scene()
	all := newJournal()
	for i, more := range [][]string{nil, {`{"seq":13,"time":"2026-01-02T03:04:15.000000Z","id":"e9","event":"client.add","outcome":"granted","client":"e"}`}} {
		j, err := read(t, append(lines, more...))
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			j.ids["e5"]++
			j.problems = append(j.problems, "a hole")
		}
		all.merge(j, "replica: ")
	}
	if all.twice != 5 || all.clients[[2]string{addEvent, "e"}] != 1 || all.changes[[2]string{revokeEvent, "k2"}] != 2 {
		t.Errorf("%d events stand in both; %v, %v", all.twice, all.clients, all.changes)
	}
	if len(all.tokens["t1"]) != 2 {
		t.Errorf("a token in two journals is on record %d times", len(all.tokens["t1"]))
	}
	if got := strings.Join(all.problems, "; "); got != "replica: event e5 is on record 2 times; replica: a hole" {
		t.Errorf("problems: %s", got)
	}
}

// echo answers each line with itself, and says how many lines arrived.
func echo(t *testing.T) (address string, arrived chan string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	arrived = make(chan string, 100)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					text, err := r.ReadString('\n')
					if err != nil {
						return
					}
					arrived <- text
					if _, err := io.WriteString(c, text); err != nil {
						return
					}
				}
			}()
		}
	}()
	return listener.Addr().String(), arrived
}

// exchange writes a line and reads the answer within a time.
func exchange(c net.Conn, text string, within time.Duration) error {
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return err
	}
	return hear(c, text, within)
}

func hear(c net.Conn, text string, within time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	answer := make([]byte, len(text)+1)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != text+"\n" {
		return errors.New("heard " + string(answer))
	}
	return nil
}

// Each fault does what its name says, to connections that there are and to new ones, and ends.
func TestRelay(t *testing.T) {
	t.Parallel()
	const short, long = 100 * time.Millisecond, 5 * time.Second
	for _, tt := range []struct {
		fault             fault
		arrives, answered bool
		survives          bool // the connection goes on afterwards
	}{
		{stalled, false, false, true}, {dropped, false, false, false}, {deaf, true, false, false},
		{halved, false, false, false}, {delayed, true, true, true},
	} {
		t.Run(tt.fault.String(), func(t *testing.T) {
			t.Parallel()
			address, arrived := echo(t)
			r, err := newRelay(address)
			if err != nil {
				t.Fatal(err)
			}
			defer r.close()
			c, err := net.Dial("tcp", r.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := exchange(c, "before", long); err != nil {
				t.Fatal(err)
			}
			<-arrived
			r.cut(tt.fault, 20*time.Millisecond)
			begin := time.Now()
			err = exchange(c, "during", 2*short)
			if (err == nil) != tt.answered || tt.answered && time.Since(begin) < 40*time.Millisecond {
				t.Errorf("answered after %v: %v", time.Since(begin), err)
			}
			if tt.fault != dropped && !tt.answered && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the caller hears %v, want nothing", err)
			}
			if got := len(arrived) > 0; got != tt.arrives {
				t.Errorf("it arrived: %v", got)
			}
			fresh, err := net.Dial("tcp", r.address)
			if err == nil {
				defer fresh.Close()
				err = exchange(fresh, "fresh", 2*short)
			}
			if (err == nil) != tt.answered {
				t.Errorf("a new connection: %v", err)
			}
			r.heal()
			if tt.survives && !tt.answered {
				if err := hear(c, "during", long); err != nil {
					t.Errorf("what was sent meanwhile: %v", err)
				}
			}
			if err := exchange(c, "after", long); (err == nil) != tt.survives {
				t.Errorf("afterwards: %v", err)
			}
			again, err := net.Dial("tcp", r.address)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if err := exchange(again, "again", long); err != nil {
				t.Errorf("a new connection afterwards: %v", err)
			}
		})
	}
}

// A balancer goes round its targets, leaves out one that is down, and can be pointed elsewhere.
func TestBalancer(t *testing.T) {
	t.Parallel()
	one, atOne := echo(t)
	two, atTwo := echo(t)
	down, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRelay(one, down, two)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	connect := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := exchange(c, "x", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		return c
	}
	var last net.Conn
	for range 6 {
		last = connect()
	}
	if len(atOne) != 2 || len(atTwo) != 4 {
		t.Errorf("%d and %d connections", len(atOne), len(atTwo))
	}
	r.point(one)
	if err := exchange(last, "y", 5*time.Second); err == nil {
		t.Error("a connection to who is no target any more goes on")
	}
	connect()
	if len(atOne) != 3 {
		t.Errorf("%d connections, want one more", len(atOne))
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var times []time.Duration
	for n := range 100 {
		times = append(times, time.Duration(100-n)*time.Millisecond)
	}
	if got := quantiles(times); got != "median 51ms, 99 % within 100ms, longest 100ms" {
		t.Error(got)
	}
	if got := quantiles(nil); got != "none" {
		t.Error(got)
	}
	if pause(canceled(t), time.Hour) {
		t.Error("a pause outlasts its context")
	}
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
