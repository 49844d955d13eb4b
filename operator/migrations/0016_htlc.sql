-- Transfers that a preimage completes (D8). The first decision makes a row here; leaves and their claims stay as they are
-- until the second one settles or returns it.
-- `preimage` is what a receiver provided: from then on this operator's word is COMMIT. `announced`: every operator has
-- settled or returned it, and events went out.
CREATE TABLE htlc (
    op_id         uuid NOT NULL,
    attempt       integer NOT NULL,
    transfer_id   uuid NOT NULL UNIQUE REFERENCES transfer,
    payment_hash  bytea NOT NULL CHECK (octet_length(payment_hash) = 32),
    sender        bytea NOT NULL CHECK (octet_length(sender) = 33),
    receiver      bytea NOT NULL CHECK (octet_length(receiver) = 33),
    expiry_height bigint NOT NULL CHECK (expiry_height BETWEEN 1 AND 4294967295),
    digest        bytea NOT NULL CHECK (octet_length(digest) = 32),
    deciders      smallint[] NOT NULL CHECK (cardinality(deciders) BETWEEN 1 AND 15),
    state         text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'SETTLED', 'RETURNED')),
    preimage      bytea CHECK (octet_length(preimage) = 32 AND sha256(preimage) = payment_hash),
    proof         bytea,
    announced     boolean NOT NULL DEFAULT false,
    next_at       timestamptz NOT NULL DEFAULT now(),
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (op_id, attempt),
    FOREIGN KEY (op_id, attempt) REFERENCES operation,
    CHECK (state = 'PENDING' OR proof IS NOT NULL),
    CHECK (state <> 'SETTLED' OR preimage IS NOT NULL),
    CHECK (NOT announced OR state <> 'PENDING')
);
CREATE UNIQUE INDEX one_live_htlc ON htlc (payment_hash, receiver) WHERE state <> 'RETURNED';
CREATE INDEX htlc_receiver ON htlc (receiver, created_at, transfer_id);
CREATE INDEX htlc_sender ON htlc (sender, created_at, transfer_id);
CREATE INDEX htlc_open ON htlc (next_at) WHERE NOT announced;

CREATE FUNCTION htlc_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state <> NEW.state AND OLD.state <> 'PENDING' THEN
        RAISE EXCEPTION 'htlc % cannot go from % to %', OLD.transfer_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER htlc_ends_once BEFORE UPDATE ON htlc FOR EACH ROW EXECUTE FUNCTION htlc_ends_once();

-- As before, and: claims of a conditional operation follow its second decision.
CREATE OR REPLACE FUNCTION claim_follows_operation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fate text;
    ending text;
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
    SELECT state INTO ending FROM htlc WHERE op_id = OLD.op_id AND attempt = OLD.attempt;
    IF ending IS NOT NULL THEN
        IF OLD.state = 'LOCKED' AND ending <> 'PENDING' AND (NEW.state = 'SPENT' OR ending = 'RETURNED') THEN
            RETURN NEW;
        END IF;
    ELSIF OLD.state = 'LOCKED' AND NEW.state = 'RELEASED' AND fate IN ('ABORTED', 'REFUSED') THEN
        RETURN NEW;
    ELSIF OLD.state = 'LOCKED' AND NEW.state = 'SPENT' AND fate IN ('COMMITTED', 'APPLIED') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'claim of operation % (%, %) cannot go from % to %', OLD.op_id, fate, ending, OLD.state, NEW.state
        USING ERRCODE = 'check_violation';
END $$;
