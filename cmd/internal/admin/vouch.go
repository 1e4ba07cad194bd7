// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certbound/certbound/cmd/internal/store"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/pki"
	"github.com/certbound/certbound/tokens/issuer"
)

// The methods of authentication (RFC 8705, Section 2).
const (
	byCA          = "tls_client_auth"             // our own CA, or a foreign one
	byCertificate = "self_signed_tls_client_auth" // a certificate that the client registered
	byAssertion   = "private_key_jwt"             // what the client signs with a key that it registered
)

// Bounds of what vouches for a client.
const (
	maxPinned   = 8 // certificates of one client: enough to rotate
	maxJWKS     = 32 << 10
	maxSPIFFEID = 255 // bytes of a client id
)

// vouched judges who vouches for a client, and returns the client with its method and what that method takes.
func (r rules) vouched(req *ClientRequest, now time.Time) (store.Client, error) {
	members := subjectMembers(req)
	ownCertificate := len(req.Certificates) > 0 || req.JWKSURI != ""
	switch {
	case req.AuthMethod != "" && req.AuthMethod != byCA && req.AuthMethod != byCertificate && req.AuthMethod != byAssertion:
		return store.Client{}, invalidMetadata("leave token_endpoint_auth_method out", "only %s, %s and %s clients can be registered", byCA, byCertificate, byAssertion)
	case req.AuthMethod == byAssertion || len(req.JWKS) > 0:
		return r.asserting(req, len(members) > 0)
	case req.Trust != "" && ownCertificate:
		return store.Client{}, invalidMetadata("use --trust, or --cert, or --jwks-uri", "either a foreign CA vouches for a client or its own certificate")
	case ownCertificate && req.AuthMethod == byCA, req.Trust != "" && req.AuthMethod == byCertificate:
		return store.Client{}, invalidMetadata("leave token_endpoint_auth_method out", "the method is not that of what vouches for the client")
	case len(members) > 0 && (ownCertificate || req.AuthMethod == byCertificate):
		// RFC 8705, Section 2.1.2: the members are parameters of the other method.
		return store.Client{}, invalidMetadata("leave the tls_client_auth_ members out", "a client with its own certificate is recognised by that, not by a name")
	case req.AuthMethod == byCertificate && !ownCertificate:
		return store.Client{}, invalidMetadata("use --cert FILE or --jwks-uri URI", "%s needs certificates or a jwks_uri", byCertificate)
	case ownCertificate:
		return r.selfSigned(req, now)
	case req.Trust != "":
		return r.foreign(req, members)
	case len(members) > 0:
		return store.Client{}, invalidMetadata("name the foreign CA with --trust", "our own CA gives its clients the name that they are recognised by")
	}
	return r.own(req)
}

// subjectMembers are those of the five members of RFC 8705, Section 2.1.2 that are given.
func subjectMembers(req *ClientRequest) map[string]string {
	members := map[string]string{
		string(mtls.SubjectDN): req.SubjectDN, string(mtls.SANDNS): req.SANDNS, string(mtls.SANURI): req.SANURI,
		string(mtls.SANIP): req.SANIP, string(mtls.SANEmail): req.SANEmail,
	}
	for kind, value := range members {
		if value == "" {
			delete(members, kind)
		}
	}
	return members
}

// own is a client of our own CA.
func (r rules) own(req *ClientRequest) (store.Client, error) {
	if err := checkID(req.ID); err != nil {
		return store.Client{}, err
	}
	usage, err := parseUsage(req.Usage)
	if err != nil {
		return store.Client{}, err
	}
	c := store.Client{
		ID: req.ID, AuthMethod: byCA, Usage: string(usage),
		SubjectKind: string(mtls.SANURI), SubjectValue: pki.ClientURI(r.trustDomain, req.ID),
	}
	return c, r.certificateNames(req, &c)
}

// foreign is a client that a foreign CA vouches for, by exactly one name (RFC 8705, Section 2.1.2).
func (r rules) foreign(req *ClientRequest, members map[string]string) (store.Client, error) {
	if err := r.foreignID(req.ID); err != nil {
		return store.Client{}, err
	}
	if err := nothingIssued(req); err != nil {
		return store.Client{}, err
	}
	subject, err := mtls.SubjectFromMetadata(members)
	if err != nil {
		return store.Client{}, &Error{Status: http.StatusBadRequest, Code: codeMetadata, Err: err,
			Description: printable(strings.TrimPrefix(err.Error(), "mtls: ")),
			Hint:        "give exactly one of --subject-dn, --san-dns, --san-uri, --san-ip and --san-email"}
	}
	if err := r.subjectNames(subject, req.AllowReserved); err != nil {
		return store.Client{}, err
	}
	return store.Client{
		ID: req.ID, AuthMethod: byCA, Usage: string(pki.UsageClient), Trust: req.Trust,
		SubjectKind: string(subject.Kind()), SubjectValue: subject.Value(),
	}, nil
}

// selfSigned is a client that registers its own certificates, by value or by address (RFC 8705, Section 2.2.2).
func (r rules) selfSigned(req *ClientRequest, now time.Time) (store.Client, error) {
	if err := checkID(req.ID); err != nil {
		return store.Client{}, err
	}
	if err := nothingIssued(req); err != nil {
		return store.Client{}, err
	}
	c := store.Client{ID: req.ID, AuthMethod: byCertificate, Usage: string(pki.UsageClient), JWKSURI: req.JWKSURI}
	switch {
	case len(req.Certificates) > 0 && req.JWKSURI != "":
		// RFC 7591, Section 2: jwks and jwks_uri must not both be there.
		return c, invalidMetadata("use --cert or --jwks-uri", "certificates and jwks_uri exclude each other")
	case req.JWKSURI != "":
		return c, checkJWKSURI(req.JWKSURI)
	}
	var err error
	c.Certificates, err = r.pinned(req.Certificates, req.AllowReserved, now)
	return c, err
}

// asserting is a client that signs assertions with keys that it registers, by value or by address (RFC 7523, Section 2.2).
// No certificate vouches for it: its tokens are bound to whichever it shows.
func (r rules) asserting(req *ClientRequest, named bool) (store.Client, error) {
	if err := checkID(req.ID); err != nil {
		return store.Client{}, err
	}
	if err := nothingIssued(req); err != nil {
		return store.Client{}, err
	}
	c := store.Client{ID: req.ID, AuthMethod: byAssertion, Usage: string(pki.UsageClient), JWKSURI: req.JWKSURI}
	switch {
	case req.AuthMethod != "" && req.AuthMethod != byAssertion:
		return c, invalidMetadata("leave token_endpoint_auth_method out", "jwks belongs to %s", byAssertion)
	case req.Trust != "" || len(req.Certificates) > 0 || named:
		return c, invalidMetadata("leave --trust, --cert and the names out", "a client that signs assertions is recognised by its keys, not by a certificate")
	case (len(req.JWKS) > 0) == (req.JWKSURI != ""):
		// RFC 7591, Section 2: jwks and jwks_uri must not both be there.
		return c, invalidMetadata("use --jwks FILE or --jwks-uri URI", "%s needs either jwks or a jwks_uri", byAssertion)
	case req.JWKSURI != "":
		return c, checkJWKSURI(req.JWKSURI)
	}
	var text bytes.Buffer
	if err := json.Compact(&text, req.JWKS); err != nil || text.Len() > maxJWKS {
		return c, invalidMetadata("send fewer or shorter keys", "jwks is not JSON of at most %d bytes", maxJWKS)
	}
	if _, err := issuer.ParseAssertionKeys(text.Bytes()); err != nil {
		return c, invalidMetadata("send the public keys alone, each for ES256, PS256 or EdDSA and with a kid of its own", "jwks: %s", printable(err.Error()))
	}
	c.JWKS = text.String()
	return c, nil
}

// nothingIssued refuses what only a certificate of our own CA would carry.
func nothingIssued(req *ClientRequest) error {
	if len(req.DNSNames)+len(req.IPAddresses)+len(req.URIs) > 0 || (req.Usage != "" && req.Usage != string(pki.UsageClient)) {
		return invalidMetadata("leave --dns, --ip, --uri and --usage out", "our CA issues no certificate for this client")
	}
	return nil
}

func checkID(id string) error {
	if pki.CheckClientID(id) == nil {
		return nil
	}
	return invalidMetadata("an id begins with a letter or digit and has at most 63 of a-z, 0-9, '.', '_' and '-'",
		"'%s' is not a client id", printable(id))
}

// foreignID accepts also a SPIFFE id, unless it is of our own trust domain: that would name a client of our own CA.
func (r rules) foreignID(id string) error {
	domain, isSPIFFE := strings.CutPrefix(id, "spiffe://")
	if !isSPIFFE {
		return checkID(id)
	}
	domain, path, _ := strings.Cut(domain, "/")
	if len(id) > maxSPIFFEID || pki.CheckTrustDomain(domain) != nil || !isSPIFFEPath(path) {
		return invalidMetadata("write spiffe://TRUST-DOMAIN/PATH", "'%s' is not a SPIFFE id, or longer than %d bytes", printable(id), maxSPIFFEID)
	}
	if domain == r.trustDomain {
		return ourTrustDomain(id)
	}
	return nil
}

func ourTrustDomain(id string) error {
	return invalidMetadata("choose another name: only our own CA names clients so", "'%s' is of our own trust domain", printable(id))
}

// isSPIFFEPath demands segments of letters, digits, '.', '_' and '-', none of them a relative one (SPIFFE-ID, Section 2.2).
func isSPIFFEPath(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", c)
		}) {
			return false
		}
	}
	return true
}

// checkJWKSURI demands an https address. Where it leads is judged when it is dialled.
func checkJWKSURI(raw string) error {
	uri, err := absoluteURI(raw)
	if err != nil || uri.Scheme != "https" || strings.Contains(raw, "#") {
		return invalidMetadata("use an https address without user and fragment", "'%s' is not a jwks_uri", printable(raw))
	}
	return nil
}

// subjectNames judges the name that a foreign CA's certificate is recognised by.
func (r rules) subjectNames(s mtls.Subject, allowReserved bool) error {
	value := s.Value()
	isReserved := false
	switch s.Kind() {
	case mtls.SANURI:
		if r.isOurSPIFFE(value) {
			return ourTrustDomain(value)
		}
		isReserved = r.reservedURI(value)
	case mtls.SANDNS:
		isReserved = r.reservedHost(value)
	case mtls.SANIP:
		isReserved = r.reservedHost(value)
	case mtls.SubjectDN:
		isReserved = slices.ContainsFunc(commonNames(value), r.reservedHost)
	}
	if isReserved && !allowReserved {
		return reserved(value)
	}
	return nil
}

// isOurSPIFFE reports whether a URI is, in whatever letter case, of our own trust domain.
func (r rules) isOurSPIFFE(raw string) bool {
	uri, err := url.Parse(raw)
	return err == nil && strings.EqualFold(uri.Scheme, "spiffe") && strings.EqualFold(uri.Host, r.trustDomain)
}

func (r rules) reservedURI(raw string) bool {
	uri, err := url.Parse(raw)
	return err == nil && r.reservedHost(uri.Hostname())
}

// commonNames are the common names of a distinguished name in the form of RFC 4514 that mtls accepted.
func commonNames(dn string) []string {
	var names []string
	for _, part := range splitDN(dn) {
		kind, value, _ := strings.Cut(part, "=")
		if kind = strings.TrimSpace(kind); strings.EqualFold(kind, "CN") || kind == "2.5.4.3" {
			names = append(names, valueDN(strings.TrimSpace(value)))
		}
	}
	return names
}

// splitDN cuts at the separators that are not escaped.
func splitDN(dn string) []string {
	var parts []string
	start := 0
	for i := 0; i < len(dn); i++ {
		switch dn[i] {
		case '\\':
			i++
		case ',', '+', ';':
			parts = append(parts, dn[start:i])
			start = i + 1
		}
	}
	return append(parts, dn[start:])
}

// valueDN is the text of a value. One that begins with # is the hexadecimal form of its DER (RFC 4514, Section 2.4).
func valueDN(value string) string {
	digits, isHex := strings.CutPrefix(value, "#")
	if !isHex {
		return unescapeDN(value)
	}
	der, err := hex.DecodeString(digits)
	if err != nil {
		return value
	}
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(der, &raw); err != nil {
		return value
	}
	octets := map[int]int{asn1.TagBMPString: 2, tagUniversalString: 4}[raw.Tag] // of one character
	if octets == 0 {
		return string(raw.Bytes)
	}
	var text []rune
	for character := range slices.Chunk(raw.Bytes, octets) {
		var c rune
		for _, octet := range character {
			c = c<<8 | rune(octet)
		}
		text = append(text, c)
	}
	return string(text)
}

// tagUniversalString is what encoding/asn1 does not know: four octets for each character (ITU-T X.680, Section 8.6).
const tagUniversalString = 28

// unescapeDN undoes "\," and "\2C" (RFC 4514, Section 3).
func unescapeDN(value string) string {
	var out []byte
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' || i+1 == len(value) {
			out = append(out, value[i])
			continue
		}
		i++
		if octet, err := hex.DecodeString(value[i:min(i+2, len(value))]); err == nil && len(octet) == 1 {
			out = append(out, octet[0])
			i++
			continue
		}
		out = append(out, value[i])
	}
	return string(out)
}

// wildcard reports whether the client is recognised by a name with a wildcard. It is compared as it is written, yet a
// certificate with such a name poses as every host below it.
func wildcard(c store.Client) bool {
	return c.SubjectKind == string(mtls.SANDNS) && strings.Contains(c.SubjectValue, "*")
}

// pinned reads the certificates that a client registers, as DER. Each is signed by its own key (RFC 8705, Section 2.2).
func (r rules) pinned(texts []string, allowReserved bool, now time.Time) ([][]byte, error) {
	if len(texts) == 0 || len(texts) > maxPinned {
		return nil, invalidMetadata("use --cert FILE once for each", "1 to %d certificates are needed, not %d", maxPinned, len(texts))
	}
	var ders [][]byte
	for _, text := range texts {
		cert, err := onePEM(text)
		if err != nil {
			return nil, err
		}
		if err := r.pinnable(cert, allowReserved, now); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(ders, func(der []byte) bool { return string(der) == string(cert.Raw) }) {
			ders = append(ders, cert.Raw)
		}
	}
	return ders, nil
}

// onePEM reads exactly one certificate: of a chain only the first would be the client's, and the second would let its
// CA pose as the client.
func onePEM(text string) (*x509.Certificate, error) {
	if err := noPrivateKey(codeMetadata, text); err != nil {
		return nil, err
	}
	certs, err := mtls.ParseCertificates([]byte(text))
	if err == nil && len(certs) != 1 {
		err = errors.New("more than one certificate")
	}
	if err != nil {
		return nil, &Error{Status: http.StatusBadRequest, Code: codeMetadata, Err: err,
			Description: "a certificate is not exactly one in PEM", Hint: "send the client's own certificate alone, without its chain"}
	}
	return certs[0], nil
}

// noPrivateKey tells who sends us a private key that it is no longer theirs alone.
func noPrivateKey(code, text string) error {
	if !strings.Contains(text, "PRIVATE KEY-----") {
		return nil
	}
	return &Error{Status: http.StatusBadRequest, Code: code, Description: "a private key was sent",
		Hint: "discard that key, for it has left its machine; make a new one and send its certificate alone"}
}

func (r rules) pinnable(cert *x509.Certificate, allowReserved bool, now time.Time) error {
	switch err := mtls.CheckPublicKey(cert.PublicKey); {
	case err != nil:
		return &Error{Status: http.StatusBadRequest, Code: codeMetadata, Err: err, Description: "the certificate's key is not accepted",
			Hint: "use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits"}
	case len(cert.Raw) > mtls.MaxChainBytes:
		return invalidMetadata("make it with fewer names", "the certificate is longer than the %d bytes that a client may present", mtls.MaxChainBytes)
	case now.After(cert.NotAfter):
		return invalidMetadata("register one that is valid", "the certificate expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) != nil {
		// RFC 8705, Section 2.2: the method is for self-signed certificates. The signature says that the certificate and
		// the names in it are the wish of who has the key.
		return invalidMetadata("make one that signs itself, or register who issued it: certbound trust add NAME --ca FILE, then --trust NAME",
			"the certificate is not signed by its own key")
	}
	names := append([]string{cert.Subject.CommonName}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	for _, uri := range cert.URIs {
		if r.isOurSPIFFE(uri.String()) {
			return ourTrustDomain(uri.String())
		}
		names = append(names, uri.Hostname())
	}
	if i := slices.IndexFunc(names, r.reservedHost); i >= 0 && !allowReserved {
		return reserved(names[i])
	}
	return nil
}

func certificateSummary(der []byte) PinnedCertificate {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return PinnedCertificate{Subject: "unreadable"}
	}
	return PinnedCertificate{
		Thumbprint: mtls.ThumbprintOf(cert).String(), Subject: cert.Subject.String(),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
	}
}

// operator reports whether a client holds a scope of the operators' API.
func operator(c store.Client) bool { return slices.ContainsFunc(c.Scopes, givesAuthority) }

// registrationNeeds are the scopes that it takes to register a client: who gives authority needs no more than the scope
// for that, unless something else is given with it.
func registrationNeeds(c store.Client) []string {
	var needs []string
	ordinary := func(scope string) bool { return !givesAuthority(scope) }
	if operator(c) {
		needs = append(needs, ScopeGrant)
	}
	if !operator(c) || slices.ContainsFunc(c.Scopes, ordinary) || len(c.DNS)+len(c.IPs)+len(c.URIs) > 0 {
		needs = append(needs, ScopeRegistry)
	}
	if wildcard(c) {
		needs = append(needs, ScopeTrust)
	}
	return needs
}
