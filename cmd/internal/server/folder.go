// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"crypto/rand"
	"encoding/base32"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/outbox"
	"github.com/certbound/certbound/cmd/internal/store"
)

// folder is the data folder, locked, with its database and journal open.
type folder struct {
	store   *store.Store
	journal *audit.Log
	outbox  *outbox.Box // joins changes of the one with records in the other
}

// identity is what the installation is called. Everything in it is stored at the first start, because
// tokens, certificates and profiles that are out there repeat it.
type identity struct {
	issuer, trustDomain string
	mtlsURL             string
}

// sockets are bound before anything is made, since the identity may depend on a port chosen by the
// kernel.
type sockets struct{ public, mtls, debug net.Listener }

// journalFolder holds the journal, below the data folder.
const journalFolder = "audit"

// names of the settings that are written once.
const (
	settingIssuer      = "issuer"
	settingTrustDomain = "trust_domain"
	settingOperator    = "first_operator" // names the replica that registered it

	settingInstallation = "journal_installation" // both are random names
	settingReplica      = "journal_replica"      // of a database in the data folder
)

// names of the settings that each replica has for itself, written once.
const (
	settingPublicPort = "public_port"
	settingMTLSPort   = "mtls_port"
	settingProfile    = "operator_profile"
	settingCAFiles    = "ca_files"
)

// open locks the data folder and opens what lies in it.
func (s *service) open(ctx context.Context) error {
	data := s.cfg.Data
	had, err := os.ReadDir(data)
	made := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	lock, err := store.Lock(data)
	if err != nil {
		return err
	}
	s.onClose(lock.Unlock)
	s.onClose(func() error { return s.leaveNothing(made, had) })
	if err := s.openReserve(); err != nil {
		return err
	}
	at := store.Config{Path: filepath.Join(data, store.FileName)}
	source := kekSource(s.cfg)
	if s.shares() {
		at = store.Config{URL: s.cfg.Database, MaxConnections: s.cfg.DatabaseConnections}
		WarnOfDatabase(ctx, s.log, at)
		source.Found = func() (bool, error) { return store.Exists(ctx, at) }
	}
	if err := checkNotLost(ctx, data, at); err != nil {
		return err
	}
	database := store.Place(at)
	kekFile := filepath.Join(data, "kek")
	_, err = os.Stat(kekFile)
	isNew := errors.Is(err, os.ErrNotExist)
	if at.KEK, err = store.LoadKEK(data, database, source); err != nil {
		return err
	}
	at.MaxTokenLife, at.FileTrusts, at.Fatal, at.Logger = s.cfg.Token.MaxLifetime, s.fileTrusts(), s.mustEnd, s.log
	db, err := s.openStore(ctx, at)
	if errors.Is(err, store.ErrWrongKEK) && isNew && source.Value == "" && source.File == "" {
		// Another replica made the database since we looked. What was made for it here is nobody's.
		return errors.Join(&StartError{
			Message: fmt.Sprintf("another replica has just made the database %s, with a key-encryption key of its own", database),
			Hint:    "copy its key-encryption key to " + kekFile + ", or give both the same one in CERTBOUND_KEK, and start again",
		}, os.Remove(kekFile))
	}
	if errors.Is(err, store.ErrWrongKEK) {
		return s.wrongKEK(source, kekFile, database)
	}
	if err != nil {
		return err
	}
	s.onClose(db.Close)
	journal, err := s.openJournal(ctx, db)
	if err != nil {
		return err
	}
	s.folder = &folder{store: db, journal: journal}
	s.onClose(s.closeJournal)
	s.recordLoss(ctx)
	db.OnChange(s.forgetErased)
	if err := s.bind(ctx); err != nil {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	if err := s.openOutbox(ctx); err != nil {
		return err
	}
	return s.identify(ctx)
}

// wrongKEK says which key does not open the database.
func (s *service) wrongKEK(source store.KEKSource, file, database string) error {
	where := "in " + cmp.Or(source.File, file)
	if source.Value != "" {
		where = "in CERTBOUND_KEK"
	}
	hint := "put back the key that belongs to this database: without it no stored private key can be read"
	if s.shares() {
		hint = "every replica needs the key of the first one: put it there; if the database is another installation's, name the right one with --database"
	}
	return &StartError{Message: fmt.Sprintf("the key-encryption key %s does not open %s", where, database), Hint: hint}
}

// leaveNothing removes what locking the folder and keeping room on its disk have made, when this start has come no further:
// whoever names the wrong folder finds it as it was. made says whether the folder is new, and had what was in it.
func (s *service) leaveNothing(made bool, had []os.DirEntry) error {
	if s.folder != nil {
		return nil
	}
	was := func(name string) bool {
		return slices.ContainsFunc(had, func(e os.DirEntry) bool { return e.Name() == name })
	}
	has, err := os.ReadDir(s.cfg.Data)
	if err != nil {
		return err
	}
	ours := []string{"lock", "reserve"}
	for _, e := range has {
		if name := e.Name(); !was(name) && name != "kek" && !slices.Contains(ours, name) {
			return nil // there is more
		}
	}
	for _, name := range ours {
		if was(name) {
			continue
		}
		if err := os.Remove(filepath.Join(s.cfg.Data, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if made && len(has) <= len(ours) {
		_ = os.Remove(s.cfg.Data) // unless a key is in it
	}
	return nil
}

// checkNotLost refuses to begin anew where an installation has been: without its database, everything that is out there
// would be of another CA. The folders it looks for are made after the database, so a first start that died has none.
func checkNotLost(ctx context.Context, data string, at store.Config) error {
	if found, err := store.Exists(ctx, at); err != nil || found {
		return err
	}
	database := store.Place(at)
	for _, name := range []string{replicaFile, "ca", "audit", "admin"} {
		if _, err := os.Stat(filepath.Join(data, name)); err == nil {
			return &StartError{
				Message: fmt.Sprintf("the database %s is missing, but %s shows that there was one", database, filepath.Join(data, name)),
				Hint:    "put the database back (certbound store restore makes one of a backup); to begin anew, choose another folder with --data",
			}
		}
	}
	return nil
}

// bind listens. Port 0 means "any, and from then on the same", so that what clients were told stays true
// after a restart.
func (s *service) bind(ctx context.Context) error {
	for _, l := range []struct {
		name, address, setting string
		into                   *net.Listener
	}{
		{"public", s.cfg.Public, settingPublicPort, &s.sockets.public},
		{"mtls", s.cfg.MTLS, settingMTLSPort, &s.sockets.mtls},
		{"debug", s.cfg.Debug, "", &s.sockets.debug},
	} {
		if l.address == "" { // only the debug listener may be left out
			continue
		}
		address, err := s.samePort(ctx, l.address, l.setting)
		if err != nil {
			return err
		}
		// Keep-alive probes cost every connection four system calls, those that are refused at once too. The timeouts end
		// what is silent sooner.
		listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("the %s listener: %w", l.name, err)
		}
		*l.into = listener
		s.onClose(func() error { return ignoreClosed(listener.Close()) })
		if address != l.address || l.setting == "" || port(l.address) != "0" {
			continue
		}
		bound := port(listener.Addr().String())
		if _, err := s.folder.store.SetOnce(ctx, s.ofReplica(l.setting), bound); err != nil {
			return fmt.Errorf("remembering the port of the %s listener: %w", l.name, err)
		}
	}
	return nil
}

// samePort replaces port 0 by the one that was bound at the first start.
func (s *service) samePort(ctx context.Context, address, setting string) (string, error) {
	if setting == "" || port(address) != "0" {
		return address, nil
	}
	stored, err := s.folder.store.Setting(ctx, s.ofReplica(setting))
	if errors.Is(err, store.ErrNotFound) {
		return address, nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the port of the first start: %w", err)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("the address %q: %w", address, err)
	}
	return net.JoinHostPort(host, stored), nil
}

// identify settles issuer and trust domain: as stored, else as configured, else as derived.
func (s *service) identify(ctx context.Context) error {
	configured := ""
	if s.cfg.Explicit("issuer") {
		configured = s.cfg.Issuer
	}
	issuer, err := s.once(ctx, settingIssuer, configured, s.wantedIssuer())
	if err != nil {
		return err
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return fmt.Errorf("the stored issuer %q: %w", issuer, err)
	}
	derived, err := deriveTrustDomain(u.Hostname())
	if err != nil {
		return err
	}
	if s.cfg.TrustDomain != "" {
		derived = s.cfg.TrustDomain
	}
	domain, err := s.once(ctx, settingTrustDomain, s.cfg.TrustDomain, derived)
	if err != nil {
		return err
	}
	s.identity = identity{issuer: issuer, trustDomain: domain, mtlsURL: s.cfg.MTLSURL}
	if s.identity.mtlsURL == "" {
		s.identity.mtlsURL, err = s.derivedMTLSURL(issuer)
	}
	return err
}

// wantedIssuer is the issuer of a first start.
func (s *service) wantedIssuer() string {
	if s.cfg.Explicit("issuer") {
		return s.cfg.Issuer
	}
	return "https://localhost:" + port(s.sockets.public.Addr().String())
}

// derivedMTLSURL is the issuer's host with the port of the mtls listener.
func (s *service) derivedMTLSURL(issuer string) (string, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return "", fmt.Errorf("the issuer %q: %w", issuer, err)
	}
	return "https://" + net.JoinHostPort(u.Hostname(), port(s.sockets.mtls.Addr().String())), nil
}

// once stores a value at the first start and refuses a different one later.
func (s *service) once(ctx context.Context, setting, configured, wanted string) (string, error) {
	stored, err := s.folder.store.Setting(ctx, setting)
	if isNotFound(err) {
		event := audit.Event{Name: "setting.set", Detail: map[string]string{setting: wanted}}
		err = changeOnce(ctx, s.folder.outbox, event, func(tx *store.Store) (first bool, err error) {
			if stored, err = tx.Setting(ctx, setting); !isNotFound(err) {
				return false, err
			}
			stored, err = tx.SetOnce(ctx, setting, wanted)
			return true, err
		})
	}
	if err != nil {
		return "", fmt.Errorf("settling the %s: %w", setting, err)
	}
	if configured != "" && configured != stored {
		return "", s.another(setting, stored, configured)
	}
	return stored, nil
}

// another refuses a configuration that asks for another identity than the stored one.
func (s *service) another(setting, stored, configured string) error {
	whose, hint := "data folder "+s.cfg.Data, "choose another folder with --data"
	if s.shares() {
		whose, hint = "database "+s.databaseName(), "name another database with --database"
	}
	return &StartError{
		Message: fmt.Sprintf("the %s belongs to the %s %s, not to %s", whose, strings.ReplaceAll(setting, "_", " "), stored, configured),
		Hint:    "leave the setting out to go on with what was stored, or " + hint,
	}
}

// StartError is a refusal to start, or to go on, that the operator can do something about.
type StartError struct {
	Message, Hint string
	Err           error // what it is made of; may be nil
}

func (e *StartError) Error() string { return e.Message }

// Unwrap returns what it is made of.
func (e *StartError) Unwrap() error { return e.Err }

// deriveTrustDomain puts a random label before the host, so that two installations never share a trust
// domain by accident; addresses and localhost belong to nobody, so an internal name stands for them.
func deriveTrustDomain(host string) (string, error) {
	var b [5]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("choosing a trust domain: %w", err)
	}
	label := strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	if net.ParseIP(host) != nil || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		host = "certbound.internal"
	}
	return label + "." + strings.ToLower(host), nil
}

// port is the port of a host:port, empty when there is none.
func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if n, err := strconv.Atoi(p); err == nil {
		return strconv.Itoa(n)
	}
	return p
}

// ignoreClosed forgives closing what Shutdown closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
