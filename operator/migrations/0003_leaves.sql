-- Leaves, transfers, and everything ever signed.

CREATE TABLE leaf (
    leaf_id        uuid PRIMARY KEY,
    tree_id        uuid NOT NULL,
    parent_id      uuid REFERENCES leaf,
    version        bigint NOT NULL CHECK (version >= 0),
    owner_identity bytea NOT NULL CHECK (octet_length(owner_identity) = 33),
    status         text NOT NULL CHECK (status IN (
        'CREATING', 'AVAILABLE', 'FROZEN_BY_ISSUER', 'TRANSFER_LOCKED', 'SPLIT_LOCKED', 'SPLITTED', 'AGGREGATED',
        'ON_CHAIN', 'AGGREGATE_LOCK', 'EXITED', 'RENEW_LOCKED', 'UNAVAILABLE', 'PARENT_EXITED')),
    value          bigint NOT NULL CHECK (value BETWEEN 0 AND 2100000000000000),
    node_txid      bytea NOT NULL CHECK (octet_length(node_txid) = 32),
    record         bytea NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX leaf_owner ON leaf (owner_identity, created_at, leaf_id);
CREATE INDEX leaf_tree ON leaf (tree_id);
CREATE INDEX leaf_node_txid ON leaf (node_txid);

-- A change of owner or keys is a new version; versions never go down.
CREATE FUNCTION leaf_versions_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version < OLD.version OR (NEW.owner_identity <> OLD.owner_identity AND NEW.version = OLD.version) THEN
        RAISE EXCEPTION 'leaf % cannot go from version % to %', OLD.leaf_id, OLD.version, NEW.version
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER leaf_versions_grow BEFORE UPDATE ON leaf FOR EACH ROW EXECUTE FUNCTION leaf_versions_grow();

CREATE TABLE leaf_history (
    leaf_id        uuid NOT NULL,
    version        bigint NOT NULL CHECK (version >= 0),
    op_id          uuid NOT NULL,
    attempt        integer NOT NULL,
    owner_identity bytea NOT NULL CHECK (octet_length(owner_identity) = 33),
    status         text NOT NULL,
    record         bytea NOT NULL,
    applied_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (leaf_id, version, op_id),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);

-- The set of valid transactions in the world is the real state of a statechain: nothing here is ever removed.
CREATE TABLE signed_tx (
    op_id        uuid NOT NULL,
    attempt      integer NOT NULL,
    job          integer NOT NULL CHECK (job >= 0),
    leaf_id      uuid NOT NULL,
    leaf_version bigint NOT NULL CHECK (leaf_version >= 0),
    purpose      text NOT NULL CHECK (length(purpose) BETWEEN 1 AND 32),
    txid         bytea NOT NULL CHECK (octet_length(txid) = 32),
    raw          bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (op_id, attempt, job),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);
CREATE INDEX signed_tx_leaf ON signed_tx (leaf_id, leaf_version);
CREATE INDEX signed_tx_txid ON signed_tx (txid);

CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER leaf_history_append_only BEFORE UPDATE OR DELETE ON leaf_history
    FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER signed_tx_append_only BEFORE UPDATE OR DELETE ON signed_tx
    FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER vote_append_only BEFORE UPDATE OR DELETE ON vote
    FOR EACH ROW EXECUTE FUNCTION append_only();

-- Codes of status and type are those of the public wire.
CREATE TABLE transfer (
    transfer_id  uuid PRIMARY KEY,
    sender       bytea NOT NULL CHECK (octet_length(sender) = 33),
    receiver     bytea NOT NULL CHECK (octet_length(receiver) = 33),
    total        bigint NOT NULL CHECK (total BETWEEN 0 AND 2100000000000000),
    status       smallint NOT NULL CHECK (status BETWEEN 0 AND 11),
    kind         smallint NOT NULL CHECK (kind IN (0, 1, 2, 3, 4, 5, 30, 40)),
    expiry       bigint CHECK (expiry >= 0),
    invoice      text NOT NULL DEFAULT '' CHECK (length(invoice) <= 4096),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz
);
CREATE INDEX transfer_sender ON transfer (sender, created_at, transfer_id);
CREATE INDEX transfer_receiver ON transfer (receiver, created_at, transfer_id);

-- `record` is the leaf as the receiver of this transfer must see it.
CREATE TABLE transfer_leaf (
    transfer_id                              uuid NOT NULL REFERENCES transfer,
    leaf_id                                  uuid NOT NULL REFERENCES leaf,
    position                                 integer NOT NULL CHECK (position >= 0),
    leaf_version                             bigint NOT NULL CHECK (leaf_version >= 0),
    value                                    bigint NOT NULL CHECK (value BETWEEN 0 AND 2100000000000000),
    secret_cipher                            bytea NOT NULL CHECK (octet_length(secret_cipher) <= 4096),
    signature                                bytea NOT NULL CHECK (octet_length(signature) <= 128),
    intermediate_refund_tx                   bytea NOT NULL,
    intermediate_direct_refund_tx            bytea NOT NULL DEFAULT '',
    intermediate_direct_from_cpfp_refund_tx  bytea NOT NULL DEFAULT '',
    record                                   bytea NOT NULL,
    PRIMARY KEY (transfer_id, leaf_id),
    UNIQUE (transfer_id, position)
);
CREATE INDEX transfer_leaf_leaf ON transfer_leaf (leaf_id);

-- What each signer did to each keyshare, as its deletion log says it. State moves from pending to confirmed only.
CREATE TABLE receipt (
    signer      smallint NOT NULL CHECK (signer BETWEEN 0 AND 14),
    incarnation bytea NOT NULL CHECK (octet_length(incarnation) = 16),
    sequence    bigint NOT NULL CHECK (sequence >= 0),
    log_index   bigint NOT NULL CHECK (log_index >= 0),
    leaf_id     uuid,
    keyshare_id uuid NOT NULL,
    op_id       uuid,
    state       text NOT NULL CHECK (state IN ('pending', 'confirmed')),
    body        bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (signer, incarnation, log_index)
);
CREATE INDEX receipt_leaf ON receipt (leaf_id, sequence);
CREATE INDEX receipt_operation ON receipt (op_id);
