//! Exit transactions on the own chain, and what they settle (D8, S12).

use std::collections::HashSet;

use bitcoin::{BlockHash, Txid, hashes::Hash as _};
use spark_rules::settlement::{Block, Completion, Condition};

use super::{htlcs::pending_on, *};
use crate::db::{
    DbError, chain,
    exit::{self, Place},
    headers::{self, HeaderRow},
    htlc::{self, Filter, HtlcRow, HtlcState},
    testing,
    work::{self, AppliedWrite},
};

const DEPTH: u32 = 3;
const EXPIRY: u32 = 100;

fn txid() -> Txid {
    Txid::from_byte_array([5; 32])
}

async fn pending(db: &Db, op: u8) -> HtlcRow {
    let completes = Completion::Exit { txid: txid(), depth: DEPTH };
    pending_on(db, op, Condition { completes, expiry_height: EXPIRY }).await
}

fn hash(height: i32) -> [u8; 32] {
    [height.to_le_bytes()[0]; 32]
}

async fn chain_of(db: &Db, heights: std::ops::RangeInclusive<i32>) {
    for height in heights {
        let prev_hash = hash(height - 1).to_vec();
        let row = HeaderRow { height, hash: hash(height).to_vec(), prev_hash, block_time: 1_700_000_000 };
        headers::insert(db.pool(), &row).await.unwrap();
    }
}

/// A look at a mempool that holds these.
async fn look(db: &Db, held: &[Txid]) -> bool {
    let held: HashSet<Txid> = held.iter().copied().collect();
    let changes = exit::changes(db.pool(), &held).await.unwrap();
    let changed = !changes.is_empty();
    in_transaction!(db, tx => { exit::looked(&mut tx, &changes).await?; }).unwrap();
    changed
}

async fn mined(db: &Db, height: i32) {
    let found = exit::among(db.pool(), &[vec![4; 32], txid().to_byte_array().to_vec()]).await.unwrap();
    assert_eq!(found, [txid().to_byte_array()]);
    in_transaction!(db, tx => { exit::mined(&mut tx, &found, &hash(height)).await?; }).unwrap();
}

async fn place(db: &Db) -> Place {
    exit::place(db.pool(), &txid()).await.unwrap()
}

async fn an_hour_passes(db: &Db) {
    let sql = "UPDATE exit_seen SET last_seen = last_seen - interval '1 hour'";
    sqlx::query(sql).execute(db.pool()).await.unwrap();
}

#[tokio::test]
async fn an_exit_is_where_the_own_node_has_it() {
    let db = testing::database().await;
    pending(&db, 1).await;
    chain_of(&db, 1..=4).await;
    assert_eq!(place(&db).await, Place::Nowhere);
    assert!(look(&db, &[txid()]).await && !look(&db, &[txid()]).await);
    an_hour_passes(&db).await;
    assert_eq!(place(&db).await, Place::Near, "as long as the mempool holds it");
    // Dropped: it may come back for a while.
    assert!(look(&db, &[]).await && !look(&db, &[]).await);
    assert_eq!(place(&db).await, Place::Near);
    an_hour_passes(&db).await;
    assert_eq!(place(&db).await, Place::Nowhere);

    mined(&db, 2).await;
    assert_eq!(place(&db).await, Place::Mined(Block { height: 2, hash: hash(2) }));
    // Before the block is gone from the table, and after.
    assert!(exit::unmined(db.pool(), &BlockHash::from_byte_array(hash(2))).await.unwrap().is_empty());
    assert_eq!(place(&db).await, Place::Near);
    mined(&db, 3).await;
    headers::delete_above(db.pool(), 2).await.unwrap();
    assert_eq!(place(&db).await, Place::Near, "the fact goes with its header");
}

#[tokio::test]
async fn an_exit_is_due_at_its_depth_or_its_expiry() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    chain_of(&db, 1..=4).await;
    assert!(htlc::due(db.pool(), 4, 9).await.unwrap().is_empty());
    mined(&db, 2).await;
    assert!(htlc::due(db.pool(), 3, 9).await.unwrap().is_empty(), "two blocks of three");
    assert_eq!(htlc::due(db.pool(), 4, 9).await.unwrap().len(), 1);
    // A preimage is none of its business, and it is none of those that wait for one.
    let preimage = htlc::set_preimage(db.pool(), row.id(), &[6; 32]).await;
    assert!(matches!(preimage, Err(DbError::Constraint(_))), "{preimage:?}");
    let all = Filter { receiver: Some(key(2)), ..Filter::default() };
    assert!(htlc::list(db.pool(), &all, 9, 0).await.unwrap().is_empty());
}

/// D21: what a settled exit gave away moves no further while no block has its payment.
#[tokio::test]
async fn a_settled_exit_that_vanishes_holds_its_leaves() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    chain_of(&db, 1..=4).await;
    mined(&db, 2).await;
    htlc::set_proof(db.pool(), row.id(), &[1]).await.unwrap();
    let sent = LeafWrite { status: "TRANSFER_LOCKED".to_owned(), ..a_leaf(1, 1, 1) };
    let write = AppliedWrite { leaves: vec![sent], ..AppliedWrite::default() };
    assert!(work::ended(&db, &row, HtlcState::Settled, &write).await.unwrap());
    let leaf = Uuid::from_bytes([1; 16]);
    let frozen = async || chain::frozen(db.pool(), &[leaf]).await.unwrap();
    assert!(frozen().await.is_empty());
    let vanished = exit::unmined(db.pool(), &BlockHash::from_byte_array(hash(2))).await.unwrap();
    assert_eq!(vanished, [txid().to_byte_array()]);
    headers::delete_above(db.pool(), 1).await.unwrap();
    assert_eq!(frozen().await, [leaf]);
    chain_of(&db, 2..=2).await;
    mined(&db, 2).await;
    assert!(frozen().await.is_empty());
}
