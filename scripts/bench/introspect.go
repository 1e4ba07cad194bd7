// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// mostIntrospectionCost is promised of the server CPU of introspection of a token that was seen before, beside that of a
// token request without its signature. One of a new token may cost a bare ecdsa.Verify more.
const mostIntrospectionCost = 1.3

// introspection measures what it costs to be asked about a token, seen before or new, beside a token request of the same
// round. What a signature and its verification cost is measured here, while the service has nothing to do.
func (b *bench) introspection(ctx context.Context, s *service, t *target) error {
	m := modes()[0]
	d, err := newDesk(s, t)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	var tokens, known, fresh, signing, verifying []time.Duration
	var knownRatio, freshRatio []float64
	for range b.rounds {
		sign, verify, err := bare(key)
		if err != nil {
			return err
		}
		token, err := load(ctx, d.tokens, m, b.round, 0)
		if err != nil {
			return err
		}
		before, err := load(ctx, d.known, m, b.round, 0)
		if err != nil {
			return err
		}
		// Each worker takes a token for its first question, which is not counted, and may take one too many.
		first, err := load(ctx, d.fresh, m, time.Minute, d.stock()-2*m.connections)
		if err != nil {
			return err
		}
		least := float64(token.cpu - sign)
		knownRatio = append(knownRatio, float64(before.cpu)/least)
		freshRatio = append(freshRatio, float64(first.cpu-verify)/least)
		tokens, known, fresh = append(tokens, token.cpu), append(known, before.cpu), append(fresh, first.cpu)
		signing, verifying = append(signing, sign), append(verifying, verify)
	}
	fmt.Printf("\nserver CPU per introspection, audit.sync %s, %s, median of %d rounds of %v\n\n", s.sync, m.name, b.rounds, b.round)
	fmt.Printf("%-46s %9.1f µs, of which a bare ecdsa.Sign is %.1f µs\n", "token request", micros(median(tokens)), micros(median(signing)))
	fmt.Printf("%-46s %9.1f µs, %.2f times a token request without its signature; promised is %.2f\n",
		"introspection of a token seen before", micros(median(known)), median(knownRatio), mostIntrospectionCost)
	fmt.Printf("%-46s %9.1f µs, %.2f times beside a bare ecdsa.Verify of %.1f µs; promised is %.2f\n",
		"introspection of a new token", micros(median(fresh)), median(freshRatio), micros(median(verifying)), mostIntrospectionCost)
	if worst := max(median(knownRatio), median(freshRatio)); b.strict && worst > mostIntrospectionCost {
		return fmt.Errorf("introspection costs %.2f times a token request without its signature, promised is %.2f", worst, mostIntrospectionCost)
	}
	return nil
}

// bare returns what one signature with the key and its verification take.
func bare(key *ecdsa.PrivateKey) (sign, verify time.Duration, err error) {
	const times = 1000
	digest := sha256.Sum256([]byte("bench"))
	signatures := make([][]byte, times)
	begin, err := ownTime()
	if err != nil {
		return 0, 0, err
	}
	for i := range signatures {
		if signatures[i], err = ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
			return 0, 0, err
		}
	}
	signed, err := ownTime()
	if err != nil {
		return 0, 0, err
	}
	for _, s := range signatures {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], s) {
			return 0, 0, errors.New("a signature does not verify")
		}
	}
	verified, err := ownTime()
	return (signed - begin) / times, (verified - signed) / times, err
}

// ownTime returns the CPU time of this process, user and system.
func ownTime() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// A desk is where tokens are taken and asked about, by the client that runs the resource server that they are for.
type desk struct {
	tokens, known, fresh *target

	mu    sync.Mutex
	taken []string // and not asked about
}

func newDesk(s *service, t *target) (*desk, error) {
	config, err := readClientConfigOf(s.dir, "reference")
	if err != nil {
		return nil, err
	}
	d := &desk{}
	tokens, known, fresh := *t, *t, *t
	tokens.taken = d.take
	known.config, fresh.config = config, config
	known.answer, fresh.answer = activeAnswer, activeAnswer
	one := sync.OnceValue(func() []byte { return d.question(t.address) })
	known.next = one
	fresh.next = func() []byte { return d.question(t.address) }
	d.tokens, d.known, d.fresh = &tokens, &known, &fresh
	return d, nil
}

func (d *desk) take(body []byte) error {
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken = append(d.taken, answer.AccessToken)
	return nil
}

func (d *desk) stock() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.taken)
}

// question is a request about a token that was not asked about before, or about none when there is no such token.
func (d *desk) question(address string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	token := ""
	if n := len(d.taken); n > 0 {
		token, d.taken = d.taken[n-1], d.taken[:n-1]
	}
	form := url.Values{"client_id": {"reference"}, "token": {token}}.Encode()
	return post(address, "/oauth2/introspect", "application/x-www-form-urlencoded", form)
}

func activeAnswer(body []byte) error {
	if !bytes.HasPrefix(body, []byte(`{"active":true,`)) {
		return fmt.Errorf("the answer is %s, and no active token", body)
	}
	return nil
}
