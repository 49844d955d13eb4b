//! X26: what a coordinator may change in a client's words. The package signature of the public protocol covers the
//! transfer id and the ciphertexts only; what it leaves out is bound by other things.

use bitcoin::consensus::encode;
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    spark,
};
use spark_rules::vote::Certificate;

use super::{
    Wallet, deposit, operation,
    quorum::{NOW, Quorum},
    send_request,
};

type Change<'a> = &'a dyn Fn(&mut spark::StartTransferRequest);

fn package(send: &mut spark::StartTransferRequest) -> &mut spark::TransferPackage {
    send.transfer_package.as_mut().unwrap()
}

/// X26: another receiver, other refunds, leaves left out or added, packages exchanged.
#[test]
fn x26_a_coordinator_cannot_change_what_was_sent() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, mallory) = (Wallet::new(), Wallet::new(), Wallet::new());
    let (leaf, second) = (deposit(&mut quorum, &alice, 50_000), deposit(&mut quorum, &alice, 40_000));
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let (other, _) = send_request(&mut quorum, &alice, &second, bob.id());
    let hers = deposit(&mut quorum, &mallory, 45_000);
    let (own, _) = send_request(&mut quorum, &mallory, &hers, mallory.id());
    let mallorys = mallory.id().serialize().to_vec();
    let (other_jobs, own_jobs) = (other.transfer_package.unwrap(), own.transfer_package.unwrap());
    let changes: &[(&str, &str, Change<'_>)] = &[
        // The refunds pay the receiver, and the user's shares cover the refunds.
        ("receiver", "TEMPLATE", &|s| s.receiver_identity_public_key = mallorys.clone()),
        ("refund", "TEMPLATE", &|s| {
            package(s).leaves_to_send[0].raw_tx = own_jobs.leaves_to_send[0].raw_tx.clone();
        }),
        ("timelock", "TEMPLATE", &|s| {
            let job = &mut package(s).leaves_to_send[0];
            let mut tx: bitcoin::Transaction = encode::deserialize(&job.raw_tx).unwrap();
            tx.input[0].sequence = bitcoin::Sequence::from_consensus(1800);
            job.raw_tx = encode::serialize(&tx);
        }),
        ("both timelocks", "USER_SHARE", &|s| {
            let package = package(s);
            let jobs = package.leaves_to_send.iter_mut().chain(&mut package.direct_from_cpfp_leaves_to_send);
            for job in jobs {
                let mut tx: bitcoin::Transaction = encode::deserialize(&job.raw_tx).unwrap();
                let lower = tx.input[0].sequence.to_consensus_u32() - 100;
                tx.input[0].sequence = bitcoin::Sequence::from_consensus(lower);
                job.raw_tx = encode::serialize(&tx);
            }
        }),
        ("variant left out", "TEMPLATE", &|s| package(s).direct_from_cpfp_leaves_to_send.clear()),
        // The ciphertexts name the leaves, and the signature covers them.
        ("leaf added", "PACKAGE_CONTENT", &|s| {
            let package = package(s);
            package.leaves_to_send.extend(other_jobs.leaves_to_send.clone());
            package
                .direct_from_cpfp_leaves_to_send
                .extend(other_jobs.direct_from_cpfp_leaves_to_send.clone());
        }),
        ("leaf exchanged", "PACKAGE_CONTENT", &|s| {
            let package = package(s);
            package.leaves_to_send.clone_from(&other_jobs.leaves_to_send);
            package.direct_from_cpfp_leaves_to_send.clone_from(&other_jobs.direct_from_cpfp_leaves_to_send);
        }),
        ("ciphertexts", "PACKAGE_SIGNATURE", &|s| {
            package(s).key_tweak_package.clone_from(&other_jobs.key_tweak_package);
        }),
        ("ciphertexts and signature", "PACKAGE_SIGNATURE", &|s| {
            let package = package(s);
            package.key_tweak_package.clone_from(&other_jobs.key_tweak_package);
            package.user_signature.clone_from(&other_jobs.user_signature);
        }),
        ("transfer id", "PACKAGE_SIGNATURE", &|s| {
            s.transfer_id = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c".to_owned();
        }),
        ("sender", "PACKAGE_SIGNATURE", &|s| s.owner_identity_public_key = mallorys.clone()),
    ];
    for (attempt, (name, reason, change)) in changes.iter().enumerate() {
        let mut changed = send.clone();
        change(&mut changed);
        let mut request = operation(&mut quorum, Kind::Send(changed));
        // A refusal ends an attempt; the next change is tried in the next one, as a coordinator would.
        if *name != "transfer id" {
            request.attempt = attempt as u32;
        }
        assert_eq!(quorum.certify(&request).unwrap_err(), *reason, "{name}");
        for member in 1..3 {
            // The others hear of it, too, and refuse for themselves.
            let vote = quorum.prepare(member, &request).vote.unwrap();
            assert_eq!(vote.choice(), peer::Choice::No, "{name} at {member}");
        }
    }
    let mut request = operation(&mut quorum, Kind::Send(send));
    request.attempt = changes.len() as u32;
    quorum.certify(&request).unwrap();
}

/// X26, what remains: no signature of the public protocol covers the expiry, nor which of the two keys with the
/// receiver's x-coordinate is meant (refunds pay x-only keys, D23). A coordinator that tells the signers different
/// things gets no certificate, since both are in the voted digest. One that tells all of them the same lie may
/// announce another expiry, which no plain transfer acts on, or lock the leaf for a key that nobody uses. Then the
/// receiver's exit still works, since the refund pays the same x-only key, and our sender's wallet sees a receiver
/// that it did not pay and does not call the transfer done.
#[test]
fn x26_terms_without_a_signature_are_the_same_for_all_signers() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let flipped = |send: &mut spark::StartTransferRequest| send.receiver_identity_public_key[0] ^= 1;
    let expiry = |send: &mut spark::StartTransferRequest| {
        send.expiry_time = Some(prost_types::Timestamp { seconds: NOW as i64 + 77, nanos: 0 });
    };
    let lies: [&dyn Fn(&mut spark::StartTransferRequest); 2] = [&flipped, &expiry];
    for lie in lies {
        let leaf = deposit(&mut quorum, &alice, 50_000);
        let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
        let mut bent = send.clone();
        lie(&mut bent);
        let (honest, bent) =
            (operation(&mut quorum, Kind::Send(send)), operation(&mut quorum, Kind::Send(bent)));
        let votes: Vec<_> = (0..3)
            .map(|member| {
                let told = if member == 0 { &bent } else { &honest };
                quorum.prepare(member, told).vote.unwrap()
            })
            .collect();
        assert!(votes.iter().all(|v| v.choice() == peer::Choice::Yes));
        assert_ne!(votes[0].digest, votes[1].digest);
        assert!(Certificate::verify(&peer::Certificate { votes }, &quorum.federation).is_err());
    }
}
