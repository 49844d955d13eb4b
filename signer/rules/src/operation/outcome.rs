//! What is true once a proof of commit exists.

use std::collections::BTreeMap;

use bitcoin::{Transaction, secp256k1::PublicKey};
use spark_proto::peer::v1 as wire;

use super::{Keys, Operation, OperationError, Part, TransferRecord, TransferShare};
use crate::{
    ids::LeafId,
    leaf::{LeafRecord, LeafStatus},
    transcript::Transcript,
    tx::{Plan, Purpose, attach_signature, verify_input},
    vote::Kind,
};

/// A transaction with all its final signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTx {
    /// Of which leaf.
    pub leaf: LeafId,
    /// At which version of the leaf it was asked for.
    pub version: u64,
    /// What for.
    pub purpose: Purpose,
    /// With witness.
    pub tx: Transaction,
}

/// Records after the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The leaves, new state.
    pub leaves: Vec<LeafRecord>,
    /// Inner nodes that a renewal put above a leaf.
    pub nodes: Vec<LeafRecord>,
    /// The transfer of a send or claim.
    pub transfer: Option<TransferRecord>,
    /// Everything that was signed.
    pub signed: Vec<SignedTx>,
}

/// Hash of a proof of commit, part of the next operation's digest. It covers what was decided, not who voted:
/// every holder's proof of one decision has the same hash.
pub fn proof_hash(operation: &Operation, digest: &[u8; 32]) -> [u8; 32] {
    let mut t = Transcript::new("spark/proof-of-commit/v1");
    t.bytes(operation.id.as_bytes()).u64(operation.kind.code().into()).bytes(digest);
    t.finish()
}

impl Operation {
    /// Final signatures from the wire in job order: exactly one each.
    pub fn parse_signatures(&self, wire: &[wire::FinalSignature]) -> Result<Vec<[u8; 64]>, OperationError> {
        let mut by_job = BTreeMap::new();
        for signature in wire {
            let job = usize::try_from(signature.job).unwrap_or(usize::MAX);
            let bytes: [u8; 64] =
                signature.signature.as_slice().try_into().map_err(|_| OperationError::Final(job))?;
            if job >= self.jobs.len() || by_job.insert(job, bytes).is_some() {
                return Err(OperationError::Final(job));
            }
        }
        (0..self.jobs.len()).map(|job| by_job.get(&job).copied().ok_or(OperationError::Final(job))).collect()
    }

    /// Verifies the final signature of one job under one's own key record.
    pub fn verify_final(&self, job: usize, signature: &[u8; 64]) -> Result<(), OperationError> {
        use bitcoin::secp256k1::{Message, SECP256K1, schnorr::Signature};
        let found = self.jobs.get(job).ok_or(OperationError::Final(job))?;
        let signature = Signature::from_slice(signature).map_err(|_| OperationError::Final(job))?;
        let message = Message::from_digest(*found.session.message());
        SECP256K1
            .verify_schnorr(&signature, &message, &found.session.output_key())
            .map_err(|_| OperationError::Final(job))
    }

    /// The records after the operation. Verifies every signature against the output that it spends.
    pub fn outcome(
        &self,
        signatures: &[[u8; 64]],
        keys: &Keys,
        digest: &[u8; 32],
    ) -> Result<Outcome, OperationError> {
        if signatures.len() != self.jobs.len() {
            return Err(OperationError::Final(signatures.len()));
        }
        let last_proof = proof_hash(self, digest);
        let mut outcome =
            Outcome { leaves: Vec::new(), nodes: Vec::new(), transfer: self.transfer(), signed: Vec::new() };
        for part in &self.parts {
            let plan = self.signed_plan(part, signatures)?;
            outcome.signed.extend(plan.transactions().iter().map(|p| SignedTx {
                leaf: part.record.leaf_id,
                version: part.record.version,
                purpose: p.purpose(),
                tx: p.tx.clone(),
            }));
            let key = keys.get(&part.record.leaf_id).ok_or(OperationError::Opened("leaf missing"))?;
            let mut record = match self.kind {
                Kind::Deposit => part.record.clone().with_deposit(&plan)?,
                Kind::Send | Kind::Htlc | Kind::CoopExit | Kind::Claim => {
                    part.record.clone().with_refunds(&plan)?
                }
                Kind::Refresh => part.record.clone(),
                Kind::Renew => {
                    outcome.nodes.extend(part.record.inner_node(&plan));
                    part.record.clone().with_renewal(&plan)?
                }
            };
            record.version = key.version;
            record.group_key = key.group_key;
            record.public_shares.clone_from(&key.public_shares);
            record.owner_key = key.owner_key;
            record.last_proof = last_proof;
            record.status = match self.kind {
                Kind::Deposit => LeafStatus::Creating,
                Kind::Send | Kind::Htlc | Kind::CoopExit => LeafStatus::TransferLocked,
                Kind::Claim | Kind::Renew | Kind::Refresh => LeafStatus::Available,
            };
            if self.kind == Kind::Claim {
                record.owner_identity = part.receiver;
            }
            outcome.leaves.push(record.checked()?);
        }
        Ok(outcome)
    }

    fn transfer(&self) -> Option<TransferRecord> {
        let (Kind::Send | Kind::Htlc | Kind::CoopExit, Some(sealed)) = (self.kind, &self.sealed) else {
            return None;
        };
        let share = |receiver: PublicKey| TransferShare {
            receiver,
            leaves: self
                .parts
                .iter()
                .filter(|part| part.receiver == receiver)
                .map(|part| *part.record.leaf_id.as_bytes())
                .collect(),
            claimed: false,
        };
        Some(TransferRecord {
            id: *sealed.transfer.as_bytes(),
            sender: self.requester,
            receivers: self.receivers().into_iter().map(share).collect(),
            invoice: self.terms.invoice.as_ref().map(|paid| paid.text.clone()).unwrap_or_default(),
            expiry_seconds: self.terms.expiry_seconds,
        })
    }

    fn signed_plan(&self, part: &Part, signatures: &[[u8; 64]]) -> Result<Plan, OperationError> {
        let mut plan = part.plan.clone();
        for (index, (job, signature)) in self.jobs.iter().zip(signatures).enumerate() {
            if job.leaf == part.record.leaf_id {
                let planned = plan.get_mut(job.purpose).ok_or(OperationError::Final(index))?;
                attach_signature(&mut planned.tx, job.input, *signature)
                    .map_err(|_| OperationError::Final(index))?;
            }
        }
        for (index, job) in self.jobs.iter().enumerate() {
            if job.leaf == part.record.leaf_id {
                let planned = plan.get(job.purpose).ok_or(OperationError::Final(index))?;
                verify_input(&planned.tx, &planned.template.prevouts(), job.input)
                    .map_err(|_| OperationError::Final(index))?;
            }
        }
        Ok(plan)
    }
}
