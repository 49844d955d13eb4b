-- A transfer may have several receivers; each sees and claims its own leaves only. The row in `transfer` speaks of all
-- of them: its total is their sum, its receiver the first one, and it is complete when each has claimed.
ALTER INDEX transfer_receiver RENAME TO transfer_by_receiver;

CREATE TABLE transfer_receiver (
    transfer_id  uuid NOT NULL REFERENCES transfer,
    receiver     bytea NOT NULL CHECK (octet_length(receiver) = 33),
    position     smallint NOT NULL CHECK (position BETWEEN 0 AND 255),
    total        bigint NOT NULL CHECK (total BETWEEN 0 AND 2100000000000000),
    status       smallint NOT NULL CHECK (status BETWEEN 0 AND 11),
    completed_at timestamptz,
    PRIMARY KEY (transfer_id, receiver),
    UNIQUE (transfer_id, position)
);
CREATE INDEX transfer_receiver_status ON transfer_receiver (receiver, status);

INSERT INTO transfer_receiver (transfer_id, receiver, position, total, status, completed_at)
    SELECT transfer_id, receiver, 0, total, status, completed_at FROM transfer;

ALTER TABLE transfer_leaf ADD COLUMN receiver bytea CHECK (octet_length(receiver) = 33);
UPDATE transfer_leaf tl SET receiver = t.receiver FROM transfer t WHERE t.transfer_id = tl.transfer_id;
ALTER TABLE transfer_leaf ALTER COLUMN receiver SET NOT NULL,
    ADD FOREIGN KEY (transfer_id, receiver) REFERENCES transfer_receiver;

CREATE INDEX transfer_invoice ON transfer (invoice) WHERE invoice <> '';
