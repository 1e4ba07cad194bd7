// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
)

// registration are the flags of client add. Who vouches for the client is decided by them: our own CA unless they say
// otherwise.
type registration struct {
	dns, ips, uris, scopes, resources []string
	usage                             string
	tokenTTL                          string
	allowReserved                     bool

	trust   string
	subject subject
	certs   []string
	auth    string
	jwks    string
	jwksURI string
}

// subject is the one name that a foreign CA vouches for (RFC 8705, Section 2.1.2).
type subject struct{ dn, dns, uri, ip, email string }

func (r *registration) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&r.dns, "dns", nil, "our CA: DNS name in its certificate (repeatable)")
	flags.StringArrayVar(&r.ips, "ip", nil, "our CA: IP address in its certificate (repeatable)")
	flags.StringArrayVar(&r.uris, "uri", nil, "our CA: further URI in its certificate (repeatable)")
	flags.StringVar(&r.usage, "usage", "client", "our CA: what its certificate is for: client, server or both")
	flags.StringVar(&r.trust, "trust", "", "foreign CA that vouches for it (certbound trust add), with one of --subject-dn and --san-…")
	flags.StringVar(&r.subject.dn, "subject-dn", "", "foreign CA: subject of its certificates (RFC 4514)")
	flags.StringVar(&r.subject.dns, "san-dns", "", "foreign CA: DNS name in its certificates")
	flags.StringVar(&r.subject.uri, "san-uri", "", "foreign CA: URI in its certificates, such as a SPIFFE ID")
	flags.StringVar(&r.subject.ip, "san-ip", "", "foreign CA: IP address in its certificates")
	flags.StringVar(&r.subject.email, "san-email", "", "foreign CA: email address in its certificates")
	flags.StringArrayVar(&r.certs, "cert", nil, "self-signed: PEM file of its certificate (repeatable)")
	flags.StringVar(&r.auth, "auth", "", "how it authenticates, where the other flags leave it open: private_key_jwt")
	flags.StringVar(&r.jwks, "jwks", "", "private_key_jwt: file with its public keys as a JWK Set")
	flags.StringVar(&r.jwksURI, "jwks-uri", "", "self-signed, private_key_jwt: where it publishes its certificates or keys as a JWK Set")
	flags.StringArrayVar(&r.scopes, "scope", nil, "scope that it may ask for (repeatable)")
	flags.StringArrayVar(&r.resources, "resource", nil, "resource that it may ask for (repeatable; default: every one that declares its scopes)")
	flags.StringVar(&r.tokenTTL, "token-ttl", "", "life of its tokens, 1s to the service's token.max_lifetime, such as 10m (default: the service's)")
	flags.BoolVar(&r.allowReserved, "allow-reserved", false, "permit names like localhost, for demonstrations on one machine (needs certbound:grant)")
}

func (r *registration) request(cmd *cobra.Command, id string) (*admin.ClientRequest, error) {
	if err := r.oneVouches(cmd); err != nil {
		return nil, err
	}
	req := &admin.ClientRequest{
		ID: id, Scope: strings.Join(r.scopes, " "), DNSNames: r.dns, IPAddresses: r.ips, URIs: r.uris,
		Trust: r.trust, SubjectDN: r.subject.dn, SANDNS: r.subject.dns, SANURI: r.subject.uri, SANIP: r.subject.ip,
		SANEmail: r.subject.email, AuthMethod: r.auth, JWKSURI: r.jwksURI, Resources: r.resources, AllowReserved: r.allowReserved,
	}
	if r.ownCA() {
		req.Usage = r.usage
	}
	if err := r.values(); err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("token-ttl") {
		seconds, err := tokenTTL(r.tokenTTL)
		if err != nil {
			return nil, err
		}
		req.TokenTTLSeconds = &seconds
	}
	var err error
	if req.Certificates, err = readPinned(r.certs); err != nil {
		return nil, err
	}
	req.JWKS, err = readKeys(r.jwks)
	return req, err
}

// values refuses what no service could take.
func (r *registration) values() error {
	for _, ip := range r.ips {
		if _, err := netip.ParseAddr(ip); err != nil {
			return usagef("use one host's IPv4 or IPv6 address; names go to --dns", "--ip %q is no address", ip)
		}
	}
	if r.subject.ip != "" {
		if _, err := netip.ParseAddr(r.subject.ip); err != nil {
			return usagef("use one host's IPv4 or IPv6 address", "--san-ip %q is no address", r.subject.ip)
		}
	}
	if profile.CheckUsage(r.usage) != nil {
		return usagef("use --usage client, server or both", "%q is not a usage", r.usage)
	}
	return nil
}

// tokenTTL reads how long tokens live, in seconds.
func tokenTTL(text string) (int64, error) {
	ttl, err := time.ParseDuration(text)
	if err != nil {
		return 0, usagef("write it like --token-ttl 10m or --token-ttl 1h", "--token-ttl %q is no duration", text)
	}
	if ttl < time.Second || ttl > time.Hour || ttl%time.Second != 0 {
		return 0, usagef("use whole seconds, from --token-ttl 1s to --token-ttl 1h", "a token cannot live %s", ttl)
	}
	return int64(ttl / time.Second), nil
}

// privateKeyJWT is the one method that --auth names: the others follow from who vouches.
const privateKeyJWT = "private_key_jwt"

func (r *registration) ownCA() bool {
	return r.trust == "" && len(r.certs) == 0 && r.jwks == "" && r.jwksURI == "" && r.auth == ""
}

// readKeys reads a JSON Web Key Set; the service judges it. No file has none.
func readKeys(file string) (json.RawMessage, error) {
	if file == "" {
		return nil, nil
	}
	const most = 32 << 10
	f, err := os.Open(file)
	if err != nil {
		return nil, failf("name a file with the client's public keys as a JWK Set", "the keys cannot be read: %v", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil || len(data) > most || !json.Valid(data) {
		return nil, failf("name a file with the client's public keys as a JWK Set", "%s is not JSON of at most %d bytes", file, most)
	}
	var set struct{ Keys []map[string]json.RawMessage }
	_ = json.Unmarshal(data, &set) // what is no set the service refuses
	for _, key := range set.Keys {
		if key["d"] != nil || key["k"] != nil {
			return nil, failf("write the public keys alone into it: a private key never leaves its machine", "%s holds a private key, and was not sent", file)
		}
	}
	return data, nil
}

// oneVouches demands that the flags agree on who vouches for the client.
func (r *registration) oneVouches(cmd *cobra.Command) error {
	ways := given(cmd, "trust", "cert", "jwks", "jwks-uri")
	subjects := given(cmd, "subject-dn", "san-dns", "san-uri", "san-ip", "san-email")
	own := given(cmd, "dns", "ip", "uri", "usage")
	switch {
	case r.auth != "" && r.auth != privateKeyJWT:
		return usagef("leave --auth out: the method follows from --trust, --cert and --jwks-uri", "--auth is %s or nothing, not %q", privateKeyJWT, r.auth)
	case r.auth != "" && r.jwks == "" && r.jwksURI == "":
		return usagef("add --jwks FILE or --jwks-uri URL", "--auth %s needs the client's public keys", privateKeyJWT)
	case r.jwks != "" && r.auth == "":
		return usagef("add --auth "+privateKeyJWT, "--jwks says nothing without --auth %s", privateKeyJWT)
	case len(ways) > 1:
		return usagef("keep one of them: each says who vouches for the client", "%s exclude each other", strings.Join(ways, " and "))
	case len(ways) == 1 && len(own) > 0:
		return usagef("leave "+own[0]+" out: the certificate is not ours to make", "%s is for clients of our own CA, not with %s", own[0], ways[0])
	case r.trust != "" && len(subjects) != 1:
		return usagef("use exactly one of --subject-dn, --san-dns, --san-uri, --san-ip and --san-email",
			"--trust needs the one name that its certificates carry, and got %d", len(subjects))
	case r.trust == "" && len(subjects) > 0:
		return usagef("add --trust NAME; certbound trust list shows the foreign CAs", "%s says nothing without --trust", subjects[0])
	}
	return nil
}

// given returns which of the flags stand on the command line.
func given(cmd *cobra.Command, names ...string) []string {
	var found []string
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			found = append(found, "--"+name)
		}
	}
	return found
}

func (c *cli) clientAddCommand() *cobra.Command {
	var r registration
	cmd := &cobra.Command{
		Use:   "add ID",
		Short: "Register a client and, when our own CA vouches for it, print its one-time enrolment code",
		Long: "Register a client. Who vouches for its certificate is one of:\n\n" +
			"  our own CA, the default            prints a one-time enrolment code\n" +
			"  --trust NAME and exactly one of    a foreign CA (certbound trust add)\n" +
			"    --subject-dn, --san-dns, --san-uri, --san-ip, --san-email\n" +
			"  --cert FILE or --jwks-uri URL      itself: self-signed certificates, pinned by their bytes\n" +
			"  --auth private_key_jwt and one of  itself: keys that it signs assertions with; its tokens are bound to\n" +
			"    --jwks FILE, --jwks-uri URL      whichever certificate it shows. Each key needs a kid, which the header of\n" +
			"                                     an assertion names, and is one client's alone\n\n" +
			scopesHelp(),
		Args: clientID,
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

// scopesHelp lists what an operator may be allowed. Clients that a foreign CA vouches for never hold any of it.
func scopesHelp() string {
	return "An operator is a client of our own CA, or with a pinned certificate, that holds scopes of the operators' API:\n\n" +
		"  " + admin.ScopeRead + "      see everything\n" +
		"  " + admin.ScopeEnroll + "    invite clients that are no operators\n" +
		"  " + admin.ScopeRevoke + "    revoke and disable: takes away only\n" +
		"  " + admin.ScopeRegistry + "  add, enable and remove clients and resources\n" +
		"  " + admin.ScopeTrust + "     add, replace and remove foreign CAs\n" +
		"  " + admin.ScopeKeys + "      look after the keys of the service\n" +
		"  " + admin.ScopeGrant + "     make operators: give these scopes\n" +
		"  " + admin.ScopeAdmin + "     all of them"
}
