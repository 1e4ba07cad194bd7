// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
)

// DatabaseConfig is how the database of a configuration is opened by who looks after it: with its key-encryption key, which
// has to be there, and as it is at a service's start but for what only a service needs.
func DatabaseConfig(cfg config.Config) (store.Config, error) {
	at := store.Config{Path: filepath.Join(cfg.Data, store.FileName), MaxTokenLife: cfg.Token.MaxLifetime}
	if cfg.PostgreSQL() {
		at.Path, at.URL, at.MaxConnections = "", cfg.Database, cfg.DatabaseConnections
	}
	source := kekSource(cfg)
	source.Found = func() (bool, error) { return true, nil } // a new key would open nothing
	var err error
	if at.KEK, err = store.LoadKEK(cfg.Data, store.Place(at), source); !errors.Is(err, store.ErrNoKEK) {
		return at, err
	}
	name := filepath.Join(cfg.Data, "kek")
	return at, &store.KEKError{
		Err: fmt.Errorf("the key-encryption key %s is missing, without which no database and no backup of this service can be used", name),
		Hint: "no backup has it: put the file back, mode 0600, from where you keep it or from the data folder of another replica, or set " +
			"CERTBOUND_KEK to what it holds; --data names the data folder",
	}
}

// WarnOfDatabase logs when the connection to the database is not safe from whoever is on the way.
func WarnOfDatabase(ctx context.Context, log *slog.Logger, at store.Config) {
	if why := store.Doubt(at); why != "" {
		log.WarnContext(ctx, "the connection to the database can be read and answered by others on the way", "database", store.Place(at), "why", why)
	}
}

// KEKOf says where the key-encryption key of a configuration comes from: own is true for the file in the data folder.
func KEKOf(cfg config.Config) (place string, own bool) {
	switch source := kekSource(cfg); {
	case source.Value != "":
		return "CERTBOUND_KEK", false
	case source.File != "":
		return source.File, false
	}
	return filepath.Join(cfg.Data, "kek"), true
}

// ReplicaOf is the name of the replica that a data folder says it is, empty when it says nothing.
func ReplicaOf(data string) (string, error) {
	id, _, err := readReplica(data)
	return id.Replica, err
}
