//! Evidence that both proofs of one attempt exist (D1): only t operators that lie can make it, so it stops votes until a
//! person has looked. Whoever carries a proof here may have made up what no signature covers; so a proof counts only
//! if every signature in it holds, and what is kept of it is what signatures cover.

use bitcoin::{
    XOnlyPublicKey,
    secp256k1::{Message, SECP256K1, schnorr::Signature},
};
use prost::Message as _;
use spark_proto::peer::v1 as peer;
use spark_rules::{ids::OperationId, operation::Operation, vote::Certificate};

use super::{
    EngineError, Shared,
    ledger::{Attempt, Phase},
};
use crate::vault::Txn;

/// Bytes of one job of an aborted attempt: what was to be signed, and the key it had to be signed with.
const JOB: usize = 64;

fn jobs_key(id: &OperationId, attempt: u32) -> Vec<u8> {
    [b"aborted-jobs/".as_slice(), id.as_bytes(), &attempt.to_be_bytes()].concat()
}

/// Remembers of an attempt that ends by a proof of abort by what a proof of commit could still be told: its request is
/// forgotten, and its leaves move on.
pub(super) fn remember_jobs(txn: &mut Txn<'_>, operation: &Operation) {
    let mut jobs = Vec::with_capacity(operation.jobs.len().saturating_mul(JOB));
    for job in &operation.jobs {
        jobs.extend_from_slice(job.session.message());
        jobs.extend_from_slice(&job.session.output_key().serialize());
    }
    if !jobs.is_empty() {
        txn.put_record(&jobs_key(&operation.id, operation.attempt), jobs);
    }
}

/// Exactly one signature for each job, all of them valid.
fn all_signed(jobs: &[u8], signatures: &[peer::FinalSignature]) -> bool {
    let signed = |index: usize, job: &[u8]| {
        let mut found = signatures.iter().filter(|s| usize::try_from(s.job).is_ok_and(|job| job == index));
        let (Some(signature), None) = (found.next(), found.next()) else { return false };
        let Some((message, key)) = job.split_first_chunk::<32>() else { return false };
        let (Ok(signature), Ok(key)) =
            (Signature::from_slice(&signature.signature), XOnlyPublicKey::from_slice(key))
        else {
            return false;
        };
        SECP256K1.verify_schnorr(&signature, &Message::from_digest(*message), &key).is_ok()
    };
    signatures.len() == jobs.len() / JOB
        && jobs.chunks(JOB).enumerate().all(|(index, job)| signed(index, job))
}

/// Reasons of votes are text that nobody signs.
pub(super) fn without_reasons(votes: &[peer::Vote]) -> Vec<peer::Vote> {
    votes.iter().map(|vote| peer::Vote { reason: String::new(), ..vote.clone() }).collect()
}

impl Shared {
    /// Looks at a proof of commit of an attempt that a proof of abort ended, and raises the alarm if it holds. A
    /// certificate alone is nothing strange: all may have said YES before the named ones said ABORT.
    pub(super) fn committed_after_abort(
        &mut self,
        txn: &Txn<'_>,
        id: &OperationId,
        number: u32,
        attempt: &Attempt,
        proof: &peer::ProofOfCommit,
    ) -> Result<(), EngineError> {
        debug_assert_eq!(attempt.phase, Phase::Aborted, "of another attempt there is nothing to contradict");
        let certificate = proof.certificate.as_ref().ok_or(EngineError::Malformed("certificate"))?;
        let certified = self.own_certificate(certificate, id, number, attempt)?;
        let holds = match txn.record(&jobs_key(id, number))? {
            Some(jobs) => proof.commits.is_empty() && all_signed(&jobs, &proof.signatures),
            None => {
                proof.signatures.is_empty()
                    && Certificate::verify_commits(&certified, &proof.commits, &self.federation).is_ok()
            }
        };
        if holds {
            let evidence = peer::ProofOfCommit {
                certificate: Some(peer::Certificate { votes: without_reasons(&certificate.votes) }),
                signatures: proof.signatures.clone(),
                commits: without_reasons(&proof.commits),
            };
            self.alarms.raise_over("both_proofs", self.now, evidence.encode_to_vec());
        }
        Ok(())
    }
}
