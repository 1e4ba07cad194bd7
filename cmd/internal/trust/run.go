// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// When things are looked at again.
const (
	pollInterval = 2 * time.Second
	// A list is fetched again when half of what is left of its life has passed, within these bounds.
	minListInterval = time.Minute
	maxListInterval = time.Hour
)

// Run keeps everything up to date until ctx is done, and then returns: it looks at the files every two seconds, and
// fetches lists and published certificates in good time before they are too old. It is to be called once.
func (m *Manager) Run(ctx context.Context) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var fetches sync.WaitGroup
	defer fetches.Wait()
	for {
		m.tick(ctx, &fetches)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-m.wake:
		}
	}
}

// tick does what is due now; fetches go on by themselves.
func (m *Manager) tick(ctx context.Context, fetches *sync.WaitGroup) {
	_ = m.loadRows(ctx) // reported, and tried again
	_ = m.readFiles()   // the same
	if sets := m.followClients(ctx); len(sets) > 0 {
		fetches.Go(func() { prepare(ctx, sets) })
	}
	m.refreshSets()
	now := m.now()
	for _, a := range m.begin(func(a *authority) bool { return !now.Before(a.due) }) {
		fetches.Go(func() { _ = m.fetchList(ctx, a) })
	}
}

// Reload reads all files and the database and fetches every list that is not being fetched. What cannot be used stays as
// it was; the error tells all of it.
func (m *Manager) Reload(ctx context.Context) error {
	errs := []error{m.loadRows(ctx), m.readFiles()}
	all := m.begin(func(*authority) bool { return true })
	results := make([]error, len(all))
	var fetches sync.WaitGroup
	for i, a := range all {
		fetches.Go(func() { results[i] = m.fetchList(ctx, a) })
	}
	fetches.Wait()
	return errors.Join(append(errs, results...)...)
}

// readFiles reads every file again.
func (m *Manager) readFiles() error {
	var errs []error
	changed := false
	m.work.Lock()
	for _, a := range m.files {
		newCA, err := a.readCA()
		if err != nil {
			err = fmt.Errorf("%w; the last good one is in use", err)
			errs = append(errs, fmt.Errorf("trust %q: %w", a.name, err))
		}
		m.report("trust:"+a.name, partCA, err)
		newList, err := m.readListFile(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("trust %q: %w", a.name, err))
		}
		if newCA || newList {
			m.publish(a)
			changed = true
		}
	}
	if changed {
		m.dropLists()
	}
	for a := range m.authorities() {
		m.reportLists(a)
	}
	m.work.Unlock()
	if changed {
		m.announce()
	}
	return errors.Join(errs...)
}

// readListFile reads the file with a's lists again, if it has one, and reports whether they changed. work is held.
func (m *Manager) readListFile(a *authority) (changed bool, err error) {
	if a.crlFile == "" || a.mode == Off {
		return false, nil
	}
	data, err := readFile(a.crlFile, maxListBytes)
	if err == nil {
		changed, err = m.takeLists(a, &a.given, data)
	}
	if err != nil {
		err = fmt.Errorf("the revocation list file %s is not used: %w", a.crlFile, withoutPath(err))
	}
	m.report("trust:"+a.name, partFile, err)
	return changed, err
}

// begin returns the authorities whose lists are to be fetched and are not being fetched yet.
func (m *Manager) begin(due func(*authority) bool) []*authority {
	m.work.Lock()
	defer m.work.Unlock()
	var out []*authority
	for a := range m.authorities() {
		if a.crlURL != "" && a.mode != Off && a.err == nil && !a.fetching && due(a) {
			a.fetching = true
			out = append(out, a)
		}
	}
	return out
}

// fetchList fetches a's lists, which begin has marked.
func (m *Manager) fetchList(ctx context.Context, a *authority) error {
	m.work.Lock()
	url := a.crlURL
	m.work.Unlock()
	data, err := m.fetcher.GetSigned(ctx, url, maxListBytes, "application/pkix-crl", "application/x-pem-file", "*/*")
	changed, err := m.takeList(a, url, data, err)
	if changed {
		m.announce()
	}
	return err
}

// takeList ends a fetch of a's lists from url.
func (m *Manager) takeList(a *authority, url string, data []byte, err error) (changed bool, _ error) {
	m.work.Lock()
	defer m.work.Unlock()
	a.fetching = false
	if a.crlURL != url || m.files[a.name] != a && m.rows[a.name] != a {
		return false, nil // it has another place now, or is gone
	}
	now := m.now()
	a.due = now.Add(minListInterval)
	if err == nil {
		changed, err = m.takeLists(a, &a.fetched, data)
	}
	if err != nil {
		err = fmt.Errorf("the revocation list cannot be fetched: %w", err)
		m.report("trust:"+a.name, partURL, err)
		m.reportLists(a)
		return false, fmt.Errorf("trust %q: %w", a.name, err)
	}
	m.report("trust:"+a.name, partURL, nil)
	if changed {
		m.publish(a)
	} else {
		m.reportLists(a) // from now on a list that is missing is an alarm
	}
	a.due = now.Add(a.interval(now))
	return changed, nil
}

// interval is when lists are to be fetched again: often enough that several attempts may fail before one is stale.
func (a *authority) interval(now time.Time) time.Duration {
	interval := maxListInterval
	for _, l := range a.revocation.state.Load().lists {
		interval = min(interval, l.crl.NextUpdate().Sub(now)/2)
	}
	return max(interval, minListInterval)
}

// refreshSets keeps published certificates fresh, but for those that nobody asks for.
func (m *Manager) refreshSets() {
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.sets {
		if k.refresh(now); k.idle(now) {
			m.discard(k.name)
		}
	}
}
