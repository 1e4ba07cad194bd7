// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
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
	flooders      = 4
	floodNetworks = 1 << 16 // 127.0.0.0/8 has so many of the size that refusals are counted by
)

// flood asks for tokens that must be refused: without a certificate and from ever other networks, and with one for a
// client that it is not of. Clients take tokens meanwhile. It returns how many requests were refused.
func flood(ctx context.Context, l *load, duration time.Duration) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*duration, fmt.Errorf("the flood takes ten times its time"))
	defer cancel()
	var refused atomic.Int64
	var group sync.WaitGroup
	failures := make(chan error, flooders+1)
	until := time.Now().Add(duration)
	for range flooders {
		group.Go(func() {
			for time.Now().Before(until) {
				if err := l.strangerRefused(ctx); err != nil {
					failures <- err
					return
				}
				refused.Add(1)
			}
		})
	}
	group.Go(func() {
		c, err := l.service.caller("load-1")
		if err != nil {
			failures <- err
			return
		}
		defer c.close()
		for time.Now().Before(until) {
			if err := l.tokenFor(ctx, c, "load-1"); err != nil {
				failures <- fmt.Errorf("during a flood of refusals: %w", err)
				return
			}
			a, err := c.askToken(ctx, l.service.tokenURL(), "load-2", resource)
			if err != nil || a.status != http.StatusUnauthorized {
				failures <- fmt.Errorf("a request for another client: %v %v", a, err)
				return
			}
			refused.Add(1)
			pause(ctx, 5*time.Millisecond)
		}
	})
	group.Wait()
	select {
	case err := <-failures:
		return 0, err
	default:
		return int(refused.Load()), nil
	}
}

// strangerRefused asks without a certificate from some network of this machine.
func (l *load) strangerRefused(ctx context.Context) error {
	from := net.IPv4(127, byte(rand.IntN(256)), byte(rand.IntN(256)), byte(1+rand.IntN(254)))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	c := &caller{http: &http.Client{
		Timeout:   requestTimeout,
		Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(nil, l.roots), DialContext: dialer.DialContext},
	}}
	defer c.close()
	a, err := c.askToken(ctx, l.service.tokenURL(), "load-0", resource)
	if err == nil && a.status != http.StatusUnauthorized {
		err = fmt.Errorf("a stranger was answered %s", a)
	}
	return err
}
