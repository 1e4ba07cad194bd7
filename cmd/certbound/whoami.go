// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/profile"
)

// visit are the flags of whoami.
type visit struct{ clientID, cert, key, issuer, root string }

func (c *cli) whoamiCommand() *cobra.Command {
	var v visit
	cmd := &cobra.Command{
		Use:   "whoami",
		Short: "Show which certificate arrives at the service, and what it makes of it",
		Long: "Show which certificate arrives at the service, and what it makes of it.\n\n" +
			"The certificate is the profile's, or the one of --cert and --key. Without a profile, --issuer and --root name the\n" +
			"service. The exit code is 0 when the certificate authenticates the client that it was meant for. A client that signs\n" +
			"assertions (private_key_jwt) is authenticated by no certificate: its tokens are bound to whichever it shows.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := clientFlag("--client-id", v.clientID); err != nil {
				return err
			}
			visitor, err := c.visitor(cmd.Context(), v)
			if err != nil {
				return err
			}
			arrival, err := visitor.Whoami(cmd.Context())
			if err != nil {
				return err
			}
			if err := c.print(arrival, func(w io.Writer) { showArrival(w, arrival, visitor.ClientID) }); err != nil {
				return err
			}
			if visitor.ClientID != "" && !arrival.As(visitor.ClientID) {
				return &failure{exit: exitFailed, silent: true}
			}
			return nil
		},
	}
	c.profileFlag(cmd, "none")
	flags := cmd.Flags()
	flags.StringVar(&v.clientID, "client-id", "", "client that the certificate is meant for (default: the profile's)")
	flags.StringVar(&v.cert, "cert", "", "PEM file of a certificate to show instead of the profile's")
	flags.StringVar(&v.key, "key", "", "PEM file of its private key")
	flags.StringVar(&v.issuer, "issuer", "", "issuer identifier of the service, without a profile")
	flags.StringVar(&v.root, "root", "", "PEM file of the root that vouches for the service, without a profile")
	return cmd
}

// visitor puts together who asks whom.
func (c *cli) visitor(ctx context.Context, v visit) (profile.Visitor, error) {
	if (v.cert == "") != (v.key == "") {
		return profile.Visitor{}, usagef("name both files: --cert FILE --key FILE", "a certificate is shown with its key")
	}
	visitor, err := c.service(ctx, v)
	if err != nil {
		return profile.Visitor{}, err
	}
	if v.cert != "" {
		if visitor.KeyPair, err = profile.LoadKeyPair(v.cert, v.key); err != nil {
			return profile.Visitor{}, err
		}
		visitor.ClientID = "" // the profile's client is not the one that this certificate is of
	}
	if v.clientID != "" {
		visitor.ClientID = v.clientID
	}
	return visitor, nil
}

// service finds the service: named outright, or by a profile.
func (c *cli) service(ctx context.Context, v visit) (profile.Visitor, error) {
	if v.issuer == "" && v.root == "" {
		p, err := c.openProfile(ctx)
		if err != nil {
			return profile.Visitor{}, err
		}
		return p.Visitor(), nil
	}
	if v.issuer == "" || v.root == "" || c.profile != "" {
		return profile.Visitor{}, usagef("use --profile DIR, or --issuer URL --root FILE", "a service is named by a profile, or by issuer and root")
	}
	roots, err := profile.ReadRoots(v.root)
	if err != nil {
		return profile.Visitor{}, err
	}
	at, err := profile.Discover(ctx, v.issuer, roots)
	if err != nil {
		return profile.Visitor{}, err
	}
	return profile.Visitor{MTLSURL: at.MTLSURL, Roots: roots}, nil
}

// showArrival shows what arrived; asked is the client that it was meant for, if one was named.
func showArrival(w io.Writer, a *profile.Arrival, asked string) {
	pairs := []string{"verdict", verdictOf(a, asked)}
	if a.Client != nil {
		pairs = append(pairs, "reason", quoteUnlessPlain(a.Client.Reason))
	}
	hint := a.Hint
	if a.Certificate != nil && a.Client == nil && asked != "" {
		// Of a client that somebody merely names, the service tells nothing.
		hint = "an operator can compare it with what is registered: certbound client show " + asked + ", certbound trust list; " +
			"a client of private_key_jwt is authenticated by its assertions, and by no certificate"
	}
	pairs = append(pairs, "hint", quoteUnlessPlain(hint))
	if cert := a.Certificate; cert != nil {
		list := func(names []string) string { return quoteUnlessPlain(strings.Join(names, " ")) }
		pairs = append(pairs,
			"certificate", cert.Thumbprint, "subject", quoteUnlessPlain(cert.Subject), "issuer", quoteUnlessPlain(cert.Issuer),
			"serial", cert.Serial, "DNS names", list(cert.DNSNames), "URIs", list(cert.URIs), "IP addresses", list(cert.IPAddresses),
			"email", list(cert.EmailAddresses), "valid", stamp(cert.NotBefore)+" to "+stamp(cert.NotAfter),
			"from our CA", ourWord(cert.ChainToOurCA))
	}
	fields(w, append(pairs, "correlation id", quoteUnlessPlain(a.CorrelationID))...)
}

// ourWord says whether our own CA vouches for a certificate.
func ourWord(chain string) string {
	if chain == "ok" {
		return "yes"
	}
	return "no: " + quoteUnlessPlain(chain)
}

func verdictOf(a *profile.Arrival, asked string) string {
	switch {
	case a.Certificate == nil:
		return "no certificate arrived"
	case a.Client == nil && asked == "":
		return "the service knows no client by this certificate alone"
	case a.Client == nil:
		return "it does NOT authenticate " + quoteUnlessPlain(asked)
	case asked != "" && a.Client.ClientID != asked:
		return "it does NOT authenticate " + quoteUnlessPlain(asked) + ": it is of " + quoteUnlessPlain(a.Client.ClientID)
	case a.Client.Authenticates:
		return "it authenticates " + quoteUnlessPlain(a.Client.ClientID)
	}
	return "it does NOT authenticate " + quoteUnlessPlain(a.Client.ClientID)
}
