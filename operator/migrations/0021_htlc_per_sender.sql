-- A payment hash is one sender's at a receiver: nobody else can occupy it.
DROP INDEX one_live_htlc;
CREATE UNIQUE INDEX one_live_htlc ON htlc (payment_hash, receiver, sender) WHERE state <> 'RETURNED';
