// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Object is a JSON object whose member names are distinct and compared exactly. Values are string, json.Number,
// bool, nil, []any or Object.
type Object map[string]any

// ErrObject reports JSON that is not one object with distinct member names within the bounds.
var ErrObject = errors.New("jose: not a strict JSON object")

// DecodeObject reads one JSON object. It refuses duplicate member names at every level, nesting beyond MaxDepth,
// invalid UTF-8 and anything after the object. encoding/json would take the last of two members and, into a
// struct, any spelling of a name; both differ from what the signer or another reader saw (RFC 7515, Section 4;
// RFC 7519, Section 4). The caller bounds the size.
func DecodeObject(data []byte) (Object, error) {
	if !utf8.Valid(data) || !json.Valid(data) {
		return nil, fmt.Errorf("%w: malformed", ErrObject)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	value, err := decodeValue(d, 0)
	if err != nil {
		return nil, err
	}
	object, ok := value.(Object)
	if !ok {
		return nil, fmt.Errorf("%w: another type", ErrObject)
	}
	return object, nil
}

// CheckMembers returns an error unless object is a JSON object as DecodeObject reads it.
func CheckMembers(object []byte) error {
	_, err := DecodeObject(object)
	return err
}

// decodeValue reads one value. The input is known to be well-formed, so only our own rules can fail.
func decodeValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: malformed", ErrObject)
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth >= MaxDepth {
		return nil, fmt.Errorf("%w: nested too deep", ErrObject)
	}
	if delim == '{' {
		return decodeMembers(d, depth+1)
	}
	return decodeElements(d, depth+1)
}

func decodeMembers(d *json.Decoder, depth int) (any, error) {
	object := Object{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: malformed", ErrObject)
		}
		name, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("%w: malformed", ErrObject)
		}
		if _, seen := object[name]; seen {
			return nil, fmt.Errorf("%w: duplicate member name", ErrObject)
		}
		if object[name], err = decodeValue(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token() // the closing brace
	return object, err
}

func decodeElements(d *json.Decoder, depth int) (any, error) {
	array := []any{}
	for d.More() {
		value, err := decodeValue(d, depth)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	_, err := d.Token() // the closing bracket
	return array, err
}

// strictBase64 refuses non-zero trailing bits. It still skips line breaks: decodeBase64 looks for them first.
var strictBase64 = base64.RawURLEncoding.Strict()

// decodeBase64 reads base64url as RFC 7515, Section 2 defines it: no padding, line breaks, white space or other
// characters, so that two spellings never decode to the same bytes.
func decodeBase64(s string) ([]byte, error) {
	for i := range len(s) {
		if !isBase64URL(s[i]) {
			return nil, errors.New("jose: not base64url")
		}
	}
	data, err := strictBase64.DecodeString(s)
	if err != nil {
		return nil, errors.New("jose: not base64url")
	}
	return data, nil
}

func isBase64URL(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
