// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Lease is the row of a replica that may be serving.
type Lease struct {
	Replica     string
	Incarnation uint64 // of its journal: each start has the next
	Renewals    int64
	Applied     int64  // the version that it acknowledges: nothing it decides rests on an older one
	Program     string // its version
	Address     string // where it serves, as it was told
	MTLSURL     string // what its metadata names as the base of the mtls listener
	StartedAt   time.Time
	RenewedAt   time.Time // by the database's clock
}

// LeaseRenewal is what a replica writes.
type LeaseRenewal struct {
	Replica     string
	Incarnation uint64
	Applied     int64
	// HeadSeq and HeadChain are where the replica's journal stands. A head that is not greater than the stored one changes
	// nothing; zero says that there is none.
	HeadSeq   uint64
	HeadChain [32]byte
}

// Renewed is what the database answers to a renewal.
type Renewed struct {
	Version int64     // of the state: the lease holds once this is applied
	Now     time.Time // by the database's clock
	System  SystemID
}

// SystemID tells one database from another, and its lives from each other. SQLite's is zero.
type SystemID struct {
	System    string    // the cluster's identifier
	Timeline  int64     // counts its promotions
	StartedAt time.Time // of the server process
}

// BeginLease inserts the row of a replica that is about to load its state, or takes over the one of an earlier incarnation.
// The error is ErrLeaseLost when there is one of the same or of a later incarnation, a ConditionError when the database is
// out of service, and ErrUnknown as for RenewLease.
func (s *Store) BeginLease(ctx context.Context, l Lease) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		result, err := s.dialect.beginLease(ctx, w, l, s.now())
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(noLease(ctx, w), err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin the lease of %q: %w", l.Replica, err)
	}
	return nil
}

// RenewLease commits a renewal. It is a write, because a database that was replaced by another still answers reads. Errors:
// ErrLeaseLost; a ConditionError when the database was put out of service; ErrUnknown when the commit's outcome is not known. No error but nil extends a lease.
func (s *Store) RenewLease(ctx context.Context, r LeaseRenewal) (Renewed, error) {
	var out Renewed
	err := s.direct(ctx, func(ctx context.Context, w conn) (err error) {
		out, err = s.dialect.renewLease(ctx, w, r, s.now())
		if errors.Is(err, sql.ErrNoRows) {
			return noLease(ctx, w)
		}
		return err
	})
	if err != nil {
		return Renewed{}, fmt.Errorf("renew the lease of %q: %w", r.Replica, err)
	}
	return out, nil
}

// noLease is why a statement found no lease to write.
func noLease(ctx context.Context, w conn) error {
	c, err := readCondition(ctx, w)
	if err != nil {
		return err
	}
	if c != nil {
		return &ConditionError{*c}
	}
	return ErrLeaseLost
}

// Leases lists the replicas, as the database has committed them.
func (s *Store) Leases(ctx context.Context) ([]Lease, error) {
	rows, err := s.write.QueryContext(ctx, queryLeases)
	list, err := all(rows, err, scanLease)
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", err)
	}
	return list, nil
}

// scanLease scans the columns leaseColumns.
func scanLease(r row) (l Lease, err error) {
	err = r.Scan(&l.Replica, &l.Incarnation, &l.Renewals, &l.Applied, &l.Program, &l.Address, &l.MTLSURL, (*moment)(&l.StartedAt), (*moment)(&l.RenewedAt))
	return l, err
}

// EndLease removes a replica's own row when it has stopped serving. ReapLease removes one that was seen unchanged for long:
// it does nothing when it was renewed since.
func (s *Store) EndLease(ctx context.Context, replica string, incarnation uint64) error {
	return s.dropLease(ctx, endLease, replica, incarnation)
}

// ReapLease removes the row of a replica that has not renewed it for long; see EndLease.
func (s *Store) ReapLease(ctx context.Context, seen Lease) error {
	return s.dropLease(ctx, deleteLease, seen.Replica, seen.Incarnation, seen.Renewals)
}

func (s *Store) dropLease(ctx context.Context, query string, args ...any) error {
	err := s.direct(ctx, func(ctx context.Context, w conn) error {
		_, err := w.ExecContext(ctx, query, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove a lease: %w", err)
	}
	return nil
}
