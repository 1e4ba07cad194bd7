// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
)

// witnessTime bounds the question for the journal's head, behind what was asked for.
const witnessTime = 10 * time.Second

// witness is an operator's client that remembers, in the operator's profile, how far the service's journal was signed
// when it was last seen: whoever changes the journal later, or puts an older one back, contradicts that.
type witness struct {
	c       *cli
	op      *profile.Operator
	profile *profile.Profile
	reached bool
}

// Do implements operators.
func (w *witness) Do(ctx context.Context, method, path string, in, out any) error {
	err := w.op.Do(ctx, method, path, in, out)
	if _, waits := errors.AsType[*profile.AcceptedError](err); err == nil || waits {
		w.reached = true
	}
	return err
}

// Close looks at the journal's head, when the service was reached, and closes the connections.
func (w *witness) Close() {
	defer w.op.Close()
	if !w.reached {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), witnessTime)
	defer cancel()
	alarms, err := w.look(ctx)
	if len(alarms) > 0 {
		// Whoever was here at the same time may have kept a newer head than the one that was just shown.
		alarms, err = w.look(ctx)
	}
	for _, alarm := range alarms {
		w.c.alarm(alarm, fmt.Sprintf("find out who restored or replaced the data folder: certbound audit verify tells more; if that was right, remove %s/%s",
			w.profile.Dir(), profile.HeadsFile))
	}
	if err != nil {
		w.c.note("note: the journal's head could not be kept in the profile: %s", oneLine(err.Error()))
	}
}

// look keeps the heads that the service shows, and says what does not fit those that were kept. Not every operator may
// see them: then there is nothing to keep.
func (w *witness) look(ctx context.Context) (alarms []string, err error) {
	var shown admin.AuditHeads
	if w.op.Do(ctx, http.MethodGet, "/audit/heads", nil, &shown) != nil || len(shown.Heads) == 0 {
		return nil, nil
	}
	return alarms, w.profile.KeepHeads(ctx, func(old []byte) ([]byte, error) {
		known, err := audit.ParseHeads(old)
		if err != nil {
			return nil, err
		}
		known, alarms = known.Merge(shown.Heads)
		return known.Text()
	})
}

// alarm warns of what must not be overlooked, whatever the output's format.
func (c *cli) alarm(what, hint string) {
	what, hint = oneLine(what), oneLine(hint)
	if c.json {
		enc := json.NewEncoder(c.stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(admin.ErrorBody{Code: "journal_contradicted", Description: what, Hint: hint}) // standard error is the last resort
		return
	}
	fmt.Fprintf(c.stderr, "WARNING: %s\nhint: %s\n", what, hint)
}
