// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
)

// mostUntilRefused is promised of the time from the moment that a revocation is asked for until resource servers that
// follow the deny feed refuse, in 99 of 100 cases.
const mostUntilRefused = time.Second

// denied measures how long a revoked token is good at resource servers that follow the deny feed, all on this machine,
// and what it costs them per token to ask whether it is denied.
func denied(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("denied", flag.ContinueOnError)
	certbound := flags.String("certbound", "./certbound", "the `program` to measure")
	followers := flags.Int("followers", 50, "resource servers that follow")
	rounds := flags.Int("rounds", 40, "tokens that are revoked, one after the other")
	strict := flags.Bool("strict", false, "fail when it takes longer than is promised")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *followers < 1 || *rounds < 1 {
		return errors.New("there is at least one follower and one round")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "certbound-denied-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program, err := filepath.Abs(*certbound)
	if err != nil {
		return err
	}
	b := &bench{options: options{certbound: program}, dir: dir, pins: newPins()}
	defer b.kill()
	s := &service{sync: "always", dir: dir}
	if err := b.start(ctx, s, b.pins.server); err != nil {
		return err
	}
	if err := b.enrol(ctx, s); err != nil {
		return err
	}
	if err := b.pins.self(); err != nil {
		return err
	}
	r := &revocations{service: s}
	if err := r.open(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for range *followers {
		if err := r.follow(ctx, &running); err != nil {
			return err
		}
	}
	var waits, answers []time.Duration
	for range *rounds {
		took, answered, err := r.revoke(ctx)
		if err != nil {
			return err
		}
		waits, answers = append(waits, took...), append(answers, answered)
	}
	slices.Sort(waits)
	worst := quantile99(waits)
	fmt.Printf("%s\n\nfrom asking for a revocation until it is refused at each of %d resource servers, %d revocations, audit.sync %s\n\n",
		b.pins, *followers, *rounds, s.sync)
	fmt.Printf("p50 %v, p99 %v, at most %v; promised is p99 under %v. The revocation itself was answered after %v (median)\n",
		median(waits).Round(10*time.Microsecond), worst.Round(10*time.Microsecond), waits[len(waits)-1].Round(10*time.Microsecond),
		mostUntilRefused, median(answers).Round(10*time.Microsecond))
	if err := r.cost(ctx); err != nil {
		return err
	}
	if *strict && worst >= mostUntilRefused {
		return fmt.Errorf("revoked tokens are good for %v, promised is under %v", worst, mostUntilRefused)
	}
	return nil
}

// revocations are what the client "bench" revokes, and who follows.
type revocations struct {
	service *service
	issuer  string
	mtls    string // where the service answers over mutual TLS
	peer    *mtls.Peer
	bench   *http.Client // shows the certificate of the client
	server  *mtls.KeyPair
	keys    *tokens.KeySet
	feeds   []*tokens.DenyFeed
}

func (r *revocations) open() error {
	endpoint, err := tokenEndpoint(r.service.process)
	if err != nil {
		return err
	}
	r.mtls = endpoint.Scheme + "://" + endpoint.Host
	profile := filepath.Join(r.service.dir, "reference")
	var about struct {
		Issuer string `json:"issuer"`
	}
	data, err := os.ReadFile(filepath.Join(profile, "profile.json"))
	if err == nil {
		err = json.Unmarshal(data, &about)
	}
	if err != nil {
		return err
	}
	r.issuer = about.Issuer
	if r.server, err = mtls.LoadKeyPair(filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem")); err != nil {
		return err
	}
	roots, err := readRoots(profile)
	if err != nil {
		return err
	}
	own, err := mtls.LoadKeyPair(filepath.Join(r.service.dir, "bench", "cert.pem"), filepath.Join(r.service.dir, "bench", "key.pem"))
	if err != nil {
		return err
	}
	r.peer = mtls.NewPeer(own.Current().Leaf)
	r.bench = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: mtls.ClientConfig(own, roots), ForceAttemptHTTP2: true}}
	r.keys, err = tokens.NewKeySet(tokens.KeySetConfig{URL: r.issuer + "/.well-known/jwks.json", Client: r.bench})
	return err
}

// follow starts a resource server's follower, on a connection of its own.
func (r *revocations) follow(ctx context.Context, running *sync.WaitGroup) error {
	roots, err := readRoots(filepath.Join(r.service.dir, "reference"))
	if err != nil {
		return err
	}
	bearer, err := client.New(ctx, client.Config{
		Issuer: r.issuer, ClientID: "reference", KeyPair: r.server, Roots: roots, Origins: []string{r.mtls},
		Resources: []string{r.issuer + "/oauth2/denied"}, Scopes: []string{"denied"},
	})
	if err != nil {
		return err
	}
	feed, err := tokens.NewDenyFeed(tokens.DenyFeedConfig{
		Issuer: r.issuer, URL: r.mtls + "/oauth2/denied", Keys: r.keys, Client: &http.Client{Transport: bearer}, Stale: tokens.StaleRefuse,
	})
	if err != nil {
		bearer.Close()
		return err
	}
	running.Go(func() {
		defer bearer.Close()
		_ = feed.Run(ctx)
	})
	r.feeds = append(r.feeds, feed)
	return feed.Wait(ctx)
}

func (r *revocations) post(ctx context.Context, path string, form url.Values) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.mtls+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := r.bench.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", path, response.Status, body)
	}
	return body, err
}

// token returns a new token, which is good.
func (r *revocations) token(ctx context.Context, v *tokens.Verifier) (string, error) {
	body, err := r.post(ctx, "/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {"bench"}, "scope": {"bench"}})
	if err != nil {
		return "", err
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	_, err = v.Verify(ctx, answer.Token, r.peer)
	return answer.Token, err
}

func (r *revocations) verifier(denied func(context.Context, *tokens.Claims, string) (bool, error)) (*tokens.Verifier, error) {
	return tokens.NewVerifier(tokens.VerifierConfig{Issuer: r.issuer, Audience: resourceURI, Keys: r.keys, Denied: denied})
}

// revoke revokes a new token, and returns after what time each resource server refused it, and the service answered.
func (r *revocations) revoke(ctx context.Context) (took []time.Duration, answered time.Duration, err error) {
	verifiers := make([]*tokens.Verifier, len(r.feeds))
	for i, f := range r.feeds {
		if verifiers[i], err = r.verifier(f.Denied); err != nil {
			return nil, 0, err
		}
	}
	raw, err := r.token(ctx, verifiers[0])
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	began := time.Now()
	answer := make(chan error, 1)
	go func() {
		_, err := r.post(ctx, "/oauth2/revoke", url.Values{"client_id": {"bench"}, "token": {raw}})
		answered = time.Since(began)
		answer <- err
	}()
	for waiting := verifiers; len(waiting) > 0; time.Sleep(200 * time.Microsecond) {
		if ctx.Err() != nil {
			return nil, 0, errors.New("a revoked token is good for 20 s")
		}
		waiting = slices.DeleteFunc(waiting, func(v *tokens.Verifier) bool {
			_, err := v.Verify(ctx, raw, r.peer)
			if err != nil {
				took = append(took, time.Since(began))
			}
			return err != nil
		})
	}
	return took, answered, <-answer
}

// cost prints what a token that was seen before costs to verify, without asking and asking lists of several lengths.
func (r *revocations) cost(ctx context.Context) error {
	const verifications = 20_000
	fmt.Printf("\nCPU per verification of a token seen before, at a resource server\n\n")
	plain := 0.0
	for _, entries := range []int{-1, 0, 1_000, 50_000} {
		name := "no deny feed"
		var list tokens.DenyList
		ask := func(_ context.Context, c *tokens.Claims, keyID string) (bool, error) {
			return list.Denies(c, keyID), nil
		}
		if entries < 0 {
			ask = nil
		} else {
			name = fmt.Sprintf("%d entries", entries)
		}
		for n := range entries {
			if err := list.Add(tokens.Denial{TokenID: fmt.Sprint("other ", n), Until: time.Now().Add(time.Hour)}); err != nil {
				return err
			}
		}
		v, err := r.verifier(ask)
		if err != nil {
			return err
		}
		raw, err := r.token(ctx, v)
		if err != nil {
			return err
		}
		var rounds []float64
		for range 5 {
			runtime.GC()
			begin := time.Now()
			for range verifications {
				if _, err := v.Verify(ctx, raw, r.peer); err != nil {
					return err
				}
			}
			rounds = append(rounds, micros(time.Since(begin))/verifications)
		}
		slices.Sort(rounds)
		fmt.Printf("%-14s %8.3f µs", name, rounds[len(rounds)/2])
		if entries < 0 {
			plain = rounds[len(rounds)/2]
			fmt.Println()
			continue
		}
		fmt.Printf(", %+.3f µs\n", rounds[len(rounds)/2]-plain)
	}
	return nil
}
