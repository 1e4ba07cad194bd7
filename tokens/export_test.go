// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"context"
	"time"
)

// MaxDenyDocument is for tests.
const MaxDenyDocument = maxDenyDocument

// Poll asks once.
func (f *DenyFeed) Poll(ctx context.Context) (news bool, err error) { return f.poll(ctx) }

// List is what the feed knows.
func (f *DenyFeed) List() *DenyList { return &f.list }

// DenyPause is for tests.
func DenyPause(failures int, news bool, took time.Duration) time.Duration {
	return denyPause(failures, news, took)
}
