// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) auditEraseCommand() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use: "erase --client ID", Short: "Make unreadable what the journal says of a person, for good", Args: arguments(0, 0),
		Long: "Make unreadable what the journal says of a person behind a client or an operator: addresses, and names and mail\n" +
			"addresses of certificates. Their key is deleted, also for what was recorded until now; the records stay and verify. It\n" +
			"cannot be taken back, but a backup of the database that was made before has the key. It needs the scope certbound:keys.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if client == "" {
				return usagef("usage: certbound audit erase --client ID", "whom to erase is missing")
			}
			change, err := call[admin.Change](cmd.Context(), c, http.MethodPost, clientPath(client)+"/erase", nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.ClientID+" "+change.Done))
		},
	}
	cmd.Flags().StringVar(&client, "client", "", "id of the client or operator")
	return cmd
}
