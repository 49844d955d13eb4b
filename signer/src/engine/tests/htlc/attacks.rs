//! Refusals, each tried.

use super::*;
use spark_rules::tx::{Planned, Purpose, RenewalPath, Source, Spend, Template};

type Change<'a> = &'a dyn Fn(&mut peer::Htlc);

fn swap(htlc: &mut peer::Htlc) -> &mut spark::InitiatePreimageSwapRequest {
    htlc.request.as_mut().unwrap()
}

fn transfer(htlc: &mut peer::Htlc) -> &mut spark::StartTransferRequest {
    swap(htlc).transfer_request.as_mut().unwrap()
}

fn package(htlc: &mut peer::Htlc) -> &mut spark::TransferPackage {
    transfer(htlc).transfer_package.as_mut().unwrap()
}

/// X14, D5: one receiver, one hash, amounts of the records, one shape, the complete set.
#[test]
fn x14_a_request_means_one_thing() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, mallory) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (htlc, _) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
    let (plain, _) = super::super::send_request(&mut quorum, &alice, &leaf, bob.id());
    let plain = plain.transfer_package.unwrap();
    let other = deposit(&mut quorum, &mallory, 45_000);
    let (mut theirs, _) = htlc_request(&mut quorum, &mallory, &other, &bob, &PREIMAGE);
    let theirs = package(&mut theirs).clone();
    let hers = mallory.id().serialize().to_vec();
    let amount = |value_sats| Some(spark::InvoiceAmount { value_sats, invoice_amount_proof: None });
    let changes: &[(&str, &str, Change<'_>)] = &[
        ("reason", "UNSUPPORTED", &|h| swap(h).reason = 1),
        ("fee", "UNSUPPORTED", &|h| swap(h).fee_sats = 1),
        ("invoice", "UNSUPPORTED", &|h| {
            let proof = spark::InvoiceAmountProof { bolt11_invoice: "lnbcrt1".into() };
            swap(h).invoice_amount =
                Some(spark::InvoiceAmount { value_sats: 0, invoice_amount_proof: Some(proof) });
        }),
        ("amount", "FIELD_INVALID", &|h| swap(h).invoice_amount = amount(49_999)),
        ("outer receiver", "FIELD_INVALID", &|h| swap(h).receiver_identity_public_key = hers.clone()),
        ("inner receiver", "FIELD_INVALID", &|h| transfer(h).receiver_identity_public_key = hers.clone()),
        ("both receivers", "TEMPLATE", &|h| {
            swap(h).receiver_identity_public_key = hers.clone();
            transfer(h).receiver_identity_public_key = hers.clone();
        }),
        ("hash", "TEMPLATE", &|h| swap(h).payment_hash = vec![7; 32]),
        ("short hash", "FIELD_INVALID", &|h| swap(h).payment_hash.truncate(31)),
        ("no expiry", "FIELD_INVALID", &|h| transfer(h).expiry_time = None),
        ("no height", "FIELD_INVALID", &|h| h.expiry_height = 0),
        ("another transfer beside", "FIELD_INVALID", &|h| {
            swap(h).transfer = Some(spark::StartUserSignedTransferRequest {
                receiver_identity_public_key: hers.clone(),
                ..spark::StartUserSignedTransferRequest::default()
            });
        }),
        ("plain refunds", "TEMPLATE", &|h| {
            package(h).leaves_to_send.clone_from(&plain.leaves_to_send);
            package(h).direct_from_cpfp_leaves_to_send.clone_from(&plain.direct_from_cpfp_leaves_to_send);
        }),
        ("one plain refund", "TEMPLATE", &|h| {
            package(h).leaves_to_send.clone_from(&plain.leaves_to_send);
        }),
        ("variant left out", "TEMPLATE", &|h| package(h).direct_from_cpfp_leaves_to_send.clear()),
        ("leaf of another", "NOT_OWNER", &|h| {
            let package = package(h);
            package.leaves_to_send.extend(theirs.leaves_to_send.clone());
            package.direct_from_cpfp_leaves_to_send.extend(theirs.direct_from_cpfp_leaves_to_send.clone());
        }),
        ("ciphertexts", "PACKAGE_SIGNATURE", &|h| {
            package(h).key_tweak_package.clone_from(&theirs.key_tweak_package);
        }),
    ];
    for (attempt, (name, reason, change)) in changes.iter().enumerate() {
        let mut changed = htlc.clone();
        change(&mut changed);
        let mut request = operation(&mut quorum, Kind::Htlc(changed));
        request.attempt = attempt as u32;
        assert_eq!(quorum.certify(&request).unwrap_err(), *reason, "{name}");
        for member in 1..3 {
            let vote = quorum.prepare(member, &request).vote.unwrap();
            assert_eq!(vote.choice(), peer::Choice::No, "{name} at {member}");
        }
    }
    let mut same = htlc;
    swap(&mut same).invoice_amount = amount(50_000);
    let mut request = operation(&mut quorum, Kind::Htlc(same));
    request.attempt = changes.len() as u32;
    quorum.certify(&request).unwrap();
}

/// D4, D8: the expiry is a height that all voted for; told differently, there is no certificate.
#[test]
fn an_expiry_told_differently_is_not_certified() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (htlc, _) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
    let later = peer::Htlc { expiry_height: EXPIRY + 1, ..htlc.clone() };
    let (htlc, later) = (operation(&mut quorum, Kind::Htlc(htlc)), operation(&mut quorum, Kind::Htlc(later)));
    let votes: Vec<_> = (0..3)
        .map(|member| quorum.prepare(member, if member == 0 { &later } else { &htlc }).vote.unwrap())
        .collect();
    assert!(votes.iter().all(|vote| vote.choice() == peer::Choice::Yes));
    let certificate = peer::Certificate { votes };
    assert!(spark_rules::vote::Certificate::verify(&certificate, &quorum.federation).is_err());
}

/// D5: public wallets send plain refunds along. They get no share, and whoever replays them as a send has no complete
/// set; nor are HTLC refunds a send.
#[test]
fn plain_refunds_beside_an_htlc_are_no_send() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (mut htlc, _) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
    let (plain, _) = super::super::send_request(&mut quorum, &alice, &leaf, bob.id());
    let plain = plain.transfer_package.unwrap().leaves_to_send;
    let send = transfer(&mut htlc).clone();
    swap(&mut htlc).transfer = Some(spark::StartUserSignedTransferRequest {
        transfer_id: send.transfer_id.clone(),
        owner_identity_public_key: send.owner_identity_public_key.clone(),
        leaves_to_send: plain.clone(),
        receiver_identity_public_key: send.receiver_identity_public_key.clone(),
        ..spark::StartUserSignedTransferRequest::default()
    });
    let honest = operation(&mut quorum, Kind::Htlc(htlc));
    let derived = derive(&mut quorum, &honest);
    assert_eq!(derived.jobs.len(), 2);
    assert!(derived.jobs.iter().all(|job| job.purpose.is_htlc()));

    let labelled = operation(&mut quorum, Kind::Send(send.clone()));
    assert_eq!(quorum.certify(&labelled).unwrap_err(), "TEMPLATE");
    let mut replayed = send;
    let package = replayed.transfer_package.as_mut().unwrap();
    package.leaves_to_send = plain;
    for keep in [true, false] {
        let mut replayed = replayed.clone();
        if !keep {
            replayed.transfer_package.as_mut().unwrap().direct_from_cpfp_leaves_to_send.clear();
        }
        let mut request = operation(&mut quorum, Kind::Send(replayed));
        request.attempt = 1 + u32::from(keep);
        for member in 0..3 {
            let vote = quorum.prepare(member, &request).vote.unwrap();
            assert_eq!((vote.choice(), vote.reason.as_str()), (peer::Choice::No, "TEMPLATE"));
        }
    }
    quorum.certify(&honest).unwrap();
}

/// D23: a zero node's direct refund is taken along and left unsigned: no later owner gets one.
#[test]
fn a_zero_nodes_direct_refund_is_never_signed() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let mut record = quorum.leaf(0, &leaf.id);
    record.refund_timelock = spark_rules::tx::Timelock::new(100).unwrap();
    let plan = record.renew(Source::Build, RenewalPath::Zero).unwrap();
    let record = record.with_renewal(&plan).unwrap().checked().unwrap();
    quorum.plant(&record);
    let (mut htlc, _) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
    let direct = Spend::of(record.direct_node_tx.as_ref().unwrap(), 0).unwrap();
    let terms = Htlc::new(payment_hash(&PREIMAGE), bob.id(), alice.id());
    let step = record.next_refund_timelock().unwrap();
    let template = Template::htlc_refund(Purpose::HtlcDirectRefund, direct, &terms, step).unwrap();
    let planned = Planned { tx: template.build(), template, stage: 0 };
    let id = leaf.id.to_string();
    let job = super::super::user_job(&mut quorum, &id, record.verifying_key, &leaf.key, &planned, alice.id());
    package(&mut htlc).direct_leaves_to_send.push(job);
    let request = operation(&mut quorum, Kind::Htlc(htlc));
    quorum.certify(&request).unwrap();
    let derived = derive(&mut quorum, &request);
    let purposes: Vec<_> = derived.jobs.iter().map(|job| job.purpose).collect();
    assert_eq!(purposes, [Purpose::HtlcRefund, Purpose::HtlcDirectFromCpfpRefund]);
}

/// D8: a decider's word needs the preimage or the height, the first decision, and one of the named signers.
#[test]
fn words_need_their_condition() {
    let mut pending = Pending::new();
    let disagrees = |result: Result<peer::SettlementVote, EngineError>| match result {
        Err(EngineError::Vote(VoteError::Disagree(what))) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(disagrees(pending.word(0, &[7; 32], 0)), "payment hash");
    assert_eq!(disagrees(pending.word(0, &[], EXPIRY + RETURN_MARGIN - 1)), "expiry");
    assert_eq!(disagrees(pending.word(0, &[], 0)), "expiry");
    assert!(matches!(pending.word(0, &[7; 33], 0), Err(EngineError::Vote(VoteError::Malformed(_)))));
    assert!(matches!(pending.word(2, &PREIMAGE, 0), Err(EngineError::NotNamed)));
    let id = std::mem::replace(&mut pending.request.operation_id, vec![7; 16]);
    assert!(matches!(pending.word(0, &PREIMAGE, 0), Err(EngineError::Unknown(_))));
    pending.request.operation_id = id;
    pending.word(0, &PREIMAGE, 0).unwrap();

    // Undecided: only voted for.
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (htlc, received) = htlc_request(&mut quorum, &alice, &leaf, &bob, &PREIMAGE);
    let request = operation(&mut quorum, Kind::Htlc(htlc));
    quorum.certify(&request).unwrap();
    let mut early = Pending { quorum, alice, bob, leaf, request, received };
    assert!(matches!(early.word(0, &PREIMAGE, 0), Err(EngineError::Decided("prepared"))));
    assert!(matches!(early.word(0, &[], 10_000), Err(EngineError::Decided("prepared"))));
    let votes: Vec<_> =
        (0..2).map(|m| pending.forged(m, Ruling::Commit { preimage: PREIMAGE }, [1; 32])).collect();
    assert!(matches!(early.settle(0, &votes), Err(EngineError::Decided("prepared"))));
}

/// D1, D8: who said COMMIT never says ABORT, and the other way round, so both proofs never exist.
#[test]
fn a_word_is_given_once() {
    let mut pending = Pending::new();
    let commit = pending.word(0, &PREIMAGE, 0).unwrap();
    let abort = pending.word(1, &[], EXPIRY + RETURN_MARGIN).unwrap();
    assert_eq!(pending.word(0, &PREIMAGE, 9).unwrap(), commit);
    assert_eq!(pending.word(1, &[], EXPIRY + 90).unwrap(), abort);
    let tip = EXPIRY + RETURN_MARGIN;
    assert!(matches!(pending.word(0, &[], tip), Err(EngineError::Decided("committed"))));
    assert!(matches!(pending.word(1, &PREIMAGE, 0), Err(EngineError::Decided("returned"))));
    for votes in [vec![], vec![commit.clone()], vec![abort.clone()], vec![commit.clone(), commit.clone()]] {
        assert!(matches!(pending.settle(2, &votes), Err(EngineError::Vote(_))), "{votes:?}");
    }
    let mixed = pending.settle(2, &[commit, abort]);
    assert!(matches!(mixed, Err(EngineError::Vote(VoteError::Disagree("ruling")))), "{mixed:?}");
    assert_eq!(pending.staged(2), 1);
}

/// Votes for another digest, of who is no decider, with a false preimage or below the expiry are none.
#[test]
fn proofs_are_verified_by_every_signer() {
    let mut pending = Pending::new();
    let digest: [u8; 32] = pending.words(&PREIMAGE, 0)[0].digest.clone().try_into().unwrap();
    let good = Ruling::Commit { preimage: PREIMAGE };
    let honest = pending.forged(0, good.clone(), digest);
    let refused = |pending: &mut Pending, second| match pending.settle(2, &[honest.clone(), second]) {
        Err(EngineError::Vote(error)) => error,
        other => panic!("{other:?}"),
    };
    let other_digest = pending.forged(1, good.clone(), [1; 32]);
    assert_eq!(refused(&mut pending, other_digest), VoteError::Disagree("digest"));
    let not_named = pending.forged(2, good.clone(), digest);
    assert!(matches!(refused(&mut pending, not_named), VoteError::Short { have: 1, need: 2 }));
    let false_preimage = pending.forged(1, Ruling::Commit { preimage: [7; 32] }, digest);
    assert_eq!(refused(&mut pending, false_preimage), VoteError::Disagree("payment hash"));
    let early = pending.forged(1, Ruling::Abort { height: EXPIRY }, digest);
    assert_eq!(refused(&mut pending, early), VoteError::Disagree("expiry"));
    let mut altered = pending.forged(1, good.clone(), digest);
    altered.signature[0] ^= 1;
    assert_eq!(refused(&mut pending, altered), VoteError::Signature(1));
    let mut elsewhere = pending.forged(1, good.clone(), digest);
    elsewhere.attempt = 1;
    assert_eq!(refused(&mut pending, elsewhere), VoteError::Signature(1));
    let second = pending.forged(1, good, digest);
    pending.settle(2, &[honest.clone(), second]).unwrap();
}

/// Both proofs exist only if t operators lie: the first one stands, and a person is called.
#[test]
fn the_other_proof_raises_an_alarm() {
    for settled in [true, false] {
        let mut pending = Pending::new();
        let tip = EXPIRY + RETURN_MARGIN;
        let preimage: &[u8] = if settled { &PREIMAGE } else { &[] };
        let votes = pending.words(preimage, tip);
        pending.settle(2, &votes).unwrap();
        let digest = votes[0].digest.clone().try_into().unwrap();
        let other =
            if settled { Ruling::Abort { height: tip } } else { Ruling::Commit { preimage: PREIMAGE } };
        let forged: Vec<_> = (0..2).map(|m| pending.forged(m, other.clone(), digest)).collect();
        let alarm =
            |pending: &Pending| pending.quorum.members[2].engine.alarms().any(|alarm| alarm == "both_proofs");
        assert!(matches!(pending.settle(2, &forged[..1]), Err(EngineError::Decided(_))));
        assert!(!alarm(&pending), "one liar is no such news");
        let many = [forged.clone(), forged.clone()].concat();
        assert!(matches!(pending.settle(2, &many), Err(EngineError::Decided(_))));
        assert!(alarm(&pending));
        pending.quorum.restart(2);
        let [alarm] = &pending.quorum.members[2].engine.list_alarms().unwrap()[..] else { panic!() };
        let evidence = prost::Message::encode_to_vec(&peer::ProofOfSettlement { votes: forged });
        assert_eq!(alarm.statements, [hex::encode(evidence)], "each word once");
        let version = pending.quorum.leaf(2, &pending.leaf.id).version;
        assert_eq!(version, u64::from(settled));
    }
}

/// The first decision stands: no ABORT is signed after it, no share leaves again, and a repeat changes nothing.
#[test]
fn the_first_decision_is_not_undone() {
    let mut pending = Pending::new();
    let (operation_id, attempt) = (pending.request.operation_id.clone(), pending.request.attempt);
    let sign = wire::SignAbortRequest { operation_id: operation_id.clone(), attempt, aborts: Vec::new() };
    let refused = pending.quorum.call(0, Request::SignAbort(sign));
    assert!(matches!(refused, Err(EngineError::Decided("pending"))), "{refused:?}");
    let abort = wire::AbortRequest { operation_id: operation_id.clone(), attempt, proof: None };
    let refused = pending.quorum.call(0, Request::Abort(abort));
    assert!(matches!(refused, Err(EngineError::Decided("pending"))), "{refused:?}");
    let release = wire::ReleaseRequest { operation_id, attempt, ..wire::ReleaseRequest::default() };
    let refused = pending.quorum.call(0, Request::Release(release));
    assert!(matches!(refused, Err(EngineError::Decided("pending"))), "{refused:?}");
    let size = pending.quorum.members[0].engine.log_size().unwrap();
    let proof = peer::ProofOfCommit::default();
    let request = pending.request.clone();
    pending.quorum.apply(0, &request, &proof).unwrap();
    assert_eq!(pending.quorum.members[0].engine.log_size().unwrap(), size);
    assert_eq!(pending.staged(0), 1);
}
