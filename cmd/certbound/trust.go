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
	"github.com/certbound/certbound/cmd/internal/profile"
)

func (c *cli) trustCommand() *cobra.Command {
	verbs := []*cobra.Command{c.trustAddCommand(), c.trustListCommand(), c.trustRemoveCommand()}
	for _, verb := range verbs {
		c.operatorFlags(verb, false)
	}
	return group("trust", "Register foreign CAs, which may vouch for clients that name them", verbs...)
}

func trustPath(name string) string { return "/trusts/" + url.PathEscape(name) }

func (c *cli) trustAddCommand() *cobra.Command {
	var ca, crl, revocation string
	var replace bool
	cmd := &cobra.Command{
		Use:   "add NAME --ca FILE",
		Short: "Register a foreign CA, pinned by the bytes of its certificates",
		Long: "Register a foreign CA, pinned by the bytes of its certificates: another CA of the same name is another CA.\n\n" +
			"It vouches only for clients that were added with --trust NAME. Self-signed certificates in the file become\n" +
			"anchors, others intermediates. With --crl, what the CA revoked is refused: with --revocation hard also when its\n" +
			"list is stale or cannot be had, with soft that only raises an alarm. With --replace, what is left out stays as it\n" +
			"is; --revocation off --crl \"\" drops the list. Needs the scope certbound:trust.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &admin.TrustRequest{Name: args[0], Revocation: revocation}
			req.DropCRL = replace && cmd.Flags().Changed("crl") && crl == ""
			if err := readTrust(req, ca, crl); err != nil {
				return err
			}
			method, path, done := http.MethodPost, "/trusts", " added"
			if replace {
				method, path, done = http.MethodPut, trustPath(args[0]), " replaced"
			}
			trust, err := call[admin.Trust](cmd.Context(), c, method, path, req)
			if err != nil {
				return err
			}
			c.note("its clients are added with: certbound client add ID --trust %s and one of --subject-dn, --san-dns, --san-uri, "+
				"--san-ip, --san-email", trust.Name)
			return c.print(trust, func(w io.Writer) {
				line(trust.Name + done)(w)
				if before := trust.PreviousRevocation; before != "" && before != trust.Revocation {
					line("revocation was " + before + " and is " + trust.Revocation)(w)
				}
				trustTable(w, []admin.Trust{*trust})
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ca, "ca", "", "PEM file of the CA's certificates")
	flags.StringVar(&crl, "crl", "", "its revocation list: a file (DER or PEM), or the URL to fetch it from")
	flags.StringVar(&revocation, "revocation", "", "when it is not known what is revoked: hard, soft or off (default: as before with --replace, else hard with --crl and off without)")
	flags.BoolVar(&replace, "replace", false, "replace the CA of this name, which its clients have from now on")
	return cmd
}

// readTrust fills a request from files. A file with anything but certificates, such as a key, is refused here and not sent.
func readTrust(req *admin.TrustRequest, ca, crl string) error {
	switch req.Revocation {
	case "", "hard", "soft", "off":
	default:
		return usagef("use --revocation hard, soft or off", "%q is not a way to treat revocation", req.Revocation)
	}
	if ca == "" {
		return usagef("certbound trust add "+profile.ShellWord(req.Name)+" --ca FILE", "--ca is missing")
	}
	certs, err := profile.ReadCertificates(ca)
	if err != nil {
		return err
	}
	req.CA = strings.Join(certs, "")
	switch {
	case crl == "":
	case strings.Contains(crl, "://"):
		req.CRLURL = crl
	default:
		if req.CRL, err = profile.ReadFile(crl); err != nil {
			return failf("name a file with a revocation list, or a URL with http:// or https://", "%v", err)
		}
	}
	return nil
}

func (c *cli) trustListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the foreign CAs with their anchors", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := call[admin.TrustList](cmd.Context(), c, http.MethodGet, "/trusts", nil)
			if err != nil {
				return err
			}
			if list.Trusts == nil {
				list.Trusts = []admin.Trust{}
			}
			return c.print(list.Trusts, func(w io.Writer) { trustTable(w, list.Trusts) })
		},
	}
}

// trustTable has one row for each anchor, since it is by them and not by name that CAs are told apart.
func trustTable(w io.Writer, trusts []admin.Trust) {
	var rows [][]string
	for _, t := range trusts {
		row := func(anchor, expires, subject string) []string {
			return []string{t.Name, t.Source, dash(t.Revocation), anchor, expires, subject, dash(quoteUnlessPlain(t.Health))}
		}
		if len(t.Anchors) == 0 {
			rows = append(rows, row("-", "-", "-"))
		}
		for _, anchor := range t.Anchors {
			rows = append(rows, row(anchor.Thumbprint, stamp(anchor.NotAfter), quoteUnlessPlain(anchor.Subject)))
		}
	}
	table(w, "NAME SOURCE REVOCATION ANCHOR EXPIRES SUBJECT HEALTH", rows)
}

func (c *cli) trustRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a foreign CA that no client names any more", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := call[admin.Change](cmd.Context(), c, http.MethodDelete, trustPath(args[0]), nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(change.Trust+" "+change.Done))
		},
	}
}
