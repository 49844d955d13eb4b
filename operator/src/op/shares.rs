//! Signature shares of one attempt, stage by stage (D3). No I/O.

use std::collections::{BTreeMap, BTreeSet};

use spark_proto::peer::v1 as wire;
use spark_rules::{
    frost::{AggregateError, SignatureShare},
    ids::OperatorIndex,
    operation::{Keys, Operation},
};

/// Shares that lead to no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharesError {
    /// A signer left out a job, named one twice, or sent no scalar.
    #[error("operator {} sent an incomplete or malformed set of shares", .0.get())]
    Malformed(OperatorIndex),
    /// A share does not verify.
    #[error("job {job}: {source}")]
    Aggregate {
        /// Which job.
        job: usize,
        /// Who is to blame.
        source: AggregateError,
    },
    /// The keys of the operation are incomplete.
    #[error("no public shares for job {0}")]
    Keys(usize),
}

/// Shares of one stage as they come in, and the final signatures of the stages before.
#[derive(Debug)]
pub struct Stages<'a> {
    operation: &'a Operation,
    keys: &'a Keys,
    stage: u8,
    shares: BTreeMap<OperatorIndex, BTreeMap<usize, SignatureShare>>,
    signatures: BTreeMap<usize, [u8; 64]>,
}

impl<'a> Stages<'a> {
    /// Before the first stage.
    pub const fn new(operation: &'a Operation, keys: &'a Keys) -> Self {
        Self { operation, keys, stage: 0, shares: BTreeMap::new(), signatures: BTreeMap::new() }
    }

    /// The stage whose shares are missing; `None` when all signatures are complete.
    pub fn open(&self) -> Option<u8> {
        (self.stage < self.operation.stages()).then_some(self.stage)
    }

    /// Named signers that have not sent the shares of this stage.
    pub fn missing(&self) -> BTreeSet<OperatorIndex> {
        self.operation.named.iter().copied().filter(|i| !self.shares.contains_key(i)).collect()
    }

    /// Final signatures so far, in job order.
    pub fn signatures(&self) -> Vec<wire::FinalSignature> {
        self.signatures
            .iter()
            .map(|(job, signature)| wire::FinalSignature {
                job: u32::try_from(*job).unwrap_or(u32::MAX),
                signature: signature.to_vec(),
            })
            .collect()
    }

    /// Takes one signer's shares of the open stage: exactly one for each job of it.
    pub fn record(
        &mut self,
        signer: OperatorIndex,
        shares: &[wire::SignatureShare],
    ) -> Result<(), SharesError> {
        let malformed = || SharesError::Malformed(signer);
        if !self.operation.named.contains(&signer) {
            return Err(malformed());
        }
        let mut by_job = BTreeMap::new();
        for share in shares {
            let job = usize::try_from(share.job).map_err(|_| malformed())?;
            let parsed = SignatureShare::parse(&share.share).map_err(|_| malformed())?;
            if by_job.insert(job, parsed).is_some() {
                return Err(malformed());
            }
        }
        if !self.operation.jobs_of_stage(self.stage).map(|(job, _)| job).eq(by_job.keys().copied()) {
            return Err(malformed());
        }
        self.shares.insert(signer, by_job);
        Ok(())
    }

    /// Aggregates the open stage once nobody is missing, verifies every signature, and opens the next stage.
    pub fn close(&mut self) -> Result<(), SharesError> {
        let mut finished = Vec::new();
        for (index, job) in self.operation.jobs_of_stage(self.stage) {
            let public =
                self.operation.signing_shares(&job.leaf, self.keys).ok_or(SharesError::Keys(index))?;
            let shares = self
                .shares
                .iter()
                .filter_map(|(signer, by_job)| by_job.get(&index).map(|share| (*signer, *share)))
                .collect();
            let signature = job
                .aggregate(&shares, public)
                .map_err(|source| SharesError::Aggregate { job: index, source })?;
            finished.push((index, signature));
        }
        self.signatures.extend(finished);
        self.shares.clear();
        self.stage = self.stage.saturating_add(1);
        Ok(())
    }
}
