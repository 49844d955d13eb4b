//! The second decision of a conditional transfer in the tables (D8).

use spark_rules::{
    operation::PAYMENT,
    settlement::{Condition, Pending},
};

use super::*;
use crate::db::{
    DbError, claim,
    htlc::{self, Filter, HtlcRow, HtlcState},
    operation::State,
    testing,
    transfer::{self, TransferLeafRow, TransferRow},
    work::{self, AppliedWrite, Claims},
};

const PREIMAGE: [u8; 32] = [6; 32];
const EXPIRY: u32 = 100;

fn payment_hash() -> [u8; 32] {
    use bitcoin::hashes::{Hash as _, sha256};
    sha256::Hash::hash(&PREIMAGE).to_byte_array()
}

fn claims(leaf: Uuid, transfer: u8) -> Claims {
    let resources = vec![("transfer", vec![transfer]), (PAYMENT, payment_hash().to_vec())];
    Claims { leaves: vec![(leaf, 0)], resources }
}

/// An HTLC of one leaf after its first decision.
async fn pending(db: &Db, op: u8) -> HtlcRow {
    pending_on(db, op, Condition::preimage(payment_hash(), EXPIRY)).await
}

/// The same on another condition.
pub(super) async fn pending_on(db: &Db, op: u8, condition: Condition) -> HtlcRow {
    let leaf = with_leaf(db, 1).await;
    let new = NewOperation { kind: 8, ..new_operation(attempt(op, 0)) };
    work::propose(db, &new, &claims(leaf, op)).await.unwrap();
    work::committed(db, new.id, &[8], &[9], &[]).await.unwrap();
    let transfer = TransferRow {
        transfer_id: Uuid::from_bytes([op; 16]),
        sender: key(1),
        receiver: key(2),
        total: 1000,
        status: transfer::SENDER_KEY_TWEAK_PENDING,
        kind: 0,
        expiry: Some(1),
        invoice: String::new(),
        created_micros: 0,
        updated_micros: 0,
        completed_micros: None,
    };
    let sent = TransferLeafRow {
        transfer_id: transfer.transfer_id,
        leaf_id: leaf,
        receiver: key(2),
        position: 0,
        leaf_version: 1,
        value: 1000,
        secret_cipher: vec![1],
        signature: vec![2],
        intermediate_refund_tx: vec![3],
        intermediate_direct_refund_tx: vec![],
        intermediate_direct_from_cpfp_refund_tx: vec![4],
        record: vec![5],
    };
    let row = HtlcRow {
        pending: Pending {
            operation: new.id.op,
            attempt: 0,
            digest: [3; 32],
            condition,
            deciders: new.named.clone(),
        },
        transfer_id: transfer.transfer_id,
        sender: transfer.sender.clone(),
        receiver: transfer.receiver.clone(),
        state: HtlcState::Pending,
        preimage: None,
        proof: None,
        announced: false,
        created_micros: 0,
    };
    let write = AppliedWrite {
        transfer: Some((transfer, vec![sent])),
        htlc: Some(row.clone()),
        ..AppliedWrite::default()
    };
    assert!(work::applied(db, new.id, &write).await.unwrap());
    assert!(work::done(db, new.id, &[], true).await.unwrap());
    let stored = htlc::get(db.pool(), new.id).await.unwrap().unwrap();
    assert_eq!(HtlcRow { created_micros: 0, ..stored.clone() }, row);
    stored
}

async fn leaf_now(db: &Db) -> (String, i64, bool) {
    let leaf = leaf::get(db.pool(), Uuid::from_bytes([1; 16])).await.unwrap().unwrap();
    (leaf.status, leaf.version, leaf.locked)
}

async fn status(db: &Db, row: &HtlcRow) -> (i16, i16) {
    let found = transfer::get(db.pool(), row.transfer_id).await.unwrap().unwrap();
    let shares = transfer::shares(db.pool(), &[row.transfer_id]).await.unwrap();
    (found.status, shares[0].status)
}

#[tokio::test]
async fn between_the_decisions_the_leaf_is_held() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    assert_eq!(leaf_now(&db).await, ("TRANSFER_LOCKED".to_owned(), 0, true));
    assert_eq!(status(&db, &row).await, (1, 1));
    let leaf_id = Uuid::from_bytes([1; 16]);
    assert_eq!(leaf::last_owned_version(db.pool(), leaf_id, &key(2)).await.unwrap(), Some(1));
    // Its operation is done, but no claim moves before the end.
    for moved in [
        claim::spend_leaves(db.pool(), row.id()).await,
        claim::release_leaves(db.pool(), row.id()).await,
        claim::spend_resources(db.pool(), row.id()).await,
        claim::release_resources(db.pool(), row.id()).await,
    ] {
        assert!(matches!(moved, Err(DbError::Constraint(_))), "{moved:?}");
    }
    let rival = new_operation(attempt(2, 0));
    let leaf = Claims { leaves: vec![(Uuid::from_bytes([1; 16]), 0)], resources: vec![] };
    assert!(matches!(work::propose(&db, &rival, &leaf).await, Err(DbError::LeafClaimed)));
    let hash = Claims { leaves: vec![], resources: vec![(PAYMENT, payment_hash().to_vec())] };
    assert!(matches!(work::propose(&db, &rival, &hash).await, Err(DbError::ResourceClaimed)));
    // What does not fit the hash is no preimage, whoever writes it; nothing ends without a proof.
    assert!(matches!(htlc::set_preimage(db.pool(), row.id(), &[7; 32]).await, Err(DbError::Constraint(_))));
    for state in [HtlcState::Settled, HtlcState::Returned] {
        let ended = work::ended(&db, &row, state, &AppliedWrite::default()).await;
        assert!(matches!(ended, Err(DbError::Constraint(_))), "{ended:?}");
    }
    assert_eq!(leaf_now(&db).await, ("TRANSFER_LOCKED".to_owned(), 0, true));
    // Not before six blocks after the expiry, and not twice at once.
    assert!(htlc::due(db.pool(), EXPIRY + 5, 9).await.unwrap().is_empty());
    assert_eq!(htlc::due(db.pool(), EXPIRY + 6, 9).await.unwrap().len(), 1);
    assert!(htlc::due(db.pool(), EXPIRY + 6, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn it_settles_once() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    htlc::set_preimage(db.pool(), row.id(), &PREIMAGE).await.unwrap();
    htlc::set_proof(db.pool(), row.id(), &[1]).await.unwrap();
    htlc::set_proof(db.pool(), row.id(), &[2]).await.unwrap();
    let sent = LeafWrite { status: "TRANSFER_LOCKED".to_owned(), ..a_leaf(1, 1, 1) };
    let write = AppliedWrite { leaves: vec![sent], ..AppliedWrite::default() };
    assert!(work::ended(&db, &row, HtlcState::Settled, &write).await.unwrap());
    assert!(!work::ended(&db, &row, HtlcState::Settled, &write).await.unwrap());
    assert!(!work::ended(&db, &row, HtlcState::Returned, &AppliedWrite::default()).await.unwrap());
    assert_eq!(leaf_now(&db).await, ("TRANSFER_LOCKED".to_owned(), 1, false));
    assert_eq!(status(&db, &row).await, (2, 2));
    let stored = htlc::of_payment(db.pool(), &payment_hash(), &key(2)).await.unwrap().remove(0);
    // Words given again under another federation file take the place of the first ones.
    assert_eq!((stored.state, stored.proof, stored.announced), (HtlcState::Settled, Some(vec![2]), false));
    // What has gone on since stays.
    let mut connection = db.pool().acquire().await.unwrap();
    transfer::complete(&mut connection, row.transfer_id, &key(2)).await.unwrap();
    for late in [transfer::SENDER_KEY_TWEAKED, transfer::RETURNED] {
        transfer::set_status(&mut connection, row.transfer_id, late).await.unwrap();
        assert_eq!(status(&db, &row).await, (transfer::COMPLETED, transfer::COMPLETED));
    }
    drop(connection);
    // The hash is used up, for ever.
    let hash = Claims { leaves: vec![], resources: vec![(PAYMENT, payment_hash().to_vec())] };
    let rival = work::propose(&db, &new_operation(attempt(2, 0)), &hash).await;
    assert!(matches!(rival, Err(DbError::ResourceClaimed)));
    let event = (key(2), "TRANSFER", vec![1; 16]);
    for _ in 0..2 {
        work::announced(&db, row.id(), std::slice::from_ref(&event)).await.unwrap();
    }
    let events: i64 =
        sqlx::query_scalar("SELECT count(*) FROM event_log").fetch_one(db.pool()).await.unwrap();
    assert_eq!(events, 1, "announced once");
}

#[tokio::test]
async fn it_returns_once_and_the_hash_is_free_again() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    htlc::set_proof(db.pool(), row.id(), &[1]).await.unwrap();
    let back = LeafWrite { record: vec![9], ..a_leaf(1, 0, 1) };
    let write = AppliedWrite { leaves: vec![back], ..AppliedWrite::default() };
    assert!(work::ended(&db, &row, HtlcState::Returned, &write).await.unwrap());
    assert!(!work::ended(&db, &row, HtlcState::Settled, &write).await.unwrap());
    assert_eq!(leaf_now(&db).await, ("AVAILABLE".to_owned(), 0, false));
    assert_eq!(status(&db, &row).await, (7, 7));
    // Receipts of a leaf that came back are none of the receiver's business; those of a pending one were.
    let leaf_id = Uuid::from_bytes([1; 16]);
    assert_eq!(leaf::last_owned_version(db.pool(), leaf_id, &key(2)).await.unwrap(), None);
    // The same leaf and hash again, under another id: this one is used up.
    let used = new_operation(attempt(2, 0));
    assert!(matches!(
        work::propose(&db, &used, &claims(Uuid::from_bytes([1; 16]), 1)).await,
        Err(DbError::ResourceClaimed)
    ));
    let again = pending(&db, 3).await;
    assert_eq!(again.state, HtlcState::Pending);
    let found = htlc::of_payment(db.pool(), &payment_hash(), &key(2)).await.unwrap();
    let found: Vec<_> = found.iter().map(|row| row.transfer_id).collect();
    assert_eq!(found, [again.transfer_id], "of several the live one");
    let all = Filter { receiver: Some(key(2)), ..Filter::default() };
    assert_eq!(htlc::list(db.pool(), &all, 9, 0).await.unwrap().len(), 2);
    let returned = Filter { state: Some(HtlcState::Returned), ..all.clone() };
    assert_eq!(htlc::list(db.pool(), &returned, 9, 0).await.unwrap().len(), 1);
    let sent = Filter { sender: Some(key(2)), ..Filter::default() };
    assert!(htlc::list(db.pool(), &sent, 9, 0).await.unwrap().is_empty());
    assert_eq!(
        crate::db::operation::get(db.pool(), row.id()).await.unwrap().unwrap().state,
        State::Done,
        "the first decision stands"
    );
}

/// A hash is one sender's at a receiver: a stranger's dust under it neither holds it nor comes first.
#[tokio::test]
async fn nobody_occupies_a_hash_for_another() {
    let db = testing::database().await;
    let row = pending(&db, 1).await;
    let (stranger, small) = (key(7), Uuid::from_bytes([9; 16]));
    for (op, transfer_id, taken) in [(2, small, false), (3, Uuid::from_bytes([8; 16]), true)] {
        let new = NewOperation { kind: 8, ..new_operation(attempt(op, 0)) };
        work::propose(&db, &new, &Claims::default()).await.unwrap();
        let (sender, receiver) = (stranger.clone(), key(2));
        let transfer = TransferRow {
            transfer_id,
            sender: sender.clone(),
            receiver: receiver.clone(),
            total: 1,
            status: transfer::SENDER_KEY_TWEAK_PENDING,
            kind: 0,
            expiry: Some(1),
            invoice: String::new(),
            created_micros: 0,
            updated_micros: 0,
            completed_micros: None,
        };
        transfer::insert(db.pool(), &transfer).await.unwrap();
        let pending = Pending { operation: new.id.op, ..row.pending.clone() };
        let theirs = HtlcRow { pending, transfer_id, sender, receiver, ..row.clone() };
        let written = htlc::insert(db.pool(), &theirs).await;
        assert_eq!(written.is_err(), taken, "one from each sender: {written:?}");
    }
    let found = htlc::of_payment(db.pool(), &payment_hash(), &key(2)).await.unwrap();
    let found: Vec<_> = found.iter().map(|row| row.transfer_id).collect();
    assert_eq!(found, [row.transfer_id, small], "the largest first");
}
