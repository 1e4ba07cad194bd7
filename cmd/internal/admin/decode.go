// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on a request body, judged before anything is made of it.
const (
	maxBody      = 64 << 10
	maxTrustBody = 1 << 20 // a foreign CA may bring its revocation list; a larger one is fetched
	maxDepth     = 8
)

// readBody reads the request's JSON object into v, a pointer to a struct. encoding/json alone would take the last of two
// members of one name and match names in any letter case, so that what was checked and what is used could differ; here
// every member is named exactly as v declares it and occurs once.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	most := int64(maxBody)
	if _, ok := v.(*TrustRequest); ok {
		most = maxTrustBody
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err != nil {
		return bodyReadError(err)
	}
	if len(raw) == 0 && len(members(v)) == 0 {
		return nil
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" {
		return &Error{Status: http.StatusUnsupportedMediaType, Code: codeRequest,
			Description: "the body is not declared as application/json", Hint: "send Content-Type: application/json"}
	}
	return Decode(raw, v)
}

func bodyReadError(err error) error {
	if most, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeRequest,
			Description: fmt.Sprintf("the body is longer than %d bytes", most.Limit), Hint: "send less; a long revocation list goes by its address"}
	}
	return invalidRequest("the body could not be read", "send it again", err)
}

// Decode reads one JSON object into v, a pointer to a struct, as strictly as this API reads its bodies: every member named
// exactly as v declares it, none twice, nothing behind the object. The error is an *Error.
func Decode(raw []byte, v any) error {
	const hint = "send one JSON object with the members that the API documents"
	if !utf8.Valid(raw) {
		return invalidRequest("the body is not UTF-8", hint, nil)
	}
	if err := checkObject(raw, members(v)); err != nil {
		return invalidRequest(err.Error(), hint, nil)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return invalidRequest(fmt.Sprintf("member '%s' has the wrong type", printable(wrong.Field)), hint, err)
		}
		return invalidRequest("the body is not valid JSON", hint, err)
	}
	return nil
}

// checkObject demands one JSON object whose top-level names are all in allowed, with no name twice in any object.
func checkObject(raw []byte, allowed []string) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	first, err := dec.Token()
	if err != nil || first != json.Delim('{') {
		return errors.New("the body is not a JSON object")
	}
	if err := walkObject(dec, allowed, 1); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// walkObject reads an object's members after its opening brace; allowed nil permits every name.
func walkObject(dec *json.Decoder, allowed []string, depth int) error {
	seen := make(map[string]bool)
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return errors.New("the body is not valid JSON")
		}
		if seen[name] {
			return fmt.Errorf("member '%s' occurs twice", printable(name))
		}
		seen[name] = true
		if allowed != nil && !slices.Contains(allowed, name) {
			return fmt.Errorf("unknown member '%s'", printable(name))
		}
		if err := walkValue(dec, depth); err != nil {
			return err
		}
	}
	return closing(dec)
}

func walkValue(dec *json.Decoder, depth int) error {
	token, err := dec.Token()
	if err != nil {
		return errors.New("the body is not valid JSON")
	}
	if depth >= maxDepth {
		return errors.New("the body is nested too deeply")
	}
	switch token {
	case json.Delim('{'):
		return walkObject(dec, nil, depth+1)
	case json.Delim('['):
		for dec.More() {
			if err := walkValue(dec, depth+1); err != nil {
				return err
			}
		}
		return closing(dec)
	}
	return nil
}

func closing(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return errors.New("the body is not valid JSON")
	}
	return nil
}

// members are the JSON names that the struct behind v declares.
func members(v any) []string {
	t := reflect.TypeOf(v).Elem()
	names := make([]string, 0, t.NumField())
	for field := range t.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// printable makes a caller's text fit for an error message: short, ASCII, nothing that RFC 6749, Section 5.2 forbids there.
func printable(s string) string {
	const longest = 80
	clean := strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
	if len(clean) > longest {
		clean = clean[:longest] + "..."
	}
	return clean
}
