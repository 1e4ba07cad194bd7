// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certbound/certbound/mtls"
)

const (
	flooders      = 2
	floodNetworks = 1 << 16          // 127.0.0.0/8 has so many of the size that refusals are counted by
	floodTime     = 60 * time.Second // refusals are counted, so it takes some of them to use up their room
)

// flood asks for what must be refused, without a certificate and from ever other networks, and with one for a client that
// it is not of, until done says so. A client takes tokens meanwhile. It returns how many requests were refused.
func flood(ctx context.Context, l *load, done func() bool) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, floodTime, errors.New("refusals do not use up their room"))
	defer cancel()
	var refused atomic.Int64
	var group sync.WaitGroup
	failures := make(chan error, flooders+1)
	work := func(each func() (int, error), pauses time.Duration) {
		group.Go(func() {
			for !done() && pause(ctx, pauses) {
				n, err := each()
				if err != nil {
					failures <- err
					cancel()
					return
				}
				refused.Add(int64(n))
			}
		})
	}
	for range flooders {
		work(func() (int, error) { return l.strangerRefused(ctx) }, 2*time.Millisecond)
	}
	c, err := l.service.caller("load-1")
	if err != nil {
		return 0, err
	}
	defer c.close()
	work(func() (int, error) {
		if err := l.tokenFor(ctx, c, "load-1"); err != nil {
			return 0, fmt.Errorf("during a flood of refusals: %w", err)
		}
		a, err := c.askToken(ctx, l.service.tokenURL(), "load-2", resource)
		if err == nil && a.status != http.StatusUnauthorized {
			err = fmt.Errorf("a request for another client was answered %s", a)
		}
		return 1, err
	}, 10*time.Millisecond)
	group.Wait()
	select {
	case err := <-failures:
		return int(refused.Load()), err
	default:
		return int(refused.Load()), context.Cause(ctx)
	}
}

// strangerRefused asks without a certificate, from some network of this machine, for what is refused for several reasons.
func (l *load) strangerRefused(ctx context.Context) (int, error) {
	from := net.IPv4(127, byte(rand.IntN(256)), byte(rand.IntN(256)), byte(1+rand.IntN(254)))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	c := &caller{http: &http.Client{
		Timeout:   requestTimeout,
		Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(nil, l.roots), DialContext: dialer.DialContext},
	}}
	defer c.close()
	requests := []func() (answer, error){
		func() (answer, error) { return c.askToken(ctx, l.service.tokenURL(), "load-0", resource) },
		func() (answer, error) { return c.askToken(ctx, l.service.tokenURL(), "", resource) },
		func() (answer, error) { return c.postJSON(ctx, l.service.mtlsURL()+"/pki/enroll", "", "no object") },
		func() (answer, error) { return c.do(ctx, http.MethodGet, l.service.adminURL()+"/status", "", "", nil) },
	}
	for _, request := range requests {
		a, err := request()
		if err == nil && a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest {
			err = fmt.Errorf("a stranger was answered %s", a)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(requests), nil
}
