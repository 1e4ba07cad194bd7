// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the service is, how much it holds and who shares its database", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := call[admin.Status](cmd.Context(), c, http.MethodGet, "/status", nil)
			if err != nil {
				return err
			}
			if urls := mtlsURLs(s.Replicas); len(urls) > 1 {
				c.note("warning: the replicas name different mtls URLs in their metadata, %s: give all of them the same --mtls-url", strings.Join(urls, " and "))
			}
			return c.print(s, func(w io.Writer) {
				fields(w,
					"issuer", s.Issuer, "trust domain", s.TrustDomain, "version", s.Version,
					"clients", count(s.Clients), "disabled clients", count(s.DisabledClients), "resources", count(s.Resources), "foreign CAs", count(s.Trusts),
					"certificates", count(s.Certificates), "revoked certificates", count(s.RevokedCertificates), "open codes", count(s.OpenCodes),
					"database", strings.TrimSpace(s.Database.Kind+" "+s.Database.Version), "durability", s.Database.Durability,
					"state version", count(s.StateVersion))
				showReplicas(w, s.Replicas)
			})
		},
	}
	c.operatorFlags(cmd, true)
	return cmd
}

// mtlsURLs are the different mtls URLs that replicas name.
func mtlsURLs(replicas []admin.Replica) []string {
	var urls []string
	for _, r := range replicas {
		urls = append(urls, r.MTLSURL)
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}

// showReplicas lists who shares the database; the one that answered is marked with an asterisk.
func showReplicas(w io.Writer, replicas []admin.Replica) {
	if len(replicas) == 0 {
		return
	}
	rows := make([][]string, 0, len(replicas))
	for _, r := range replicas {
		name := r.Replica
		if r.This {
			name += "*"
		}
		rows = append(rows, []string{
			name, strconv.FormatUint(r.Incarnation, 10), r.Address, r.Version, r.Lease,
			strconv.FormatFloat(r.RenewedSecondsAgo, 'f', 1, 64) + "s ago", count(r.Applied), count(r.Lag), strconv.FormatUint(r.HeadSeq, 10),
		})
	}
	fmt.Fprintln(w)
	table(w, "REPLICA INCARNATION ADDRESS VERSION LEASE RENEWED APPLIED LAG HEAD", rows)
	for _, r := range replicas {
		if r.Trouble != "" {
			fmt.Fprintf(w, "%s has no lease: %s\n", r.Replica, r.Trouble)
		}
	}
}

func count(n int64) string { return strconv.FormatInt(n, 10) }
