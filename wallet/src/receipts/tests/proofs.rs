//! Receipts that are forged, altered, replayed or left out; proofs that are not of them; heads that too few vouch for.

use super::*;

const REASON: &str = "receipt 2 is not in the log that the checkpoint states";

#[tokio::test]
async fn s7_an_altered_receipt_is_not_in_the_log() {
    let bends: [fn(&mut Receipt); 6] = [
        |r| r.unix_seconds += 1,
        |r| r.delete_claim = "device!".into(),
        |r| r.package_kind = "identity".into(),
        |r| r.operation_id[0] ^= 1,
        |r| r.root_id_before.push(1),
        |r| r.salt[0] ^= 1,
    ];
    for bend in bends {
        assert_problem(&of_bent(move |answer| bend(&mut answer.receipts[2])).await, REASON);
    }
}

#[tokio::test]
async fn s7_a_forged_receipt_is_not_in_the_log() {
    // All of it is as it should be, but for being in the log: the claim was never written there.
    let mut honest = story();
    let claim = honest.shown[1].receipts.pop().unwrap();
    let (wallet, _dir) = honest.wallet(Arc::new(move |answer: &mut GetReceiptsResponse| {
        // At a place of its own, with the proof of another one.
        let mut proof = answer.proofs[1].clone();
        proof.index += 1;
        answer.receipts.push(Receipt { log_index: proof.index, ..claim.clone() });
        answer.proofs.push(proof);
    }));
    assert_problem(&one(wallet.finality(LEAF_ID).await.unwrap()), REASON);
}

#[tokio::test]
async fn s7_a_receipt_of_another_leaf_does_not_count() {
    let other = |shown: &mut Shown| shown.receipts[2].leaf_id = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2d".into();
    assert_problem(&of_one(other).await, "receipt 2 is for another leaf");
}

#[tokio::test]
async fn s7_a_proof_of_another_place_size_or_path_does_not_count() {
    let bends: [fn(&mut GetReceiptsResponse); 6] = [
        // Another place than the receipt's, as either of them says.
        |answer| answer.receipts[2].log_index += 1,
        |answer| answer.proofs[2] = answer.proofs[1].clone(),
        |answer| {
            answer.proofs[2].index = 3;
            answer.receipts[2].log_index = 3;
        },
        // One bit.
        |answer| answer.proofs[2].hashes[0][0] ^= 1,
        |answer| answer.proofs[2].hashes[0].truncate(31),
        |answer| answer.proofs[2].hashes.push(vec![0; 32]),
    ];
    for bend in bends {
        assert_problem(&of_bent(bend).await, REASON);
    }
    // Of a tree with another size, in which the way from the first record up looks the same.
    let size = |answer: &mut GetReceiptsResponse| answer.proofs[0].tree_size += 1;
    assert_problem(&of_bent(size).await, "receipt 0 is not in the log that the checkpoint states");
}

#[tokio::test]
async fn s7_receipts_and_proofs_come_in_pairs() {
    let fewer = |answer: &mut GetReceiptsResponse| drop(answer.proofs.pop());
    assert_problem(&of_bent(fewer).await, "3 receipts with 2 proofs");
    let more = |answer: &mut GetReceiptsResponse| answer.proofs.push(answer.proofs[0].clone());
    assert_problem(&of_bent(more).await, "3 receipts with 4 proofs");
}

#[tokio::test]
async fn s7_a_replayed_receipt_is_no_second_destruction() {
    // The same one twice, with its proof.
    let twice = |answer: &mut GetReceiptsResponse| {
        answer.receipts.push(answer.receipts[2].clone());
        answer.proofs.push(answer.proofs[2].clone());
    };
    assert_problem(&of_bent(twice).await, "the pages of receipts are out of order or lead to no end");
    // Written again, as if it happened later.
    let again = |shown: &mut Shown| {
        let later = Receipt {
            sequence: 13,
            root_epoch_before: 13,
            root_epoch_after: 14,
            ..shown.receipts[2].clone()
        };
        shown.receipts.push(later);
        shown.destroyed_before = 14;
    };
    assert_problem(&of_one(again).await, "a version is missing");
}

#[tokio::test]
async fn s7_a_receipt_that_is_left_out_is_missed() {
    let reasons = [
        "the receipts do not begin with the key's creation",
        "a version is missing",
        "the receipts do not lead to the share in use",
    ];
    for (left_out, reason) in reasons.into_iter().enumerate() {
        let hidden = move |answer: &mut GetReceiptsResponse| {
            answer.receipts.remove(left_out);
            answer.proofs.remove(left_out);
        };
        assert_problem(&of_bent(hidden).await, reason);
        // Nor does a log without it.
        assert_problem(&of_one(|shown| drop(shown.receipts.remove(left_out))).await, reason);
    }
}

#[tokio::test]
async fn s7_a_head_counts_with_enough_fresh_witnesses_only() {
    const REASON: &str = "too few other operators have cosigned this head of the log";
    // One too few; the same one twice; its own operator; one that is two hours old, or from the future.
    let ahead = u64::MAX - 7200;
    for (witnesses, counted) in [
        (vec![(0, 1)], 1),
        (vec![(0, 1), (0, 2)], 1),
        (vec![(0, 1), (1, 1)], 1),
        (vec![(0, 1), (2, 7200)], 1),
        (vec![(0, 1), (2, 3700)], 1),
        (vec![(0, 7200), (2, 7200)], 0),
        (vec![], 0),
        (vec![(0, 1), (2, ahead)], 1),
    ] {
        let view = of_one(|shown| shown.witnesses = witnesses).await;
        assert_problem(&view, REASON);
        assert_eq!(view.witnesses, counted);
    }
    // A little less than an hour is fresh; a new cosignature beside an old one counts.
    assert!(of_one(|shown| shown.witnesses = vec![(0, 1), (2, 3500)]).await.clean);
    assert!(of_one(|shown| shown.witnesses = vec![(0, 1), (2, 7200), (2, 60)]).await.clean);
    // Cosignatures of another head are none of this one.
    let moved = |answer: &mut GetReceiptsResponse| {
        let lines = answer.checkpoint.replacen("witness/0 ", "witness/2 ", 1);
        answer.checkpoint = lines;
    };
    assert_problem(&of_bent(moved).await, REASON);
}

#[tokio::test]
async fn s7_a_head_that_its_operator_did_not_sign_proves_nothing() {
    const REASON: &str = "checkpoint is not of the operator's log, or not signed by the operator";
    let bends: [fn(&mut GetReceiptsResponse); 2] = [
        |answer| {
            answer.checkpoint = answer.checkpoint.replacen("destroyed-before 13", "destroyed-before 14", 1);
        },
        |answer| answer.checkpoint.clear(),
    ];
    for bend in bends {
        assert_problem(&of_bent(bend).await, REASON);
    }
}
