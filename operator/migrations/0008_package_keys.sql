-- One-time keys for packages, public part. Who has which; what they are used for is the signer's ledger. A row goes when
-- its key was used, or when nobody will use it any more.
CREATE TABLE package_key (
    key_id         uuid PRIMARY KEY,
    statement      bytea NOT NULL CHECK (octet_length(statement) BETWEEN 1 AND 4096),
    expires_at     timestamptz NOT NULL,
    identity       bytea CHECK (octet_length(identity) = 33),
    request_id     uuid,
    reserved_until timestamptz,
    CHECK (num_nulls(identity, request_id, reserved_until) IN (0, 3)),
    CONSTRAINT one_key_per_request UNIQUE (identity, request_id)
);
CREATE INDEX package_key_free ON package_key (expires_at) WHERE identity IS NULL;
CREATE INDEX package_key_ends ON package_key (reserved_until) WHERE identity IS NOT NULL;
