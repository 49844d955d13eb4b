//! Plain rows.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::db::{
    DbError,
    address::{self, AddressRow},
    chain::{self, DepositRow, SpendRow, WatchedRow},
    delivery::{self, Message},
    event,
    headers::{self, HeaderRow},
    leaf::SignedTxRow,
    operation::{self, State},
    package_key, projection, query_node,
    receipt::{self, ReceiptRow},
    testing,
    transfer::{self, Filter, TransferLeafRow, TransferRow},
    work::{self, Claims},
};

fn an_address(keyshare_id: Uuid, leaf: u8) -> AddressRow {
    AddressRow {
        keyshare_id,
        leaf_id: Uuid::from_bytes([leaf; 16]),
        address: format!("bcrt1p{leaf:058}"),
        script: vec![leaf; 34],
        network: "regtest".to_owned(),
        identity: key(1),
        user_key: key(2),
        verifying_key: key(leaf),
        coordinator: 0,
        address_signatures: "{}".to_owned(),
        possession_signature: None,
        state: "BINDING".to_owned(),
        created_micros: 0,
        is_static: false,
    }
}

fn header(height: i32, fork: u8) -> HeaderRow {
    HeaderRow {
        height,
        hash: [vec![fork; 28], height.to_be_bytes().to_vec()].concat(),
        prev_hash: vec![fork; 32],
        block_time: 1_700_000_000,
    }
}

#[tokio::test]
async fn keyshares_are_taken_once_and_addresses_are_idempotent() {
    let db = testing::database().await;
    with_keyshare(&db, 1, 0).await;
    with_keyshare(&db, 2, 0).await;
    with_keyshare(&db, 3, 1).await;
    assert_eq!(keyshare::available(db.pool(), 0).await.unwrap(), 2);
    let leaf = Uuid::from_bytes([40; 16]);
    let first = address::reserve(&db, 0, leaf, &key(1), &key(2)).await.unwrap().unwrap();
    assert_eq!(address::reserve(&db, 0, leaf, &key(1), &key(2)).await.unwrap().as_ref(), Some(&first));
    assert_eq!(keyshare::available(db.pool(), 0).await.unwrap(), 1);
    keyshare::mark_bound(db.pool(), Uuid::from_bytes([3; 16])).await.unwrap();
    assert_eq!(keyshare::available(db.pool(), 1).await.unwrap(), 0);

    let row = an_address(first.keyshare_id, 40);
    address::insert(db.pool(), &row).await.unwrap();
    address::insert(db.pool(), &row).await.unwrap();
    assert!(address::unused(db.pool(), &key(1), true, 10, 0).await.unwrap().is_empty());
    assert_eq!(address::unused(db.pool(), &key(1), false, 10, 0).await.unwrap().len(), 1);
    let signatures = BTreeMap::from([("0".repeat(63) + "1", vec![0x30, 1])]);
    address::complete(db.pool(), row.keyshare_id, &signatures, &[5; 64]).await.unwrap();
    address::complete(db.pool(), row.keyshare_id, &BTreeMap::new(), &[6; 64]).await.unwrap();
    let found = address::by_script(db.pool(), &row.script).await.unwrap().unwrap();
    assert_eq!(found.signatures().unwrap(), signatures);
    assert_eq!(found.possession_signature, Some(vec![5; 64]));
    assert_eq!(
        address::by_scripts(db.pool(), &[row.script.clone(), vec![1; 34]]).await.unwrap(),
        vec![found.clone()]
    );
    assert_eq!(address::scripts_after(db.pool(), &[], 10).await.unwrap(), vec![row.script.clone()]);
    address::mark_used(db.pool(), row.leaf_id).await.unwrap();
    assert_eq!(address::by_leaf(db.pool(), row.leaf_id).await.unwrap().unwrap().state, "USED");
    assert!(address::unused(db.pool(), &key(1), true, 10, 0).await.unwrap().is_empty());

    let other = Uuid::from_bytes([41; 16]);
    assert!(address::reserve(&db, 0, other, &key(1), &key(2)).await.unwrap().is_some());
    assert!(address::reserve(&db, 0, Uuid::from_bytes([42; 16]), &key(1), &key(2)).await.unwrap().is_none());
}

#[tokio::test]
async fn parallel_requests_for_one_leaf_id_take_one_keyshare() {
    let db = testing::database().await;
    for id in 1..=20 {
        with_keyshare(&db, id, 0).await;
    }
    let leaf = Uuid::from_bytes([40; 16]);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(
                async move { address::reserve(&db, 0, leaf, &key(1), &key(2)).await.unwrap().unwrap() },
            )
        })
        .collect();
    let mut rows = Vec::new();
    for task in tasks {
        rows.push(task.await.unwrap());
    }
    rows.dedup();
    assert_eq!(rows.len(), 1);
    assert_eq!(keyshare::available(db.pool(), 0).await.unwrap(), 19);
}

#[tokio::test]
async fn facts_disappear_with_their_header() {
    let db = testing::database().await;
    assert_eq!(headers::tip(db.pool()).await.unwrap(), None);
    for height in 1..=3 {
        headers::insert(db.pool(), &header(height, 1)).await.unwrap();
    }
    headers::insert(db.pool(), &header(3, 1)).await.unwrap();
    assert!(matches!(headers::insert(db.pool(), &header(3, 2)).await, Err(DbError::Exists(_))));
    assert_eq!(headers::tip(db.pool()).await.unwrap(), Some(header(3, 1)));

    let keyshare = with_keyshare(&db, 1, 0).await;
    let row = an_address(keyshare, 40);
    address::insert(db.pool(), &row).await.unwrap();
    let mut deposit = DepositRow {
        txid: vec![1; 32],
        vout: 0,
        script: row.script.clone(),
        amount: 50_000,
        height: None,
        block_hash: None,
        raw_tx: vec![2],
    };
    chain::upsert_deposit(db.pool(), &deposit).await.unwrap();
    deposit.height = Some(3);
    deposit.block_hash = Some(header(3, 1).hash);
    chain::upsert_deposit(db.pool(), &deposit).await.unwrap();
    assert_eq!(chain::deposit(db.pool(), &deposit.txid, 0).await.unwrap(), Some(deposit.clone()));
    assert_eq!(chain::deposits_of(db.pool(), &row.script).await.unwrap(), vec![deposit.clone()]);

    let leaf = with_leaf(&db, 7).await;
    let watched = WatchedRow { txid: vec![3; 32], vout: 1, kind: "NODE".to_owned(), leaf_id: Some(leaf) };
    chain::watch(db.pool(), &watched).await.unwrap();
    chain::watch(db.pool(), &watched).await.unwrap();
    let found = chain::watched(db.pool(), &[vec![3; 32], vec![3; 32]], &[0, 1]).await.unwrap();
    assert_eq!(found, vec![watched]);
    let mut spend = SpendRow {
        txid: vec![3; 32],
        vout: 1,
        spender_txid: vec![4; 32],
        kind: "FOREIGN".to_owned(),
        leaf_id: Some(leaf),
    };
    chain::insert_mempool_spend(db.pool(), &spend).await.unwrap();
    assert_eq!(chain::mempool_spenders(db.pool()).await.unwrap(), vec![vec![4; 32]]);
    assert_eq!(chain::frozen(db.pool(), &[leaf]).await.unwrap(), vec![leaf]);
    assert_eq!(chain::delete_mempool_spends(db.pool(), &[vec![4; 32]]).await.unwrap(), 1);
    assert!(chain::frozen(db.pool(), &[leaf]).await.unwrap().is_empty());
    chain::insert_event(db.pool(), &spend, 3, &header(3, 1).hash).await.unwrap();
    assert_eq!(chain::events_of_leaf(db.pool(), leaf).await.unwrap(), vec![spend.clone()]);
    assert_eq!(chain::frozen(db.pool(), &[leaf]).await.unwrap(), vec![leaf]);

    assert_eq!(headers::delete_above(db.pool(), 2).await.unwrap(), 1);
    assert!(chain::frozen(db.pool(), &[leaf]).await.unwrap().is_empty());
    assert_eq!(chain::deposit(db.pool(), &deposit.txid, 0).await.unwrap(), None);
    headers::insert(db.pool(), &header(3, 2)).await.unwrap();
    assert_eq!(headers::get(db.pool(), 3).await.unwrap(), Some(header(3, 2)));
    // A node's own transaction moves the tree for what is below it, and starts the clock of the node itself.
    spend.kind = "NODE".to_owned();
    chain::insert_event(db.pool(), &spend, 3, &header(3, 2).hash).await.unwrap();
    let below = with_leaf(&db, 8).await;
    sqlx::query("UPDATE leaf SET parent_id = $1 WHERE leaf_id = $2")
        .bind(leaf)
        .bind(below)
        .execute(db.pool())
        .await
        .unwrap();
    assert_eq!(chain::frozen(db.pool(), &[leaf, below]).await.unwrap(), vec![leaf]);
    spend.vout = 2;
    spend.kind = "FOREIGN".to_owned();
    chain::insert_event(db.pool(), &spend, 3, &header(3, 2).hash).await.unwrap();
    assert_eq!(chain::frozen(db.pool(), &[below]).await.unwrap(), vec![below]);
}

#[tokio::test]
async fn leaves_are_listed_and_versions_never_fall() {
    let db = testing::database().await;
    let mut root = a_leaf(1, 0, 1);
    root.status = "SPLITTED".to_owned();
    let mut child = a_leaf(2, 0, 1);
    child.parent_id = Some(root.leaf_id);
    leaf::upsert(db.pool(), &root).await.unwrap();
    leaf::upsert(db.pool(), &child).await.unwrap();
    assert_eq!(leaf::by_owner(db.pool(), &key(1), &[], 10, 0).await.unwrap().len(), 2);
    let available = ["AVAILABLE".to_owned()];
    assert_eq!(leaf::by_owner(db.pool(), &key(1), &available, 10, 0).await.unwrap().len(), 1);
    assert_eq!(leaf::by_ids(db.pool(), &[child.leaf_id, Uuid::nil()]).await.unwrap().len(), 1);
    assert_eq!(leaf::with_ancestors(db.pool(), &[child.leaf_id]).await.unwrap().len(), 2);
    assert_eq!(leaf::balance(db.pool(), &key(1)).await.unwrap(), (1000, 0));

    child.version = 2;
    child.owner_identity = key(2);
    leaf::upsert(db.pool(), &child).await.unwrap();
    let mut older = child.clone();
    older.version = 1;
    older.owner_identity = key(1);
    leaf::upsert(db.pool(), &older).await.unwrap();
    assert_eq!(
        leaf::get(db.pool(), child.leaf_id).await.unwrap().unwrap().version,
        2,
        "an older version changes nothing"
    );
    let mut stolen = child.clone();
    stolen.owner_identity = key(3);
    assert!(matches!(leaf::upsert(db.pool(), &stolen).await, Err(DbError::Constraint(_))));
    assert!(!leaf::set_status(db.pool(), child.leaf_id, 1, "EXITED", &[1]).await.unwrap());
    assert!(leaf::set_status(db.pool(), child.leaf_id, 2, "CREATING", &[1]).await.unwrap());
    assert_eq!(leaf::creating(db.pool(), 10).await.unwrap().len(), 1);
    let mut bad = a_leaf(3, 0, 1);
    bad.value = -1;
    assert!(matches!(leaf::upsert(db.pool(), &bad).await, Err(DbError::Constraint(_))));
    bad.value = 1;
    bad.node_txid = vec![1; 31];
    assert!(matches!(leaf::upsert(db.pool(), &bad).await, Err(DbError::Constraint(_))));
}

#[tokio::test]
async fn history_is_append_only() {
    let db = testing::database().await;
    let new = new_operation(attempt(1, 0));
    operation::insert(db.pool(), &new, State::Proposed, "").await.unwrap();
    let leaf = a_leaf(1, 0, 1);
    leaf::insert_history(db.pool(), new.id, &leaf).await.unwrap();
    leaf::insert_history(db.pool(), new.id, &leaf).await.unwrap();
    let tx = SignedTxRow {
        job: 0,
        leaf_id: leaf.leaf_id,
        leaf_version: 1,
        purpose: "refund".to_owned(),
        txid: vec![1; 32],
        raw: vec![2],
    };
    leaf::insert_signed(db.pool(), new.id, &tx).await.unwrap();
    leaf::insert_signed(db.pool(), new.id, &tx).await.unwrap();
    assert_eq!(leaf::signed(db.pool(), leaf.leaf_id).await.unwrap(), vec![tx]);
    for statement in ["DELETE FROM signed_tx", "UPDATE leaf_history SET version = 3"] {
        let outcome = sqlx::query(statement).execute(db.pool()).await.map_err(DbError::from);
        assert!(matches!(outcome, Err(DbError::Constraint(_))), "{statement}");
    }
}

#[tokio::test]
async fn transfers_are_filtered() {
    let db = testing::database().await;
    let leaf = with_leaf(&db, 1).await;
    let row = |id: u8, sender: u8, receiver: u8| TransferRow {
        transfer_id: Uuid::from_bytes([id; 16]),
        sender: key(sender),
        receiver: key(receiver),
        total: 1000,
        status: transfer::SENDER_KEY_TWEAKED,
        kind: 2,
        expiry: Some(5_000_000),
        invoice: String::new(),
        created_micros: 0,
        updated_micros: 0,
        completed_micros: None,
    };
    for t in [row(1, 1, 2), row(2, 2, 1), row(3, 1, 3)] {
        transfer::insert(db.pool(), &t).await.unwrap();
        transfer::insert(db.pool(), &t).await.unwrap();
    }
    let claim = async |transfer, receiver: Vec<u8>| {
        let mut connection = db.pool().acquire().await.unwrap();
        transfer::complete(&mut connection, transfer, &receiver).await.unwrap();
    };
    let first = Uuid::from_bytes([1; 16]);
    let l = TransferLeafRow {
        transfer_id: first,
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
    // A second receiver of the first transfer, who has a leaf of 500 satoshis.
    let second = TransferLeafRow { receiver: key(4), value: 500, ..l.clone() };
    for _ in 0..2 {
        let leaves = [l.clone(), second.clone()];
        transfer::insert_shares(db.pool(), &row(1, 1, 2), &leaves).await.unwrap();
        transfer::insert_leaf(db.pool(), &l).await.unwrap();
    }
    assert_eq!(transfer::leaves(db.pool(), &[first]).await.unwrap(), vec![l]);
    let ids = |rows: Vec<TransferRow>| rows.iter().map(|t| t.transfer_id.as_bytes()[0]).collect::<Vec<_>>();
    let all = Filter { either: Some(key(1)), limit: 10, ascending: true, ..Filter::default() };
    assert_eq!(ids(transfer::list(db.pool(), &all).await.unwrap()), [1, 2, 3]);
    let newest = Filter { ascending: false, limit: 1, ..all.clone() };
    assert_eq!(ids(transfer::list(db.pool(), &newest).await.unwrap()), [3]);
    let received = Filter { receiver: Some(key(1)), limit: 10, ..Filter::default() };
    assert_eq!(ids(transfer::list(db.pool(), &received).await.unwrap()), [2]);
    assert_eq!(transfer::incoming(db.pool(), &key(2)).await.unwrap(), 1000);
    assert_eq!(transfer::incoming(db.pool(), &key(4)).await.unwrap(), 500);
    claim(first, key(2)).await;
    claim(first, key(2)).await;
    claim(first, key(9)).await;
    assert_eq!(transfer::incoming(db.pool(), &key(2)).await.unwrap(), 0);
    assert_eq!(transfer::incoming(db.pool(), &key(4)).await.unwrap(), 500);
    assert_eq!(transfer::get(db.pool(), first).await.unwrap().unwrap().status, transfer::SENDER_KEY_TWEAKED);
    claim(first, key(4)).await;
    let done = transfer::get(db.pool(), first).await.unwrap().unwrap();
    assert_eq!(done.status, transfer::COMPLETED);
    assert!(done.completed_micros.is_some());
    let pending = Filter { statuses: vec![transfer::SENDER_KEY_TWEAKED], ..all.clone() };
    assert_eq!(ids(transfer::list(db.pool(), &pending).await.unwrap()), [2, 3]);
    let late = Filter { created_after: Some(done.created_micros), ..all.clone() };
    assert_eq!(ids(transfer::list(db.pool(), &late).await.unwrap()), [2, 3]);
    let early = Filter { created_before: Some(done.created_micros), kinds: vec![2], ids: vec![first], ..all };
    assert!(transfer::list(db.pool(), &early).await.unwrap().is_empty());
}

#[tokio::test]
async fn receipts_events_messages_and_projection() {
    let db = testing::database().await;
    let mut receipt = ReceiptRow {
        signer: 1,
        incarnation: vec![1; 16],
        sequence: 5,
        log_index: 0,
        leaf_id: Some(Uuid::from_bytes([1; 16])),
        keyshare_id: Uuid::from_bytes([2; 16]),
        op_id: Some(Uuid::from_bytes([8; 16])),
        state: "pending".to_owned(),
        body: vec![1],
    };
    receipt::upsert(db.pool(), &receipt).await.unwrap();
    receipt.state = "confirmed".to_owned();
    receipt::upsert(db.pool(), &receipt).await.unwrap();
    let mut forged = receipt.clone();
    forged.body = vec![9];
    receipt::upsert(db.pool(), &forged).await.unwrap();
    assert_eq!(receipt::of_leaf(db.pool(), Uuid::from_bytes([1; 16])).await.unwrap(), vec![receipt.clone()]);
    assert_eq!(receipt::of_operation(db.pool(), Uuid::from_bytes([8; 16])).await.unwrap(), vec![receipt]);

    assert_eq!(event::head(db.pool()).await.unwrap(), 0);
    let first = event::insert(db.pool(), &key(1), "TRANSFER", &[1; 16]).await.unwrap();
    let second = event::insert(db.pool(), &key(1), "DEPOSIT", &[2; 16]).await.unwrap();
    assert_eq!(event::head(db.pool()).await.unwrap(), second);
    let after = event::after(db.pool(), &key(1), first, 10).await.unwrap();
    assert_eq!((after.len(), after[0].kind.as_str()), (1, "DEPOSIT"));
    assert_eq!(event::trim(db.pool(), 1).await.unwrap(), 0);

    let new = new_operation(attempt(1, 0));
    operation::insert(db.pool(), &new, State::Proposed, "").await.unwrap();
    let peer = OperatorIndex::new(1);
    delivery::push(db.pool(), peer, new.id, Message::Apply).await.unwrap();
    delivery::push(db.pool(), peer, new.id, Message::Apply).await.unwrap();
    let due = delivery::due(db.pool(), 10).await.unwrap();
    assert_eq!(
        due.iter().map(|d| (d.peer, d.attempt, d.message)).collect::<Vec<_>>(),
        [(peer, new.id, Message::Apply)]
    );
    assert!(delivery::due(db.pool(), 10).await.unwrap().is_empty(), "put off");
    assert_eq!(delivery::waiting(db.pool(), new.id, Message::Apply).await.unwrap(), vec![peer]);
    delivery::delivered(db.pool(), peer, new.id, Message::Apply).await.unwrap();
    assert!(delivery::waiting(db.pool(), new.id, Message::Apply).await.unwrap().is_empty());
    assert!(delivery::received(db.pool(), peer, new.id, Message::Prepare).await.unwrap());
    assert!(!delivery::received(db.pool(), peer, new.id, Message::Prepare).await.unwrap());

    assert_eq!(projection::get(db.pool()).await.unwrap(), None);
    projection::set(db.pool(), &[1; 16], 5).await.unwrap();
    projection::set(db.pool(), &[1; 16], 4).await.unwrap();
    assert_eq!(projection::get(db.pool()).await.unwrap(), Some(([1; 16], 5)));
    projection::set(db.pool(), &[2; 16], 1).await.unwrap();
    assert_eq!(projection::get(db.pool()).await.unwrap(), Some(([2; 16], 1)));
    projection::begin_life(&db, &[3; 16]).await.unwrap();
    assert_eq!(projection::get(db.pool()).await.unwrap(), Some(([3; 16], 0)));
    db.ping().await.unwrap();
    db.close().await;
    assert!(db.ping().await.is_err());
}

/// D10: a repaired signer's tables serve nothing on a leaf before its journal names it at the same version, and give out
/// no key of the lost signer's.
#[tokio::test]
async fn d10_a_new_life_of_the_signer_puts_every_leaf_aside() {
    let db = testing::database().await;
    let (leaf, other) = (with_leaf(&db, 1).await, with_leaf(&db, 2).await);
    let key = package_key::NewKey {
        key_id: Uuid::from_bytes([4; 16]),
        statement: vec![1],
        expires: i64::from(u32::MAX),
    };
    package_key::insert(db.pool(), &[key]).await.unwrap();
    let version = leaf::get(db.pool(), leaf).await.unwrap().unwrap().version;
    projection::set(db.pool(), &[1; 16], 9).await.unwrap();
    // Cut off and begun again: the same.
    for _ in 0..2 {
        projection::begin_life(&db, &[2; 16]).await.unwrap();
        assert_eq!(projection::get(db.pool()).await.unwrap(), Some(([2; 16], 0)));
        assert_eq!(projection::unrepaired(db.pool()).await.unwrap(), 2);
    }
    let keys: i64 =
        sqlx::query_scalar("SELECT count(*) FROM package_key").fetch_one(db.pool()).await.unwrap();
    assert_eq!(keys, 0);
    let mut frozen = chain::frozen(db.pool(), &[leaf, other]).await.unwrap();
    frozen.sort_unstable();
    assert_eq!(frozen, [leaf, other]);
    let row = leaf::get(db.pool(), leaf).await.unwrap().unwrap();
    let shown = async || query_node::owned(db.pool(), &row.owner_identity, &[], 9, 0).await.unwrap().len();
    assert_eq!(shown().await, 0);
    projection::has_leaf(db.pool(), leaf, version + 1).await.unwrap();
    assert_eq!(projection::unrepaired(db.pool()).await.unwrap(), 2, "another version is no agreement");
    projection::has_leaf(db.pool(), leaf, version).await.unwrap();
    assert_eq!(chain::frozen(db.pool(), &[leaf, other]).await.unwrap(), [other]);
    assert_eq!(shown().await, 1);
}

/// What metrics show of leaves: statuses, what an undecided operation holds, what the chain forbids.
#[tokio::test]
async fn leaves_are_summed_by_what_can_be_done_with_them() {
    use spark_rules::leaf::LeafStatus as Status;

    let db = testing::database().await;
    let gauges = async || {
        let rows = leaf::gauges(db.pool()).await.unwrap();
        rows.into_iter().map(|(status, count, value)| (status, (count, value))).collect::<HashMap<_, _>>()
    };
    assert!(gauges().await.is_empty());
    for id in [1, 2, 3, 4] {
        with_leaf(&db, id).await;
    }
    let value = a_leaf(1, 0, 1).value;
    assert_eq!(gauges().await, HashMap::from([(Status::Available, (4, 4 * value))]));

    let leaf_id = |id: u8| a_leaf(id, 0, 1).leaf_id;
    let send = new_operation(attempt(1, 0));
    let mut renewal = new_operation(attempt(2, 0));
    renewal.kind = spark_rules::vote::Kind::Renew.code();
    for (operation, leaf) in [(&send, 1), (&renewal, 2)] {
        let claims =
            Claims { leaves: vec![(leaf_id(leaf), a_leaf(leaf, 0, 1).version)], ..Claims::default() };
        work::propose(&db, operation, &claims).await.unwrap();
    }
    let foreign = SpendRow {
        txid: vec![3; 32],
        vout: 1,
        spender_txid: vec![4; 32],
        kind: "FOREIGN".to_owned(),
        leaf_id: Some(leaf_id(3)),
    };
    chain::insert_mempool_spend(db.pool(), &foreign).await.unwrap();
    let one = (1, value);
    let expected = HashMap::from([
        (Status::Available, one),
        (Status::TransferLocked, one),
        (Status::RenewLocked, one),
        (Status::Unavailable, one),
    ]);
    assert_eq!(gauges().await, expected);
    // An operation that came to nothing holds nothing.
    work::aborted(&db, send.id, &[6], &[]).await.unwrap();
    assert_eq!(gauges().await.get(&Status::Available), Some(&(2, 2 * value)));

    let open = operation::gauges(db.pool()).await.unwrap();
    assert_eq!(
        open.iter().map(|(state, count, _)| (*state, *count)).collect::<Vec<_>>(),
        [(State::Proposed, 1)]
    );
}
