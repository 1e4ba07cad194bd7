// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens/issuer"
)

// The scopes whose last holder must stay: without them nobody could give administrators' scopes any more. All of
// authorityPrefix are administrators'.
const (
	scopeAdmin      = "certbound:admin"
	scopeGrant      = "certbound:grant"
	authorityPrefix = "certbound:"
)

// The methods of authentication (RFC 8705, Section 2).
const (
	methodCA         = "tls_client_auth"
	methodSelfSigned = "self_signed_tls_client_auth"
	methodAssertion  = "private_key_jwt"
)

// The kinds of client_refs.
const (
	refScope    = "scope"
	refResource = "resource"
	refSubject  = "subject" // a name by which certificates of a foreign CA are recognised, in the form of nameRef
)

// AddClient registers a client, with its first enrolment code unless code is nil, whose ClientID and Generation are
// set here. It returns the client as stored: Generation is 1, or one more than that of the removed client which had the
// id.
//
// One of four vouches for it: our CA; a foreign one, with Trust and a subject; with the method
// self_signed_tls_client_auth either Certificates or JWKSURI; or with private_key_jwt either JWKS or JWKSURI. Only the first may have a code. Errors: ErrExists, a
// ReservedError, a NameTakenError (also for a subject or a JWKSURI), ErrUnknownTrust, a CertificateTakenError,
// ErrKeyTaken, ErrKeyBlocked, ErrNotEnrolled, ErrAuthority.
func (s *Store) AddClient(ctx context.Context, client Client, code *Code) (Client, error) {
	if client.AuthMethod == "" {
		client.AuthMethod = methodCA
	}
	if err := client.check(); err != nil {
		return Client{}, fmt.Errorf("add client %q: %w", client.ID, err)
	}
	if code != nil && !client.enrols() {
		return Client{}, fmt.Errorf("add client %q: %w", client.ID, ErrNotEnrolled)
	}
	err := s.change(ctx, func(c *change) error {
		previous, err := c.lockClient(client.ID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err == nil {
			if err := s.checkReserved(c, previous); err != nil {
				return err
			}
		}
		if err := s.checkTrust(c, client.Trust); err != nil {
			return err
		}
		if err := freeNames(c.ctx, c.tx, client); err != nil {
			return err
		}
		client = s.newClient(client, previous.Generation+1)
		if err := c.writeClient(client); err != nil {
			return err
		}
		if code == nil {
			return nil
		}
		first := *code
		first.ClientID, first.Generation = client.ID, client.Generation
		return s.addCode(c, first)
	})
	if err != nil {
		return Client{}, fmt.Errorf("add client %q: %w", client.ID, err)
	}
	return client, nil
}

// enrols reports whether our own CA vouches for the client.
func (client *Client) enrols() bool { return client.AuthMethod == methodCA && client.Trust == "" }

// grants reports whether the client may give administrators' scopes.
func (client *Client) grants() bool {
	return slices.Contains(client.Scopes, scopeAdmin) || slices.Contains(client.Scopes, scopeGrant)
}

// check refuses a client for which nothing, or more than one thing, vouches.
func (client *Client) check() error {
	if client.ID == "" {
		return errors.New("a client needs an id")
	}
	if !storable(client.ID) {
		return errors.New("a client's id is UTF-8")
	}
	hasSubject := client.SubjectKind != "" && client.SubjectValue != ""
	switch {
	case (client.SubjectKind != "" || client.SubjectValue != "") && !hasSubject:
		return errors.New("a subject needs a kind and a value")
	case client.AuthMethod != methodAssertion && client.JWKS != "":
		return errors.New("only a client that signs assertions registers keys")
	case client.AuthMethod == methodCA && (len(client.Certificates) > 0 || client.JWKSURI != ""):
		return errors.New("a client that a CA vouches for registers no certificates")
	case client.AuthMethod == methodCA && client.Trust != "" && !hasSubject:
		return errors.New("a client of a foreign CA needs a subject")
	case client.AuthMethod == methodCA:
		return client.checkAuthority()
	case client.AuthMethod == methodAssertion:
		return client.checkAssertion()
	case client.AuthMethod != methodSelfSigned:
		return fmt.Errorf("unknown method %q", client.AuthMethod)
	case client.Trust != "" || hasSubject:
		return errors.New("a client with its own certificate has neither a trust nor a subject")
	case (len(client.Certificates) > 0) == (client.JWKSURI != ""):
		return errors.New("a client with its own certificate needs either certificates or a place that has them")
	}
	return client.checkAuthority()
}

// checkAssertion judges a client that signs assertions, whatever certificate it shows.
func (client *Client) checkAssertion() error {
	switch {
	case client.Trust != "" || client.SubjectKind != "" || len(client.Certificates) > 0:
		return errors.New("a client that signs assertions is recognised by nothing else")
	case (client.JWKS != "") == (client.JWKSURI != ""):
		return errors.New("a client that signs assertions needs either keys or a place that has them")
	}
	return client.checkAuthority()
}

// checkAuthority refuses administrators' scopes to whom others can make certificates for.
func (client *Client) checkAuthority() error {
	if client.enrols() || len(client.Certificates) > 0 {
		return nil
	}
	if slices.ContainsFunc(client.Scopes, func(s string) bool { return strings.HasPrefix(s, authorityPrefix) }) {
		return ErrAuthority
	}
	return nil
}

// newClient returns the client in the form in which it is stored.
func (s *Store) newClient(client Client, generation uint64) Client {
	client.Generation = generation
	client.RemovedAt = time.Time{}
	client.CreatedAt = asStored(s.now())
	client.UpdatedAt = client.CreatedAt
	for _, l := range []*[]string{&client.DNS, &client.IPs, &client.URIs, &client.Scopes, &client.Resources} {
		*l = normal(*l)
	}
	if len(client.Certificates) == 0 {
		client.Certificates = nil
	}
	return client
}

// normal returns a copy of l, nil when it is empty, as it will come back from the database.
func normal(l []string) []string {
	if len(l) == 0 {
		return nil
	}
	return slices.Clone(l)
}

// checkReserved refuses the id of a live client, and of a removed one while its credentials may be valid: until its
// last certificate and the longest token under it have expired.
func (s *Store) checkReserved(c *change, previous Client) error {
	if previous.RemovedAt.IsZero() {
		return ErrExists
	}
	var last time.Time
	if err := c.tx.QueryRowContext(c.ctx, queryLastExpiry, previous.ID).Scan((*moment)(&last)); err != nil {
		return err
	}
	if !previous.enrols() && last.Before(previous.RemovedAt) {
		last = previous.RemovedAt // its certificates are not ours to know, but its tokens are
	}
	if last.IsZero() {
		return nil // it never enrolled
	}
	if until := last.Add(s.maxLife); s.now().Before(until) {
		return &ReservedError{ClientID: previous.ID, Until: until}
	}
	return nil
}

func (c *change) writeClient(client Client) error {
	n, err := c.exec("clients", upsertClient, append(client.values(), client.grants())...)
	if err != nil {
		return err
	}
	if n == 0 {
		return ErrExists
	}
	c.changedClient(client.ID)
	if err := c.claimNames(client); err != nil {
		return err
	}
	if err := c.claimCertificates(client.ID, client.Certificates); err != nil {
		return err
	}
	for _, scope := range client.Scopes {
		if _, err := c.link(insertRef, client.ID, refScope, scope); err != nil {
			return err
		}
	}
	for _, resource := range client.Resources {
		if _, err := c.link(insertRef, client.ID, refResource, resource); err != nil {
			return err
		}
	}
	return nil
}

// kindOfNames are names that our CA certifies for a client, and the form in which they are compared.
type kindOfNames struct {
	kind   string
	values []string
	form   func(string) string
}

func (client *Client) names() []kindOfNames {
	return []kindOfNames{{"dns", client.DNS, dnsForm}, {"ip", client.IPs, ipForm}, {"uri", client.URIs, strings.Clone}}
}

// claimNames takes the client's names; each belongs to one client only.
func (c *change) claimNames(client Client) error {
	for _, names := range client.names() {
		for _, value := range names.values {
			if err := c.claimName(names.kind, names.form(value), value, client.ID); err != nil {
				return err
			}
		}
	}
	if client.JWKSURI != "" {
		// Two clients with one place of certificates could pose as each other.
		if err := c.claimName("jwks_uri", client.JWKSURI, client.JWKSURI, client.ID); err != nil {
			return err
		}
	}
	if err := c.claimAssertionKeys(client); err != nil {
		return err
	}
	return c.claimSubject(client)
}

// kindAssertionKey is the kind of name that a key is with which a client signs its assertions.
const kindAssertionKey = "assertion_key"

// claimAssertionKeys takes the keys that the client registers by value: whoever has one of them is that client, and no second
// one. Such that cannot be read sign nothing.
func (c *change) claimAssertionKeys(client Client) error {
	keys, _ := issuer.ParseAssertionKeys([]byte(client.JWKS))
	for _, key := range keys {
		spki, err := x509.MarshalPKIXPublicKey(key.Key)
		if err != nil {
			return err
		}
		hash := sha256.Sum256(spki)
		blocked, err := keyBlocked(c.tx.QueryRowContext(c.ctx, queryBlockedKey, digest(hash)))
		if err != nil {
			return err
		}
		if blocked {
			return ErrKeyBlocked
		}
		err = c.claimName(kindAssertionKey, assertionKeyForm(hash), key.ID, client.ID)
		if taken, is := errors.AsType[*NameTakenError](err); is {
			return &AssertionKeyTakenError{KeyID: key.ID, ClientID: taken.ClientID}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func assertionKeyForm(hash [sha256.Size]byte) string { return hex.EncodeToString(hash[:]) }

// claimSubject takes the client's subject: under one trust, a certificate must not fit two clients.
func (c *change) claimSubject(client Client) error {
	if client.SubjectKind == "" {
		return nil
	}
	if kind, form, ok := recognisedBy(client); ok {
		if _, err := c.link(insertRef, client.ID, refSubject, nameRef(kind, form)); err != nil {
			return err
		}
	}
	form, err := json.Marshal([]string{client.Trust, client.SubjectKind, subjectForm(client.SubjectKind, client.SubjectValue)})
	if err != nil {
		return err
	}
	return c.claimName("subject", string(form), client.SubjectValue, client.ID)
}

// recognisedBy returns the name by which certificates of a foreign CA are recognised as the client's, as claimNames would
// claim it if our CA certified it. Our own CA certifies no distinguished name and no e-mail address of a client's choice.
func recognisedBy(client Client) (kind, form string, ok bool) {
	if client.Trust == "" {
		return "", "", false
	}
	switch mtls.SubjectKind(client.SubjectKind) {
	case mtls.SANDNS:
		return "dns", dnsForm(client.SubjectValue), true
	case mtls.SANIP:
		return "ip", ipForm(client.SubjectValue), true
	case mtls.SANURI:
		return "uri", client.SubjectValue, true
	}
	return "", "", false
}

func nameRef(kind, form string) string { return kind + ":" + form }

// FreeNames refuses a client whose name in a certificate of our CA would be that by which another one, of a foreign CA, is
// recognised, or the other way round: whoever trusts both could take the one for the other. It is a NameTakenError.
// AddClient judges it too; this is for whoever wants to know before.
func (s *Store) FreeNames(ctx context.Context, client Client) error {
	return freeNames(ctx, s.read, client)
}

func freeNames(ctx context.Context, db conn, client Client) error {
	taken := func(name, query, kind, form string) error {
		var user string
		err := db.QueryRowContext(ctx, query, kind, form).Scan(&user)
		if errors.Is(err, sql.ErrNoRows) || err == nil && user == client.ID {
			return nil
		}
		if err != nil {
			return err
		}
		return &NameTakenError{Name: name, ClientID: user}
	}
	if kind, form, ok := recognisedBy(client); ok {
		return taken(client.SubjectValue, queryNameUser, kind, form)
	}
	for _, names := range client.names() {
		for _, value := range names.values {
			if err := taken(value, queryRefUser, refSubject, nameRef(names.kind, names.form(value))); err != nil {
				return err
			}
		}
	}
	return nil
}

// subjectForm makes spellings of one subject equal, as far as mtls.Subject compares them so.
func subjectForm(kind, value string) string {
	switch mtls.SubjectKind(kind) {
	case mtls.SubjectDN:
		if subject, err := mtls.ParseSubject(mtls.SubjectDN, value); err == nil {
			return subject.Canonical()
		}
	case mtls.SANDNS:
		return dnsForm(value)
	case mtls.SANIP:
		return ipForm(value)
	case mtls.SANEmail:
		at := strings.LastIndexByte(value, '@') + 1
		return value[:at] + dnsForm(value[at:])
	}
	return value
}

func (c *change) claimName(kind, form, name, id string) error {
	n, err := c.link(insertName, kind, form, id)
	if err != nil || n == 1 {
		return err
	}
	var user string
	if err := c.tx.QueryRowContext(c.ctx, queryNameUser, kind, form).Scan(&user); err != nil {
		return err
	}
	if user == id {
		return nil // named twice
	}
	return &NameTakenError{Name: name, ClientID: user}
}

// dnsForm makes names equal that name the same host (RFC 4343).
func dnsForm(name string) string {
	return strings.TrimSuffix(strings.ToLower(name), ".")
}

// ipForm makes spellings of one address equal; an IPv4-mapped IPv6 address is another address.
func ipForm(ip string) string {
	if a, err := netip.ParseAddr(ip); err == nil {
		return a.String()
	}
	return ip
}

// Client returns a client, or ErrNotFound when there is none or it was removed.
func (s *Store) Client(ctx context.Context, id string) (Client, error) {
	if !storable(id) {
		return Client{}, fmt.Errorf("client %q: %w", id, ErrNotFound)
	}
	client, err := scanClient(s.read.QueryRowContext(ctx, queryClient, id))
	if err == nil && !client.RemovedAt.IsZero() {
		err = ErrNotFound
	}
	if err != nil {
		return Client{}, fmt.Errorf("client %q: %w", id, err)
	}
	return client, nil
}

// Clients lists at most limit clients in the order of their ids, starting behind the id after.
func (s *Store) Clients(ctx context.Context, after string, limit int) ([]Client, error) {
	rows, err := s.read.QueryContext(ctx, queryClients, after, limit)
	clients, err := all(rows, err, scanClient)
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", err)
	}
	return clients, nil
}

// Publishers is Clients for those that have a JWKSURI alone, disabled or not. It reads no others.
func (s *Store) Publishers(ctx context.Context, after string, limit int) ([]Client, error) {
	rows, err := s.read.QueryContext(ctx, queryPublishers, after, limit)
	clients, err := all(rows, err, scanClient)
	if err != nil {
		return nil, fmt.Errorf("list clients that publish certificates: %w", err)
	}
	return clients, nil
}

func scanClient(r row) (Client, error) {
	var c Client
	var ttl int64
	err := r.Scan(&c.ID, &c.Generation, &c.Disabled, (*moment)(&c.RemovedAt), &c.AuthMethod, &c.SubjectKind,
		&c.SubjectValue, (*list)(&c.DNS), (*list)(&c.IPs), (*list)(&c.URIs), &c.Usage, (*list)(&c.Scopes),
		(*list)(&c.Resources), &ttl, &c.Trust, (*ders)(&c.Certificates), &c.JWKSURI, &c.JWKS, &c.BuiltIn, (*moment)(&c.CreatedAt),
		(*moment)(&c.UpdatedAt))
	if errors.Is(err, sql.ErrNoRows) {
		return Client{}, ErrNotFound
	}
	c.TokenTTL = time.Duration(ttl) * time.Microsecond
	return c, err
}

// lockClient reads a client, removed or not, which stays as it is until the transaction ends: one is open at a time.
func (c *change) lockClient(id string) (Client, error) {
	if !storable(id) {
		return Client{}, ErrNotFound
	}
	return scanClient(c.tx.QueryRowContext(c.ctx, queryClient, id))
}

// liveClient is lockClient for a client that was not removed.
func (c *change) liveClient(id string) (Client, error) {
	client, err := c.lockClient(id)
	if err == nil && !client.RemovedAt.IsZero() {
		return Client{}, ErrNotFound
	}
	return client, err
}

// DisableClient disables a client and voids its open codes and its requests that wait for confirmation. Disabling a disabled one changes nothing. Errors:
// ErrNotFound, ErrLastGrantor.
func (s *Store) DisableClient(ctx context.Context, id string) error {
	return s.changeClient(ctx, "disable", id, func(c *change, client Client) error {
		if client.Disabled {
			return nil
		}
		if err := c.keepGrantor(client, s.now()); err != nil {
			return err
		}
		return s.disable(c, id)
	})
}

// EnableClient enables a client. Codes that were voided stay void. Enabling an enabled one changes nothing. The error
// is ErrNotFound.
func (s *Store) EnableClient(ctx context.Context, id string) error {
	return s.changeClient(ctx, "enable", id, func(c *change, client Client) error {
		if !client.Disabled {
			return nil
		}
		return s.setDisabled(c, id, false)
	})
}

func (s *Store) setDisabled(c *change, id string, disabled bool) error {
	_, err := c.exec("clients", setClientDisabled, id, disabled, moment(s.now()))
	c.changedClient(id)
	return err
}

// RemoveClient removes a client, frees its names, its subject and its registered certificates, voids its open codes and
// its requests that wait for confirmation, and takes it off the servers of all resources. Its certificates from our CA
// are revoked (cessationOfOperation) and stay in the inventory; its id stays reserved. Errors: ErrNotFound,
// ErrLastGrantor.
func (s *Store) RemoveClient(ctx context.Context, id string) error {
	return s.changeClient(ctx, "remove", id, func(c *change, client Client) error {
		if err := c.keepGrantor(client, s.now()); err != nil {
			return err
		}
		return s.remove(c, id, s.now())
	})
}

// remove is RemoveClient without the question who is left.
func (s *Store) remove(c *change, id string, now time.Time) error {
	if err := c.void(id); err != nil {
		return err
	}
	if _, err := c.link(deleteNames, id); err != nil {
		return err
	}
	if _, err := c.link(deletePinned, id); err != nil {
		return err
	}
	if _, err := c.link(deleteRefs, id); err != nil {
		return err
	}
	if err := c.dropServer(id); err != nil {
		return err
	}
	if err := c.denyClient(id, s.now()); err != nil {
		return err
	}
	// For those who judge certificates alone.
	if err := c.revokeAll(id, cessationOfOperation, now); err != nil {
		return err
	}
	_, err := c.exec("clients", setClientRemoved, id, moment(now))
	c.changedClient(id)
	return err
}

// revokeAll puts what a client still holds on the revocation list.
func (c *change) revokeAll(id string, reason int, now time.Time) error {
	rows, err := c.tx.QueryContext(c.ctx, queryClientCertificates, id, moment(now))
	certs, err := all(rows, err, scanCertificate)
	if err != nil {
		return err
	}
	_, err = c.revoke(certs, reason, now)
	return err
}

// void takes back what the client was given to use once, and what it asked for.
func (c *change) void(id string) error {
	if _, err := c.exec("codes", voidCodes, id); err != nil {
		return err
	}
	_, err := c.exec("pending_requests", voidPending, id)
	return err
}

func (s *Store) changeClient(ctx context.Context, verb, id string, f func(*change, Client) error) error {
	err := s.change(ctx, func(c *change) error {
		client, err := c.liveClient(id)
		if err != nil {
			return err
		}
		return f(c, client)
	})
	if err != nil {
		return fmt.Errorf("%s client %q: %w", verb, id, err)
	}
	return nil
}

// Grantors counts the clients that can give administrators' scopes now: those that hold certbound:admin or
// certbound:grant, are enabled, and have a certificate, from our CA or registered by value, that is valid now, not
// revoked, good for clients and of a key that is not blocked.
func (s *Store) Grantors(ctx context.Context) (int, error) {
	n, err := countGrantors(s.read.QueryRowContext(ctx, countAbleGrantors, moment(s.now())))
	if err != nil {
		return 0, fmt.Errorf("count who may give scopes: %w", err)
	}
	return n, nil
}

func countGrantors(r row) (n int, err error) { return n, r.Scan(&n) }

// grantors is Grantors in a transaction, until whose end no other one can take a grantor away.
func (c *change) grantors(now time.Time) (int, error) {
	if _, err := c.lockGrantors(); err != nil {
		return 0, err
	}
	return countGrantors(c.tx.QueryRowContext(c.ctx, countAbleGrantors, moment(now)))
}

// lockGrantors returns the enabled holders of a scope that gives scopes, able to use it or not.
func (c *change) lockGrantors() ([]string, error) {
	rows, err := c.tx.QueryContext(c.ctx, lockGrantors)
	return all(rows, err, func(r row) (id string, err error) { return id, r.Scan(&id) })
}

// keepGrantor refuses to lose the last enabled client that can give administrators' scopes. One that was invited and
// never enrolled, or whose certificates have all lapsed, cannot: it does not count as another.
func (c *change) keepGrantor(client Client, now time.Time) error {
	holders, err := c.lockGrantors()
	if err != nil || !slices.Contains(holders, client.ID) {
		return err
	}
	others, err := countGrantors(c.tx.QueryRowContext(c.ctx, countOtherGrantors, moment(now), client.ID))
	if err != nil {
		return err
	}
	if others == 0 {
		return ErrLastGrantor
	}
	return nil
}
