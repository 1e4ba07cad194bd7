// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"context"
	"time"
)

// MaxDenyDocument is for tests.
const MaxDenyDocument = maxDenyDocument

// Poll asks once, and tells what has changed.
func (f *DenyFeed) Poll(ctx context.Context) (news bool, err error) {
	news, err = f.poll(ctx)
	f.tell(err)
	return news, err
}

// List is what the feed knows.
func (f *DenyFeed) List() *DenyList { return &f.list }

// DenyRetry is for tests.
type DenyRetry struct{ denyRetry }

// Pause is how long to wait.
func (r *DenyRetry) Pause(err error, news bool, took time.Duration) time.Duration {
	return r.pause(err, news, took)
}
