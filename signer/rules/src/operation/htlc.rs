//! HTLC transfer: a send that a preimage completes (D8). Until then the leaves are locked and the tweak is staged.
//!
//! The refunds pay to an output that the receiver takes with the preimage, or the sender after a time. Plain refunds
//! that public wallets send along are not looked at: no share, no record (D5).

use spark_proto::{
    peer::v1 as wire,
    spark::{self, initiate_preimage_swap_request::Reason},
};

use super::{
    Context, Draft, Operation, OperationError, Part, Records, Resource, assemble,
    jobs::{Work, group},
    send::sendable,
    terms::Terms,
    transfer_id,
};
use crate::{
    ids::OperationId,
    package, point,
    settlement::Condition,
    tx::{Htlc, Purpose},
    vote::Kind,
};

/// The part of the request that is signed and sealed.
pub(super) fn transfer(wire: &wire::Htlc) -> Result<&spark::StartTransferRequest, OperationError> {
    let request = wire.request.as_ref().ok_or(OperationError::Malformed("request"))?;
    request.transfer_request.as_ref().ok_or(OperationError::Malformed("transfer_request"))
}

/// Ids of transfers are unique per sender (D7). The transfer itself is a resource that plain sends claim, too.
pub(super) fn operation_id(wire: &wire::Htlc) -> Result<OperationId, OperationError> {
    let request = transfer(wire)?;
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let transfer = transfer_id(&request.transfer_id)?;
    Ok(OperationId::derive("spark/htlc", &[&sender.serialize(), transfer.as_bytes()]))
}

pub(super) fn derive(
    context: Context<'_>,
    wire: &wire::Htlc,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    context.expect_id(operation_id(wire)?)?;
    let swap = wire.request.as_ref().ok_or(OperationError::Malformed("request"))?;
    let request = transfer(wire)?;
    let condition = condition(wire, swap, request)?;
    let transfer = transfer_id(&request.transfer_id)?;
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let receiver = point::parse("receiver_identity_public_key", &request.receiver_identity_public_key)?;
    let package = request.transfer_package.as_ref().ok_or(OperationError::Malformed("transfer_package"))?;
    let sealed = context.sealed(transfer, &package.key_tweak_package)?;
    package::verify_transfer_package(&transfer.uuid(), package, &sender)?;
    let payment_hash = swap.payment_hash.as_slice().try_into();
    let payment_hash: [u8; 32] = payment_hash.map_err(|_| OperationError::Malformed("payment_hash"))?;
    let htlc = Htlc::new(payment_hash, receiver, sender);
    let mut work = Work::default();
    let mut total = 0u64;
    for (leaf, mut jobs) in group([
        (Purpose::HtlcRefund, &package.leaves_to_send),
        (Purpose::HtlcDirectRefund, &package.direct_leaves_to_send),
        (Purpose::HtlcDirectFromCpfpRefund, &package.direct_from_cpfp_leaves_to_send),
    ])? {
        let record = sendable(records, &sender, leaf, &jobs)?;
        if record.is_zero_node() {
            // D23: some wallets send one, some do not. Signed, it would be the only refund of a direct node that no
            // later owner of the leaf gets a refund for.
            jobs.ignore(Purpose::HtlcDirectRefund);
        }
        let plan = record.check_htlc(jobs.raws()?, &htlc)?;
        jobs.sign(context.federation, &record, &plan, record.owner_key, &mut work.jobs)?;
        total = total.saturating_add(record.value);
        work.parts.push(Part { record, plan, receiver });
    }
    // X14: the amount is what the records hold, not what the request says of its own transactions.
    if swap.invoice_amount.as_ref().is_some_and(|a| a.value_sats != 0 && a.value_sats != total) {
        return Err(OperationError::Malformed("invoice_amount"));
    }
    let payment = [payment_hash.as_slice(), &receiver.serialize(), &sender.serialize()].concat();
    let resources = vec![
        Resource { kind: "transfer", key: transfer.as_bytes().to_vec() },
        Resource { kind: PAYMENT, key: payment },
    ];
    let operation = assemble(
        &context,
        Draft {
            kind: Kind::Htlc,
            requester: sender,
            parts: work.parts,
            jobs: work.jobs,
            sealed: Some(sealed),
            resources,
            terms: Terms::of("", request.expiry_time.as_ref(), &sender, &[])?,
        },
    )?;
    Ok(Operation { condition: Some(condition), ..operation })
}

/// Kind of the resource that is free again after a return: one live HTLC per payment hash, receiver and sender, so
/// that nobody can occupy a hash for somebody else.
pub const PAYMENT: &str = "payment";

/// What no signature covers, checked for one meaning (X14): one receiver, one sender, one transfer, no invoice.
fn condition(
    wire: &wire::Htlc,
    swap: &spark::InitiatePreimageSwapRequest,
    request: &spark::StartTransferRequest,
) -> Result<Condition, OperationError> {
    if swap.reason() != Reason::Send {
        return Err(OperationError::Unsupported("a preimage swap that receives"));
    }
    let invoice = swap.invoice_amount.as_ref().and_then(|a| a.invoice_amount_proof.as_ref());
    if swap.fee_sats != 0 || invoice.is_some_and(|proof| !proof.bolt11_invoice.is_empty()) {
        return Err(OperationError::Unsupported("a Lightning payment"));
    }
    if !request.leaves_to_send.is_empty() || !request.spark_invoice.is_empty() {
        return Err(OperationError::Unsupported("a transfer without a package, or for an invoice"));
    }
    if swap.receiver_identity_public_key != request.receiver_identity_public_key {
        return Err(OperationError::Malformed("receiver_identity_public_key"));
    }
    if let Some(plain) = &swap.transfer {
        let same = plain.transfer_id == request.transfer_id
            && plain.owner_identity_public_key == request.owner_identity_public_key
            && plain.receiver_identity_public_key == request.receiver_identity_public_key;
        if !same {
            return Err(OperationError::Malformed("transfer"));
        }
    }
    let payment_hash =
        swap.payment_hash.as_slice().try_into().map_err(|_| OperationError::Malformed("payment_hash"))?;
    let expires = request.expiry_time.as_ref().is_some_and(|t| t.seconds > 0);
    if !expires || wire.expiry_height == 0 {
        return Err(OperationError::Malformed("expiry_time"));
    }
    Ok(Condition::preimage(payment_hash, wire.expiry_height))
}
