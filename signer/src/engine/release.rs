//! Release: shares leave against the certificate, bottom-up (D1, D3).

use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::OperationId,
    operation::{Operation, OperationError},
    vote::{Certificate, VoteError},
};

use super::{
    EngineError, Shared, journal,
    ledger::{self, Attempt, Phase, Released, View},
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
        let stage = u8::try_from(request.stage).map_err(|_| EngineError::Stage(request.stage))?;
        if attempt.phase != Phase::Applied {
            let operation = self.stored_operation(txn, &attempt)?;
            if stage >= operation.stages() {
                return Err(EngineError::Stage(request.stage));
            }
            self.check_lower_stages(&operation, stage, &request.signatures)?;
            // Stored before anything above them leaves: the exit exists before the tree can move (S14, D3).
            for signature in &request.signatures {
                let key = [
                    b"final/".as_slice(),
                    id.as_bytes(),
                    &request.attempt.to_be_bytes(),
                    &signature.job.to_be_bytes(),
                ]
                .concat();
                txn.put_record(&key, signature.signature.clone());
            }
            self.check_maturities(txn, &operation)?;
            for (_, job) in operation.jobs_of_stage(stage) {
                let part = operation.parts.iter().find(|p| p.record.leaf_id == job.leaf);
                let part = part.ok_or(OperationError::Incomplete(job.leaf))?;
                let released = Released {
                    sighash: *job.session.message(),
                    owner: operation.receiver.serialize(),
                    version: part.record.version,
                };
                ledger::put_released(txn, job.maturity, &released);
            }
            if attempt.phase == Phase::Prepared {
                attempt.phase = Phase::Released;
                ledger::put_attempt(txn, &id, request.attempt, &attempt);
                journal::append(
                    txn,
                    entry("released", &id, request.attempt, &attempt.vote, None, Vec::new()),
                )?;
            }
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
        Ok(wire::ReleaseResponse { shares })
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
        Ok(Operation::derive(&request, &View(txn), &self.federation)?)
    }

    fn check_lower_stages(
        &self,
        operation: &Operation,
        stage: u8,
        signatures: &[peer::FinalSignature],
    ) -> Result<(), EngineError> {
        for lower in 0..stage {
            for (index, _) in operation.jobs_of_stage(lower) {
                let found = signatures.iter().find(|s| usize::try_from(s.job).is_ok_and(|j| j == index));
                let bytes = found.and_then(|s| <[u8; 64]>::try_from(s.signature.as_slice()).ok());
                let bytes = bytes.ok_or(EngineError::Stage(stage.into()))?;
                operation.verify_final(index, &bytes)?;
            }
        }
        Ok(())
    }
}
