// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/cobra"

func (c *cli) leasesCommand() *cobra.Command {
	return group("leases", "Reset the leases of the replicas that share a database", c.resetCommand("leases",
		"Wait no longer for replicas that are gone: remove the leases that nobody renews",
		"Removes the leases of replicas that do not renew them, which the others would do after half a minute; until then every\n"+
			"revocation takes three seconds. It takes three seconds itself, to see who renews, and takes nothing from who does."))
}
