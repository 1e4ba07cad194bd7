-- Times are microseconds since 1970, lists are JSON arrays. A row's "version" is the state's version at its last
-- change; it is NULL only inside the transaction that changes it.

CREATE TABLE state (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    version    BIGINT NOT NULL,
    crl_number BIGINT NOT NULL,
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
    version      BIGINT,
    PRIMARY KEY (purpose, id)
);
CREATE INDEX sealed_keys_version ON sealed_keys (version);

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
    built_in      BOOLEAN NOT NULL,
    grantor       BOOLEAN NOT NULL,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    version       BIGINT
);
CREATE INDEX clients_version ON clients (version);
CREATE INDEX clients_grantor ON clients (id) WHERE grantor;

-- A DNS name, address or URI belongs to one client that was not removed.
CREATE TABLE client_names (
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    client_id TEXT NOT NULL REFERENCES clients (id),
    UNIQUE (kind, name)
);
CREATE INDEX client_names_client ON client_names (client_id);

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
CREATE INDEX certificates_client ON certificates (client_id, not_after);
CREATE INDEX certificates_created ON certificates (created_at, serial);
CREATE INDEX certificates_parent ON certificates (renewed_from);
CREATE INDEX certificates_key ON certificates (key_hash);
CREATE INDEX certificates_revoked ON certificates (not_after) WHERE revoked_at IS NOT NULL;
CREATE INDEX certificates_version ON certificates (version);

CREATE TABLE blocked_keys (
    key_hash   BLOB NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL,
    version    BIGINT
);
CREATE INDEX blocked_keys_version ON blocked_keys (version);

CREATE TABLE resources (
    uri        TEXT NOT NULL PRIMARY KEY,
    scopes     TEXT NOT NULL,
    servers    TEXT NOT NULL,
    built_in   BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    version    BIGINT
);
CREATE INDEX resources_version ON resources (version);

-- The CA library's own rows.
CREATE TABLE ca_kv (
    bucket     TEXT NOT NULL,
    nkey       BLOB NOT NULL,
    nvalue     BLOB NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    PRIMARY KEY (bucket, nkey)
);
