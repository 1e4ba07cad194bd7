// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"errors"
	"mime"
	"strconv"
	"strings"
)

// maxAccepted bounds how many elements of Accept are read.
const maxAccepted = 64

// chooseMedia returns what a request wants by its Accept fields (RFC 9110, Section 12.5.1): ordinary, or special, or ""
// when it wants neither. Without any Accept, and where wildcards speak of both alike, special is not meant. Where special is
// named and weighs as much as ordinary, it is: who can only take the ordinary does not name it. Elements that cannot be
// read count as absent.
func chooseMedia(accept []string, ordinary, special string) string {
	ranges, given := readAccept(accept)
	if !given {
		return ordinary
	}
	plain, _ := weigh(ranges, ordinary)
	weight, named := weigh(ranges, special)
	switch {
	case weight > 0 && (weight > plain || weight == plain && named):
		return special
	case plain > 0:
		return ordinary
	}
	return ""
}

// mediaRange is an element of Accept: what it is about, "*" for everything, and its weight in thousandths.
type mediaRange struct {
	main, sub string
	weight    int
}

// readAccept reads the elements that can be read, of the first maxAccepted, and reports whether there are any at all.
func readAccept(fields []string) (ranges []mediaRange, given bool) {
	n := 0
	for _, field := range fields {
		for element := range strings.SplitSeq(field, ",") {
			if strings.Trim(element, " \t") == "" { // RFC 9110, Section 5.6.1.2
				continue
			}
			if n++; n > maxAccepted {
				break
			}
			ranges = append(ranges, readRange(element))
		}
	}
	return ranges, n > 0
}

// readRange reads one element; what cannot be read is about nothing.
func readRange(element string) mediaRange {
	media, parameters, err := mime.ParseMediaType(element)
	if err != nil {
		return mediaRange{}
	}
	main, sub, _ := strings.Cut(media, "/")
	r := mediaRange{main, sub, 1000}
	if q, given := parameters["q"]; given {
		if r.weight, err = readWeight(q); err != nil {
			return mediaRange{}
		}
	}
	return r
}

// readWeight reads a qvalue (RFC 9110, Section 12.4.2): 0 to 1 with at most three decimals.
func readWeight(q string) (int, error) {
	whole, decimals, _ := strings.Cut(q, ".")
	if whole != "0" && whole != "1" || len(decimals) > 3 {
		return 0, errWeight
	}
	n, err := strconv.ParseUint(whole+decimals+"000"[len(decimals):], 10, 16)
	if n > 1000 {
		return 0, errWeight
	}
	return int(n), err
}

var errWeight = errors.New("not a weight")

// weigh returns the weight of a media type by the most specific element about it, 0 without one, and whether that named
// it. Of several that are as specific, the highest counts.
func weigh(ranges []mediaRange, media string) (weight int, named bool) {
	main, sub, _ := strings.Cut(media, "/")
	best := 0
	for _, r := range ranges {
		specific := 0
		switch {
		case r.main == main && r.sub == sub:
			specific = 3
		case r.main == main && r.sub == "*":
			specific = 2
		case r.main == "*" && r.sub == "*":
			specific = 1
		}
		if specific > best {
			best, weight = specific, r.weight
		} else if specific == best && specific > 0 {
			weight = max(weight, r.weight)
		}
	}
	return weight, best == 3
}
