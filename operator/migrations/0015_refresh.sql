-- Operations that refresh the shares of leaves (D12): kinds are the rules' (`vote::Kind`), which refuse unknown ones.
ALTER TABLE operation DROP CONSTRAINT operation_kind_check;
ALTER TABLE operation ADD CONSTRAINT operation_kind_check CHECK (kind BETWEEN 1 AND 15);
