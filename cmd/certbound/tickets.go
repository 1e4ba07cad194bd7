// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) ticketsCommand() *cobra.Command {
	return group("tickets", "Reset the keys of TLS session tickets", c.resetCommand("tickets",
		"Make every TLS session ticket that is out there worthless: clients make full handshakes again", ""))
}

// resetCommand is the verb that resets what, which only the break-glass socket does.
func (c *cli) resetCommand(what, short, long string) *cobra.Command {
	reset := &cobra.Command{
		Use:   "reset --socket DATA/admin.sock",
		Short: short,
		Long:  long,
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.socket == "" {
				return usagef("certbound "+what+" reset --socket ./certbound-data/admin.sock", "only the break-glass socket resets %s", what)
			}
			change, err := call[admin.Change](cmd.Context(), c, http.MethodPost, "/"+what+"/reset", nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.Done))
		},
	}
	c.operatorFlags(reset, true)
	return reset
}
