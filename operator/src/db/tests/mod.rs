//! Every statement against a real Postgres.

mod claims;
mod event_cursors;
mod exits;
mod htlcs;
mod package_keys;
mod payments;
mod rows;

use std::collections::BTreeSet;

use spark_rules::ids::{OperationId, OperatorIndex};
use uuid::Uuid;

use super::{
    Db,
    keyshare::{self, KeyshareRow},
    leaf::{self, LeafWrite},
    operation::{AttemptId, NewOperation},
};

fn attempt(op: u8, attempt: u32) -> AttemptId {
    AttemptId { op: OperationId::from_bytes([op; 16]), attempt }
}

fn new_operation(id: AttemptId) -> NewOperation {
    NewOperation {
        id,
        kind: 2,
        coordinates: true,
        coordinator: OperatorIndex::new(0),
        request: vec![1, 2, 3],
        request_digest: [7; 32],
        named: BTreeSet::from([OperatorIndex::new(0), OperatorIndex::new(2)]),
    }
}

fn key(byte: u8) -> Vec<u8> {
    let mut key = vec![byte; 33];
    key[0] = 2;
    key
}

fn a_leaf(id: u8, version: i64, owner: u8) -> LeafWrite {
    LeafWrite {
        leaf_id: Uuid::from_bytes([id; 16]),
        tree_id: Uuid::from_bytes([0xee; 16]),
        parent_id: None,
        version,
        owner_identity: key(owner),
        status: "AVAILABLE".to_owned(),
        value: 1000,
        node_txid: vec![id; 32],
        record: vec![id, 1],
    }
}

async fn with_leaf(db: &Db, id: u8) -> Uuid {
    let leaf = a_leaf(id, 0, 1);
    leaf::upsert(db.pool(), &leaf).await.unwrap();
    leaf.leaf_id
}

async fn with_keyshare(db: &Db, id: u8, owner_index: i16) -> Uuid {
    let keyshare_id = Uuid::from_bytes([id; 16]);
    let row = KeyshareRow {
        keyshare_id,
        owner_index,
        state: "AVAILABLE".to_owned(),
        group_key: key(id),
        public_shares: [key(1), key(2), key(3)].concat(),
        dkg_session: Uuid::from_bytes([9; 16]),
    };
    keyshare::insert(db.pool(), &row).await.unwrap();
    keyshare::insert(db.pool(), &row).await.unwrap();
    assert_eq!(keyshare::get(db.pool(), keyshare_id).await.unwrap(), Some(row));
    keyshare_id
}
