// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// addClient registers a client and makes its first enrolment code. Nobody has the code before the answer leaves, so a
// registration that could not be recorded gave nothing.
func (a *api) addClient(r *http.Request, req *ClientRequest) (*outcome, error) {
	ctx := r.Context()
	a.registering.Lock()
	defer a.registering.Unlock()
	resources, err := a.cfg.Store.Resources(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	client, err := a.rules.client(req, resources)
	if err != nil {
		return nil, err
	}
	text, code, err := a.cfg.Authority.NewCode(client.ID)
	if err != nil {
		return nil, unavailable(err)
	}
	client, err = a.cfg.Store.AddClient(ctx, client, &code)
	if err != nil {
		return nil, clientError(req.ID, err)
	}
	return &outcome{
		answer: invitation(client, text, code.ExpiresAt),
		events: []audit.Event{{Client: client.ID, Scope: client.Scopes, Detail: registration(client, req.AllowReserved)}},
		undo:   func(ctx context.Context) error { return a.cfg.Store.RemoveClient(ctx, client.ID) },
	}, nil
}

// registration is what the record keeps of a registration.
func registration(c store.Client, allowReserved bool) map[string]string {
	detail := map[string]string{"usage": c.Usage}
	for name, values := range map[string][]string{"resources": c.Resources, "dns_names": c.DNS, "ip_addresses": c.IPs, "uris": c.URIs} {
		if len(values) > 0 {
			detail[name] = strings.Join(values, " ")
		}
	}
	if c.TokenTTL > 0 {
		detail["token_ttl"] = c.TokenTTL.String()
	}
	if allowReserved {
		detail["allow_reserved"] = "true"
	}
	return detail
}

func invitation(c store.Client, text string, expires time.Time) Invitation {
	expires = expires.UTC().Truncate(time.Second)
	return Invitation{ClientID: c.ID, AuthMethod: c.AuthMethod, Code: text, CodeExpiresAt: &expires}
}

// inviteClient makes a new enrolment code; the store voids older ones.
func (a *api) inviteClient(r *http.Request, _ *none) (*outcome, error) {
	ctx, id := r.Context(), clientID(r)
	client, err := a.cfg.Store.Client(ctx, id)
	if err != nil {
		return nil, clientError(id, err)
	}
	text, code, err := a.cfg.Authority.NewCode(id)
	if err != nil {
		return nil, unavailable(err)
	}
	if err := a.cfg.Store.Invite(ctx, id, code); err != nil {
		return nil, clientError(id, err)
	}
	return &outcome{
		answer: invitation(client, text, code.ExpiresAt),
		events: []audit.Event{{Client: id}},
		undo:   func(context.Context) error { return nil }, // the code leaves with the answer or not at all
	}, nil
}

func (a *api) disableClient(r *http.Request, _ *none) (*outcome, error) {
	return takeAway(r, "disabled", a.cfg.Store.DisableClient)
}

func (a *api) removeClient(r *http.Request, _ *none) (*outcome, error) {
	return takeAway(r, "removed", a.cfg.Store.RemoveClient)
}

// takeAway makes a change to a client that holds also without a record.
func takeAway(r *http.Request, done string, f func(context.Context, string) error) (*outcome, error) {
	id := clientID(r)
	if err := f(r.Context(), id); err != nil {
		return nil, clientError(id, err)
	}
	answer := &Change{ClientID: id, Done: done}
	return &outcome{answer: answer, events: []audit.Event{{Client: id}}, pending: func() { answer.AuditPending = true }}, nil
}

func (a *api) enableClient(r *http.Request, _ *none) (*outcome, error) {
	id := clientID(r)
	before, err := a.cfg.Store.Client(r.Context(), id)
	if err != nil {
		return nil, clientError(id, err)
	}
	if err := a.cfg.Store.EnableClient(r.Context(), id); err != nil {
		return nil, clientError(id, err)
	}
	return &outcome{
		answer: &Change{ClientID: id, Done: "enabled"},
		events: []audit.Event{{Client: id}},
		undo: func(ctx context.Context) error {
			if !before.Disabled {
				return nil // it was enabled all along
			}
			return a.cfg.Store.DisableClient(ctx, id)
		},
	}, nil
}

func (a *api) showClient(r *http.Request) (any, error) {
	id := clientID(r)
	client, err := a.cfg.Store.Client(r.Context(), id)
	if err != nil {
		return nil, clientError(id, err)
	}
	return clientView(client), nil
}

func (a *api) listClients(r *http.Request) (any, error) {
	after, limit, err := page(r)
	if err != nil {
		return nil, err
	}
	rows, err := a.cfg.Store.Clients(r.Context(), after, limit)
	if err != nil {
		return nil, unavailable(err)
	}
	list := ClientList{Clients: make([]Client, 0, len(rows))}
	for _, row := range rows {
		list.Clients = append(list.Clients, clientView(row))
	}
	if len(rows) == limit {
		list.Next = rows[limit-1].ID
	}
	return list, nil
}

func clientView(c store.Client) Client {
	view := Client{
		ID: c.ID, AuthMethod: c.AuthMethod, Scope: strings.Join(c.Scopes, " "),
		DNSNames: present(c.DNS), IPAddresses: present(c.IPs), URIs: present(c.URIs),
		Usage: c.Usage, Resources: present(c.Resources), TokenTTLSeconds: int64(c.TokenTTL / time.Second),
		Disabled: c.Disabled, Generation: c.Generation, CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(),
	}
	for kind, member := range map[string]*string{
		"tls_client_auth_subject_dn": &view.SubjectDN, "tls_client_auth_san_dns": &view.SANDNS, "tls_client_auth_san_uri": &view.SANURI,
		"tls_client_auth_san_ip": &view.SANIP, "tls_client_auth_san_email": &view.SANEmail,
	} {
		if c.SubjectKind == kind {
			*member = c.SubjectValue
		}
	}
	return view
}

// present is the list, empty instead of nil, so that JSON has [] and not null.
func present(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
