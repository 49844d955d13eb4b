//! Send: the leaves go to a receiver's identity key, one step down the ladder.

use spark_proto::spark;

use super::{
    Context, Draft, Operation, OperationError, Part, Records, Resource, assemble,
    jobs::{Work, group},
    transfer_id,
};
use crate::{ids::OperationId, leaf::LeafStatus, package, point, tx::Purpose, vote::Kind};

/// Ids of transfers are unique per sender (D7), so nobody occupies another's.
pub(super) fn operation_id(request: &spark::StartTransferRequest) -> Result<OperationId, OperationError> {
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let transfer = transfer_id(&request.transfer_id)?;
    Ok(OperationId::derive("spark/send", &[&sender.serialize(), transfer.as_bytes()]))
}

pub(super) fn derive(
    context: Context<'_>,
    request: &spark::StartTransferRequest,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    context.expect_id(operation_id(request)?)?;
    let transfer = transfer_id(&request.transfer_id)?;
    if !request.leaves_to_send.is_empty() {
        return Err(OperationError::Unsupported("a transfer without a package"));
    }
    if !request.spark_invoice.is_empty() {
        return Err(OperationError::Unsupported("spark_invoice"));
    }
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let receiver = point::parse("receiver_identity_public_key", &request.receiver_identity_public_key)?;
    let wire = request.transfer_package.as_ref().ok_or(OperationError::Malformed("transfer_package"))?;
    let sealed = context.sealed(transfer, &wire.key_tweak_package)?;
    package::verify_transfer_package(&transfer.uuid(), wire, &sender)?;
    let mut work = Work::default();
    for (leaf, jobs) in group([
        (Purpose::Refund, &wire.leaves_to_send),
        (Purpose::DirectRefund, &wire.direct_leaves_to_send),
        (Purpose::DirectFromCpfpRefund, &wire.direct_from_cpfp_leaves_to_send),
    ])? {
        let record = records.leaf(&leaf).ok_or(OperationError::Unknown("leaf"))?;
        if record.owner_identity != sender {
            return Err(OperationError::NotOwner(leaf));
        }
        if record.status != LeafStatus::Available {
            return Err(OperationError::Unavailable(leaf));
        }
        if jobs.signing_key(leaf)? != record.owner_key {
            return Err(OperationError::SigningKey(leaf));
        }
        let plan = record.check_send(jobs.raws()?, &receiver)?;
        jobs.sign(context.federation, &record, &plan, record.owner_key, &mut work.jobs)?;
        work.parts.push(Part { record, plan });
    }
    let resources = vec![Resource { kind: "transfer", key: transfer.as_bytes().to_vec() }];
    assemble(
        &context,
        Draft {
            kind: Kind::Send,
            requester: sender,
            receiver,
            parts: work.parts,
            jobs: work.jobs,
            sealed: Some(sealed),
            resources,
            expiry_seconds: request.expiry_time.as_ref().map_or(0, |t| t.seconds),
        },
    )
}
