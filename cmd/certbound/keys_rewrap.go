// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/restore"
	"github.com/certbound/certbound/cmd/internal/server"
	"github.com/certbound/certbound/cmd/internal/store"
)

func (c *cli) keysRewrapCommand() *cobra.Command {
	var flags *configFlags
	var file string
	cmd := &cobra.Command{
		Use: "rewrap --new-kek FILE", Short: "Seal all private keys under another key-encryption key", Args: arguments(0, 0),
		Long: "Seal everything in the database that is sealed, private keys, records that wait and the journal's keys, under the\n" +
			"key-encryption key in FILE: 32 bytes in base64, mode 0600, made when there is no such file, and gone again when it is\n" +
			"refused. The service, every replica of it, must be stopped: what a process holds open under the old key it could not\n" +
			"read any more.\n\n" +
			"It is one transaction. Cut short, run it again: the database says which of the two keys it is under. Where the key lay\n" +
			"in the data folder, the new one takes its place and the old one is kept beside it, DATA/kek.until-TIME: backups from\n" +
			"before open under that alone, so move it to where they are. Elsewhere, put FILE where kek_file or CERTBOUND_KEK says,\n" +
			"at every replica: with the old one none starts.\n\n" +
			"Whoever has the old key and an old copy of the database still has the private keys. If they are in the wrong hands,\n" +
			"rotate what they are for: certbound keys rotate --emergency.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("usage: certbound keys rewrap --new-kek FILE", "--new-kek is missing")
			}
			done, err := c.rewrap(cmd, flags, file)
			if err != nil {
				return err
			}
			return c.print(done, func(w io.Writer) {
				fields(w, "sealed anew", done.Database, "rows", orNone(showTables(done.Tables)), "key", done.Key, "old key", dash(done.OldKey), "next", done.Next)
			})
		},
	}
	flags = databaseFlags(cmd)
	cmd.Flags().StringVar(&file, "new-kek", "", "file with the new key-encryption key, made when it is not there")
	return cmd
}

// rewrapped is what keys rewrap prints.
type rewrapped struct {
	Database string `json:"database"`
	store.Rewrapped
	Changed bool   `json:"changed"` // false: the database was under the new key already
	Key     string `json:"key"`     // where the key is that opens it
	OldKey  string `json:"old_key,omitempty"`
	Next    string `json:"next"`
}

func (c *cli) rewrap(cmd *cobra.Command, flags *configFlags, file string) (*rewrapped, error) {
	ctx := cmd.Context()
	at, err := c.openDatabase(cmd, flags, alone)
	if err != nil {
		return nil, err
	}
	defer at.close()
	if err := at.present(ctx); err != nil {
		return nil, err
	}
	fresh, err := store.OpenNewKEK(file)
	if errors.Is(err, store.ErrKEKHeld) {
		return nil, failf("wait until it has ended, or name another file", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	defer fresh.Close()
	kek := fresh.Key
	done := &rewrapped{Database: at.place(), Key: file}
	switch done.Rewrapped, err = at.rewrap(ctx, kek); {
	case err == nil:
		done.Changed = done.Tables != nil
	case errors.Is(err, store.ErrWrongKEK) && at.opensUnder(ctx, kek): // an earlier run was cut short after its commit
	case errors.Is(err, store.ErrUnknown):
		return nil, failf("keep "+profile.ShellWord(file)+" and run it again with that: the database says which of the two keys it is under", "%v", err)
	default:
		err = errors.Join(err, fresh.Discard()) // nothing is sealed under it
		if errors.Is(err, restore.ErrServing) || errors.Is(err, store.ErrServing) {
			err = failf("stop every replica, then run it again", "%v", err)
		}
		return nil, err
	}
	place, own := server.KEKOf(at.cfg)
	if !own {
		done.Next = "put what " + file + " holds where the service looks for it, " + place + ", at every replica, then start it"
		return done, nil
	}
	if done.OldKey, err = store.InstallKEK(at.cfg.Data, kek, time.Now()); err != nil {
		return nil, failf("run it again: everything is sealed under the new key already", "%v", err)
	}
	done.Key = place
	done.Next = "start the service; keep the old key with the backups from before, and no copy beside the database"
	if at.cfg.PostgreSQL() {
		done.Next = "copy " + place + " into the data folder of every other replica, then start them; keep the old key with the backups from before"
	}
	return done, nil
}

// present refuses a place where there is no database, so that no key is made for one.
func (d *database) present(ctx context.Context) error {
	found, err := store.Exists(ctx, d.at)
	if err == nil && !found {
		err = d.missing()
	}
	return err
}

// rewrap seals the database anew, unless it is under that key already.
func (d *database) rewrap(ctx context.Context, kek []byte) (store.Rewrapped, error) {
	db, err := store.Open(ctx, d.at)
	if err != nil {
		return store.Rewrapped{}, err
	}
	defer db.Close()
	if subtle.ConstantTimeCompare(kek, d.at.KEK) == 1 {
		return store.Rewrapped{}, nil
	}
	var leases []store.Lease
	if d.cfg.PostgreSQL() {
		if leases, err = db.Leases(ctx); err == nil {
			err = restore.Unserved(ctx, db)
		}
	}
	if err != nil {
		return store.Rewrapped{}, err
	}
	replica, err := server.ReplicaOf(d.cfg.Data)
	if err != nil {
		return store.Rewrapped{}, err
	}
	e := audit.Event{ID: rand.Text(), Time: time.Now(), Name: "key.rewrap", Outcome: audit.Granted, Class: audit.Takeaway,
		Detail: map[string]string{"data": filepath.Clean(d.cfg.Data)}}
	body, err := audit.EncodeEvent(e)
	if err != nil {
		return store.Rewrapped{}, err
	}
	return db.Rewrap(ctx, kek, leases, replica, []store.Entry{{ID: e.ID, Body: body}})
}

// opensUnder reports whether the database is sealed under that key.
func (d *database) opensUnder(ctx context.Context, kek []byte) bool {
	at := d.at
	at.KEK, at.ReadOnly = kek, true
	db, err := store.Open(ctx, at)
	return err == nil && db.Close() == nil
}
