-- What the operator's own bitcoind says. Facts derived from a block disappear with its header (S12).

-- The active chain only; a reorganisation deletes the tail.
CREATE TABLE header (
    height     integer PRIMARY KEY CHECK (height >= 0),
    hash       bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    prev_hash  bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    block_time bigint NOT NULL CHECK (block_time >= 0)
);

CREATE TABLE watched_outpoint (
    txid    bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout    bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    kind    text NOT NULL CHECK (kind IN ('DEPOSIT', 'BASE', 'NODE', 'REFUND', 'EXIT', 'CONNECTOR')),
    leaf_id uuid,
    PRIMARY KEY (txid, vout)
);
CREATE INDEX watched_outpoint_leaf ON watched_outpoint (leaf_id);

CREATE TABLE chain_event (
    block_hash   bytea NOT NULL REFERENCES header (hash) ON DELETE CASCADE,
    txid         bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout         bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    spender_txid bytea NOT NULL CHECK (octet_length(spender_txid) = 32),
    height       integer NOT NULL CHECK (height >= 0),
    kind         text NOT NULL CHECK (length(kind) BETWEEN 1 AND 32),
    leaf_id      uuid,
    PRIMARY KEY (txid, vout)
);
CREATE INDEX chain_event_leaf ON chain_event (leaf_id);

-- Spends seen in the mempool only: while one of a leaf is here, the operator votes NO on the leaf (D21).
CREATE TABLE mempool_spend (
    txid         bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout         bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    spender_txid bytea NOT NULL CHECK (octet_length(spender_txid) = 32),
    kind         text NOT NULL CHECK (length(kind) BETWEEN 1 AND 32),
    leaf_id      uuid,
    seen_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (txid, vout, spender_txid)
);
CREATE INDEX mempool_spend_leaf ON mempool_spend (leaf_id);

-- Outputs that pay a deposit address. Without height: in the mempool.
CREATE TABLE deposit_output (
    txid       bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout       bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    script     bytea NOT NULL REFERENCES deposit_address (script),
    amount     bigint NOT NULL CHECK (amount BETWEEN 0 AND 2100000000000000),
    height     integer CHECK (height >= 0),
    block_hash bytea REFERENCES header (hash) ON DELETE CASCADE,
    raw_tx     bytea NOT NULL,
    seen_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (txid, vout),
    CHECK ((height IS NULL) = (block_hash IS NULL))
);
CREATE INDEX deposit_output_script ON deposit_output (script);
CREATE INDEX deposit_output_block ON deposit_output (block_hash);
