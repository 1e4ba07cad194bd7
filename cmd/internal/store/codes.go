// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Invite stores a new enrolment code for a client and voids its older open ones. A zero Generation in code is the
// client's; another than the client's is ErrGeneration. Errors: ErrNotFound, ErrClientDisabled, ErrNotEnrolled,
// ErrGeneration, ErrExists.
func (s *Store) Invite(ctx context.Context, clientID string, code Code) error {
	return s.changeClient(ctx, "invite", clientID, func(c *change, client Client) error {
		if client.Disabled {
			return ErrClientDisabled
		}
		if !client.enrols() {
			return ErrNotEnrolled
		}
		if code.Generation != 0 && code.Generation != client.Generation {
			return ErrGeneration
		}
		if _, err := c.exec("codes", voidCodes, clientID); err != nil {
			return err
		}
		code.ClientID, code.Generation = clientID, client.Generation
		return s.addCode(c, code)
	})
}

func (s *Store) addCode(c *change, code Code) error {
	if len(code.PublicKey) == 0 || code.ExpiresAt.IsZero() {
		return errors.New("a code needs a public key and an expiry")
	}
	if code.CreatedAt.IsZero() {
		code.CreatedAt = s.now()
	}
	_, err := c.exec("codes", insertCode, codeID(code.ID), code.ClientID, code.Generation, code.PublicKey,
		moment(code.CreatedAt), moment(code.ExpiresAt))
	return err
}

// Code returns an enrolment code, or ErrNotFound.
func (s *Store) Code(ctx context.Context, id [8]byte) (Code, error) {
	code, err := scanCode(s.read.QueryRowContext(ctx, queryCode, codeID(id)))
	if err != nil {
		return Code{}, fmt.Errorf("enrolment code: %w", err)
	}
	return code, nil
}

func scanCode(r row) (Code, error) {
	var (
		c    Code
		from sql.NullString
	)
	err := r.Scan((*codeID)(&c.ID), &c.ClientID, &c.Generation, &c.PublicKey, (*moment)(&c.CreatedAt),
		(*moment)(&c.ExpiresAt), (*moment)(&c.UsedAt), (*digest)(&c.UsedKey), (*digest)(&c.Certificate), &from, &c.Void)
	c.UsedFrom = from.String
	if errors.Is(err, sql.ErrNoRows) {
		return Code{}, ErrNotFound
	}
	return c, err
}

// Redeem uses the enrolment code id, on the request of the network address from, at the time now for cert, which is
// already signed for the public key with the hash keyHash, and returns the certificate that the code stands for: cert,
// or the one stored earlier when the same key redeems the code again before it expires. A caller must hand out the
// returned one only.
//
// The code is marked used in the transaction that adds the certificate, so that of many callers one wins; the
// certificates of the others are not in the inventory. A refusal stores nothing and burns nothing. Errors: ErrNotFound,
// ErrCodeUsed (another key), ErrCodeExpired, ErrCodeVoid, ErrClientDisabled, ErrGeneration, ErrRevoked (the stored
// certificate), ErrKeyBlocked, ErrKeyTaken, ErrExists (serial number).
func (s *Store) Redeem(ctx context.Context, id [8]byte, keyHash [32]byte, cert Certificate, from string, now time.Time) (Certificate, error) {
	// A wrong id is refused without the write lock: it costs one read, however many there are.
	if _, err := s.Code(ctx, id); err != nil {
		return Certificate{}, fmt.Errorf("redeem: %w", err)
	}
	var stored Certificate
	err := s.change(ctx, func(c *change) error {
		var err error
		stored, err = s.redeem(c, id, keyHash, cert, from, now)
		return err
	})
	if err != nil {
		return Certificate{}, fmt.Errorf("redeem: %w", err)
	}
	return stored, nil
}

func (s *Store) redeem(c *change, id [8]byte, keyHash [32]byte, cert Certificate, from string, now time.Time) (Certificate, error) {
	code, err := scanCode(c.tx.QueryRowContext(c.ctx, queryCode, codeID(id)))
	if err != nil {
		return Certificate{}, err
	}
	if err := code.judge(keyHash, now); err != nil {
		return Certificate{}, err
	}
	if err := c.entitled(code.ClientID, code.Generation); err != nil {
		return Certificate{}, err
	}
	if !code.UsedAt.IsZero() {
		return c.redeemedBefore(code)
	}
	if cert.KeyHash != keyHash || cert.ClientID != code.ClientID || cert.Generation != code.Generation {
		return Certificate{}, errors.New("the certificate is not one for this code")
	}
	cert.RenewedFrom = [32]byte{}
	stored, err := s.insertCertificate(c, cert)
	if err != nil {
		return Certificate{}, err
	}
	n, err := c.exec("codes", useCode, codeID(id), moment(now), digest(keyHash), digest(cert.Thumbprint), from)
	if err != nil {
		return Certificate{}, err
	}
	if n != 1 {
		return Certificate{}, ErrCodeUsed
	}
	return stored, nil
}

// judge decides whether the code may be redeemed by this key now, as far as the code itself can tell.
func (code *Code) judge(keyHash [32]byte, now time.Time) error {
	switch {
	case !code.UsedAt.IsZero() && code.UsedKey != keyHash:
		return ErrCodeUsed
	case code.Void:
		return ErrCodeVoid
	case !now.Before(code.ExpiresAt):
		return ErrCodeExpired
	}
	return nil
}

// redeemedBefore returns the certificate of a code that the same key redeemed: a lost answer burns nothing.
func (c *change) redeemedBefore(code Code) (Certificate, error) {
	cert, err := scanCertificate(c.tx.QueryRowContext(c.ctx, queryCertificate, digest(code.Certificate)))
	if err != nil {
		return Certificate{}, err
	}
	if !cert.RevokedAt.IsZero() {
		return Certificate{}, ErrRevoked
	}
	return cert, c.checkKey(cert.KeyHash, cert.ClientID)
}
