// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// crashFolder tells a child process which folder to work in until it is killed.
const crashFolder = "CERTBOUND_TEST_CRASH_FOLDER"

// TestCrash kills a process again and again in the middle of redemptions: what it answered is kept, and nothing is
// half there.
func TestCrash(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(crashFolder); dir != "" {
		redeemUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	answered := make(map[string]bool)
	for round := range 3 {
		runAndKill(t, dir, 20+round*15, answered)
		checkAfterCrash(t, dir, answered)
	}
}

// runAndKill starts a child, reads n answers or more, and kills it without warning.
func runAndKill(t *testing.T, dir string, n int, answered map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrash$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashFolder+"="+dir)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	lines := bufio.NewScanner(out)
	got := 0
	for lines.Scan() {
		answered[lines.Text()] = true
		if got++; got == n {
			ok(t, cmd.Process.Kill())
		}
	}
	if cmd.Wait() == nil || got < n {
		t.Fatalf("the child ended by itself after %d answers: %v", got, lines.Err())
	}
}

// redeemUntilKilled is the child: it redeems codes in parallel and prints the thumbprint of each answer.
func redeemUntilKilled(t *testing.T, dir string) {
	lock, err := Lock(dir)
	ok(t, err)
	defer lock.Unlock()
	s := openAt(t, dir, time.Now)
	out := make(chan [32]byte)
	pid := os.Getpid()
	for worker := range 4 {
		go func() {
			for i := 0; ; i++ {
				out <- redeemOne(t.Context(), s, fmt.Sprintf("c-%d-%d-%d", pid, worker, i))
			}
		}()
	}
	for thumbprint := range out {
		fmt.Println(hex.EncodeToString(thumbprint[:]))
	}
}

// redeemOne registers a client and redeems its code. It panics on an error, which ends the child.
func redeemOne(ctx context.Context, s *Store, id string) [32]byte {
	now := time.Now()
	key := sha256.Sum256([]byte(id))
	code := Code{ID: [8]byte(key[:8]), PublicKey: key[:], ExpiresAt: now.Add(time.Hour)}
	if _, err := s.AddClient(ctx, Client{ID: id}, &code); err != nil {
		panic(err)
	}
	der := []byte("certificate of " + id)
	cert, err := s.Redeem(ctx, code.ID, key, Certificate{
		Thumbprint: sha256.Sum256(der), Serial: fmt.Sprint(binary.BigEndian.Uint64(key[:])), ClientID: id, Generation: 1,
		NotBefore: now, NotAfter: now.Add(time.Hour), KeyHash: key, DER: der,
	}, "192.0.2.7", now)
	if err != nil {
		panic(err)
	}
	return cert.Thumbprint
}

func checkAfterCrash(t *testing.T, dir string, answered map[string]bool) {
	t.Helper()
	lock, err := Lock(dir) // died with its process
	ok(t, err)
	s, err := Open(t.Context(), Config{Path: filepath.Join(dir, "certbound.db"), KEK: testKEK})
	ok(t, err)
	for text := range answered {
		thumbprint, err := hex.DecodeString(text)
		if err != nil || len(thumbprint) != 32 {
			t.Fatalf("the child printed %q", text)
		}
		if _, err := s.Certificate(t.Context(), [32]byte(thumbprint)); err != nil {
			t.Errorf("answered, but lost: %s: %v", text, err)
		}
	}
	for what, query := range map[string]string{
		"used codes without their certificate": `SELECT count(*) FROM codes WHERE used_at IS NOT NULL AND NOT EXISTS
			(SELECT 1 FROM certificates WHERE thumbprint = codes.certificate AND key_hash = codes.used_key)`,
		"certificates without a used code": `SELECT count(*) FROM certificates WHERE NOT EXISTS
			(SELECT 1 FROM codes WHERE certificate = certificates.thumbprint AND used_at IS NOT NULL)`,
		"clients without a code": `SELECT count(*) FROM clients WHERE NOT EXISTS
			(SELECT 1 FROM codes WHERE client_id = clients.id)`,
		"versions that nothing has": `SELECT version - (SELECT max(version) FROM
			(SELECT version FROM codes UNION ALL SELECT version FROM certificates)) FROM state`,
	} {
		var n int
		ok(t, s.read.QueryRowContext(t.Context(), query).Scan(&n))
		if n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
	checkStamps(t, s)
	ok(t, s.Close())
	ok(t, lock.Unlock())
}
