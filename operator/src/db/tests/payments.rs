//! What blocks and mempool pay to deposit addresses, as the follower writes it.

use std::collections::HashSet;

use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Transaction, TxIn, TxMerkleNode, TxOut,
    Txid, absolute,
    block::{Header, Version},
    hashes::Hash as _,
    transaction,
};

use spark_rules::tx::without_witnesses;

use super::*;
use crate::{
    chain::{BlockConnected, BlockId, ChainSink as _, HeaderStore as _},
    db::{
        address::{self, AddressRow},
        chain,
        follow::ChainTables,
        static_deposit,
        testing::database,
    },
};

/// A deposit address with script `id`, 34 times.
async fn put_address(db: &Db, id: u8, is_static: bool) {
    let row = AddressRow {
        keyshare_id: with_keyshare(db, id, 0).await,
        leaf_id: Uuid::from_bytes([id; 16]),
        address: format!("bcrt1p{id:058}"),
        script: vec![id; 34],
        network: "regtest".to_owned(),
        identity: key(1),
        user_key: key(2),
        verifying_key: key(id),
        coordinator: 0,
        address_signatures: "{}".to_owned(),
        possession_signature: Some(vec![7; 64]),
        state: "READY".to_owned(),
        created_micros: 0,
        is_static,
    };
    address::insert(db.pool(), &row).await.unwrap();
}

fn paying(input: OutPoint, outputs: &[(u8, u64)]) -> Transaction {
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn { previous_output: input, ..TxIn::default() }],
        output: outputs
            .iter()
            .map(|(id, sats)| TxOut {
                value: Amount::from_sat(*sats),
                script_pubkey: ScriptBuf::from_bytes(vec![*id; 34]),
            })
            .collect(),
    }
}

fn block(height: u32, txdata: Vec<Transaction>) -> BlockConnected {
    let header = Header {
        version: Version::TWO,
        prev_blockhash: BlockHash::all_zeros(),
        merkle_root: TxMerkleNode::all_zeros(),
        time: height,
        bits: CompactTarget::from_consensus(0x207f_ffff),
        nonce: 0,
    };
    BlockConnected { id: BlockId { height, hash: header.block_hash() }, block: Block { header, txdata } }
}

fn input(n: u8) -> OutPoint {
    OutPoint { txid: Txid::from_byte_array([n; 32]), vout: 0 }
}

async fn count(db: &Db, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db.pool()).await.unwrap()
}

#[tokio::test]
async fn s13_a_payment_of_very_many_outputs_is_stored_once_and_only_its_largest_outputs() {
    let db = database().await;
    put_address(&db, 40, true).await;
    put_address(&db, 41, true).await;
    put_address(&db, 42, false).await;
    let tables = ChainTables::new(db.clone());
    // 1500 outputs to one address, of rising value, one to another, and one to a one-time address.
    let mut outputs: Vec<(u8, u64)> = (0..1500).map(|n| (40, 330 + n)).collect();
    outputs.extend([(41, 5000), (42, 6000)]);
    let mut tx = paying(input(9), &outputs);
    // What the payer adds to be a burden is not part of the id.
    tx.input[0].witness.push(vec![7; 1000]);
    let (txid, txid_bytes) = (tx.compute_txid(), tx.compute_txid().to_byte_array());
    tables.mempool(std::slice::from_ref(&tx), &HashSet::from([txid])).await.unwrap();
    tables.mempool(std::slice::from_ref(&tx), &HashSet::from([txid])).await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_tx").await, 1);
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_output").await, 64 + 1);
    let least = "SELECT min(amount) FROM deposit_output WHERE height IS NULL";
    assert_eq!(count(&db, least).await, 330 + 1500 - 64);
    let found = chain::deposit(db.pool(), &txid_bytes, 1500).await.unwrap().unwrap();
    assert_eq!((found.amount, found.raw_tx), (5000, without_witnesses(&tx)));

    // Replaced: nothing of it stays.
    tables.mempool(&[], &HashSet::new()).await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_tx").await, 0);

    // In a block the one-time address is paid, too; what left the mempool is not forgotten.
    let event = block(1, vec![tx.clone()]);
    tables.mempool(std::slice::from_ref(&tx), &HashSet::from([txid])).await.unwrap();
    tables.connected(&event).await.unwrap();
    tables.mempool(&[], &HashSet::new()).await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_output WHERE height = 1").await, 64 + 2);
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_tx").await, 1);
    assert_eq!(count(&db, "SELECT count(*) FROM watched_outpoint WHERE kind = 'DEPOSIT'").await, 64 + 1);
    tables.pop(event.id).await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_output").await, 0);
    assert_eq!(count(&db, "SELECT count(*) FROM deposit_tx").await, 0);
}

#[tokio::test]
async fn answers_to_refunds_of_one_output_are_bounded() {
    let db = database().await;
    let digest = |n: u8| [n; 32];
    for output in [0, 1] {
        for n in 0..50 {
            let body = [n, output];
            let digest = digest(n + 100 * output);
            let kept = static_deposit::keep_answer(&db, &digest, &[1; 32], output.into(), &body).await;
            assert_eq!(kept.unwrap(), body);
        }
    }
    assert_eq!(count(&db, "SELECT count(*) FROM static_refund WHERE vout = 0").await, 32);
    assert_eq!(count(&db, "SELECT count(*) FROM static_refund WHERE vout = 1").await, 32);
    // The newest ones stay, and the first answer to a request.
    assert_eq!(static_deposit::answer(db.pool(), &digest(17)).await.unwrap(), None);
    assert_eq!(static_deposit::answer(db.pool(), &digest(18)).await.unwrap(), Some(vec![18, 0]));
    let again = static_deposit::keep_answer(&db, &digest(18), &[1; 32], 0, &[7]).await.unwrap();
    assert_eq!(again, [18, 0]);
}

#[tokio::test]
async fn a_static_deposit_that_its_own_block_spends_counts_as_spent() {
    let db = database().await;
    put_address(&db, 40, true).await;
    let tables = ChainTables::new(db.clone());
    let deposit = paying(input(9), &[(1, 1000), (40, 5000)]);
    let spend = paying(OutPoint { txid: deposit.compute_txid(), vout: 1 }, &[(1, 4000)]);
    let event = block(1, vec![deposit.clone(), spend.clone()]);
    tables.connected(&event).await.unwrap();
    // The same block again, as after a crash: the output is watched by now.
    tables.connected(&event).await.unwrap();
    let found: Vec<(Vec<u8>, i64, Vec<u8>)> =
        sqlx::query_as("SELECT txid, vout, spender_txid FROM chain_event")
            .fetch_all(db.pool())
            .await
            .unwrap();
    let bytes = |tx: &Transaction| tx.compute_txid().to_byte_array().to_vec();
    assert_eq!(found, [(bytes(&deposit), 1, bytes(&spend))]);
}
