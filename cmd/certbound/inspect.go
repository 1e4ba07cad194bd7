// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) inspectCommand() *cobra.Command {
	var certFile string
	cmd := &cobra.Command{
		Use:   "inspect [TOKEN|-]",
		Short: "Show what is in a token, whose it is, and whether a certificate may use it",
		Long: "Show what is in a token, whose it is, whether the profile's certificate may use it, and why not.\n\n" +
			"Without an argument or with - the token is read from standard input. Issuer and roots are the profile's; --cert FILE\n" +
			"judges another certificate. Without a profile nothing is verified. The exit code is 0 only for a token that the\n" +
			"certificate may use.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := c.argumentOrStdin(append(args, "-")[0], "token")
			if err != nil {
				return err
			}
			result, err := c.inspect(cmd.Context(), raw, certFile)
			if err != nil {
				return err
			}
			if err := c.print(result, func(w io.Writer) { showInspection(w, result) }); err != nil {
				return err
			}
			if !result.Valid {
				return &failure{exit: exitFailed, silent: true}
			}
			return nil
		},
	}
	c.profileFlag(cmd, "none: nothing is verified")
	cmd.Flags().StringVar(&certFile, "cert", "", "judge it with the certificate in this PEM file instead of the profile's")
	return cmd
}

// inspect gathers profile and certificate, as far as they were named.
func (c *cli) inspect(ctx context.Context, raw, certFile string) (*profile.Inspection, error) {
	var p *profile.Profile
	var cert *x509.Certificate
	var err error
	if dir := c.profileDir(""); dir != "" {
		if p, err = profile.Read(dir); err != nil {
			return nil, err
		}
		c.warn(p)
		if lapsed := p.Lapsed(time.Now()); lapsed != nil {
			c.note("note: %s; %s", lapsed.Error(), lapsed.Hint())
		}
		cert = p.Certificate()
	}
	if certFile != "" {
		if cert, err = profile.ReadCertificate(certFile); err != nil {
			return nil, err
		}
	}
	return profile.Inspect(ctx, p, raw, cert)
}

func showInspection(w io.Writer, result *profile.Inspection) {
	verdict := "usable with this certificate"
	if !result.Valid {
		verdict = "NOT usable: " + whyNot(result.Reason)
	}
	pairs := []string{"verdict", verdict, "in words", result.Explanation}
	if cert := result.Certificate; cert != nil {
		until := " until "
		if time.Now().After(cert.NotAfter) {
			until = " expired at "
		}
		pairs = append(pairs, "certificate", cert.Subject+" "+cert.Thumbprint+until+stamp(cert.NotAfter))
	}
	if owner, ok := result.Claims["client_id"].(string); ok {
		pairs = append(pairs, "belongs to", claimText("client_id", owner))
	}
	if cnf, ok := result.Claims["cnf"].(map[string]any); ok {
		pairs = append(pairs, "bound to", claimText("x5t#S256", cnf["x5t#S256"]))
	}
	fields(w, pairs...)
	if len(result.Claims) == 0 {
		return
	}
	fmt.Fprintln(w, "claims:")
	var claims []string
	for _, name := range slices.Sorted(maps.Keys(result.Claims)) {
		claims = append(claims, "  "+quoteUnlessPlain(name), claimText(name, result.Claims[name]))
	}
	fields(w, claims...)
}

// claimText renders a claim; what a stranger wrote must not steer the terminal.
func claimText(name string, value any) string {
	if number, ok := value.(json.Number); ok && (name == "exp" || name == "iat" || name == "nbf") {
		if seconds, err := number.Int64(); err == nil {
			return number.String() + " (" + stamp(time.Unix(seconds, 0)) + ")"
		}
	}
	if text, ok := value.(string); ok {
		return quoteUnlessPlain(text)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return "?"
	}
	return quoteUnlessPlain(string(raw))
}

func quoteUnlessPlain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		return fmt.Sprintf("%+q", s)
	}
	return s
}

// whyNot says in words what the verifier found.
func whyNot(reason string) string {
	words := map[string]string{
		profile.ReasonUnverified: "nothing was verified, since no profile was named (--profile DIR)",
		profile.ReasonMalformed:  "it is not an access token: not a signed JWT in compact form",
		"malformed_claims":       "its claims are incomplete or malformed",
		"wrong_type":             "it is another kind of JWT",
		"algorithm_not_allowed":  "it is signed by an algorithm that is not allowed",
		"unknown_key":            "no key of the profile's issuer signed it",
		"bad_signature":          "its signature is wrong: it was changed, or cut off",
		"signature_form":         "its signature was replaced by the other one that fits (r, n - s)",
		"wrong_issuer":           "another issuer made it",
		"expired":                "it has expired",
		"not_yet_valid":          "it is not valid yet",
		"issued_in_future":       "it was issued in the future: compare the clocks",
		"certificate_not_valid":  "the certificate has expired or is not valid yet",
		"not_bound":              "it is bound to no certificate",
		"thumbprint_mismatch":    "it is bound to another certificate",
	}
	if text, ok := words[reason]; ok {
		return text
	}
	return reason
}
