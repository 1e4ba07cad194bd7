// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/certbound/certbound/scripts/process"
)

const (
	audience = "https://ledger.example"
	scope    = "ledger:write"
)

// A story is what the steps hand on to each other.
type story struct {
	shell  *shell
	screen *screen
	dir    string

	service, ledger *process.Process
	tokenURL        string // the token endpoint, as the service's metadata names it
	entriesURL      string // the path of the resource server that needs a token
	token           string // of payments
	tokenName       string // on the screen
	payments        *caller
}

// tell runs the steps in order and stops at the first that does not do what it should.
func tell(ctx context.Context, out *screen, s *story) error {
	s.screen = out
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"start the service", s.startService},
		{"enrol a resource server, \"ledger\"", s.enrolLedger},
		{"enrol a client, \"payments\", and another one, \"reports\"", s.enrolClients},
		{"payments gets a token", s.getToken},
		{"payments calls ledger with it", s.call},
		{"a thief has the token: reports uses it on its own connection", s.callAsThief},
		{"the thief tries without any certificate", s.callWithoutCertificate},
		{"payments renews its certificate", s.renew},
		{"payments is revoked, while a connection of it is open", s.revoke},
		{"stop", s.stop},
	}
	for _, step := range steps {
		out.heading(step.title)
		if err := step.do(ctx); err != nil {
			out.failed(err)
			return errors.New("a step did not do what it should")
		}
	}
	fmt.Fprintln(out.file, "\nEvery step did what it should.")
	return nil
}

// run shows and runs a command that has to succeed, and returns its standard output.
func (s *story) run(ctx context.Context, line string) (string, error) {
	s.screen.act("%s", line)
	return s.runQuietly(ctx, line, "")
}

func (s *story) runQuietly(ctx context.Context, line, stdin string) (string, error) {
	r, err := s.shell.run(ctx, line, stdin)
	if err != nil {
		return "", err
	}
	if r.Exit != 0 {
		return "", fmt.Errorf("%s: exit status %d: %s", line, r.Exit, strings.TrimSpace(r.Stderr))
	}
	return strings.TrimSpace(r.Stdout), nil
}

// runRefused shows and runs a command that has to be refused.
func (s *story) runRefused(ctx context.Context, line string) error {
	s.screen.act("%s", line)
	r, err := s.shell.run(ctx, line, "")
	if err != nil {
		return err
	}
	s.screen.say(r.Stderr)
	if r.Exit != 1 || r.Stdout != "" {
		return fmt.Errorf("want exit status 1 and nothing on standard output, got %d", r.Exit)
	}
	return nil
}

// add registers a client and enrols it, as one line of a shell does.
func (s *story) add(ctx context.Context, line string) error {
	s.screen.act("%s | certbound enroll -", line)
	code, err := s.runQuietly(ctx, line, "")
	if err != nil {
		return err
	}
	text, err := s.runQuietly(ctx, "certbound enroll -", code)
	s.screen.say(text)
	return err
}

// post shows and sends a form and requires an answer of this status and registered error code.
func (s *story) post(ctx context.Context, c *caller, to, token string, form url.Values, status int, code string) (answer, error) {
	with := ""
	if token != "" {
		with = ", with " + s.tokenName
	}
	s.screen.act("POST %s   as %s%s", to, c.who, with)
	a, err := c.post(ctx, to, token, form)
	if err != nil {
		return answer{}, err
	}
	s.screen.say(a.shown())
	return a, a.want(status, code)
}

func (s *story) caller(profile string, certificate bool) (*caller, error) {
	return newCaller(filepath.Join(s.dir, profile), certificate)
}

func (s *story) startService(ctx context.Context) (err error) {
	line := "certbound serve --public 127.0.0.1:0 --mtls 127.0.0.1:0 --debug 127.0.0.1:0"
	s.screen.act("%s &", line)
	s.service, err = s.shell.start(ctx, line)
	if err != nil {
		return err
	}
	s.screen.say(s.service.Line)
	s.tokenURL, err = s.discover(ctx)
	if err != nil {
		return err
	}
	s.screen.ok("made its CA, signing key, database and operator, all in ./certbound-data; port 0 took free ones")
	return nil
}

// discover reads the service's metadata, RFC 8414, as any client would, and returns the token endpoint.
func (s *story) discover(ctx context.Context) (string, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, "certbound-data", "serve.json"))
	if err != nil {
		return "", err
	}
	var serving struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(data, &serving); err != nil {
		return "", fmt.Errorf("serve.json: %w", err)
	}
	reader, err := s.caller(filepath.Join("certbound-data", "admin"), false)
	if err != nil {
		return "", err
	}
	defer reader.close()
	a, err := reader.do(ctx, http.MethodGet, serving.Issuer+"/.well-known/oauth-authorization-server", "", nil)
	if err != nil {
		return "", err
	}
	var metadata struct {
		TokenEndpoint string `json:"token_endpoint"`
	}
	if err := json.Unmarshal([]byte(a.body), &metadata); err != nil || metadata.TokenEndpoint == "" {
		return "", fmt.Errorf("the metadata names no token endpoint: %s", a.shown())
	}
	return metadata.TokenEndpoint, nil
}

func (s *story) enrolLedger(ctx context.Context) (err error) {
	if err := s.add(ctx, "certbound client add ledger --usage both --dns localhost --allow-reserved"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "certbound resource add "+audience+" --scope "+scope+" --server ledger"); err != nil {
		return err
	}
	line := "ledger-server --profile ledger --audience " + audience + " --scope " + scope + " --listen 127.0.0.1:0"
	s.screen.act("%s &", line)
	s.ledger, err = s.shell.start(ctx, line)
	if err != nil {
		return err
	}
	s.screen.say(s.ledger.Line)
	_, port, ok := strings.Cut(s.ledger.Line, "listen=127.0.0.1:")
	port, _, _ = strings.Cut(port, " ")
	if !ok || port == "" {
		return errors.New("ledger does not say where it listens")
	}
	s.entriesURL = "https://localhost:" + port + "/entries"
	s.screen.ok("it serves with a certificate of the service's CA and accepts tokens only for %s", audience)
	return nil
}

func (s *story) enrolClients(ctx context.Context) error {
	for _, id := range []string{"payments", "reports"} {
		if err := s.add(ctx, "certbound client add "+id+" --scope "+scope); err != nil {
			return err
		}
	}
	for _, id := range []string{"payments", "reports"} {
		info, err := os.Stat(filepath.Join(s.dir, id, "key.pem"))
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			return fmt.Errorf("the key of %s has mode %v", id, info.Mode())
		}
	}
	s.screen.ok("each has a key that never left its folder, and a certificate for it; the codes are spent")
	return nil
}

func (s *story) getToken(ctx context.Context) (err error) {
	s.token, err = s.run(ctx, "certbound token --profile payments")
	if err != nil {
		return err
	}
	s.tokenName = "the token of payments"
	s.screen.say(s.token)
	if strings.Count(s.token, ".") != 2 {
		return errors.New("that is no token")
	}
	inspect := "certbound inspect - --profile payments"
	s.screen.act("echo $TOKEN | %s", inspect)
	text, err := s.runQuietly(ctx, inspect, s.token)
	s.screen.say(text)
	if err != nil {
		return err
	}
	s.screen.ok("it bears the thumbprint of payments' certificate")
	return nil
}

func (s *story) call(ctx context.Context) (err error) {
	s.payments, err = s.caller("payments", true)
	if err != nil {
		return err
	}
	if _, err := s.post(ctx, s.payments, s.entriesURL, s.token, nil, http.StatusOK, ""); err != nil {
		return err
	}
	s.screen.ok("accepted")
	return nil
}

func (s *story) callAsThief(ctx context.Context) error {
	thief, err := s.caller("reports", true)
	if err != nil {
		return err
	}
	defer thief.close()
	if _, err := s.post(ctx, thief, s.entriesURL, s.token, nil, http.StatusUnauthorized, "invalid_token"); err != nil {
		return err
	}
	s.screen.ok("refused: a good certificate, a good token, but not that certificate's token")
	return nil
}

func (s *story) callWithoutCertificate(ctx context.Context) error {
	thief, err := s.caller("reports", false)
	if err != nil {
		return err
	}
	defer thief.close()
	refused, err := s.post(ctx, thief, s.entriesURL, s.token, nil, http.StatusUnauthorized, "invalid_token")
	if err != nil {
		return err
	}
	s.screen.ok("refused, in the same words")
	return s.readMetadata(ctx, thief, refused)
}

// readMetadata reads what a refused caller is told to read. Here the host of the audience is nowhere but at ledger.
func (s *story) readMetadata(ctx context.Context, c *caller, refused answer) error {
	path, ok := strings.CutPrefix(refused.metadata(), audience)
	if !ok {
		return fmt.Errorf("the challenge names no metadata of %s: %s", audience, refused.shown())
	}
	place := strings.TrimSuffix(s.entriesURL, "/entries") + path
	s.screen.act("GET %s", place)
	a, err := c.do(ctx, http.MethodGet, place, "", nil)
	if err != nil {
		return err
	}
	s.screen.say(a.shown())
	var told struct {
		Resource string   `json:"resource"`
		Issuers  []string `json:"authorization_servers"`
		Bound    bool     `json:"tls_client_certificate_bound_access_tokens"`
	}
	if err := json.Unmarshal([]byte(a.body), &told); err != nil || a.status != http.StatusOK {
		return fmt.Errorf("want the metadata, got %s", a.shown())
	}
	if told.Resource != audience || len(told.Issuers) != 1 || !strings.Contains(s.service.Line, " issuer="+told.Issuers[0]+" ") || !told.Bound {
		return fmt.Errorf("the metadata is not what ledger takes: %s", a.shown())
	}
	s.screen.ok("whoever is refused is told where to read which tokens ledger takes, and whose")
	return nil
}

func (s *story) renew(ctx context.Context) error {
	text, err := s.run(ctx, "certbound renew --profile payments")
	s.screen.say(text)
	if err != nil {
		return err
	}
	renewed, err := s.caller("payments", true)
	if err != nil {
		return err
	}
	before := s.payments
	defer before.close()
	s.payments = renewed
	before.who, renewed.who, s.tokenName = "payments (old certificate)", "payments (new certificate)", "the old token"

	_, err = s.post(ctx, renewed, s.entriesURL, s.token, nil, http.StatusUnauthorized, "invalid_token")
	if err != nil {
		return err
	}
	s.screen.ok("the old token is refused on a connection of the new certificate")

	old, err := s.post(ctx, before, s.entriesURL, s.token, nil, http.StatusOK, "")
	if err != nil {
		return err
	}
	if !old.reused {
		return errors.New("the connection from before the renewal was not used again")
	}
	s.screen.ok("and still good on the connection that was open before: a renewal breaks no running work")

	s.token, err = s.run(ctx, "certbound token --profile payments")
	if err != nil {
		return err
	}
	s.tokenName = "the new token"
	if _, err := s.post(ctx, renewed, s.entriesURL, s.token, nil, http.StatusOK, ""); err != nil {
		return err
	}
	s.screen.ok("a new token works on the new connection")
	return nil
}

func (s *story) revoke(ctx context.Context) error {
	ask := url.Values{"grant_type": {"client_credentials"}, "client_id": {"payments"}, "scope": {scope}}
	first, err := s.post(ctx, s.payments, s.tokenURL, "", ask, http.StatusOK, "")
	if err != nil {
		return err
	}
	s.screen.ok("a token, over a connection from %s that stays open", first.local)

	text, err := s.run(ctx, "certbound cert revoke --client payments --reason keyCompromise --wait-resources 10s")
	s.screen.say(text)
	if err != nil {
		return err
	}
	second, err := s.post(ctx, s.payments, s.tokenURL, "", ask, http.StatusUnauthorized, "invalid_client")
	if err != nil {
		return err
	}
	if !second.reused || second.local != first.local {
		return fmt.Errorf("the connection from %s was not used again", first.local)
	}
	s.screen.ok("not one more token, on the very connection from %s", second.local)
	if _, err := s.post(ctx, s.payments, s.entriesURL, s.token, nil, http.StatusUnauthorized, "invalid_token"); err != nil {
		return err
	}
	s.screen.ok("and the token from before is refused by ledger, which follows what is denied")

	s.payments.close()
	third, err := s.post(ctx, s.payments, s.tokenURL, "", ask, http.StatusUnauthorized, "invalid_client")
	if err != nil {
		return err
	}
	if third.reused {
		return errors.New("the new connection was an old one")
	}
	s.screen.ok("nor on a new one")
	for _, line := range []string{"certbound token --profile payments", "certbound renew --profile payments"} {
		if err := s.runRefused(ctx, line); err != nil {
			return err
		}
	}
	s.screen.ok("and the certificate cannot be renewed")
	return nil
}

func (s *story) stop(ctx context.Context) error {
	for _, p := range []*process.Process{s.ledger, s.service} {
		s.screen.act("kill %%%s", p.Name())
		if err := p.Stop(); err != nil {
			return err
		}
	}
	s.screen.ok("both ended by themselves")
	return ctx.Err()
}
