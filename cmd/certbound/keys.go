// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/admin"
)

func (c *cli) keysCommand() *cobra.Command {
	return group("keys", "Look at the token signing keys and rotate them, or seal all private keys anew",
		c.keysListCommand(), c.keysRotateCommand(), c.keysRewrapCommand())
}

func (c *cli) keysListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the keys that tokens are signed with, and what becomes of them when", Args: arguments(0, 0),
		Long: "List the keys that tokens are signed with. A key is announced first: published, so that resource servers know it, and\n" +
			"not used before the time shown. Then it is active, and signs. Then it is retiring: published until its last token has\n" +
			"expired, and deleted. All of this goes by itself, as signing.rotate and signing.announce of the configuration say.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := call[admin.KeyList](cmd.Context(), c, http.MethodGet, "/keys", nil)
			if err != nil {
				return err
			}
			if list.Keys == nil {
				list.Keys = []admin.SigningKey{}
			}
			return c.print(list.Keys, func(w io.Writer) { showKeys(w, list.Keys) })
		},
	}
	c.operatorFlags(cmd, true)
	return cmd
}

func showKeys(w io.Writer, keys []admin.SigningKey) {
	rows := make([][]string, 0, len(keys))
	for _, k := range keys {
		until := ""
		if k.Until != nil {
			until = stamp(*k.Until)
		}
		rows = append(rows, []string{k.ID, k.State, k.Algorithm, stamp(k.Since), dash(until)})
	}
	table(w, "KID STATE ALG SINCE UNTIL", rows)
}

func (c *cli) keysRotateCommand() *cobra.Command {
	var request admin.RotateRequest
	cmd := &cobra.Command{
		Use: "rotate [--emergency]", Short: "Announce the next signing key, or in an emergency replace all of them at once", Args: arguments(0, 0),
		Long: "Announce the next key. It signs once it has been published for signing.announce, and the one before it retires: no\n" +
			"token is refused on the way. Where two operators are asked for, it waits for the second. It needs the scope\n" +
			"certbound:keys, or the break-glass socket.\n\n" +
			"--emergency is for keys in the wrong hands. It waits for nobody and works while the journal is full: every signing key\n" +
			"is removed at once, those announced and retiring too, a new one signs, and no TLS session resumes. Every token that is\n" +
			"out there is worth nothing as soon as its resource server learns of it; clients ask for new ones. That is\n" +
			"at once where the deny feed is followed. Else a resource server goes by the old keys for max-age of its key set, 5 minutes\n" +
			"by default, and for stale-while-error, 5 more, if it cannot reach the service; the output says until when.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := call[admin.Rotation](cmd.Context(), c, http.MethodPost, "/keys/rotate", request)
			if err != nil {
				return err
			}
			c.pending(answer.AuditPending)
			return c.print(answer, func(w io.Writer) { showRotation(w, answer) })
		},
	}
	cmd.Flags().BoolVar(&request.Emergency, "emergency", false, "remove every key now, and sign with a new one")
	c.operatorFlags(cmd, true)
	return cmd
}

func showRotation(w io.Writer, r *admin.Rotation) {
	showKeys(w, r.Keys)
	if len(r.Removed) == 0 {
		return
	}
	fmt.Fprintf(w, "removed: %s\n", strings.Join(r.Removed, ", "))
	if r.AcceptedUntil != nil {
		fmt.Fprintf(w, "resource servers refuse their tokens at once if they follow the deny feed, else within %s\n",
			time.Duration(r.FreshSeconds)*time.Second)
		fmt.Fprintf(w, "worst case: one that cannot reach the service accepts them for %s more, until %s, or for its own limit of the feed's age\n",
			time.Duration(r.StaleSeconds)*time.Second, stamp(*r.AcceptedUntil))
	}
}
