//! Transfers of several leaves, to several receivers: all or none, and each receiver its own.

use std::{cell::RefCell, collections::BTreeMap};

use prost::Message as _;
use rand::rngs::OsRng;
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
    spark,
};
use spark_rules::{
    ids::{LeafId, TransferId},
    leaf::LeafStatus,
    operation::{MAX_LEAVES, MAX_RECEIVERS, OperationError, identify},
    package,
    tx::Purpose,
};

use super::{
    Wallet, claim_request, deposit, operation,
    quorum::{Leaf, Quorum},
    send_request, user_job,
};
use crate::{
    ecies,
    engine::{
        Request,
        ledger::{self, View},
    },
    feldman,
    secret::SecretScalar,
};

/// A package that gives each leaf to its receiver, with the new secret of each.
fn send_many(
    quorum: &mut Quorum,
    wallet: &Wallet,
    to: &[(&Leaf, &Wallet)],
) -> (spark::StartTransferV3Request, Vec<SecretScalar>) {
    let transfer = LeafId::from_bytes(rand::random()).to_string();
    let tweaks = RefCell::new(vec![Vec::new(); usize::from(quorum.size())]);
    let mut package =
        spark::TransferPackage { hash_variant: spark::HashVariant::V2.into(), ..Default::default() };
    let (mut secrets, mut receivers, mut last) = (Vec::new(), BTreeMap::new(), None);
    for (leaf, receiver) in to {
        let (receiver, id) = (receiver.id(), leaf.id.to_string());
        let record = quorum.leaf(0, &leaf.id);
        let next = SecretScalar::random(&mut OsRng);
        let cipher = ecies::seal(&receiver, next.to_bytes().as_slice(), &mut OsRng).unwrap();
        let signature = wallet.sign(package::secret_cipher_digest(&id, &transfer, &cipher));
        let difference = leaf.key.sub(&next).unwrap();
        let split = feldman::split(&difference, quorum.threshold(), quorum.size(), &mut OsRng).unwrap();
        quorum.seal(&split, |operator, share| {
            tweaks.borrow_mut()[operator].push(spark::SendLeafKeyTweak {
                leaf_id: id.clone(),
                secret_share_tweak: Some(share.0),
                pubkey_shares_tweak: share.1,
                secret_cipher: cipher.clone(),
                signature: signature.clone(),
                ..spark::SendLeafKeyTweak::default()
            });
            Vec::new()
        });
        for planned in record.build_send(&receiver).unwrap().transactions() {
            let job = user_job(quorum, &id, record.verifying_key, &leaf.key, planned, wallet.id());
            match planned.purpose() {
                Purpose::Refund => package.leaves_to_send.push(job),
                Purpose::DirectRefund => package.direct_leaves_to_send.push(job),
                _ => package.direct_from_cpfp_leaves_to_send.push(job),
            }
        }
        receivers.insert(id, receiver.serialize().to_vec());
        secrets.push(next);
        last = Some(split);
    }
    package.key_tweak_package = quorum.seal(&last.unwrap(), |operator, _| {
        let leaves_to_send = tweaks.borrow()[operator].clone();
        spark::SendLeafKeyTweaks { leaves_to_send }.encode_to_vec()
    });
    let id = package::parse_transfer_id(&transfer).unwrap();
    package.user_signature = wallet.sign(package::transfer_payload(&id, &package.key_tweak_package));
    let request = spark::StartTransferV3Request {
        transfer_id: transfer,
        sender_packages: vec![spark::SenderTransferPackage {
            owner_identity_public_key: wallet.id().serialize().to_vec(),
            transfer_package: Some(package),
            receiver_identity_public_keys: receivers,
        }],
        expiry_time: Some(prost_types::Timestamp { seconds: 2_000_000, nanos: 0 }),
    };
    (request, secrets)
}

#[test]
fn several_receivers_are_paid_at_once_and_claim_alone() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=3).map(|n| deposit(&mut quorum, &alice, n * 10_000)).collect();
    // The sender is one of the receivers: change.
    let to = [(&leaves[0], &bob), (&leaves[1], &carol), (&leaves[2], &alice)];
    let (send, secrets) = send_many(&mut quorum, &alice, &to);
    let transfer = send.transfer_id.clone();
    quorum.run(Kind::SendMany(send)).unwrap();
    let uuid = package::parse_transfer_id(&transfer).unwrap();
    let record = |quorum: &mut Quorum| {
        let id = TransferId::from_bytes(*uuid.as_bytes());
        quorum.read(0, |txn| ledger::transfer(txn, &id).unwrap().unwrap())
    };
    let found = record(&mut quorum);
    assert_eq!(found.sender, alice.id());
    let shares: Vec<_> = found.receivers.iter().map(|s| (s.receiver, s.leaves.len(), s.claimed)).collect();
    assert_eq!(shares, [(bob.id(), 1, false), (carol.id(), 1, false), (alice.id(), 1, false)]);
    // In any order; what one has claimed stays as it is while the others do.
    for position in [1, 2, 0] {
        let ((leaf, wallet), received) = (to[position], &secrets[position]);
        assert_eq!(quorum.leaf(0, &leaf.id).status, LeafStatus::TransferLocked);
        let (claim, key) = claim_request(&mut quorum, wallet, &leaf.id, &transfer, received);
        quorum.run(Kind::Claim(claim)).unwrap();
        for member in 0..3 {
            let record = quorum.leaf(member, &leaf.id);
            assert_eq!((record.owner_identity, record.owner_key), (wallet.id(), key.public_key()));
            assert_eq!((record.status, record.version), (LeafStatus::Available, 2));
        }
    }
    assert!(record(&mut quorum).receivers.iter().all(|share| share.claimed));
}

/// A receiver of a transfer asks for what another one of it gets.
#[test]
fn a_receiver_cannot_claim_anothers_leaf() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol, mallory) = (Wallet::new(), Wallet::new(), Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=2).map(|n| deposit(&mut quorum, &alice, n * 10_000)).collect();
    let (send, secrets) = send_many(&mut quorum, &alice, &[(&leaves[0], &bob), (&leaves[1], &carol)]);
    let transfer = send.transfer_id.clone();
    quorum.run(Kind::SendMany(send)).unwrap();
    let refusal = |quorum: &mut Quorum, thief: &Wallet, leaf: &Leaf, secret| {
        let (claim, _) = claim_request(quorum, thief, &leaf.id, &transfer, secret);
        let request = operation(quorum, Kind::Claim(claim));
        quorum.certify(&request).unwrap_err()
    };
    // Even one who knows the secret of the leaf.
    assert_eq!(refusal(&mut quorum, &carol, &leaves[0], &secrets[0]), "FIELD_INVALID");
    assert_eq!(refusal(&mut quorum, &mallory, &leaves[0], &secrets[0]), "UNKNOWN");
    let (mut claim, _) = claim_request(&mut quorum, &bob, &leaves[0].id, &transfer, &secrets[0]);
    let (other, _) = claim_request(&mut quorum, &bob, &leaves[1].id, &transfer, &secrets[1]);
    let (package, other) = (claim.claim_package.as_mut().unwrap(), other.claim_package.unwrap());
    package.leaves_to_claim.extend(other.leaves_to_claim);
    package.direct_from_cpfp_leaves_to_claim.extend(other.direct_from_cpfp_leaves_to_claim);
    let request = operation(&mut quorum, Kind::Claim(claim));
    assert_eq!(quorum.certify(&request).unwrap_err(), "FIELD_INVALID");
    // What is one's own still works, in a new attempt.
    let (claim, _) = claim_request(&mut quorum, &carol, &leaves[1].id, &transfer, &secrets[1]);
    let mut request = operation(&mut quorum, Kind::Claim(claim));
    request.attempt = 1;
    quorum.certify(&request).unwrap();
}

type Tamper<'a> = &'a dyn Fn(&mut spark::SenderTransferPackage);

/// What a coordinator may do to a package on its way to the other operators.
#[test]
fn x26_packages_for_several_receivers_cannot_be_altered() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol, mallory) = (Wallet::new(), Wallet::new(), Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=2).map(|n| deposit(&mut quorum, &alice, n * 10_000)).collect();
    let stranger = deposit(&mut quorum, &mallory, 5_000).id.to_string();
    let (first, second) = (leaves[0].id.to_string(), leaves[1].id.to_string());
    let keys = [&bob, &carol, &mallory].map(|wallet| wallet.id().serialize().to_vec());
    let jobs = |p: &mut spark::SenderTransferPackage, change: &dyn Fn(&mut Vec<_>)| {
        let package = p.transfer_package.as_mut().unwrap();
        change(&mut package.leaves_to_send);
        change(&mut package.direct_from_cpfp_leaves_to_send);
    };
    let without = |leaf: &String| {
        let leaf = leaf.clone();
        move |list: &mut Vec<spark::UserSignedTxSigningJob>| list.retain(|job| job.leaf_id != leaf)
    };
    let attacks: &[(&str, &str, Tamper<'_>)] = &[
        ("receivers exchanged", "TEMPLATE", &|p| {
            p.receiver_identity_public_keys.insert(first.clone(), keys[1].clone());
            p.receiver_identity_public_keys.insert(second.clone(), keys[0].clone());
        }),
        ("one receiver is another", "TEMPLATE", &|p| {
            p.receiver_identity_public_keys.insert(second.clone(), keys[2].clone());
        }),
        ("a receiver without its leaf", "PACKAGE_INCOMPLETE", &|p| jobs(p, &without(&second))),
        ("a receiver dropped with its leaf", "PACKAGE_CONTENT", &|p| {
            jobs(p, &without(&second));
            p.receiver_identity_public_keys.remove(&second);
        }),
        ("a leaf without a receiver", "PACKAGE_INCOMPLETE", &|p| {
            p.receiver_identity_public_keys.remove(&second);
        }),
        ("a leaf more in the map", "PACKAGE_INCOMPLETE", &|p| {
            p.receiver_identity_public_keys.insert(stranger.clone(), keys[2].clone());
        }),
        ("a leaf in another spelling", "FIELD_INVALID", &|p| {
            p.receiver_identity_public_keys.insert(second.to_uppercase(), keys[2].clone());
        }),
        ("a leaf twice", "PACKAGE_INCOMPLETE", &|p| jobs(p, &|list| list.push(list[0].clone()))),
        ("a key that is none", "FIELD_INVALID", &|p| {
            p.receiver_identity_public_keys.insert(second.clone(), vec![4; 33]);
        }),
        ("too many receivers", "TOO_MANY", &|p| {
            for n in 0..=MAX_RECEIVERS as u8 {
                let key = SecretScalar::random(&mut OsRng).public_key().serialize().to_vec();
                p.receiver_identity_public_keys.insert(LeafId::from_bytes([n; 16]).to_string(), key);
            }
        }),
        ("too many leaves", "TOO_MANY", &|p| {
            for n in 0..=MAX_LEAVES as u16 {
                let id = LeafId::derive("test", &[&n.to_be_bytes()]).to_string();
                p.receiver_identity_public_keys.insert(id, keys[2].clone());
            }
        }),
    ];
    for (what, reason, tamper) in attacks {
        let (mut send, _) = send_many(&mut quorum, &alice, &[(&leaves[0], &bob), (&leaves[1], &carol)]);
        tamper(&mut send.sender_packages[0]);
        let request = operation(&mut quorum, Kind::SendMany(send));
        assert_eq!(quorum.certify(&request).unwrap_err(), *reason, "{what}");
        // No attempt holds what it asked for: the others of this table find the leaves free.
    }
    // Two senders are no operation at all.
    let (mut send, _) = send_many(&mut quorum, &alice, &[(&leaves[0], &bob), (&leaves[1], &carol)]);
    send.sender_packages.push(send.sender_packages[0].clone());
    let request = peer::Operation { request: Some(Kind::SendMany(send)), ..peer::Operation::default() };
    let refused = quorum.read(0, |txn| View::ask(txn, |view| identify(&request, view)).map(drop));
    assert!(matches!(refused, Err(crate::engine::EngineError::Operation(OperationError::Unsupported(_)))));
}

/// A coordinator that tells each operator of another receiver gets no certificate: the key, with its parity, is in
/// the digest.
#[test]
fn every_receivers_key_is_in_the_digest() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=2).map(|n| deposit(&mut quorum, &alice, n * 10_000)).collect();
    let (send, _) = send_many(&mut quorum, &alice, &[(&leaves[0], &bob), (&leaves[1], &carol)]);
    let mut flipped = send.clone();
    let last = flipped.sender_packages[0].receiver_identity_public_keys.get_mut(&leaves[1].id.to_string());
    last.unwrap()[0] ^= 1;
    let (send, flipped) =
        (operation(&mut quorum, Kind::SendMany(send)), operation(&mut quorum, Kind::SendMany(flipped)));
    let votes = [quorum.prepare(0, &send).vote.unwrap(), quorum.prepare(1, &flipped).vote.unwrap()];
    assert!(votes.iter().all(|vote| vote.choice() == peer::Choice::Yes));
    assert_ne!(votes[0].digest, votes[1].digest);
}

/// D7: one id is one transfer, whichever method it comes by.
#[test]
fn an_id_is_used_once_over_both_methods() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=3).map(|n| deposit(&mut quorum, &alice, n * 10_000)).collect();
    let (many, _) = send_many(&mut quorum, &alice, &[(&leaves[0], &bob), (&leaves[1], &carol)]);
    let (mut one, _) = send_request(&mut quorum, &alice, &leaves[2], bob.id());
    one.transfer_id.clone_from(&many.transfer_id);
    let (one, many) = (operation(&mut quorum, Kind::Send(one)), operation(&mut quorum, Kind::SendMany(many)));
    assert_eq!(one.operation_id, many.operation_id);
    quorum.certify(&many).unwrap();
    let call = Request::Prepare(wire::PrepareRequest { operation: Some(one) });
    assert!(quorum.call(0, call).is_err());
}

#[test]
fn a_transfer_that_has_expired_gets_no_vote() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 10_000);
    let (mut send, _) = send_many(&mut quorum, &alice, &[(&leaf, &bob)]);
    send.expiry_time = Some(prost_types::Timestamp { seconds: super::quorum::NOW as i64, nanos: 0 });
    let request = operation(&mut quorum, Kind::SendMany(send));
    assert_eq!(quorum.certify(&request).unwrap_err(), "EXPIRED");
}

/// More than a hundred leaves go in one package, and come back in one claim by their receiver.
#[test]
fn a_hundred_leaves_move_at_once() {
    let mut quorum = Quorum::new(2, 3);
    quorum.generate(50);
    quorum.generate(50);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (1..=101).map(|n| deposit(&mut quorum, &alice, 1_000 + n)).collect();
    let to: Vec<_> = leaves.iter().map(|leaf| (leaf, &bob)).collect();
    let (send, _) = send_many(&mut quorum, &alice, &to);
    quorum.run(Kind::SendMany(send)).unwrap();
    for leaf in &leaves {
        let record = quorum.leaf(2, &leaf.id);
        assert_eq!((record.version, record.status), (1, LeafStatus::TransferLocked));
    }
}
