// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) clientCertsCommand() *cobra.Command {
	var files []string
	var allowReserved bool
	cmd := &cobra.Command{
		Use:   "certs ID --cert FILE",
		Short: "Replace the registered certificates of a self-signed client",
		Long: "Replace the registered certificates of a self-signed client.\n\n" +
			"What is not named here is accepted no more. To rotate, name the old one and the new one, have the client change\n" +
			"over, then name the new one alone.",
		Args: clientID,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(files) == 0 {
				return usagef("usage: "+cmd.UseLine(), "--cert is missing")
			}
			certs, err := readPinned(files)
			if err != nil {
				return err
			}
			req := &admin.CertificatesRequest{Certificates: certs, AllowReserved: allowReserved}
			change, err := call[admin.Change](cmd.Context(), c, http.MethodPut, clientPath(args[0])+"/certificates", req)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.ClientID+" "+change.Done))
		},
	}
	cmd.Flags().StringArrayVar(&files, "cert", nil, "PEM file of a certificate that it may use from now on (repeatable)")
	cmd.Flags().BoolVar(&allowReserved, "allow-reserved", false, "permit names like localhost in it, for demonstrations on one machine")
	return cmd
}

// readPinned reads one certificate from each file. A chain is refused: whoever holds the key of any certificate that is
// registered is the client.
func readPinned(files []string) ([]string, error) {
	var pinned []string
	for _, file := range files {
		certs, err := profile.ReadCertificates(file)
		if err != nil {
			return nil, err
		}
		if len(certs) != 1 {
			return nil, failf("name a file for each certificate of the client, without those of a CA", "%s holds %d certificates", file, len(certs))
		}
		pinned = append(pinned, certs[0])
	}
	return pinned, nil
}
