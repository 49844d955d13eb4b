//! Cooperative exit: a send that a transaction on chain completes (D8). Until then the leaves are locked and the tweak
//! is staged.
//!
//! The receiver, a service provider, pays the sender by the exit transaction. Every refund of the leaves has an output
//! of the connector transaction as its second input, and that spends the exit transaction: without it, neither the
//! refunds nor the transfer come to anything. What the exit transaction pays to whom nobody here knows: the sender's
//! wallet looks at it before it signs.

use std::collections::BTreeSet;

use bitcoin::{OutPoint, consensus::encode, hashes::Hash as _};
use spark_proto::{peer::v1 as wire, spark};

use super::{
    Context, Draft, Operation, OperationError, Part, Records, Resource, assemble,
    jobs::{Work, group},
    send::sendable,
    terms::Terms,
    transfer_id,
};
use crate::{
    ids::{LeafId, OperationId},
    package, point,
    settlement::{Completion, Condition},
    tx::{Connectors, Purpose, Rule, TemplateError},
    vote::Kind,
};

/// Kind of the resource by which one output of an exit transaction gives connectors to one exit only: it stays used
/// after a return.
pub const CONNECTOR: &str = "connector";

/// Most confirmations that an exit may wait for.
pub const MAX_DEPTH: u32 = 100;

/// The part of the request that is signed and sealed.
pub(super) fn transfer(wire: &wire::CoopExit) -> Result<&spark::StartTransferRequest, OperationError> {
    let request = wire.request.as_ref().ok_or(OperationError::Malformed("request"))?;
    request.transfer.as_ref().ok_or(OperationError::Malformed("transfer"))
}

/// Ids of transfers are unique per sender (D7). The transfer itself is a resource that plain sends claim, too.
pub(super) fn operation_id(wire: &wire::CoopExit) -> Result<OperationId, OperationError> {
    let request = transfer(wire)?;
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let transfer = transfer_id(&request.transfer_id)?;
    Ok(OperationId::derive("spark/coop-exit", &[&sender.serialize(), transfer.as_bytes()]))
}

pub(super) fn derive(
    context: Context<'_>,
    wire: &wire::CoopExit,
    records: &impl Records,
) -> Result<Operation, OperationError> {
    context.expect_id(operation_id(wire)?)?;
    let exit = wire.request.as_ref().ok_or(OperationError::Malformed("request"))?;
    let request = transfer(wire)?;
    let connectors = Connectors::parse(&exit.connector_tx)?;
    let condition = condition(wire, exit, request, &connectors)?;
    let transfer = transfer_id(&request.transfer_id)?;
    let sender = point::parse("owner_identity_public_key", &request.owner_identity_public_key)?;
    let receiver = point::parse("receiver_identity_public_key", &request.receiver_identity_public_key)?;
    let package = request.transfer_package.as_ref().ok_or(OperationError::Malformed("transfer_package"))?;
    let sealed = context.sealed(transfer, &package.key_tweak_package)?;
    package::verify_transfer_package(&transfer.uuid(), package, &sender)?;
    let mut work = Work::default();
    let mut used: BTreeSet<OutPoint> = BTreeSet::new();
    for (leaf, jobs) in group([
        (Purpose::ConnectorRefund, &package.leaves_to_send),
        (Purpose::ConnectorDirectRefund, &package.direct_leaves_to_send),
        (Purpose::ConnectorDirectFromCpfpRefund, &package.direct_from_cpfp_leaves_to_send),
    ])? {
        let record = sendable(records, &sender, leaf, &jobs)?;
        let (plan, connector) = record.check_exit(jobs.raws()?, &connectors, &receiver)?;
        // Of two refunds with one connector only one could ever be valid.
        if !used.insert(connector) {
            return Err(TemplateError::new(Rule::Connector, "a connector of its own", connector).into());
        }
        jobs.sign(context.federation, &record, &plan, record.owner_key, &mut work.jobs)?;
        work.parts.push(Part { record, plan, receiver });
    }
    let resources = vec![
        Resource { kind: "transfer", key: transfer.as_bytes().to_vec() },
        Resource { kind: CONNECTOR, key: encode::serialize(&connectors.exit()) },
    ];
    let operation = assemble(
        &context,
        Draft {
            kind: Kind::CoopExit,
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

/// What no signature covers, checked for one meaning: the exit transaction is the one that the connectors stand on.
fn condition(
    wire: &wire::CoopExit,
    exit: &spark::CooperativeExitRequest,
    request: &spark::StartTransferRequest,
    connectors: &Connectors,
) -> Result<Condition, OperationError> {
    if !request.leaves_to_send.is_empty() || !request.spark_invoice.is_empty() {
        return Err(OperationError::Unsupported("a transfer without a package, or for an invoice"));
    }
    LeafId::parse(&exit.exit_id).map_err(|_| OperationError::Malformed("exit_id"))?;
    let txid = connectors.exit().txid;
    let internal = txid.to_byte_array();
    // Some wallets send it as it is shown, some as it is hashed; it can only be this one.
    if exit.exit_txid != internal && !exit.exit_txid.iter().eq(internal.iter().rev()) {
        return Err(OperationError::Malformed("exit_txid"));
    }
    let expires = request.expiry_time.as_ref().is_some_and(|t| t.seconds > 0);
    if !expires || wire.expiry_height == 0 {
        return Err(OperationError::Malformed("expiry_time"));
    }
    if wire.depth == 0 || wire.depth > MAX_DEPTH {
        return Err(OperationError::Malformed("depth"));
    }
    let completes = Completion::Exit { txid, depth: wire.depth };
    Ok(Condition { completes, expiry_height: wire.expiry_height })
}
