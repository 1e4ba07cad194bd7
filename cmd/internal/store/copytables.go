// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

// postgresKind is what Dialect says of PostgreSQL.
const postgresKind = "postgres"

// columnKind is how a column's values are read and written on every database.
type columnKind byte

const (
	integer columnKind = 'i'
	text    columnKind = 't'
	blob    columnKind = 'b'
	truth   columnKind = 'f'
)

type column struct {
	name string
	kind columnKind
}

// table is one that a copy takes with it.
type table struct {
	name    string
	columns []column
}

// copiedTables are all that a copy takes, those that others refer to first. They are listed here and not asked of the
// database, so that a table or column that somebody adds is either copied or left out on purpose: a test compares them
// with the schema. The table state has one row, which every database has from the beginning: it is replaced.
func copiedTables() []table {
	i, t, b, f := integer, text, blob, truth
	return []table{
		{"state", []column{{"id", i}, {"version", i}, {"crl_number", i}, {"denial_seq", i}, {"kek_check", b}}},
		{"settings", []column{{"name", t}, {"value", t}}},
		{"sealed_keys", []column{{"purpose", t}, {"id", t}, {"key_state", t}, {"algorithm", t}, {"chain", b}, {"sealed", b},
			{"seal_version", i}, {"created_at", i}, {"state_since", i}, {"state_until", i}, {"version", i}}},
		{"clients", []column{{"id", t}, {"generation", i}, {"disabled", f}, {"removed_at", i}, {"auth_method", t}, {"subject_kind", t},
			{"subject_value", t}, {"dns", t}, {"ips", t}, {"uris", t}, {"cert_usage", t}, {"scopes", t}, {"resources", t}, {"token_ttl", i},
			{"trust", t}, {"certificates", b}, {"jwks_uri", t}, {"jwks", t}, {"built_in", f}, {"grantor", f}, {"created_at", i}, {"updated_at", i},
			{"version", i}}},
		{"client_names", []column{{"kind", t}, {"name", t}, {"client_id", t}}},
		{"client_certificates", []column{{"thumbprint", b}, {"client_id", t}, {"key_hash", b}, {"not_before", i}, {"not_after", i}}},
		{"client_refs", []column{{"client_id", t}, {"kind", t}, {"value", t}}},
		{"codes", []column{{"id", b}, {"client_id", t}, {"generation", i}, {"public_key", b}, {"created_at", i}, {"expires_at", i},
			{"used_at", i}, {"used_key", b}, {"certificate", b}, {"used_from", t}, {"void", f}, {"version", i}}},
		{"certificates", []column{{"thumbprint", b}, {"serial", t}, {"client_id", t}, {"generation", i}, {"not_before", i},
			{"not_after", i}, {"key_hash", b}, {"der", b}, {"renewed_from", b}, {"revoked_at", i}, {"reason", i}, {"created_at", i},
			{"version", i}}},
		{"blocked_keys", []column{{"key_hash", b}, {"created_at", i}, {"version", i}}},
		{"denials", []column{{"position", i}, {"kind", t}, {"value", t}, {"client_id", t}, {"before_at", i}, {"until_at", i}, {"version", i}}},
		{"resources", []column{{"uri", t}, {"scopes", t}, {"servers", t}, {"built_in", f}, {"created_at", i}, {"version", i}}},
		{"trusts", []column{{"name", t}, {"anchors", b}, {"intermediates", b}, {"crl_url", t}, {"crl", b}, {"revocation", t},
			{"created_at", i}, {"updated_at", i}, {"version", i}}},
		{"pending_requests", []column{{"id", t}, {"kind", t}, {"payload", b}, {"requested_by", t}, {"created_at", i},
			{"expires_at", i}, {"version", i}}},
		{"assertions", []column{{"digest", b}, {"until_at", i}}}, // they would be good once more
		{"outbox", []column{{"id", t}, {"replica", t}, {"body", b}, {"noted_at", i}, {"position", i}, {"version", i}}},
		{"ca_kv", []column{{"bucket", t}, {"nkey", b}, {"nvalue", b}, {"created_at", i}}},
		{"audit_days", []column{{"day", t}, {"sealed", b}, {"seal_version", i}}},
		{"audit_subjects", []column{{"id", t}, {"sealed", b}, {"seal_version", i}}},
		{"journals", []column{{"replica", t}, {"incarnation", i}, {"first_key", t}, {"previous_seq", i}, {"previous_chain", b},
			{"started_at", i}, {"head_seq", i}, {"head_chain", b}, {"head_at", i}, {"witnessed_at", i}}},
	}
}

// leftOut are the tables that belong to a database as it runs, and why a copy of it has no use for them.
func leftOut() map[string]string {
	return map[string]string{
		"schema_version":  "the copy's own",
		"leases":          "who is serving there does not serve here",
		"followers":       "who follows the denials there does not follow them here",
		"revocation_list": "it is signed anew, with the next number",
		"ticket_keys":     "sessions do not resume at a copy (a stolen key would resume any)",
		"changes":         "nobody has applied any version of the copy: whoever follows drops everything",
	}
}
