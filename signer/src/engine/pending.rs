//! What is pending between the decisions of a conditional operation (D8), as a record that a repaired signer can take
//! over: enough to give a decider's word and to hear of the end, without leaves and secrets.

use bitcoin::{Txid, hashes::Hash as _};
use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    ids::{OperationId, OperatorIndex},
    settlement::{Completion, Condition, Pending},
};

use super::EngineError;
use crate::vault::Txn;

/// Of those that no end is known of.
pub(super) const PENDING: &[u8] = b"pending/";
/// Of those whose end this signer heard of and could not make true: it has none of the leaves.
const ENDED: &[u8] = b"ended/";

fn key(prefix: &[u8], id: &OperationId, attempt: u32) -> Vec<u8> {
    [prefix, id.as_bytes(), &attempt.to_be_bytes()].concat()
}

fn encode(pending: &Pending) -> Vec<u8> {
    let (payment_hash, exit_txid, exit_depth) = match &pending.condition.completes {
        Completion::Preimage { payment_hash } => (payment_hash.to_vec(), Vec::new(), 0),
        Completion::Exit { txid, depth } => (Vec::new(), txid.to_byte_array().to_vec(), *depth),
    };
    let record = wire::PendingSettlement {
        digest: pending.digest.to_vec(),
        payment_hash,
        exit_txid,
        exit_depth,
        expiry_height: pending.condition.expiry_height,
        deciders: pending.deciders.iter().map(|index| index.get().into()).collect(),
    };
    record.encode_to_vec()
}

fn decode(id: &OperationId, attempt: u32, bytes: &[u8]) -> Result<Pending, EngineError> {
    let malformed = |_| EngineError::Malformed("stored condition");
    let record = wire::PendingSettlement::decode(bytes)?;
    let completes = if record.exit_txid.is_empty() {
        Completion::Preimage { payment_hash: record.payment_hash.as_slice().try_into().map_err(malformed)? }
    } else {
        let txid = record.exit_txid.as_slice().try_into().map_err(malformed)?;
        Completion::Exit { txid: Txid::from_byte_array(txid), depth: record.exit_depth }
    };
    let deciders = record.deciders.iter().map(|index| OperatorIndex::from_wire(*index));
    Ok(Pending {
        operation: *id,
        attempt,
        digest: record.digest.as_slice().try_into().map_err(malformed)?,
        condition: Condition { completes, expiry_height: record.expiry_height },
        deciders: deciders.collect::<Result<_, _>>()?,
    })
}

pub(super) fn put(txn: &mut Txn<'_>, pending: &Pending) {
    txn.put_record(&key(PENDING, &pending.operation, pending.attempt), encode(pending));
}

pub(super) fn get(txn: &Txn<'_>, id: &OperationId, attempt: u32) -> Result<Option<Pending>, EngineError> {
    let bytes = txn.record(&key(PENDING, id, attempt))?;
    bytes.map(|bytes| decode(id, attempt, &bytes)).transpose()
}

/// It has ended, and the ledger says how.
pub(super) fn end(txn: &mut Txn<'_>, id: &OperationId, attempt: u32) {
    txn.delete_record(&key(PENDING, id, attempt));
}

/// It has ended, and nothing but this record says how.
pub(super) fn end_unknown(txn: &mut Txn<'_>, pending: &Pending, committed: bool) {
    end(txn, &pending.operation, pending.attempt);
    let record = [vec![u8::from(committed)], encode(pending)].concat();
    txn.put_record(&key(ENDED, &pending.operation, pending.attempt), record);
}

/// What ended without this signer's leaves, and whether it completed.
pub(super) fn ended(
    txn: &Txn<'_>,
    id: &OperationId,
    attempt: u32,
) -> Result<Option<(Pending, bool)>, EngineError> {
    let Some(bytes) = txn.record(&key(ENDED, id, attempt))? else { return Ok(None) };
    let (committed, rest) = bytes.split_first().ok_or(EngineError::Malformed("stored end"))?;
    Ok(Some((decode(id, attempt, rest)?, *committed == 1)))
}
