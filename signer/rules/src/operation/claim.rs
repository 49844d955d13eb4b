//! Claim: the receiver takes the leaves of a transfer under keys that only he knows.

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use spark_proto::spark;

use super::{
    Context, Draft, Operation, OperationError, Part, Records, Resource, Terms, assemble,
    jobs::{Work, group},
    transfer_id,
};
use crate::{
    ids::{OperationId, TransferId},
    leaf::LeafStatus,
    package, point,
    tx::{Purpose, Source},
    vote::Kind,
};

/// The claim of a receiver's part of a transfer has its own id, whichever device of the receiver asks.
pub(super) fn operation_id(request: &spark::ClaimTransferRequest) -> Result<OperationId, OperationError> {
    let receiver = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    Ok(claim_id(&transfer_id(&request.transfer_id)?, &receiver))
}

/// Id of the operation in which `receiver` claims its part of a transfer: receipts name it.
pub fn claim_id(transfer: &TransferId, receiver: &PublicKey) -> OperationId {
    OperationId::derive("spark/claim", &[&claim_key(transfer, receiver)])
}

fn claim_key(transfer: &TransferId, receiver: &PublicKey) -> Vec<u8> {
    [transfer.as_bytes().as_slice(), &receiver.serialize()].concat()
}

pub(super) fn derive(
    context: Context<'_>,
    request: &spark::ClaimTransferRequest,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    let transfer_id = transfer_id(&request.transfer_id)?;
    context.expect_id(operation_id(request)?)?;
    let receiver = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let transfer = records.transfer(&transfer_id).ok_or(OperationError::Unknown("transfer"))?;
    let share = transfer.share(&receiver).ok_or(OperationError::Unknown("transfer"))?;
    let wire = request.claim_package.as_ref().ok_or(OperationError::Malformed("claim_package"))?;
    let sealed = context.sealed(transfer_id, &wire.key_tweak_package)?;
    package::verify_claim_package(&transfer_id.uuid(), wire, &receiver)?;
    let mut work = Work::default();
    let mut leaves = BTreeSet::new();
    for (leaf, jobs) in group([
        (Purpose::Refund, &wire.leaves_to_claim),
        (Purpose::DirectRefund, &wire.direct_leaves_to_claim),
        (Purpose::DirectFromCpfpRefund, &wire.direct_from_cpfp_leaves_to_claim),
    ])? {
        let record = records.leaf(&leaf).ok_or(OperationError::Unknown("leaf"))?;
        if record.status != LeafStatus::TransferLocked || share.claimed {
            return Err(OperationError::Unavailable(leaf));
        }
        let owner_key = jobs.signing_key(leaf)?;
        let plan = record.claim(Source::Check(jobs.raws()?), &owner_key)?;
        jobs.sign(context.federation, &record, &plan, owner_key, &mut work.jobs)?;
        leaves.insert(*leaf.as_bytes());
        work.parts.push(Part { record, plan, receiver });
    }
    if leaves != share.leaves {
        return Err(OperationError::Malformed("leaves_to_claim"));
    }
    let resources = vec![Resource { kind: "claim", key: claim_key(&transfer_id, &receiver) }];
    assemble(
        &context,
        Draft {
            kind: Kind::Claim,
            requester: receiver,
            parts: work.parts,
            jobs: work.jobs,
            sealed: Some(sealed),
            resources,
            terms: Terms::default(),
        },
    )
}
