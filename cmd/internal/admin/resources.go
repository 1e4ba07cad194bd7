// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

func (a *api) addResource(r *http.Request, req *ResourceRequest) (*deed, error) {
	ctx := r.Context()
	row, err := a.rules.resource(req)
	if err != nil {
		return nil, err
	}
	for _, server := range row.Servers {
		if err := a.checkServer(ctx, server); err != nil {
			return nil, err
		}
	}
	row.CreatedAt = a.cfg.Now()
	event := audit.Event{Resource: row.URI, Scope: row.Scopes, Detail: map[string]string{"servers": strings.Join(row.Servers, " ")}}
	do := func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.AddResource(ctx, row); err != nil {
			return nil, resourceError(row.URI, err)
		}
		return &outcome{answer: resourceView(row), status: http.StatusCreated, events: []audit.Event{event}}, nil
	}
	return &deed{do: do, again: "certbound resource list shows it"}, nil
}

// checkServer demands that a resource server is a client already: whoever got a free id later would inherit its rights.
func (a *api) checkServer(ctx context.Context, id string) error {
	_, err := a.db(ctx).Client(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return invalidMetadata("certbound client add "+shellWord(id)+" --usage both", "no client '%s' to run this resource server", printable(id))
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

func (a *api) removeResource(r *http.Request, _ *none) (*deed, error) {
	query, err := parameters(r, "uri")
	if err != nil {
		return nil, err
	}
	uri := query.Get("uri")
	if uri == "" {
		return nil, invalidRequest("the parameter uri is missing", "name the resource", nil)
	}
	return &deed{takes: true, do: func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.RemoveResource(ctx, uri); err != nil {
			return nil, resourceError(uri, err)
		}
		return &outcome{answer: &Change{Resource: uri, Done: "removed"}, events: []audit.Event{{Resource: uri}}}, nil
	}}, nil
}

func (a *api) listResources(r *http.Request) (any, error) {
	after, limit, err := page(r)
	if err != nil {
		return nil, err
	}
	rows, err := a.db(r.Context()).Resources(r.Context())
	if err != nil {
		return nil, unavailable(err)
	}
	slices.SortFunc(rows, func(x, y store.Resource) int { return strings.Compare(x.URI, y.URI) })
	rows = slices.DeleteFunc(rows, func(row store.Resource) bool { return row.URI <= after })
	list := ResourceList{Resources: make([]Resource, 0, min(limit, len(rows)))}
	for i, row := range rows {
		if i == limit {
			list.Next = rows[i-1].URI
			break
		}
		list.Resources = append(list.Resources, resourceView(row))
	}
	return list, nil
}

func resourceView(row store.Resource) Resource {
	return Resource{
		Resource: row.URI, Scope: strings.Join(row.Scopes, " "), Servers: present(row.Servers),
		BuiltIn: row.BuiltIn, CreatedAt: row.CreatedAt.UTC(),
	}
}
