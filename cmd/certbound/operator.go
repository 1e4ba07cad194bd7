// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

// operatorProfile is where serve lays down the first operator's profile.
const operatorProfile = "./certbound-data/admin"

// pageSize is how many entries of a list are asked for at once.
const pageSize = 200

// operators is the API that operators' verbs call.
type operators interface {
	Do(ctx context.Context, method, path string, in, out any) error
	Close()
}

// operatorFlags gives an operator's verb the flags that say as whom it calls. Where breakGlass is false, the verb is not
// one that the socket answers, and says so.
func (c *cli) operatorFlags(cmd *cobra.Command, breakGlass bool) {
	c.profileFlag(cmd, operatorProfile)
	cmd.Flags().StringVar(&c.socket, "socket", "", "call the break-glass socket of the service, DATA/admin.sock, instead")
	if !breakGlass {
		_ = cmd.Flags().MarkHidden("socket") // it is defined in the line above
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case !cmd.Flags().Changed("socket"):
			return nil
		case c.socket == "":
			return usagef("name DATA/admin.sock of the service", "--socket is empty")
		case c.profile != "":
			return usagef("leave one of the two out", "--socket needs no profile")
		case !breakGlass:
			return usagef("it answers status, audit heads, cert revoke, client disable, client invite of an operator, tickets reset, leases reset, keys list and keys rotate; "+
				"for the rest: certbound client invite OPERATOR --socket "+profile.ShellWord(c.socket)+", then certbound enroll -",
				"the break-glass socket does not answer %s", cmd.CommandPath())
		}
		return nil
	}
}

// operator opens the operator's profile, or the socket that stands for it; requests made with a profile renew it where
// that is due.
func (c *cli) operator() (operators, error) {
	if c.socket != "" {
		return profile.NewSocket(c.socket), nil
	}
	dir := c.profileDir(operatorProfile)
	p, err := c.open(dir)
	if errors.Is(err, fs.ErrNotExist) && dir == operatorProfile {
		return nil, failf("run it in the folder where certbound serve was started, or name the operator's profile with --profile DATA/admin", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	op, err := profile.NewOperator(p)
	if err != nil {
		return nil, err
	}
	return &witness{c: c, op: op, profile: p}, nil
}

// openProfile opens the profile that flag or environment names and renews it where that is due.
func (c *cli) openProfile(ctx context.Context) (*profile.Profile, error) {
	dir := c.profileDir("")
	if dir == "" {
		return nil, noProfile()
	}
	p, err := c.open(dir)
	if err != nil {
		return nil, err
	}
	// A renewal that fails is no reason to fail while the certificate is valid: it is tried again next time.
	if _, err := p.RenewIfDue(ctx); err != nil {
		c.note("note: the profile could not be renewed and is valid until %s: %s", stamp(p.Certificate().NotAfter), oneLine(err.Error()))
	}
	return p, nil
}

// open opens a profile and warns when others can read its key. That is no reason to refuse: a mounted secret may have no
// other mode.
func (c *cli) open(dir string) (*profile.Profile, error) {
	p, err := profile.Open(dir)
	if err != nil {
		return nil, err
	}
	c.warn(p)
	return p, nil
}

func (c *cli) warn(p *profile.Profile) {
	if text := p.Warning(); text != "" {
		c.note("warning: %s", text)
	}
}

func noProfile() error {
	return usagef("name its folder with --profile or CERTBOUND_PROFILE", "no profile was named")
}

func (c *cli) profileDir(fallback string) string {
	environment, _ := c.env("CERTBOUND_PROFILE")
	return profile.Resolve(c.profile, environment, fallback)
}

// waits says that the service keeps a request until a second operator confirms it. As an error, so that nobody takes it
// for done; but what was asked for was asked, so the exit code is 0.
func (c *cli) waits(accepted *profile.AcceptedError) error {
	var approval admin.Approval
	if err := json.Unmarshal(accepted.Body, &approval); err != nil {
		return failf("look at it with certbound approval list", "the service's answer cannot be read: %v", err)
	}
	c.note("%s of %s waits for a second operator until %s: certbound approval confirm %s",
		approval.Kind, approval.Target, stamp(approval.ExpiresAt), approval.ID)
	c.remedy = "it waits for a second operator: certbound approval list shows it"
	if err := c.print(approval, func(io.Writer) {}); err != nil {
		return err
	}
	return &failure{silent: true}
}

// call sends one request to the operators' API.
func call[Out any](ctx context.Context, c *cli, method, path string, in any) (*Out, error) {
	op, err := c.operator()
	if err != nil {
		return nil, err
	}
	defer op.Close()
	out := new(Out)
	err = op.Do(ctx, method, path, in, out)
	if accepted, ok := errors.AsType[*profile.AcceptedError](err); ok {
		return nil, c.waits(accepted)
	}
	if err != nil {
		return nil, err
	}
	if method != http.MethodGet {
		c.remedy = "it is done nevertheless: look at it instead of asking for it again"
	}
	return out, nil
}

// collect fetches a whole list, page by page.
func collect[Page, Item any](ctx context.Context, c *cli, path string, query url.Values, take func(*Page) ([]Item, string)) ([]Item, error) {
	op, err := c.operator()
	if err != nil {
		return nil, err
	}
	defer op.Close()
	items := []Item{} // an empty list is [] in JSON
	query.Set("limit", strconv.Itoa(pageSize))
	for {
		page := new(Page)
		if err := op.Do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, page); err != nil {
			return nil, err
		}
		some, next := take(page)
		items = append(items, some...)
		if next == "" {
			return items, nil
		}
		query.Set("after", next)
	}
}

// pending warns that a change holds although the service could not record it.
func (c *cli) pending(pending bool) {
	if pending {
		c.note("note: effective, audit pending: its record waits in the database until the service's journal can be written")
	}
}

// codeRemedy says how a code that nobody saw is replaced.
func (c *cli) codeRemedy(i *admin.Invitation) {
	if i.Code != "" {
		c.remedy = "the code is lost, all else is done; for a new code: certbound client invite " + profile.ShellWord(i.ClientID)
	}
}

// printCode prints exactly the code, so that it can be piped to the one who enrols, and explains it on standard error.
func (c *cli) printCode(i *admin.Invitation) error {
	c.codeRemedy(i)
	if c.json {
		return c.print(i, nil)
	}
	if i.Code == "" && i.AuthMethod == privateKeyJWT { // a profile has no key for assertions, and our verbs sign none
		c.note("client %s is registered and needs no enrolment code; where it runs, it sends with each request to the token endpoint, on a", i.ClientID)
		c.note("  connection with a certificate, which its tokens are then bound to, an assertion for the issuer signed with its key (RFC 7523)")
		return nil
	}
	if i.Code == "" {
		c.note("client %s is registered and needs no enrolment code; where it runs, with its own certificate and key:", i.ClientID)
		c.note("  certbound profile add DIR --issuer URL --root FILE --client-id %s --cert FILE --key FILE", i.ClientID)
		return nil
	}
	if i.CodeExpiresAt != nil {
		c.note("one-time enrolment code of %s, good until %s; where the client runs, give it on standard input to:", i.ClientID, stamp(*i.CodeExpiresAt))
	}
	c.note("  certbound enroll - --profile ./%s", i.ClientID)
	return c.print(i, line(i.Code))
}
