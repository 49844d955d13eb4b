//! From what the rules say an operation led to, to rows.

use bitcoin::{Transaction, consensus::encode, hashes::Hash as _};
use prost::Message as _;
use spark_proto::peer::v1 as wire;
use spark_rules::{
    ids::{KeyshareId, LeafId, OperatorIndex},
    leaf::LeafRecord,
    operation::{Keys, Operation, OperationError, Outcome, transfer_id},
    settlement::Pending,
    vote::Kind,
};

use uuid::Uuid;

use crate::db::{
    DbError,
    chain::WatchedRow,
    htlc::{HtlcRow, HtlcState},
    leaf::{LeafWrite, SignedTxRow},
    operation::index_column,
    receipt::ReceiptRow,
    signed,
    transfer::{self, TransferLeafRow, TransferRow},
    work::{AppliedWrite, EventWrite},
};

/// Wire code of a plain transfer.
pub(super) const TYPE_TRANSFER: i16 = 2;
/// Wire code of a transfer that a preimage completes.
const TYPE_PREIMAGE_SWAP: i16 = 0;
/// Wire code of a transfer that an exit transaction completes.
const TYPE_COOPERATIVE_EXIT: i16 = 1;

pub(super) fn leaf_write(record: &LeafRecord) -> Result<LeafWrite, DbError> {
    Ok(LeafWrite {
        leaf_id: record.leaf_id.uuid(),
        tree_id: record.tree_id,
        parent_id: record.parent_id.map(|id| id.uuid()),
        version: signed("leaf.version", record.version)?,
        owner_identity: record.owner_identity.serialize().to_vec(),
        status: record.status.name().to_owned(),
        value: signed("leaf.value", record.value)?,
        node_txid: record.node_tx.compute_txid().to_byte_array().to_vec(),
        record: record.encode(),
    })
}

/// What spends a leaf's outputs must be noticed: the output under its node tx, and the node tx's own.
pub(super) fn watched(record: &LeafRecord) -> Vec<WatchedRow> {
    let row = |outpoint: bitcoin::OutPoint, kind: &str| WatchedRow {
        txid: outpoint.txid.to_byte_array().to_vec(),
        vout: outpoint.vout.into(),
        kind: kind.to_owned(),
        leaf_id: Some(record.leaf_id.uuid()),
    };
    let below = if record.parent_id.is_none() { "BASE" } else { "NODE" };
    let node = bitcoin::OutPoint { txid: record.node_tx.compute_txid(), vout: 0 };
    record.node_tx.input.iter().map(|i| row(i.previous_output, below)).chain([row(node, "REFUND")]).collect()
}

pub(super) fn optional(tx: Option<&Transaction>) -> Vec<u8> {
    tx.map(encode::serialize).unwrap_or_default()
}

/// Rows of an applied operation.
pub(super) fn rows(
    operation: &Operation,
    request: &wire::operation::Request,
    keys: &Keys,
    outcome: &Outcome,
) -> Result<AppliedWrite, DbError> {
    let mut write = AppliedWrite::default();
    // A conditional operation changes no leaf before its second decision.
    if operation.condition.is_none() {
        for record in outcome.nodes.iter().chain(&outcome.leaves) {
            write.leaves.push(leaf_write(record)?);
            write.watched.extend(watched(record));
        }
    }
    for (job, tx) in outcome.signed.iter().enumerate() {
        write.signed.push(SignedTxRow {
            job: i32::try_from(job).map_err(|_| DbError::Corrupt("job"))?,
            leaf_id: tx.leaf.uuid(),
            leaf_version: signed("leaf.version", tx.version)?,
            purpose: tx.purpose.tag().to_owned(),
            txid: tx.tx.compute_txid().to_byte_array().to_vec(),
            raw: encode::serialize(&tx.tx),
        });
    }
    match (operation.kind, request) {
        (Kind::Deposit, _) => {
            write.used_addresses = outcome.leaves.iter().map(|l| l.leaf_id.uuid()).collect()
        }
        (Kind::Send, _) => write.transfer = Some(transfer_rows(operation, keys, outcome)?),
        (Kind::Htlc | Kind::CoopExit, _) => {
            let (transfer, leaves) = transfer_rows(operation, keys, outcome)?;
            write.htlc = Some(htlc_row(operation, operation.digest(keys), &transfer)?);
            write.transfer = Some((transfer, leaves));
        }
        (Kind::Claim, wire::operation::Request::Claim(claim)) => {
            let claimed = transfer_id(&claim.transfer_id).ok();
            let receiver = operation.requester.serialize().to_vec();
            write.completed.extend(claimed.map(|id| (id.uuid(), receiver)));
        }
        _ => {}
    }
    Ok(write)
}

fn transfer_rows(
    operation: &Operation,
    keys: &Keys,
    outcome: &Outcome,
) -> Result<(TransferRow, Vec<TransferLeafRow>), DbError> {
    let transfer = outcome.transfer.as_ref().ok_or(DbError::Missing("transfer"))?;
    let transfer_id = Uuid::from_bytes(transfer.id);
    let mut total = 0i64;
    let mut leaves = Vec::with_capacity(outcome.leaves.len());
    for (position, (record, part)) in outcome.leaves.iter().zip(&operation.parts).enumerate() {
        let key = keys.get(&record.leaf_id).ok_or(DbError::Missing("tweaked key"))?;
        let value = signed("leaf.value", record.value)?;
        total = total.saturating_add(value);
        leaves.push(TransferLeafRow {
            transfer_id,
            leaf_id: record.leaf_id.uuid(),
            receiver: part.receiver.serialize().to_vec(),
            position: i32::try_from(position).map_err(|_| DbError::Corrupt("position"))?,
            leaf_version: signed("leaf.version", record.version)?,
            value,
            secret_cipher: key.secret_cipher.clone(),
            signature: key.signature.clone(),
            intermediate_refund_tx: encode::serialize(&record.refunds.cpfp),
            intermediate_direct_refund_tx: optional(record.refunds.direct.as_ref()),
            intermediate_direct_from_cpfp_refund_tx: encode::serialize(&record.refunds.direct_from_cpfp),
            record: record.encode(),
        });
    }
    let first = transfer.receivers.first().ok_or(DbError::Missing("receiver"))?;
    let pending = operation.condition.is_some();
    let row = TransferRow {
        transfer_id,
        sender: operation.requester.serialize().to_vec(),
        receiver: first.receiver.serialize().to_vec(),
        total,
        status: if pending { transfer::SENDER_KEY_TWEAK_PENDING } else { transfer::SENDER_KEY_TWEAKED },
        kind: match operation.kind {
            Kind::Htlc => TYPE_PREIMAGE_SWAP,
            Kind::CoopExit => TYPE_COOPERATIVE_EXIT,
            _ => TYPE_TRANSFER,
        },
        expiry: expiry_column(transfer.expiry_seconds),
        invoice: transfer.invoice.clone(),
        created_micros: 0,
        updated_micros: 0,
        completed_micros: None,
    };
    Ok((row, leaves))
}

fn htlc_row(operation: &Operation, digest: [u8; 32], transfer: &TransferRow) -> Result<HtlcRow, DbError> {
    Ok(HtlcRow {
        pending: Pending::of(operation, digest).map_err(|_| DbError::Missing("condition"))?,
        transfer_id: transfer.transfer_id,
        sender: transfer.sender.clone(),
        receiver: transfer.receiver.clone(),
        state: HtlcState::Pending,
        preimage: None,
        proof: None,
        announced: false,
        created_micros: 0,
    })
}

/// Microseconds; none where there is no limit.
pub(super) fn expiry_column(seconds: i64) -> Option<i64> {
    Some(seconds.saturating_mul(1_000_000)).filter(|micros| *micros > 0)
}

/// Whom the outcome of a send or claim is announced to: these receivers and the sender.
pub(super) fn events(transfer: &TransferRow, receivers: Vec<Vec<u8>>) -> Vec<EventWrite> {
    let id = transfer.transfer_id.as_bytes().to_vec();
    let to_sender = (transfer.sender.clone(), "SENDER_TRANSFER", id.clone());
    receivers.into_iter().map(|receiver| (receiver, "TRANSFER", id.clone())).chain([to_sender]).collect()
}

/// Receipts of one signer as rows. Entries with no legal ids are refused.
pub(super) fn receipts(
    signer: OperatorIndex,
    receipts: &[wire::Receipt],
) -> Result<Vec<ReceiptRow>, OperationError> {
    receipts
        .iter()
        .map(|r| {
            let malformed = |_| OperationError::Malformed("receipt");
            let keyshare = KeyshareId::parse(&r.keyshare_id).map_err(malformed)?;
            let too_large = |_| OperationError::Malformed("receipt");
            Ok(ReceiptRow {
                signer: index_column(signer),
                incarnation: r.incarnation.clone(),
                sequence: i64::try_from(r.sequence).map_err(too_large)?,
                log_index: i64::try_from(r.log_index).map_err(too_large)?,
                leaf_id: LeafId::parse(&r.leaf_id).ok().map(|id| id.uuid()),
                keyshare_id: keyshare.uuid(),
                op_id: spark_rules::ids::OperationId::parse(&r.operation_id).ok().map(|id| id.uuid()),
                state: if r.state == "confirmed" { "confirmed" } else { "pending" }.to_owned(),
                body: r.encode_to_vec(),
            })
        })
        .collect()
}
