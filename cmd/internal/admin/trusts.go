// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// addTrust registers a foreign CA. It vouches for nobody until a client names it.
func (a *api) addTrust(ctx context.Context, _ string, req *TrustRequest) (*proposal, error) {
	row, err := a.rules.trust(req, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	p := concerningTrust(row)
	p.again = "certbound trust show " + shellWord(row.Name) + " shows it"
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.AddTrust(ctx, row); err != nil {
			return nil, trustError(row.Name, err)
		}
		return &outcome{answer: trustView(row)}, nil
	}
	return p, nil
}

// replaceTrust replaces the certificates and the revocation list of a foreign CA under all clients that name it.
func (a *api) replaceTrust(ctx context.Context, name string, req *TrustRequest) (*proposal, error) {
	if req.Name != "" && req.Name != name {
		return nil, invalidRequest("the body names another trust than the path", "leave the name out of the body", nil)
	}
	before, err := a.db(ctx).Trust(ctx, name)
	if err != nil {
		return nil, trustError(name, err)
	}
	whole, err := keeping(*req, before)
	if err != nil {
		return nil, err
	}
	whole.Name = name
	row, err := a.rules.trust(&whole, a.cfg.Now())
	if err != nil {
		return nil, err
	}
	p := concerningTrust(row)
	p.shown.Present = digest(before)
	p.shown.Trust.PreviousRevocation, p.event.Detail["previous_revocation"] = before.Revocation, before.Revocation
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.ReplaceTrust(ctx, row); err != nil {
			return nil, trustError(name, err)
		}
		return &outcome{answer: *p.shown.Trust}, nil
	}
	return p, nil
}

func (a *api) removeTrust(ctx context.Context, name string, _ *none) (*proposal, error) {
	row, err := a.db(ctx).Trust(ctx, name)
	if err != nil {
		return nil, trustError(name, err)
	}
	p := concerningTrust(row)
	p.takes = true
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if err := tx.RemoveTrust(ctx, name); err != nil {
			return nil, trustError(name, err)
		}
		return &outcome{answer: &Change{Trust: name, Done: "removed"}}, nil
	}
	return p, nil
}

// concerningTrust is a proposal about a trust as it is, or will be.
func concerningTrust(row store.Trust) *proposal {
	view := trustView(row)
	return &proposal{
		event: audit.Event{Detail: map[string]string{
			"trust": row.Name, "anchors": strings.Join(thumbprints(row.Anchors), " "), "revocation": row.Revocation,
		}},
		needs: []string{ScopeTrust}, waits: true, shown: shown{Trust: &view},
	}
}

func (a *api) showTrust(r *http.Request) (any, error) {
	name := pathID(r)
	if slices.Contains(a.cfg.FileTrusts, name) {
		return a.fileTrust(name, a.trustHealth()), nil
	}
	row, err := a.db(r.Context()).Trust(r.Context(), name)
	if err != nil {
		return nil, trustError(name, err)
	}
	return a.healthy(trustView(row), a.trustHealth()), nil
}

func (a *api) listTrusts(r *http.Request) (any, error) {
	rows, err := a.db(r.Context()).Trusts(r.Context())
	if err != nil {
		return nil, unavailable(err)
	}
	health := a.trustHealth()
	list := TrustList{Trusts: make([]Trust, 0, len(rows)+len(a.cfg.FileTrusts))}
	for _, name := range a.cfg.FileTrusts {
		list.Trusts = append(list.Trusts, a.fileTrust(name, health))
	}
	for _, row := range rows {
		list.Trusts = append(list.Trusts, a.healthy(trustView(row), health))
	}
	slices.SortStableFunc(list.Trusts, func(x, y Trust) int { return strings.Compare(x.Name, y.Name) })
	return list, nil
}

func (a *api) trustHealth() map[string]string {
	if a.cfg.TrustHealth == nil {
		return nil
	}
	return a.cfg.TrustHealth()
}

func (a *api) fileTrust(name string, health map[string]string) Trust {
	return a.healthy(Trust{Name: name, Source: "file", Anchors: []PinnedCertificate{}, Intermediates: []PinnedCertificate{}}, health)
}

func (a *api) healthy(t Trust, health map[string]string) Trust {
	t.Health = health["trust:"+t.Name]
	return t
}
