// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"io"
	"log/slog"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/server"
)

// configFlags are the flags that serve and config check share; only what was given overrides environment and file.
type configFlags struct {
	file   string
	values map[string]*string
	hosts  []string
}

func (f *configFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.file, "config", "", "configuration file (else CERTBOUND_CONFIG)")
	f.values = make(map[string]*string)
	for _, flag := range [][2]string{
		{"data", "folder for everything the service keeps (default ./certbound-data)"},
		{"issuer", "issuer identifier (default https://localhost:8443)"},
		{"mtls-url", "address of the mtls listener as clients see it"},
		{"public", "listener that never asks for a certificate (default 127.0.0.1:8443)"},
		{"mtls", "listener that asks for one (default 127.0.0.1:9443)"},
		{"debug", "plain listener for metrics and health (default 127.0.0.1:9090)"},
		{"trust-domain", "SPIFFE trust domain of our clients"},
		{"database", "database (default DATA/certbound.db)"},
		{"admin-profile", "folder of the first operator's profile (default DATA/admin)"},
	} {
		f.values[flag[0]] = flags.String(flag[0], "", flag[1])
	}
	flags.StringArrayVar(&f.hosts, "host", nil, "further name or address of the server's certificate (repeatable)")
}

func (f *configFlags) load(c *cli, cmd *cobra.Command) (config.Config, error) {
	given := func(name string) *string {
		if !cmd.Flags().Changed(name) {
			return nil
		}
		return f.values[name]
	}
	file := f.file
	if !cmd.Flags().Changed("config") {
		file, _ = c.env("CERTBOUND_CONFIG")
	}
	cfg, err := config.Load(file, c.env, config.Overrides{
		Data: given("data"), Issuer: given("issuer"), MTLSURL: given("mtls-url"), Public: given("public"), MTLS: given("mtls"),
		Debug: given("debug"), TrustDomain: given("trust-domain"), Database: given("database"),
		AdminProfile: given("admin-profile"), Hosts: f.hosts,
	})
	if err != nil {
		return config.Config{}, configFailure(err)
	}
	return cfg, nil
}

// configFailure names every problem in one line, and says what to do about the first. A flag that is wrong is a wrong
// command line; a file or a variable is not.
func configFailure(err error) error {
	f := &failure{exit: exitFailed, code: "invalid_config", description: err.Error()}
	var what []string
	for _, problem := range config.Problems(err) {
		what = append(what, problem.Where+": "+problem.What)
		f.hint = cmp.Or(f.hint, problem.Hint)
		if strings.HasPrefix(problem.Where, "--") {
			f.exit = exitUsage
		}
	}
	if len(what) > 0 {
		f.description = strings.Join(what, "; ")
	}
	f.hint = cmp.Or(f.hint, "certbound config example prints a file with every key and what it means")
	return f
}

func (c *cli) serveCommand() *cobra.Command {
	var flags configFlags
	var acceptLoss uint64
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the service; the first start makes everything it needs", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load(c, cmd)
			if err != nil {
				return err
			}
			held := prepareRuntime(c.env, cfg.Audit.Sync == "always")
			defer runtime.KeepAlive(held)
			err = server.Run(cmd.Context(), cfg, server.Options{
				Stdout: c.stdout, Logger: logger(cfg.Log, c.stderr), Version: version, AcceptJournalLoss: acceptLoss,
			})
			if err != nil {
				return startFailure(err)
			}
			return nil
		},
	}
	flags.register(cmd)
	cmd.Flags().Uint64Var(&acceptLoss, "accept-journal-loss", 0,
		"go on without the end of the journal up to this record, which a refused start named: the journal then says so")
	return cmd
}

// startFailure gives a hint to a service that did not start or did not stop as it should.
func startFailure(err error) error {
	f := translate(err)
	if f.hint == "" {
		f.hint = "put right what the error names and start again"
	}
	return f
}

// logger writes the service's own log to standard error, which is not what it prints.
func logger(cfg config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // the configuration was validated; its zero value means the default
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
