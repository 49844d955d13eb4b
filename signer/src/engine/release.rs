//! Release: shares leave against the certificate, bottom-up (D1, D3).

use std::collections::BTreeSet;

use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::OperationId,
    operation::{Job, Operation, OperationError},
    vote::{Ballot, Certificate, Choice, Kind, VoteError},
};

use super::{
    EngineError, Shared, journal,
    ledger::{self, Attempt, Phase, Released, Terms, View},
    prepare::{entry, shares_id},
};
use crate::vault::Txn;

/// One share in the sealed list: index of the job, scalar.
const ENTRY: usize = 36;

impl Shared {
    pub(super) fn release(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::ReleaseRequest,
    ) -> Result<wire::ReleaseResponse, EngineError> {
        self.unlocked()?;
        let id = OperationId::parse(&request.operation_id)?;
        let mut attempt =
            ledger::attempt(txn, &id, request.attempt)?.ok_or(EngineError::Unknown("operation"))?;
        match attempt.phase {
            Phase::Prepared | Phase::Released | Phase::Applied => {}
            phase => return Err(EngineError::Decided(phase.name())),
        }
        let certificate = request.certificate.as_ref().ok_or(EngineError::Malformed("certificate"))?;
        self.remember_votes(txn, &certificate.votes)?;
        let certificate = self.own_certificate(certificate, &id, request.attempt, &attempt)?;
        if !certificate.ballot().named.contains(&self.me) {
            return Err(EngineError::NotNamed);
        }
        if attempt.phase == Phase::Prepared {
            self.lower_committed(&certificate, &request.commits)?;
        }
        let stage = u8::try_from(request.stage).map_err(|_| EngineError::Stage(request.stage))?;
        if attempt.phase != Phase::Applied {
            let operation = self.stored_operation(txn, &attempt)?;
            if stage >= operation.stages() {
                return Err(EngineError::Stage(request.stage));
            }
            let finals = check_lower_stages(&operation, stage, &request.signatures)?;
            // Stored before anything above them leaves: the exit exists before the tree can move (S14, D3).
            for (job, signature) in finals {
                txn.put_record(&final_key(&id, request.attempt, job), signature.to_vec());
            }
            self.check_maturities(txn, &operation)?;
            put_released(txn, &operation, operation.jobs_of_stage(stage).map(|(_, job)| job))?;
            if attempt.phase == Phase::Prepared {
                attempt.phase = Phase::Released;
                ledger::put_attempt(txn, &id, request.attempt, &attempt);
                journal::append(
                    txn,
                    entry("released", &id, request.attempt, &attempt.vote, None, Vec::new()),
                )?;
            }
        }
        if certificate.ballot().kind == Kind::Refresh {
            let commit = Some(self.sign_commit(txn, &certificate)?);
            return Ok(wire::ReleaseResponse { shares: Vec::new(), commit });
        }
        // The sealed shares stay until apply: an identical repeat gets the identical answer.
        let sealed = txn.get_secret(&shares_id(&id, request.attempt, stage))?;
        let sealed = sealed.ok_or(EngineError::Unknown("signature shares"))?;
        let shares = sealed
            .chunks_exact(ENTRY)
            .map(|chunk| {
                let (job, share) =
                    chunk.split_first_chunk::<4>().ok_or(EngineError::Malformed("stored shares"))?;
                Ok(peer::SignatureShare { job: u32::from_be_bytes(*job), share: share.to_vec() })
            })
            .collect::<Result<_, EngineError>>()?;
        Ok(wire::ReleaseResponse { shares, commit: None })
    }

    /// Deciders of a refresh commit in order, as they abort.
    fn lower_committed(&self, certificate: &Certificate, commits: &[peer::Vote]) -> Result<(), EngineError> {
        if certificate.ballot().kind != Kind::Refresh {
            return Ok(());
        }
        if commits.len() > usize::from(self.federation.size()) {
            return Err(EngineError::Malformed("commits"));
        }
        let heard = commits.iter().map(|vote| certificate.verify_commit(vote, &self.federation));
        let heard = heard.collect::<Result<BTreeSet<_>, _>>()?;
        let named = &certificate.ballot().named;
        match named.iter().find(|decider| **decider < self.me && !heard.contains(decider)) {
            Some(first) => Err(EngineError::OutOfTurn(first.get())),
            None => Ok(()),
        }
    }

    /// COMMIT in the place of shares, of an operation that signs nothing (D1). A repeat says the same again.
    fn sign_commit(&self, txn: &Txn<'_>, certificate: &Certificate) -> Result<peer::Vote, EngineError> {
        let ballot = Ballot { choice: Choice::Commit, ..certificate.ballot().clone() };
        let position = if txn.is_empty() { self.committed_position(txn) } else { self.position(txn) };
        let signature = self.token.sign_federation(&ballot.statement(&self.federation, &position))?.to_vec();
        Ok(ballot.into_wire(position, signature, String::new()))
    }

    /// A certificate for exactly what this signer voted for.
    pub(super) fn own_certificate(
        &self,
        certificate: &peer::Certificate,
        id: &OperationId,
        attempt: u32,
        own: &Attempt,
    ) -> Result<Certificate, EngineError> {
        let certificate = Certificate::verify(certificate, &self.federation)?;
        let ballot = certificate.ballot();
        if ballot.operation != *id || ballot.attempt != attempt || ballot.digest.as_slice() != own.vote.digest
        {
            return Err(VoteError::Disagree("digest").into());
        }
        Ok(certificate)
    }

    /// The operation as it was prepared: the leaves are held, so the records are still those of then.
    pub(super) fn stored_operation(
        &self,
        txn: &Txn<'_>,
        attempt: &Attempt,
    ) -> Result<Operation, EngineError> {
        use prost::Message as _;
        let request = peer::Operation::decode(attempt.request.as_slice())?;
        View::ask(txn, |view| Operation::derive(&request, view, &self.federation))
    }

    /// As [`Self::stored_operation`], to end it: also one of an earlier federation file, which nothing but an abort can
    /// come of any more.
    pub(super) fn operation_to_end(
        &self,
        txn: &Txn<'_>,
        attempt: &Attempt,
    ) -> Result<Operation, EngineError> {
        use prost::Message as _;
        let mut request = peer::Operation::decode(attempt.request.as_slice())?;
        request.federation_epoch = self.federation.epoch();
        View::ask(txn, |view| Operation::derive(&request, view, &self.federation))
    }
}

/// The final signatures of all stages below, verified: exactly one for each of their jobs.
fn check_lower_stages(
    operation: &Operation,
    stage: u8,
    signatures: &[peer::FinalSignature],
) -> Result<Vec<(usize, [u8; 64])>, EngineError> {
    let missing = || EngineError::Stage(stage.into());
    let jobs: Vec<usize> =
        (0..stage).flat_map(|lower| operation.jobs_of_stage(lower)).map(|(i, _)| i).collect();
    if signatures.len() != jobs.len() {
        return Err(missing());
    }
    jobs.into_iter()
        .map(|index| {
            let found = signatures.iter().find(|s| usize::try_from(s.job).is_ok_and(|job| job == index));
            let bytes = <[u8; 64]>::try_from(found.ok_or_else(missing)?.signature.as_slice());
            let bytes = bytes.map_err(|_| missing())?;
            operation.verify_final(index, &bytes)?;
            Ok((index, bytes))
        })
        .collect()
}

fn final_key(id: &OperationId, attempt: u32, job: usize) -> Vec<u8> {
    [b"final/".as_slice(), id.as_bytes(), &attempt.to_be_bytes(), &(job as u64).to_be_bytes()].concat()
}

/// Final signatures that a release stored; the outcome of the operation takes their place.
pub(super) fn forget_finals(txn: &mut Txn<'_>, id: &OperationId, attempt: u32, jobs: usize) {
    for job in 0..jobs {
        txn.delete_record(&final_key(id, attempt, job));
    }
}

/// What a share was released for, or a final signature exists for, is the one transaction of its maturity (S4).
pub(super) fn put_released<'a>(
    txn: &mut Txn<'_>,
    operation: &Operation,
    jobs: impl Iterator<Item = &'a Job>,
) -> Result<(), EngineError> {
    for job in jobs {
        let part = operation.parts.iter().find(|p| p.record.leaf_id == job.leaf);
        let part = part.ok_or(OperationError::Incomplete(job.leaf))?;
        let released = Released {
            sighash: *job.session.message(),
            owner: part.receiver.serialize(),
            version: part.record.version,
            terms: if operation.condition.is_some() { Terms::Htlc } else { Terms::Plain },
        };
        ledger::put_released(txn, job.maturity, &released);
    }
    Ok(())
}
