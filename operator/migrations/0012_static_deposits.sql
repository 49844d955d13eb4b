-- Static deposit addresses: any number of deposits, never a leaf.
ALTER TABLE deposit_address ADD COLUMN is_static boolean NOT NULL DEFAULT false;
CREATE INDEX deposit_address_static ON deposit_address (identity, created_at) WHERE is_static;

-- Which static address this coordinator shows an identity. One that was rotated stays bound, watched and refundable.
CREATE TABLE static_address (
    identity    bytea NOT NULL CHECK (octet_length(identity) = 33),
    generation  integer NOT NULL CHECK (generation BETWEEN 0 AND 63),
    keyshare_id uuid NOT NULL UNIQUE REFERENCES keyshare,
    user_key    bytea NOT NULL CHECK (octet_length(user_key) = 33),
    archived_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (identity, generation)
);
CREATE UNIQUE INDEX one_current_static_address ON static_address (identity) WHERE archived_at IS NULL;

-- Who takes an output of a static address. The owner's claim begins with his first refund and never ends: what he
-- can spend, nobody credits.
CREATE TABLE utxo_claim (
    claim_id   bigserial PRIMARY KEY,
    txid       bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout       bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    claimant   text NOT NULL CHECK (claimant IN ('OWNER', 'PROVIDER')),
    state      text NOT NULL DEFAULT 'LIVE' CHECK (state IN ('LIVE', 'CANCELLED')),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (state = 'LIVE' OR claimant = 'PROVIDER')
);
CREATE UNIQUE INDEX one_live_utxo_claim ON utxo_claim (txid, vout) WHERE state = 'LIVE';

-- What was answered to a refund: the same request gets the same answer. It holds what its owner got, no secret.
CREATE TABLE static_refund (
    request_digest bytea PRIMARY KEY CHECK (octet_length(request_digest) = 32),
    txid           bytea NOT NULL CHECK (octet_length(txid) = 32),
    vout           bigint NOT NULL CHECK (vout BETWEEN 0 AND 4294967295),
    answer         bytea NOT NULL CHECK (octet_length(answer) BETWEEN 1 AND 65536),
    created_at     timestamptz NOT NULL DEFAULT now()
);
