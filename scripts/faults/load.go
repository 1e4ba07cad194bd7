// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// How much load there is. It is meant to leave the machine something for those who run it.
const (
	loadClients = 4
	askers      = 16                   // ask for tokens, each on its own kept-alive connection
	think       = 8 * time.Millisecond // greatest pause between two tokens of one
	churners    = 3                    // register, enrol, renew and revoke
	verbPause   = 200 * time.Millisecond
)

// A load is everybody who uses a service, through its ends, until it is stopped.
type load struct {
	service *service
	book    *book
	roots   *x509.CertPool
	running sync.WaitGroup
	stopped chan struct{}
	// around are the replicas and what is before them, when there are several: then a refusal for the moment is no answer,
	// a code is redeemed at two of them at once, and who is to lose authority asks all of them meanwhile.
	around []*service
	// sending is told of the sending of changes, if anybody listens.
	sending chan struct{}
}

// newLoad begins the load on a service that populate has filled.
func newLoad(ctx context.Context, s *service, b *book) (*load, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	l := &load{service: s, book: b, roots: roots, stopped: make(chan struct{}), sending: make(chan struct{})}
	for i := range askers {
		client := fmt.Sprintf("load-%d", i%loadClients)
		c, err := s.caller(client)
		if err != nil {
			return nil, err
		}
		l.running.Go(func() { l.ask(ctx, c, client) })
	}
	for i := range churners {
		c, err := s.caller("data/admin")
		if err != nil {
			return nil, err
		}
		l.running.Go(func() { l.churn(ctx, &operator{load: l, caller: c}, i) })
	}
	l.running.Go(func() { l.verbs(ctx) })
	return l, nil
}

// stop ends the load, when everybody has got the answers that are still due. The service must be up.
func (l *load) stop() {
	close(l.stopped)
	l.running.Wait()
}

func (l *load) goesOn(ctx context.Context) bool {
	select {
	case <-l.stopped:
		return false
	case <-ctx.Done():
		return false
	default:
		return true
	}
}

// insist makes a request until there is an answer, through ends of the service.
func (l *load) insist(ctx context.Context, request func() (answer, error)) (answer, error) {
	for begin := time.Now(); ; {
		if err := l.service.serving(ctx); err != nil {
			return answer{}, err
		}
		a, err := request()
		again, wait := err != nil, 2*time.Millisecond
		if l.around != nil {
			again, wait = again || a.status == http.StatusServiceUnavailable, 20*time.Millisecond
		}
		if !again || ctx.Err() != nil {
			return a, err
		}
		if l.around != nil && time.Since(begin) > patience {
			return a, fmt.Errorf("nothing but failures for %v, the last: %v, %v", patience, a, err)
		}
		if !pause(ctx, wait) {
			return answer{}, ctx.Err()
		}
	}
}

// insistOnChange is insist for what changes something, of which the one who kills may want to know.
func (l *load) insistOnChange(ctx context.Context, request func() (answer, error)) (answer, error) {
	return l.insist(ctx, func() (answer, error) {
		l.tellSending()
		return request()
	})
}

func (l *load) tellSending() {
	select {
	case l.sending <- struct{}{}:
	default:
	}
}

// ask asks for one token after the other.
func (l *load) ask(ctx context.Context, c *caller, client string) {
	defer c.close()
	for l.goesOn(ctx) {
		if err := l.tokenFor(ctx, c, client); err != nil && ctx.Err() == nil {
			l.book.problem(fmt.Sprintf("a token for %s: %v", client, err))
			return
		}
		pause(ctx, time.Duration(rand.Int64N(int64(think))))
	}
}

// soon is insist for who has just been given authority, of which a replica that is cut off may not know yet.
func (l *load) soon(ctx context.Context, request func() (answer, error)) (answer, error) {
	begin := time.Now()
	return l.insist(ctx, func() (answer, error) {
		a, err := request()
		if err == nil && a.status == http.StatusUnauthorized && l.around != nil && time.Since(begin) < catchUp {
			l.book.refusedEarly()
			return a, errors.New("refused early")
		}
		return a, err
	})
}

// tokenFor takes one token and notes it.
func (l *load) tokenFor(ctx context.Context, c *caller, client string) error {
	return l.takeToken(ctx, c, client, l.insist)
}

func (l *load) takeToken(
	ctx context.Context, c *caller, client string, insist func(context.Context, func() (answer, error)) (answer, error),
) error {
	var sent time.Time
	a, err := insist(ctx, func() (answer, error) {
		sent = time.Now()
		return c.askToken(ctx, l.service.tokenURL(), client, resource)
	})
	if err != nil {
		return err
	}
	return l.note(a, c, client, sent)
}

// note notes a token that arrived.
func (l *load) note(a answer, c *caller, client string, sent time.Time) error {
	_, claims, err := a.token()
	if err != nil {
		return err
	}
	if claims.Client != client || claims.Confirmation.Thumbprint != c.thumbprint() {
		return fmt.Errorf("the token is for %s and bound to %s", claims.Client, claims.Confirmation.Thumbprint)
	}
	l.book.token(claims, sent)
	return nil
}

// An operator calls the operators' API, with a token that it renews in time.
type operator struct {
	*load
	caller *caller
	bearer string
	since  time.Time
}

// token returns a token for the operators' API.
func (o *operator) token(ctx context.Context) (string, error) {
	if o.bearer != "" && time.Since(o.since) < time.Minute {
		return o.bearer, nil
	}
	var sent time.Time
	a, err := o.insist(ctx, func() (answer, error) {
		sent = time.Now()
		return o.caller.askToken(ctx, o.service.tokenURL(), firstOperator, o.service.issuer()+"/admin/v1")
	})
	if err != nil {
		return "", err
	}
	text, claims, err := a.token()
	if err != nil {
		return "", fmt.Errorf("an operator's token: %w", err)
	}
	o.book.token(claims, sent)
	o.bearer, o.since = text, time.Now()
	return text, nil
}

// call makes a change and returns the answer, whatever it says.
func (o *operator) call(ctx context.Context, method, path string, in any) (answer, error) {
	var failed error
	a, err := o.insistOnChange(ctx, func() (answer, error) {
		var bearer string // may be due anew in each attempt
		if bearer, failed = o.token(ctx); failed != nil {
			return answer{}, nil
		}
		if method == http.MethodDelete {
			return o.caller.do(ctx, method, o.service.adminURL()+path, "", bearer, nil)
		}
		return o.caller.postJSON(ctx, o.service.adminURL()+path, bearer, in)
	})
	return a, errors.Join(err, failed)
}

// done makes a change of a client that has to succeed, also when it is repeated because an answer was lost.
func (o *operator) done(ctx context.Context, event, method, path string, in any, client, state string) error {
	o.book.unsure(client)
	begin := time.Now()
	a, err := o.call(ctx, method, path, in)
	if err != nil {
		return err
	}
	if state == "disabled" || state == "removed" || event == revokeEvent {
		o.book.waited(time.Since(begin))
	}
	if event == removeEvent && a.status == http.StatusNotFound {
		o.book.settled(client, state) // an answer was lost
		return nil
	}
	var told struct {
		Revoked []struct{} `json:"revoked"`
	}
	if err := a.decode(&told); err != nil {
		return fmt.Errorf("%s of %s: %w", event, client, err)
	}
	o.book.change(change{event: event, client: client, correlation: a.correlation, records: max(1, len(told.Revoked))}, state)
	return nil
}

type empty struct{}

// invited registers a client and returns its enrolment code.
func (o *operator) invited(ctx context.Context, client string) (string, error) {
	a, err := o.call(ctx, http.MethodPost, "/clients", map[string]string{"client_id": client, "scope": scope})
	if err != nil {
		return "", err
	}
	event := addEvent
	if a.status == http.StatusConflict { // an answer was lost
		event = inviteEvent
		if a, err = o.call(ctx, http.MethodPost, clientPath(client)+"/invite", empty{}); err != nil {
			return "", err
		}
	}
	var invitation struct {
		Code string `json:"code"`
	}
	if err := a.decode(&invitation); err != nil {
		return "", fmt.Errorf("%s of %s: %w", event, client, err)
	}
	o.book.change(change{event: event, client: client, correlation: a.correlation, records: 1}, "enabled")
	return invitation.Code, nil
}

func clientPath(id string) string { return "/clients/" + url.PathEscape(id) }

// churn leads clients through their lives, one after the other.
func (l *load) churn(ctx context.Context, o *operator, number int) {
	defer o.caller.close()
	for n := 0; l.goesOn(ctx); n++ {
		client := fmt.Sprintf("churn-%d-%d", number, n)
		if err := l.life(ctx, o, client, n); err != nil && ctx.Err() == nil {
			l.book.problem(fmt.Sprintf("%s: %v", client, err))
			return
		}
	}
}

// life is that of one client: registered, enrolled, renewed, and then one of revoked, disabled, let in again, removed.
func (l *load) life(ctx context.Context, o *operator, client string, n int) error {
	code, err := o.invited(ctx, client)
	if err != nil {
		return err
	}
	first, second, err := l.certified(ctx, client, code)
	if err != nil {
		return err
	}
	defer first.close()
	defer second.close()
	hunt := l.hunt(ctx, client, first.pair, second.pair)
	if l.around != nil {
		pause(ctx, chase) // in which they get a token or two
	}
	hunt.loses()
	switch n % 4 {
	case 0:
		request := map[string]string{"serial": first.pair.Current().Leaf.SerialNumber.String(), "reason": "superseded"}
		if n%8 == 4 {
			request = map[string]string{"client_id": client}
		}
		// A revocation that is repeated finds nothing left to do, and is done all the same.
		if err := o.done(ctx, revokeEvent, http.MethodPost, "/certificates/revoke", request, client, "enabled"); err != nil {
			return err
		}
	case 1, 2:
		if err := o.done(ctx, disableEvent, http.MethodPost, clientPath(client)+"/disable", empty{}, client, "disabled"); err != nil {
			return err
		}
	case 3:
		if err := o.done(ctx, removeEvent, http.MethodDelete, clientPath(client), nil, client, "removed"); err != nil {
			return err
		}
	}
	lost := l.book.lost(client, n%4 == 0, first.pair, second.pair)
	if err := hunt.refused(); err != nil {
		return err
	}
	for _, c := range []*caller{first, second} {
		if err := l.refused(ctx, c, client); err != nil {
			return err
		}
	}
	if n%4 != 1 {
		return nil
	}
	l.book.back(lost)
	if err := o.done(ctx, enableEvent, http.MethodPost, clientPath(client)+"/enable", empty{}, client, "enabled"); err != nil {
		return err
	}
	return l.takeToken(ctx, second, client, l.soon)
}

// certified enrols a client and renews its certificate, and returns callers with the one and the other.
func (l *load) certified(ctx context.Context, client, code string) (first, second *caller, _ error) {
	pair, key, err := l.redeemed(ctx, code)
	if err != nil {
		return nil, nil, fmt.Errorf("enrolment: %w", err)
	}
	l.book.certificate(pair, client, enrollEvent)
	first = newCaller(pair, l.roots)
	if err := l.takeToken(ctx, first, client, l.soon); err != nil {
		return nil, nil, err
	}
	csr, err := pki.CreateRequest(key)
	if err != nil {
		return nil, nil, err
	}
	at := l.service
	if len(l.around) > 1 {
		at = l.beside().service
	}
	a, err := l.soon(ctx, func() (answer, error) {
		l.tellSending()
		return first.postJSON(ctx, at.mtlsURL()+"/pki/renew", "", pki.NewRenewRequest(csr))
	})
	if err != nil {
		return nil, nil, err
	}
	if pair, err = a.certificate(key); err != nil {
		return nil, nil, fmt.Errorf("renewal: %w", err)
	}
	l.book.certificate(pair, client, renewEvent)
	second = newCaller(pair, l.roots)
	return first, second, l.takeToken(ctx, second, client, l.soon)
}

// redeem asks this place for a certificate, until there is an answer.
func (l *load) redeem(ctx context.Context, e *enrolment) (answer, error) {
	stranger := newCaller(nil, l.roots)
	defer stranger.close()
	return l.insistOnChange(ctx, func() (answer, error) {
		return stranger.postJSON(ctx, l.service.publicURL()+"/pki/enroll", "", e.request)
	})
}

// redeemed redeems a code: at two places at once with a key for each, when there are several. One has to get the
// certificate and the other not.
func (l *load) redeemed(ctx context.Context, code string) (*mtls.KeyPair, *ecdsa.PrivateKey, error) {
	mine, err := newEnrolment(code, l.service.issuer())
	if err != nil {
		return nil, nil, err
	}
	if len(l.around) < 2 {
		a, err := l.redeem(ctx, mine)
		if err != nil {
			return nil, nil, err
		}
		pair, err := a.certificate(mine.key)
		return pair, mine.key, err
	}
	other, err := newEnrolment(code, l.service.issuer())
	if err != nil {
		return nil, nil, err
	}
	first, second, err := l.race(ctx, mine, other)
	if err != nil {
		return nil, nil, err
	}
	l.book.raced()
	pair, err := first.certificate(mine.key)
	pairOther, errOther := second.certificate(other.key)
	switch {
	case err == nil && errOther == nil:
		return nil, nil, errors.New("one code was used twice, with two keys")
	case err == nil:
		return pair, mine.key, nil
	case errOther == nil:
		return pairOther, other.key, nil
	}
	return nil, nil, fmt.Errorf("one code, two places, no certificate: %w; %w", err, errOther)
}

// race redeems one code at two places at once. A replica may not have heard yet that a code was given, one whose database
// was replaced a moment ago above all: both are asked again until one of them knows it.
func (l *load) race(ctx context.Context, mine, other *enrolment) (first, second answer, _ error) {
	begin := time.Now()
	for {
		beside := l.beside()
		var err, failed error
		var both sync.WaitGroup
		both.Go(func() { second, failed = beside.redeem(ctx, other) })
		first, err = l.redeem(ctx, mine)
		both.Wait()
		if err := errors.Join(err, failed); err != nil {
			return first, second, err
		}
		unknown := first.status == http.StatusBadRequest && second.status == http.StatusBadRequest
		if !unknown || time.Since(begin) > catchUp {
			return first, second, nil
		}
		l.book.refusedEarly()
		pause(ctx, think)
	}
}

// refused requires that a client gets no token, neither on the connection that it has nor on a new one.
func (l *load) refused(ctx context.Context, c *caller, client string) error {
	for range 2 {
		a, err := l.insist(ctx, func() (answer, error) { return c.askToken(ctx, l.service.tokenURL(), client, resource) })
		if err != nil {
			return err
		}
		if a.status != http.StatusUnauthorized {
			return errors.New("who had lost all authority was answered " + a.String()[:3])
		}
		c.close()
	}
	return nil
}

// stillRefused asks for the newest n certificates that lost their authority whether they get a token.
func (l *load) stillRefused(ctx context.Context, n int) error {
	for _, lost := range l.book.gone(n) {
		c := newCaller(lost.pair, l.roots)
		err := l.refused(ctx, c, lost.client)
		c.close()
		if err != nil && !l.book.isBack(lost) { // its authority may come back meanwhile
			return fmt.Errorf("%s: %w", lost.client, err)
		}
	}
	return nil
}

// verbs runs the operator's verbs as programs of their own. One that says that it is done is taken by its word; one that
// failed because the service was gone is not repeated.
func (l *load) verbs(ctx context.Context) {
	const profile = " --profile data/admin"
	for n := 0; l.goesOn(ctx); n++ {
		client := fmt.Sprintf("verb-%d", n)
		for _, verb := range []struct{ event, line, state string }{
			{addEvent, "client add " + client + " --scope " + scope, "enabled"},
			{disableEvent, "client disable " + client, "disabled"},
		} {
			if !pause(ctx, verbPause/2) {
				return
			}
			ends := l.service.ends() // before it is known to serve
			if l.service.serving(ctx) != nil {
				return
			}
			l.book.unsure(client)
			r, err := l.service.run(ctx, verb.line+profile, "")
			if err != nil || r.Exit != 0 {
				if ctx.Err() == nil && ends == l.service.ends() {
					l.book.problem(fmt.Sprintf("certbound %s: %v %s", verb.line, err, r.Stderr))
				}
				break
			}
			l.book.change(change{event: verb.event, client: client, records: 1}, verb.state)
		}
	}
}
