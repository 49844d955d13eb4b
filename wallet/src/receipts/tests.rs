//! Whole verdicts: operators whose logs are as they should be, and what becomes of one that lies, by `finality()`.

mod logs;
mod own;
mod proofs;

use std::{sync::Arc, time::Duration};

use spark_proto::{
    peer::v1::Receipt,
    signer::v1::{GetReceiptsRequest, GetReceiptsResponse},
    spark::{QueryNodesRequest, QueryNodesResponse, TreeNode},
};
use spark_rules::{
    ids::{OperatorIndex, TransferId},
    operation::claim_id,
    package,
};
use spark_signer::secret::SecretScalar;

use super::{Finality, OperatorReceipts};
use crate::{
    Wallet,
    keys::Keys,
    state::{ClaimRecord, LeafKeyKind, StoredLeaf, Wire},
    testing::{LEAF_ID, Liar, Operators, TRANSFER_ID, keys, wallet_of},
    tweak::LeafTweak,
};

/// What one operator shows.
#[derive(Clone)]
struct Shown {
    receipts: Vec<Receipt>,
    node: TreeNode,
    destroyed_before: u64,
    /// Who cosigned the head, and how many seconds ago.
    witnesses: Vec<(u16, u64)>,
}

/// A leaf that was made, sent to this wallet and claimed by it: three operators, two needed.
struct Story {
    operators: Operators,
    keys: Keys,
    leaf: StoredLeaf,
    claim: ClaimRecord,
    shown: Vec<Shown>,
}

fn public(scalar: &SecretScalar) -> Vec<u8> {
    scalar.public_key().serialize().to_vec()
}

fn scalar(n: u8) -> SecretScalar {
    let mut bytes = [0; 32];
    bytes[31] = n;
    SecretScalar::from_bytes(&bytes).unwrap()
}

/// One operator's receipts from here back to the key's making: `now` is its share, `send` and `claim` the tweaks.
fn history(now: &SecretScalar, send: &SecretScalar, claim: &SecretScalar, operation: &[u8]) -> Vec<Receipt> {
    let sent = now.sub(claim).unwrap();
    let made = sent.sub(send).unwrap();
    let receipt = |phase: &str, version: u64, share: &SecretScalar| Receipt {
        sequence: 10 + version,
        keyshare_id: vec![7; 16],
        leaf_id: LEAF_ID.into(),
        phase: phase.into(),
        retired_version: version.saturating_sub(1),
        new_version: version,
        live_versions: vec![version],
        new_public_share: public(share),
        root_epoch_before: 10 + version,
        root_epoch_after: 10 + version + u64::from(version > 0),
        delete_claim: "device".into(),
        package_kind: "one-time".into(),
        unix_seconds: 1_700_000_000,
        salt: vec![u8::try_from(version).unwrap(); 32],
        ..Receipt::default()
    };
    let (before, after) = (receipt("send", 1, &sent), receipt("claim", 2, now));
    vec![
        receipt("dkg", 0, &made),
        Receipt {
            operation_id: vec![1; 16],
            retired_public_share: public(&made),
            tweak_commitment: public(send),
            ..before
        },
        Receipt {
            operation_id: operation.to_vec(),
            retired_public_share: public(&sent),
            tweak_commitment: public(claim),
            ..after
        },
    ]
}

fn story() -> Story {
    let (operators, keys) = (Operators::new(), keys());
    let mut node = operators.deposit(&keys, &[70_000]);
    let all = operators.federation.indices().zip(&operators.shares);
    let all = all.map(|(index, share)| (index.identifier_hex(), public(share))).collect();
    node.signing_keyshare.as_mut().unwrap().public_shares = all;
    let leaf = StoredLeaf {
        leaf_id: LEAF_ID.into(),
        value: 70_000,
        status: "AVAILABLE".into(),
        lineage: vec![Wire::of(&node)],
        pays: LeafKeyKind::Leaf,
        verified: 1,
        sent: false,
    };
    let tweak = |n| LeafTweak::new(LEAF_ID.into(), &scalar(n), &scalar(1), &operators.federation).unwrap();
    let (sent, claimed) = (tweak(5), tweak(9));
    let claim = ClaimRecord {
        transfer_id: TRANSFER_ID.into(),
        sender: "02".into(),
        amount: 70_000,
        leaves: vec![LEAF_ID.into()],
        request: Some(Wire::of(&Default::default())),
        // The one that was applied was not the last one that was built.
        tweaks: vec![claimed.public_half(), tweak(9).public_half()],
        finals: Vec::new(),
        done: true,
        problem: None,
        created: 5,
    };
    let operation = own_operation(&keys, TRANSFER_ID);
    let shown = (0u16..3).zip(&operators.shares).map(|(index, share)| {
        let of = |tweak: &LeafTweak| tweak.part(index.into());
        Shown {
            receipts: history(share, &of(&sent), &of(&claimed), &operation),
            node: node.clone(),
            destroyed_before: 13,
            witnesses: (0..3).filter(|witness| *witness != index).map(|witness| (witness, 1)).collect(),
        }
    });
    let shown = shown.collect();
    Story { operators, keys, leaf, claim, shown }
}

/// Id of this wallet's claim of a transfer.
fn own_operation(keys: &Keys, transfer: &str) -> Vec<u8> {
    let uuid = package::parse_transfer_id(transfer).unwrap();
    let receiver = keys.identity().public_key();
    claim_id(&TransferId::from_bytes(*uuid.as_bytes()), &receiver).as_bytes().to_vec()
}

/// What is done to one operator's answer after its log was built.
type Bend = Arc<dyn Fn(&mut GetReceiptsResponse) + Send + Sync>;

impl Story {
    /// A wallet with the leaf and its claim, and what each operator answers.
    fn wallet(self, bend: Bend) -> (Wallet, tempfile::TempDir) {
        let Self { operators, keys, leaf, claim, shown } = self;
        let servers = (0u16..).zip(shown).map(|(index, shown)| {
            let mut answer = logs::answer(&operators.federation, OperatorIndex::new(index), &shown);
            if index == 1 {
                bend(&mut answer);
            }
            let page = QueryNodesResponse { nodes: [(LEAF_ID.into(), shown.node)].into(), offset: -1 };
            Liar::default()
                .on("get_receipts", move |request: GetReceiptsRequest| {
                    assert_eq!(request.leaf_id, LEAF_ID);
                    Ok(answer.clone())
                })
                .on("query_nodes", move |_: QueryNodesRequest| Ok(page.clone()))
        });
        let (wallet, dir) = wallet_of(&operators, keys, servers.collect(), Duration::from_secs(20));
        wallet.state().put(&leaf).unwrap();
        wallet.state().put(&claim).unwrap();
        (wallet, dir)
    }

    async fn finality(self) -> Finality {
        let (wallet, _dir) = self.wallet(Arc::new(|_| {}));
        wallet.finality(LEAF_ID).await.unwrap()
    }
}

/// The verdict where operator 1 shows something else; the others are honest, and must stay clean.
async fn of_one(change: impl FnOnce(&mut Shown)) -> OperatorReceipts {
    let mut story = story();
    change(&mut story.shown[1]);
    one(story.finality().await)
}

/// The same for its answer, after the log was built and signed.
async fn of_bent(bend: impl Fn(&mut GetReceiptsResponse) + Send + Sync + 'static) -> OperatorReceipts {
    let (wallet, _dir) = story().wallet(Arc::new(bend));
    one(wallet.finality(LEAF_ID).await.unwrap())
}

fn one(finality: Finality) -> OperatorReceipts {
    let [first, one, third] = &finality.by_operator[..] else { panic!("three operators") };
    assert!(first.clean && third.clean, "{finality:?}");
    let expected = if one.clean && one.version == Some(2) { (3, 1) } else { (2, 0) };
    assert!(finality.is_final, "{finality:?}");
    assert_eq!((finality.clean, finality.tolerated_liars), expected, "{finality:?}");
    one.clone()
}

/// Not clean, for this reason.
fn assert_problem(view: &OperatorReceipts, reason: &str) {
    assert_eq!((view.clean, view.problem.as_deref()), (false, Some(reason)));
}

#[tokio::test]
async fn what_honest_operators_show_is_final() {
    let finality = story().finality().await;
    let expected = "final, 3 of 3 clean, tolerates 1 liars, delete_claim device";
    assert_eq!(finality.statement, expected, "{:#?}", finality.by_operator);
    assert!(finality.is_final && finality.is_settled());
    assert_eq!(finality.attestation, "none");
    for view in &finality.by_operator {
        assert_eq!((view.receipts, view.confirmed, view.witnesses, view.version), (3, 2, 2, Some(2)));
    }
}

/// D15: all n, not just as many as it takes.
#[tokio::test]
async fn d15_the_wallet_asks_until_all_are_clean() {
    let mut story = story();
    story.shown[1].destroyed_before = 12;
    let finality = story.finality().await;
    assert!(finality.is_final && finality.is_safe() && !finality.is_settled());
    assert_problem(&finality.by_operator[1], "a destruction is not confirmed yet");
}

/// `delete_claim` is an operator's word in each receipt; the weakest counts, of one key's making too.
#[tokio::test]
async fn the_weakest_delete_claim_of_each_operator_is_shown() {
    for (receipt, words) in [(0, "none"), (1, "host-media"), (2, "device-minus-backups"), (1, "unknown")] {
        let mut story = story();
        story.shown[1].receipts[receipt].delete_claim = words.into();
        let finality = story.finality().await;
        let claims: Vec<_> = finality.by_operator.iter().map(|o| o.delete_claim.to_string()).collect();
        assert_eq!(claims, ["device", words, "device"]);
        let expected =
            format!("final, 3 of 3 clean, tolerates 1 liars, delete_claim {words} at 1, device at 0 and 2");
        assert_eq!(finality.statement, expected);
        assert_eq!(finality.delete_claim.to_string(), words);
    }
}

/// *received*, *claimed*, *final*: from the wallet's own records, and kept when the leaf has gone on.
#[tokio::test]
async fn history_says_how_final_a_transfer_became() {
    let mut story = story();
    story.claim.done = false;
    let (wallet, _dir) = story.wallet(Arc::new(|_| {}));
    let status = || wallet.history().unwrap()[0].status.clone();
    assert_eq!(status(), "received");
    let claim = wallet.state().get::<ClaimRecord>(TRANSFER_ID).unwrap().unwrap();
    wallet.state().put(&ClaimRecord { done: true, ..claim }).unwrap();
    assert_eq!(status(), "claimed");
    let finality = wallet.finality(LEAF_ID).await.unwrap();
    assert_eq!(status(), finality.statement);
    assert!(status().starts_with("final, 3 of 3 clean"));
    // With two leaves the one that is less final counts.
    let claim = wallet.state().get::<ClaimRecord>(TRANSFER_ID).unwrap().unwrap();
    let two = |finals| ClaimRecord { leaves: vec![LEAF_ID.into(), "other".into()], finals, ..claim.clone() };
    wallet.state().put(&two(claim.finals.clone())).unwrap();
    assert_eq!(status(), "claimed");
    let mut other = claim.finals[0].clone();
    (other.leaf_id, other.clean, other.statement) = ("other".into(), 2, "final, 2 of 3 clean".into());
    wallet.state().put(&two(vec![claim.finals[0].clone(), other])).unwrap();
    assert_eq!(status(), "final, 2 of 3 clean");
}
