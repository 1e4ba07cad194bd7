// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/certbound/certbound/cmd/internal/store"
)

const (
	// replicaFile says, in the data folder, which replica of which installation the folder is.
	replicaFile = "replica.json"
	// maxReplicaFile bounds what is read of it, maxNameOf each of its names.
	maxReplicaFile = 1 << 10
	maxNameOf      = 64
)

// replicaID says which replica of which installation a data folder is. Both are random names of the first start. It lies
// in the folder and not in the database, which all replicas share.
type replicaID struct {
	Installation string `json:"installation"`
	Replica      string `json:"replica"`
}

// readReplica returns what the folder says; found is false when it says nothing.
func readReplica(data string) (id replicaID, found bool, err error) {
	name := filepath.Join(data, replicaFile)
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return replicaID{}, false, nil
	}
	if err != nil {
		return replicaID{}, false, fmt.Errorf("reading which replica this is: %w", err)
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, maxReplicaFile))
	d.DisallowUnknownFields()
	if err := d.Decode(&id); err != nil || d.More() || !isName(id.Installation) || !isName(id.Replica) {
		return replicaID{}, false, &StartError{
			Message: fmt.Sprintf("the file %s is damaged: it must hold the names of the installation and of this replica", name),
			Hint:    "put it back from a copy of the data folder: the first line of each segment in " + filepath.Join(data, journalFolder) + " has both names",
		}
	}
	return id, true, nil
}

// isName reports whether s could be one of our random names, or one that somebody gave a replica.
func isName(s string) bool {
	odd := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }
	return s != "" && len(s) <= maxNameOf && !strings.ContainsFunc(s, odd)
}

// write lays the names down, before anything that carries them leaves this process.
func (id replicaID) write(data string) error {
	doc, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("naming the replica: %w", err)
	}
	if err := writeFile(filepath.Join(data, replicaFile), append(doc, '\n'), 0o600); err != nil {
		return err
	}
	return syncFolder(data)
}

// syncFolder makes a rename in the folder survive a crash.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// journalLeft names a segment of the journal in the data folder, if there is one.
func journalLeft(data string) string {
	found, err := filepath.Glob(filepath.Join(data, journalFolder, "*.jsonl"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[0]
}

func newName() string { return strings.ToLower(rand.Text()) }

// openStore opens the database as the replica that the data folder is, and settles which one that is at the first start.
func (s *service) openStore(ctx context.Context, cfg store.Config) (*store.Store, error) {
	id, found, err := readReplica(s.cfg.Data)
	if err != nil {
		return nil, err
	}
	cfg.Replica = cmp.Or(id.Replica, newName())
	db, err := store.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	settled, err := s.settle(ctx, db, id, found, cfg.Replica)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.replica = settled
	if settled.Replica == cfg.Replica {
		return db, nil
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	cfg.Replica = settled.Replica
	return store.Open(ctx, cfg)
}

// settle holds the folder's names against the database, and stores them in both at the first start. It refuses a folder of
// another installation than the database's, having changed neither.
func (s *service) settle(ctx context.Context, db *store.Store, id replicaID, found bool, fresh string) (replicaID, error) {
	installation, err := db.Setting(ctx, settingInstallation)
	if err != nil && !isNotFound(err) {
		return replicaID{}, fmt.Errorf("reading the name of the installation: %w", err)
	}
	if found && installation != id.Installation {
		which := "give it the database that it belongs to"
		if s.shares() {
			which = "name with --database the one that it belongs to"
		}
		return replicaID{}, &StartError{
			Message: fmt.Sprintf("the data folder %s belongs to the installation %s, and the database %s to %s",
				s.cfg.Data, id.Installation, s.databaseName(), cmp.Or(installation, "none yet")),
			Hint: which + "; a replica of another installation needs an empty folder, chosen with --data",
		}
	}
	only, err := s.onlyReplica(ctx, db)
	if err != nil {
		return replicaID{}, err
	}
	switch {
	case found && (only == "" || only == id.Replica):
		return id, nil
	case found:
		return replicaID{}, &StartError{
			Message: fmt.Sprintf("the data folder %s is the replica %s, and the database in it belongs to the replica %s", s.cfg.Data, id.Replica, only),
			Hint:    "put the folder back as a whole: database, " + replicaFile + " and " + journalFolder,
		}
	}
	if left := journalLeft(s.cfg.Data); left != "" && only == "" {
		return replicaID{}, &StartError{
			Message: fmt.Sprintf("%s is missing, but %s shows which replica this was", filepath.Join(s.cfg.Data, replicaFile), left),
			Hint:    "put it back from a copy of the data folder: the first line of each segment has the names of installation and replica",
		}
	}
	if err := s.checkIdentity(ctx, db); err != nil {
		return replicaID{}, err
	}
	id = replicaID{Replica: cmp.Or(only, fresh)}
	if id.Installation, err = db.SetOnce(ctx, settingInstallation, newName()); err != nil {
		return replicaID{}, fmt.Errorf("naming the installation: %w", err)
	}
	if !s.shares() {
		if id.Replica, err = db.SetOnce(ctx, settingReplica, id.Replica); err != nil {
			return replicaID{}, fmt.Errorf("naming the replica: %w", err)
		}
	}
	return id, id.write(s.cfg.Data)
}

// onlyReplica names the replica that a database in the data folder belongs to, if that is known already: it has but one.
func (s *service) onlyReplica(ctx context.Context, db *store.Store) (string, error) {
	if s.shares() {
		return "", nil
	}
	name, err := db.Setting(ctx, settingReplica)
	if isNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the name of the replica: %w", err)
	}
	return name, nil
}

// checkIdentity refuses a configuration that asks for another issuer or trust domain than the database's, before this
// replica is anything to anybody.
func (s *service) checkIdentity(ctx context.Context, db *store.Store) error {
	asked := map[string]string{settingTrustDomain: s.cfg.TrustDomain}
	if s.cfg.Explicit("issuer") {
		asked[settingIssuer] = s.cfg.Issuer
	}
	for setting, configured := range asked {
		stored, err := db.Setting(ctx, setting)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the %s: %w", setting, err)
		}
		if configured != "" && configured != stored {
			return s.another(setting, stored, configured)
		}
	}
	return nil
}

// databaseName is what the database is called in messages: never with a password.
func (s *service) databaseName() string {
	if s.shares() {
		return store.Place(store.Config{URL: s.cfg.Database})
	}
	return filepath.Join(s.cfg.Data, store.FileName)
}

// ofReplica is the name of a setting that each replica has for itself.
func (s *service) ofReplica(setting string) string { return setting + "@" + s.replica.Replica }
