// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// storable reports whether a text can be in the database: PostgreSQL takes UTF-8 without zero bytes only. What is not
// storable is not there.
func storable(text string) bool {
	return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0
}

// moment is a time as a column: microseconds since 1970, NULL for the zero time.
type moment time.Time

// Scan implements sql.Scanner.
func (m *moment) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*m = moment{}
	case int64:
		*m = moment(time.UnixMicro(v).UTC())
	default:
		return fmt.Errorf("a time column holds a %T", v)
	}
	return nil
}

// Value implements driver.Valuer.
func (m moment) Value() (driver.Value, error) {
	if time.Time(m).IsZero() {
		return nil, nil
	}
	return time.Time(m).UnixMicro(), nil
}

// asStored returns t as it will come back from the database.
func asStored(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

// digest is 32 bytes as a column, NULL for all zeros.
type digest [32]byte

// Scan implements sql.Scanner.
func (d *digest) Scan(v any) error {
	return scanBytes(d[:], v)
}

// Value implements driver.Valuer.
func (d digest) Value() (driver.Value, error) {
	if d == (digest{}) {
		return nil, nil
	}
	return d[:], nil
}

// codeID is the id of an enrolment code as a column.
type codeID [8]byte

// Scan implements sql.Scanner.
func (c *codeID) Scan(v any) error {
	return scanBytes(c[:], v)
}

// Value implements driver.Valuer.
func (c codeID) Value() (driver.Value, error) {
	return c[:], nil
}

func scanBytes(dst []byte, v any) error {
	clear(dst)
	if v == nil {
		return nil
	}
	b, ok := v.([]byte)
	if !ok || len(b) != len(dst) {
		return fmt.Errorf("a column of %d bytes holds something else", len(dst))
	}
	copy(dst, b)
	return nil
}

// list is a list of strings as a column: a JSON array. An empty one comes back as nil.
type list []string

// Scan implements sql.Scanner.
func (l *list) Scan(v any) error {
	var text []byte
	switch v := v.(type) {
	case string:
		text = []byte(v)
	case []byte:
		text = v
	default:
		return fmt.Errorf("a list column holds a %T", v)
	}
	if string(text) == "[]" {
		*l = nil
		return nil
	}
	var out []string
	if err := json.Unmarshal(text, &out); err != nil {
		return fmt.Errorf("a list column holds no JSON array: %w", err)
	}
	*l = slices.Clip(out)
	if len(out) == 0 {
		*l = nil
	}
	return nil
}

// Value implements driver.Valuer.
func (l list) Value() (driver.Value, error) {
	if len(l) == 0 {
		return "[]", nil
	}
	text, err := json.Marshal([]string(l))
	return string(text), err
}

// ders is a list of certificates as a column: each behind its length. An empty one comes back as nil.
type ders [][]byte

// Scan implements sql.Scanner.
func (d *ders) Scan(v any) error {
	b, ok := v.([]byte)
	if !ok && v != nil {
		return fmt.Errorf("a column of certificates holds a %T", v)
	}
	var err error
	*d, err = splitChain(slices.Clone(b)) // b is the driver's
	return err
}

// Value implements driver.Valuer.
func (d ders) Value() (driver.Value, error) {
	return joinChain(d), nil
}
