// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
)

// inspectTimeout bounds each request for the issuer's metadata and keys.
const inspectTimeout = 10 * time.Second

// inspection is what inspect found. Claims are what the token says of itself: believe them only when Valid is true.
type inspection struct {
	Valid       bool           `json:"valid"`
	Reason      string         `json:"reason,omitempty"`
	Claims      map[string]any `json:"claims,omitempty"`
	Certificate *presented     `json:"certificate,omitempty"`
}

// presented is the certificate that the token was judged with.
type presented struct {
	Thumbprint string    `json:"x5t#S256"`
	Subject    string    `json:"subject"`
	Serial     string    `json:"serial"`
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
}

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

func (c *cli) inspect(ctx context.Context, raw, certFile string) (*inspection, error) {
	var p *profile.Profile
	var cert *x509.Certificate
	if dir := c.profileDir(""); dir != "" {
		// The profile is not renewed here: that would change the very certificate that the token is held against.
		opened, err := profile.Open(dir)
		if err != nil {
			return nil, err
		}
		p, cert = opened, opened.Certificate()
	}
	if certFile != "" {
		read, err := readCertificate(certFile)
		if err != nil {
			return nil, err
		}
		cert = read
	}
	result := &inspection{Certificate: presentedOf(cert)}
	unverified, err := tokens.ParseUnverified(raw)
	if err != nil {
		result.Reason = "malformed"
		return result, nil
	}
	result.Claims = unverified.Claims
	if p == nil {
		result.Reason = "unverified"
		return result, nil
	}
	result.Reason, err = verify(ctx, p, raw, unverified, mtls.NewPeer(cert))
	result.Valid = err == nil && result.Reason == ""
	return result, err
}

// verify holds the token against the issuer's keys and the certificate, for an audience of its own. It returns why the
// token is no good, or an error when that could not be found out.
func verify(ctx context.Context, p *profile.Profile, raw string, token *tokens.Unverified, peer *mtls.Peer) (reason string, err error) {
	audience := audienceOf(token)
	if audience == "" {
		return "malformed_claims", nil
	}
	transport := &http.Transport{TLSClientConfig: mtls.ClientConfig(nil, p.Roots()), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport, Timeout: inspectTimeout}
	metadata, err := client.Discover(ctx, hc, p.Issuer())
	if err != nil {
		return "", err
	}
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: metadata.JWKSURI, Client: hc})
	if err != nil {
		return "", err
	}
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: p.Issuer(), Audience: audience, Keys: keys})
	if err != nil {
		return "", err
	}
	_, err = verifier.Verify(ctx, raw, peer)
	refused, ok := errors.AsType[*tokens.Error](err)
	switch {
	case err == nil:
		return "", nil
	case ok && refused.Code == tokens.CodeInvalidToken:
		return refused.Reason, nil
	}
	return "", failf("look whether "+metadata.JWKSURI+" can be reached", "the issuer's keys cannot be had: %v", err)
}

// audienceOf is one audience of the token: whoever inspects a token is none of them.
func audienceOf(token *tokens.Unverified) string {
	switch aud := token.Claims["aud"].(type) {
	case string:
		return aud
	case []any:
		if len(aud) > 0 {
			first, _ := aud[0].(string)
			return first
		}
	}
	return ""
}

func readCertificate(name string) (*x509.Certificate, error) {
	const hint = "name a PEM file whose first certificate is the one to judge"
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, failf(hint, "%v", err)
	}
	certs, err := mtls.ParseCertificates(data)
	if err != nil {
		return nil, failf(hint, "%s: %v", name, err)
	}
	if len(certs) == 0 {
		return nil, failf(hint, "%s holds no certificate", name)
	}
	return certs[0], nil
}

func presentedOf(cert *x509.Certificate) *presented {
	if cert == nil {
		return nil
	}
	return &presented{
		Thumbprint: mtls.ThumbprintOf(cert).String(), Subject: cert.Subject.String(), Serial: cert.SerialNumber.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
}

func showInspection(w io.Writer, result *inspection) {
	verdict := "usable with this certificate"
	if !result.Valid {
		verdict = "NOT usable: " + whyNot(result.Reason)
	}
	pairs := []string{"verdict", verdict}
	if cert := result.Certificate; cert != nil {
		pairs = append(pairs, "certificate", cert.Subject+" "+cert.Thumbprint+" until "+stamp(cert.NotAfter))
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
		"unverified":            "nothing was verified, since no profile was named (--profile DIR)",
		"malformed":             "it is not an access token: not a signed JWT in compact form",
		"malformed_claims":      "its claims are incomplete or malformed",
		"wrong_type":            "it is another kind of JWT",
		"algorithm_not_allowed": "it is signed by an algorithm that is not allowed",
		"unknown_key":           "no key of the profile's issuer signed it",
		"bad_signature":         "its signature is wrong: it was changed, or cut off",
		"wrong_issuer":          "another issuer made it",
		"expired":               "it has expired",
		"not_yet_valid":         "it is not valid yet",
		"issued_in_future":      "it was issued in the future: compare the clocks",
		"certificate_not_valid": "the certificate has expired or is not valid yet",
		"not_bound":             "it is bound to no certificate",
		"thumbprint_mismatch":   "it is bound to another certificate",
	}
	if text, ok := words[reason]; ok {
		return text
	}
	return reason
}
