// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Format is a form in which records leave for other systems, one a line.
type Format string

// The formats.
const (
	FormatJSON Format = "json" // the records as the journal has them
	FormatOCSF Format = "ocsf" // events of the Open Cybersecurity Schema Framework, version OCSFVersion
	FormatCEF  Format = "cef"  // ArcSight Common Event Format, version 0
)

// OCSFVersion is the version of the schema, https://schema.ocsf.io, whose attributes FormatOCSF uses.
const OCSFVersion = "1.8.0"

// Formats are all formats.
func Formats() []Format { return []Format{FormatJSON, FormatOCSF, FormatCEF} }

// Append appends a record in the format, newline included. Whatever a caller of the service had recorded stays within
// its own value. version is the program's.
func (f Format) Append(b []byte, e *Entry, version string) ([]byte, error) {
	switch f {
	case FormatJSON:
		return append(append(b, e.Line...), '\n'), nil
	case FormatOCSF:
		line, err := json.Marshal(ocsfOf(e, version))
		if err != nil {
			return b, fmt.Errorf("export record %d: %w", e.Seq, err)
		}
		return append(append(b, line...), '\n'), nil
	case FormatCEF:
		return appendCEF(b, e, version), nil
	}
	return b, fmt.Errorf("unknown format %q", string(f))
}

// alarms are events that tell of an attack.
func alarms() []string { return []string{"enroll.conflict", "renew.fork", "client.suspend"} }

// ocsfEvent is an event of OCSF. The attributes that the classes require are always there: of every event the class,
// activity, type, severity, time and metadata with product and version; of Authentication a user and a service; of
// Account Change a user; of API Activity an actor, an api and a source endpoint.
type ocsfEvent struct {
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	CategoryUID  int            `json:"category_uid"`
	ClassUID     int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	TypeUID      int            `json:"type_uid"`
	SeverityID   int            `json:"severity_id"`
	Time         int64          `json:"time"` // milliseconds since 1970
	Count        int            `json:"count,omitempty"`
	StatusID     int            `json:"status_id"`
	Status       string         `json:"status,omitempty"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Metadata     ocsfMetadata   `json:"metadata"`
	Actor        *ocsfActor     `json:"actor,omitempty"`
	User         *ocsfNamed     `json:"user,omitempty"`
	Service      *ocsfNamed     `json:"service,omitempty"`
	API          *ocsfAPI       `json:"api,omitempty"`
	Source       *ocsfEndpoint  `json:"src_endpoint,omitempty"`
	Session      *ocsfSession   `json:"session,omitempty"`
	ProtocolID   int            `json:"auth_protocol_id,omitempty"`
	Protocol     string         `json:"auth_protocol,omitempty"`
	Unmapped     map[string]any `json:"unmapped,omitempty"`
}

type ocsfMetadata struct {
	Version     string `json:"version"`
	EventCode   string `json:"event_code"`
	Original    string `json:"original_event_uid"`
	Sequence    uint64 `json:"sequence"`
	Correlation string `json:"correlation_uid,omitempty"`
	LogName     string `json:"log_name"`
	Product     struct {
		Name       string `json:"name"`
		VendorName string `json:"vendor_name"`
		Version    string `json:"version"`
	} `json:"product"`
}

type ocsfActor struct {
	User ocsfNamed `json:"user"`
}

type ocsfNamed struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

type ocsfAPI struct {
	Operation string    `json:"operation"`
	Service   ocsfNamed `json:"service"`
}

type ocsfEndpoint struct {
	IP   string `json:"ip,omitempty"`
	Name string `json:"name,omitempty"`
}

type ocsfSession struct {
	UID     string `json:"uid"`
	Expires int64  `json:"expiration_time,omitempty"`
}

// ocsfClass is a class of OCSF with one of its activities.
type ocsfClass struct {
	category, class int
	name            string
	activity        int
	activityName    string
}

// classOf says which class and activity an event is: tokens are Authentication, what changes a client is Account Change,
// all else API Activity.
func classOf(event string) ocsfClass {
	noun, verb, _ := strings.Cut(event, ".")
	switch noun {
	case "token":
		return ocsfClass{3, 3002, "Authentication", 1, "Logon"}
	case "client":
		c := ocsfClass{3, 3001, "Account Change", 99, verb}
		switch verb {
		case "add":
			c.activity, c.activityName = 1, "Create"
		case "enable":
			c.activity, c.activityName = 2, "Enable"
		case "disable", "suspend":
			c.activity, c.activityName = 5, "Disable"
		case "remove":
			c.activity, c.activityName = 6, "Delete"
		}
		return c
	}
	c := ocsfClass{6, 6003, "API Activity", 99, cmp.Or(verb, event)}
	switch verb {
	case "add", "issue", "enroll", "redeem":
		c.activity, c.activityName = 1, "Create"
	case "read", "list", "show":
		c.activity, c.activityName = 2, "Read"
	case "replace", "renew", "confirm":
		c.activity, c.activityName = 3, "Update"
	case "remove", "revoke", "reject", "erase":
		c.activity, c.activityName = 4, "Delete"
	}
	return c
}

const product = "Certbound"

func ocsfOf(e *Entry, version string) *ocsfEvent {
	class := classOf(e.Name)
	o := &ocsfEvent{
		ActivityID: class.activity, ActivityName: class.activityName, CategoryUID: class.category,
		ClassUID: class.class, ClassName: class.name, TypeUID: class.class*100 + class.activity,
		SeverityID: 1, Time: e.Time.UnixMilli(), Count: e.Count, StatusID: 99,
		Metadata: ocsfMetadata{
			Version: OCSFVersion, EventCode: e.Name, Original: cmp.Or(e.ID, strconv.FormatUint(e.Seq, 10)), Sequence: e.Seq,
			Correlation: e.Correlation, LogName: "audit",
		},
		Source: endpointOf(e), Unmapped: unmapped(e),
	}
	o.Metadata.Product.Name, o.Metadata.Product.VendorName, o.Metadata.Product.Version = product, product, version
	switch e.Outcome {
	case Granted:
		o.StatusID, o.Status = 1, "Success"
	case Refused:
		o.StatusID, o.Status, o.StatusDetail, o.SeverityID = 2, "Failure", e.Reason, 2
	default:
		o.Status = "Other"
	}
	if slices.Contains(alarms(), e.Name) {
		o.SeverityID = 4
	}
	who := func(id string) *ocsfNamed { return &ocsfNamed{Name: cmp.Or(id, "unknown"), UID: id} }
	if class.class == 6003 || e.Actor != "" {
		o.Actor = &ocsfActor{User: *who(cmp.Or(e.Actor, e.Client, ownActor(e)))}
	}
	switch class.class {
	case 3002:
		o.User, o.Service = who(e.Client), &ocsfNamed{Name: product}
		o.ProtocolID, o.Protocol = 6, "OAUTH 2.0"
		if e.TokenID != "" {
			o.Session = &ocsfSession{UID: e.TokenID}
			if !e.Expires.IsZero() {
				o.Session.Expires = e.Expires.UnixMilli()
			}
		}
	case 3001:
		o.User = who(e.Client)
	case 6003:
		o.API = &ocsfAPI{Operation: e.Name, Service: ocsfNamed{Name: product}}
		if o.Source == nil {
			o.Source = &ocsfEndpoint{Name: "unknown"}
		}
	}
	return o
}

// ownActor is who did what the journal says of itself.
func ownActor(e *Entry) string {
	if strings.HasPrefix(e.Name, "journal.") {
		return "certbound"
	}
	return ""
}

// addressOf is the address of the caller, without its port. What is no address is false.
func addressOf(e *Entry) (netip.Addr, bool) {
	if at, err := netip.ParseAddrPort(e.Address); err == nil {
		return at.Addr().Unmap().WithZone(""), true
	}
	at, err := netip.ParseAddr(e.Address)
	return at.Unmap().WithZone(""), err == nil
}

func endpointOf(e *Entry) *ocsfEndpoint {
	if at, ok := addressOf(e); ok {
		return &ocsfEndpoint{IP: at.String()}
	}
	if e.Address != "" {
		return &ocsfEndpoint{Name: e.Address}
	}
	return nil
}

// unmapped is what the schema has no place for, by the journal's names.
func unmapped(e *Entry) map[string]any {
	m := map[string]any{}
	for name, value := range map[string]string{
		"x5t#S256": e.Thumbprint, "serial": e.Serial, "resource": e.Resource, "sealed": e.Sealed,
	} {
		if value != "" {
			m[name] = value
		}
	}
	for name, values := range map[string][]string{"scope": e.Scope, "aud": e.Audience} {
		if len(values) > 0 {
			m[name] = values
		}
	}
	for name, values := range map[string]map[string]string{"detail": e.Detail, "personal": e.Personal} {
		if len(values) > 0 {
			m[name] = values
		}
	}
	if !e.Expires.IsZero() && e.TokenID == "" {
		m["expires"] = e.Expires.UTC().Format(time.RFC3339Nano)
	}
	if len(m) == 0 {
		return nil
	}
	return m
}

// appendCEF appends a record as CEF. In the header a backslash and a pipe are escaped, in the extension a backslash, an
// equals sign and the ends of lines; the pipe stands for itself there.
func appendCEF(b []byte, e *Entry, version string) []byte {
	severity := "3"
	switch {
	case slices.Contains(alarms(), e.Name):
		severity = "8"
	case e.Outcome == Refused:
		severity = "5"
	}
	b = append(b, "CEF:0"...)
	for _, field := range []string{product, product, version, e.Name, cmp.Or(strings.TrimSpace(e.Name+" "+e.Outcome), "unknown"), severity} {
		b = append(b, '|')
		b = escapeCEF(b, field, '|')
	}
	b = append(b, '|')
	start := len(b)
	add := func(key, value string) {
		if value == "" {
			return
		}
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(append(b, key...), '=')
		b = escapeCEF(b, value, '=')
	}
	custom := func(key, label, value string) {
		if value != "" {
			add(key, value)
			add(key+"Label", label)
		}
	}
	add("rt", strconv.FormatInt(e.Time.UnixMilli(), 10))
	add("externalId", cmp.Or(e.ID, strconv.FormatUint(e.Seq, 10)))
	add("cat", e.Name)
	add("outcome", e.Outcome)
	add("reason", e.Reason)
	if e.Count > 0 {
		add("cnt", strconv.Itoa(e.Count))
	}
	add("suser", cmp.Or(e.Actor, e.Client))
	if e.Actor != "" {
		add("duser", e.Client)
	}
	if at, ok := addressOf(e); ok && at.Is4() {
		add("src", at.String())
	} else if ok {
		custom("c6a2", "Source IPv6 Address", at.String())
	} else {
		add("shost", e.Address)
	}
	custom("cs1", "x5t#S256", e.Thumbprint)
	custom("cs2", "jti", e.TokenID)
	custom("cs3", "correlation", e.Correlation)
	custom("cs4", "scope", strings.Join(e.Scope, " "))
	custom("cs5", "audience", cmp.Or(strings.Join(e.Audience, " "), e.Resource))
	custom("cs6", "serial", e.Serial)
	if !e.Expires.IsZero() {
		custom("deviceCustomDate1", "expires", strconv.FormatInt(e.Expires.UnixMilli(), 10))
	}
	if rest := restOf(e); rest != "" {
		add("msg", rest)
	}
	return append(b, '\n')
}

// restOf is what CEF has no key for, as JSON.
func restOf(e *Entry) string {
	rest := map[string]any{}
	if len(e.Detail) > 0 {
		rest["detail"] = e.Detail
	}
	if len(e.Personal) > 0 {
		rest["personal"] = e.Personal
	}
	if e.Sealed != "" {
		rest["sealed"] = e.Sealed
	}
	if len(rest) == 0 {
		return ""
	}
	text, err := json.Marshal(rest)
	if err != nil { // strings: it cannot be
		return ""
	}
	return string(text)
}

// escapeCEF appends a value with special escaped. Control characters, which CEF has no escape for, become spaces.
func escapeCEF(b []byte, value string, special rune) []byte {
	for _, c := range value {
		switch {
		case c == '\\' || c == special:
			b = append(b, '\\', byte(c))
		case c == '\n' && special == '=':
			b = append(b, '\\', 'n')
		case c == '\r' && special == '=':
			b = append(b, '\\', 'r')
		case unicode.IsControl(c) || c == '\u2028' || c == '\u2029':
			b = append(b, ' ')
		default:
			b = utf8.AppendRune(b, c)
		}
	}
	return b
}
