// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"
)

func (c *cli) renewCommand() *cobra.Command {
	var rekey bool
	cmd := &cobra.Command{
		Use: "renew", Short: "Get a new certificate with the one that the profile holds", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := c.profileDir("")
			if dir == "" {
				return noProfile()
			}
			p, err := c.open(dir)
			if err != nil {
				return err
			}
			if err := p.Renew(cmd.Context(), rekey); err != nil {
				return err
			}
			id := holderOf(p)
			c.remedy = "it is done nevertheless: the profile is in " + p.Dir()
			return c.print(id, line("renewed "+id.ClientID+" until "+stamp(id.NotAfter)))
		},
	}
	c.profileFlag(cmd, "none")
	cmd.Flags().BoolVar(&rekey, "rekey", false, "make a new key too")
	return cmd
}
