//! D1-D4: what certificates and proofs permit, and what dominates what.

use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind},
    signer::v1 as wire,
};
use spark_rules::{
    checkpoint::Checkpoint,
    feldman::Proofs,
    ids::{OperationId, OperatorIndex},
    receipt::verify_inclusion,
    vote::{Ballot, Choice, Kind as OperationKind, Position, VoteError},
};

use super::{deposit, derive, operation, prepared::Prepared, send_request};
use crate::{
    engine::{Acknowledge, EngineError, Reply, Request, ledger},
    vault::Token as _,
};

/// A vote that a member's key signs although its engine would not.
fn forged(prepared: &Prepared, member: usize, choice: Choice, digest: [u8; 32]) -> peer::Vote {
    let honest = &prepared.certificate.votes[member];
    let ballot = Ballot {
        operation: OperationId::parse(&honest.operation_id).unwrap(),
        attempt: honest.attempt,
        kind: OperationKind::Send,
        choice,
        digest,
        named: [0, 1].map(OperatorIndex::new).into(),
    };
    let position = Position::parse(honest.position.as_ref()).unwrap();
    let statement = ballot.statement(&prepared.quorum.federation, &position);
    let signature = prepared.quorum.members[member].token.sign_federation(&statement).unwrap();
    ballot.into_wire(position, signature.to_vec(), String::new())
}

/// D1: shares leave only against a certificate of the whole quorum over exactly what was voted.
#[test]
fn shares_need_the_certificate() {
    let mut prepared = Prepared::new();
    let certificate = prepared.certificate.clone();
    assert!(prepared.release(0, 0, None, Vec::new()).is_err());
    let mut short = certificate.clone();
    short.votes.pop();
    let refused = prepared.release(0, 0, Some(short), Vec::new());
    assert!(matches!(refused, Err(EngineError::Vote(VoteError::Short { .. }))), "{refused:?}");
    let mut doubled = certificate.clone();
    doubled.votes[2] = doubled.votes[1].clone();
    assert!(prepared.release(0, 0, Some(doubled), Vec::new()).is_err());
    let mut altered = certificate.clone();
    altered.votes[2].digest = vec![1; 32];
    assert!(prepared.release(0, 0, Some(altered), Vec::new()).is_err());
    // All keys sign, but something else than this signer voted for.
    let votes = (0..3).map(|member| forged(&prepared, member, Choice::Yes, [1; 32])).collect();
    let refused = prepared.release(0, 0, Some(peer::Certificate { votes }), Vec::new());
    assert!(matches!(refused, Err(EngineError::Vote(VoteError::Disagree("digest")))), "{refused:?}");
    assert!(prepared.release(0, 0, Some(certificate), Vec::new()).is_ok());
}

/// D1: having released, a signer never signs ABORT; having signed ABORT, it never releases.
#[test]
fn release_and_abort_exclude_each_other() {
    let mut prepared = Prepared::new();
    let certificate = prepared.certificate.clone();
    prepared.release(0, 0, Some(certificate.clone()), Vec::new()).unwrap();
    assert!(matches!(prepared.sign_abort(0), Err(EngineError::Decided("released"))));
    prepared.sign_abort(1).unwrap();
    let refused = prepared.release(1, 0, Some(certificate), Vec::new());
    assert!(matches!(refused, Err(EngineError::Decided("refused"))));
}

/// D1: only the ABORT of every named signer unlocks; then the leaf can be sent again.
#[test]
fn only_a_proof_of_abort_unlocks() {
    let mut prepared = Prepared::new();
    let votes: Vec<_> = (0..2).map(|member| prepared.sign_abort(member).unwrap()).collect();
    assert!(prepared.abort(2, votes[..1].to_vec()).is_err());
    for member in 0..3 {
        prepared.abort(member, votes.clone()).unwrap();
        assert_eq!(prepared.staged(member), 0, "staged secrets die");
        // S7: a dropped tweak is a destruction, too, and said once.
        let log_size = prepared.quorum.members[member].engine.log_size().unwrap();
        prepared.abort(member, votes.clone()).unwrap();
        assert_eq!(prepared.quorum.members[member].engine.log_size().unwrap(), log_size);
        let request =
            wire::GetReceiptsRequest { leaf_id: prepared.leaf.id.to_string(), tree_size: 0, from: 0 };
        let Reply::Receipts(reply) = prepared.quorum.call(member, Request::GetReceipts(request)).unwrap()
        else {
            panic!()
        };
        let phases: Vec<_> = reply.receipts.iter().map(|r| r.phase.as_str()).collect();
        assert_eq!(phases, ["dkg", "abort"]);
        let (receipt, proof) = (&reply.receipts[1], &reply.proofs[1]);
        let index = OperatorIndex::new(member as u16);
        let head = Checkpoint::verify(&reply.checkpoint, &prepared.quorum.federation, index).unwrap();
        verify_inclusion(receipt, proof, head.root).unwrap();
        assert_eq!((receipt.retired_version, receipt.new_version), (0, 0));
        assert_eq!(receipt.root_epoch_after, receipt.root_epoch_before + 1);
        let opened = &prepared.opened[0].proofs;
        let commitment = Proofs::parse(opened, 2).unwrap().share_commitment(index).unwrap();
        assert_eq!(receipt.tweak_commitment, commitment.serialize());
    }
    let Prepared { mut quorum, alice, bob, leaf, .. } = prepared;
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    quorum.run(Kind::Send(send)).unwrap();
}

/// D1: a proof of commit dominates the ABORT of a signer that was not named.
#[test]
fn an_abort_that_was_not_needed_does_not_stop_the_proof() {
    let mut prepared = Prepared::new();
    let abort = prepared.sign_abort(2).unwrap();
    assert_eq!(abort.choice(), peer::Choice::Abort);
    // What it opened stays obtainable with its last word, for tables that lost it.
    let again = prepared.quorum.prepare(2, &prepared.request.clone());
    assert_eq!((again.vote.unwrap(), again.opened), (abort, prepared.opened.clone()));
    let proof = prepared.proof();
    for member in 0..3 {
        prepared.apply(member, &proof).unwrap();
        assert_eq!(prepared.staged(member), 0);
        assert_eq!(prepared.quorum.leaf(member, &prepared.leaf.id).version, 1);
    }
}

/// D1: a share is out, so an ABORT of the same signer is from another life of it: nothing is unlocked.
#[test]
fn a_released_signer_takes_no_proof_of_abort() {
    let mut prepared = Prepared::new();
    let certificate = prepared.certificate.clone();
    prepared.release(0, 0, Some(certificate), Vec::new()).unwrap();
    let votes = (0..2).map(|member| forged(&prepared, member, Choice::Abort, [0; 32])).collect();
    assert!(matches!(prepared.abort(0, votes), Err(EngineError::Decided("released"))));
    assert!(prepared.quorum.members[0].engine.alarms().any(|alarm| alarm == "abort_after_release"));
    let proof = prepared.proof();
    prepared.apply(0, &proof).unwrap();
}

/// A word without a proof is no evidence; proofs that contradict each other are, and are kept.
#[test]
fn both_proofs_are_evidence_only_if_they_hold() {
    for applied in [true, false] {
        let mut prepared = Prepared::new();
        let honest: Vec<_> = (0..2).map(|member| forged(&prepared, member, Choice::Abort, [0; 32])).collect();
        let proof = prepared.proof();
        let mut wrong = proof.clone();
        wrong.certificate.as_mut().unwrap().votes[2].digest = vec![1; 32];
        let kinds = |prepared: &Prepared| prepared.quorum.members[2].engine.alarms().collect::<Vec<_>>();
        let evidence = if applied {
            prepared.apply(2, &proof).unwrap();
            for votes in [Vec::new(), honest[..1].to_vec()] {
                assert!(matches!(prepared.abort(2, votes), Err(EngineError::Decided("applied"))));
            }
            assert!(kinds(&prepared).is_empty());
            prepared.abort(2, honest.clone()).unwrap_err();
            prost::Message::encode_to_vec(&peer::ProofOfAbort { votes: honest })
        } else {
            prepared.abort(2, honest).unwrap();
            // What anybody can make up beside a certificate that holds.
            let mut junk = proof.clone();
            junk.signatures[0].signature = vec![7; 64];
            let mut repeated = proof.clone();
            let last = repeated.signatures.len() - 1;
            repeated.signatures[last] = repeated.signatures[0].clone();
            let mut commits = proof.clone();
            commits.commits = proof.certificate.clone().unwrap().votes;
            let bare = peer::ProofOfCommit { certificate: proof.certificate.clone(), ..Default::default() };
            for wrong in [wrong, junk, repeated, commits, bare] {
                prepared.apply(2, &wrong).unwrap_err();
                assert!(kinds(&prepared).is_empty(), "{wrong:?}");
            }
            let mut long = proof.clone();
            long.certificate.as_mut().unwrap().votes[0].reason = "long".repeat(1 << 20);
            prepared.apply(2, &long).unwrap_err();
            prost::Message::encode_to_vec(&proof)
        };
        prepared.quorum.restart(2);
        assert_eq!(kinds(&prepared), ["both_proofs"]);
        let [alarm] = &prepared.quorum.members[2].engine.list_alarms().unwrap()[..] else { panic!() };
        assert_eq!(alarm.statements, [hex::encode(evidence)]);
        let said = Acknowledge {
            kind: alarm.kind.to_owned(),
            id: alarm.id.clone(),
            operator: None,
            by: "Ada".to_owned(),
            uid: 1,
            reason: "told all".to_owned(),
        };
        prepared.quorum.witness(2).unwrap();
        prepared.quorum.members[2].engine.acknowledge(said, 9).unwrap();
        let kept =
            prepared.quorum.members[2].engine.vault().scan_records(b"alarm-evidence/", None, 9).unwrap();
        assert!(kept.is_empty(), "what is dealt with is not evidence of the next one");
    }
}

/// D2: a signer's last word can be had again, whatever happened since, and whoever asks first.
#[test]
fn the_last_word_stays_obtainable() {
    let mut prepared = Prepared::new();
    let votes: Vec<_> = (0..2).map(|member| prepared.sign_abort(member).unwrap()).collect();
    prepared.abort(0, votes.clone()).unwrap();
    assert_eq!(prepared.sign_abort(0).unwrap(), votes[0]);
    assert_eq!(prepared.quorum.prepare(0, &prepared.request.clone()).vote.unwrap(), votes[0]);
    // The one that was not named never said ABORT; another coordinator of the attempt may need its word.
    prepared.abort(2, votes).unwrap();
    let word = prepared.sign_abort(2).unwrap();
    assert_eq!(word.choice(), peer::Choice::Abort);
    assert_eq!(prepared.sign_abort(2).unwrap(), word);

    // A NO to something unseen holds nothing, and no proof takes the word away.
    let mut unseen = prepared;
    unseen.request.operation_id = vec![7; 16];
    let word = unseen.sign_abort(1).unwrap();
    unseen.abort(1, Vec::new()).unwrap();
    assert_eq!(unseen.sign_abort(1).unwrap(), word);
}

/// D3: a stage opens against exactly the final signatures of the stages below, each verified.
#[test]
fn stages_open_by_exactly_the_signatures_below() {
    let mut prepared = Prepared::new();
    let certificate = Some(prepared.certificate.clone());
    let signature = |job, byte| peer::FinalSignature { job, signature: vec![byte; 64] };
    for surplus in [vec![signature(0, 1)], vec![signature(9, 1)], vec![signature(0, 1), signature(0, 2)]] {
        let refused = prepared.release(0, 0, certificate.clone(), surplus);
        assert!(matches!(refused, Err(EngineError::Stage(0))), "{refused:?}");
    }
    let id = prepared.request.operation_id.clone();
    let stored =
        prepared.quorum.read(0, |txn| txn.scan_records(&[b"final/".as_slice(), &id].concat()).unwrap());
    assert!(stored.is_empty());
}

/// S4: the ledger of maturities is alike at all signers, also at those that released nothing.
#[test]
fn every_ledger_holds_the_maturities() {
    let mut prepared = Prepared::new();
    let operation = derive(&mut prepared.quorum, &prepared.request.clone());
    let proof = prepared.proof();
    for member in 0..3 {
        prepared.apply(member, &proof).unwrap();
        for job in &operation.jobs {
            let released = prepared.quorum.read(member, |txn| ledger::released(txn, job.maturity).unwrap());
            assert_eq!(released.unwrap().sighash, *job.session.message(), "member {member}");
        }
    }
}

/// D7: nobody occupies the id of somebody else's operation by naming a transfer after it.
#[test]
fn a_transfer_id_cannot_occupy_another_operation() {
    let mut prepared = Prepared::new();
    let proof = prepared.proof();
    for member in 0..3 {
        prepared.apply(member, &proof).unwrap();
    }
    let Prepared { mut quorum, alice, bob, request, .. } = prepared;
    let Some(Kind::Send(sent)) = &request.request else { panic!() };
    let claim = Kind::Claim(spark_proto::spark::ClaimTransferRequest {
        transfer_id: sent.transfer_id.clone(),
        owner_identity_public_key: bob.id().serialize().to_vec(),
        claim_package: None,
    });
    let victim = operation(&mut quorum, claim).operation_id;
    let other = deposit(&mut quorum, &alice, 20_000);
    let named = OperationId::parse(&victim).unwrap().to_string();
    let send = super::send_request_as(&mut quorum, &alice, &other, bob.id(), &named, |_, _| {}).0;
    let squatter = operation(&mut quorum, Kind::Send(send));
    assert_ne!(squatter.operation_id, victim);
}
