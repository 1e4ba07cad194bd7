// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

const (
	// purposeServer names the service's own certificate among the sealed keys.
	purposeServer = "server"
	// libraryRetention is how long the CA library's own rows are kept; nothing of ours reads them.
	libraryRetention = 24 * time.Hour
	// operatorID is the client id of the first operator.
	operatorID = "operator"
)

// loadOwn reads our own certificate, or makes one when there is none, when it is past half its life, or
// when it does not carry the names that the configuration asks for.
func (s *service) loadOwn(ctx context.Context) error {
	rows, err := s.folder.store.Keys(ctx, purposeServer)
	if err != nil {
		return fmt.Errorf("reading the service's own certificate: %w", err)
	}
	var current tls.Certificate
	if mine := slices.IndexFunc(rows, func(k store.Key) bool { return k.ID == s.replica.Replica }); mine >= 0 {
		if current, err = parseOwn(rows[mine]); err != nil {
			return err
		}
	}
	if current.Leaf == nil || s.ownDue(current.Leaf, time.Now()) {
		made, err := s.makeOwn(ctx)
		switch {
		case err == nil:
			current = made
		case current.Leaf == nil || !errors.Is(err, outbox.ErrNotReady):
			return err
		default: // renewOwn tries again
			s.log.Error("the service's own certificate was not renewed: the old one goes on as long as it lives", "error", err)
		}
	}
	s.metrics.notAfter("server", current.Leaf.NotAfter)
	s.own, err = mtls.NewKeyPair(current)
	return err
}

func parseOwn(row store.Key) (tls.Certificate, error) {
	key, err := parseSigner(row.Private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the service's own key: %w", err)
	}
	if len(row.Chain) == 0 {
		return tls.Certificate{}, errors.New("the service's own certificate is missing from the database")
	}
	leaf, err := x509.ParseCertificate(row.Chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the service's own certificate: %w", err)
	}
	if !samePublicKey(leaf.PublicKey, key.Public()) {
		return tls.Certificate{}, errors.New("the service's own key does not belong to its certificate")
	}
	return tls.Certificate{Certificate: row.Chain, PrivateKey: key, Leaf: leaf}, nil
}

// makeOwn issues and stores our own certificate.
func (s *service) makeOwn(ctx context.Context) (tls.Certificate, error) {
	dns, ips := splitNames(s.ownNames())
	made, err := s.authority.ServerCertificate(ctx, s.issuerHost(), dns, ips, s.cfg.Certificate.ServerLifetime)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("encoding the service's own key: %w", err)
	}
	err = s.folder.store.PutKey(ctx, store.Key{
		ID: s.replica.Replica, Purpose: purposeServer, State: "active", Chain: made.Certificate, Private: der, CreatedAt: time.Now(),
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("storing the service's own certificate: %w", err)
	}
	return made, nil
}

// ownDue says whether our certificate should be replaced now.
func (s *service) ownDue(leaf *x509.Certificate, now time.Time) bool {
	if now.After(halfLife(leaf)) {
		return true
	}
	var have []string
	have = append(have, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		have = append(have, ip.String())
	}
	for _, want := range s.ownNames() {
		if ip := net.ParseIP(want); ip != nil {
			want = ip.String()
		}
		if !slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h, want) }) {
			return true
		}
	}
	return false
}

func halfLife(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// renewOwn keeps our own certificate and the operator's profile fresh until ctx is done. It looks again
// at least every ten minutes, so that a wrong clock or a suspended machine heals by itself.
func (s *service) renewOwn(ctx context.Context) {
	for {
		if err := s.renewOwnOnce(ctx); err != nil && ctx.Err() == nil {
			s.metrics.renewFailed.Inc()
			s.log.Error("looking after the service's own certificates failed: the old ones go on as long as they live", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.nextLook(time.Now())):
		}
	}
}

func (s *service) nextLook(now time.Time) time.Duration {
	next := halfLife(s.own.Current().Leaf)
	if !s.operatorDue.IsZero() && s.operatorDue.Before(next) {
		next = s.operatorDue
	}
	return max(time.Second, min(next.Sub(now), 10*time.Minute))
}

func (s *service) renewOwnOnce(ctx context.Context) error {
	if s.ownDue(s.own.Current().Leaf, time.Now()) {
		made, err := s.makeOwn(ctx)
		if err != nil {
			return err
		}
		if err := s.own.Replace(made); err != nil {
			return fmt.Errorf("taking up the service's new certificate: %w", err)
		}
		s.metrics.notAfter("server", made.Leaf.NotAfter)
		s.log.Info("the service's own certificate was renewed", "not_after", made.Leaf.NotAfter)
	}
	// The CA library keeps every one-time token that it saw, whole; ours live for one signing.
	return errors.Join(s.ca.Purge(ctx, time.Now().Add(-libraryRetention)), s.forgetReplicas(ctx, time.Now()), s.refreshOperator(ctx))
}

// forgetReplicas deletes the server certificates, with their keys, of replicas that let them expire: they are gone, or make
// new ones when they come back.
func (s *service) forgetReplicas(ctx context.Context, now time.Time) error {
	rows, err := s.folder.store.Keys(ctx, purposeServer)
	if err != nil {
		return fmt.Errorf("reading the replicas' certificates: %w", err)
	}
	for _, row := range rows {
		if row.ID == s.replica.Replica {
			continue
		}
		own, err := parseOwn(row)
		if err != nil || now.Before(own.Leaf.NotAfter) {
			continue // what is damaged is its replica's to tell
		}
		if err := s.folder.store.DeleteKey(ctx, purposeServer, row.ID); err != nil && !isNotFound(err) {
			return fmt.Errorf("forgetting a replica: %w", err)
		}
	}
	return nil
}

// bootstrapOperator registers the first operator and lays down a profile for it, once. A first start that
// died in between is finished here.
func (s *service) bootstrapOperator(ctx context.Context) error {
	db := s.folder.store
	if err := s.declareBuiltIn(ctx); err != nil {
		return fmt.Errorf("declaring the operators' API: %w", err)
	}
	stored, err := db.Setting(ctx, s.ofReplica(settingProfile))
	if err == nil {
		s.operatorDir = stored
		err = s.refreshOperator(ctx)
		if errors.Is(err, outbox.ErrNotReady) { // renewOwn tries again
			s.log.Error("the first operator's profile was not renewed", "error", err)
			return nil
		}
		return err
	}
	if !isNotFound(err) {
		return fmt.Errorf("reading settings: %w", err)
	}
	first := s.firstOperator()
	registrar := ""
	event := audit.Event{Name: "client.add", Client: first.ID, Scope: first.Scopes, Detail: map[string]string{"built_in": "true"}}
	err = changeOnce(ctx, s.folder.outbox, event, func(tx *store.Store) (bool, error) {
		if registrar, err = tx.Setting(ctx, settingOperator); !isNotFound(err) {
			return false, err
		}
		if registrar, err = tx.SetOnce(ctx, settingOperator, s.replica.Replica); err != nil {
			return false, err
		}
		_, err := tx.AddClient(ctx, first, nil)
		return true, err
	})
	if err != nil {
		return fmt.Errorf("registering the first operator: %w", err)
	}
	// A profile elsewhere is the operator's from then on: we lay it down once and do not keep it fresh. A replica that came
	// later has none of its own unless it is asked for.
	dir, keep := s.cfg.AdminProfile, ""
	if dir == "" && registrar == s.replica.Replica {
		dir, keep = filepath.Join(s.cfg.Data, "admin"), "admin"
	}
	if dir != "" {
		if err := s.writeOperator(ctx, dir); err != nil {
			return err
		}
	}
	s.operatorDir, err = db.SetOnce(ctx, s.ofReplica(settingProfile), keep)
	return err
}

// declareBuiltIn registers the service's own resources, where they are not yet.
func (s *service) declareBuiltIn(ctx context.Context) error {
	for _, r := range s.builtInResources() {
		_, err := s.folder.store.Resource(ctx, r.URI)
		if err == nil {
			continue
		}
		if !isNotFound(err) {
			return err
		}
		event := audit.Event{Name: "resource.add", Resource: r.URI, Scope: r.Scopes, Detail: map[string]string{"built_in": "true"}}
		err = changeOnce(ctx, s.folder.outbox, event, func(tx *store.Store) (bool, error) {
			if _, err := tx.Resource(ctx, r.URI); !isNotFound(err) {
				return false, err
			}
			return true, tx.AddResource(ctx, r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// firstOperator is the client that every installation begins with.
func (s *service) firstOperator() store.Client {
	return store.Client{
		ID: operatorID, AuthMethod: "tls_client_auth", Usage: "client",
		SubjectKind: string(mtls.SANURI), SubjectValue: pki.ClientURI(s.identity.trustDomain, operatorID),
		Scopes: []string{scopeAdmin}, Resources: []string{s.adminResource()}, BuiltIn: true,
	}
}

// refreshOperator replaces the profile in the data folder when it is past half its life, also when it has
// lapsed: an operator who comes back after a month finds it good.
func (s *service) refreshOperator(ctx context.Context) error {
	if s.operatorDir == "" {
		return nil
	}
	dir := filepath.Join(s.cfg.Data, s.operatorDir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		s.log.Warn("the operator's profile was moved away: it is no longer kept fresh", "folder", dir)
		s.operatorDir, s.operatorDue = "", time.Time{}
		return nil
	}
	p, err := profile.Open(dir)
	_, lapsed := errors.AsType[*profile.LapsedError](err)
	switch {
	case lapsed:
	case err != nil:
		return fmt.Errorf("reading the operator's profile: %w", err)
	case time.Now().Before(halfLife(p.Certificate())):
		s.operatorDue = halfLife(p.Certificate())
		return nil
	}
	client, err := s.folder.store.Client(ctx, operatorID)
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("reading the first operator: %w", err)
	}
	// Other operators may have disabled or removed the first one, and given its name to somebody else: then
	// there is nothing to keep fresh, and no reason not to start.
	if err != nil || client.Disabled || !client.BuiltIn {
		s.log.Warn("the first operator is disabled or removed: its profile is not kept fresh", "folder", dir)
		s.operatorDue = time.Time{}
		return nil
	}
	return s.writeOperator(ctx, dir)
}

func (s *service) writeOperator(ctx context.Context, dir string) error {
	cert, err := s.authority.IssueDirectly(ctx, operatorID)
	if err != nil {
		return err
	}
	s.operatorDue = halfLife(cert.Leaf)
	chain := make([]*x509.Certificate, 0, len(cert.Certificate))
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("reading the operator's certificate: %w", err)
		}
		chain = append(chain, c)
	}
	return profile.Write(ctx, dir, profile.Files{
		ClientID: operatorID, Issuer: s.identity.issuer, MTLSURL: s.identity.mtlsURL,
		TokenEndpoint: s.identity.mtlsURL + pathToken,
		Roots:         []*x509.Certificate{s.root}, Chain: chain, Key: cert.PrivateKey.(crypto.Signer),
	})
}

func isNotFound(err error) bool { return errors.Is(err, store.ErrNotFound) }
