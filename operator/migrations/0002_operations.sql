-- Operations, votes, and the rows that make a double spend impossible (S9, S10).

-- PROPOSED: written, own signer not yet asked. PREPARED: own signer voted. CERTIFIED: YES of the quorum is known.
-- COMMITTED: a proof of commit is known, so nothing but applying is left. APPLIED: own signer and tables applied it.
-- DONE: every operator applied it (the coordinator shows an outcome only then). REFUSED: own signer said NO without
-- an earlier YES, so no claim is held and it can be in no certificate of ours. ABORTED: a proof of abort is known.
CREATE TABLE operation (
    op_id          uuid NOT NULL,
    attempt        integer NOT NULL CHECK (attempt >= 0),
    kind           smallint NOT NULL CHECK (kind BETWEEN 1 AND 4),
    role           text NOT NULL CHECK (role IN ('COORDINATOR', 'PARTICIPANT')),
    coordinator    smallint NOT NULL CHECK (coordinator BETWEEN 0 AND 14),
    state          text NOT NULL DEFAULT 'PROPOSED'
        CHECK (state IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED', 'APPLIED', 'DONE', 'REFUSED', 'ABORTED')),
    request        bytea CHECK (octet_length(request) <= 8 * 1024 * 1024),
    request_digest bytea NOT NULL CHECK (octet_length(request_digest) = 32),
    digest         bytea CHECK (octet_length(digest) = 32),
    named          smallint[] NOT NULL CHECK (cardinality(named) BETWEEN 1 AND 15),
    own_vote       bytea,
    certificate    bytea,
    proof          bytea,
    abort_proof    bytea,
    opened         bytea,
    reason         text NOT NULL DEFAULT '',
    lease_until    timestamptz NOT NULL DEFAULT now() + interval '30 seconds',
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (op_id, attempt),
    CHECK (state NOT IN ('COMMITTED', 'APPLIED', 'DONE') OR proof IS NOT NULL),
    CHECK (state NOT IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED', 'APPLIED') OR request IS NOT NULL)
);
-- At most one attempt of an operation is undecided or committed.
CREATE UNIQUE INDEX one_live_attempt ON operation (op_id) WHERE state NOT IN ('REFUSED', 'ABORTED');
CREATE INDEX operation_request ON operation (request_digest);
CREATE INDEX operation_open ON operation (updated_at) WHERE state IN ('PROPOSED', 'PREPARED', 'CERTIFIED', 'COMMITTED', 'APPLIED', 'REFUSED');

CREATE FUNCTION operation_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state = NEW.state
        OR (OLD.state = 'PROPOSED' AND NEW.state IN ('PREPARED', 'CERTIFIED', 'COMMITTED', 'REFUSED', 'ABORTED'))
        OR (OLD.state = 'REFUSED' AND NEW.state IN ('COMMITTED', 'ABORTED'))
        OR (OLD.state = 'PREPARED' AND NEW.state IN ('CERTIFIED', 'COMMITTED', 'ABORTED'))
        OR (OLD.state = 'CERTIFIED' AND NEW.state IN ('COMMITTED', 'ABORTED'))
        OR (OLD.state = 'COMMITTED' AND NEW.state = 'APPLIED')
        OR (OLD.state = 'APPLIED' AND NEW.state = 'DONE')
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'operation % cannot go from % to %', OLD.op_id, OLD.state, NEW.state USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER operation_moves_forward BEFORE UPDATE OF state ON operation
    FOR EACH ROW EXECUTE FUNCTION operation_moves_forward();

-- Evidence: what every signer said. A signer may say YES and later ABORT; both are kept.
CREATE TABLE vote (
    op_id       uuid NOT NULL,
    attempt     integer NOT NULL,
    signer      smallint NOT NULL CHECK (signer BETWEEN 0 AND 14),
    choice      text NOT NULL CHECK (choice IN ('YES', 'NO', 'ABORT')),
    body        bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (op_id, attempt, signer, choice),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);

CREATE TABLE leaf_claim (
    leaf_id      uuid NOT NULL,
    leaf_version bigint NOT NULL CHECK (leaf_version >= 0),
    op_id        uuid NOT NULL,
    attempt      integer NOT NULL,
    state        text NOT NULL DEFAULT 'LOCKED' CHECK (state IN ('LOCKED', 'SPENT', 'RELEASED')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (leaf_id, leaf_version, op_id, attempt),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);
-- S9: the double-spend barrier.
CREATE UNIQUE INDEX one_live_claim ON leaf_claim (leaf_id, leaf_version) WHERE state IN ('LOCKED', 'SPENT');
CREATE INDEX leaf_claim_operation ON leaf_claim (op_id, attempt);

-- Every other thing an operation takes for itself: a UTXO, an exit outpoint, a nonce commitment, a transfer's claim.
CREATE TABLE resource_claim (
    kind       text NOT NULL CHECK (length(kind) BETWEEN 1 AND 32),
    key        bytea NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 128),
    op_id      uuid NOT NULL,
    attempt    integer NOT NULL,
    state      text NOT NULL DEFAULT 'LOCKED' CHECK (state IN ('LOCKED', 'SPENT', 'RELEASED')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, key, op_id, attempt),
    FOREIGN KEY (op_id, attempt) REFERENCES operation
);
CREATE UNIQUE INDEX one_live_resource ON resource_claim (kind, key) WHERE state IN ('LOCKED', 'SPENT');
CREATE INDEX resource_claim_operation ON resource_claim (op_id, attempt);

-- A claim starts LOCKED, belongs to its operation for ever, and leaves LOCKED once, only by the fate of that operation.
CREATE FUNCTION claim_follows_operation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fate text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'claims are never deleted' USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'LOCKED' THEN
            RAISE EXCEPTION 'a claim starts locked' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.op_id <> OLD.op_id OR NEW.attempt <> OLD.attempt THEN
        RAISE EXCEPTION 'a claim keeps its operation' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state = OLD.state THEN
        RETURN NEW;
    END IF;
    SELECT state INTO fate FROM operation WHERE op_id = OLD.op_id AND attempt = OLD.attempt;
    IF OLD.state = 'LOCKED' AND NEW.state = 'RELEASED' AND fate IN ('ABORTED', 'REFUSED') THEN
        RETURN NEW;
    END IF;
    IF OLD.state = 'LOCKED' AND NEW.state = 'SPENT' AND fate IN ('COMMITTED', 'APPLIED') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'claim of operation % (%) cannot go from % to %', OLD.op_id, fate, OLD.state, NEW.state
        USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER leaf_claim_follows_operation BEFORE INSERT OR UPDATE OR DELETE ON leaf_claim
    FOR EACH ROW EXECUTE FUNCTION claim_follows_operation();
CREATE TRIGGER resource_claim_follows_operation BEFORE INSERT OR UPDATE OR DELETE ON resource_claim
    FOR EACH ROW EXECUTE FUNCTION claim_follows_operation();
