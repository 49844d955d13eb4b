//! Renewals in all three shapes. Deposits make zero nodes only, so the timed ones begin with a planted record.

use spark_proto::{
    peer::v1::operation::Request as Kind,
    spark::{self, renew_leaf_request::SigningJobs},
};
use spark_rules::{
    leaf::{LeafRecord, LeafStatus},
    tx::{Plan, Purpose, RenewalPath, Source, Timelock, verify_input},
};

use super::{
    Wallet, claim_request, deposit, operation,
    quorum::{Leaf, Quorum},
    refreshes::receipts,
    send_request, user_job,
};

pub(super) fn renewal(
    quorum: &mut Quorum,
    wallet: &Wallet,
    leaf: &Leaf,
    path: RenewalPath,
) -> spark::RenewLeafRequest {
    let record = quorum.leaf(0, &leaf.id);
    let plan = record.renew(Source::Build, path).unwrap();
    let mut job = |purpose| {
        let planned = plan.get(purpose)?;
        Some(user_job(quorum, &leaf.id.to_string(), record.verifying_key, &leaf.key, planned, wallet.id()))
    };
    let signing_jobs = match path {
        RenewalPath::Node => SigningJobs::RenewNodeTimelockSigningJob(spark::RenewNodeTimelockSigningJob {
            split_node_tx_signing_job: job(Purpose::Split),
            split_node_direct_tx_signing_job: job(Purpose::DirectSplit),
            node_tx_signing_job: job(Purpose::Node),
            refund_tx_signing_job: job(Purpose::Refund),
            direct_node_tx_signing_job: job(Purpose::DirectNode),
            direct_refund_tx_signing_job: job(Purpose::DirectRefund),
            direct_from_cpfp_refund_tx_signing_job: job(Purpose::DirectFromCpfpRefund),
        }),
        RenewalPath::Refund => {
            SigningJobs::RenewRefundTimelockSigningJob(spark::RenewRefundTimelockSigningJob {
                node_tx_signing_job: job(Purpose::Node),
                refund_tx_signing_job: job(Purpose::Refund),
                direct_node_tx_signing_job: job(Purpose::DirectNode),
                direct_refund_tx_signing_job: job(Purpose::DirectRefund),
                direct_from_cpfp_refund_tx_signing_job: job(Purpose::DirectFromCpfpRefund),
            })
        }
        RenewalPath::Zero => {
            SigningJobs::RenewNodeZeroTimelockSigningJob(spark::RenewNodeZeroTimelockSigningJob {
                node_tx_signing_job: job(Purpose::Node),
                refund_tx_signing_job: job(Purpose::Refund),
                direct_node_tx_signing_job: job(Purpose::DirectNode),
                direct_from_cpfp_refund_tx_signing_job: job(Purpose::DirectFromCpfpRefund),
            })
        }
    };
    spark::RenewLeafRequest { leaf_id: leaf.id.to_string(), signing_jobs: Some(signing_jobs) }
}

/// The leaf as many sends would have left it: its refund at `blocks`.
pub(super) fn worn(record: &LeafRecord, blocks: u16) -> LeafRecord {
    let step = Timelock::new(blocks).unwrap();
    let plan = Plan::refunds(Source::Build, &record.basis().unwrap(), &record.owner_key, step).unwrap();
    record.clone().with_refunds(&plan).unwrap().checked().unwrap()
}

/// Renews and checks every signature of the new state at every signer.
fn renew(quorum: &mut Quorum, wallet: &Wallet, leaf: &Leaf, path: RenewalPath) -> LeafRecord {
    let before = quorum.leaf(0, &leaf.id);
    let request = renewal(quorum, wallet, leaf, path);
    quorum.run(Kind::Renew(request)).unwrap();
    for member in 0..3 {
        let record = quorum.leaf(member, &leaf.id);
        assert_eq!((record.version, record.refund_timelock.blocks()), (before.version + 1, 2000));
        assert_eq!((record.group_key, record.status), (before.group_key, LeafStatus::Available));
        verify_input(&record.node_tx, &record.node_prevouts, 0).unwrap();
        let node = [record.node_spend().unwrap().txout];
        verify_input(&record.refunds.cpfp, &node, 0).unwrap();
        verify_input(&record.refunds.direct_from_cpfp, &node, 0).unwrap();
        verify_input(record.direct_node_tx.as_ref().unwrap(), &record.node_prevouts, 0).unwrap();
        if let Some(direct) = record.direct_node_spend().unwrap() {
            verify_input(record.refunds.direct.as_ref().unwrap(), &[direct.txout], 0).unwrap();
        }
        // The new node hangs where it says.
        let parent = record.node_tx.input[0].previous_output;
        match path {
            RenewalPath::Zero => assert_eq!(parent.txid, before.node_tx.compute_txid()),
            RenewalPath::Refund => assert_eq!(parent, before.node_tx.input[0].previous_output),
            RenewalPath::Node => {
                // The split node is nobody's leaf, so ledgers hold no record of it.
                let plan = before.renew(Source::Build, path).unwrap();
                let split = &plan.get(Purpose::Split).unwrap().tx;
                assert_eq!(parent.txid, split.compute_txid());
                assert_eq!(split.input[0].previous_output, before.node_tx.input[0].previous_output);
            }
        }
    }
    quorum.leaf(0, &leaf.id)
}

#[test]
fn a_leaf_is_renewed_in_every_shape_and_sent_on() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 100_000);
    let fresh = quorum.leaf(0, &leaf.id);
    // Not before it is needed.
    assert!(fresh.renew(Source::Build, RenewalPath::Zero).is_err());

    quorum.plant(&worn(&fresh, 300));
    let zero = renew(&mut quorum, &alice, &leaf, RenewalPath::Zero);
    assert!(zero.is_zero_node());

    // A timed node at its end, as a tree of the public protocol would have it, under the present one.
    let parent = zero.node_spend().unwrap();
    let last = Timelock::new(100).unwrap();
    let timed =
        Plan::renew_refund(Source::Build, parent, &zero.verifying_key, &zero.owner_key, last).unwrap();
    quorum.plant(&worn(&zero.with_renewal(&timed).unwrap(), 100));
    let split = renew(&mut quorum, &alice, &leaf, RenewalPath::Node);
    assert_eq!(split.node_timelock.blocks(), 2000);

    quorum.plant(&worn(&split, 200));
    let lower = renew(&mut quorum, &alice, &leaf, RenewalPath::Refund);
    assert_eq!(lower.node_timelock.blocks(), 1900);

    let (send, received) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let id = send.transfer_id.clone();
    quorum.run(Kind::Send(send)).unwrap();
    let (claim, key) = claim_request(&mut quorum, &bob, &leaf.id, &id, &received);
    quorum.run(Kind::Claim(claim)).unwrap();
    let record = quorum.leaf(1, &leaf.id);
    assert_eq!((record.owner_key, record.refund_timelock.blocks()), (key.public_key(), 1900));
    assert!(record.refunds.direct.is_some(), "a timed node has direct refunds");

    // S7: each renewal retires the version that signed the old state, though the share stays.
    for member in 0..3 {
        let log = receipts(&mut quorum, member, &leaf);
        let phases: Vec<_> = log.iter().map(|receipt| receipt.phase.as_str()).collect();
        assert_eq!(phases, ["dkg", "renew", "renew", "renew", "send", "claim"]);
        for (version, pair) in (1..).zip(log.windows(2)) {
            let [before, receipt] = pair else { panic!() };
            let (phase, stays) = (receipt.phase.as_str(), receipt.phase == "renew");
            assert_eq!((receipt.retired_version, receipt.new_version), (version - 1, version), "{phase}");
            assert_eq!(receipt.live_versions, [version], "{phase}");
            assert_eq!(receipt.retired_public_share, before.new_public_share, "{phase}");
            assert_eq!(receipt.new_public_share == receipt.retired_public_share, stays, "{phase}");
            assert_eq!(receipt.tweak_commitment.is_empty(), stays, "{phase}");
            assert!(receipt.root_epoch_before < receipt.root_epoch_after, "{phase}");
            assert!(before.root_epoch_after <= receipt.root_epoch_before, "{phase}");
        }
    }
}

/// A renewal and a send of the same leaf exclude each other; a stranger renews nothing.
#[test]
fn a_renewal_holds_the_leaf() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 100_000);
    let fresh = quorum.leaf(0, &leaf.id);
    quorum.plant(&worn(&fresh, 300));
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    let request = renewal(&mut quorum, &alice, &leaf, RenewalPath::Zero);
    let renewal = operation(&mut quorum, Kind::Renew(request.clone()));
    quorum.certify(&renewal).unwrap();
    let send = operation(&mut quorum, Kind::Send(send));
    assert_eq!(quorum.certify(&send).unwrap_err(), "LEAF_UNAVAILABLE");
    let mut other = request;
    if let Some(SigningJobs::RenewNodeZeroTimelockSigningJob(jobs)) = &mut other.signing_jobs {
        let key = bob.id().serialize().to_vec();
        for job in [
            &mut jobs.node_tx_signing_job,
            &mut jobs.refund_tx_signing_job,
            &mut jobs.direct_node_tx_signing_job,
            &mut jobs.direct_from_cpfp_refund_tx_signing_job,
        ] {
            job.as_mut().unwrap().signing_public_key.clone_from(&key);
        }
    }
    let mut other = operation(&mut quorum, Kind::Renew(other));
    other.attempt = 1;
    let call =
        crate::engine::Request::Prepare(spark_proto::signer::v1::PrepareRequest { operation: Some(other) });
    assert!(quorum.call(0, call).is_err(), "the first attempt is undecided");
}
