// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/certbound/certbound/mtls"
)

const (
	infoFile    = "profile.json"
	rootsFile   = "roots.pem"
	certFile    = "cert.pem"
	keyFile     = "key.pem"
	currentLink = "current"
	pendingDir  = "pending"
	lockFile    = "lock"
	rekeyFile   = "rekey.pem"

	generationPattern = "gen-[0-9][0-9][0-9][0-9][0-9][0-9]"

	// maxFile bounds every file read: a bundle of roots is the largest.
	maxFile = 1 << 20
)

// Files is the content of a profile.
type Files struct {
	// Issuer, ClientID, MTLSURL and TokenEndpoint go into profile.json; all are required.
	Issuer, ClientID, MTLSURL, TokenEndpoint string
	// Roots are the roots that vouch for the service, at least one.
	Roots []*x509.Certificate
	// Chain is the client's certificate and its intermediates.
	Chain []*x509.Certificate
	// Key is the certificate's private key.
	Key crypto.Signer
	// External says that the service's own CA did not issue the certificate, so that nobody tries to renew it there.
	External bool
	// Replace permits to overwrite a profile of another root, issuer or client.
	Replace bool
}

// Write lays down a profile or, where the folder holds one of the same issuer, root and client, gives it a new
// generation. When it returns nil, everything is on disk. It waits for the folder's lock until ctx ends.
func Write(ctx context.Context, dir string, f Files) error {
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	return f.install(dir)
}

// install writes the files in an order that leaves the folder usable after every step; the caller holds the lock.
func (f Files) install(dir string) error {
	if err := f.check(); err != nil {
		return err
	}
	if !f.Replace {
		if err := sameProfile(dir, f.identity()); err != nil {
			return err
		}
	}
	key, err := encodeKey(f.Key)
	if err != nil {
		return err
	}
	described, err := json.MarshalIndent(info{f.Issuer, f.ClientID, f.MTLSURL, f.TokenEndpoint, f.External}, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", infoFile, err)
	}
	generation, err := writeGeneration(dir, encodeCertificates(f.Chain), key)
	if err != nil {
		return folderError(dir, err)
	}
	return folderError(dir, errors.Join(
		writeFile(filepath.Join(dir, rootsFile), encodeCertificates(f.Roots), 0o644),
		writeFile(filepath.Join(dir, infoFile), append(described, '\n'), 0o644),
		swapLink(dir, generation, currentLink),
		swapLink(dir, filepath.Join(currentLink, certFile), certFile),
		swapLink(dir, filepath.Join(currentLink, keyFile), keyFile),
		syncDir(dir),
		removeOld(dir, generation),
	))
}

func (f Files) check() error {
	switch {
	case f.Issuer == "" || f.ClientID == "" || f.MTLSURL == "" || f.TokenEndpoint == "":
		return errors.New("write profile: issuer, client id and endpoints are required")
	case len(f.Roots) == 0 || len(f.Chain) == 0 || f.Key == nil:
		return errors.New("write profile: roots, certificate and key are required")
	case !sameKey(f.Chain[0].PublicKey, f.Key.Public()):
		return errors.New("write profile: the key is not the certificate's")
	}
	return nil
}

// identity is what must not change unasked.
type identity struct {
	issuer, clientID string
	roots            [][32]byte
}

func (f Files) identity() identity {
	id := identity{issuer: f.Issuer, clientID: f.ClientID}
	for _, root := range f.Roots {
		id.roots = append(id.roots, sha256.Sum256(root.Raw))
	}
	return id
}

// errOtherProfile is the cause of a refusal by sameProfile.
var errOtherProfile = errors.New("profile: the folder holds another profile")

// sameProfile refuses when the folder holds another profile. An empty client id, which is not known before enrolment,
// is not compared. What cannot be read is somebody's profile too.
func sameProfile(dir string, want identity) error {
	if _, err := os.Lstat(filepath.Join(dir, infoFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	other := func(what string) error {
		return &Error{
			Message: fmt.Sprintf("%s already holds a profile of another %s", dir, what),
			Hint:    "choose another folder with --profile, or overwrite it with --replace",
			Err:     errOtherProfile,
		}
	}
	have, err := readInfo(dir)
	if err != nil {
		return err
	}
	if have.Issuer != want.issuer {
		return other("issuer (" + have.Issuer + ")")
	}
	if want.clientID != "" && have.ClientID != want.clientID {
		return other("client (" + have.ClientID + ")")
	}
	roots, err := readCertificates(filepath.Join(dir, rootsFile))
	if err != nil {
		return err
	}
	for _, root := range roots {
		if slices.Contains(want.roots, sha256.Sum256(root.Raw)) {
			return nil
		}
	}
	return other("root certificate")
}

// load reads a folder without judging dates. A reader so slow that its generation was removed meanwhile starts again.
func load(dir string) (*Profile, error) {
	const attempts = 5
	for range attempts - 1 {
		before, _ := os.Readlink(filepath.Join(dir, currentLink))
		p, err := loadOnce(dir)
		if after, _ := os.Readlink(filepath.Join(dir, currentLink)); err == nil || after == before {
			return p, err
		}
	}
	return loadOnce(dir)
}

// loadOnce reads the link once, so that certificate and key are of one generation even while another process swaps it.
func loadOnce(dir string) (*Profile, error) {
	i, err := readInfo(dir)
	if err != nil {
		return nil, err
	}
	roots, err := readCertificates(filepath.Join(dir, rootsFile))
	if err != nil {
		return nil, err
	}
	generation, err := os.Readlink(filepath.Join(dir, currentLink))
	if err != nil || filepath.Base(generation) != generation {
		return nil, damaged(filepath.Join(dir, currentLink), errors.New("is missing or not a link to a generation"))
	}
	certPath, keyPath := filepath.Join(dir, generation, certFile), filepath.Join(dir, generation, keyFile)
	chain, err := readCertificates(certPath)
	if err != nil {
		return nil, err
	}
	key, err := readKey(keyPath)
	if err != nil {
		return nil, err
	}
	if !sameKey(chain[0].PublicKey, key.Public()) {
		return nil, damaged(keyPath, fmt.Errorf("is not the key of %s", certPath))
	}
	pair, err := mtls.NewKeyPair(tlsCertificate(chain, key))
	if err != nil {
		return nil, damaged(certPath, err)
	}
	return &Profile{dir: dir, info: i, roots: roots, keyPair: pair, key: key, exposed: exposure(keyPath)}, nil
}

// exposure says that others than the owner can read a key; empty when they cannot. Mounted secrets may have no other mode.
func exposure(path string) string {
	found, err := os.Stat(path)
	if err != nil || found.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("the private key %s can be read by other users (mode %04o): chmod 600 %s", path, found.Mode().Perm(), ShellWord(path))
}

func readInfo(dir string) (info, error) {
	path := filepath.Join(dir, infoFile)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return info{}, &Error{
			Message: fmt.Sprintf("there is no profile in %s", dir),
			Hint:    "enrol first (certbound enroll), or name the folder with --profile or CERTBOUND_PROFILE",
			Err:     err,
		}
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return info{}, notAFolder(dir, err)
	}
	if err != nil {
		return info{}, damaged(path, err)
	}
	var i info
	if err := json.Unmarshal(data, &i); err != nil {
		return info{}, damaged(path, errors.New("is not valid JSON"))
	}
	if err := CheckClientID(i.ClientID); err != nil {
		return info{}, damaged(path, err)
	}
	locations := map[string]string{"issuer": i.Issuer, "mtls_url": i.MTLSURL, "token_endpoint": i.TokenEndpoint}
	for name, value := range locations {
		if _, err := originOf(value); err != nil {
			return info{}, damaged(path, fmt.Errorf("%s %w", name, err))
		}
	}
	return i, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, damaged(path, err)
	}
	certs, err := mtls.ParseCertificates(data)
	if err != nil {
		return nil, damaged(path, err)
	}
	if len(certs) == 0 {
		return nil, damaged(path, errors.New("holds no certificate"))
	}
	return certs, nil
}

func readKey(path string) (crypto.Signer, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, damaged(path, err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, damaged(path, errors.New("is not one PEM private key"))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged(path, errors.New("is not a PKCS #8 private key"))
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, damaged(path, errors.New("is not a signing key"))
	}
	return key, nil
}

// readFile reads a bounded file; an empty one is an error, since a crash of someone else's tool leaves such.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0:
		return nil, errors.New("is empty")
	case len(data) > maxFile:
		return nil, errors.New("is too large")
	}
	return data, nil
}

// bare is what went wrong with a file without its name, for errors that name it themselves.
func bare(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// damaged names the file. The hint is the only way back there is: the folder is disposable, the client is not.
func damaged(path string, err error) error {
	err = bare(err)
	return &Error{
		Message: fmt.Sprintf("%s: %v", path, err),
		Hint: "restore the file, or ask an operator for a new code (certbound client invite ID) " +
			"and enrol again with --replace",
		Err: err,
	}
}

func notAFolder(dir string, err error) error {
	return &Error{
		Message: fmt.Sprintf("the profile %s is a file, or lies below one", dir),
		Hint:    "a profile is a folder: name that, or one that is not there yet",
		Err:     err,
	}
}

func folderError(dir string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return notAFolder(dir, err)
	}
	return &Error{
		Message: fmt.Sprintf("cannot write the profile %s: %v", dir, err),
		Hint:    "make the folder writable and run the same command again: it goes on where it stopped",
		Err:     err,
	}
}

// writeGeneration writes certificate and key into a new folder and syncs it; nothing points to it yet.
func writeGeneration(dir string, cert, key []byte) (string, error) {
	name, err := nextGeneration(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	return name, errors.Join(
		writeFile(filepath.Join(path, keyFile), key, 0o600),
		writeFile(filepath.Join(path, certFile), cert, 0o644),
		syncDir(path), syncDir(dir),
	)
}

// nextGeneration is one above the highest there is, complete or not: a number is never used twice.
func nextGeneration(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(escapeGlob(dir), generationPattern))
	if err != nil {
		return "", err
	}
	number := 0
	if len(names) > 0 {
		slices.Sort(names)
		if _, err := fmt.Sscanf(filepath.Base(names[len(names)-1]), "gen-%06d", &number); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("gen-%06d", number+1), nil
}

// removeOld keeps the generation in use and the one before, which a reader may just be opening.
func removeOld(dir, current string) error {
	names, err := filepath.Glob(filepath.Join(escapeGlob(dir), generationPattern))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, old := range names[:max(len(names)-2, 0)] {
		if filepath.Base(old) == current {
			continue
		}
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// writeFile replaces a file by rename, so that a reader sees the old one or the new one, and syncs the content first.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// swapLink points a link in dir to target, whatever it was before, in one step.
func swapLink(dir, target, name string) error {
	path := filepath.Join(dir, name)
	if have, err := os.Readlink(path); err == nil && have == target {
		return nil
	}
	temporary := filepath.Join(dir, ".tmp-"+name)
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// syncDir makes renames and new names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// pendingKey returns the key in the file, made and synced first when there is none.
func pendingKey(path string) (crypto.Signer, error) {
	if _, err := os.Lstat(path); err == nil {
		return readKey(path)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, folderError(dir, err)
	}
	err = errors.Join(writeFile(path, data, 0o600), syncDir(dir), syncDir(filepath.Dir(dir)))
	if err != nil {
		return nil, folderError(dir, err)
	}
	return key, nil
}

// lockInterval is how often a held lock is tried again: flock(2) cannot wait and listen to a context at once.
const lockInterval = 50 * time.Millisecond

// lock takes the folder's lock, making the folder when it is not there, and waits for another holder until ctx ends.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	ticker := time.NewTicker(lockInterval)
	defer ticker.Stop()
	for {
		f, err := tryLock(dir)
		if err != nil {
			return nil, folderError(dir, err)
		}
		if f != nil {
			return func() { f.Close() }, nil // closing releases
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, &Error{
				Message: fmt.Sprintf("another program is changing the profile %s", dir),
				Hint:    "wait until it has finished and run the command again",
				Err:     ctx.Err(),
			}
		}
	}
}

// tryLock returns nil without an error when the lock is held by another. A lock file that was removed between open
// and lock, with its folder, protects nothing.
func tryLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // its holder has just removed the folder
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	held, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(held, there) {
		f.Close()
		return nil, nil
	}
	return f, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

func tlsCertificate(chain []*x509.Certificate, key crypto.Signer) tls.Certificate {
	c := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

func sameKey(a, b crypto.PublicKey) bool {
	equaler, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && equaler.Equal(b)
}
