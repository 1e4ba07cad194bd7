// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/spf13/cobra"
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
				return err
			}
			return c.print(token.Raw, line(token.AccessToken))
		},
	}
	c.profileFlag(cmd, "none")
	cmd.Flags().StringVar(&scope, "scope", "", `scopes, separated by spaces (default: all that it has at the resource)`)
	cmd.Flags().StringVar(&resource, "resource", "", "resource server that the token is for (default: the only one its scopes belong to)")
	return cmd
}
