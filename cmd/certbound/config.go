// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/server"
	"github.com/certbound/certbound/cmd/internal/store"
)

func (c *cli) configCommand() *cobra.Command {
	var flags configFlags
	check := &cobra.Command{
		Use: "check", Short: "Judge a configuration by itself: its keys, and the files that it names", Args: arguments(0, 0),
		Long: "Read the configuration as serve does, from the file, the environment and the flags, and refuse what serve would refuse\n" +
			"for the configuration alone: keys that are unknown, given twice, out of range or contradict each other; an issuer, URLs\n" +
			"and host names that cannot be served; a URL of a database in which a parameter or a certificate's file is wrong; a\n" +
			"database_file, a kek_file or CERTBOUND_KEK that is missing, readable by others or holds no key; a trust's ca_file\n" +
			"without certificates; and a data folder that is no folder. A remote database without sslmode=verify-full is warned of.\n\n" +
			"Nothing is made, and nobody is asked. Not judged is what only a start shows: whether the data folder and the database\n" +
			"are of this issuer and have their key-encryption key, whether the database can be reached and lets this user in,\n" +
			"whether the ports are free, names resolve, and what a crl_file or crl_url has.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load(c, cmd)
			if err != nil {
				return err
			}
			if err := server.Check(cfg); err != nil {
				return startFailure(err)
			}
			if cfg.PostgreSQL() {
				server.WarnOfDatabase(cmd.Context(), logger(cfg.Log, c.stderr), store.Config{URL: cfg.Database})
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
