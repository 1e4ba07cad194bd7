// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// addClient registers a client, with its first enrolment code where our own CA vouches for it. Nobody has the code before
// the answer leaves: a registration whose record has to wait gives nothing yet.
func (a *api) addClient(ctx context.Context, _ string, req *ClientRequest) (*proposal, error) {
	resources, err := a.db(ctx).Resources(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	client, err := a.rules.client(req, resources, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	if err := a.checkNew(ctx, client); err != nil {
		return nil, clientError(client.ID, err)
	}
	view := clientView(client)
	p := &proposal{
		event: audit.Event{Client: client.ID, Scope: client.Scopes, Detail: registration(client), Personal: person(client)},
		needs: registrationNeeds(client), waits: operator(client), shown: shown{Client: &view},
	}
	p.again = "certbound client show " + shellWord(client.ID) + " shows it"
	if enrols(client) {
		p.again = "certbound client invite " + shellWord(client.ID) + " makes it a code"
	}
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) { return a.register(ctx, tx, client) }
	if req.AllowReserved {
		p.insisting()
	}
	if client.Trust != "" {
		trust, err := a.db(ctx).Trust(ctx, client.Trust)
		switch {
		case err == nil:
			p.shown.Present = digest(trust)
		case !errors.Is(err, store.ErrNotFound): // one of the configuration's files, or none: the store knows
			return nil, unavailable(err)
		}
	}
	return p, nil
}

// checkNew refuses a client that exists, and one whose names another one's are. The store judges it again; here it keeps
// what cannot be done from waiting for a second operator.
func (a *api) checkNew(ctx context.Context, client store.Client) error {
	if _, err := a.db(ctx).Client(ctx, client.ID); !errors.Is(err, store.ErrNotFound) {
		return cmp.Or(err, store.ErrExists)
	}
	return a.db(ctx).FreeNames(ctx, client)
}

func (a *api) register(ctx context.Context, tx *store.Store, client store.Client) (*outcome, error) {
	var code *store.Code
	answer := &Invitation{ClientID: client.ID, AuthMethod: client.AuthMethod}
	if enrols(client) {
		text, made, err := a.cfg.Authority.NewCode(client.ID)
		if err != nil {
			return nil, unavailable(err)
		}
		code, answer = &made, invitation(client, text, made.ExpiresAt)
	}
	if _, err := tx.AddClient(ctx, client, code); err != nil {
		return nil, clientError(client.ID, err)
	}
	from, err := tx.DeniedBefore(ctx, client.ID)
	if err != nil {
		return nil, unavailable(err)
	}
	return &outcome{answer: answer, from: from}, nil
}

// enrols reports whether our own CA vouches for the client.
func enrols(c store.Client) bool { return c.AuthMethod == byCA && c.Trust == "" }

// registration is what the record keeps of a registration.
func registration(c store.Client) map[string]string {
	detail := map[string]string{"usage": c.Usage, "auth_method": c.AuthMethod}
	if sealed := person(c); len(sealed) > 0 { // whoever cannot read them knows that something is missing
		detail["sealed_members"] = strings.Join(slices.Sorted(maps.Keys(sealed)), " ")
	}
	for name, values := range map[string][]string{
		"resources": c.Resources, "dns_names": c.DNS, "uris": c.URIs, "x5t#S256": thumbprints(c.Certificates),
	} {
		if len(values) > 0 {
			detail[name] = strings.Join(values, " ")
		}
	}
	if c.Trust != "" {
		detail["trust"] = c.Trust
		if !isPersonal(c.SubjectKind) {
			detail[c.SubjectKind] = c.SubjectValue
		}
	}
	if c.JWKSURI != "" {
		detail["jwks_uri"] = c.JWKSURI
	}
	if keys, err := issuer.ParseAssertionKeys([]byte(c.JWKS)); err == nil {
		var ids []string
		for _, k := range keys {
			id, _ := tokens.KeyID(k.Key) // what was read has one
			ids = append(ids, id)
		}
		detail["jwks"] = strings.Join(ids, " ")
	}
	if c.TokenTTL > 0 {
		detail["token_ttl"] = c.TokenTTL.String()
	}
	return detail
}

// person is what a registration says of a person, or of where one is: the journal seals it.
func person(c store.Client) map[string]string {
	var personal map[string]string
	if len(c.IPs) > 0 {
		personal = map[string]string{"ip_addresses": strings.Join(c.IPs, " ")}
	}
	if isPersonal(c.SubjectKind) {
		personal = detailed(personal, map[string]string{c.SubjectKind: c.SubjectValue})
	}
	return personal
}

// isPersonal says which of the subjects of RFC 8705, Section 2.1.2, may name a person.
func isPersonal(kind string) bool {
	switch kind {
	case "tls_client_auth_subject_dn", "tls_client_auth_san_email", "tls_client_auth_san_ip":
		return true
	}
	return false
}

func invitation(c store.Client, text string, expires time.Time) *Invitation {
	expires = expires.UTC().Truncate(time.Second)
	return &Invitation{ClientID: c.ID, AuthMethod: c.AuthMethod, Code: text, CodeExpiresAt: &expires}
}

// inviteClient makes a new enrolment code; the store voids older ones. Whoever has the code of an operator is that
// operator, so it takes the scope to make operators.
func (a *api) inviteClient(ctx context.Context, id string, _ *none) (*proposal, error) {
	if a.onlyOperators && id == a.cfg.FirstOperator.ID {
		grantors, err := a.db(ctx).Grantors(ctx)
		if err != nil {
			return nil, unavailable(err)
		}
		if grantors == 0 {
			return a.restoreOperator(id), nil
		}
	}
	client, err := a.db(ctx).Client(ctx, id)
	if err != nil {
		return nil, clientError(id, err)
	}
	if a.onlyOperators && !operator(client) {
		return nil, &Error{Status: http.StatusForbidden, Code: codeRequest,
			Description: fmt.Sprintf("client '%s' is no operator: break-glass invites nobody else", id), Hint: "enrol as an operator first, then invite it"}
	}
	p := a.concerning(client, ScopeEnroll)
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		text, code, err := a.cfg.Authority.NewCode(id)
		if err != nil {
			return nil, unavailable(err)
		}
		if err := tx.Invite(ctx, id, code); err != nil {
			return nil, clientError(id, err)
		}
		return &outcome{answer: invitation(client, text, code.ExpiresAt)}, nil
	}
	return p, nil
}

// concerning is a proposal about a client that exists: it takes the scope, or another one where the client is an operator
// or could pose as the service.
func (a *api) concerning(client store.Client, scope string) *proposal {
	view := clientView(client)
	p := &proposal{event: audit.Event{Client: client.ID}, needs: []string{scope}, shown: shown{Client: &view}}
	if operator(client) || a.rules.posesAsUs(client) {
		p.needs, p.waits = []string{ScopeGrant}, true
	}
	return p
}

// setCertificates replaces the certificates of a client that registered its own: whoever has the key of a new one is that
// client from then on. To take some away and add none needs less, and waits for nobody.
func (a *api) setCertificates(ctx context.Context, id string, req *CertificatesRequest) (*proposal, error) {
	client, err := a.db(ctx).Client(ctx, id)
	if err != nil {
		return nil, clientError(id, err)
	}
	if len(client.Certificates) == 0 {
		return nil, clientError(id, store.ErrNotPinned)
	}
	before := client.Certificates
	p := a.concerning(client, ScopeRegistry)
	if client.Certificates, err = a.rules.pinned(req.Certificates, req.AllowReserved, a.cfg.Now()); err != nil {
		return nil, err
	}
	view := clientView(client)
	p.shown.Client = &view
	p.event.Detail = map[string]string{"x5t#S256": strings.Join(thumbprints(client.Certificates), " ")}
	onlyTakes := !slices.ContainsFunc(client.Certificates, func(der []byte) bool {
		return !slices.ContainsFunc(before, func(old []byte) bool { return bytes.Equal(der, old) })
	})
	switch {
	case onlyTakes:
		p.needs, p.waits = nil, false
		if operator(client) {
			p.anyOf = []string{ScopeGrant, ScopeRevoke} // who only registers locks no operator out
		}
	case req.AllowReserved:
		p.insisting()
	}
	p.takes = onlyTakes
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.SetClientCertificates(ctx, id, client.Certificates); err != nil {
			return nil, clientError(id, err)
		}
		return &outcome{answer: &Change{ClientID: id, Done: "certificates replaced"}}, nil
	}
	return p, nil
}

func thumbprints(ders [][]byte) []string {
	var list []string
	for _, der := range ders {
		list = append(list, mtls.Thumbprint(sha256.Sum256(der)).String())
	}
	return list
}

func (a *api) disableClient(r *http.Request, _ *none) (*deed, error) {
	return takeAway(r, "disabled", (*store.Store).DisableClient), nil
}

// removeClient takes, for an operator, more than to register: who only registers locks no operator out.
func (a *api) removeClient(r *http.Request, _ *none) (*deed, error) {
	client, err := a.db(r.Context()).Client(r.Context(), pathID(r))
	if err != nil {
		return nil, clientError(pathID(r), err)
	}
	if operator(client) {
		if err := a.needAny(r.Context(), []string{ScopeGrant, ScopeRevoke}); err != nil {
			return nil, err
		}
	}
	return takeAway(r, "removed", (*store.Store).RemoveClient), nil
}

// takeAway is a change to a client that holds also while its record has to wait.
func takeAway(r *http.Request, done string, f func(*store.Store, context.Context, string) error) *deed {
	id := pathID(r)
	return &deed{takes: true, do: func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := f(tx, ctx, id); err != nil {
			return nil, clientError(id, err)
		}
		return &outcome{answer: &Change{ClientID: id, Done: done}, events: []audit.Event{{Client: id}}}, nil
	}}
}

func (a *api) enableClient(ctx context.Context, id string, _ *none) (*proposal, error) {
	client, err := a.db(ctx).Client(ctx, id)
	if err != nil {
		return nil, clientError(id, err)
	}
	p := a.concerning(client, ScopeRegistry)
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.EnableClient(ctx, id); err != nil {
			return nil, clientError(id, err)
		}
		from, err := tx.DeniedBefore(ctx, id)
		if err != nil {
			return nil, unavailable(err)
		}
		return &outcome{answer: &Change{ClientID: id, Done: "enabled"}, from: from}, nil
	}
	return p, nil
}

func (a *api) showClient(r *http.Request) (any, error) {
	id := pathID(r)
	client, err := a.db(r.Context()).Client(r.Context(), id)
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
	rows, err := a.db(r.Context()).Clients(r.Context(), after, limit)
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
		Trust: c.Trust, JWKSURI: c.JWKSURI, JWKS: json.RawMessage(c.JWKS),
	}
	for _, der := range c.Certificates {
		view.Certificates = append(view.Certificates, certificateSummary(der))
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
