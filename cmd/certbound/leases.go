// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) leasesCommand() *cobra.Command {
	reset := &cobra.Command{
		Use:   "reset --socket DATA/admin.sock",
		Short: "Wait no longer for replicas that are gone: remove the leases that nobody renews",
		Long: "Removes the leases of replicas that do not renew them, which the others would do after half a minute; until then every\n" +
			"revocation takes three seconds. It takes three seconds itself, to see who renews, and takes nothing from who does.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.socket == "" {
				return usagef("certbound leases reset --socket ./certbound-data/admin.sock", "only the break-glass socket resets leases")
			}
			change, err := call[admin.Change](cmd.Context(), c, http.MethodPost, "/leases/reset", nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.Done))
		},
	}
	c.operatorFlags(reset, true)
	return group("leases", "Reset the leases of the replicas that share a database", reset)
}
