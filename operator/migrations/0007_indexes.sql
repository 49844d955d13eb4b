-- What every block and every address asks for.
CREATE INDEX leaf_creating ON leaf (tree_id) WHERE status = 'CREATING';
CREATE INDEX watched_outpoint_base ON watched_outpoint (leaf_id) WHERE kind = 'BASE';
CREATE INDEX leaf_parent ON leaf (parent_id) WHERE parent_id IS NOT NULL;
