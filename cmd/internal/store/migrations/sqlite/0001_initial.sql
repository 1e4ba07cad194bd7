-- oldest: 1
-- Times are microseconds since 1970, lists are JSON arrays. A row's "version" is the state's version at its last
-- change; it is NULL only inside the transaction that changes it.

CREATE TABLE state (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    version    BIGINT NOT NULL,
    crl_number BIGINT NOT NULL,
    denial_seq BIGINT NOT NULL,
    kek_check  BLOB NOT NULL
);

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE sealed_keys (
    purpose      TEXT NOT NULL,
    id           TEXT NOT NULL,
    key_state    TEXT NOT NULL,
    algorithm    TEXT NOT NULL,
    chain        BLOB NOT NULL,
    sealed       BLOB NOT NULL,
    seal_version BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    state_since  BIGINT NOT NULL,
    state_until  BIGINT,
    version      BIGINT,
    PRIMARY KEY (purpose, id)
);
CREATE INDEX sealed_keys_version ON sealed_keys (version);

-- WITHOUT ROWID: a client that comes again after long is looked for here and in audit_subjects, once in each and not twice.
CREATE TABLE clients (
    id            TEXT NOT NULL PRIMARY KEY,
    generation    BIGINT NOT NULL,
    disabled      BOOLEAN NOT NULL,
    removed_at    BIGINT,
    auth_method   TEXT NOT NULL,
    subject_kind  TEXT NOT NULL,
    subject_value TEXT NOT NULL,
    dns           TEXT NOT NULL,
    ips           TEXT NOT NULL,
    uris          TEXT NOT NULL,
    cert_usage    TEXT NOT NULL,
    scopes        TEXT NOT NULL,
    resources     TEXT NOT NULL,
    token_ttl     BIGINT NOT NULL,
    trust         TEXT NOT NULL,
    certificates  BLOB NOT NULL,
    jwks_uri      TEXT NOT NULL,
    jwks          TEXT NOT NULL,
    built_in      BOOLEAN NOT NULL,
    grantor       BOOLEAN NOT NULL,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    version       BIGINT
) WITHOUT ROWID;
CREATE INDEX clients_version ON clients (version);
CREATE INDEX clients_grantor ON clients (id) WHERE grantor;
CREATE INDEX clients_trust ON clients (trust) WHERE trust <> '';
-- All that a token is decided by: without it, twice as many pages are read.
CREATE INDEX clients_standing ON clients (id, generation, disabled, removed_at, auth_method, trust, scopes, resources, token_ttl);
CREATE INDEX clients_out ON clients (removed_at) WHERE disabled OR removed_at IS NOT NULL;

-- A DNS name, address or URI, a subject under one trust, a place of certificates, and a key that signs assertions belong to
-- one client that was not removed.
CREATE TABLE client_names (
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    client_id TEXT NOT NULL REFERENCES clients (id),
    UNIQUE (kind, name)
);
CREATE INDEX client_names_client ON client_names (client_id);

-- A certificate registered by value belongs to one client that was not removed.
CREATE TABLE client_certificates (
    thumbprint BLOB NOT NULL PRIMARY KEY,
    client_id  TEXT NOT NULL REFERENCES clients (id),
    key_hash   BLOB NOT NULL,
    not_before BIGINT NOT NULL,
    not_after  BIGINT NOT NULL
);
CREATE INDEX client_certificates_client ON client_certificates (client_id);
CREATE INDEX client_certificates_key ON client_certificates (key_hash);

-- The scopes and resources that clients hold, for the question who would miss one.
CREATE TABLE client_refs (
    client_id TEXT NOT NULL REFERENCES clients (id),
    kind      TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (client_id, kind, value)
);
CREATE INDEX client_refs_value ON client_refs (kind, value);

CREATE TABLE codes (
    id          BLOB NOT NULL PRIMARY KEY,
    client_id   TEXT NOT NULL REFERENCES clients (id),
    generation  BIGINT NOT NULL,
    public_key  BLOB NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    used_at     BIGINT,
    used_key    BLOB,
    certificate BLOB,
    used_from   TEXT,
    void        BOOLEAN NOT NULL,
    version     BIGINT
);
CREATE INDEX codes_client ON codes (client_id);
CREATE INDEX codes_open ON codes (expires_at) WHERE used_at IS NULL AND NOT void;
CREATE INDEX codes_version ON codes (version);

CREATE TABLE certificates (
    thumbprint   BLOB NOT NULL PRIMARY KEY,
    serial       TEXT NOT NULL UNIQUE,
    client_id    TEXT NOT NULL REFERENCES clients (id),
    generation   BIGINT NOT NULL,
    not_before   BIGINT NOT NULL,
    not_after    BIGINT NOT NULL,
    key_hash     BLOB NOT NULL,
    der          BLOB NOT NULL,
    renewed_from BLOB REFERENCES certificates (thumbprint),
    revoked_at   BIGINT,
    reason       INTEGER NOT NULL,
    created_at   BIGINT NOT NULL,
    version      BIGINT
);
-- All that a token is decided by, apart from the DER.
CREATE INDEX certificates_standing ON certificates (thumbprint, client_id, generation, not_after, revoked_at);
CREATE INDEX certificates_client ON certificates (client_id, not_after);
CREATE INDEX certificates_created ON certificates (created_at, serial);
CREATE INDEX certificates_parent ON certificates (renewed_from);
CREATE INDEX certificates_key ON certificates (key_hash);
CREATE INDEX certificates_revoked ON certificates (not_after) WHERE revoked_at IS NOT NULL;
-- For what expired long ago, and to count the others.
CREATE INDEX certificates_expiry ON certificates (not_after);
CREATE INDEX certificates_version ON certificates (version);

CREATE TABLE blocked_keys (
    key_hash   BLOB NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL,
    version    BIGINT
);
CREATE INDEX blocked_keys_version ON blocked_keys (version);

-- Tokens that are refused although they have not expired, until nothing could use them any more. A row's position is
-- greater than that of every row that was there before, also of those that are gone: it counts in state.denial_seq. The
-- client_id is of a token that its client gave back itself.
CREATE TABLE denials (
    position  BIGINT NOT NULL PRIMARY KEY,
    kind      TEXT NOT NULL,
    value     TEXT NOT NULL,
    client_id TEXT NOT NULL,
    before_at BIGINT NOT NULL,
    until_at  BIGINT NOT NULL,
    version   BIGINT,
    UNIQUE (kind, value)
);
CREATE INDEX denials_version ON denials (version);
CREATE INDEX denials_client ON denials (client_id) WHERE client_id <> '';
CREATE INDEX denials_until ON denials (until_at);

-- Who follows what is denied, and how far. Each replica writes who asks it.
CREATE TABLE followers (
    client_id   TEXT NOT NULL,
    certificate BLOB NOT NULL,
    address     TEXT NOT NULL,
    position    BIGINT NOT NULL,
    seen_at     BIGINT NOT NULL,
    PRIMARY KEY (client_id, certificate, address)
);

CREATE TABLE resources (
    uri        TEXT NOT NULL PRIMARY KEY,
    scopes     TEXT NOT NULL,
    servers    TEXT NOT NULL,
    built_in   BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    version    BIGINT
);
CREATE INDEX resources_version ON resources (version);

-- Foreign CAs. Clients may also name one that the configuration's files have, so clients.trust refers to no row here.
CREATE TABLE trusts (
    name          TEXT NOT NULL PRIMARY KEY,
    anchors       BLOB NOT NULL,
    intermediates BLOB NOT NULL,
    crl_url       TEXT NOT NULL,
    crl           BLOB,
    revocation    TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    version       BIGINT
);
CREATE INDEX trusts_version ON trusts (version);

-- Operators' requests that wait for another operator.
CREATE TABLE pending_requests (
    id           TEXT NOT NULL PRIMARY KEY,
    kind         TEXT NOT NULL,
    payload      BLOB,
    requested_by TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    version      BIGINT
);
CREATE INDEX pending_requests_version ON pending_requests (version);

-- Records of changes, put here in the transaction of the change, until they are in the journal.
CREATE TABLE outbox (
    id       TEXT NOT NULL PRIMARY KEY,
    replica  TEXT NOT NULL,
    body     BLOB NOT NULL,
    noted_at BIGINT NOT NULL,
    position BIGINT NOT NULL,
    version  BIGINT
);
CREATE INDEX outbox_version ON outbox (version);

-- The revocation list that all replicas give out: one row.
CREATE TABLE revocation_list (
    id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    number  BIGINT NOT NULL,
    covers  BIGINT NOT NULL,
    made_at BIGINT NOT NULL,
    der     BLOB NOT NULL
);

-- What each version changed, as JSON, for the replicas that hold it in memory. Old rows go: who is that far behind drops
-- everything.
CREATE TABLE changes (
    version BIGINT NOT NULL PRIMARY KEY,
    body    TEXT NOT NULL
);

-- The replicas that may be serving. Each writes its own row every second.
CREATE TABLE leases (
    replica     TEXT NOT NULL PRIMARY KEY,
    incarnation BIGINT NOT NULL,
    renewals    BIGINT NOT NULL,
    applied     BIGINT NOT NULL,
    program     TEXT NOT NULL,
    address     TEXT NOT NULL,
    mtls_url    TEXT NOT NULL,
    started_at  BIGINT NOT NULL,
    renewed_at  BIGINT NOT NULL
);

-- The CA library's own rows.
CREATE TABLE ca_kv (
    bucket     TEXT NOT NULL,
    nkey       BLOB NOT NULL,
    nvalue     BLOB NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    PRIMARY KEY (bucket, nkey)
);
-- For the removal of what is old.
CREATE INDEX ca_kv_age ON ca_kv (bucket, created_at, nkey);

-- The keys of what the journal seals: deleting one erases what it sealed.
CREATE TABLE audit_days (
    day          TEXT NOT NULL PRIMARY KEY,
    sealed       BLOB NOT NULL,
    seal_version BIGINT NOT NULL
);
CREATE TABLE audit_subjects (
    id           TEXT NOT NULL PRIMARY KEY,
    sealed       BLOB NOT NULL,
    seal_version BIGINT NOT NULL
) WITHOUT ROWID;

-- Keys of TLS session tickets that several servers share: one for each listener and hour, and none that is older than two.
CREATE TABLE ticket_keys (
    listener     TEXT NOT NULL,
    started_at   BIGINT NOT NULL,
    sealed       BLOB NOT NULL,
    seal_version BIGINT NOT NULL,
    PRIMARY KEY (listener, started_at)
);

-- Assertions by which clients authenticated: each is good once, and forgotten when it has expired.
CREATE TABLE assertions (
    digest   BLOB NOT NULL PRIMARY KEY,
    until_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX assertions_until ON assertions (until_at);

-- What is known of the journals outside of them. The head is where one was last known to stand; it only grows.
CREATE TABLE journals (
    replica        TEXT NOT NULL,
    incarnation    BIGINT NOT NULL,
    first_key      TEXT NOT NULL,
    previous_seq   BIGINT NOT NULL,
    previous_chain BLOB NOT NULL,
    started_at     BIGINT NOT NULL,
    head_seq       BIGINT NOT NULL,
    head_chain     BLOB,
    head_at        BIGINT,
    witnessed_at   BIGINT,  -- when another replica's journal first spoke of it
    PRIMARY KEY (replica, incarnation)
);

-- A journal's head is a witness against whoever rewrites the journal: it only grows.
CREATE TRIGGER journals_head BEFORE UPDATE OF head_seq, head_chain ON journals
    WHEN NEW.head_seq < OLD.head_seq OR NEW.head_seq = OLD.head_seq AND NEW.head_chain IS NOT OLD.head_chain
BEGIN
    SELECT RAISE(ABORT, 'the head of a journal only grows');
END;
