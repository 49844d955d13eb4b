//! Attacks on the signer through its own calls: an operator process that lies.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::tx::{Plan, Source};

use super::{Wallet, claim_request, deposit, derive, operation, quorum::Quorum, send_request, user_job};
use crate::{
    engine::{EngineError, Reply, Request},
    secret::SecretScalar,
    vault::{SecretId, SecretKind},
};

fn sent(quorum: &mut Quorum) -> (Wallet, Wallet, super::Leaf, peer::Operation, peer::ProofOfCommit) {
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(quorum, &alice, 50_000);
    let (send, _) = send_request(quorum, &alice, &leaf, bob.id());
    let request = operation(quorum, Kind::Send(send));
    let (certificate, opened) = quorum.certify(&request).unwrap();
    let derived = derive(quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    (alice, bob, leaf, request, proof)
}

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
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = operation(&mut quorum, Kind::Send(send.clone()));
    quorum.certify(&request).unwrap();
    let mut changed = request.clone();
    if let Some(Kind::Send(send)) = &mut changed.request {
        send.expiry_time = Some(prost_types_timestamp(77));
    }
    let call = Request::Prepare(wire::PrepareRequest { operation: Some(changed) });
    assert!(matches!(quorum.call(0, call), Err(EngineError::Differs)));
    assert!(quorum.members[0].engine.alarms().any(|a| a == "prepare_differs"));

    // The same nonces under another transfer: the nonce is gone from the book.
    let mut other = request;
    let id = spark_rules::ids::LeafId::from_bytes([9; 16]);
    other.operation_id = id.as_bytes().to_vec();
    if let Some(Kind::Send(send)) = &mut other.request {
        send.transfer_id = id.to_string();
    }
    let vote = quorum.prepare(0, &other).vote.unwrap();
    assert_eq!(vote.choice(), peer::Choice::No);
}

fn prost_types_timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 0 }
}

/// D1: shares leave only against a certificate of the whole quorum over exactly what was voted.
#[test]
fn shares_need_the_certificate() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = operation(&mut quorum, Kind::Send(send));
    let (certificate, _) = quorum.certify(&request).unwrap();
    let release = |certificate| {
        Request::Release(wire::ReleaseRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
            certificate,
            stage: 0,
            signatures: Vec::new(),
        })
    };
    assert!(quorum.call(0, release(None)).is_err());
    let mut short = certificate.clone();
    short.votes.pop();
    assert!(matches!(quorum.call(0, release(Some(short))), Err(EngineError::Vote(_))));
    let mut doubled = certificate.clone();
    doubled.votes[2] = doubled.votes[1].clone();
    assert!(quorum.call(0, release(Some(doubled))).is_err());
    let mut forged = certificate.clone();
    forged.votes[2].digest = vec![1; 32];
    assert!(quorum.call(0, release(Some(forged))).is_err());
    assert!(quorum.call(0, release(Some(certificate))).is_ok());
}

/// D1: having released, a signer never signs ABORT; having signed ABORT, it never releases.
#[test]
fn release_and_abort_exclude_each_other() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = operation(&mut quorum, Kind::Send(send));
    let (certificate, _) = quorum.certify(&request).unwrap();
    let release = Request::Release(wire::ReleaseRequest {
        operation_id: request.operation_id.clone(),
        attempt: 0,
        certificate: Some(certificate.clone()),
        stage: 0,
        signatures: Vec::new(),
    });
    let abort = || {
        Request::SignAbort(wire::SignAbortRequest { operation_id: request.operation_id.clone(), attempt: 0 })
    };
    quorum.call(0, release).unwrap();
    assert!(matches!(quorum.call(0, abort()), Err(EngineError::Decided("released"))));
    quorum.call(1, abort()).unwrap();
    let release = Request::Release(wire::ReleaseRequest {
        operation_id: request.operation_id.clone(),
        attempt: 0,
        certificate: Some(certificate),
        stage: 0,
        signatures: Vec::new(),
    });
    assert!(matches!(quorum.call(1, release), Err(EngineError::Decided("refused"))));
}

/// D1: only the ABORT of every named signer unlocks; then the leaf can be sent again.
#[test]
fn only_a_proof_of_abort_unlocks() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = operation(&mut quorum, Kind::Send(send));
    quorum.certify(&request).unwrap();
    let mut votes = Vec::new();
    for member in 0..2 {
        let call = Request::SignAbort(wire::SignAbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
        });
        match quorum.call(member, call).unwrap() {
            Reply::SignAbort(reply) => votes.push(reply.vote.unwrap()),
            _ => panic!(),
        }
    }
    let abort = |votes: Vec<peer::Vote>| {
        Request::Abort(wire::AbortRequest {
            operation_id: request.operation_id.clone(),
            attempt: 0,
            proof: Some(peer::ProofOfAbort { votes }),
        })
    };
    assert!(quorum.call(2, abort(votes[..1].to_vec())).is_err());
    for member in 0..3 {
        quorum.call(member, abort(votes.clone())).unwrap();
        let owner = request.operation_id.clone().try_into().unwrap();
        assert_eq!(quorum.members[member].engine.vault().secrets_of(&owner).count(), 0, "staged secrets die");
    }
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    quorum.run(Kind::Send(send)).unwrap();
}

/// X16, S5: a share off the polynomial, or public tweaks that do not follow from the proofs.
#[test]
fn x16_tweaks_are_checked_not_believed() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (mut send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    // The ciphertext of operator 1 goes to operator 2: it does not open, or its share is another point's.
    if let Some(package) = &mut send.transfer_package {
        let other = package.key_tweak_package.values().next().unwrap().clone();
        let last = package.key_tweak_package.keys().last().unwrap().clone();
        package.key_tweak_package.insert(last, other);
        let id = spark_rules::package::parse_transfer_id(&send.transfer_id).unwrap();
        package.user_signature =
            alice.sign(spark_rules::package::transfer_payload(&id, &package.key_tweak_package));
    }
    let request = operation(&mut quorum, Kind::Send(send));
    assert_eq!(quorum.certify(&request).unwrap_err(), "PACKAGE_CONTENT");
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
    let mut quorum = Quorum::new(2, 3);
    let (_, _, leaf, request, proof) = sent(&mut quorum);
    let keyshare = quorum.leaf(0, &leaf.id).keyshare_id;
    for member in 0..3 {
        let epoch = quorum.members[member].engine.vault().epoch();
        quorum.apply(member, &request, &proof).unwrap();
        let vault = quorum.members[member].engine.vault();
        assert!(!vault.has_secret(&SecretId::new(*keyshare.as_bytes(), SecretKind::Keyshare, 0)));
        assert!(vault.has_secret(&SecretId::new(*keyshare.as_bytes(), SecretKind::Keyshare, 1)));
        let owner: [u8; 16] = request.operation_id.clone().try_into().unwrap();
        assert_eq!(vault.secrets_of(&owner).count(), 0);
        assert_eq!(vault.epoch(), epoch + 1);
    }
}

/// S8: a store from before the transfer is refused by its own token.
#[test]
fn s8_old_store_does_not_open() {
    let mut quorum = Quorum::new(2, 3);
    let (_, _, _, request, proof) = sent(&mut quorum);
    let old = quorum.members[0].store.snapshot();
    quorum.apply(0, &request, &proof).unwrap();
    let member = &quorum.members[0];
    member.store.restore(old);
    let opened =
        crate::vault::Vault::open(std::sync::Arc::new(member.token.clone()), Box::new(member.store.clone()));
    assert!(opened.is_err());
}

/// S8, D11: store and HSM rolled back together open, but the peers remember more, and the signer stays locked.
#[test]
fn s8_joint_rollback_is_refused_by_the_peers_memory() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let old = (quorum.members[0].store.snapshot(), quorum.members[0].token.snapshot());
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    quorum.run(Kind::Send(send)).unwrap();
    quorum.members[0].store.restore(old.0);
    quorum.members[0].token.restore(old.1);
    quorum.restart(0);
    assert!(matches!(quorum.witness(0), Err(EngineError::RolledBack { .. })));
    let call = Request::CommitNonces(wire::CommitNoncesRequest {
        count: 1,
        identity: alice.id().serialize().to_vec(),
        leaf_ids: Vec::new(),
    });
    assert!(matches!(quorum.call(0, call), Err(EngineError::Locked)));
}

/// S3: a restart voids nonces; a prepare that needs them is a NO, and what was prepared before is still there.
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
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = operation(&mut quorum, Kind::Send(send));
    let (certificate, opened) = quorum.certify(&request).unwrap();
    for member in 0..3 {
        quorum.restart(member);
    }
    for member in 0..3 {
        quorum.witness(member).unwrap();
    }
    let derived = derive(&mut quorum, &request);
    let proof = quorum.proof(&request, &derived, &certificate, &opened);
    for member in 0..3 {
        quorum.restart(member);
        quorum.witness(member).unwrap();
        quorum.apply(member, &request, &proof).unwrap();
        assert_eq!(quorum.leaf(member, &leaf.id).version, 1);
    }
}

/// X15, D20: a keyshare is bound once; a peer's signer binds only on the coordinator's signature.
#[test]
fn x15_keyshare_is_bound_once_and_only_by_its_coordinator() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let key = SecretScalar::random(&mut rand::rngs::OsRng).public_key();
    let leaf = spark_rules::ids::LeafId::from_bytes([5; 16]);
    quorum.bind(leaf, key, alice.id());
    let keyshare = quorum.read(0, |txn| super::super::ledger::keyshare_of_leaf(txn, &leaf)).unwrap().unwrap();
    let binding = |coordinator, leaf: &str| wire::Binding {
        keyshare_id: keyshare.as_bytes().to_vec(),
        leaf_id: leaf.to_owned(),
        user_public_key: key.serialize().to_vec(),
        identity_public_key: alice.id().serialize().to_vec(),
        network: 2,
        coordinator,
    };
    let bind = |binding| {
        Request::BindKeyshare(wire::BindKeyshareRequest {
            binding: Some(binding),
            position: None,
            signature: Vec::new(),
        })
    };
    let other = spark_rules::ids::LeafId::from_bytes([6; 16]).to_string();
    assert!(matches!(quorum.call(0, bind(binding(0, &other))), Err(EngineError::Binding(_))));
    assert!(quorum.call(1, bind(binding(0, &leaf.to_string()))).is_err(), "no signature of the coordinator");
    assert!(quorum.call(1, bind(binding(1, &leaf.to_string()))).is_err(), "another operator's pool");
}
