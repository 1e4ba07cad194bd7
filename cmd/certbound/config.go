// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/server"
)

func (c *cli) configCommand() *cobra.Command {
	var flags configFlags
	check := &cobra.Command{
		Use: "check", Short: "Say whether serve would accept this configuration", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load(c, cmd)
			if err != nil {
				return err
			}
			if err := server.Check(cfg); err != nil {
				return startFailure(err)
			}
			result := struct {
				Valid  bool   `json:"valid"`
				Issuer string `json:"issuer"`
				Data   string `json:"data"`
			}{true, cfg.Issuer, cfg.Data}
			return c.print(result, line("the configuration is good"))
		},
	}
	flags.register(check)
	example := &cobra.Command{
		Use: "example", Short: "Print a file with every key, its default and what it means", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			result := struct {
				Config string `json:"config"`
			}{config.Example()}
			return c.print(result, func(w io.Writer) { fmt.Fprint(w, result.Config) })
		},
	}
	return group("config", "Check a configuration, or print an example", check, example)
}
