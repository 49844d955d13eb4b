//! The main job: deposit, send, claim, twice over, with receipts.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    checkpoint::Checkpoint,
    ids::OperatorIndex,
    leaf::LeafStatus,
    receipt::{is_confirmed, verify_inclusion},
    tx::verify_input,
};

use super::{
    Wallet, claim_request, deposit,
    quorum::{Leaf, Quorum},
    send_request,
};
use crate::{
    engine::{Reply, Request},
    vault::{DeviceId, RootId, TreeId},
};

/// Sends a leaf and claims it.
fn transfer(quorum: &mut Quorum, from: &Wallet, leaf: &Leaf, to: &Wallet) -> Leaf {
    let (send, received) = send_request(quorum, from, leaf, to.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(quorum, to, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    Leaf { id: leaf.id, key }
}

fn round(t: u16, n: u16) {
    let mut quorum = Quorum::new(t, n);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 100_000);
    let before = quorum.leaf(0, &leaf.id);
    assert_eq!((before.version, before.refund_timelock.blocks()), (0, 2000));
    let leaf = transfer(&mut quorum, &alice, &leaf, &bob);
    let leaf = transfer(&mut quorum, &bob, &leaf, &carol);
    for member in 0..usize::from(n) {
        let record = quorum.leaf(member, &leaf.id);
        assert_eq!(record.owner_identity, carol.id());
        assert_eq!(record.owner_key, leaf.key.public_key());
        assert_eq!(record.status, LeafStatus::Available);
        assert_eq!((record.version, record.refund_timelock.blocks()), (4, 1800));
        assert_eq!(record.verifying_key, before.verifying_key);
        let prevouts = [record.node_spend().unwrap().txout];
        verify_input(&record.refunds.cpfp, &prevouts, 0).unwrap();
        verify_input(&record.refunds.direct_from_cpfp, &prevouts, 0).unwrap();
        check_receipts(&mut quorum, member, &leaf);
    }
}

/// Four versions retired, one live; every receipt is in the log under the signed head.
fn check_receipts(quorum: &mut Quorum, member: usize, leaf: &Leaf) {
    let request = wire::GetReceiptsRequest { leaf_id: leaf.id.to_string(), tree_size: 0, from: 0 };
    let Reply::Receipts(reply) = quorum.call(member, Request::GetReceipts(request)).unwrap() else {
        panic!()
    };
    let index = OperatorIndex::new(member as u16);
    let head = Checkpoint::verify(&reply.checkpoint, &quorum.federation, index).unwrap();
    assert!(
        Checkpoint::verify(&reply.checkpoint, &quorum.federation, OperatorIndex::new(1 - index.get().min(1)))
            .is_err()
    );
    assert_eq!(reply.receipts.len(), 5);
    assert_eq!(reply.receipts[0].phase, "dkg");
    for (number, (receipt, proof)) in reply.receipts.iter().zip(&reply.proofs).skip(1).enumerate() {
        verify_inclusion(receipt, proof, head.root).unwrap();
        assert_eq!(receipt.retired_version, number as u64);
        assert_eq!(receipt.live_versions, [number as u64 + 1]);
        assert_eq!(receipt.state, "pending", "nothing confirms destruction yet");
        assert_eq!(receipt.root_epoch_after, receipt.root_epoch_before + 1);
        let mut altered = receipt.clone();
        altered.retired_version += 1;
        assert!(verify_inclusion(&altered, proof, head.root).is_err());
    }
    check_confirmation(quorum, member, leaf, &reply.receipts);
}

/// A receipt is confirmed once somebody else saw that the root before it is gone, and the signed head says so.
fn check_confirmation(quorum: &mut Quorum, member: usize, leaf: &Leaf, receipts: &[peer::Receipt]) {
    let fingerprint = quorum.members[member].engine.vault().fingerprint_of(DeviceId(0)).unwrap();
    let confirm = |quorum: &mut Quorum, roots: Vec<RootId>| {
        quorum.call(member, Request::ConfirmDestruction(DeviceId(0), fingerprint, roots)).map(|reply| {
            match reply {
                Reply::DestroyedBefore(epoch) => epoch,
                other => panic!("{other:?}"),
            }
        })
    };
    let now = quorum.members[member].engine.vault().root();
    let at = |epoch| RootId { epoch, ..now };
    let confirmed = |quorum: &mut Quorum| {
        let request = wire::GetReceiptsRequest { leaf_id: leaf.id.to_string(), tree_size: 0, from: 0 };
        let Reply::Receipts(reply) = quorum.call(member, Request::GetReceipts(request)).unwrap() else {
            panic!()
        };
        let index = OperatorIndex::new(member as u16);
        let head = Checkpoint::verify(&reply.checkpoint, &quorum.federation, index).unwrap();
        for receipt in &reply.receipts {
            assert_eq!(receipt.state == "confirmed", is_confirmed(receipt, head.extension.destroyed_before));
        }
        (head.extension.destroyed_before, reply.receipts.iter().filter(|r| r.state == "confirmed").count())
    };
    assert_eq!(confirmed(quorum), (0, 0));
    // A root that survived its destruction: what it sealed is not gone, nor what came later.
    let survivor = receipts[2].root_epoch_before;
    assert_eq!(confirm(quorum, vec![now, at(survivor)]).unwrap(), survivor);
    assert_eq!(confirmed(quorum), (survivor, 2), "the key's making and the first send");
    // Who sees no root, a stranger's, or only one that is not made yet, does not look at this token.
    let stranger = RootId { tree: TreeId([9; 8]), ..now };
    for wrong in [vec![], vec![stranger], vec![now, stranger], vec![at(now.epoch + 1)]] {
        assert!(confirm(quorum, wrong).is_err());
        assert!(quorum.members[member].engine.alarms().any(|alarm| alarm == "confirmer_differs"));
    }
    assert_eq!(confirmed(quorum).0, survivor);
    assert_eq!(confirm(quorum, vec![now, at(now.epoch + 1)]).unwrap(), now.epoch);
    assert_eq!(confirmed(quorum), (now.epoch, receipts.len()));
    // An older look that comes late takes nothing back.
    assert_eq!(confirm(quorum, vec![at(survivor), now]).unwrap(), now.epoch);
}

#[test]
fn a_leaf_changes_owner_twice_2_of_3() {
    round(2, 3);
}

#[test]
fn a_leaf_changes_owner_twice_3_of_5() {
    round(3, 5);
}

#[test]
fn an_identical_repeat_gets_the_identical_answer() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = super::operation(&mut quorum, Kind::Send(send));
    let first = quorum.certify(&request).unwrap();
    assert_eq!(quorum.certify(&request).unwrap(), first);
    let operation = super::derive(&mut quorum, &request);
    let proof = quorum.proof(&request, &operation, &first.0, &first.1);
    assert_eq!(quorum.proof(&request, &operation, &first.0, &first.1), proof);
    let applied = quorum.apply(0, &request, &proof).unwrap();
    let again = quorum.apply(0, &request, &proof).unwrap();
    assert_eq!(applied.receipts, again.receipts);
    assert_eq!(quorum.leaf(0, &leaf.id).version, 1);
}
