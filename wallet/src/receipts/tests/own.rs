//! Logs without a fault that are of another history than the leaf's: what only this wallet's own knowledge tells apart.

use bitcoin::secp256k1::SECP256K1;

use super::*;

const OTHER_TRANSFER: &str = "0193c5d2-7b0a-7c40-9a55-000000000002";
const OTHER_KEY: &str = "the operator shows another key of the leaf than this wallet's";
const OTHER_SHARES: &str = "the public shares that the operator shows are not shares of the leaf's key";
const OTHER_CLAIM: &str = "the last change of hands in the log is not this wallet's claim";
const OTHER_TWEAK: &str = "the tweak in the log is not the one of this wallet's claim";

/// A sharing of another key, with logs that lead to it, as every operator would show them.
fn other_sharing(story: &mut Story) {
    let group = SecretScalar::random(&mut rand::rngs::OsRng);
    let shares = spark_signer::feldman::split(&group, 2, 3, &mut rand::rngs::OsRng).unwrap().shares;
    let all: std::collections::HashMap<_, _> = story
        .operators
        .federation
        .indices()
        .zip(&shares)
        .map(|(index, share)| (index.identifier_hex(), public(share)))
        .collect();
    for (shown, share) in story.shown.iter_mut().zip(&shares) {
        let key = shown.node.signing_keyshare.as_mut().unwrap();
        key.public_key = public(&group);
        key.public_shares = all.clone().into_iter().collect();
        shown.receipts = history(share, &scalar(3), &scalar(4), &[9; 16]);
    }
}

/// D15: the operators withhold the claim from their signers and show the leaf as the previous owner had claimed it.
#[tokio::test]
async fn d15_the_previous_owners_claim_is_not_this_wallets() {
    // However many they are.
    for honest in [0, 1] {
        let mut lying = story();
        let truth = lying.shown[..honest].to_vec();
        other_sharing(&mut lying);
        lying.shown.splice(..honest, truth);
        let finality = lying.finality().await;
        assert!(!finality.is_final && !finality.is_safe(), "{finality:?}");
        finality.by_operator[honest..].iter().for_each(|view| assert_problem(view, OTHER_KEY));
    }
}

/// The leaf went and came back, so the key is the same: what all show is how it stood before.
#[tokio::test]
async fn d15_an_earlier_claim_of_this_wallet_is_not_the_last_one() {
    let mut story = story();
    let earlier = story.claim.clone();
    story.claim =
        ClaimRecord { transfer_id: OTHER_TRANSFER.into(), tweaks: Vec::new(), created: 6, ..earlier.clone() };
    let last = own_operation(&story.keys, OTHER_TRANSFER);
    // One operator shows the truth, as far as this test needs it.
    story.shown[0].receipts[2].operation_id = last;
    let (wallet, _dir) = story.wallet(Arc::new(|_| {}));
    wallet.state().put(&earlier).unwrap();
    let finality = wallet.finality(LEAF_ID).await.unwrap();
    assert!(!finality.is_final, "{finality:?}");
    assert!(finality.by_operator[0].clean);
    finality.by_operator[1..].iter().for_each(|view| assert_problem(view, OTHER_CLAIM));
    // A transfer that was seen and not claimed is no claim of the leaf.
    let seen = ClaimRecord { created: 7, request: None, done: false, ..earlier };
    wallet.state().put(&seen).unwrap();
    assert!(wallet.finality(LEAF_ID).await.unwrap().by_operator[0].clean);
}

#[tokio::test]
async fn d15_no_change_of_hands_is_not_this_wallets_claim() {
    let never = |shown: &mut Shown| {
        let mut only = shown.receipts[0].clone();
        only.new_public_share = shown.receipts[2].new_public_share.clone();
        shown.receipts = vec![only];
    };
    assert_problem(&of_one(never).await, OTHER_CLAIM);
}

#[tokio::test]
async fn d15_the_tweak_is_the_one_that_was_sent() {
    let bent = || {
        let mut story = story();
        let operation = own_operation(&story.keys, TRANSFER_ID);
        let share = &story.operators.shares[1];
        story.shown[1].receipts = history(share, &scalar(3), &scalar(4), &operation);
        story
    };
    assert_problem(&one(bent().finality().await), OTHER_TWEAK);
    // A wallet that did not keep its tweaks knows the operation only.
    let mut old = bent();
    old.claim.tweaks.clear();
    assert!(old.finality().await.is_settled());
}

#[tokio::test]
async fn d15_all_public_shares_are_of_the_leafs_key() {
    // Its own share is another one, and its log leads there.
    let mut story = story();
    let tweak = story.shown[1].receipts[2].tweak_commitment.clone();
    let add = |bytes: &mut Vec<u8>| {
        let point = bitcoin::secp256k1::PublicKey::from_slice(bytes).unwrap();
        *bytes =
            point.add_exp_tweak(SECP256K1, &bitcoin::secp256k1::Scalar::ONE).unwrap().serialize().to_vec();
    };
    let shown = &mut story.shown[1];
    for receipt in &mut shown.receipts {
        add(&mut receipt.new_public_share);
        if !receipt.retired_public_share.is_empty() {
            add(&mut receipt.retired_public_share);
        }
    }
    let index = OperatorIndex::new(1).identifier_hex();
    let key = shown.node.signing_keyshare.as_mut().unwrap();
    key.public_shares.get_mut(&index).map(add).unwrap();
    assert_eq!(story.shown[1].receipts[2].tweak_commitment, tweak);
    assert_problem(&one(story.finality().await), OTHER_SHARES);
    // Another operator's share is another one, or is not told.
    let index = OperatorIndex::new(2).identifier_hex();
    let key = |shown: &mut Shown| shown.node.signing_keyshare.take().unwrap();
    let bent = |shown: &mut Shown| {
        let mut key = key(shown);
        key.public_shares.get_mut(&index).map(add).unwrap();
        shown.node.signing_keyshare = Some(key);
    };
    assert_problem(&of_one(bent).await, OTHER_SHARES);
    let untold = |shown: &mut Shown| {
        let mut key = key(shown);
        key.public_shares.remove(&index);
        shown.node.signing_keyshare = Some(key);
    };
    assert_problem(&of_one(untold).await, OTHER_SHARES);
}

/// A liar with a version that nobody else has, all of it well made, keeps nobody from counting.
#[tokio::test]
async fn d15_an_invented_high_version_stops_nobody() {
    let view = of_one(|shown| {
        for version in 3..100 {
            let last = shown.receipts.last().unwrap();
            let renewed = Receipt {
                sequence: 10 + version,
                phase: "renew".into(),
                retired_version: version - 1,
                new_version: version,
                live_versions: vec![version],
                retired_public_share: last.new_public_share.clone(),
                tweak_commitment: Vec::new(),
                root_epoch_before: 10 + version,
                root_epoch_after: 11 + version,
                ..last.clone()
            };
            shown.receipts.push(renewed);
        }
        shown.destroyed_before = 200;
    })
    .await;
    assert_eq!((view.clean, view.version), (true, Some(99)));
}

/// Without the leaf in its own records a wallet has nothing to hold receipts against.
#[tokio::test]
async fn receipts_of_a_foreign_leaf_are_shown_and_prove_nothing() {
    let mut story = story();
    story.leaf.leaf_id = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2d".into();
    let finality = story.finality().await;
    assert!(!finality.is_final);
    for view in &finality.by_operator {
        assert_problem(view, "this wallet has no such leaf: nothing to hold the receipts against");
        assert_eq!((view.receipts, view.confirmed, view.version), (3, 2, Some(2)));
    }
}

/// A restored wallet knows its leaf, but not its claim; then the highest version counts.
#[tokio::test]
async fn a_restored_wallet_sees_its_leaf_final() {
    let mut story = story();
    story.claim.leaves.clear();
    assert!(story.finality().await.is_settled());
}
