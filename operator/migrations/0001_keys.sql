-- Keyshares (public part only) and the deposit addresses that bind them.

CREATE TABLE keyshare (
    keyshare_id   uuid PRIMARY KEY,
    owner_index   smallint NOT NULL CHECK (owner_index BETWEEN 0 AND 14),
    state         text NOT NULL DEFAULT 'AVAILABLE' CHECK (state IN ('AVAILABLE', 'BOUND')),
    group_key     bytea NOT NULL UNIQUE CHECK (octet_length(group_key) = 33),
    public_shares bytea NOT NULL
        CHECK (octet_length(public_shares) % 33 = 0 AND octet_length(public_shares) BETWEEN 33 AND 15 * 33),
    dkg_session   uuid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    bound_at      timestamptz,
    CHECK ((state = 'BOUND') = (bound_at IS NOT NULL))
);
CREATE INDEX keyshare_pool ON keyshare (owner_index, keyshare_id) WHERE state = 'AVAILABLE';

-- BINDING: the coordinator still collects signatures. BOUND: a participant's record. READY: shown to the owner.
-- USED: a leaf exists on an output of this address.
CREATE TABLE deposit_address (
    keyshare_id          uuid PRIMARY KEY REFERENCES keyshare,
    leaf_id              uuid NOT NULL UNIQUE,
    address              text NOT NULL UNIQUE CHECK (length(address) BETWEEN 14 AND 90),
    script               bytea NOT NULL UNIQUE CHECK (octet_length(script) = 34),
    network              text NOT NULL CHECK (network IN ('mainnet', 'testnet', 'signet', 'regtest')),
    identity             bytea NOT NULL CHECK (octet_length(identity) = 33),
    user_key             bytea NOT NULL CHECK (octet_length(user_key) = 33),
    verifying_key        bytea NOT NULL UNIQUE CHECK (octet_length(verifying_key) = 33),
    coordinator          smallint NOT NULL CHECK (coordinator BETWEEN 0 AND 14),
    -- FROST identifier (64 hex digits) to DER signature (hex)
    address_signatures   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(address_signatures) = 'object'),
    possession_signature bytea CHECK (octet_length(possession_signature) = 64),
    state                text NOT NULL CHECK (state IN ('BINDING', 'BOUND', 'READY', 'USED')),
    created_at           timestamptz NOT NULL DEFAULT now(),
    CHECK (state <> 'READY' OR possession_signature IS NOT NULL)
);
CREATE INDEX deposit_address_owner ON deposit_address (identity, created_at);

-- A leaf id reserved at the coordinator before its signer has bound the keyshare.
CREATE TABLE address_request (
    leaf_id     uuid PRIMARY KEY,
    keyshare_id uuid NOT NULL UNIQUE REFERENCES keyshare,
    identity    bytea NOT NULL CHECK (octet_length(identity) = 33),
    user_key    bytea NOT NULL CHECK (octet_length(user_key) = 33),
    created_at  timestamptz NOT NULL DEFAULT now()
);
