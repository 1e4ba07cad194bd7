// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"fmt"
	"slices"
	"strings"
)

// Reason says why a certificate was revoked: a CRLReason of RFC 5280, Section 5.3.1.
type Reason int

// The reasons that a revocation here may have. Those that RFC 5280 knows beside them, certificateHold and
// removeFromCRL, undo a revocation later; revocations here are final. cACompromise and aACompromise speak of
// authorities, not of clients.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
)

// reasonNames is every CRLReason by its number; 7 is not used.
func reasonNames() [11]string {
	return [11]string{
		0: "unspecified", 1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged", 4: "superseded",
		5: "cessationOfOperation", 6: "certificateHold", 8: "removeFromCRL", 9: "privilegeWithdrawn",
		10: "aACompromise",
	}
}

// Reasons returns the reasons that [ParseReason] accepts, in the order of their numbers.
func Reasons() []Reason {
	return []Reason{
		Unspecified, KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn,
	}
}

// ParseReason reads the name of a reason as RFC 5280 spells it, upper or lower case. The error lists the names.
func ParseReason(s string) (Reason, error) {
	var names []string
	for _, r := range Reasons() {
		if strings.EqualFold(s, r.String()) {
			return r, nil
		}
		names = append(names, r.String())
	}
	return 0, fmt.Errorf("unknown reason %q: one of %s", s, strings.Join(names, ", "))
}

// String returns the name of RFC 5280, or the number when there is none.
func (r Reason) String() string {
	names := reasonNames()
	if r >= 0 && int(r) < len(names) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("reason(%d)", int(r))
}

func (r Reason) valid() bool { return slices.Contains(Reasons(), r) }
