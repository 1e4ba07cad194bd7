// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
)

// The settings that the service writes and this package needs.
const (
	settingTrustDomain = "trust_domain"
	settingReplica     = "journal_replica"
	replicaFile        = "replica.json"
)

// The methods of authentication (RFC 8705, Section 2).
const (
	byCA          = "tls_client_auth"
	byCertificate = "self_signed_tls_client_auth"
	byAssertion   = "private_key_jwt"
)

// prepare reads what the records do not say.
func (r *run) prepare(tx *store.Replay) error {
	var err error
	if r.trust, err = tx.Setting(settingTrustDomain); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return r.nameReplica(tx)
}

// nameReplica finds out in whose outbox the record has to lie: the one of the data folder, else whoever serves first.
func (r *run) nameReplica(tx *store.Replay) error {
	if r.Target.Replica != "" {
		return nil // the Store was opened for it
	}
	if r.Target.URL != "" {
		return tx.As("restore") // nobody has a lease of that name: whoever serves takes it over
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(r.Target.Path), replicaFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var id struct{ Replica string }
	if err == nil {
		if err := json.Unmarshal(text, &id); err != nil || id.Replica == "" {
			return fmt.Errorf("the file %s beside the database is damaged", replicaFile)
		}
		return tx.As(id.Replica)
	}
	name, err := tx.Setting(settingReplica)
	if errors.Is(err, store.ErrNotFound) {
		name = strings.ToLower(rand.Text())
		err = tx.SetOnce(settingReplica, name)
	}
	if err != nil {
		return err
	}
	return tx.As(name)
}

// takesForGood reports whether a record says that something was taken away which never comes back: it is done again also
// where the database should have it.
func takesForGood(e *audit.Entry) bool {
	return e.Version > 0 && e.Outcome == audit.Granted && (e.Name == "cert.revoke" || e.Name == "token.revoke")
}

// gives reports whether what a record says gave somebody something.
func gives(name string) bool {
	switch name {
	case "client.add", "client.enable", "resource.add", "cert.renew", "cert.direct", "setting.set":
		return true
	}
	return false
}

// again makes the change of one record again.
func (r *run) again(ctx context.Context, tx *store.Replay, e *audit.Entry, file string) error {
	if e.Outcome != audit.Granted {
		return nil // beside another record of the same change, such as a suspension that could not be
	}
	lesser := r.lesser[filepath.Dir(file)]
	if lesser && gives(e.Name) {
		r.undone("%s of %s: its journal is not what was written, so it gives nothing", e.Name, subject(e))
		return nil
	}
	made, err := r.change(ctx, tx, e, lesser)
	if err != nil {
		return fmt.Errorf("record %d in %s (%s): %w", e.Seq, file, e.Name, err)
	}
	if made {
		r.report.Done[e.Name]++
	}
	return nil
}

// subject is what a record is about.
func subject(e *audit.Entry) string {
	for _, s := range []string{e.Client, e.Resource, e.Detail["trust"], e.Detail["kid"]} {
		if s != "" {
			return strconv.Quote(s)
		}
	}
	return "the service"
}

func (r *run) change(ctx context.Context, tx *store.Replay, e *audit.Entry, lesser bool) (bool, error) {
	switch e.Name {
	case "cert.enroll", "cert.renew", "cert.direct":
		return r.issue(tx, e, lesser)
	case "cert.revoke":
		return r.revoke(tx, e)
	case "client.add":
		return true, r.addClient(ctx, tx, e)
	case "client.certificates":
		return true, r.certificates(tx, e)
	case "client.disable", "client.suspend":
		return r.client(tx.Disable(e.Client))
	case "client.enable":
		if r.partial[e.Client] {
			return false, nil
		}
		return r.client(tx.Enable(e.Client))
	case "client.remove":
		delete(r.partial, e.Client)
		return r.client(tx.Remove(e.Client, e.Time))
	case "client.invite":
		if e.Detail["restored"] == "" {
			return false, nil // every open code is void anyway
		}
		r.undone("client %q was made an operator again, with a code that is void now: certbound client invite %s on the socket makes another", e.Client, e.Client)
		return r.client(tx.Supersede(e.Client, e.Time))
	case "resource.add":
		if e.Truncated {
			r.undone("resource %q: its record was cut; certbound resource add registers it", e.Resource)
			return false, nil
		}
		return true, tx.AddResource(store.Resource{URI: e.Resource, Scopes: e.Scope, Servers: words(e.Detail["servers"]),
			BuiltIn: e.Detail["built_in"] == "true", CreatedAt: e.Time})
	case "resource.remove":
		return true, tx.RemoveResource(e.Resource)
	case "trust.add", "trust.replace", "trust.remove":
		return r.changeTrust(tx, e)
	case "token.revoke":
		id := e.TokenID
		if e.Detail["changed"] == "all" {
			id = ""
		}
		return true, tx.RevokeToken(e.Client, id, e.Expires, e.Time)
	case "audit.erase":
		return true, tx.EraseSubject(e.Client)
	case "setting.set":
		for name, value := range e.Detail {
			if err := tx.SetOnce(name, value); err != nil {
				return false, err
			}
		}
		return true, nil
	case "key.create":
		return false, r.keyCreated(tx, e)
	case "key.activate":
		return r.keyActivated(tx, e)
	case "key.retire":
		if e.Detail["emergency"] != "" {
			if err := tx.DenyKey(e.Detail["kid"], e.Time); err != nil {
				return false, err
			}
		}
		return true, tx.RemoveKey("signing", e.Detail["kid"])
	case "ca.create":
		r.lose("the CA whose issuing certificate has the serial number %s was made after the backup: its keys are gone", e.Serial)
		return false, nil
	case "approval.request", "approval.reject", "inventory.prune", "renew.fork", "store.restore", "store.migrate", "store.migrate.cancel",
		"key.rewrap":
		return false, nil // what waited for an operator is dropped anyway, and alarms change nothing
	}
	r.lose("record %d says %s of %s, which this program does not know: it cannot be made again", e.Seq, e.Name, subject(e))
	return false, nil
}

// client is whether a client was there to be changed.
func (r *run) client(found bool, err error) (bool, error) { return found, err }

// issue makes a certificate known again, and the code used that it was issued for. A journal that is not to be believed
// still uses codes up.
func (r *run) issue(tx *store.Replay, e *audit.Entry, lesser bool) (bool, error) {
	cert, err := certificateOf(e)
	if err != nil {
		r.undone("the certificate %s of client %q cannot be made known again (%v): it has to enrol once more", e.Serial, e.Client, err)
		return false, nil
	}
	if text := e.Detail["code"]; text != "" {
		var id [8]byte
		if n, err := hex.Decode(id[:], []byte(text)); err != nil || n != len(id) || len(text) != 2*len(id) {
			return false, fmt.Errorf("%q is no code's id", text)
		}
		if err := tx.UseCode(id, e.Time, cert.KeyHash, cert.Thumbprint); err != nil {
			return false, err
		}
	}
	if lesser {
		r.undone("the certificate %s of client %q: its journal is not what was written, so it has to enrol once more", e.Serial, e.Client)
		return false, nil
	}
	known, err := tx.AddCertificate(cert)
	if err == nil && !known {
		r.undone("the certificate %s is of client %q, which is not known: it has to be registered and to enrol once more", e.Serial, e.Client)
	}
	return known, err
}

// certificateOf is the row of a certificate by its record. Its DER is lost, so that it cannot be handed out again.
func certificateOf(e *audit.Entry) (store.Certificate, error) {
	cert := store.Certificate{Serial: e.Serial, ClientID: e.Client, NotAfter: e.Expires, CreatedAt: e.Time}
	var err error
	if cert.Thumbprint, err = hash(e.Thumbprint); err != nil {
		return cert, err
	}
	if cert.KeyHash, err = hash(e.Detail["key"]); err != nil {
		return cert, err
	}
	if cert.NotBefore, err = time.Parse(time.RFC3339, e.Detail["not_before"]); err != nil {
		return cert, errors.New("its record does not say since when it is valid")
	}
	if cert.Generation, err = strconv.ParseUint(e.Detail["generation"], 10, 64); err != nil {
		return cert, errors.New("its record does not say of which generation it is")
	}
	if from := e.Detail["renewed_from"]; from != "" {
		if cert.RenewedFrom, err = hash(from); err != nil {
			return cert, err
		}
	}
	if cert.Serial == "" || cert.ClientID == "" || cert.NotAfter.IsZero() {
		return cert, errors.New("its record lacks a member")
	}
	return cert, nil
}

// hash reads 32 bytes of base64url.
func hash(text string) (h [32]byte, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(h) {
		return h, errors.New("its record has no SHA-256 where one belongs")
	}
	return [32]byte(raw), nil
}

// revoke takes a certificate away again, blocks its key where it was blocked, and disables whom it left with nothing.
func (r *run) revoke(tx *store.Replay, e *audit.Entry) (bool, error) {
	reason, err := pki.ParseReason(e.Detail["reason"])
	if err != nil {
		reason = pki.Unspecified
	}
	switch e.Detail["changed"] {
	case "nothing":
		return false, nil
	case "disabled":
		if e.Version <= r.report.Since {
			return false, nil // the database has it, or what came after it
		}
		return r.client(tx.Disable(e.Client))
	}
	if reason == pki.KeyCompromise {
		key, err := hash(e.Detail["key"])
		if err != nil {
			return false, err
		}
		if err := tx.Block(key, e.Time); err != nil {
			return false, err
		}
	}
	if e.Detail["changed"] == "blocked" {
		return true, nil
	}
	thumbprint, err := hash(e.Detail["x5t#S256"])
	if err != nil {
		return false, err
	}
	return tx.Revoke(thumbprint, int(reason), e.Time)
}

// certificates leaves a client, of those that it had registered, the ones that the record lists. New ones are not in it.
func (r *run) certificates(tx *store.Replay, e *audit.Entry) error {
	listed := words(e.Detail["x5t#S256"])
	kept, err := tx.KeepCertificates(e.Client, func(t [32]byte) bool { return slices.Contains(listed, mtls.Thumbprint(t).String()) })
	if err != nil {
		return err
	}
	if len(kept) < len(listed) {
		r.undone("client %q registered certificates that are not in its journal: certbound client certs registers them again; it keeps %d, and with none it is disabled",
			e.Client, len(kept))
	}
	if len(kept) == 0 {
		r.partial[e.Client] = true
	}
	return nil
}

// changeTrust removes a foreign CA: the journal names its certificates and does not have them. Until it is added again
// whoever names it is refused.
func (r *run) changeTrust(tx *store.Replay, e *audit.Entry) (bool, error) {
	name := e.Detail["trust"]
	if name == "" {
		return false, errors.New("it names no trust")
	}
	if e.Name != "trust.remove" {
		r.undone("the foreign CA %q was added or replaced: its certificates are not in the journal; certbound trust add %s --ca FILE adds it again, and until then its clients are refused",
			name, name)
	}
	return true, tx.RemoveTrust(name)
}

func (r *run) keyCreated(tx *store.Replay, e *audit.Entry) error {
	known, err := tx.HasKey("signing", e.Detail["kid"])
	if err == nil && !known {
		r.report.LostKeys = append(r.report.LostKeys, e.Detail["kid"])
	}
	return err
}

// keyActivated takes the keys out of use that the database still signs with, and has the one sign that the record names. When
// that one is lost, the next start makes another: what was taken out of use does not come back into it.
func (r *run) keyActivated(tx *store.Replay, e *audit.Entry) (bool, error) {
	until, err := time.Parse(time.RFC3339Nano, e.Detail["until"])
	if err != nil {
		until = e.Time // it has replaced none
	}
	return true, tx.ActivateKey("signing", e.Detail["kid"], e.Time, until)
}

// addClient registers a client again. What the journal sealed, or does not carry, may be missing: then the client is there,
// so that nobody else gets its id, and disabled.
func (r *run) addClient(ctx context.Context, tx *store.Replay, e *audit.Entry) error {
	client, err := r.clientOf(ctx, e)
	lacks := err != nil
	if lacks {
		r.undone("client %q is registered again, but disabled, because %v: certbound client remove it, and add it again", e.Client, err)
		r.partial[e.Client], client.Disabled = true, true
	}
	err = tx.AddClient(client)
	if errors.Is(err, store.ErrNameTaken) || errors.Is(err, store.ErrKeyTaken) || errors.Is(err, store.ErrCertificateTaken) || errors.Is(err, store.ErrKeyBlocked) {
		if !lacks {
			r.undone("client %q is registered again, but disabled, because %v: certbound client remove it, and add it again", e.Client, err)
		}
		r.partial[e.Client] = true
		err = tx.AddClient(store.Client{ID: e.Client, AuthMethod: byCertificate, Usage: "client", Disabled: true, CreatedAt: e.Time})
	}
	return err
}

// clientOf is a client by its record. With an error it is one that nobody can be, but for its id.
func (r *run) clientOf(ctx context.Context, e *audit.Entry) (store.Client, error) {
	d := e.Detail
	nobody := store.Client{ID: e.Client, AuthMethod: byCertificate, Usage: "client", CreatedAt: e.Time}
	client := store.Client{
		ID: e.Client, AuthMethod: d["auth_method"], Usage: d["usage"], Scopes: e.Scope, Resources: words(d["resources"]),
		DNS: words(d["dns_names"]), URIs: words(d["uris"]), Trust: d["trust"], JWKSURI: d["jwks_uri"], CreatedAt: e.Time,
		BuiltIn: d["built_in"] == "true",
	}
	switch {
	case e.Truncated:
		return nobody, errors.New("its record was cut")
	case client.BuiltIn: // the first operator's
		client.AuthMethod, client.Usage = byCA, "client"
		client.Resources = nil
	case client.AuthMethod == "" || client.Usage == "":
		return nobody, errors.New("its record does not say what it is")
	}
	if ttl := d["token_ttl"]; ttl != "" {
		var err error
		if client.TokenTTL, err = time.ParseDuration(ttl); err != nil {
			return nobody, errors.New("its record does not say how long its tokens live")
		}
	}
	sealed, err := r.unseal(ctx, e)
	if err != nil {
		return nobody, err
	}
	client.IPs = words(sealed["ip_addresses"])
	switch {
	case client.AuthMethod == byCertificate && client.JWKSURI == "":
		return nobody, errors.New("its certificates are not in the journal")
	case client.AuthMethod == byAssertion && client.JWKSURI == "":
		return nobody, errors.New("its keys are not in the journal")
	case client.AuthMethod == byCertificate, client.AuthMethod == byAssertion:
		return client, nil
	case client.Trust == "":
		client.SubjectKind, client.SubjectValue = string(mtls.SANURI), pki.ClientURI(r.trust, client.ID)
		return client, nil
	}
	for _, kind := range []mtls.SubjectKind{mtls.SubjectDN, mtls.SANDNS, mtls.SANURI, mtls.SANIP, mtls.SANEmail} {
		for _, members := range []map[string]string{d, sealed} {
			if value := members[string(kind)]; value != "" {
				client.SubjectKind, client.SubjectValue = string(kind), value
			}
		}
	}
	if client.SubjectKind == "" {
		return nobody, errors.New("its record does not say by what it is recognised")
	}
	return client, nil
}

// unseal returns what a registration says of a person, as far as it says so: an error when that cannot be read.
func (r *run) unseal(ctx context.Context, e *audit.Entry) (map[string]string, error) {
	names := words(e.Detail["sealed_members"])
	if len(names) == 0 {
		return nil, nil
	}
	members := e.Personal
	if e.Sealed != "" {
		opened, err := audit.NewOpener(r.keys).Open(ctx, e.Sealed, e.Time, e.Client, e.Actor)
		if err != nil && !errors.Is(err, audit.ErrErased) && !errors.Is(err, audit.ErrUnsealed) {
			return nil, fmt.Errorf("%s cannot be read: %w", strings.Join(names, ", "), err)
		}
		members = opened.Members
	}
	for _, name := range names {
		if members[name] == "" {
			return nil, fmt.Errorf("%s was sealed under a key that is not in the backup", strings.Join(names, ", "))
		}
	}
	return members, nil
}
