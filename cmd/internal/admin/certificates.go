// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

func (a *api) listCertificates(r *http.Request) (any, error) {
	after, limit, err := page(r)
	if err != nil {
		return nil, err
	}
	client := r.URL.Query().Get("client_id")
	if client != "" {
		if _, err := a.db(r.Context()).Client(r.Context(), client); err != nil {
			return nil, clientError(client, err)
		}
	}
	rows, err := a.db(r.Context()).Certificates(r.Context(), client, after, limit)
	if err != nil {
		return nil, unavailable(err)
	}
	list := CertificateList{Certificates: a.certificateViews(rows)}
	if len(rows) == limit {
		list.Next = rows[limit-1].Serial
	}
	return list, nil
}

// revoke takes certificates away.
func (a *api) revoke(_ *http.Request, req *RevokeRequest) (*deed, error) {
	selection, err := selectionOf(req)
	if err != nil {
		return nil, err
	}
	reason := pki.Unspecified
	if req.Reason != "" {
		if reason, err = pki.ParseReason(req.Reason); err != nil {
			return nil, invalidRequest(fmt.Sprintf("'%s' is not a reason", printable(req.Reason)), "use one of "+reasonNames(), err)
		}
	}
	if req.WaitResources < 0 || req.WaitResources > maxWaitResources {
		return nil, invalidRequest(fmt.Sprintf("the wait for resource servers is at most %d s", maxWaitResources), "ask again to wait longer: what is revoked stays so", nil)
	}
	return &deed{takes: true, do: func(ctx context.Context, tx *store.Store) (*outcome, error) {
		done, err := a.cfg.Authority.Revoke(ctx, tx, selection, reason)
		if errors.Is(err, store.ErrNotFound) {
			if req.ClientID != "" {
				return nil, notFound(fmt.Sprintf("no client '%s'", printable(req.ClientID)), "certbound client list shows all")
			}
			return nil, notFound("no such certificate", "certbound cert list shows all; in place of one that expired long ago name its client, with --client")
		}
		if errors.Is(err, store.ErrNotRevocable) {
			return nil, conflict(codeRequest, "the certificates of this client are another authority's or its own: they are not ours to revoke",
				"certbound client disable "+shellWord(req.ClientID)+" ends it at once; the reason keyCompromise also bars its keys")
		}
		if err != nil {
			return nil, err
		}
		if err := a.denyPublished(ctx, tx, done, reason); err != nil {
			return nil, err
		}
		answer := &Revocation{
			Revoked: a.certificateViews(done.Revoked), AlreadyRevoked: a.certificateViews(done.Already), Disabled: done.Disabled,
		}
		if a.cfg.Durability != nil {
			answer.Durability = a.cfg.Durability()
		}
		out := &outcome{answer: answer, events: revocationEvents(req, done, reason)}
		if req.WaitResources > 0 && a.cfg.Followers != nil {
			out.after = func(ctx context.Context) error {
				var err error
				answer.Resources, err = a.cfg.Followers(ctx, time.Duration(req.WaitResources)*time.Second)
				return err
			}
		}
		return out, nil
	}}, nil
}

// denyPublished denies what clients got by certificates and keys that they publish elsewhere, of the keys of those that were
// taken away because they are compromised.
func (a *api) denyPublished(ctx context.Context, tx *store.Store, done store.Revocation, reason pki.Reason) error {
	if reason != pki.KeyCompromise {
		return nil
	}
	keys := slices.Clone(done.Blocked)
	for _, c := range slices.Concat(done.Revoked, done.Already) {
		keys = append(keys, c.KeyHash)
	}
	_, err := tx.Deny(ctx, a.cfg.Published(keys)...)
	return err
}

// maxWaitResources is how many seconds an answer may wait for resource servers: less than its caller waits for it.
const maxWaitResources = 20

// revocationEvents are one event a certificate, since certificates are what a journal is searched for; what changed
// nothing is one event too.
func revocationEvents(req *RevokeRequest, done store.Revocation, reason pki.Reason) []audit.Event {
	events := make([]audit.Event, 0, len(done.Revoked)+1)
	told := make(map[[32]byte]bool) // keys
	for _, c := range done.Revoked {
		told[c.KeyHash] = true
		events = append(events, audit.Event{Client: c.ClientID, Serial: c.Serial, Detail: map[string]string{
			"reason": reason.String(), "x5t#S256": mtls.Thumbprint(c.Thumbprint).String(), "key": keyText(c.KeyHash),
		}})
	}
	for _, key := range done.Blocked {
		if !told[key] { // all its certificates were revoked before
			events = append(events, audit.Event{Client: req.ClientID, Serial: req.Serial, Detail: map[string]string{
				"reason": reason.String(), "key": keyText(key), "changed": "blocked",
			}})
		}
	}
	for _, id := range done.Disabled {
		events = append(events, audit.Event{Client: id, Detail: map[string]string{"reason": reason.String(), "changed": "disabled"}})
	}
	if len(events) == 0 {
		events = append(events, audit.Event{Client: req.ClientID, Serial: req.Serial, Detail: map[string]string{
			"reason": reason.String(), "x5t#S256": req.Thumbprint, "changed": "nothing",
		}})
	}
	return events
}

func keyText(hash [32]byte) string { return base64.RawURLEncoding.EncodeToString(hash[:]) }

func reasonNames() string {
	var names []string
	for _, reason := range pki.Reasons() {
		names = append(names, reason.String())
	}
	return strings.Join(names, ", ")
}

// selectionOf demands exactly one of the three ways to name certificates.
func selectionOf(req *RevokeRequest) (store.Selection, error) {
	const hint = "name one certificate by serial or x5t#S256, or all of a client by client_id"
	given := 0
	for _, s := range []string{req.Serial, req.Thumbprint, req.ClientID} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return store.Selection{}, invalidRequest("exactly one of serial, x5t#S256 and client_id is needed", hint, nil)
	}
	selection := store.Selection{Serial: req.Serial, ClientID: req.ClientID, Only: req.Only}
	if req.Thumbprint != "" {
		thumbprint, err := mtls.ParseThumbprint(req.Thumbprint)
		if err != nil {
			return store.Selection{}, invalidRequest(fmt.Sprintf("'%s' is not a thumbprint", printable(req.Thumbprint)),
				fmt.Sprintf("a thumbprint is %d characters of base64url; certbound cert list shows them", base64.RawURLEncoding.EncodedLen(len(thumbprint))), err)
		}
		selection.Thumbprints = [][32]byte{thumbprint}
	}
	const longest = 49 // decimal digits of 20 octets (RFC 5280, Section 4.1.2.2)
	if len(req.Serial) > longest || strings.Trim(req.Serial, "0123456789") != "" {
		return store.Selection{}, invalidRequest(fmt.Sprintf("'%s' is not a serial number", printable(req.Serial)),
			"a serial number is decimal; certbound cert list shows them", nil)
	}
	return selection, nil
}

func (a *api) certificateViews(rows []store.Certificate) []Certificate {
	now := a.cfg.Now()
	views := make([]Certificate, 0, len(rows))
	for _, row := range rows {
		views = append(views, certificateView(row, now))
	}
	return views
}

func certificateView(c store.Certificate, now time.Time) Certificate {
	view := Certificate{
		Serial: c.Serial, Thumbprint: mtls.Thumbprint(c.Thumbprint).String(), ClientID: c.ClientID, Generation: c.Generation,
		Status: "valid", NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
	}
	if c.RenewedFrom != [32]byte{} {
		view.RenewedFrom = mtls.Thumbprint(c.RenewedFrom).String()
	}
	switch {
	case !c.RevokedAt.IsZero():
		at := c.RevokedAt.UTC()
		view.Status, view.RevokedAt, view.Reason = "revoked", &at, pki.Reason(c.Reason).String()
	case !now.Before(c.NotAfter):
		view.Status = "expired"
	}
	return view
}

// statusTime is how long the status may take to be read. Who asks for it may do so because the database says nothing.
const statusTime = 5 * time.Second

func (a *api) status(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), statusTime)
	defer cancel()
	stats, err := a.db(ctx).Stats(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	var cluster Cluster
	if a.cfg.Cluster != nil {
		if cluster, err = a.cfg.Cluster(ctx); err != nil {
			return nil, unavailable(err)
		}
	}
	return Status{
		Cluster: cluster,
		Issuer:  a.cfg.Issuer, TrustDomain: a.cfg.TrustDomain, Version: a.cfg.Version,
		Clients: stats.Clients, DisabledClients: stats.Disabled, Resources: stats.Resources,
		Certificates: stats.Certificates, RevokedCertificates: stats.Revoked, OpenCodes: stats.OpenCodes, Trusts: stats.Trusts,
	}, nil
}
