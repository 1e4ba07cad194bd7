// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
)

// hostList holds hosts as "host" or "host:port".
type hostList map[string]bool

func newHostList(hosts []string) hostList {
	l := make(hostList, len(hosts))
	for _, h := range hosts {
		host, port, err := net.SplitHostPort(h)
		if err != nil {
			host, port = strings.Trim(h, "[]"), ""
		}
		l[entry(host, port)] = true
	}
	return l
}

// entry is the one form of a host: small letters, no final dot, and an address as it is usually written.
func entry(host, port string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.String()
	}
	if port == "" {
		return host
	}
	return net.JoinHostPort(host, port)
}

func (l hostList) has(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return l.hasAddress(u.Hostname(), port)
}

func (l hostList) hasAddress(host, port string) bool {
	return l[entry(host, "")] || l[entry(host, port)]
}

// dial connects to a host at an address that it may have. The judgement is made by the dialer itself for each address
// that it tries, so that a name which resolves differently a moment later gains nothing.
func (f *Fetcher) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	private := f.private.hasAddress(host, port)
	d := net.Dialer{
		Resolver: f.resolver,
		Control: func(_, address string, _ syscall.RawConn) error {
			a, err := netip.ParseAddrPort(address)
			if err != nil || !permitted(a.Addr(), private) {
				return fmt.Errorf("%w: its address is not on the public Internet", ErrRefused)
			}
			return nil
		},
	}
	return d.DialContext(ctx, network, address)
}

// permitted reports whether an address may be dialled; private says whether those of private networks may.
func permitted(a netip.Addr, private bool) bool {
	a = a.Unmap().WithZone("") // ::ffff:127.0.0.1 is 127.0.0.1 to the machine
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	if slices.ContainsFunc(privateNetworks(), within) {
		return private
	}
	if a.Is4() {
		return !slices.ContainsFunc(specialNetworks(), within)
	}
	// All that was ever handed out of IPv6 lies in 2000::/3; NAT64 (64:ff9b::/96), addresses of the link and of the
	// site, multicast and the rest lie outside.
	return netip.MustParsePrefix("2000::/3").Contains(a) && !slices.ContainsFunc(specialNetworks(), within)
}

// privateNetworks are loopback and what networks give themselves.
func privateNetworks() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"),    // loopback, RFC 1122, Section 3.2.1.3
		netip.MustParsePrefix("10.0.0.0/8"),     // RFC 1918
		netip.MustParsePrefix("172.16.0.0/12"),  // RFC 1918
		netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
		netip.MustParsePrefix("100.64.0.0/10"),  // carrier-grade NAT, RFC 6598
		netip.MustParsePrefix("::1/128"),        // loopback, RFC 4291, Section 2.5.3
		netip.MustParsePrefix("fc00::/7"),       // RFC 4193
	}
}

// specialNetworks are addresses of RFC 6890's registries that lead nowhere, or somewhere else than they say.
func specialNetworks() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),       // this network
		netip.MustParsePrefix("169.254.0.0/16"),  // link-local, RFC 3927
		netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments
		netip.MustParsePrefix("192.0.2.0/24"),    // documentation
		netip.MustParsePrefix("192.88.99.0/24"),  // 6to4 relays, RFC 7526
		netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks, RFC 2544
		netip.MustParsePrefix("198.51.100.0/24"), // documentation
		netip.MustParsePrefix("203.0.113.0/24"),  // documentation
		netip.MustParsePrefix("224.0.0.0/3"),     // multicast, reserved, broadcast
		netip.MustParsePrefix("2001::/23"),       // protocol assignments, Teredo (RFC 4380) among them
		netip.MustParsePrefix("2001:db8::/32"),   // documentation
		netip.MustParsePrefix("2002::/16"),       // 6to4, RFC 3056: holds any IPv4 address
		netip.MustParsePrefix("3fff::/20"),       // documentation, RFC 9637
	}
}
