// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) resourceCommand() *cobra.Command {
	verbs := []*cobra.Command{c.resourceAddCommand(), c.resourceListCommand(), c.resourceRemoveCommand()}
	for _, verb := range verbs {
		c.operatorFlags(verb, false)
	}
	return group("resource", "Register resource servers, which are what tokens are for", verbs...)
}

func (c *cli) resourceAddCommand() *cobra.Command {
	var scopes, servers []string
	cmd := &cobra.Command{
		Use: "add URI", Short: "Register a resource server and the scopes it understands", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &admin.ResourceRequest{Resource: args[0], Scope: strings.Join(scopes, " "), Servers: servers}
			resource, err := call[admin.Resource](cmd.Context(), c, http.MethodPost, "/resources", req)
			if err != nil {
				return err
			}
			return c.print(resource, line(resource.Resource+" added"))
		},
	}
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "scope that it understands (repeatable, at least one)")
	cmd.Flags().StringArrayVar(&servers, "server", nil, "client that runs it (repeatable)")
	return cmd
}

func (c *cli) resourceListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all resources", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resources, err := collect(cmd.Context(), c, "/resources", url.Values{}, func(p *admin.ResourceList) ([]admin.Resource, string) {
				return p.Resources, p.Next
			})
			if err != nil {
				return err
			}
			return c.print(resources, func(w io.Writer) {
				rows := make([][]string, 0, len(resources))
				for _, r := range resources {
					rows = append(rows, []string{r.Resource, r.Scope, dash(strings.Join(r.Servers, " "))})
				}
				table(w, "RESOURCE SCOPE SERVERS", rows)
			})
		},
	}
}

func (c *cli) resourceRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove URI", Short: "Remove a resource that no client names any more", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/resources?" + url.Values{"uri": {args[0]}}.Encode()
			change, err := call[admin.Change](cmd.Context(), c, http.MethodDelete, path, nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.Resource+" "+change.Done))
		},
	}
}
