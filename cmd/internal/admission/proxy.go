// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

// The binary header of the PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt, Section 2.2): the signature, one
// byte of version and command, one of family and protocol, two of length, then as many bytes of addresses and extensions.
const (
	proxySignature   = "\r\n\r\n\x00\r\nQUIT\n"
	proxyFixed       = len(proxySignature) + 4
	maxProxyHeader   = 536 // the fixed part included
	proxyLocal       = 0x20
	proxyProxied     = 0x21
	proxyUnspecified = 0x00
	proxyTCP4        = 0x11
	proxyTCP6        = 0x21
	proxyChecksum    = 0x03 // an extension: CRC32c of the whole header with these four bytes zero
	checksumSize     = 4
)

var errProxyHeader = errors.New("admission: no acceptable PROXY header")

// readProxyHeader reads exactly one header from r and not a byte beyond it. It returns where the connection came from,
// or the zero AddrPort when the header says that the proxy speaks for itself or that it does not know.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	var buffer [maxProxyHeader]byte
	header := buffer[:proxyFixed]
	if _, err := io.ReadFull(r, header); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if string(header[:len(proxySignature)]) != proxySignature {
		return netip.AddrPort{}, fmt.Errorf("%w: it does not begin with the signature", errProxyHeader)
	}
	size := proxyFixed + int(binary.BigEndian.Uint16(header[proxyFixed-2:]))
	if size > maxProxyHeader {
		return netip.AddrPort{}, fmt.Errorf("%w: it is longer than %d bytes", errProxyHeader, maxProxyHeader)
	}
	header = buffer[:size]
	if _, err := io.ReadFull(r, header[proxyFixed:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	return parseProxyHeader(header)
}

// parseProxyHeader reads a whole header whose signature and length are right. It may write to it.
func parseProxyHeader(header []byte) (netip.AddrPort, error) {
	command, family, rest := header[len(proxySignature)], header[len(proxySignature)+1], header[proxyFixed:]
	size := map[byte]int{proxyTCP4: 4, proxyTCP6: 16}[family] // of one address
	switch {
	case command == proxyLocal, command == proxyProxied && family == proxyUnspecified:
		// Whatever follows is to be skipped; of a family that is not known, not even where addresses end is known.
		return netip.AddrPort{}, nil
	case command != proxyProxied:
		return netip.AddrPort{}, fmt.Errorf("%w: version and command %#02x", errProxyHeader, command)
	case size == 0:
		return netip.AddrPort{}, fmt.Errorf("%w: family and protocol %#02x", errProxyHeader, family)
	case len(rest) < 2*size+4:
		return netip.AddrPort{}, fmt.Errorf("%w: it ends within the addresses", errProxyHeader)
	}
	address, _ := netip.AddrFromSlice(rest[:size])
	address = address.Unmap()
	if address.IsUnspecified() || address.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%w: nobody connects from such an address", errProxyHeader)
	}
	port := binary.BigEndian.Uint16(rest[2*size:])
	if err := checkExtensions(header, proxyFixed+2*size+4); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(address, port), nil
}

// checkExtensions walks over the extensions, each one byte of type, two of length and a value, and checks the checksum
// when there is one.
func checkExtensions(header []byte, offset int) error {
	const fixed = 3
	for offset < len(header) {
		if offset+fixed > len(header) {
			return fmt.Errorf("%w: it ends within an extension", errProxyHeader)
		}
		kind, size := header[offset], int(binary.BigEndian.Uint16(header[offset+1:]))
		offset += fixed
		if offset+size > len(header) {
			return fmt.Errorf("%w: it ends within an extension", errProxyHeader)
		}
		value := header[offset : offset+size]
		offset += size
		if kind != proxyChecksum {
			continue
		}
		if size != checksumSize {
			return fmt.Errorf("%w: a checksum of %d bytes", errProxyHeader, size)
		}
		want := binary.BigEndian.Uint32(value)
		clear(value)
		if crc32.Checksum(header, crc32.MakeTable(crc32.Castagnoli)) != want {
			return fmt.Errorf("%w: the checksum is wrong", errProxyHeader)
		}
		binary.BigEndian.PutUint32(value, want)
	}
	return nil
}
