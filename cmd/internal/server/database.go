// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"path/filepath"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
)

// DatabaseConfig is how the database of a configuration is opened by who looks after it: with its key-encryption key, which
// has to be there, and as it is at a service's start but for what only a service needs.
func DatabaseConfig(cfg config.Config) (store.Config, error) {
	at := store.Config{Path: filepath.Join(cfg.Data, "certbound.db"), MaxTokenLife: cfg.Token.MaxLifetime}
	if cfg.PostgreSQL() {
		at.Path, at.URL, at.MaxConnections = "", cfg.Database, cfg.DatabaseConnections
	}
	source := kekSource(cfg)
	source.Found = func() (bool, error) { return true, nil } // a new key would open nothing
	var err error
	at.KEK, err = store.LoadKEK(cfg.Data, store.Place(at), source)
	return at, err
}

// ReplicaOf is the name of the replica that a data folder says it is, empty when it says nothing.
func ReplicaOf(data string) (string, error) {
	id, _, err := readReplica(data)
	return id.Replica, err
}
