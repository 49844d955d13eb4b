-- A transaction that pays deposit addresses, once for all of its outputs: one of 100 kB may have thousands.
CREATE TABLE deposit_tx (
    txid bytea PRIMARY KEY CHECK (octet_length(txid) = 32),
    raw  bytea NOT NULL CHECK (octet_length(raw) > 0)
);
INSERT INTO deposit_tx (txid, raw) SELECT DISTINCT ON (txid) txid, raw_tx FROM deposit_output ORDER BY txid, vout;
ALTER TABLE deposit_output DROP COLUMN raw_tx;
ALTER TABLE deposit_output ADD FOREIGN KEY (txid) REFERENCES deposit_tx (txid);

-- What is in no block is asked for at every look at the mempool.
CREATE INDEX deposit_output_pending ON deposit_output (txid) WHERE height IS NULL;
