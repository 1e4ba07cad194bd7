// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package store

// Every query but the migrations, in SQL that SQLite and PostgreSQL both read.
const (
	querySchema         = `SELECT version, oldest FROM schema_version`
	createSchemaVersion = `CREATE TABLE schema_version (version INTEGER NOT NULL, oldest INTEGER NOT NULL)`
	insertSchemaVersion = `INSERT INTO schema_version (version, oldest) VALUES ($1, $2)`
	updateSchemaVersion = `UPDATE schema_version SET version = $1, oldest = $2`

	insertState   = `INSERT INTO state (id, version, crl_number, denial_seq, kek_check) VALUES (1, 0, 0, 0, $1)`
	queryKEKCheck = `SELECT kek_check FROM state WHERE id = 1`
	setKEKCheck   = `UPDATE state SET kek_check = $1 WHERE id = 1`
	lockLeases    = `LOCK TABLE leases IN EXCLUSIVE MODE`
	queryVersion  = `SELECT version FROM state WHERE id = 1`
	// A restored database gives no version, no number of a revocation list and no position of a denial a second time.
	queryCounters = `SELECT crl_number, denial_seq FROM state WHERE id = 1`
	setAhead      = `UPDATE state SET version = $1, crl_number = $2, denial_seq = $3 WHERE id = 1`
	bumpVersion   = `UPDATE state SET version = version + 1 WHERE id = 1 AND ` + servable + ` RETURNING version`
	bumpCRLNumber = `UPDATE state SET crl_number = crl_number + 1 WHERE id = 1 RETURNING crl_number`

	querySetting  = `SELECT value FROM settings WHERE name = $1`
	insertSetting = `INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	deleteSetting = `DELETE FROM settings WHERE name = $1`

	upsertKey = `INSERT INTO sealed_keys (purpose, id, key_state, algorithm, chain, sealed, seal_version, created_at, state_since, state_until)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (purpose, id) DO UPDATE SET key_state = excluded.key_state, algorithm = excluded.algorithm,
			chain = excluded.chain, sealed = excluded.sealed, seal_version = excluded.seal_version,
			created_at = excluded.created_at, state_since = excluded.state_since, state_until = excluded.state_until, version = NULL`
	queryKeys = `SELECT id, key_state, algorithm, chain, sealed, seal_version, created_at, state_since, state_until FROM sealed_keys
		WHERE purpose = $1 ORDER BY created_at, id`
	setKeyState     = `UPDATE sealed_keys SET key_state = $3, state_since = $4, state_until = $5, version = NULL WHERE purpose = $1 AND id = $2`
	retireOtherKeys = `UPDATE sealed_keys SET key_state = 'retiring', state_since = $3, state_until = $4, version = NULL
		WHERE purpose = $1 AND id <> $2 AND key_state = 'active'`
	deleteKey = `DELETE FROM sealed_keys WHERE purpose = $1 AND id = $2`

	clientColumns = `id, generation, disabled, removed_at, auth_method, subject_kind, subject_value, dns, ips, uris,
		cert_usage, scopes, resources, token_ttl, trust, certificates, jwks_uri, jwks, built_in, created_at, updated_at`
	queryClient  = `SELECT ` + clientColumns + ` FROM clients WHERE id = $1`
	queryClients = `SELECT ` + clientColumns + ` FROM clients WHERE removed_at IS NULL AND id > $1 ORDER BY id LIMIT $2`
	// All that a token of a client of our CA is decided by and recorded under. The arguments are the client and a certificate.
	queryHolder = selectHolder + `LEFT JOIN certificates x ` + onHolder
	// SQLite is told of the indexes that have all of it: it would read the rows as well, which hold what is not asked for.
	queryHolderIndexed = selectHolder + `INDEXED BY clients_standing LEFT JOIN certificates x INDEXED BY certificates_standing ` + onHolder
	selectHolder       = `SELECT c.generation, c.disabled, c.scopes, c.resources, c.token_ttl, x.client_id, x.generation, x.not_after,
		x.revoked_at, s.sealed, s.seal_version FROM clients c `
	onHolder = `ON x.thumbprint = $2 LEFT JOIN audit_subjects s ON s.id = c.id
		WHERE c.id = $1 AND c.removed_at IS NULL AND c.auth_method = 'tls_client_auth' AND c.trust = ''`
	// Few clients publish certificates, and finding them must not read the others.
	queryPublishers = `SELECT ` + clientColumns + ` FROM clients WHERE id IN (SELECT client_id FROM client_names
		WHERE kind = 'jwks_uri') AND removed_at IS NULL AND id > $1 ORDER BY id LIMIT $2`
	upsertClient = `INSERT INTO clients (` + clientColumns + `, grantor)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
			$21, $22)
		ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, disabled = excluded.disabled,
			removed_at = excluded.removed_at, auth_method = excluded.auth_method, subject_kind = excluded.subject_kind,
			subject_value = excluded.subject_value, dns = excluded.dns, ips = excluded.ips, uris = excluded.uris,
			cert_usage = excluded.cert_usage, scopes = excluded.scopes, resources = excluded.resources,
			token_ttl = excluded.token_ttl, trust = excluded.trust, certificates = excluded.certificates,
			jwks_uri = excluded.jwks_uri, jwks = excluded.jwks, built_in = excluded.built_in, created_at = excluded.created_at,
			updated_at = excluded.updated_at, grantor = excluded.grantor, version = NULL
		WHERE clients.removed_at IS NOT NULL`
	setClientDisabled = `UPDATE clients SET disabled = $2, updated_at = $3, version = NULL WHERE id = $1`
	setClientRemoved  = `UPDATE clients SET removed_at = $2, updated_at = $2, grantor = FALSE, version = NULL WHERE id = $1`
	setCertificates   = `UPDATE clients SET certificates = $2, updated_at = $3, version = NULL WHERE id = $1`
	lockGrantors      = `SELECT id FROM clients WHERE grantor AND removed_at IS NULL AND NOT disabled`
	// The argument is the time. Whoever has but a blocked key, or a certificate for servers, cannot ask for a token. A
	// certificate from our CA is revoked when its key is blocked.
	selectAbleGrantors = ` FROM clients WHERE grantor AND removed_at IS NULL AND NOT disabled
		AND (EXISTS (SELECT 1 FROM certificates c WHERE c.client_id = clients.id AND c.generation = clients.generation
				AND clients.auth_method = 'tls_client_auth' AND clients.cert_usage <> 'server' AND c.revoked_at IS NULL
				AND c.not_before <= $1 AND c.not_after > $1)
			OR EXISTS (SELECT 1 FROM client_certificates p WHERE p.client_id = clients.id
				AND p.not_before <= $1 AND p.not_after > $1
				AND NOT EXISTS (SELECT 1 FROM blocked_keys b WHERE b.key_hash = p.key_hash)))`
	countAbleGrantors  = `SELECT count(*)` + selectAbleGrantors
	countOtherGrantors = countAbleGrantors + ` AND id <> $2`
	queryLastExpiry    = `SELECT max(not_after) FROM certificates WHERE client_id = $1`

	insertAssertion = `INSERT INTO assertions (digest, until_at) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	pruneAssertions = `DELETE FROM assertions WHERE until_at < $1`

	insertName    = `INSERT INTO client_names (kind, name, client_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	queryNameUser = `SELECT client_id FROM client_names WHERE kind = $1 AND name = $2`
	deleteNames   = `DELETE FROM client_names WHERE client_id = $1`

	insertPinned = `INSERT INTO client_certificates (thumbprint, client_id, key_hash, not_before, not_after)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
	queryPinnedUser = `SELECT client_id FROM client_certificates WHERE thumbprint = $1`
	deletePinnedOne = `DELETE FROM client_certificates WHERE thumbprint = $1`
	deletePinned    = `DELETE FROM client_certificates WHERE client_id = $1`

	insertRef     = `INSERT INTO client_refs (client_id, kind, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	queryRefUsers = `SELECT client_id FROM client_refs WHERE kind = $1 AND value = $2 ORDER BY client_id LIMIT 10`
	queryRefUser  = `SELECT client_id FROM client_refs WHERE kind = $1 AND value = $2 ORDER BY client_id LIMIT 1`
	deleteRefs    = `DELETE FROM client_refs WHERE client_id = $1`

	codeColumns = `id, client_id, generation, public_key, created_at, expires_at, used_at, used_key, certificate,
		used_from, void`
	queryCode            = `SELECT ` + codeColumns + ` FROM codes WHERE id = $1`
	insertCode           = `INSERT INTO codes (` + codeColumns + `) VALUES ($1, $2, $3, $4, $5, $6, NULL, NULL, NULL, NULL, FALSE)`
	voidAllCodes         = `UPDATE codes SET void = TRUE, version = NULL WHERE used_at IS NULL AND NOT void`
	deleteRevocationList = `DELETE FROM revocation_list`
	deleteAllPending     = `DELETE FROM pending_requests`
	voidCodes            = `UPDATE codes SET void = TRUE, version = NULL WHERE client_id = $1 AND used_at IS NULL AND NOT void`
	useCode              = `UPDATE codes SET used_at = $2, used_key = $3, certificate = $4, used_from = $5, version = NULL
		WHERE id = $1 AND used_at IS NULL AND NOT void`

	certificateColumns = `thumbprint, serial, client_id, generation, not_before, not_after, key_hash, der, renewed_from,
		revoked_at, reason, created_at`
	selectCertificate      = `SELECT ` + certificateColumns + ` FROM certificates `
	queryCertificate       = selectCertificate + `WHERE thumbprint = $1`
	queryCertificateSerial = selectCertificate + `WHERE serial = $1`
	// The first argument is a client or ''; the second is the serial number to start behind, or ''.
	queryCertificates = selectCertificate + `WHERE ($1 = '' OR client_id = $1) AND ($2 = '' OR
		(created_at, serial) > (SELECT a.created_at, a.serial FROM certificates a WHERE a.serial = $2))
		ORDER BY created_at, serial LIMIT $3`
	// One that is known by its record only cannot be handed out again.
	queryChild = selectCertificate + `WHERE renewed_from = $1 AND key_hash = $2 AND revoked_at IS NULL
		AND not_after >= $3 AND length(der) > 0 ORDER BY created_at, serial LIMIT 1`
	// A live child of the same parent with another key.
	querySibling = selectCertificate + `WHERE renewed_from = $1 AND key_hash <> $2 AND revoked_at IS NULL
		AND not_after >= $3 ORDER BY created_at, serial LIMIT 1`
	queryClientCertificates = selectCertificate + `WHERE client_id = $1 AND not_after >= $2 ORDER BY created_at, serial`
	// UNION, not UNION ALL: a row that is already there is not followed again, so that nothing can loop.
	queryFamily = `WITH RECURSIVE family (thumbprint) AS (
			SELECT thumbprint FROM certificates WHERE thumbprint = $1
			UNION
			SELECT c.thumbprint FROM certificates c JOIN family f ON c.renewed_from = f.thumbprint)
		` + selectCertificate + `WHERE thumbprint IN (SELECT thumbprint FROM family) ORDER BY created_at, serial`
	queryKeyCertificates = selectCertificate + `WHERE key_hash = $1 ORDER BY created_at, serial`
	queryRevoked         = `SELECT serial, revoked_at, reason FROM certificates WHERE revoked_at IS NOT NULL AND not_after > $1 ORDER BY not_after, serial`

	insertCertificate = `INSERT INTO certificates (` + certificateColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, 0, $10)`
	revokeCertificate = `UPDATE certificates SET revoked_at = $2, reason = $3, version = NULL
		WHERE thumbprint = $1 AND revoked_at IS NULL`

	// Where the next rows end among which expired certificates are looked for: the arguments are from and before when.
	queryExpiredEnd = `SELECT not_after FROM certificates WHERE not_after >= $1 AND not_after < $2 ORDER BY not_after LIMIT 1 OFFSET $3`
	queryExpired    = `SELECT c.thumbprint FROM certificates c WHERE c.not_after >= $1 AND c.not_after <= $2 AND ` + dispensable + `
		ORDER BY c.not_after LIMIT $3`
	// A client's newest certificate stays, for whose its key and its id are, and the one that a family begins with, for what
	// was renewed from it.
	dispensable = `EXISTS (SELECT 1 FROM certificates n WHERE n.client_id = c.client_id AND n.not_after > c.not_after)
		AND (c.renewed_from IS NOT NULL OR NOT EXISTS (SELECT 1 FROM certificates k WHERE k.renewed_from = c.thumbprint))`
	queryDispensable  = `SELECT c.renewed_from FROM certificates c WHERE c.thumbprint = $1 AND c.not_after < $2 AND ` + dispensable
	setParent         = `UPDATE certificates SET renewed_from = $2, version = NULL WHERE renewed_from = $1`
	deleteCertificate = `DELETE FROM certificates WHERE thumbprint = $1`

	// The DER of a certificate that is known by its record only is empty.
	restoreCertificate = `INSERT INTO certificates (` + certificateColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, 0, $10) ON CONFLICT DO NOTHING`

	queryTicketKeys = `SELECT started_at, sealed, seal_version FROM ticket_keys
		WHERE listener = $1 AND started_at > $2 AND started_at <= $3 ORDER BY started_at DESC`
	insertTicketKey  = `INSERT INTO ticket_keys (listener, started_at, sealed, seal_version) VALUES ($1, $2, $3, $4)`
	deleteTicketKeys = `DELETE FROM ticket_keys WHERE started_at < $1`
	resetTicketKeys  = `DELETE FROM ticket_keys`

	insertBlockedKey = `INSERT INTO blocked_keys (key_hash, created_at) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	queryBlockedKeys = `SELECT key_hash FROM blocked_keys`
	queryBlockedKey  = `SELECT count(*) FROM blocked_keys WHERE key_hash = $1`
	queryKeyOwner    = `SELECT client_id FROM certificates WHERE key_hash = $1
		UNION SELECT client_id FROM client_certificates WHERE key_hash = $1 ORDER BY client_id LIMIT 1`
	queryOtherOwner = `SELECT client_id FROM certificates WHERE key_hash = $1 AND client_id <> $2
		UNION SELECT client_id FROM client_certificates WHERE key_hash = $1 AND client_id <> $2 ORDER BY client_id LIMIT 1`

	resourceColumns = `uri, scopes, servers, built_in, created_at`
	queryResource   = `SELECT ` + resourceColumns + ` FROM resources WHERE uri = $1`
	queryResources  = `SELECT ` + resourceColumns + ` FROM resources ORDER BY uri`
	insertResource  = `INSERT INTO resources (` + resourceColumns + `) VALUES ($1, $2, $3, $4, $5)`
	setServers      = `UPDATE resources SET servers = $2, version = NULL WHERE uri = $1`
	deleteResource  = `DELETE FROM resources WHERE uri = $1`

	trustColumns = `name, anchors, intermediates, crl_url, crl, revocation, created_at, updated_at`
	queryTrust   = `SELECT ` + trustColumns + ` FROM trusts WHERE name = $1`
	queryTrusts  = `SELECT ` + trustColumns + ` FROM trusts ORDER BY name`
	insertTrust  = `INSERT INTO trusts (` + trustColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	updateTrust  = `UPDATE trusts SET anchors = $2, intermediates = $3, crl_url = $4, crl = $5, revocation = $6,
		created_at = $7, updated_at = $8, version = NULL WHERE name = $1`
	deleteTrust     = `DELETE FROM trusts WHERE name = $1`
	queryTrustUsers = `SELECT id FROM clients WHERE trust = $1 AND trust <> '' AND removed_at IS NULL ORDER BY id LIMIT 10`

	pendingColumns = `id, kind, payload, requested_by, created_at, expires_at`
	queryPending   = `SELECT ` + pendingColumns + ` FROM pending_requests WHERE id = $1`
	queryPendings  = `SELECT ` + pendingColumns + ` FROM pending_requests WHERE expires_at > $1 ORDER BY created_at, id`
	countPending   = `SELECT count(*) FROM pending_requests`
	insertPending  = `INSERT INTO pending_requests (` + pendingColumns + `) VALUES ($1, $2, $3, $4, $5, $6)`
	deletePending  = `DELETE FROM pending_requests WHERE id = $1`
	expirePending  = `DELETE FROM pending_requests WHERE expires_at <= $1`
	voidPending    = `DELETE FROM pending_requests WHERE requested_by = $1`

	insertNoted  = `INSERT INTO outbox (id, replica, body, noted_at, position) VALUES ($1, $2, $3, $4, $5)`
	queryNoted   = `SELECT id, body, noted_at FROM outbox WHERE replica = $1 ORDER BY version, position LIMIT $2`
	queryWaiting = `SELECT count(*), min(noted_at) FROM outbox WHERE replica = $1`
	// The outbox of a replica whose lease is long gone passes to another.
	adoptNoted  = `UPDATE outbox SET replica = $1 WHERE replica <> $1 AND replica NOT IN (SELECT replica FROM leases)`
	deleteNoted = `DELETE FROM outbox WHERE id = $1`

	insertChange = `INSERT INTO changes (version, body) VALUES ($1, $2)`
	pruneChanges = `DELETE FROM changes WHERE version <= $1`
	queryChanges = `SELECT version, body FROM changes WHERE version > $1 ORDER BY version LIMIT $2`

	leaseColumns = `replica, incarnation, renewals, applied, program, address, mtls_url, started_at, renewed_at`
	insertLease  = `INSERT INTO leases (` + leaseColumns + `) SELECT $1, $2, 0, $3, $4, $5, $6, $7, $7 WHERE ` + servable + takeOver
	// servable is no part of what finds a row: whoever serves notices by it that the database was put out of service.
	servable = `NOT EXISTS (SELECT 1 FROM settings WHERE name = '` + settingCondition + `')`
	takeOver = `
		ON CONFLICT (replica) DO UPDATE SET incarnation = excluded.incarnation, renewals = 0, applied = excluded.applied,
			program = excluded.program, address = excluded.address, mtls_url = excluded.mtls_url, started_at = excluded.started_at,
			renewed_at = excluded.renewed_at
		WHERE leases.incarnation < excluded.incarnation`
	renewLease = `UPDATE leases SET renewals = renewals + 1, applied = $3, renewed_at = $4
		WHERE replica = $1 AND incarnation = $2 AND ` + servable + ` RETURNING (SELECT version FROM state WHERE id = 1)`
	queryLeases = `SELECT ` + leaseColumns + ` FROM leases ORDER BY replica`
	deleteLease = `DELETE FROM leases WHERE replica = $1 AND incarnation = $2 AND renewals = $3`
	endLease    = `DELETE FROM leases WHERE replica = $1 AND incarnation = $2`
	advanceHead = `UPDATE journals SET head_seq = $3, head_chain = $4, head_at = $5
		WHERE replica = $1 AND incarnation = $2 AND head_seq < $3`

	insertJournal = `INSERT INTO journals (replica, incarnation, first_key, previous_seq, previous_chain, started_at, head_seq)
		VALUES ($1, $2, $3, $4, $5, $6, 0)`
	queryLastJournal = `SELECT incarnation, first_key, previous_seq, previous_chain, started_at, head_seq, head_chain, head_at
		FROM journals WHERE replica = $1 ORDER BY incarnation DESC LIMIT 1`
	queryJournalHeads = `SELECT replica, incarnation, first_key, previous_seq, previous_chain, started_at, head_seq, head_chain, head_at
		FROM journals j WHERE head_seq > 0
			AND incarnation = (SELECT max(k.incarnation) FROM journals k WHERE k.replica = j.replica AND k.head_seq > 0)
		ORDER BY head_at DESC, replica LIMIT $1`

	queryBegunJournals = `SELECT replica, incarnation, first_key, started_at FROM journals j WHERE head_seq = 0
			AND incarnation = (SELECT max(k.incarnation) FROM journals k WHERE k.replica = j.replica)
		ORDER BY started_at DESC, replica LIMIT $1`
	setWitnessed   = `UPDATE journals SET witnessed_at = $3 WHERE replica = $1 AND incarnation = $2 AND witnessed_at IS NULL`
	isWitnessed    = `EXISTS (SELECT 1 FROM journals WHERE replica = $1 AND incarnation = $2 AND witnessed_at IS NOT NULL)`
	queryWitnessed = `SELECT ` + isWitnessed + `, EXISTS (SELECT 1 FROM leases WHERE replica <> $1 AND renewed_at > $3)`

	// The newest incarnation of each replica, the one that started last first, and whether it has a lease.
	queryNewestJournals = `SELECT replica, incarnation, head_seq, head_chain, head_at,
			EXISTS (SELECT 1 FROM leases l WHERE l.replica = j.replica)
		FROM journals j WHERE incarnation = (SELECT max(incarnation) FROM journals n WHERE n.replica = j.replica)
		ORDER BY started_at DESC, replica`

	insertAuditDay = `INSERT INTO audit_days (day, sealed, seal_version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	queryAuditDay  = `SELECT sealed, seal_version FROM audit_days WHERE day = $1`
	// The argument is the first day that stays.
	deleteAuditDays    = `DELETE FROM audit_days WHERE day < $1`
	insertAuditSubject = `INSERT INTO audit_subjects (id, sealed, seal_version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	queryAuditSubject  = `SELECT sealed, seal_version FROM audit_subjects WHERE id = $1`
	deleteAuditSubject = `DELETE FROM audit_subjects WHERE id = $1`

	// Each of these counts an index without the rows: few are disabled, removed, revoked or open. Of the first and the
	// fourth, what the one behind each of them counts is still to be taken off.
	queryStats = `SELECT
		(SELECT count(*) FROM clients),
		(SELECT count(*) FROM clients WHERE disabled OR removed_at IS NOT NULL),
		(SELECT count(*) FROM clients WHERE (disabled OR removed_at IS NOT NULL) AND removed_at IS NULL),
		(SELECT count(*) FROM certificates WHERE not_after >= $1),
		(SELECT count(*) FROM certificates WHERE revoked_at IS NOT NULL AND not_after >= $1),
		(SELECT count(*) FROM codes WHERE used_at IS NULL AND NOT void AND expires_at > $1),
		(SELECT count(*) FROM resources),
		(SELECT count(*) FROM trusts),
		version FROM state WHERE id = 1`
)

// stampQuery returns the statement that gives the changed rows of a table their version.
func stampQuery(table string) string {
	return `UPDATE ` + table + ` SET version = $1 WHERE version IS NULL`
}
