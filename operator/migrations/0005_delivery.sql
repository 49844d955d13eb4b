-- Messages to peers, events to wallets, and how far the signer's journal has been read.

-- What a peer must still hear; deleted when it answered.
CREATE TABLE outbox (
    id         bigserial PRIMARY KEY,
    peer       smallint NOT NULL CHECK (peer BETWEEN 0 AND 14),
    op_id      uuid NOT NULL,
    attempt    integer NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('APPLY', 'ABORT')),
    attempts   integer NOT NULL DEFAULT 0,
    next_at    timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (peer, op_id, attempt, kind),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);
CREATE INDEX outbox_due ON outbox (next_at);

-- What a peer said and was acted on, once.
CREATE TABLE inbox (
    peer        smallint NOT NULL CHECK (peer BETWEEN 0 AND 14),
    op_id       uuid NOT NULL,
    attempt     integer NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('PREPARE', 'APPLY', 'ABORT')),
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (peer, op_id, attempt, kind)
);

CREATE TABLE event_log (
    seq        bigserial PRIMARY KEY,
    identity   bytea NOT NULL CHECK (octet_length(identity) = 33),
    kind       text NOT NULL CHECK (kind IN ('TRANSFER', 'DEPOSIT', 'SENDER_TRANSFER')),
    body       bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_log_identity ON event_log (identity, seq);

-- The signer's journal is the truth; these tables are its projection (D10).
CREATE TABLE projection (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    incarnation bytea NOT NULL CHECK (octet_length(incarnation) = 16),
    sequence    bigint NOT NULL CHECK (sequence >= 0)
);
