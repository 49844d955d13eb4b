//! D20: a leaf is bound to its outpoint until something was done with it.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{leaf::LeafStatus, tx::verify_input};

use super::{
    Wallet, bound, claim_request, deposit_request, operation,
    quorum::{Leaf, Quorum},
    send_request,
};
use crate::{
    engine::{Reply, Request},
    vault::{SecretId, SecretKind},
};

/// Another output of the address takes the first one's place: the version moves, the keys stay, and the leaf can
/// be sent and claimed like any other.
#[test]
fn d20_another_output_replaces_the_first() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let (leaf, verifying_key) = bound(&mut quorum, &alice);
    for (version, sats) in [(0, 50_000), (1, 70_000), (2, 60_000)] {
        let request = deposit_request(&mut quorum, &alice, &leaf.key, verifying_key, sats);
        let before = (version > 0).then(|| quorum.leaf(0, &leaf.id));
        quorum.run(Kind::Deposit(request)).unwrap();
        for member in 0..3 {
            let record = quorum.leaf(member, &leaf.id);
            assert_eq!((record.version, record.value), (version, sats));
            assert_eq!(record.status, LeafStatus::Available);
            verify_input(&record.node_tx, &record.node_prevouts, 0).unwrap();
            verify_input(&record.refunds.cpfp, &[record.node_spend().unwrap().txout], 0).unwrap();
            let Some(before) = &before else { continue };
            assert_eq!(record.group_key, before.group_key);
            assert_ne!(record.tree_id, before.tree_id);
            assert_ne!(record.last_proof, before.last_proof);
            let owner = *record.keyshare_id.as_bytes();
            let vault = quorum.members[member].engine.vault();
            assert!(vault.has_secret(&SecretId::new(owner, SecretKind::Keyshare, version)).unwrap());
            assert!(!vault.has_secret(&SecretId::new(owner, SecretKind::Keyshare, version - 1)).unwrap());
        }
    }
    let Reply::Receipts(log) = quorum
        .call(
            0,
            Request::GetReceipts(wire::GetReceiptsRequest {
                leaf_id: leaf.id.to_string(),
                tree_size: 0,
                from: 0,
            }),
        )
        .unwrap()
    else {
        panic!()
    };
    let told: Vec<_> = log.receipts.iter().map(|r| (r.phase.as_str(), r.new_version)).collect();
    assert_eq!(told, [("dkg", 0), ("deposit", 1), ("deposit", 2)]);
    assert!(log.receipts.iter().all(|r| r.tweak_commitment.is_empty()));

    let (send, received) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(&mut quorum, &bob, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    assert_eq!(quorum.leaf(2, &leaf.id).owner_key, key.public_key());
}

/// What was sent, claimed, or sent back is bound to its outpoint for good.
#[test]
fn d20_nothing_replaces_a_leaf_that_has_moved() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let (leaf, verifying_key) = bound(&mut quorum, &alice);
    let first = leaf.key.to_bytes();
    let first = crate::secret::SecretScalar::from_bytes(&first).unwrap();
    let request = deposit_request(&mut quorum, &alice, &first, verifying_key, 50_000);
    quorum.run(Kind::Deposit(request)).unwrap();
    let refused = |quorum: &mut Quorum| {
        let request = deposit_request(quorum, &alice, &first, verifying_key, 90_000);
        let request = operation(quorum, Kind::Deposit(request));
        assert_eq!(quorum.certify(&request).unwrap_err(), "LEAF_UNAVAILABLE");
    };
    let (send, received) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    refused(&mut quorum);
    let (claim, key) = claim_request(&mut quorum, &bob, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    refused(&mut quorum);
    let (send, received) = send_request(&mut quorum, &bob, &Leaf { id: leaf.id, key }, alice.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, _) = claim_request(&mut quorum, &alice, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    refused(&mut quorum);
}

/// A replacement and a send of the same leaf exclude each other, whichever comes first.
#[test]
fn d20_replacement_and_send_exclude_each_other() {
    for send_first in [true, false] {
        let mut quorum = Quorum::new(2, 3);
        let (alice, bob) = (Wallet::new(), Wallet::new());
        let (leaf, verifying_key) = bound(&mut quorum, &alice);
        let request = deposit_request(&mut quorum, &alice, &leaf.key, verifying_key, 50_000);
        quorum.run(Kind::Deposit(request)).unwrap();
        let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
        let send: peer::Operation = operation(&mut quorum, Kind::Send(send));
        let other = deposit_request(&mut quorum, &alice, &leaf.key, verifying_key, 90_000);
        let other = operation(&mut quorum, Kind::Deposit(other));
        let (first, second) = if send_first { (&send, &other) } else { (&other, &send) };
        quorum.certify(first).unwrap();
        assert_eq!(quorum.certify(second).unwrap_err(), "LEAF_UNAVAILABLE");
    }
}

/// Nobody but the address's owner replaces anything.
#[test]
fn d20_strangers_replace_nothing() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, mallory) = (Wallet::new(), Wallet::new());
    let (leaf, verifying_key) = bound(&mut quorum, &alice);
    let request = deposit_request(&mut quorum, &alice, &leaf.key, verifying_key, 50_000);
    quorum.run(Kind::Deposit(request)).unwrap();
    // With the owner's key, but under another identity; and under the owner's identity with another key.
    let request = deposit_request(&mut quorum, &mallory, &leaf.key, verifying_key, 90_000);
    let request = operation(&mut quorum, Kind::Deposit(request));
    assert_eq!(quorum.certify(&request).unwrap_err(), "UNKNOWN");
    let key = crate::secret::SecretScalar::random(&mut rand::rngs::OsRng);
    let request = deposit_request(&mut quorum, &alice, &key, verifying_key, 90_000);
    let request = operation(&mut quorum, Kind::Deposit(request));
    assert_eq!(quorum.certify(&request).unwrap_err(), "SIGNING_KEY");
    assert_eq!(quorum.leaf(0, &leaf.id).value, 50_000);
}
