// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) profileCommand() *cobra.Command {
	return group("profile", "Make profiles of certificates that there are already", c.profileAddCommand())
}

func (c *cli) profileAddCommand() *cobra.Command {
	var o profile.AddOptions
	cmd := &cobra.Command{
		Use:   "add DIR --issuer URL --root FILE --client-id ID --cert FILE --key FILE",
		Short: "Make a profile of a certificate from a foreign CA, or of a self-signed one",
		Long: "Make a profile of a certificate from a foreign CA, or of a self-signed one.\n\n" +
			"The files are copied. When the certificate was renewed where it came from, the same command takes the new one;\n" +
			"then --cert and --key are enough. Whether the service accepts the certificate, certbound whoami tells.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.CertFile == "" || o.KeyFile == "" {
				return usagef("usage: "+cmd.UseLine(), "--cert and --key are needed")
			}
			if err := clientFlag("--client-id", o.ClientID); err != nil {
				return err
			}
			p, err := profile.Add(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			id := holderOf(p)
			c.remedy = "it is done nevertheless: the profile is in " + p.Dir()
			if p.External() {
				c.note("the certificate is valid until %s and does not renew itself; whether it is accepted: certbound whoami --profile %s",
					stamp(id.NotAfter), profile.ShellWord(p.Dir()))
			}
			return c.print(id, line("profile of "+id.ClientID+" at "+id.Issuer+" in "+id.Profile))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Issuer, "issuer", "", "issuer identifier of the service")
	flags.StringVar(&o.RootFile, "root", "", "PEM file of the root that vouches for the service: DATA/ca/root.pem of its machine")
	flags.StringVar(&o.ClientID, "client-id", "", "client that the certificate is registered for")
	flags.StringVar(&o.CertFile, "cert", "", "PEM file of the certificate, followed by its intermediates")
	flags.StringVar(&o.KeyFile, "key", "", "PEM file of its private key")
	flags.BoolVar(&o.Replace, "replace", false, "overwrite a profile of another service or client")
	return cmd
}
