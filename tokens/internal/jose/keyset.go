// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package jose

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	gojose "github.com/go-jose/go-jose/v4"
)

// ErrKeySet reports bytes that are not a JSON Web Key Set within the bounds.
var ErrKeySet = errors.New("jose: not a JSON Web Key Set")

// ParseKeySet reads a JSON Web Key Set (RFC 7517, Section 5). Entries that this package cannot or must not verify
// with are skipped: unknown types, curves, uses and algorithms, symmetric keys, entries that publish a private
// part, RSA keys out of bounds, entries without "kid". Where two entries share a "kid", none of them is used. An
// RSA entry without "alg" is a PS256 key. Keys of the type AKP (RFC 9964) are read where their algorithm is among types.
// The result may be empty; the order is that of the set.
func ParseKeySet(data []byte, types ...KeyType) ([]PublicKey, error) {
	if len(data) > MaxKeySetBytes {
		return nil, fmt.Errorf("%w: too large", ErrKeySet)
	}
	set, err := DecodeObject(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeySet, err)
	}
	entries, ok := set["keys"].([]any)
	if !ok || len(entries) > MaxKeys {
		return nil, fmt.Errorf("%w: keys", ErrKeySet)
	}
	seen := map[string]int{}
	var keys []PublicKey
	for _, entry := range entries {
		members, ok := entry.(Object)
		if !ok {
			continue
		}
		if id, ok := members["kid"].(string); ok {
			seen[id]++
		}
		if key, ok := readKey(members, types); ok {
			keys = append(keys, key)
		}
	}
	return slices.DeleteFunc(keys, func(k PublicKey) bool { return seen[k.ID] > 1 }), nil
}

// privateMembers are the members of RFC 7518, Sections 6.2.2, 6.3.2 and 6.4.1 and of RFC 9964, Section 4 that only a
// private or symmetric key has. A key whose private part was published is everybody's key.
var privateMembers = [...]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// HasPrivatePart reports whether a JSON Web Key has a member that only a private or symmetric key has.
func HasPrivatePart(members Object) bool {
	for _, name := range privateMembers {
		if _, present := members[name]; present {
			return true
		}
	}
	return false
}

func readKey(members Object, types []KeyType) (PublicKey, bool) {
	if HasPrivatePart(members) {
		return PublicKey{}, false
	}
	id, ok := members["kid"].(string)
	if !ok || id == "" || len(id) > maxKeyIDBytes || !forVerifying(members) {
		return PublicKey{}, false
	}
	material, err := readMaterial(members, types)
	if err != nil {
		return PublicKey{}, false
	}
	key := PublicKey{ID: id, Algorithm: AlgorithmFor(material), Key: material}
	if stated, present := members["alg"]; present {
		name, _ := stated.(string)
		key.Algorithm = Algorithm(name)
	}
	return key, key.Check() == nil
}

// forVerifying judges "use" and "key_ops" (RFC 7517, Sections 4.2 and 4.3).
func forVerifying(members Object) bool {
	if use, present := members["use"]; present && use != "sig" {
		return false
	}
	operations, present := members["key_ops"]
	if !present {
		return true
	}
	list, _ := operations.([]any)
	return slices.Contains(list, any("verify"))
}

// readMaterial hands the library only the members that make up the key, so that no certificate or location in the
// entry is ever looked at.
func readMaterial(members Object, types []KeyType) (crypto.PublicKey, error) {
	if members["kty"] == typeAKP {
		return readAKP(members, types), nil
	}
	material := Object{}
	for _, name := range [...]string{"kty", "crv", "x", "y", "n", "e"} {
		if value, present := members[name]; present {
			material[name] = value
		}
	}
	data, err := json.Marshal(material)
	if err != nil {
		return nil, err
	}
	var key gojose.JSONWebKey
	if err := key.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	return key.Key, nil
}

// MarshalKeySet writes the keys as a JSON Web Key Set with "kid", "alg" and "use" in each entry and nothing that is
// not public. Each key must pass Check and have an ID of its own.
func MarshalKeySet(keys []PublicKey) ([]byte, error) {
	set := struct {
		Keys []any `json:"keys"`
	}{make([]any, 0, len(keys))}
	seen := map[string]bool{}
	for _, k := range keys {
		if err := k.Check(); err != nil {
			return nil, fmt.Errorf("key %q: %w", k.ID, err)
		}
		if k.ID == "" || seen[k.ID] {
			return nil, fmt.Errorf("jose: key id %q is empty or used twice", k.ID)
		}
		seen[k.ID] = true
		if key, ok := foreignKey(k.Key); ok {
			set.Keys = append(set.Keys, k.akp(key))
			continue
		}
		entry := gojose.JSONWebKey{Key: k.Key, KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
		set.Keys = append(set.Keys, entry)
	}
	return json.Marshal(set)
}

// KeyID returns the SHA-256 thumbprint of a public key in base64url (RFC 7638): the required members only, so that
// the same key has the same id everywhere.
func KeyID(pub crypto.PublicKey) (string, error) {
	if AlgorithmFor(pub) == "" {
		return "", fmt.Errorf("%w: %T", ErrKey, pub)
	}
	if key, ok := foreignKey(pub); ok {
		return akpKeyID(key), nil
	}
	sum, err := (&gojose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("jose: thumbprint of a key: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}
