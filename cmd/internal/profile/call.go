// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/tokens/client"
)

const (
	// maxAnswer bounds an answer of the service: lists of clients and certificates are the longest.
	maxAnswer = 8 << 20
	// callTimeout bounds one request to the service, connection included.
	callTimeout = 30 * time.Second
)

// httpClient makes a client with a pool of its own that follows no redirect: no endpoint of the service redirects.
func httpClient(c *tls.Config) *http.Client {
	return &http.Client{
		Timeout: callTimeout,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        c,
			ForceAttemptHTTP2:      true,
			DisableKeepAlives:      c.InsecureSkipVerify,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: noRedirect,
	}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// AcceptedError says that the service keeps the request (status 202) and has not done yet what was asked. Body is its
// answer.
type AcceptedError struct{ Body json.RawMessage }

// Error says that it waits.
func (e *AcceptedError) Error() string { return "the request waits for a confirmation" }

// call sends in as JSON, when it is not nil, and reads the answer into out, when that is not nil. A refusal is an
// *APIError, a request that the service puts off an *AcceptedError.
func call(ctx context.Context, hc *http.Client, method, location string, in, out any) error {
	var content io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, location, content)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", location, err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("the answer of %s is longer than %d bytes", location, maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return refusal(resp, data)
	}
	if resp.StatusCode == http.StatusAccepted && isJSON(resp) {
		return &AcceptedError{Body: data}
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if !isJSON(resp) || json.Unmarshal(data, out) != nil {
		return fmt.Errorf("the answer of %s is not the JSON it should be", location)
	}
	return nil
}

func isJSON(resp *http.Response) bool {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// refusal reads an error answer. Its texts end on a terminal, so control characters are taken out.
func refusal(resp *http.Response, data []byte) *APIError {
	e := &APIError{Status: resp.StatusCode}
	var members struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
		Hint        string `json:"hint"`
		Scope       string `json:"scope"`
	}
	if isJSON(resp) && json.Unmarshal(data, &members) == nil {
		e.Code, e.Description, e.Hint = oneLine(members.Code), oneLine(members.Description), oneLine(members.Hint)
		e.Scope = oneLine(members.Scope)
	}
	return e
}

func oneLine(s string) string {
	const most = 1000
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// explain turns a failure to get something from the service into one that says what to do.
func (p *Profile) explain(err error) error {
	if lapsed := p.checkDates(time.Now()); lapsed != nil {
		return lapsed // whatever the service made of it
	}
	if refused, ok := errors.AsType[*client.Error](err); ok {
		err = &APIError{
			Status: refused.Status, Code: refused.Code,
			Description: refused.Description, Hint: refused.Hint,
		}
	}
	refused, ok := errors.AsType[*APIError](err)
	if !ok {
		return unreachable(p.info.Issuer, err)
	}
	if refused.Code == "invalid_client" {
		told := *refused
		told.Description = fmt.Sprintf("the service does not accept the certificate of %q in %s (invalid_client)",
			p.info.ClientID, p.dir)
		if p.External() {
			told.Hint = fmt.Sprintf("certbound whoami --profile %s shows which certificate arrives and whether it is accepted; "+
				"an operator can tell what is registered (certbound client show %s)", ShellWord(p.dir), p.info.ClientID)
			return &told
		}
		if !forClients(p.Certificate()) {
			told.Hint = "the certificate is for serving only (--usage server), and authenticates no client: what serves and calls is " +
				"registered with certbound client add ID --usage both"
			return &told
		}
		told.Hint = fmt.Sprintf("it may be revoked, or the client disabled; an operator can tell "+
			"(certbound cert list --client %[1]s, client show %[1]s) and give a new code (certbound client invite %[1]s), "+
			"then: certbound enroll - --profile %[2]s", p.info.ClientID, ShellWord(p.dir))
		return &told
	}
	return refused
}

// forClients reports whether a certificate may authenticate a client of TLS (RFC 5280, Section 4.2.1.12).
func forClients(cert *x509.Certificate) bool {
	return len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 || slices.ContainsFunc(cert.ExtKeyUsage, func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny
	})
}

func explainEnroll(issuer string, err error) error {
	refused, ok := errors.AsType[*APIError](err)
	if !ok {
		return unreachable(issuer, err)
	}
	if refused.Hint == "" {
		told := *refused
		told.Hint = "a code works once and not for long; ask an operator for a new one (certbound client invite ID)"
		return &told
	}
	return refused
}

func unreachable(issuer string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &Error{
		Message: fmt.Sprintf("cannot talk to the service at %s: %v", issuer, err),
		Hint:    reachHint(err),
		Err:     err,
	}
}

// reachHint tells a service that is not there from one that is not the right one.
func reachHint(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the roots of the profile, or of --root, do not vouch for what answers there: it may be another service, or a " +
			"profile or data folder that was restored; compare with DATA/ca/root.pem of its machine"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is for other names: call it by one of them, or have it started with --host NAME"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "compare the clocks of both machines; the service renews its own certificate while it runs"
	}
	return "check that it runs there and can be reached from this machine, then run the command again"
}

func unexpected(issuer string, err error) error {
	return &Error{
		Message: fmt.Sprintf("the service at %s gave an answer that cannot be used: %v", issuer, err),
		Hint:    "nothing was changed; tell the operator of the service",
		Err:     err,
	}
}

// answered is explain for those without a profile.
func answered(base string, err error) error {
	if refused, ok := errors.AsType[*APIError](err); ok {
		return refused
	}
	return unreachable(base, err)
}
