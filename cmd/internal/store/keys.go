// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// kekSize is the length of the key-encryption key: AES-256.
const kekSize = 32

// sealVersion is the form in which keys are sealed now; it is part of what the seal covers.
const sealVersion = 1

// The row by which a wrong key-encryption key is noticed at once.
const kekCheckText = "certbound key check"

var errUnseal = errors.New("it cannot be unsealed: another key-encryption key, or the row was changed")

// place says where a sealed value belongs. A sealed value copied to another row, purpose or version does not open.
type place struct {
	table, id, purpose string
	version            int64
}

var kekCheckPlace = place{table: "state", id: "1", purpose: "kek_check", version: sealVersion}

// additional returns the parts, each behind its length, so that no two places share their bytes.
func (p place) additional() []byte {
	var out []byte
	for _, part := range []string{p.table, p.id, p.purpose, strconv.FormatInt(p.version, 10)} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

// sealer seals with AES-256-GCM under the key-encryption key. The random nonce stands before the ciphertext.
type sealer struct{ aead cipher.AEAD }

func newSealer(kek []byte) (sealer, error) {
	if len(kek) != kekSize {
		return sealer{}, fmt.Errorf("the key-encryption key has %d bytes, not %d", len(kek), kekSize)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return sealer{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealer{}, err
	}
	return sealer{aead}, nil
}

func (s sealer) seal(p place, plain []byte) ([]byte, error) {
	if s.aead == nil {
		return nil, errors.New("no key-encryption key")
	}
	return s.aead.Seal(nil, nil, plain, p.additional()), nil
}

func (s sealer) open(p place, sealed []byte) ([]byte, error) {
	plain, err := s.aead.Open(nil, nil, sealed, p.additional())
	if err != nil {
		return nil, errUnseal
	}
	return plain, nil
}

// checkKEK refuses a key-encryption key that is not the database's.
func (s *Store) checkKEK(ctx context.Context, db conn) error {
	var check []byte
	if err := db.QueryRowContext(ctx, queryKEKCheck).Scan(&check); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: it has no state", ErrDamaged)
		}
		return s.dialect.judge(err)
	}
	plain, err := s.sealer.open(kekCheckPlace, check)
	if err != nil || subtle.ConstantTimeCompare(plain, []byte(kekCheckText)) != 1 {
		return fmt.Errorf("%w: put back the one that belongs to this database", ErrWrongKEK)
	}
	return nil
}

func keyPlace(purpose, id string, version int64) place {
	return place{table: "sealed_keys", id: id, purpose: purpose, version: version}
}

// PutKey seals a key and inserts it, or replaces the one with the same purpose and id. A zero CreatedAt is now, a zero Since
// is CreatedAt.
func (s *Store) PutKey(ctx context.Context, k Key) error {
	if k.Purpose == "" || k.ID == "" || len(k.Private) == 0 {
		return errors.New("a key needs a purpose, an id and a private part")
	}
	sealed, err := s.sealer.seal(keyPlace(k.Purpose, k.ID, sealVersion), k.Private)
	if err != nil {
		return err
	}
	if k.CreatedAt.IsZero() {
		k.CreatedAt = s.now()
	}
	if k.Since.IsZero() {
		k.Since = k.CreatedAt
	}
	return s.change(ctx, func(c *change) error {
		_, err := c.exec("sealed_keys", upsertKey, k.Purpose, k.ID, k.State, k.Algorithm, joinChain(k.Chain), sealed,
			sealVersion, moment(k.CreatedAt), moment(k.Since), moment(k.Until))
		return err
	})
}

// SetKeyState puts a key into another state, from since and until the time when that ends, zero where it has no end yet.
// The error is ErrNotFound when there is no such key.
func (s *Store) SetKeyState(ctx context.Context, purpose, id, state string, since, until time.Time) error {
	return s.change(ctx, func(c *change) error {
		n, err := c.exec("sealed_keys", setKeyState, purpose, id, state, moment(since), moment(until))
		if err == nil && n == 0 {
			err = fmt.Errorf("%s key %q: %w", purpose, id, ErrNotFound)
		}
		return err
	})
}

// Keys returns the keys of a purpose, oldest first, unsealed. A row that does not open is an error, never skipped.
func (s *Store) Keys(ctx context.Context, purpose string) ([]Key, error) {
	rows, err := s.read.QueryContext(ctx, queryKeys, purpose)
	keys, err := all(rows, err, func(r row) (Key, error) { return s.scanKey(r, purpose) })
	if err != nil {
		return nil, fmt.Errorf("read the %s keys: %w", purpose, err)
	}
	return keys, nil
}

func (s *Store) scanKey(r row, purpose string) (Key, error) {
	k := Key{Purpose: purpose}
	var chain, sealed []byte
	var version int64
	err := r.Scan(&k.ID, &k.State, &k.Algorithm, &chain, &sealed, &version, (*moment)(&k.CreatedAt), (*moment)(&k.Since), (*moment)(&k.Until))
	if err != nil {
		return Key{}, err
	}
	if k.Private, err = s.sealer.open(keyPlace(purpose, k.ID, version), sealed); err != nil {
		return Key{}, fmt.Errorf("key %q: %w", k.ID, err)
	}
	if k.Chain, err = splitChain(chain); err != nil {
		return Key{}, fmt.Errorf("key %q: %w", k.ID, err)
	}
	return k, nil
}

// DeleteKey deletes a key, or returns ErrNotFound.
func (s *Store) DeleteKey(ctx context.Context, purpose, id string) error {
	return s.change(ctx, func(c *change) error {
		n, err := c.exec("sealed_keys", deleteKey, purpose, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%s key %q: %w", purpose, id, ErrNotFound)
		}
		return nil
	})
}

// joinChain puts certificates into one column, each behind its length.
func joinChain(chain [][]byte) []byte {
	out := []byte{}
	for _, der := range chain {
		out = binary.BigEndian.AppendUint32(out, uint32(len(der)))
		out = append(out, der...)
	}
	return out
}

func splitChain(b []byte) ([][]byte, error) {
	var chain [][]byte
	for len(b) > 0 {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			return nil, errors.New("its certificates are cut off")
		}
		n := int(binary.BigEndian.Uint32(b))
		chain = append(chain, b[4:4+n])
		b = b[4+n:]
	}
	return chain, nil
}
