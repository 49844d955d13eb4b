//! Attacks on the signer through its own calls: an operator process that lies.

use bitcoin::secp256k1::{PublicKey, SECP256K1};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
    spark,
};
use spark_rules::{
    ids::LeafId,
    tx::{Plan, Source},
};

use super::{
    Wallet, claim_request, deposit, operation,
    prepared::Prepared,
    quorum::{Leaf, Quorum},
    send_request, user_job,
};
use crate::{
    engine::{EngineError, Request},
    secret::SecretScalar,
    vault::{SecretId, SecretKind},
};

/// X6 at the signer: two sends of one leaf version, only one is ever prepared.
#[test]
fn x6_second_send_of_a_leaf_gets_a_no() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, mallory) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (first, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let (second, _) = send_request(&mut quorum, &alice, &leaf, mallory.id());
    let first = operation(&mut quorum, Kind::Send(first));
    let second = operation(&mut quorum, Kind::Send(second));
    quorum.certify(&first).unwrap();
    assert_eq!(quorum.certify(&second).unwrap_err(), "LEAF_UNAVAILABLE");
}

/// X3, S3: a used package with another field changed is refused and raises an alarm.
#[test]
fn x3_changed_package_under_used_nonces_is_refused_with_an_alarm() {
    let Prepared { mut quorum, alice, bob, request, .. } = Prepared::new();
    let mut changed = request.clone();
    if let Some(Kind::Send(send)) = &mut changed.request {
        send.expiry_time = Some(prost_types::Timestamp { seconds: 77, nanos: 0 });
    }
    let call = Request::Prepare(wire::PrepareRequest { operation: Some(changed) });
    assert!(matches!(quorum.call(0, call), Err(EngineError::Differs)));
    assert!(quorum.members[0].engine.alarms().any(|a| a == "prepare_differs"));

    // The same nonces under another transfer, of another leaf, signed anew: the nonce is gone from the book.
    let Some(Kind::Send(used)) = request.request else { panic!() };
    let other = deposit(&mut quorum, &alice, 30_000);
    let (mut send, _) = send_request(&mut quorum, &alice, &other, bob.id());
    let old = used.transfer_package.unwrap().leaves_to_send.remove(0);
    let job = &mut send.transfer_package.as_mut().unwrap().leaves_to_send[0];
    *job = user_job_under(&mut quorum, job, &other, alice.id(), old.signing_commitments);
    let replay = operation(&mut quorum, Kind::Send(send));
    let vote = quorum.prepare(0, &replay).vote.unwrap();
    assert_eq!((vote.choice(), vote.reason.as_str()), (peer::Choice::No, "NONCE_UNKNOWN"));
    assert!(quorum.members[0].engine.alarms().any(|a| a == "nonce_replayed"));
}

/// A job like `job`, signed by the owner under given commitments of the operators.
fn user_job_under(
    quorum: &mut Quorum,
    job: &spark::UserSignedTxSigningJob,
    leaf: &Leaf,
    identity: PublicKey,
    commitments: Option<spark::SigningCommitments>,
) -> spark::UserSignedTxSigningJob {
    let record = quorum.leaf(0, &leaf.id);
    let refund = record.build_send(&identity).unwrap();
    let mut planned = refund.transactions()[0].clone();
    planned.tx = bitcoin::consensus::deserialize(&job.raw_tx).unwrap();
    let commitments = commitments.unwrap();
    super::sign_job(quorum, &leaf.id.to_string(), record.verifying_key, &leaf.key, &planned, commitments)
}

/// X7, S4: a claim at another timelock, to another key, or for a leaf of another transfer.
#[test]
fn x7_claim_refunds_follow_the_template() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, received) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(&mut quorum, &bob, &leaf.id, &id, &received);
    let record = quorum.leaf(0, &leaf.id);
    let lower = record.next_refund_timelock().unwrap();
    let plan = Plan::refunds(Source::Build, &record.basis().unwrap(), &key.public_key(), lower).unwrap();
    let mut bad = claim.clone();
    if let Some(package) = &mut bad.claim_package {
        let job = user_job(
            &mut quorum,
            &leaf.id.to_string(),
            record.verifying_key,
            &key,
            &plan.transactions()[0],
            bob.id(),
        );
        package.leaves_to_claim = vec![job];
    }
    let request = operation(&mut quorum, Kind::Claim(bad));
    assert_eq!(quorum.certify(&request).unwrap_err(), "TEMPLATE");
}

/// S6: after apply the old share and the tweak are gone from the vault, and the old version cannot sign.
#[test]
fn s6_old_share_and_tweak_die_with_apply() {
    let mut prepared = Prepared::new();
    let proof = prepared.proof();
    let keyshare = prepared.quorum.leaf(0, &prepared.leaf.id).keyshare_id;
    for member in 0..3 {
        let epoch = prepared.quorum.members[member].engine.vault().epoch();
        prepared.apply(member, &proof).unwrap();
        let vault = prepared.quorum.members[member].engine.vault();
        assert!(!vault.has_secret(&SecretId::new(*keyshare.as_bytes(), SecretKind::Keyshare, 0)).unwrap());
        assert!(vault.has_secret(&SecretId::new(*keyshare.as_bytes(), SecretKind::Keyshare, 1)).unwrap());
        assert_eq!(vault.epoch(), epoch + 1);
        assert_eq!(prepared.staged(member), 0);
    }
}

/// S8: a store from before the transfer is refused by its own token.
#[test]
fn s8_old_store_does_not_open() {
    let mut prepared = Prepared::new();
    let proof = prepared.proof();
    let old = prepared.quorum.members[0].store.snapshot();
    prepared.apply(0, &proof).unwrap();
    let member = &prepared.quorum.members[0];
    member.store.restore(old);
    let opened =
        crate::vault::Vault::open(std::sync::Arc::new(member.token.clone()), Box::new(member.store.clone()));
    assert!(opened.is_err());
}

/// S3: a restart voids nonces; a prepare that needs them is a NO.
#[test]
fn s3_restart_voids_nonces() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    quorum.restart(0);
    quorum.witness(0).unwrap();
    let request = operation(&mut quorum, Kind::Send(send));
    assert_eq!(quorum.certify(&request).unwrap_err(), "NONCE_UNKNOWN");
}

/// A crash between vote and apply: the sealed shares and the staged tweak survive it.
#[test]
fn restart_between_vote_and_apply_finishes() {
    let mut prepared = Prepared::new();
    for member in 0..3 {
        prepared.quorum.restart(member);
    }
    for member in 0..3 {
        prepared.quorum.witness(member).unwrap();
    }
    let proof = prepared.proof();
    for member in 0..3 {
        prepared.quorum.restart(member);
        prepared.quorum.witness(member).unwrap();
        prepared.apply(member, &proof).unwrap();
        assert_eq!(prepared.quorum.leaf(member, &prepared.leaf.id).version, 1);
    }
}

/// X15, D20: a keyshare is bound once; a peer's signer binds only on the coordinator's signature.
#[test]
fn x15_keyshare_is_bound_once_and_only_by_its_coordinator() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let key = SecretScalar::random(&mut rand::rngs::OsRng).public_key();
    let leaf = LeafId::from_bytes([5; 16]);
    quorum.bind(leaf, key, alice.id());
    let keyshare = quorum.read(0, |txn| super::super::ledger::keyshare_of_leaf(txn, &leaf)).unwrap().unwrap();
    let binding = |coordinator, leaf: &str| wire::Binding {
        keyshare_id: keyshare.as_bytes().to_vec(),
        leaf_id: leaf.to_owned(),
        user_public_key: key.serialize().to_vec(),
        identity_public_key: alice.id().serialize().to_vec(),
        network: 2,
        coordinator,
        is_static: false,
    };
    let bind = |binding| {
        Request::BindKeyshare(wire::BindKeyshareRequest {
            binding: Some(binding),
            position: None,
            signature: Vec::new(),
        })
    };
    let other = LeafId::from_bytes([6; 16]).to_string();
    assert!(matches!(quorum.call(0, bind(binding(0, &other))), Err(EngineError::Binding(_))));
    assert!(quorum.call(1, bind(binding(0, &leaf.to_string()))).is_err(), "no signature of the coordinator");
    assert!(quorum.call(1, bind(binding(1, &leaf.to_string()))).is_err(), "another operator's pool");
}

/// S14, D20: a user key can be chosen so that another group key gives a victim's address; it is taken.
#[test]
fn an_address_cannot_be_taken_over_by_another_keyshare() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, mallory) = (Wallet::new(), Wallet::new());
    let key = SecretScalar::random(&mut rand::rngs::OsRng).public_key();
    let address = quorum.bind(LeafId::from_bytes([5; 16]), key, alice.id());
    let next = quorum.next_keyshare();
    let group = spark_rules::point::parse("group_key", &next.group_key).unwrap();
    let chosen = address.combine(&group.negate(SECP256K1)).unwrap();
    let binding = wire::Binding {
        keyshare_id: next.keyshare_id,
        leaf_id: LeafId::from_bytes([6; 16]).to_string(),
        user_public_key: chosen.serialize().to_vec(),
        identity_public_key: mallory.id().serialize().to_vec(),
        network: 2,
        coordinator: 0,
        is_static: false,
    };
    let request = wire::BindKeyshareRequest { binding: Some(binding), position: None, signature: Vec::new() };
    let refused = quorum.call(0, Request::BindKeyshare(request));
    assert!(matches!(refused, Err(EngineError::Binding("the address is taken"))), "{refused:?}");
}
