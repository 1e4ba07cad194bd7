// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"strings"
	"testing"
)

// IN-09, IN-10: RFC 9110, Section 12.5.1; RFC 9701, Section 4: the form of the answer is the one that weighs more, by the
// most specific element about each; a signed one is never given to who did not ask for it, nor a plain one to who refuses
// it.
func TestRFC9110_12_5_1_Accept(t *testing.T) {
	t.Parallel()
	const jwt, json = mediaIntrospection, typeJSON
	for accept, want := range map[string]string{
		"":                                    json, // is as none
		" , ,":                                json,
		"*/*":                                 json,
		"application/*":                       json,
		json:                                  json,
		json + ";charset=utf-8":               json,
		jwt:                                   jwt,
		strings.ToUpper(jwt):                  jwt,
		jwt + ", " + json:                     jwt,
		json + "," + jwt:                      jwt,
		jwt + ", */*":                         jwt,
		jwt + ";q=0.5, */*;q=0.5":             jwt,
		jwt + ";q=0.5, */*":                   json,
		jwt + ";q=0.5, " + json + ";q=0.4":    jwt,
		jwt + ";q=0.4, " + json + ";q=0.5":    json,
		jwt + ";q=0.001, " + json + ";q=0":    jwt,
		jwt + ";q=0.999, " + json + ";q=1.0":  json,
		jwt + ";q=1.000, " + json + ";q=1":    jwt,
		jwt + "; Q=0.1, " + json + " ; q=0.2": json,
		jwt + ";q=0":                          "",
		jwt + ";q=0, */*":                     json,
		jwt + ";q=0, application/*;q=0.1":     json,
		json + ";q=0, */*":                    jwt,
		json + ";q=0, application/*":          jwt,
		json + ";q=0.5, application/*":        jwt,
		"application/*;q=0, */*":              "",
		"application/*, */*;q=0":              json,
		"*/*;q=0":                             "",
		"*/*, application/*;q=0, " + jwt:      jwt,
		// Of two elements about the same, the higher weight counts.
		json + ";q=0.3, " + jwt + ";q=0.2, " + json + ";q=0.1": json,
		json + ";q=0.1, " + jwt + ";q=0.2, " + json + ";q=0.3": json,
		// What cannot be read is not there.
		jwt + ";q=1.001, " + json:           json,
		jwt + ";q=2, " + json:               json,
		jwt + ";q=-1, " + json:              json,
		jwt + ";q=0.0001, " + json + ";q=0": "",
		jwt + ";q=, " + json:                json,
		jwt + ";q=0,5":                      "",
		jwt + ";q=0.x":                      "",
		jwt + ";q=00":                       "",
		"text/json":                         "",
		"text/token-introspection+jwt":      "",
		"x/" + typeIntrospection + ", " + json + ";q=0.1": json,
		json + ";q=2, */*":            json,
		json + ";q=00, */*":           json,
		json + ";q=0.x, */*":          json,
		json + ";q=1.001, */*":        json,
		json + ";q=0.0000, */*":       json,
		json + ";q=, */*":             json,
		json + "/, " + jwt + ";q=0.1": jwt,
		"*/json":                      "",
		"application":                 "",
		"text/html":                   "",
		"text/*":                      "",
		"application/jwt":             "",
		"x/y;a=\"" + jwt:              "",
		jwt + "x":                     "",
		strings.Repeat("a/b,", maxAccepted-1) + jwt:          jwt,
		strings.Repeat("a/b,", maxAccepted) + jwt:            "",
		strings.Repeat("a/b, ,,", maxAccepted-1) + " " + jwt: jwt,
	} {
		if got := chooseMedia([]string{accept}, json, jwt); got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
		if fields := strings.Split(accept, ","); chooseMedia(fields, json, jwt) != want {
			t.Errorf("%q: another choice in several fields", accept)
		}
	}
	if got := chooseMedia(nil, json, jwt); got != json {
		t.Errorf("without Accept: %q", got)
	}
}
