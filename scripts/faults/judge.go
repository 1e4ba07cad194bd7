// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// The events that are looked for by name.
const (
	addEvent     = "client.add"
	inviteEvent  = "client.invite"
	disableEvent = "client.disable"
	enableEvent  = "client.enable"
	removeEvent  = "client.remove"
	revokeEvent  = "cert.revoke"
	enrollEvent  = "cert.enroll"
	renewEvent   = "cert.renew"
)

// firstOperator is made by the first start, at nobody's request.
const firstOperator = "operator"

// most bounds how many problems of one kind are told.
const most = 10

// missing are the tokens that somebody received and that are not on record.
func (b *book) missing(j *journal) []token {
	var lost []token
	for _, t := range b.tokens {
		if len(j.tokens[t.id]) == 0 {
			lost = append(lost, t)
		}
	}
	return lost
}

// judge holds what was told against what is on record and what the service holds. Tokens that are not on record are
// missing's affair. The book must not be written to any more.
func (b *book) judge(j *journal, inv *inventory) error {
	wrong := slices.Concat(b.problems, j.problems, b.judgeTokens(j), b.judgeChanges(j), b.judgeCertificates(j, inv), b.judgeClients(j, inv))
	if len(wrong) > most {
		wrong = append(wrong[:most:most], fmt.Sprintf("and %d more", len(wrong)-most))
	}
	if len(wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(wrong, "\n          "))
}

// judgeTokens finds tokens that are recorded twice, or of somebody else, or that were given to who had lost authority.
func (b *book) judgeTokens(j *journal) (wrong []string) {
	lost := make(map[string][]*loss)
	for _, l := range b.losses {
		lost[l.thumbprint] = append(lost[l.thumbprint], l)
	}
	received := make(map[string]bool)
	for _, t := range b.tokens {
		received[t.id] = true
	}
	for id, records := range j.tokens {
		r := records[0]
		if len(records) > 1 {
			wrong = append(wrong, fmt.Sprintf("token %s of %s is on record %d times", id, r.Client, len(records)))
		}
		if b.several && !received[id] {
			continue // a replica may find after the record that it may not give the token, and then it does not leave
		}
		for _, l := range lost[r.Thumbprint] {
			if l.covers(r.Time) {
				wrong = append(wrong, fmt.Sprintf("token %s was given to %s %v after its certificate had lost all authority", id, r.Client, r.Time.Sub(l.at)))
			}
		}
	}
	for _, t := range b.tokens {
		if r := j.tokens[t.id]; len(r) > 0 && r[0].Client != t.client {
			wrong = append(wrong, fmt.Sprintf("token %s of %s is on record for %s", t.id, t.client, r[0].Client))
		}
		for _, l := range lost[t.thumbprint] {
			switch {
			case l.covers(t.issued) && l.covers(t.received): // iat is cut to seconds, and may seem to be before authority is back
				wrong = append(wrong, fmt.Sprintf("token %s of %s has an iat %v after its certificate had lost all authority", t.id, t.client, t.issued.Sub(l.at)))
			case l.covers(t.sent) && l.covers(t.received):
				wrong = append(wrong, fmt.Sprintf("token %s of %s was asked for %v after its certificate had lost all authority", t.id, t.client, t.sent.Sub(l.at)))
			}
		}
	}
	return wrong
}

// covers says whether the certificate had no authority at that time.
func (l *loss) covers(at time.Time) bool {
	return at.After(l.at) && (l.until.IsZero() || at.Before(l.until))
}

// judgeChanges finds changes that somebody was told of and that are not on record exactly once.
func (b *book) judgeChanges(j *journal) (wrong []string) {
	for id, n := range j.ids {
		if n > 1 {
			wrong = append(wrong, fmt.Sprintf("event %s is on record %d times", id, n))
		}
	}
	for _, c := range b.changes {
		n := j.clients[[2]string{c.event, c.client}]
		if c.correlation != "" {
			n = j.changes[[2]string{c.event, c.correlation}]
		}
		if n != c.records {
			wrong = append(wrong, fmt.Sprintf("%s of %s, correlation %q, was done and is on record %d times, want %d",
				c.event, c.client, c.correlation, n, c.records))
		}
	}
	return wrong
}

// judgeCertificates finds certificates that somebody received and that the service does not know as it should, and any
// that it knows and did not record exactly once.
func (b *book) judgeCertificates(j *journal, inv *inventory) (wrong []string) {
	known := make(map[string]inventoryCertificate)
	for _, cert := range inv.certs {
		known[cert.Thumbprint] = cert
		if n := len(j.certs[cert.Serial]); n != 1 {
			wrong = append(wrong, fmt.Sprintf("certificate %s of %s is in the inventory and on record %d times", cert.Serial, cert.Client, n))
		}
		if b.revoked[cert.Thumbprint] && (cert.Status != "revoked" || j.revoked[cert.Serial] != 1) {
			wrong = append(wrong, fmt.Sprintf("certificate %s of %s was revoked, is %s, and that is on record %d times",
				cert.Serial, cert.Client, cert.Status, j.revoked[cert.Serial]))
		}
	}
	for _, c := range b.certs {
		have, ok := known[c.thumbprint]
		records := j.certs[c.serial]
		switch {
		case !ok || have.Client != c.client:
			wrong = append(wrong, fmt.Sprintf("certificate %s, which %s received, is not in the inventory", c.serial, c.client))
		case len(records) == 0 || records[0].Event != c.event || records[0].Client != c.client:
			wrong = append(wrong, fmt.Sprintf("certificate %s, which %s received, is not on record as %s", c.serial, c.client, c.event))
		}
	}
	return wrong
}

// judgeClients finds clients that are not as somebody was told, and any that was not recorded exactly once.
func (b *book) judgeClients(j *journal, inv *inventory) (wrong []string) {
	for id := range inv.clients {
		if n := j.clients[[2]string{addEvent, id}]; n != 1 && id != firstOperator {
			wrong = append(wrong, fmt.Sprintf("client %s is there, and its registration is on record %d times", id, n))
		}
	}
	for id, want := range b.state {
		disabled, there := inv.clients[id]
		have := "enabled"
		switch {
		case !there:
			have = "removed"
		case disabled:
			have = "disabled"
		}
		if have != want {
			wrong = append(wrong, fmt.Sprintf("client %s is %s, and somebody was told %s", id, have, want))
		}
	}
	return wrong
}

// beside says how near to a kill the tokens were received, in the one case of them that is farthest from any.
func (b *book) beside(tokens []token) (farthest time.Duration) {
	for _, t := range tokens {
		nearest := time.Duration(math.MaxInt64)
		if t.life < len(b.ends) {
			nearest = b.ends[t.life].Sub(t.received)
		}
		if t.life > 0 { // an answer may be read when whoever gave it is gone
			nearest = min(nearest, t.received.Sub(b.ends[t.life-1]))
		}
		farthest = max(farthest, nearest)
	}
	return farthest
}
