//! Inputs to sign.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use spark_proto::{common, peer::v1::operation::Request, spark};

use super::{OperationError, Part};
use crate::{
    federation::Federation,
    frost::{AggregateError, Commitment, Session, SignatureShare, SigningPackage},
    ids::{LeafId, OperatorIndex},
    leaf::LeafRecord,
    tx::{Maturity, Plan, Planned, Purpose, RawSet, sighash},
};

/// One input to sign: the whole signing package and the user's half.
#[derive(Debug, Clone)]
pub struct Job {
    /// Of which leaf.
    pub leaf: LeafId,
    /// Which transaction of the leaf's plan.
    pub purpose: Purpose,
    /// Which of its inputs.
    pub input: usize,
    /// Release stage (D3).
    pub stage: u8,
    /// Key of the ledger of released maturities (D6).
    pub maturity: Maturity,
    /// Message, key and commitments.
    pub package: SigningPackage,
    /// Computed once from the package.
    pub session: Session,
    /// The user's key that signs it.
    pub user_key: PublicKey,
    /// The user's share, verified.
    pub user_share: SignatureShare,
}

impl Job {
    /// Adds the named operators' shares to the user's: a BIP340 signature, verified, or the culprits.
    pub fn aggregate(
        &self,
        shares: &BTreeMap<OperatorIndex, SignatureShare>,
        public_shares: &[PublicKey],
    ) -> Result<[u8; 64], AggregateError> {
        self.session.aggregate(
            shares,
            Some(&self.user_share),
            |index| public_shares.get(index.as_usize()).copied(),
            Some(&self.user_key),
        )
    }
}

/// The client's half of one input.
pub(super) struct UserInput<'a> {
    commitment: Option<&'a common::SigningCommitment>,
    share: &'a [u8],
    operators: Option<&'a spark::SigningCommitments>,
}

impl<'a> UserInput<'a> {
    pub(super) fn first(job: &'a spark::UserSignedTxSigningJob) -> Self {
        Self {
            commitment: job.signing_nonce_commitment.as_ref(),
            share: &job.user_signature,
            operators: job.signing_commitments.as_ref(),
        }
    }

    pub(super) fn additional(input: &'a spark::InputSigningData) -> Self {
        Self {
            commitment: input.signing_nonce_commitment.as_ref(),
            share: &input.user_signature,
            operators: input.signing_commitments.as_ref(),
        }
    }
}

/// A pair of commitments from the wire.
pub fn parse_commitment(wire: Option<&common::SigningCommitment>) -> Result<Commitment, OperationError> {
    let wire = wire.ok_or(OperationError::Malformed("signing_nonce_commitment"))?;
    Ok(Commitment::parse(&wire.hiding, &wire.binding)?)
}

/// The operators' commitments from the wire.
pub fn parse_commitments(
    wire: Option<&spark::SigningCommitments>,
) -> Result<BTreeMap<OperatorIndex, Commitment>, OperationError> {
    let wire = wire.ok_or(OperationError::Malformed("signing_commitments"))?;
    wire.signing_commitments
        .iter()
        .map(|(id, pair)| {
            let index = OperatorIndex::from_identifier(id)
                .map_err(|_| OperationError::Malformed("signing_commitments"))?;
            Ok((index, parse_commitment(Some(pair))?))
        })
        .collect()
}

/// Every set of operators' commitments in a client's words, whether the rest of them holds or not.
pub fn commitment_sets(request: &Request) -> Vec<&spark::SigningCommitments> {
    let jobs: Vec<&spark::UserSignedTxSigningJob> = match request {
        Request::Deposit(r) => {
            [&r.root_tx_signing_job, &r.refund_tx_signing_job, &r.direct_from_cpfp_refund_tx_signing_job]
                .into_iter()
                .flatten()
                .collect()
        }
        Request::Send(r) => r.transfer_package.iter().flat_map(sent).collect(),
        Request::SendMany(r) => {
            r.sender_packages.iter().flat_map(|p| &p.transfer_package).flat_map(sent).collect()
        }
        Request::Htlc(htlc) => super::htlc::transfer(htlc)
            .ok()
            .and_then(|r| r.transfer_package.as_ref())
            .into_iter()
            .flat_map(sent)
            .collect(),
        Request::CoopExit(exit) => super::coop_exit::transfer(exit)
            .ok()
            .and_then(|r| r.transfer_package.as_ref())
            .into_iter()
            .flat_map(sent)
            .collect(),
        Request::Claim(r) => r
            .claim_package
            .iter()
            .flat_map(|p| {
                let direct = p.direct_leaves_to_claim.iter().chain(&p.direct_from_cpfp_leaves_to_claim);
                p.leaves_to_claim.iter().chain(direct)
            })
            .collect(),
        Request::Renew(r) => r.signing_jobs.iter().flat_map(super::renew::jobs).collect(),
        Request::Refresh(_) => Vec::new(),
    };
    jobs.into_iter()
        .flat_map(|job| {
            let additional = job.additional_inputs.iter().map(|input| &input.signing_commitments);
            std::iter::once(&job.signing_commitments).chain(additional)
        })
        .flatten()
        .collect()
}

fn sent(package: &spark::TransferPackage) -> impl Iterator<Item = &spark::UserSignedTxSigningJob> {
    let direct = package.direct_leaves_to_send.iter().chain(&package.direct_from_cpfp_leaves_to_send);
    package.leaves_to_send.iter().chain(direct)
}

/// Jobs of a leaf grouped by what they are for.
#[derive(Default)]
pub(super) struct LeafJobs<'a>(BTreeMap<Purpose, &'a spark::UserSignedTxSigningJob>);

impl<'a> LeafJobs<'a> {
    pub(super) fn add(
        &mut self,
        leaf: LeafId,
        purpose: Purpose,
        job: &'a spark::UserSignedTxSigningJob,
    ) -> Result<(), OperationError> {
        match self.0.insert(purpose, job) {
            None => Ok(()),
            Some(_) => Err(OperationError::Incomplete(leaf)),
        }
    }

    /// Leaves a transaction out that is neither signed nor kept.
    pub(super) fn ignore(&mut self, purpose: Purpose) {
        self.0.remove(&purpose);
    }

    pub(super) fn raws(&self) -> Result<RawSet<'a>, OperationError> {
        let mut raws = RawSet::new();
        for (purpose, job) in &self.0 {
            raws = raws.with(*purpose, &job.raw_tx)?;
        }
        Ok(raws)
    }

    /// The key that signs, the same in every job of the leaf.
    pub(super) fn signing_key(&self, leaf: LeafId) -> Result<PublicKey, OperationError> {
        let mut keys = self.0.values().map(|j| j.signing_public_key.as_slice());
        let first = keys.next().ok_or(OperationError::Incomplete(leaf))?;
        if keys.any(|k| k != first) {
            return Err(OperationError::SigningKey(leaf));
        }
        Ok(crate::point::parse("signing_public_key", first)?)
    }

    /// Every input of every planned transaction that is the owner's and the operators', with the user's share verified.
    pub(super) fn sign(
        &self,
        federation: &Federation,
        record: &LeafRecord,
        plan: &Plan,
        user_key: PublicKey,
        jobs: &mut Vec<Job>,
    ) -> Result<(), OperationError> {
        for planned in plan.transactions() {
            let wire = self.0.get(&planned.purpose()).ok_or(OperationError::Incomplete(record.leaf_id))?;
            let inputs = std::iter::once(UserInput::first(wire))
                .chain(wire.additional_inputs.iter().map(UserInput::additional));
            if wire.additional_inputs.len().saturating_add(1) != planned.template.inputs().len() {
                return Err(OperationError::Malformed("additional_inputs"));
            }
            for (input, user) in inputs.enumerate() {
                let job = job(federation, record, planned, input, &user, user_key, jobs.len())?;
                jobs.push(job);
            }
        }
        Ok(())
    }
}

fn job(
    federation: &Federation,
    record: &LeafRecord,
    planned: &Planned,
    input: usize,
    user: &UserInput<'_>,
    user_key: PublicKey,
    index: usize,
) -> Result<Job, OperationError> {
    let message = sighash(&planned.tx, &planned.template.prevouts(), input)
        .map_err(|_| OperationError::Malformed("raw_tx"))?;
    let package = SigningPackage::new(
        record.verifying_key,
        message,
        parse_commitments(user.operators)?,
        Some(parse_commitment(user.commitment)?),
        None,
        federation.threshold(),
        federation.size(),
    )?;
    let session = package.session()?;
    let user_share =
        SignatureShare::parse(user.share).map_err(|_| OperationError::Malformed("user_signature"))?;
    session
        .verify_user_share(&user_key, &user_share)
        .map_err(|source| OperationError::UserShare { job: index, source })?;
    let outpoint = planned.tx.input.get(input).ok_or(OperationError::Malformed("raw_tx"))?.previous_output;
    Ok(Job {
        leaf: record.leaf_id,
        purpose: planned.purpose(),
        input,
        stage: planned.stage,
        maturity: Maturity { outpoint, step: planned.template.step(), variant: planned.purpose().variant() },
        package,
        session,
        user_key,
        user_share,
    })
}

/// Builds the parts and jobs of a package that moves leaves: the same leaves in every list, each complete (D5).
pub(super) fn group<'a>(
    lists: [(Purpose, &'a [spark::UserSignedTxSigningJob]); 3],
) -> Result<Vec<(LeafId, LeafJobs<'a>)>, OperationError> {
    let [(_, first), ..] = &lists;
    if first.is_empty() {
        return Err(OperationError::Malformed("leaves"));
    }
    if first.len() > super::MAX_LEAVES {
        return Err(OperationError::TooMany { what: "leaves", most: super::MAX_LEAVES });
    }
    let mut order = Vec::with_capacity(first.len());
    let mut grouped: BTreeMap<LeafId, LeafJobs<'a>> = BTreeMap::new();
    for (position, (purpose, list)) in lists.iter().enumerate() {
        for job in *list {
            let leaf = LeafId::parse(&job.leaf_id).map_err(|_| OperationError::Malformed("leaf_id"))?;
            if position == 0 {
                order.push(leaf);
            } else if !grouped.contains_key(&leaf) {
                return Err(OperationError::Incomplete(leaf));
            }
            grouped.entry(leaf).or_default().add(leaf, *purpose, job)?;
        }
    }
    order
        .into_iter()
        .map(|leaf| grouped.remove(&leaf).map(|jobs| (leaf, jobs)).ok_or(OperationError::Incomplete(leaf)))
        .collect()
}

/// Parts and jobs so far.
#[derive(Default)]
pub(super) struct Work {
    pub(super) parts: Vec<Part>,
    pub(super) jobs: Vec<Job>,
}
