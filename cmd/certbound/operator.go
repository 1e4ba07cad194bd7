// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

// operatorProfile is where serve lays down the first operator's profile.
const operatorProfile = "./certbound-data/admin"

// pageSize is how many entries of a list are asked for at once.
const pageSize = 200

// operator opens the operator's profile; requests made with it renew it where that is due.
func (c *cli) operator() (*profile.Operator, error) {
	dir := c.profileDir(operatorProfile)
	p, err := profile.Open(dir)
	if errors.Is(err, fs.ErrNotExist) && dir == operatorProfile {
		return nil, failf("run it in the folder where certbound serve was started, or name the operator's profile with --profile DATA/admin", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	return profile.NewOperator(p)
}

// openProfile opens the profile that flag or environment names and renews it where that is due.
func (c *cli) openProfile(ctx context.Context) (*profile.Profile, error) {
	dir := c.profileDir("")
	if dir == "" {
		return nil, noProfile()
	}
	p, err := profile.Open(dir)
	if err != nil {
		return nil, err
	}
	// A renewal that fails is no reason to fail while the certificate is valid: it is tried again next time.
	if _, err := p.RenewIfDue(ctx); err != nil {
		c.note("note: the profile could not be renewed and is valid until %s: %s", stamp(p.Certificate().NotAfter), oneLine(err.Error()))
	}
	return p, nil
}

func noProfile() error {
	return usagef("name its folder with --profile or CERTBOUND_PROFILE", "no profile was named")
}

func (c *cli) profileDir(fallback string) string {
	environment, _ := c.env("CERTBOUND_PROFILE")
	return profile.Resolve(c.profile, environment, fallback)
}

// call sends one request to the operators' API.
func call[Out any](ctx context.Context, c *cli, method, path string, in any) (*Out, error) {
	op, err := c.operator()
	if err != nil {
		return nil, err
	}
	defer op.Close()
	out := new(Out)
	if err := op.Do(ctx, method, path, in, out); err != nil {
		return nil, err
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
		c.note("note: it is in force, but the service could not write its journal: look at its log")
	}
}

// printCode prints exactly the code, so that it can be piped to the one who enrols, and explains it on standard error.
func (c *cli) printCode(i *admin.Invitation) error {
	if c.json {
		return c.print(i, nil)
	}
	if i.Code == "" {
		c.note("client %s is registered; it needs no enrolment code", i.ClientID)
		return nil
	}
	if i.CodeExpiresAt != nil {
		c.note("one-time enrolment code of %s, good until %s; where the client runs, give it on standard input to:", i.ClientID, stamp(*i.CodeExpiresAt))
	}
	c.note("  certbound enroll - --profile ./%s", i.ClientID)
	return c.print(i, line(i.Code))
}
