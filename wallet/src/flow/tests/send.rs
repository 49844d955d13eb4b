//! A lying coordinator makes no payment and undoes none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use spark_proto::spark::{
    QueryTransfersResponse, StartTransferRequest, StartTransferResponse, Transfer, TransferFilter,
    TransferLeaf, TransferStatus, TreeNode,
};
use spark_rules::{
    address::{Network, SparkAddress},
    operation::MAX_LEAVES,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{SECOND_LEAF, listing, numbered_leaf, second_leaf, showing, wallet};
use crate::{
    Wallet, WalletError,
    keys::Keys,
    state::{SendRecord, SendState},
    testing::{LEAF_ID, Liar, Operators, keys, send},
};

type Seen = Arc<Mutex<Vec<StartTransferRequest>>>;

fn to(keys: &Keys) -> SparkAddress {
    SparkAddress {
        network: Network::Regtest,
        identity: keys.identity().public_key(),
        invoice: None,
        signature: None,
    }
}

/// Keeps every package and says that nothing happened.
fn refusing(server: Liar, seen: &Seen) -> Liar {
    refusing_with(server, seen, Status::failed_precondition("leaf is not available to transfer"))
}

fn refusing_with(server: Liar, seen: &Seen, status: Status) -> Liar {
    let seen = seen.clone();
    server.on("start_transfer_v2", move |request: StartTransferRequest| {
        seen.lock().unwrap().push(request);
        Err::<StartTransferResponse, _>(status.clone())
    })
}

fn committed(request: &StartTransferRequest, sats: u64) -> Transfer {
    let package = request.transfer_package.as_ref().unwrap();
    let leaf = |id: &String| TransferLeaf {
        leaf: Some(TreeNode { id: id.clone(), ..Default::default() }),
        ..Default::default()
    };
    Transfer {
        id: request.transfer_id.clone(),
        sender_identity_public_key: request.owner_identity_public_key.clone(),
        receiver_identity_public_key: request.receiver_identity_public_key.clone(),
        total_value: sats,
        status: TransferStatus::SenderKeyTweaked.into(),
        leaves: package.leaves_to_send.iter().map(|job| leaf(&job.leaf_id)).collect(),
        ..Default::default()
    }
}

fn only(wallet: &Wallet) -> SendRecord {
    let mut all = wallet.state().all::<SendRecord>().unwrap();
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

fn leaves(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    let packages = seen.iter().filter_map(|r| r.transfer_package.as_ref());
    let mut ids: Vec<_> = packages.flat_map(|p| &p.leaves_to_send).map(|j| j.leaf_id.clone()).collect();
    ids.dedup();
    ids
}

#[tokio::test]
async fn a_refused_payment_is_repeated_only_with_the_same_leaves() {
    let (operators, bob, carol, keys) = (Operators::new(), keys(), keys(), keys());
    let (first, second) = (operators.deposit(&keys, &[50_000]), second_leaf(&operators, &keys, 50_000));
    let locked = Arc::new(Mutex::new(false));
    let seen = Seen::default();
    let server = || {
        let (locked, first, second) = (locked.clone(), first.clone(), second.clone());
        let server = listing(Vec::new()).on("query_nodes", move |request| {
            let mut first = first.clone();
            if *locked.lock().unwrap() {
                first.status = "TRANSFER_LOCKED".into();
            }
            Ok(super::page(&[first, second.clone()], &request))
        });
        showing(server, Vec::new())
    };
    let servers = vec![refusing(server(), &seen), server(), server()];
    let (wallet, _dir) = wallet(&operators, keys, servers);
    let refused = wallet.send(&to(&bob), 50_000, None).await;
    assert!(matches!(refused, Err(WalletError::Refused(_))), "{refused:?}");
    // The coordinator has a package that works for ten minutes: this is no failure yet.
    assert_eq!(only(&wallet).state, SendState::Doubtful);
    assert!(wallet.busy_leaves().unwrap().is_empty(), "the leaves may be used again");
    // While the first leaf cannot be used, the payment is not made with the other one.
    *locked.lock().unwrap() = true;
    let refused = wallet.send(&to(&bob), 50_000, None).await;
    assert!(matches!(refused, Err(WalletError::Refused(_))), "{refused:?}");
    *locked.lock().unwrap() = false;
    wallet.send(&to(&bob), 50_000, None).await.unwrap_err();
    assert_eq!(leaves(&seen), [LEAF_ID]);
    // Another payment is free to use whatever there is.
    *locked.lock().unwrap() = true;
    wallet.send(&to(&carol), 50_000, None).await.unwrap_err();
    assert_eq!(leaves(&seen), [LEAF_ID, SECOND_LEAF]);
}

#[tokio::test]
async fn failed_needs_time_and_every_operator() {
    for (silent, expected) in [(false, SendState::Failed), (true, SendState::Doubtful)] {
        let (operators, keys) = (Operators::new(), keys());
        let node = operators.deposit(&keys, &[50_000]);
        let mute = listing(vec![node.clone()]);
        let last = if silent { mute } else { showing(mute, Vec::new()) };
        let honest = || showing(listing(vec![node.clone()]), Vec::new());
        let (wallet, _dir) = wallet(&operators, keys, vec![honest(), honest(), last]);
        let mut record = send(&[LEAF_ID]);
        record.state = SendState::Doubtful;
        wallet.state().put(&record).unwrap();
        wallet.resume_sends().await.unwrap();
        assert_eq!(only(&wallet).state, SendState::Doubtful, "too early");
        (record.created, record.built) = (record.created - 1000, record.built - 1000);
        wallet.state().put(&record).unwrap();
        wallet.resume_sends().await.unwrap();
        assert_eq!(only(&wallet).state, expected);
    }
}

#[tokio::test]
async fn a_payment_whose_leaves_went_elsewhere_has_failed() {
    let (operators, keys) = (Operators::new(), keys());
    let gone = || showing(listing(Vec::new()), Vec::new());
    let (wallet, _dir) = wallet(&operators, keys, vec![gone(), gone(), gone()]);
    let mut record = send(&[LEAF_ID]);
    record.state = SendState::Doubtful;
    wallet.state().put(&record).unwrap();
    wallet.resume_sends().await.unwrap();
    assert_eq!(only(&wallet).state, SendState::Failed);
}

/// The coordinator says "sent"; `telling` of the three operators show it.
async fn sent(telling: usize) -> (Result<crate::flow::Sent, WalletError>, SendState) {
    let (operators, bob, keys) = (Operators::new(), keys(), keys());
    let node = operators.deposit(&keys, &[50_000]);
    let seen: Arc<Mutex<Option<Transfer>>> = Arc::default();
    let servers = (0..3)
        .map(|i| {
            let (told, kept) = (seen.clone(), seen.clone());
            let server = listing(vec![node.clone()]).on("query_all_transfers", move |_: TransferFilter| {
                let transfers = told.lock().unwrap().iter().filter(|_| i < telling).cloned().collect();
                Ok(QueryTransfersResponse { transfers, offset: -1 })
            });
            server.on("start_transfer_v2", move |request: StartTransferRequest| {
                let transfer = committed(&request, 50_000);
                *kept.lock().unwrap() = Some(transfer.clone());
                Ok(StartTransferResponse { transfer: Some(transfer), signing_results: Vec::new() })
            })
        })
        .collect();
    let (wallet, _dir) = wallet(&operators, keys, servers);
    let outcome = wallet.send(&to(&bob), 50_000, None).await;
    let state = only(&wallet).state;
    (outcome, state)
}

#[tokio::test]
async fn sent_is_what_every_operator_shows() {
    let (outcome, state) = sent(3).await;
    assert_eq!((outcome.map(|s| s.amount).unwrap(), state), (50_000, SendState::Done));
    for telling in [1, 2] {
        let (outcome, state) = sent(telling).await;
        assert!(matches!(outcome, Err(WalletError::Undecided(_))), "{outcome:?}");
        assert_eq!(state, SendState::Pending, "{telling} of 3");
    }
}

#[tokio::test]
async fn a_send_that_no_operator_takes_holds_its_leaves_no_longer_than_a_refused_one() {
    let rule = ErrorDetails::with_error_info("RULE_VIOLATED", "spark", HashMap::new());
    for status in [
        Status::invalid_argument("at most 256 leaves"),
        Status::out_of_range("message length too large"),
        Status::with_error_details(Code::FailedPrecondition, "a rule", rule),
    ] {
        let (operators, bob, keys) = (Operators::new(), keys(), keys());
        let node = operators.deposit(&keys, &[50_000]);
        let server = || showing(listing(vec![node.clone()]), Vec::new());
        let seen = Seen::default();
        let servers = vec![refusing_with(server(), &seen, status.clone()), server(), server()];
        let (wallet, _dir) = wallet(&operators, keys, servers);
        let refused = wallet.send(&to(&bob), 50_000, None).await;
        assert!(matches!(refused, Err(WalletError::Refused(_))), "{refused:?}");
        assert_eq!(seen.lock().unwrap().len(), 1, "the same would be refused again");
        assert_eq!(only(&wallet).state, SendState::Doubtful);
        assert!(wallet.busy_leaves().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_takes_more_leaves_than_a_transfer_has_is_refused_before_anything_is_stored() {
    let (operators, bob, keys) = (Operators::new(), keys(), keys());
    let nodes: Vec<TreeNode> = (0..=MAX_LEAVES).map(|n| numbered_leaf(&operators, &keys, n, 1000)).collect();
    let server = || listing(nodes.clone());
    let (wallet, _dir) = wallet(&operators, keys, vec![server(), server(), server()]);
    let all = 1000 * nodes.len() as u64;
    let refused = wallet.send(&to(&bob), all, None).await;
    assert!(matches!(&refused, Err(WalletError::Refused(why)) if why.contains("in parts")), "{refused:?}");
    let several = [(to(&bob), 200_000), (to(&bob), all - 200_000)];
    let refused = wallet.send_many(&several, None).await;
    assert!(matches!(&refused, Err(WalletError::Refused(why)) if why.contains("in parts")), "{refused:?}");
    assert!(wallet.state().all::<SendRecord>().unwrap().is_empty());
}
