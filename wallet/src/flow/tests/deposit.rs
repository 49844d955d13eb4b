//! Deposits: lost answers, replaced funding, forgotten addresses.

use std::sync::{Arc, Mutex};

use bitcoin::{
    Amount, OutPoint, Transaction, TxIn, TxOut, absolute::LockTime, consensus::encode, transaction::Version,
};
use spark_proto::spark::{
    DepositAddressQueryResult, FinalizeDepositTreeCreationRequest, FinalizeDepositTreeCreationResponse,
    QueryNodesRequest, QueryUnusedDepositAddressesRequest, QueryUnusedDepositAddressesResponse, TreeNode,
};
use spark_rules::tx::{Spend, p2tr_script};
use tonic::Status;

use super::{SECOND_LEAF, listing, page, wallet};
use crate::{
    flow::Funding,
    keys::Keys,
    state::{DepositRecord, DepositState},
    testing::{LEAF_ID, Liar, Operators, keys},
};

fn waiting(operators: &Operators, keys: &Keys) -> DepositRecord {
    let (address, verifying_key, _) = operators.address(keys, LEAF_ID);
    DepositRecord {
        leaf_id: LEAF_ID.into(),
        address,
        verifying_key: verifying_key.to_string(),
        state: DepositState::Waiting,
        outpoint: None,
        amount: None,
        request: None,
        created: 1,
    }
}

/// A transaction that pays these values to the deposit address; `salt` makes it another one.
fn funding(operators: &Operators, keys: &Keys, values: &[u64], salt: u32) -> Transaction {
    let script = p2tr_script(&operators.verifying_key(keys, LEAF_ID));
    let pay = |sats: &u64| TxOut { value: Amount::from_sat(*sats), script_pubkey: script.clone() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::from_consensus(salt),
        input: vec![TxIn { previous_output: OutPoint::null(), ..TxIn::default() }],
        output: values.iter().map(pay).collect(),
    }
}

fn leaf(operators: &Operators, keys: &Keys, tx: &Transaction, status: &str) -> TreeNode {
    let spends = (0u32..).take(tx.output.len()).map(|vout| Spend::of(tx, vout).unwrap()).collect();
    TreeNode { status: status.into(), ..operators.deposit_of(keys, LEAF_ID, spends) }
}

type Shown = Arc<Mutex<Option<TreeNode>>>;

/// Shows whatever leaf there is.
fn operator(shown: &Shown) -> Liar {
    let shown = shown.clone();
    listing(Vec::new()).on("query_nodes", move |request: QueryNodesRequest| {
        let nodes: Vec<TreeNode> = shown.lock().unwrap().iter().cloned().collect();
        Ok(page(&nodes, &request))
    })
}

fn record(wallet: &crate::Wallet) -> DepositRecord {
    wallet.state().get::<DepositRecord>(LEAF_ID).unwrap().unwrap()
}

#[tokio::test]
async fn d20_an_unconfirmed_claim_does_not_use_the_address_up() {
    let (operators, keys) = (Operators::new(), keys());
    let (first, second) =
        (funding(&operators, &keys, &[50_000], 1), funding(&operators, &keys, &[50_000], 2));
    let leaves = [&first, &second].map(|tx| leaf(&operators, &keys, tx, "CREATING"));
    let shown = Shown::default();
    let made = shown.clone();
    let coordinator = operator(&shown).on(
        "finalize_deposit_tree_creation",
        move |r: FinalizeDepositTreeCreationRequest| {
            let tx: Transaction = encode::deserialize(&r.on_chain_utxo.unwrap().raw_tx).unwrap();
            let root = leaves.get(usize::from(tx.lock_time.to_consensus_u32() != 1)).cloned();
            made.lock().unwrap().clone_from(&root);
            Ok(FinalizeDepositTreeCreationResponse { root_node: root })
        },
    );
    let waiting = waiting(&operators, &keys);
    let (wallet, _dir) = wallet(&operators, keys, vec![coordinator, operator(&shown), operator(&shown)]);
    wallet.state().put(&waiting).unwrap();
    let claim = |tx: &Transaction| {
        let (wallet, funding, address) = (&wallet, Funding::Transaction(tx.clone()), waiting.address.clone());
        async move { wallet.claim_deposit(&address, &funding).await }
    };
    assert!(claim(&first).await.unwrap().unwrap().is_unconfirmed());
    assert_eq!(record(&wallet).state, DepositState::Claiming);
    // The payer replaces the funding; what takes its place can be claimed.
    claim(&second).await.unwrap().unwrap();
    let outpoint = OutPoint { txid: second.compute_txid(), vout: 0 };
    assert_eq!(record(&wallet).outpoint, Some(outpoint.to_string()));
    // With its block it is done.
    shown.lock().unwrap().as_mut().unwrap().status = "AVAILABLE".into();
    wallet.sync().await.unwrap();
    assert_eq!(record(&wallet).state, DepositState::Claimed);
    assert!(claim(&first).await.is_err(), "used up");
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found() {
    let (operators, keys) = (Operators::new(), keys());
    let tx = funding(&operators, &keys, &[50_000, 400], 1);
    let made = leaf(&operators, &keys, &most_first(&tx), "AVAILABLE");
    let shown = Shown::default();
    let inner = shown.clone();
    let coordinator = operator(&shown).on(
        "finalize_deposit_tree_creation",
        move |_: FinalizeDepositTreeCreationRequest| {
            *inner.lock().unwrap() = Some(made.clone());
            Err::<FinalizeDepositTreeCreationResponse, _>(Status::already_exists("the leaf exists"))
        },
    );
    let waiting = waiting(&operators, &keys);
    let (wallet, _dir) = wallet(&operators, keys, vec![coordinator, operator(&shown), operator(&shown)]);
    wallet.state().put(&waiting).unwrap();
    let claimed = wallet.claim_deposit(&waiting.address, &Funding::Transaction(tx)).await.unwrap().unwrap();
    assert_eq!((claimed.value, record(&wallet).state), (50_400, DepositState::Claimed));
}

/// Outputs are collected in order of value, which this transaction has already.
fn most_first(tx: &Transaction) -> Transaction {
    assert!(tx.output.is_sorted_by_key(|o| std::cmp::Reverse(o.value)));
    tx.clone()
}

#[tokio::test]
async fn restoring_finds_addresses_that_wait_and_believes_no_others() {
    let (operators, keys) = (Operators::new(), keys());
    let listed = |leaf: &str| {
        let (deposit_address, verifying_key, proof) = operators.address(&keys, leaf);
        DepositAddressQueryResult {
            deposit_address,
            user_signing_public_key: Vec::new(),
            verifying_public_key: verifying_key.serialize().to_vec(),
            leaf_id: Some(leaf.into()),
            proof_of_possession: Some(proof),
        }
    };
    let good = listed(LEAF_ID);
    let mut forged = listed(SECOND_LEAF);
    forged.proof_of_possession.as_mut().unwrap().address_signatures.pop_first();
    let (answer, address) = (vec![forged, good.clone()], good.deposit_address);
    let of = |deposit_addresses: Vec<DepositAddressQueryResult>| {
        Liar::default().on("query_unused_deposit_addresses", move |_: QueryUnusedDepositAddressesRequest| {
            Ok(QueryUnusedDepositAddressesResponse {
                deposit_addresses: deposit_addresses.clone(),
                offset: -1,
            })
        })
    };
    // Only the operator that an address was asked from has all its proofs, and it is not the coordinator.
    let (wallet, _dir) = wallet(&operators, keys, vec![of(Vec::new()), Liar::default(), of(answer)]);
    let restored = wallet.restore_deposits().await.unwrap();
    assert_eq!((restored.addresses, restored.problems.len()), (vec![address], 2));
    assert_eq!(record(&wallet).state, DepositState::Waiting);
    let deposits = wallet.deposits().unwrap();
    assert_eq!(deposits.len(), 1);
    assert!(wallet.restore_deposits().await.unwrap().addresses.is_empty(), "known now");
}
