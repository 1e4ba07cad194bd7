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
				return tokenRefused(err, p, resource)
			}
			return c.print(token.Raw, line(token.AccessToken))
		},
	}
	c.profileFlag(cmd, "none")
	cmd.Flags().StringVar(&scope, "scope", "", `scopes, separated by spaces (default: all that it has at the resource)`)
	cmd.Flags().StringVar(&resource, "resource", "", "resource server that the token is for (default: the only one its scopes belong to, never the operators' API)")
	return cmd
}

// tokenRefused says where to see what a client may ask for that asked for something else. One without a scope, as a resource
// server, has no resource that it could name.
func tokenRefused(err error, p *profile.Profile, resource string) error {
	refused, ok := errors.AsType[*profile.APIError](err)
	if !ok || refused.Code != "invalid_target" && refused.Code != "invalid_scope" {
		return err
	}
	show := "certbound client show " + profile.ShellWord(p.ClientID())
	const none = "; one that shows none has no scope, and a resource server needs none: one that calls others is registered with " +
		"certbound client add ID --scope SCOPE"
	told := *refused
	told.Hint = "an operator sees the scopes and resources of the client with " + show + none
	if refused.Code == "invalid_target" && resource == "" {
		told.Hint = "name it with --resource URI: an operator sees those of the client with " + show + none +
			"; the operators' API is never meant unless it is named: --resource " + profile.ShellWord(strings.TrimSuffix(p.Issuer(), "/")+admin.Prefix)
	}
	return &told
}
