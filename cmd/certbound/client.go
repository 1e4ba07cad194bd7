// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) clientCommand() *cobra.Command {
	verbs := []*cobra.Command{
		c.clientAddCommand(), c.clientListCommand(), c.clientShowCommand(), c.clientCertsCommand(),
		c.clientChangeCommand("enable", "Let a disabled client in again; codes that disable made void stay so", http.MethodPost, "/enable"),
		c.clientChangeCommand("remove", "Remove a client; its certificates and its open enrolment codes are worth nothing from now on", http.MethodDelete, ""),
	}
	for _, verb := range verbs {
		c.operatorFlags(verb, false)
	}
	breakGlass := []*cobra.Command{
		c.clientChangeCommand("disable", "Refuse a client everything at once and void its open enrolment codes; enable lets it in again",
			http.MethodPost, "/disable"),
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
		Use: "show ID", Short: "Show one client", Args: clientID,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := call[admin.Client](cmd.Context(), c, http.MethodGet, clientPath(args[0]), nil)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(client, nil)
			}
			resources, err := c.resources(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(client, func(w io.Writer) { showClient(w, *client, reach(*client, resources)) })
		},
	}
}

// reach are the resources that a client may have tokens for: those that it names, or else all that declare one of its
// scopes, and the operators' API, which nobody needs to name at registration.
func reach(client admin.Client, resources []admin.Resource) []string {
	found := slices.Clone(client.Resources)
	scopes := strings.Fields(client.Scope)
	for _, r := range resources {
		if !r.BuiltIn && len(client.Resources) > 0 {
			continue
		}
		declares := strings.Fields(r.Scope)
		if slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(declares, s) }) && !slices.Contains(found, r.Resource) {
			found = append(found, r.Resource)
		}
	}
	return found
}

func showClient(w io.Writer, client admin.Client, resources []string) {
	ttl := "the service's default"
	if client.TokenTTLSeconds > 0 {
		ttl = (time.Duration(client.TokenTTLSeconds) * time.Second).String()
	}
	fields(w,
		"client", client.ID, "state", clientState(client), "method", client.AuthMethod, "vouched by", vouchedBy(client), "trust", client.Trust,
		"subject DN", client.SubjectDN, "SAN DNS", client.SANDNS, "SAN URI", client.SANURI, "SAN IP", client.SANIP, "SAN email", client.SANEmail, "keys at", client.JWKSURI, "keys", keyIDs(client.JWKS),
		"names", names(client), "usage", client.Usage, "scope", client.Scope, "resources", strings.Join(resources, " "),
		"token life", ttl, "generation", strconv.FormatUint(client.Generation, 10), "created", stamp(client.CreatedAt))
	pinnedTable(w, client.Certificates)
}

// keyIDs are the ids of registered keys.
func keyIDs(jwks json.RawMessage) string {
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if json.Unmarshal(jwks, &set) != nil {
		return ""
	}
	ids := make([]string, len(set.Keys))
	for i, k := range set.Keys {
		ids[i] = strconv.Quote(k.ID)
	}
	return strings.Join(ids, " ")
}

// vouchedBy says on whose word a client's certificate is believed.
func vouchedBy(client admin.Client) string {
	switch {
	case client.Trust != "":
		return client.Trust
	case client.JWKSURI != "":
		return "its-jwks-uri"
	case client.AuthMethod == "self_signed_tls_client_auth", client.AuthMethod == "private_key_jwt":
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

// clientID demands one argument that can be a client's id.
func clientID(cmd *cobra.Command, args []string) error {
	if err := arguments(1, 1)(cmd, args); err != nil {
		return err
	}
	return clientFlag("", args[0])
}

// clientFlag refuses a value that cannot be a client's id; an empty one was not given.
func clientFlag(flag, id string) error {
	if id == "" && flag != "" || profile.CheckClientID(id) == nil {
		return nil
	}
	return usagef("an id begins with a letter or digit and has at most 63 of a-z, 0-9, '.', '_' and '-'; that of a foreign CA's client "+
		"may be a SPIFFE id", "%s", strings.TrimSpace(fmt.Sprintf("%s %q is not a client id", flag, id)))
}

// clientChangeCommand is a verb that changes one client's state.
func (c *cli) clientChangeCommand(verb, short, method, suffix string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID", Short: short, Args: clientID,
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
		Use: "invite ID", Short: "Print a new one-time enrolment code; older ones stop working", Args: clientID,
		RunE: func(cmd *cobra.Command, args []string) error {
			invitation, err := call[admin.Invitation](cmd.Context(), c, http.MethodPost, clientPath(args[0])+"/invite", nil)
			if err != nil {
				return err
			}
			c.pending(invitation.AuditPending)
			return c.printCode(invitation)
		},
	}
}
