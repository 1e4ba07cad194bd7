// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
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
	cmd.Flags().StringArrayVar(&servers, "server", nil, "client that runs it and may ask about its tokens (repeatable)")
	return cmd
}

func (c *cli) resourceListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all resources", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resources, err := c.resources(cmd.Context())
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

func (c *cli) resources(ctx context.Context) ([]admin.Resource, error) {
	return collect(ctx, c, "/resources", url.Values{}, func(p *admin.ResourceList) ([]admin.Resource, string) {
		return p.Resources, p.Next
	})
}

func (c *cli) resourceRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove URI", Short: "Remove a resource that no client names any more", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/resources?" + url.Values{"uri": {args[0]}}.Encode()
			change, err := call[admin.Change](cmd.Context(), c, http.MethodDelete, path, nil)
			if err != nil {
				return stillUsed(err)
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.Resource+" "+change.Done))
		},
	}
}

// stillUsed says what becomes of the clients of a resource in use: a client's scopes and resources do not change, so those
// that are still needed have to find their scopes elsewhere.
func stillUsed(err error) error {
	refused, ok := errors.AsType[*profile.APIError](err)
	if !ok || refused.Status != http.StatusConflict || refused.Code != "invalid_request" {
		return err
	}
	told := *refused
	told.Hint = "certbound client show ID tells why: one that holds a scope which no other resource declares may stay once another does " +
		"(certbound resource add); one that names the resource has to be removed, and added again without it where it is still needed"
	return &told
}
