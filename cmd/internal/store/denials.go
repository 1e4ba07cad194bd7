// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
)

const (
	// longestToken is the longest life of any token, whatever the configuration says now: it may have said otherwise
	// when the token was issued.
	longestToken = time.Hour
	// denialSlack is how much longer than the token a denial is kept: verifiers allow a minute, and clocks differ.
	denialSlack = 2 * time.Minute
	// pruneSlack is how much longer it stays in the database.
	pruneSlack = 5 * time.Minute
	// keyDenialLife is how long a signing key is denied: until nobody remembers its public half, who may have got it from
	// elsewhere than from our own key set. Such keys are few.
	keyDenialLife = 30 * 24 * time.Hour
	// otherClock is how long after the commit another replica may still give a token of before, by its own clock: its lease
	// lasts 3 s, its clock is off by at most 1 s, and a second for what is under way.
	otherClock = 5 * time.Second
	// maxGivenBack bounds the rows for tokens that one client gives back. Beyond, it gives back all that it has.
	maxGivenBack = 4096
)

// The kinds of denials.
const (
	denyToken       = "jti"
	denyCertificate = "x5t"
	denyClient      = "client"
	denyKey         = "kid"
)

// The statements about denials. What is denied already keeps whatever denies more, and is a new row only when it changes.
const (
	setDenialSeq   = `UPDATE state SET denial_seq = $1 WHERE id = 1`
	queryDenialSeq = `SELECT denial_seq FROM state WHERE id = 1`
	upsertDenial   = `INSERT INTO denials (position, kind, value, client_id, before_at, until_at) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (kind, value) DO UPDATE SET position = excluded.position, version = NULL,
			before_at = CASE WHEN denials.before_at < excluded.before_at THEN excluded.before_at ELSE denials.before_at END,
			until_at = CASE WHEN denials.until_at < excluded.until_at THEN excluded.until_at ELSE denials.until_at END
		WHERE denials.before_at < excluded.before_at OR denials.until_at < excluded.until_at`
	queryDenials = `SELECT position, kind, value, before_at, until_at FROM denials
		WHERE position > $1 ORDER BY position LIMIT $2`
	queryDeniedBefore = `SELECT before_at FROM denials WHERE kind = $1 AND value = $2`
	pruneDenials      = `DELETE FROM denials WHERE until_at < $1`
	countGivenBack    = `SELECT count(*) FROM denials WHERE client_id = $1 AND client_id <> ''`
	queryDenial       = `SELECT count(*) FROM denials WHERE kind = $1 AND value = $2`
	shiftDenials      = `UPDATE denials SET position = position + $1`
	// An entry of the inventory is revoked together with its key: that none of them is left over is made sure of here.
	queryKeyHeldBy = `SELECT thumbprint, not_after FROM client_certificates WHERE key_hash = $1
		UNION SELECT thumbprint, not_after FROM certificates WHERE key_hash = $1 AND revoked_at IS NULL`
)

// Denied is a denial as it is stored.
type Denied struct {
	tokens.Denial
	Position int64 // greater than that of every row that was there before
}

// Deny has tokens refused that have not expired, and returns how many of the denials said something new. A ClientID
// without IssuedBefore means every token that any replica can have issued before this is in force; a zero Until is when
// the longest token has expired that the denial could mean. It takes away: as a part of Transact, in a transaction with
// its record.
func (s *Store) Deny(ctx context.Context, denials ...tokens.Denial) (int, error) {
	added := 0
	err := s.change(ctx, func(c *change) error {
		added = 0
		for _, d := range denials {
			isNew, err := c.deny(d, s.now())
			if err != nil {
				return err
			}
			if isNew {
				added++
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("deny tokens: %w", err)
	}
	return added, nil
}

// TokenRevocation is what RevokeToken did.
type TokenRevocation int

// What RevokeToken did.
const (
	RevokedBefore TokenRevocation = iota // nothing: it had been done before
	RevokedOne                           // the token is denied
	RevokedAll                           // all tokens that the client has are, since it has given back too many one by one
)

// RevokeToken denies a token that its client gives back, until after it expires. The same token again changes nothing.
func (s *Store) RevokeToken(ctx context.Context, clientID, tokenID string, expires time.Time) (done TokenRevocation, err error) {
	err = s.change(ctx, func(c *change) error {
		done = RevokedBefore
		var there, given int
		if err := c.tx.QueryRowContext(c.ctx, queryDenial, denyToken, tokenID).Scan(&there); err != nil || there > 0 {
			return err
		}
		if err := c.tx.QueryRowContext(c.ctx, countGivenBack, clientID).Scan(&given); err != nil {
			return err
		}
		what, d := RevokedOne, tokens.Denial{TokenID: tokenID, Until: expires.Add(denialSlack)}
		if given >= maxGivenBack {
			what, d = RevokedAll, tokens.Denial{ClientID: clientID}
		}
		isNew, err := c.denyOf(clientID, d, s.now())
		if isNew {
			done = what
		}
		return err
	})
	if err != nil {
		return RevokedBefore, fmt.Errorf("revoke a token: %w", err)
	}
	return done, nil
}

// deny stores one denial at the time now, and reports whether it said something new.
func (c *change) deny(d tokens.Denial, now time.Time) (bool, error) {
	return c.denyOf("", d, now)
}

// denyOf is deny for a token that its client gave back, or for none when owner is empty.
func (c *change) denyOf(owner string, d tokens.Denial, now time.Time) (bool, error) {
	if d.ClientID != "" && d.IssuedBefore.IsZero() {
		d.IssuedBefore = now.Truncate(time.Second).Add(time.Second) // "iat" has whole seconds
		if c.core.dialect.name() == postgresKind {
			d.IssuedBefore = d.IssuedBefore.Add(otherClock)
		}
	}
	switch {
	case !d.Until.IsZero():
	case d.KeyID != "":
		d.Until = now.Add(keyDenialLife)
	default:
		d.Until = now.Add(max(c.core.maxLife, longestToken) + otherClock + denialSlack)
	}
	if err := d.Check(); err != nil {
		return false, err
	}
	kind, value := denialKey(&d)
	if !storable(value) {
		return false, fmt.Errorf("a denial of what is no text: %w", ErrNotFound)
	}
	if c.denials == 0 {
		if err := c.tx.QueryRowContext(c.ctx, queryDenialSeq).Scan(&c.denials); err != nil {
			return false, err
		}
	}
	n, err := c.exec("denials", upsertDenial, c.denials+1, kind, value, owner, microseconds(d.IssuedBefore), microseconds(d.Until))
	if err != nil || n == 0 {
		return false, err
	}
	c.denials++
	c.what.Denials = true
	return true, nil
}

// countDenials keeps the position of the last denial, last of all as that of the version.
func (c *change) countDenials() error {
	if c.denials == 0 {
		return nil
	}
	if _, err := c.tx.ExecContext(c.ctx, setDenialSeq, c.denials); err != nil {
		return fmt.Errorf("count the denials: %w", err)
	}
	c.denials = 0
	return nil
}

// denyCertificate denies the tokens that are bound to a certificate that was taken away at that time. None outlives it.
func (c *change) denyCertificate(thumbprint [32]byte, notAfter, at time.Time) error {
	until := at.Add(max(c.core.maxLife, longestToken))
	if notAfter.Before(until) {
		until = notAfter
	}
	if until = until.Add(otherClock + denialSlack); until.Before(c.core.now()) {
		return nil
	}
	_, err := c.deny(tokens.Denial{Thumbprint: thumbprint, Until: until}, at)
	return err
}

// denyClient denies the tokens that a client has.
func (c *change) denyClient(id string, now time.Time) error {
	_, err := c.deny(tokens.Denial{ClientID: id}, now)
	return err
}

// denyKeyHolders denies the tokens that are bound to a certificate that we know with this public key, and all of a client
// that signs assertions with it: nobody knows which of those the thief asked for.
func (c *change) denyKeyHolders(keyHash [32]byte, now time.Time) error {
	type holder struct {
		thumbprint [32]byte
		notAfter   time.Time
	}
	var signer string
	switch err := c.tx.QueryRowContext(c.ctx, queryNameUser, kindAssertionKey, assertionKeyForm(keyHash)).Scan(&signer); {
	case err == nil:
		if err := c.denyClient(signer, now); err != nil {
			return err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	rows, err := c.tx.QueryContext(c.ctx, queryKeyHeldBy, digest(keyHash))
	list, err := all(rows, err, func(r row) (h holder, err error) {
		return h, r.Scan((*digest)(&h.thumbprint), (*moment)(&h.notAfter))
	})
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := c.denyCertificate(h.thumbprint, h.notAfter, now); err != nil {
			return err
		}
	}
	return nil
}

func denialKey(d *tokens.Denial) (kind, value string) {
	switch {
	case d.TokenID != "":
		return denyToken, d.TokenID
	case d.ClientID != "":
		return denyClient, d.ClientID
	case d.KeyID != "":
		return denyKey, d.KeyID
	}
	return denyCertificate, d.Thumbprint.String()
}

func microseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Denials returns, in the order of their positions, the denials behind the position after, at most limit of them, and the
// position up to which these are all: an ended one may be gone.
func (s *Store) Denials(ctx context.Context, after int64, limit int) (list []Denied, upTo int64, err error) {
	if err = s.read.QueryRowContext(ctx, queryDenialSeq).Scan(&upTo); err == nil {
		rows, failed := s.read.QueryContext(ctx, queryDenials, after, limit)
		list, err = all(rows, failed, scanDenied)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the denials: %w", err)
	}
	// First the end, then the rows, of all that there are by then: one that got a new position in between is among them, and
	// left out it would be missing at both.
	if n := len(list); n > 0 && (n == limit || list[n-1].Position > upTo) {
		upTo = list[n-1].Position
	}
	return list, upTo, nil
}

// DenialSeq is the position of the newest denial.
func (s *Store) DenialSeq(ctx context.Context) (n int64, err error) {
	if err = s.read.QueryRowContext(ctx, queryDenialSeq).Scan(&n); err != nil {
		return 0, fmt.Errorf("read the position of the denials: %w", err)
	}
	return n, nil
}

func scanDenied(r row) (Denied, error) {
	var d Denied
	var kind, value string
	var before, until int64
	if err := r.Scan(&d.Position, &kind, &value, &before, &until); err != nil {
		return d, err
	}
	d.Until = time.UnixMicro(until).UTC()
	switch kind {
	case denyToken:
		d.TokenID = value
	case denyKey:
		d.KeyID = value
	case denyClient:
		d.ClientID, d.IssuedBefore = value, time.UnixMicro(before).UTC()
	case denyCertificate:
		t, err := mtls.ParseThumbprint(value)
		if err != nil {
			return d, fmt.Errorf("denial %d: %w", d.Position, err)
		}
		d.Thumbprint = t
	default: // a newer program's: who does not understand it must not go on as if there were none
		return d, fmt.Errorf("denial %d is of an unknown kind", d.Position)
	}
	return d, nil
}

// DeniedBefore returns the time before which a client's tokens are denied, zero when none are: what it is issued before that
// is worth nothing, though it may have been enabled again.
func (s *Store) DeniedBefore(ctx context.Context, clientID string) (time.Time, error) {
	var before int64
	err := s.read.QueryRowContext(ctx, queryDeniedBefore, denyClient, clientID).Scan(&before)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("client %q: which of its tokens are denied: %w", clientID, err)
	}
	return time.UnixMicro(before).UTC(), nil
}

// PruneDenials deletes what ended before now, some minutes ago, and returns how many rows.
func (s *Store) PruneDenials(ctx context.Context, now time.Time) (n int64, err error) {
	err = s.direct(ctx, func(ctx context.Context, w conn) error {
		result, err := w.ExecContext(ctx, pruneDenials, microseconds(now.Add(-pruneSlack)))
		if err == nil {
			n, err = result.RowsAffected()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("delete old denials: %w", err)
	}
	return n, nil
}

// RevokeToken denies a token that expires then, or, when it has no id, all that the client had got until the time at. What
// has ended since is left out.
func (r *Replay) RevokeToken(clientID, tokenID string, expires, at time.Time) error {
	d := tokens.Denial{TokenID: tokenID, Until: expires.Add(denialSlack)}
	if tokenID == "" {
		d = tokens.Denial{ClientID: clientID, Until: at.Add(max(r.s.maxLife, longestToken) + otherClock + denialSlack)}
	}
	if d.Until.Before(r.s.now()) {
		return nil
	}
	_, err := r.c.denyOf(clientID, d, at)
	return err
}
