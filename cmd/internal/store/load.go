// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How many rows one statement of Load adds: to PostgreSQL each statement is a journey, while the driver of SQLite looks at
// every argument once for each argument.
const (
	maxLoaded      = 100
	maxLoadedLocal = 2
)

// Loaded is a client of our CA with everything that is stored of it once it has enrolled.
type Loaded struct {
	Client Client
	// Code is the one that it redeemed, with UsedAt, UsedKey, Certificate and UsedFrom.
	Code Code
	// Certificate may be revoked already: RevokedAt and Reason.
	Certificate Certificate
	// Library are the rows that the CA library keeps of the certificate.
	Library []LibraryRow
}

// LibraryRow is one of the CA library's own rows.
type LibraryRow struct {
	Bucket     string
	Key, Value []byte
}

// Load adds clients that nobody registered, in one transaction and one version, to make a large database in little time.
// It is for measuring, not for serving: the rules that AddClient, Redeem and Revoke judge by are not asked, beyond what the
// database itself demands, and no cache is told which rows are new, but that anything may be (Change.Full). The rows are
// those that the same clients would have left behind that were added, enrolled and revoked one by one.
func (s *Store) Load(ctx context.Context, list []Loaded) error {
	err := s.change(ctx, func(c *change) error {
		c.what.Full = true
		// Keys come in no order: without this, most of the time goes into fetching pages of indexes again and again.
		if s.dialect.name() == "sqlite" {
			if _, err := c.link("PRAGMA cache_size = -524288"); err != nil { // KiB
				return err
			}
		}
		return s.load(c, list)
	})
	if err != nil {
		return fmt.Errorf("load clients: %w", err)
	}
	return nil
}

// loadedRows are what is to be inserted into one table.
type loadedRows struct {
	table, columns string
	version        int64 // 0: the rows have none
	args           []any
	rows           int
}

func (r *loadedRows) add(args ...any) {
	r.args = append(r.args, args...)
	if r.version > 0 {
		r.args = append(r.args, r.version)
	}
	r.rows++
}

// load adds clients in the transaction.
func (s *Store) load(c *change, list []Loaded) error {
	// The version that the transaction will make: the turn to write is ours. To stamp so many rows later would write each
	// of them twice.
	var version int64
	if err := c.tx.QueryRowContext(c.ctx, queryVersion).Scan(&version); err != nil {
		return err
	}
	version++
	clients := loadedRows{table: "clients", columns: clientColumns + ", grantor, version", version: version}
	names := loadedRows{table: "client_names", columns: "kind, name, client_id"}
	refs := loadedRows{table: "client_refs", columns: "client_id, kind, value"}
	codes := loadedRows{table: "codes", columns: codeColumns + ", version", version: version}
	certificates := loadedRows{table: "certificates", columns: certificateColumns + ", version", version: version}
	subjects := loadedRows{table: "audit_subjects", columns: "id, sealed, seal_version"}
	blocked := loadedRows{table: "blocked_keys", columns: "key_hash, created_at, version", version: version}
	library := loadedRows{table: "ca_kv", columns: "bucket, nkey, nvalue"}
	for i := range list {
		l := &list[i]
		if err := l.check(); err != nil {
			return err
		}
		client := s.newClient(l.Client, 1)
		clients.add(append(client.values(), client.grants())...)
		subject, err := json.Marshal([]string{client.Trust, client.SubjectKind, subjectForm(client.SubjectKind, client.SubjectValue)})
		if err != nil {
			return err
		}
		names.add("subject", string(subject), client.ID)
		for _, scope := range client.Scopes {
			refs.add(client.ID, refScope, scope)
		}
		codes.add(codeID(l.Code.ID), client.ID, client.Generation, l.Code.PublicKey, moment(l.Code.CreatedAt), moment(l.Code.ExpiresAt),
			moment(l.Code.UsedAt), digest(l.Code.UsedKey), digest(l.Code.Certificate), l.Code.UsedFrom, false)
		cert := l.Certificate
		certificates.add(digest(cert.Thumbprint), cert.Serial, client.ID, client.Generation, moment(cert.NotBefore), moment(cert.NotAfter),
			digest(cert.KeyHash), cert.DER, digest(cert.RenewedFrom), moment(cert.RevokedAt), cert.Reason, moment(cert.CreatedAt))
		if !cert.RevokedAt.IsZero() && cert.Reason == keyCompromise {
			blocked.add(digest(cert.KeyHash), moment(cert.RevokedAt))
		}
		sealed, err := s.newAuditKey(auditSubjects(), client.ID)
		if err != nil {
			return err
		}
		subjects.add(client.ID, sealed, sealVersion)
		for _, row := range l.Library {
			library.add(row.Bucket, row.Key, row.Value)
		}
	}
	// What others refer to comes first.
	most, prepared := maxLoaded, make(map[string]*sql.Stmt)
	if s.dialect.name() == "sqlite" {
		most = maxLoadedLocal
	}
	for _, rows := range []loadedRows{clients, names, refs, certificates, codes, blocked, subjects, library} {
		if err := rows.insert(c, most, prepared); err != nil {
			return err
		}
	}
	return nil
}

// check refuses what load makes no rows for.
func (l *Loaded) check() error {
	switch client := &l.Client; {
	case client.ID == "" || !client.enrols() || client.SubjectKind == "":
		return errors.New("only clients of our CA, with their subject, can be loaded")
	case len(client.DNS)+len(client.IPs)+len(client.URIs)+len(client.Resources) > 0:
		return errors.New("clients with names or resources of their own cannot be loaded")
	case l.Certificate.Serial == "" || len(l.Code.PublicKey) == 0:
		return errors.New("a loaded client needs a certificate and a code")
	}
	return nil
}

// insert adds the rows, so many in one statement.
func (r *loadedRows) insert(c *change, most int, prepared map[string]*sql.Stmt) error {
	if r.rows == 0 {
		return nil
	}
	if r.version > 0 && !slices.Contains(c.touched, r.table) {
		c.touched = append(c.touched, r.table)
	}
	width := len(r.args) / r.rows
	for args := r.args; len(args) > 0; {
		n := min(len(args)/width, most)
		query := r.query(n, width)
		stmt, err := prepared[query], error(nil)
		if stmt == nil {
			// The transaction closes it.
			if stmt, err = c.tx.PrepareContext(c.ctx, query); err != nil {
				return fmt.Errorf("write to %s: %w", r.table, err)
			}
			prepared[query] = stmt
		}
		if _, err := stmt.ExecContext(c.ctx, args[:n*width]...); err != nil {
			return fmt.Errorf("write to %s: %w", r.table, err)
		}
		args = args[n*width:]
	}
	return nil
}

// query returns the statement that inserts n rows of so many columns.
func (r *loadedRows) query(n, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "INSERT INTO %s (%s) VALUES ", r.table, r.columns)
	for i := range n * width {
		switch {
		case i == 0:
			b.WriteByte('(')
		case i%width == 0:
			b.WriteString("), (")
		default:
			b.WriteByte(',')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(i + 1))
	}
	b.WriteByte(')')
	return b.String()
}

// values are what clientColumns hold.
func (client *Client) values() []any {
	return []any{client.ID, client.Generation, client.Disabled, moment(client.RemovedAt),
		client.AuthMethod, client.SubjectKind, client.SubjectValue, list(client.DNS), list(client.IPs), list(client.URIs),
		client.Usage, list(client.Scopes), list(client.Resources), int64(client.TokenTTL / time.Microsecond), client.Trust,
		ders(client.Certificates), client.JWKSURI, client.JWKS, client.BuiltIn, moment(client.CreatedAt), moment(client.UpdatedAt)}
}
