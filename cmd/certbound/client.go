// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) clientCommand() *cobra.Command {
	verbs := []*cobra.Command{
		c.clientAddCommand(), c.clientListCommand(), c.clientShowCommand(), c.clientCertsCommand(),
		c.clientChangeCommand("enable", "Let a disabled client in again", http.MethodPost, "/enable"),
		c.clientChangeCommand("remove", "Remove a client; its certificates are worth nothing from now on", http.MethodDelete, ""),
	}
	for _, verb := range verbs {
		c.operatorFlags(verb, false)
	}
	breakGlass := []*cobra.Command{
		c.clientChangeCommand("disable", "Refuse a client everything at once; enable takes it back", http.MethodPost, "/disable"),
		c.clientInviteCommand(),
	}
	for _, verb := range breakGlass {
		c.operatorFlags(verb, true)
	}
	return group("client", "Register clients and look after them", append(verbs, breakGlass...)...)
}

// clientPath is the path of one client, whose id may hold any character.
func clientPath(id string) string { return "/clients/" + url.PathEscape(id) }

func (c *cli) clientListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all clients", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			clients, err := collect(cmd.Context(), c, "/clients", url.Values{}, func(p *admin.ClientList) ([]admin.Client, string) {
				return p.Clients, p.Next
			})
			if err != nil {
				return err
			}
			return c.print(clients, func(w io.Writer) {
				rows := make([][]string, 0, len(clients))
				for _, client := range clients {
					rows = append(rows, []string{
						client.ID, clientState(client), vouchedBy(client), dash(client.Usage), dash(client.Scope), dash(names(client)),
					})
				}
				table(w, "ID STATE VOUCHED-BY USAGE SCOPE NAMES", rows)
			})
		},
	}
}

func (c *cli) clientShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one client", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := call[admin.Client](cmd.Context(), c, http.MethodGet, clientPath(args[0]), nil)
			if err != nil {
				return err
			}
			return c.print(client, func(w io.Writer) { showClient(w, *client) })
		},
	}
}

func showClient(w io.Writer, client admin.Client) {
	ttl := "the service's default"
	if client.TokenTTLSeconds > 0 {
		ttl = (time.Duration(client.TokenTTLSeconds) * time.Second).String()
	}
	fields(w,
		"client", client.ID, "state", clientState(client), "method", client.AuthMethod, "vouched by", vouchedBy(client), "trust", client.Trust,
		"subject DN", client.SubjectDN, "SAN DNS", client.SANDNS, "SAN URI", client.SANURI, "SAN IP", client.SANIP, "SAN email", client.SANEmail, "keys at", client.JWKSURI,
		"names", names(client), "usage", client.Usage, "scope", client.Scope, "resources", strings.Join(client.Resources, " "),
		"token life", ttl, "generation", strconv.FormatUint(client.Generation, 10), "created", stamp(client.CreatedAt))
	pinnedTable(w, client.Certificates)
}

// vouchedBy says on whose word a client's certificate is believed.
func vouchedBy(client admin.Client) string {
	switch {
	case client.Trust != "":
		return client.Trust
	case client.JWKSURI != "":
		return "its-jwks-uri"
	case client.AuthMethod == "self_signed_tls_client_auth":
		return "itself"
	}
	return "our-CA"
}

// pinnedTable lists registered certificates, if there are any.
func pinnedTable(w io.Writer, certs []admin.PinnedCertificate) {
	if len(certs) == 0 {
		return
	}
	rows := make([][]string, 0, len(certs))
	for _, cert := range certs {
		rows = append(rows, []string{cert.Thumbprint, stamp(cert.NotAfter), quoteUnlessPlain(cert.Subject)})
	}
	table(w, "X5T#S256 EXPIRES SUBJECT", rows)
}

func clientState(client admin.Client) string {
	if client.Disabled {
		return "disabled"
	}
	return "enabled"
}

func names(client admin.Client) string {
	return strings.Join(append(append(append([]string{}, client.DNSNames...), client.IPAddresses...), client.URIs...), " ")
}

// dash stands for nothing in a table, so that columns can be counted.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// clientChangeCommand is a verb that changes one client's state.
func (c *cli) clientChangeCommand(verb, short, method, suffix string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID", Short: short, Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := call[admin.Change](cmd.Context(), c, method, clientPath(args[0])+suffix, nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.ClientID+" "+change.Done))
		},
	}
}

func (c *cli) clientInviteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "invite ID", Short: "Print a new one-time enrolment code; older ones stop working", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			invitation, err := call[admin.Invitation](cmd.Context(), c, http.MethodPost, clientPath(args[0])+"/invite", nil)
			if err != nil {
				return err
			}
			return c.printCode(invitation)
		},
	}
}
