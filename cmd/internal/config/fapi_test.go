// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
	"time"
)

// FA-01, FA-04: RFC 9700, Section 2.2: fapi is one switch: alone it is a configuration that works, with short tokens; what
// contradicts it is named, key by key, with what to write instead.
func TestFAPI(t *testing.T) {
	t.Parallel()
	got, err := Load(file(t, "fapi: true\n"), nil, Overrides{})
	if err != nil || !got.FAPI || got.Token.MaxLifetime != 15*time.Minute || got.Token.Lifetime != 10*time.Minute {
		t.Errorf("alone: %+v, %v", got.Token, err)
	}
	if got, err := Load(file(t, "fapi: false\nsigning: {algorithm: RS256}\n"), nil, Overrides{}); err != nil || got.Token.MaxLifetime != time.Hour {
		t.Errorf("off: %+v, %v", got.Token, err)
	}
	for _, algorithm := range []string{"ES256", "PS256", "EdDSA"} {
		if _, err := Load(file(t, "fapi: true\nsigning: {algorithm: "+algorithm+"}\n"), nil, Overrides{}); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	_, err = Load(file(t, "fapi: true\ntoken: {max_lifetime: 30m, lifetime: 20m}\nsigning: {algorithm: RS256}\n"), nil, Overrides{})
	if err == nil {
		t.Fatal("contradictions pass")
	}
	for _, part := range []string{"token.max_lifetime", "signing.algorithm", `"RS256"`, "fapi: false", "15m"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}
