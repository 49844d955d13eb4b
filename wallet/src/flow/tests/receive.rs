//! What a lying coordinator or sender can make of an incoming transfer.

use std::sync::{Arc, Mutex};

use rand::rngs::OsRng;
use spark_proto::spark::{
    ClaimTransferRequest, ClaimTransferResponse, QueryNodesRequest, QueryTransfersResponse, Transfer,
    TransferFilter, TransferStatus, TreeNode,
};
use spark_rules::ids::LeafId;
use spark_signer::secret::SecretScalar;
use tonic::Status;

use super::{listing, page, showing, wallet};
use crate::{
    WalletError,
    state::{ClaimRecord, LeafKeyKind, SendState, StoredLeaf, Wire},
    testing::{LEAF_ID, Liar, Operators, TRANSFER_ID, keys, send},
};

const OTHER_TRANSFER: &str = "0193c5d2-7b0a-7c40-9a55-000000000002";

fn record(id: &str) -> ClaimRecord {
    ClaimRecord {
        transfer_id: id.into(),
        sender: "02".into(),
        amount: 100_000,
        leaves: vec![LEAF_ID.into()],
        request: Some(Wire::of(&ClaimTransferRequest::default())),
        tweaks: Vec::new(),
        finals: Vec::new(),
        done: false,
        problem: None,
        created: crate::wallet::now(),
    }
}

fn unclaimable(server: Liar) -> Liar {
    server.on("claim_transfer", |_: ClaimTransferRequest| {
        Err::<ClaimTransferResponse, _>(Status::internal("not today"))
    })
}

#[tokio::test]
async fn amount_and_sender_are_those_of_the_verified_leaves() {
    let (mut operators, sender, keys) = (Operators::new(), keys(), keys());
    let transfer = operators.transfer(&sender, keys.identity(), &SecretScalar::random(&mut OsRng));
    let nodes: Vec<TreeNode> = transfer.leaves.iter().filter_map(|l| l.leaf.clone()).collect();
    let server = || unclaimable(showing(listing(nodes.clone()), vec![transfer.clone()]));
    let (wallet, _dir) = wallet(&operators, keys, vec![server(), server(), server()]);
    let lie = Transfer {
        total_value: 900_000_000,
        sender_identity_public_key: wallet.keys().identity().public_key().serialize().to_vec(),
        leaves: Vec::new(),
        ..transfer.clone()
    };
    wallet.claim(&lie).await.unwrap_err();
    wallet.claim(&transfer).await.unwrap_err();
    let stored = wallet.state().get::<ClaimRecord>(TRANSFER_ID).unwrap().unwrap();
    let expected = (100_000, sender.identity().public_key().to_string(), vec![LEAF_ID.to_owned()]);
    assert_eq!((stored.amount, stored.sender, stored.leaves), expected);
    assert_eq!((stored.problem, stored.done), (None, false));
}

#[tokio::test]
async fn a_relisted_transfer_does_not_replace_later_exit_data() {
    let (mut operators, sender, keys) = (Operators::new(), keys(), keys());
    let id = LeafId::parse(LEAF_ID).unwrap();
    // The wallet has had the leaf since, at a lower step, and only the coordinator shows the old transfer.
    let (theirs, own) = (sender.leaf(&id).unwrap(), keys.leaf(&id).unwrap().public_key());
    let later = operators.refunded(&operators.deposit(&sender, &[100_000]), &theirs, &own, 1800);
    let transfer = operators.transfer(&sender, keys.identity(), &SecretScalar::random(&mut OsRng));
    let old: Vec<TreeNode> = transfer.leaves.iter().filter_map(|l| l.leaf.clone()).collect();
    let honest = || showing(listing(vec![later.clone()]), Vec::new());
    let liar = unclaimable(showing(listing(old), vec![transfer.clone()]));
    let (wallet, _dir) = wallet(&operators, keys, vec![liar, honest(), honest()]);
    let stored = StoredLeaf {
        leaf_id: LEAF_ID.into(),
        value: 100_000,
        status: "AVAILABLE".into(),
        lineage: vec![Wire::of(&later)],
        pays: LeafKeyKind::Leaf,
        verified: 1,
        sent: false,
    };
    wallet.state().put(&stored).unwrap();
    wallet.claim(&transfer).await.unwrap_err();
    assert_eq!(wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap(), Some(stored));
}

#[tokio::test]
async fn an_old_state_of_a_leaf_is_listed_as_doubtful_and_not_stored() {
    let (operators, keys) = (Operators::new(), keys());
    let first = operators.deposit(&keys, &[50_000]);
    let later = operators.at(&first, &keys, 1800, false);
    let lying = Arc::new(Mutex::new(false));
    let (lie, truth, switch) = (first, later.clone(), lying.clone());
    let coordinator = Liar::default().on("query_nodes", move |request: QueryNodesRequest| {
        let node = if *switch.lock().unwrap() { &lie } else { &truth };
        Ok(page(std::slice::from_ref(node), &request))
    });
    let honest = || listing(vec![later.clone()]);
    let (wallet, _dir) = wallet(&operators, keys, vec![coordinator, honest(), honest()]);
    assert!(wallet.sync().await.unwrap()[0].is_spendable());
    let stored = wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap().unwrap();
    *lying.lock().unwrap() = true;
    let views = wallet.sync().await.unwrap();
    assert!(views[0].problem.as_ref().is_some_and(|p| p.contains("refund_tx")), "{:?}", views[0].problem);
    assert_eq!(wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap().unwrap().lineage, stored.lineage);
}

/// A coordinator that calls a claim completed while the operators show `node`.
fn completed(node: Option<&TreeNode>) -> Liar {
    let listed = node.cloned().into_iter().collect();
    let transfer =
        |id: &str| Transfer { id: id.into(), status: TransferStatus::Completed.into(), ..Default::default() };
    showing(listing(listed), vec![transfer(TRANSFER_ID), transfer(OTHER_TRANSFER)])
}

#[tokio::test]
async fn completed_is_not_received_while_the_leaf_is_not_here() {
    let (operators, stranger, keys) = (Operators::new(), keys(), keys());
    // The leaf has another user's key: it never came.
    let node = operators.deposit(&stranger, &[100_000]);
    for shown in [Some(&node), None] {
        let keys = crate::testing::keys();
        let servers = (0..3).map(|_| completed(shown)).collect();
        let (wallet, _dir) = wallet(&operators, keys, servers);
        wallet.state().put(&record(TRANSFER_ID)).unwrap();
        let outcomes = wallet.resume_claims().await.unwrap();
        assert!(matches!(outcomes.as_slice(), [Err((id, _))] if id == TRANSFER_ID), "{outcomes:?}");
        assert!(!wallet.state().get::<ClaimRecord>(TRANSFER_ID).unwrap().unwrap().done);
    }
    // This wallet has sent it on since.
    let servers = (0..3).map(|_| completed(None)).collect();
    let (wallet, _dir) = wallet(&operators, keys, servers);
    wallet.state().put(&record(OTHER_TRANSFER)).unwrap();
    let mut onward = send(&[LEAF_ID]);
    onward.state = SendState::Done;
    wallet.state().put(&onward).unwrap();
    let outcomes = wallet.resume_claims().await.unwrap();
    assert!(matches!(outcomes.as_slice(), [Ok(_)]), "{outcomes:?}");
}

#[tokio::test]
async fn one_poisoned_transfer_does_not_stop_the_others() {
    let (operators, keys) = (Operators::new(), keys());
    let node = operators.deposit(&keys, &[100_000]);
    let server = || {
        listing(vec![node.clone()]).on("query_all_transfers", |filter: TransferFilter| {
            if filter.transfer_ids.contains(&TRANSFER_ID.to_owned()) {
                return Err(Status::internal("poisoned"));
            }
            let transfer = Transfer {
                id: OTHER_TRANSFER.into(),
                status: TransferStatus::Completed.into(),
                ..Default::default()
            };
            Ok(QueryTransfersResponse { transfers: vec![transfer], offset: -1 })
        })
    };
    let (wallet, _dir) = wallet(&operators, keys, vec![server(), server(), server()]);
    for id in [TRANSFER_ID, OTHER_TRANSFER] {
        wallet.state().put(&record(id)).unwrap();
    }
    let outcomes = wallet.resume_claims().await.unwrap();
    assert!(
        matches!(outcomes.as_slice(), [Err((bad, WalletError::Client(_))), Ok(good)]
            if bad == TRANSFER_ID && good.transfer_id == OTHER_TRANSFER),
        "{outcomes:?}"
    );
}
