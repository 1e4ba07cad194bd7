// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/certbound/certbound/cmd/internal/config"
	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens/issuer"
	"github.com/certbound/certbound/tokens/mldsa"
)

// Check says why Run would refuse a configuration, as far as that shows without the data folder: it reads files that the
// configuration names and changes nothing. Run asks it before it stores anything, because what the first start stores
// binds the installation.
func Check(cfg config.Config) error {
	for _, u := range []struct{ what, value string }{{"issuer", cfg.Issuer}, {"mtls_url", cfg.MTLSURL}} {
		if u.value == "" {
			continue
		}
		if err := issuer.CheckIdentifier(u.value); err != nil {
			return &StartError{
				Message: fmt.Sprintf("the %s %q cannot be used: %v", u.what, u.value, err),
				Hint:    "use an address such as https://tokens.example:8443, in plain form",
			}
		}
		if err := checkHost(hostOf(u.value)); err != nil {
			return err
		}
	}
	for _, name := range cfg.Hosts {
		if err := checkHost(name); err != nil {
			return err
		}
	}
	if isMLDSA(cfg.Signing.Algorithm) && mldsa.Allowed() != nil {
		return &StartError{
			Message: fmt.Sprintf("signing.algorithm is %s, which is no part of the FIPS 140-3 module, and FIPS mode is on", cfg.Signing.Algorithm),
			Hint:    "write signing.algorithm: ES256, or run without FIPS mode",
		}
	}
	if info, err := os.Stat(cfg.Data); err == nil && !info.IsDir() {
		return &StartError{
			Message: fmt.Sprintf("the data folder %s is no folder", cfg.Data),
			Hint:    "name a folder with --data; it is made when it is missing",
		}
	}
	if cfg.PostgreSQL() {
		if err := store.CheckURL(cfg.Database); err != nil {
			return err
		}
	}
	if source := kekSource(cfg); source.Value != "" || source.File != "" { // the one in the data folder is made at the first start
		if _, err := store.LoadKEK(cfg.Data, filepath.Join(cfg.Data, store.FileName), source); err != nil {
			return err
		}
	}
	for _, t := range cfg.Trust {
		if err := checkTrustFile(t); err != nil {
			return err
		}
	}
	return nil
}

// kekSource says where the key-encryption key comes from; the zero value is the data folder.
func kekSource(cfg config.Config) store.KEKSource {
	return store.KEKSource{Value: os.Getenv("CERTBOUND_KEK"), File: cfg.KEKFile}
}

// checkHost refuses what our own certificate cannot name.
func checkHost(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	if err := pki.CheckDNSName(strings.ToLower(strings.TrimSuffix(name, "."))); err != nil {
		return &StartError{
			Message: fmt.Sprintf("%q cannot be a name of the service: %v", name, err),
			Hint:    "use a host name of letters, digits and hyphens, or an address",
		}
	}
	return nil
}

func checkTrustFile(t config.Trust) error {
	data, err := os.ReadFile(t.CAFile)
	if err == nil {
		_, err = mtls.ParseCertificates(data)
	}
	if err != nil {
		return &StartError{
			Message: fmt.Sprintf("the CA file %s of the trust %q cannot be used: %v", t.CAFile, t.Name, err),
			Hint:    "give it the CA's certificates in PEM",
		}
	}
	return nil
}
