// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the service is and how much it holds", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := call[admin.Status](cmd.Context(), c, http.MethodGet, "/status", nil)
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) {
				fields(w,
					"issuer", s.Issuer, "trust domain", s.TrustDomain, "version", s.Version,
					"clients", count(s.Clients), "disabled clients", count(s.DisabledClients), "resources", count(s.Resources), "foreign CAs", count(s.Trusts),
					"certificates", count(s.Certificates), "revoked certificates", count(s.RevokedCertificates), "open codes", count(s.OpenCodes))
			})
		},
	}
	c.operatorFlags(cmd, true)
	return cmd
}

func count(n int64) string { return strconv.FormatInt(n, 10) }
