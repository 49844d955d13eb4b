-- The whole 80 bytes: what was believed of the chain can be checked again.
ALTER TABLE header ADD COLUMN raw bytea NOT NULL DEFAULT ''::bytea;
ALTER TABLE header ADD CHECK (octet_length(raw) IN (0, 80));
