//! Renewal: timelocks go up again, under a new node or in place.

use spark_proto::spark::{self, renew_leaf_request::SigningJobs};

use super::{
    Context, Draft, Operation, OperationError, Part, Records, Resource, Terms, assemble,
    jobs::{LeafJobs, Work},
};
use crate::{
    ids::{LeafId, OperationId},
    leaf::{LeafRecord, LeafStatus},
    tx::{Purpose, RenewalPath, Source},
    vote::Kind,
};

fn leaf_id(request: &spark::RenewLeafRequest) -> Result<LeafId, OperationError> {
    LeafId::parse(&request.leaf_id).map_err(|_| OperationError::Malformed("leaf_id"))
}

fn id_of(record: &LeafRecord) -> OperationId {
    let refund = record.refunds.cpfp.compute_txid();
    OperationId::derive("spark/renew", &[record.leaf_id.as_bytes(), AsRef::<[u8]>::as_ref(&refund)])
}

/// One renewal per refund that it replaces.
pub(super) fn operation_id(
    request: &spark::RenewLeafRequest,
    records: &impl Records,
) -> Result<OperationId, OperationError> {
    Ok(id_of(&records.leaf(&leaf_id(request)?).ok_or(OperationError::Unknown("leaf"))?))
}

/// Which path, and the transactions that it replaces.
type Listed<'a> = (RenewalPath, Vec<(Purpose, &'a Option<spark::UserSignedTxSigningJob>)>);

fn listed(jobs: &SigningJobs) -> Listed<'_> {
    match jobs {
        SigningJobs::RenewNodeTimelockSigningJob(j) => (
            RenewalPath::Node,
            vec![
                (Purpose::Split, &j.split_node_tx_signing_job),
                (Purpose::DirectSplit, &j.split_node_direct_tx_signing_job),
                (Purpose::Node, &j.node_tx_signing_job),
                (Purpose::Refund, &j.refund_tx_signing_job),
                (Purpose::DirectNode, &j.direct_node_tx_signing_job),
                (Purpose::DirectRefund, &j.direct_refund_tx_signing_job),
                (Purpose::DirectFromCpfpRefund, &j.direct_from_cpfp_refund_tx_signing_job),
            ],
        ),
        SigningJobs::RenewRefundTimelockSigningJob(j) => (
            RenewalPath::Refund,
            vec![
                (Purpose::Node, &j.node_tx_signing_job),
                (Purpose::Refund, &j.refund_tx_signing_job),
                (Purpose::DirectNode, &j.direct_node_tx_signing_job),
                (Purpose::DirectRefund, &j.direct_refund_tx_signing_job),
                (Purpose::DirectFromCpfpRefund, &j.direct_from_cpfp_refund_tx_signing_job),
            ],
        ),
        SigningJobs::RenewNodeZeroTimelockSigningJob(j) => (
            RenewalPath::Zero,
            vec![
                (Purpose::Node, &j.node_tx_signing_job),
                (Purpose::Refund, &j.refund_tx_signing_job),
                (Purpose::DirectNode, &j.direct_node_tx_signing_job),
                (Purpose::DirectFromCpfpRefund, &j.direct_from_cpfp_refund_tx_signing_job),
            ],
        ),
    }
}

/// The jobs of a renewal, whether the rest of it holds or not.
pub(super) fn jobs(jobs: &SigningJobs) -> impl Iterator<Item = &spark::UserSignedTxSigningJob> {
    listed(jobs).1.into_iter().filter_map(|(_, job)| job.as_ref())
}

pub(super) fn derive(
    context: Context<'_>,
    request: &spark::RenewLeafRequest,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    let leaf = leaf_id(request)?;
    let record = records.leaf(&leaf).ok_or(OperationError::Unknown("leaf"))?;
    context.expect_id(id_of(&record))?;
    if record.status != LeafStatus::Available {
        return Err(OperationError::Unavailable(leaf));
    }
    let mut jobs = LeafJobs::default();
    let signing_jobs = request.signing_jobs.as_ref().ok_or(OperationError::Malformed("signing_jobs"))?;
    let (path, list) = listed(signing_jobs);
    for (purpose, job) in list {
        jobs.add(leaf, purpose, job.as_ref().ok_or(OperationError::Incomplete(leaf))?)?;
    }
    if jobs.signing_key(leaf)? != record.owner_key {
        return Err(OperationError::SigningKey(leaf));
    }
    let plan = record.renew(Source::Check(jobs.raws()?), path)?;
    let mut work = Work::default();
    jobs.sign(context.federation, &record, &plan, record.owner_key, &mut work.jobs)?;
    let owner = record.owner_identity;
    work.parts.push(Part { record, plan, receiver: owner });
    assemble(
        &context,
        Draft {
            kind: Kind::Renew,
            requester: owner,
            parts: work.parts,
            jobs: work.jobs,
            sealed: None,
            resources: Vec::<Resource>::new(),
            terms: Terms::default(),
        },
    )
}
