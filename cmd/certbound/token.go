// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) tokenCommand() *cobra.Command {
	var scope, resource string
	cmd := &cobra.Command{
		Use: "token", Short: "Print an access token bound to the profile's certificate", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := c.openProfile(cmd.Context())
			if err != nil {
				return err
			}
			token, err := p.Token(cmd.Context(), strings.Fields(scope), resource)
			if err != nil {
				return whichResource(err, p, resource)
			}
			return c.print(token.Raw, line(token.AccessToken))
		},
	}
	c.profileFlag(cmd, "none")
	cmd.Flags().StringVar(&scope, "scope", "", `scopes, separated by spaces (default: all that it has at the resource)`)
	cmd.Flags().StringVar(&resource, "resource", "", "resource server that the token is for (default: the only one its scopes belong to, never the operators' API)")
	return cmd
}

// whichResource tells whoever named no resource that the service found no single one to be meant.
func whichResource(err error, p *profile.Profile, resource string) error {
	refused, ok := errors.AsType[*profile.APIError](err)
	if !ok || refused.Code != "invalid_target" || resource != "" {
		return err
	}
	told := *refused
	told.Hint = "name it with --resource URI: an operator sees those of the client with certbound client show " + profile.ShellWord(p.ClientID()) +
		"; the operators' API is never meant unless it is named: --resource " + profile.ShellWord(strings.TrimSuffix(p.Issuer(), "/")+admin.Prefix)
	return &told
}
