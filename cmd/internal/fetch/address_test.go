// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"net/netip"
	"testing"
)

// Every kind of address is judged as what it leads to.
func TestPermitted(t *testing.T) {
	t.Parallel()
	const never, private, public = 0, 1, 2
	for text, kind := range map[string]int{
		"8.8.8.8": public, "1.1.1.1": public, "172.32.0.1": public, "100.128.0.1": public, "192.0.1.1": public,
		"223.255.255.254": public, "2606:4700::1111": public, "2a00:1450::1": public, "::ffff:8.8.8.8": public,
		"127.0.0.1": private, "127.255.255.254": private, "10.0.0.1": private, "172.16.0.1": private, "172.31.255.255": private,
		"192.168.1.1": private, "100.64.0.1": private, "100.127.255.255": private, "::1": private, "fd00::1": private,
		"fc00::1": private, "::ffff:127.0.0.1": private, "::ffff:10.0.0.1": private,
		"0.0.0.0": never, "0.1.2.3": never, "169.254.169.254": never, "::ffff:169.254.169.254": never, "192.0.0.1": never,
		"192.0.0.170": never, "192.0.2.1": never, "192.88.99.1": never, "198.18.0.1": never, "198.19.255.255": never,
		"198.51.100.1": never, "203.0.113.1": never, "224.0.0.1": never, "239.255.255.255": never, "240.0.0.1": never,
		"255.255.255.255": never, "::": never, "::127.0.0.1": never, "64:ff9b::7f00:1": never, "64:ff9b::808:808": never,
		"64:ff9b:1::1": never, "100::1": never, "2001::1": never, "2001:2::1": never, "2001:20::1": never, "2001:db8::1": never,
		"2002:7f00:1::": never, "2002:808:808::": never, "3fff::1": never, "5f00::1": never, "fe80::1": never, "fe80::1%eth0": never,
		"fec0::1": never, "ff02::1": never, "ff0e::1": never, "::ffff:0:127.0.0.1": never, "fd00::1%eth0": private,
	} {
		a := netip.MustParseAddr(text)
		if got := permitted(a, false); got != (kind == public) {
			t.Errorf("%s: permitted is %v", a, got)
		}
		if got := permitted(a, true); got != (kind != never) {
			t.Errorf("%s, private: permitted is %v", a, got)
		}
	}
	if permitted(netip.Addr{}, true) {
		t.Error("no address is permitted")
	}
}
