-- Leaves whose rows an earlier life of the own signer stands behind, and the present one not yet (D10, D12): nothing is
-- served on them. Filled when the journal of a repaired signer is followed for the first time, emptied by that journal.
CREATE TABLE unrepaired_leaf (
    leaf_id uuid PRIMARY KEY REFERENCES leaf
);
