// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

// AddResource registers a resource, or returns ErrExists.
func (s *Store) AddResource(ctx context.Context, r Resource) error {
	err := s.change(ctx, func(c *change) error {
		if r.URI == "" {
			return errors.New("a resource needs a URI")
		}
		c.what.Resources = true
		_, err := c.exec("resources", insertResource, r.URI, list(r.Scopes), list(r.Servers), r.BuiltIn, moment(s.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("add resource %q: %w", r.URI, err)
	}
	return nil
}

// RemoveResource removes a resource. Errors: ErrNotFound, ErrBuiltIn, and an InUseError while a client names it or
// holds a scope that no other resource declares.
func (s *Store) RemoveResource(ctx context.Context, uri string) error {
	err := s.change(ctx, func(c *change) error {
		rows, err := c.tx.QueryContext(c.ctx, queryResources)
		resources, err := all(rows, err, scanResource)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(resources, func(r Resource) bool { return r.URI == uri })
		if i < 0 {
			return ErrNotFound
		}
		if resources[i].BuiltIn {
			return ErrBuiltIn
		}
		if err := c.checkUnused(resources[i], slices.Delete(slices.Clone(resources), i, i+1)); err != nil {
			return err
		}
		c.what.Resources = true
		// No row is left to carry the version, but the state's version must move for the others to notice.
		_, err = c.exec("resources", deleteResource, uri)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove resource %q: %w", uri, err)
	}
	return nil
}

func (c *change) checkUnused(r Resource, others []Resource) error {
	users, err := c.users(queryRefUsers, refResource, r.URI)
	if err != nil {
		return err
	}
	for _, scope := range r.Scopes {
		if slices.ContainsFunc(others, func(o Resource) bool { return slices.Contains(o.Scopes, scope) }) {
			continue
		}
		holders, err := c.users(queryRefUsers, refScope, scope)
		if err != nil {
			return err
		}
		users = append(users, holders...)
	}
	if len(users) == 0 {
		return nil
	}
	slices.Sort(users)
	users = slices.Compact(users)
	return &InUseError{URI: r.URI, ClientIDs: users[:min(len(users), 10)]}
}

// users returns the ids that a query finds.
func (c *change) users(query string, args ...any) ([]string, error) {
	rows, err := c.tx.QueryContext(c.ctx, query, args...)
	return all(rows, err, func(r row) (id string, err error) { return id, r.Scan(&id) })
}

// dropServer takes a removed client off every resource: whoever gets the id next must not inherit its place.
func (c *change) dropServer(id string) error {
	rows, err := c.tx.QueryContext(c.ctx, queryResources)
	resources, err := all(rows, err, scanResource)
	if err != nil {
		return err
	}
	for _, r := range resources {
		if !slices.Contains(r.Servers, id) {
			continue
		}
		servers := slices.DeleteFunc(r.Servers, func(s string) bool { return s == id })
		if _, err := c.exec("resources", setServers, r.URI, list(servers)); err != nil {
			return err
		}
		c.what.Resources = true
	}
	return nil
}

// Resource returns a resource, or ErrNotFound.
func (s *Store) Resource(ctx context.Context, uri string) (Resource, error) {
	if !storable(uri) {
		return Resource{}, fmt.Errorf("resource %q: %w", uri, ErrNotFound)
	}
	r, err := scanResource(s.read.QueryRowContext(ctx, queryResource, uri))
	if err != nil {
		return Resource{}, fmt.Errorf("resource %q: %w", uri, err)
	}
	return r, nil
}

// Resources lists all resources in the order of their URIs.
func (s *Store) Resources(ctx context.Context) ([]Resource, error) {
	rows, err := s.read.QueryContext(ctx, queryResources)
	resources, err := all(rows, err, scanResource)
	if err != nil {
		return nil, fmt.Errorf("list resources: %w", err)
	}
	return resources, nil
}

func scanResource(r row) (Resource, error) {
	var out Resource
	err := r.Scan(&out.URI, (*list)(&out.Scopes), (*list)(&out.Servers), &out.BuiltIn, (*moment)(&out.CreatedAt))
	if errors.Is(err, sql.ErrNoRows) {
		return Resource{}, ErrNotFound
	}
	return out, err
}
