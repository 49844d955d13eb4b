-- Cooperative exits (D8): transfers that a transaction on chain completes. They are as conditional as those that a
-- preimage completes and lie in the same table; of `payment_hash` and `exit_txid` a row has one.
ALTER TABLE htlc ALTER COLUMN payment_hash DROP NOT NULL;
ALTER TABLE htlc ADD COLUMN exit_txid bytea CHECK (octet_length(exit_txid) = 32);
ALTER TABLE htlc ADD COLUMN exit_depth integer CHECK (exit_depth BETWEEN 1 AND 100);
-- The former rule that only a preimage settles has a generated name.
DO $$
DECLARE
    former name;
BEGIN
    SELECT conname INTO STRICT former FROM pg_constraint
        WHERE conrelid = 'htlc'::regclass AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%SETTLED%preimage%';
    EXECUTE format('ALTER TABLE htlc DROP CONSTRAINT %I', former);
END $$;
ALTER TABLE htlc ADD CONSTRAINT htlc_completes CHECK (
    (payment_hash IS NULL) <> (exit_txid IS NULL) AND (exit_txid IS NULL) = (exit_depth IS NULL)
    AND (exit_txid IS NULL OR preimage IS NULL));
ALTER TABLE htlc ADD CONSTRAINT htlc_settled CHECK (
    state <> 'SETTLED' OR exit_txid IS NOT NULL OR preimage IS NOT NULL);
CREATE INDEX htlc_exit ON htlc (exit_txid) WHERE exit_txid IS NOT NULL;
CREATE INDEX htlc_exit_open ON htlc (exit_txid) WHERE exit_txid IS NOT NULL AND NOT announced;

-- Where the own bitcoind has, or had, an exit transaction. The block goes with its header (S12), the row stays: an exit
-- that was settled and is in no block any more holds its leaves.
CREATE TABLE exit_seen (
    txid       bytea PRIMARY KEY CHECK (octet_length(txid) = 32),
    block_hash bytea REFERENCES header (hash) ON DELETE SET NULL,
    in_mempool boolean NOT NULL,
    last_seen  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX exit_seen_block ON exit_seen (block_hash);
CREATE INDEX exit_seen_mempool ON exit_seen (txid) WHERE in_mempool;
