// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/issuer"
)

// opened opens a data folder as a start does, and closes it.
func opened(tb testing.TB, data string) (replicaID, error) {
	tb.Helper()
	s := &service{cfg: testConfig(tb, data), log: discard()}
	err := s.open(tb.Context())
	if closeErr := s.close(); closeErr != nil {
		tb.Error(closeErr)
	}
	return s.replica, err
}

// A data folder is one replica for ever, also when a first start died before it said which, and its file lost.
func TestReplicaIsSettledOnce(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	first, err := opened(t, data)
	if err != nil {
		t.Fatal(err)
	}
	stored, found, err := readReplica(data)
	if err != nil || !found || stored != first || !isName(first.Installation) || !isName(first.Replica) || first.Installation == first.Replica {
		t.Fatalf("%+v, stored %+v (%t), %v", first, stored, found, err)
	}
	if info, err := os.Stat(filepath.Join(data, replicaFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again, err := opened(t, data); err != nil || again != first {
		t.Errorf("after a restart: %+v, %v; want %+v", again, err, first)
	}
	if err := os.Remove(filepath.Join(data, replicaFile)); err != nil {
		t.Fatal(err)
	}
	if again, err := opened(t, data); err != nil || again != first {
		t.Errorf("without its file: %+v, %v; want %+v", again, err, first)
	}
	if stored, found, err := readReplica(data); err != nil || !found || stored != first {
		t.Errorf("the file was not made again: %+v, %t, %v", stored, found, err)
	}
}

// A folder of another installation than the database's, or of another replica, is refused by name, and nothing is changed.
func TestReplicaOfAnother(t *testing.T) {
	t.Parallel()
	data, other := t.TempDir(), t.TempDir()
	mine, err := opened(t, data)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := opened(t, other)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(data, replicaFile)
	for what, content := range map[string]string{
		"another installation": `{"installation":"` + theirs.Installation + `","replica":"` + mine.Replica + `"}`,
		"another replica":      `{"installation":"` + mine.Installation + `","replica":"` + theirs.Replica + `"}`,
		"no names":             `{}`,
		"a name too much":      `{"installation":"a","replica":"b","x":"c"}`,
		"two documents":        `{"installation":"a","replica":"b"}{}`,
		"a path for a name":    `{"installation":"` + mine.Installation + `","replica":"../x"}`,
		"an endless file":      `{"installation":"` + strings.Repeat("a", 1<<20) + `"`,
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		before := folderContents(t, data)
		_, err := opened(t, data)
		if refused, ok := errors.AsType[*StartError](err); !ok || refused.Hint == "" || !strings.Contains(refused.Message, data) {
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(before, folderContents(t, data)); diff != "" {
			t.Errorf("%s: the folder was changed (-before +after):\n%s", what, diff)
		}
	}
	// A new database in the place of the lost one is no way out either.
	if err := mine.write(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(data, "certbound.db")); err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, data); err == nil || !strings.Contains(err.Error(), replicaFile) {
		t.Errorf("without its database: %v", err)
	}
}

// folderContents is every regular file that says who the folder is and what it decided.
func folderContents(tb testing.TB, data string) map[string]string {
	tb.Helper()
	contents := make(map[string]string)
	for _, pattern := range []string{"*.json", "certbound.db", "kek", "ca/*", "audit/*.jsonl"} {
		names, err := filepath.Glob(filepath.Join(data, pattern))
		if err != nil {
			tb.Fatal(err)
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err != nil {
				tb.Fatal(err)
			}
			contents[name] = string(content)
		}
	}
	return contents
}

// After a change of sealed keys nothing is signed or verified with the old ones, also while the new ones cannot be read.
func TestKeyring_Follows(t *testing.T) {
	t.Parallel()
	_, db := testRegistry(t)
	ring, err := loadKeyring(t.Context(), keyringFor(t, db.Store))
	if err != nil {
		t.Fatal(err)
	}
	first, err := ring.Signing()
	if err != nil {
		t.Fatal(err)
	}
	row, err := newSigningKey(tokens.ES256)
	if err != nil {
		t.Fatal(err)
	}
	row.State, row.CreatedAt = keyActive, time.Now().Add(-time.Hour) // the oldest signs
	if err := db.PutKey(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if now, err := ring.Signing(); err != nil || now.ID != row.ID || len(ring.Published()) != 2 {
		t.Errorf("it signs with %s, %v; want %s", now.ID, err, row.ID)
	}
	if err := db.DeleteKey(t.Context(), purposeSigning, row.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Key(t.Context(), row.ID); err == nil {
		t.Error("a key that is gone still verifies")
	}
	if now, err := ring.Signing(); err != nil || now.ID != first.ID {
		t.Errorf("it signs with %s, %v; want %s", now.ID, err, first.ID)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Signing(); err != nil {
		t.Errorf("without a change: %v", err)
	}
	ring.forget(store.Change{Full: true})
	if _, err := ring.Signing(); err == nil {
		t.Error("it signs with keys that may be gone")
	}
	if _, err := ring.Key(t.Context(), first.ID); err == nil {
		t.Error("it verifies with keys that may be gone")
	}
	if len(ring.Published()) != 1 {
		t.Error("an empty list would be remembered")
	}
}

// failing is a store whose list of compromised keys cannot be read for a while.
type failing struct {
	*slowRows
	err       error
	meanwhile func() // what happens while they are read
}

// BlockedKeys implements rows.
func (f *failing) BlockedKeys(ctx context.Context) ([][32]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	keys, err := f.slowRows.BlockedKeys(ctx)
	if f.meanwhile != nil {
		f.meanwhile()
	}
	return keys, err
}

// When anything may have changed nothing remembered is believed, and nobody is authenticated until it is known which keys
// were reported compromised.
func TestRegistry_Full(t *testing.T) {
	t.Parallel()
	reg, db := testRegistry(t)
	rows := &failing{slowRows: db, err: errors.New("gone")}
	reg.store = rows
	client, err := reg.Client(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	key, thumbprint := [32]byte{1}, mtls.Thumbprint{2}
	reg.mu.Lock()
	reg.certificates[thumbprint] = &issuer.Certificate{ClientID: "payments"}
	reg.mu.Unlock()
	if blocked, err := reg.keyBlocked(t.Context(), key); blocked || err != nil {
		t.Errorf("a key that nobody reported is blocked: %v, %v", blocked, err)
	}
	reg.forget(store.Change{Full: true})
	if _, err := reg.keyBlocked(t.Context(), key); !errors.Is(err, rows.err) {
		t.Errorf("a key is good while it is not known which ones are compromised: %v", err)
	}
	rows.err = nil
	rows.meanwhile = func() { reg.forget(store.Change{ClientIDs: []string{"other"}, Blocked: [][32]byte{key}}) }
	if blocked, err := reg.keyBlocked(t.Context(), key); !blocked || err != nil {
		t.Errorf("a key that is blocked while all are read: %v, %v", blocked, err)
	}
	rows.meanwhile = func() { reg.forget(store.Change{Full: true}) }
	reg.forget(store.Change{Full: true})
	if _, err := reg.keyBlocked(t.Context(), [32]byte{9}); err == nil {
		t.Error("a key is good though anything may have changed while all were read")
	}
	rows.meanwhile = nil
	again, err := reg.Client(t.Context(), "payments")
	if err != nil || again == client {
		t.Errorf("the same client as before, or %v", err)
	}
	if blocked, err := reg.keyBlocked(t.Context(), [32]byte{9}); blocked || err != nil {
		t.Errorf("a key that nobody reported is blocked for ever: %v, %v", blocked, err)
	}
	if _, err := reg.Certificate(t.Context(), thumbprint); !errors.Is(err, issuer.ErrNotFound) {
		t.Errorf("a certificate is remembered: %v", err)
	}
}
