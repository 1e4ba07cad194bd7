// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/certbound/certbound/tokens"
)

// restoredAhead is how far the version of a restored database is put before every version that is known to have been, for
// changes that no record speaks of have bumped it too; and how far at least the number of its revocation list is, and the
// position of its last denial.
const restoredAhead = 1 << 32

// afterRestore is where a counter goes on that had this value in the backup. Others have read what it was at the end, after
// an earlier restore of the same backup too: since then more microseconds have passed than it has counted.
func afterRestore(counter int64, now time.Time) int64 {
	return max(counter+restoredAhead, now.UnixMicro())
}

// Replay is the transaction that brings a restored database up to date with the records of what happened since. Its
// methods do what the records say was done, without judging again whether it may be done, and each is harmless where it
// was done already. What they are told of that is not there, they report. It is for one goroutine.
type Replay struct {
	s       *Store
	c       *change
	newest  int64
	replica string
}

// Replay runs f in one transaction and ends the restoring of the database with it: open enrolment codes are void then,
// requests that waited for an operator and shared keys of session tickets are gone, the version is one that nobody has
// seen, whoever has anything in memory drops it, and the database may be served. The entries that f returns go into the
// outbox of the replica that the Store was opened for, or that As names. With an error nothing is changed. It blocks as long
// as f does.
func (s *Store) Replay(ctx context.Context, f func(*Replay) ([]Entry, error)) error {
	err := s.whole(ctx, func(tx *sql.Tx) error {
		r := &Replay{s: s, replica: s.replica, c: &change{ctx: ctx, tx: tx, isUnique: s.dialect.isUnique, core: s.core}}
		if err := r.Saw(0); err != nil {
			return err
		}
		entries, err := f(r)
		if err != nil {
			return err
		}
		return r.finish(entries)
	})
	if err != nil {
		return fmt.Errorf("bring the database up to date: %w", err)
	}
	return nil
}

// As names the replica whose outbox takes the entries.
func (r *Replay) As(replica string) error {
	if replica == "" {
		return errors.New("a replica needs a name")
	}
	r.replica = replica
	return nil
}

// Saw notes a version that there was.
func (r *Replay) Saw(version int64) error {
	var stored int64
	if err := r.c.tx.QueryRowContext(r.c.ctx, queryVersion).Scan(&stored); err != nil {
		return err
	}
	r.newest = max(r.newest, version, stored)
	return nil
}

func (r *Replay) finish(entries []Entry) error {
	c := r.c
	for _, query := range []string{voidAllCodes, deleteAllPending, deleteRevocationList, resetTicketKeys} {
		if _, err := c.tx.ExecContext(c.ctx, query); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := r.s.noteAs(c, r.replica, e); err != nil {
			return err
		}
	}
	if err := setCondition(c.ctx, c.tx, nil); err != nil {
		return err
	}
	// Touched or not: rows of the backup itself may have none.
	c.touched = []string{"sealed_keys", "clients", "codes", "certificates", "blocked_keys", "denials", "resources", "trusts", "pending_requests", "outbox"}
	c.what = Change{Full: true, Tickets: true}
	if err := c.countDenials(); err != nil {
		return err
	}
	var list, denials int64
	if err := c.tx.QueryRowContext(c.ctx, queryCounters).Scan(&list, &denials); err != nil {
		return err
	}
	now := r.s.now()
	last := afterRestore(denials, now)
	if _, err := c.tx.ExecContext(c.ctx, setAhead, r.newest+restoredAhead-1, afterRestore(list, now), last); err != nil {
		return err
	}
	// Whoever has seen positions of before sees all denials again.
	if _, err := c.tx.ExecContext(c.ctx, shiftDenials, last-denials); err != nil {
		return err
	}
	return c.stamp()
}

// AddCertificate adds a certificate to the inventory as its record describes it. Its DER may be missing. It reports
// false when there is no such client.
func (r *Replay) AddCertificate(cert Certificate) (bool, error) {
	if _, err := r.c.lockClient(cert.ClientID); err != nil {
		return false, ignoring(err, ErrNotFound)
	}
	if cert.RenewedFrom != [32]byte{} {
		_, err := scanCertificate(r.c.tx.QueryRowContext(r.c.ctx, queryCertificate, digest(cert.RenewedFrom)))
		if errors.Is(err, ErrNotFound) {
			cert.RenewedFrom = [32]byte{}
		} else if err != nil {
			return false, err
		}
	}
	_, err := r.c.exec("certificates", restoreCertificate, digest(cert.Thumbprint), cert.Serial, cert.ClientID, cert.Generation,
		moment(cert.NotBefore), moment(cert.NotAfter), digest(cert.KeyHash), append([]byte{}, cert.DER...), digest(cert.RenewedFrom),
		moment(cert.CreatedAt))
	return err == nil, err
}

// UseCode marks an enrolment code used. One that is not there redeems nothing anyway.
func (r *Replay) UseCode(id [8]byte, at time.Time, keyHash, thumbprint [32]byte) error {
	_, err := r.c.exec("codes", useCode, codeID(id), moment(at), digest(keyHash), digest(thumbprint), "")
	return err
}

// Revoke takes a certificate away, from the inventory or off the client that registered it by value, which is disabled
// when it has none left. It reports false when there is no such certificate.
func (r *Replay) Revoke(thumbprint [32]byte, reason int, at time.Time) (bool, error) {
	found := false
	cert, err := scanCertificate(r.c.tx.QueryRowContext(r.c.ctx, queryCertificate, digest(thumbprint)))
	switch {
	case err == nil:
		found = true
		_, err = r.c.revoke([]Certificate{cert}, reason, at)
	default:
		err = ignoring(err, ErrNotFound)
	}
	if err != nil {
		return false, err
	}
	var user string
	err = r.c.tx.QueryRowContext(r.c.ctx, queryPinnedUser, digest(thumbprint)).Scan(&user)
	if errors.Is(err, sql.ErrNoRows) {
		return found, nil
	}
	if err != nil {
		return false, err
	}
	_, err = r.KeepCertificates(user, func(t [32]byte) bool { return t != thumbprint })
	return true, err
}

// Block makes a public key useless for every client.
func (r *Replay) Block(keyHash [32]byte, at time.Time) error {
	_, err := r.c.block(keyHash, at)
	return err
}

// KeepCertificates takes off a client the certificates, registered by value, that are not kept, and disables it when none
// is left. It reports which are left, and is harmless for a client that has none.
func (r *Replay) KeepCertificates(id string, keep func(thumbprint [32]byte) bool) ([][32]byte, error) {
	client, err := r.c.liveClient(id)
	if err != nil || len(client.Certificates) == 0 {
		return nil, ignoring(err, ErrNotFound)
	}
	var taken []Certificate
	var left [][]byte
	var kept [][32]byte
	for _, der := range client.Certificates {
		cert, err := registeredRow(client, der)
		if err != nil {
			return nil, err
		}
		if keep(cert.Thumbprint) {
			left, kept = append(left, der), append(kept, cert.Thumbprint)
		} else {
			taken = append(taken, cert)
		}
	}
	switch {
	case len(left) == 0:
		return nil, r.s.disable(r.c, id)
	case len(taken) == 0:
		return kept, nil
	}
	return kept, r.s.keepRegistered(r.c, id, taken, left)
}

// Disable disables a client, the last grantor too. It reports false when there is no such client.
func (r *Replay) Disable(id string) (bool, error) {
	return r.client(id, func(Client) error { return r.s.disable(r.c, id) })
}

// Enable enables a client.
func (r *Replay) Enable(id string) (bool, error) {
	return r.client(id, func(Client) error { return r.s.setDisabled(r.c, id, false) })
}

// Remove removes a client at that time.
func (r *Replay) Remove(id string, at time.Time) (bool, error) {
	return r.client(id, func(Client) error { return r.s.remove(r.c, id, at) })
}

// Supersede revokes all certificates of a client.
func (r *Replay) Supersede(id string, at time.Time) (bool, error) {
	return r.client(id, func(Client) error { return r.c.revokeAll(id, superseded, at) })
}

func (r *Replay) client(id string, f func(Client) error) (bool, error) {
	client, err := r.c.liveClient(id)
	if err != nil {
		return false, ignoring(err, ErrNotFound)
	}
	return true, f(client)
}

// AddClient registers a client as its record describes it; its CreatedAt is kept. Of one that is there already, and was
// not removed, nothing is changed. The error is a NameTakenError or ErrKeyTaken when it cannot be so: then nothing was
// changed either.
func (r *Replay) AddClient(client Client) error {
	previous, err := r.c.lockClient(client.ID)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case previous.RemovedAt.IsZero():
		return nil
	}
	created, disabled := client.CreatedAt, client.Disabled
	client = r.s.newClient(client, previous.Generation+1)
	client.CreatedAt, client.UpdatedAt, client.Disabled = asStored(created), asStored(created), disabled
	if _, err := r.c.tx.ExecContext(r.c.ctx, "SAVEPOINT adding"); err != nil {
		return err
	}
	if failed := r.c.writeClient(client); failed != nil {
		_, err := r.c.tx.ExecContext(r.c.ctx, "ROLLBACK TO SAVEPOINT adding")
		return errors.Join(failed, err)
	}
	_, err = r.c.tx.ExecContext(r.c.ctx, "RELEASE SAVEPOINT adding")
	return err
}

// AddResource registers a resource, or gives the one that is there these scopes and servers.
func (r *Replay) AddResource(res Resource) error {
	if _, err := r.c.exec("resources", deleteResource, res.URI); err != nil {
		return err
	}
	_, err := r.c.exec("resources", insertResource, res.URI, list(res.Scopes), list(res.Servers), res.BuiltIn, moment(res.CreatedAt))
	return err
}

// RemoveResource removes a resource, whoever still names it.
func (r *Replay) RemoveResource(uri string) error {
	_, err := r.c.exec("resources", deleteResource, uri)
	return err
}

// Trust returns a trust, or ErrNotFound.
func (r *Replay) Trust(name string) (Trust, error) { return r.c.lockTrust(name) }

// RemoveTrust removes a trust, whoever still names it: those clients are refused until it is added again.
func (r *Replay) RemoveTrust(name string) error {
	_, err := r.c.exec("trusts", deleteTrust, name)
	return err
}

// EraseSubject deletes the secret of a subject in the journal.
func (r *Replay) EraseSubject(id string) error {
	_, err := r.c.link(deleteAuditSubject, id)
	return err
}

// SetOnce stores a setting unless it has a value.
func (r *Replay) SetOnce(name, value string) error {
	_, err := r.c.link(insertSetting, name, value)
	return err
}

// HasKey reports whether there is a key with that purpose and id.
func (r *Replay) HasKey(purpose, id string) (bool, error) {
	rows, err := r.c.tx.QueryContext(r.c.ctx, queryKeys, purpose)
	keys, err := all(rows, err, func(row row) (Key, error) { return r.s.scanKey(row, purpose) })
	return slices.ContainsFunc(keys, func(k Key) bool { return k.ID == id }), err
}

// ActivateKey has a key, if there is one, be the active one since a time; each other that is active retires until the other
// time, also when that one is not there.
func (r *Replay) ActivateKey(purpose, id string, since, until time.Time) error {
	if _, err := r.c.exec("sealed_keys", retireOtherKeys, purpose, id, moment(since), moment(until)); err != nil {
		return err
	}
	_, err := r.c.exec("sealed_keys", setKeyState, purpose, id, "active", moment(since), moment{})
	return err
}

// DenyKey has no token accepted any more that a key signed, which was taken away at that time.
func (r *Replay) DenyKey(id string, at time.Time) error {
	_, err := r.c.deny(tokens.Denial{KeyID: id}, at)
	return err
}

// RemoveKey deletes a key.
func (r *Replay) RemoveKey(purpose, id string) error {
	_, err := r.c.exec("sealed_keys", deleteKey, purpose, id)
	return err
}

// Setting returns a setting, or ErrNotFound.
func (r *Replay) Setting(name string) (string, error) {
	var value string
	err := r.c.tx.QueryRowContext(r.c.ctx, querySetting, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return value, err
}

// ignoring is err, or nil when it is the sentinel.
func ignoring(err, sentinel error) error {
	if errors.Is(err, sentinel) {
		return nil
	}
	return err
}

// AsRestoring fills to, which must be empty, with what the backup holds; until Replay it is in the condition of a database
// that is being restored, and is not served.
func AsRestoring(ctx context.Context, backup, to *Store, tag *BackupTag, now time.Time) (Copied, error) {
	return Copy(ctx, backup, to, restoring(tag, now))
}

func restoring(tag *BackupTag, now time.Time) Finish {
	return func(ctx context.Context, _, target *sql.Tx) error {
		return setCondition(ctx, target, &Condition{State: ConditionRestoring, Since: asStored(now), Back: tag})
	}
}

// RestoringFile is AsRestoring into a file that is not there yet.
func RestoringFile(ctx context.Context, backup *Store, file string, tag *BackupTag, cfg CopyConfig) (Copied, error) {
	return backup.CopyToFile(ctx, file, cfg, restoring(tag, cfg.now()))
}

// SetRestoring puts a database that went back by itself, as one does that was recovered to an earlier time, into the
// condition of one that is being restored.
func (s *Store) SetRestoring(ctx context.Context, now time.Time) error {
	return s.whole(ctx, func(tx *sql.Tx) error {
		return setCondition(ctx, tx, &Condition{State: ConditionRestoring, Since: asStored(now)})
	})
}
