// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) approvalCommand() *cobra.Command {
	verbs := []*cobra.Command{c.approvalListCommand(), c.approvalConfirmCommand(), c.approvalRejectCommand()}
	for _, verb := range verbs {
		c.operatorFlags(verb, false)
	}
	return group("approval", "Confirm what another operator asked for, or reject it", verbs...)
}

func approvalPath(id string) string { return "/approvals/" + url.PathEscape(id) }

func (c *cli) approvalListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the requests that wait for a second operator", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := call[admin.ApprovalList](cmd.Context(), c, http.MethodGet, "/approvals", nil)
			if err != nil {
				return err
			}
			if list.Approvals == nil {
				list.Approvals = []admin.Approval{}
			}
			return c.print(list.Approvals, func(w io.Writer) {
				rows := make([][]string, 0, len(list.Approvals))
				for _, a := range list.Approvals {
					rows = append(rows, []string{a.ID, a.RequestedBy, a.Kind, a.Target, dash(asked(a)), stamp(a.ExpiresAt), dash(strings.Join(a.Needs, " "))})
				}
				table(w, "ID BY KIND TARGET WHAT EXPIRES NEEDS", rows)
			})
		},
	}
}

// asked is what a request would bring about, in the terms that decide: scopes, and anchors by their bytes.
func asked(a admin.Approval) string {
	var words []string
	if a.Client != nil {
		words = append(words, a.Client.Scope, names(*a.Client))
		for _, cert := range a.Client.Certificates {
			words = append(words, cert.Thumbprint)
		}
	}
	if a.Trust != nil {
		for _, anchor := range a.Trust.Anchors {
			words = append(words, anchor.Thumbprint)
		}
	}
	return strings.Join(strings.Fields(strings.Join(words, " ")), " ")
}

func (c *cli) approvalConfirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm ID",
		Short: "Confirm a request; what it brings about is printed here",
		Long: "Confirm a request. What it brings about is printed here and not where it was asked for: a new operator's\n" +
			"enrolment code comes to whoever confirms. Nobody confirms a request of their own.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := call[json.RawMessage](cmd.Context(), c, http.MethodPost, approvalPath(args[0])+"/confirm", nil)
			if err != nil {
				return err
			}
			return c.printConfirmed(args[0], *answer)
		},
	}
}

// printConfirmed prints the answer to a request that was confirmed, as the verb that asked for it would have.
func (c *cli) printConfirmed(id string, answer json.RawMessage) error {
	var members struct {
		admin.Invitation
		AuditPending bool `json:"audit_pending"`
	}
	if err := json.Unmarshal(answer, &members); err != nil {
		return failf("look at what it was about, it may be done", "the service's answer cannot be read: %v", err)
	}
	c.pending(members.AuditPending)
	if c.json {
		c.codeRemedy(&members.Invitation)
		return c.print(answer, nil)
	}
	if members.AuthMethod != "" {
		c.note("%s is confirmed", id)
		return c.printCode(&members.Invitation)
	}
	return c.print(answer, line(id+" confirmed"))
}

func (c *cli) approvalRejectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reject ID", Short: "Reject a request, or withdraw one of your own", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := call[admin.Change](cmd.Context(), c, http.MethodDelete, approvalPath(args[0]), nil)
			if err != nil {
				return err
			}
			c.pending(change.AuditPending)
			return c.print(change, line(cmp.Or(change.Approval, args[0])+" "+change.Done))
		},
	}
}
