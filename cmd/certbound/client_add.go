// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

// registration are the flags of client add. Which CA vouches for the client is decided here alone: without a flag that
// says otherwise, it is ours.
type registration struct {
	dns, ips, uris, scopes, resources []string
	usage                             string
	tokenTTL                          time.Duration
	allowReserved                     bool
}

func (r *registration) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&r.dns, "dns", nil, "DNS name in its certificate (repeatable)")
	flags.StringArrayVar(&r.ips, "ip", nil, "IP address in its certificate (repeatable)")
	flags.StringArrayVar(&r.uris, "uri", nil, "further URI in its certificate (repeatable)")
	flags.StringArrayVar(&r.scopes, "scope", nil, "scope that it may ask for (repeatable)")
	flags.StringArrayVar(&r.resources, "resource", nil, "resource that it may ask for (repeatable; default: every one that declares its scopes)")
	flags.DurationVar(&r.tokenTTL, "token-ttl", 0, "life of its tokens, 1s to 1h (default: the service's)")
	flags.StringVar(&r.usage, "usage", "client", "what its certificate is for: client, server or both")
	flags.BoolVar(&r.allowReserved, "allow-reserved", false, "permit names like localhost, for demonstrations on one machine")
}

func (r *registration) request(cmd *cobra.Command, id string) (*admin.ClientRequest, error) {
	req := &admin.ClientRequest{
		ID: id, Scope: strings.Join(r.scopes, " "), DNSNames: r.dns, IPAddresses: r.ips, URIs: r.uris,
		Usage: r.usage, Resources: r.resources, AllowReserved: r.allowReserved,
	}
	if !cmd.Flags().Changed("token-ttl") {
		return req, nil
	}
	if r.tokenTTL < time.Second || r.tokenTTL > time.Hour || r.tokenTTL%time.Second != 0 {
		return nil, usagef("use whole seconds, from --token-ttl 1s to --token-ttl 1h", "a token cannot live %s", r.tokenTTL)
	}
	seconds := int64(r.tokenTTL / time.Second)
	req.TokenTTLSeconds = &seconds
	return req, nil
}

func (c *cli) clientAddCommand() *cobra.Command {
	var r registration
	cmd := &cobra.Command{
		Use: "add ID", Short: "Register a client of our own CA and print its one-time enrolment code", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := r.request(cmd, args[0])
			if err != nil {
				return err
			}
			invitation, err := call[admin.Invitation](cmd.Context(), c, http.MethodPost, "/clients", req)
			if err != nil {
				return err
			}
			return c.printCode(invitation)
		},
	}
	r.register(cmd)
	return cmd
}
