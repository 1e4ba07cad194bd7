// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) certCommand() *cobra.Command {
	list, revoke := c.certListCommand(), c.certRevokeCommand()
	c.operatorFlags(list, false)
	c.operatorFlags(revoke, true)
	return group("cert", "List the certificates of our CA, or revoke some", list, revoke)
}

func (c *cli) certListCommand() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use: "list", Short: "List all certificates, oldest first", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			if err := clientFlag("--client", client); err != nil {
				return err
			}
			if client != "" {
				query.Set("client_id", client)
			}
			certs, err := collect(cmd.Context(), c, "/certificates", query, func(p *admin.CertificateList) ([]admin.Certificate, string) {
				return p.Certificates, p.Next
			})
			if err != nil {
				return err
			}
			return c.print(certs, func(w io.Writer) { certTable(w, certs) })
		},
	}
	cmd.Flags().StringVar(&client, "client", "", "only those of this client")
	return cmd
}

func certTable(w io.Writer, certs []admin.Certificate) {
	rows := make([][]string, 0, len(certs))
	for _, cert := range certs {
		rows = append(rows, []string{cert.Serial, cert.Thumbprint, cert.ClientID, cert.Status, stamp(cert.NotAfter)})
	}
	table(w, "SERIAL X5T#S256 CLIENT STATUS EXPIRES", rows)
}

func (c *cli) certRevokeCommand() *cobra.Command {
	var req admin.RevokeRequest
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "revoke SERIAL|x5t#S256|--client ID",
		Short: "Revoke a certificate with everything renewed from it, in force when this returns",
		Args:  arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (req.ClientID != "") {
				return usagef("usage: "+cmd.UseLine(), "name either one certificate or --client")
			}
			if err := clientFlag("--client", req.ClientID); err != nil {
				return err
			}
			if err := checkReason(req.Reason); err != nil {
				return err
			}
			if len(args) == 1 {
				name(&req, args[0])
			}
			if req.WaitResources = int(wait.Seconds()); wait != 0 && req.WaitResources < 1 || wait > 20*time.Second {
				return usagef("from 1s to 20s; the same command again waits longer", "--wait-resources %s is not a time to wait", wait)
			}
			done, err := call[admin.Revocation](cmd.Context(), c, http.MethodPost, "/certificates/revoke", &req)
			if err != nil {
				return err
			}
			c.pending(done.AuditPending)
			return c.print(done, func(w io.Writer) { c.showRevocation(w, done) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.ClientID, "client", "", "revoke all certificates of this client")
	flags.StringVar(&req.Reason, "reason", "", "reason of RFC 5280, such as keyCompromise, which also bars the key for ever")
	flags.DurationVar(&wait, "wait-resources", 0, "wait so long, at most 20s, for the resource servers to know, and say which do (-o json: resources); the revocation stands whether they do or not")
	flags.BoolVar(&req.Only, "only", false, "leave certificates alone that were renewed from it")
	return cmd
}

func checkReason(reason string) error {
	known := profile.Reasons()
	if reason == "" || slices.ContainsFunc(known, func(name string) bool { return strings.EqualFold(name, reason) }) {
		return nil
	}
	return usagef("use one of "+strings.Join(known, ", "), "%q is not a reason", reason)
}

// thumbprintMark stands before a thumbprint that would otherwise look like a flag.
const thumbprintMark = "x5t#S256="

// markThumbprints marks thumbprints that begin with a hyphen, as one in 64 does. No flag looks like one.
func markThumbprints(args []string) []string {
	marked := slices.Clone(args)
	for i, arg := range args {
		if len(arg) == 43 && arg[0] == '-' && !strings.ContainsAny(arg, "=:/. ") && slices.Contains(args[:i], "revoke") {
			marked[i] = thumbprintMark + arg
		}
	}
	return marked
}

// name tells a serial number, which is decimal, from a thumbprint, which cannot be digits alone by any chance that counts.
func name(req *admin.RevokeRequest, arg string) {
	if strings.Trim(arg, "0123456789") == "" {
		req.Serial = arg
		return
	}
	req.Thumbprint = strings.TrimPrefix(arg, thumbprintMark)
}

func (c *cli) showRevocation(w io.Writer, done *admin.Revocation) {
	if len(done.Revoked) > 0 {
		certTable(w, done.Revoked)
	}
	for _, cert := range done.AlreadyRevoked {
		c.note("note: %s of %s had been revoked before", cert.Serial, cert.ClientID)
	}
	for _, f := range done.Resources {
		if f.Has {
			fmt.Fprintf(w, "%s has it\n", f.ClientID)
		} else {
			fmt.Fprintf(w, "%s does not have it: its resource servers accept tokens until these expire, or their feed is too old\n", f.ClientID)
		}
	}
	if done.Durability != "" {
		c.note("durability: %s: a failover of the database could undo this", done.Durability)
	}
	for _, id := range done.Disabled {
		c.note("client %s is disabled: its certificates are not ours to revoke", id)
	}
	if len(done.Revoked)+len(done.AlreadyRevoked)+len(done.Disabled) == 0 {
		c.note("note: there was nothing to revoke")
	}
}
