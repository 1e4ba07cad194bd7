// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/profile"
)

// maxStdin bounds what is read where a code or a token is expected.
const maxStdin = 64 << 10

// holder is a profile and its certificate, for those who just got it.
type holder struct {
	ClientID   string    `json:"client_id"`
	Issuer     string    `json:"issuer"`
	Profile    string    `json:"profile"`
	Serial     string    `json:"serial"`
	Thumbprint string    `json:"x5t#S256"`
	NotAfter   time.Time `json:"not_after"`
}

func holderOf(p *profile.Profile) holder {
	id := profile.IdentityOf(p.Certificate())
	return holder{
		ClientID: p.ClientID(), Issuer: p.Issuer(), Profile: p.Dir(),
		Serial: id.Serial, Thumbprint: id.Thumbprint, NotAfter: id.NotAfter,
	}
}

func (c *cli) enrollCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "enroll -|CODE",
		Short: "Redeem a one-time code for a certificate and a profile",
		Long: "Redeem a one-time code for a certificate and a profile.\n\n" +
			"With - the code is read from standard input. That is the better way: while the program runs, its arguments show in ps.\n" +
			"Running it again with the same code, after a failure, goes on where it stopped.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := c.argumentOrStdin(args[0], "code")
			if err != nil {
				return err
			}
			p, err := profile.Enroll(cmd.Context(), profile.EnrollOptions{Code: code, Dir: c.profileDir(""), Replace: replace})
			if err != nil {
				return err
			}
			id := holderOf(p)
			c.remedy = "it is done nevertheless: the profile is in " + p.Dir()
			c.note("the certificate is valid until %s; certbound renew and the verbs that call the service with it renew it", stamp(id.NotAfter))
			return c.print(id, line("enrolled "+id.ClientID+" at "+id.Issuer+" into "+id.Profile))
		},
	}
	c.profileFlag(cmd, "./CLIENT_ID")
	cmd.Flags().BoolVar(&replace, "replace", false, "overwrite a profile of another service or client")
	return cmd
}

// argumentOrStdin is the argument itself, or for - what standard input holds.
func (c *cli) argumentOrStdin(arg, what string) (string, error) {
	if arg == "-" {
		raw, err := io.ReadAll(io.LimitReader(c.stdin, maxStdin))
		if err != nil {
			return "", failf("give the "+what+" on standard input", "reading standard input: %v", err)
		}
		arg = string(raw)
	}
	arg = strings.TrimSpace(arg)
	if arg == "" {
		return "", failf("give the "+what+" as the argument, or on standard input with -", "there is no %s", what)
	}
	return arg, nil
}
