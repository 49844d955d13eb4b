//! The journal that Postgres projects (D10): one entry per durable change of an operation or keyshare.

use prost::Message as _;
use spark_proto::signer::v1 as wire;

use spark_rules::ids::OperationId;

use super::{EngineError, ledger};
use crate::vault::Txn;

const PREFIX: &[u8] = b"journal/";
const HEAD: &[u8] = b"journal-head";
/// Most entries of one reply.
const MOST: u32 = 1000;
/// A page ends with the entry that reaches this many bytes.
const MOST_BYTES: usize = 4 << 20;

pub(super) fn head(txn: &Txn<'_>) -> Result<u64, EngineError> {
    match txn.record(HEAD)? {
        Some(bytes) => Ok(u64::from_be_bytes(
            bytes.as_slice().try_into().map_err(|_| EngineError::Malformed("journal head"))?,
        )),
        None => Ok(0),
    }
}

pub(super) fn append(txn: &mut Txn<'_>, mut entry: wire::JournalEntry) -> Result<u64, EngineError> {
    let sequence = head(txn)?.saturating_add(1);
    entry.sequence = sequence;
    txn.put_record(&[PREFIX, &sequence.to_be_bytes()].concat(), entry.encode_to_vec());
    txn.put_record(HEAD, sequence.to_be_bytes().to_vec());
    Ok(sequence)
}

pub(super) fn read(
    txn: &Txn<'_>,
    request: &wire::ReadJournalRequest,
) -> Result<wire::ReadJournalResponse, EngineError> {
    let head = head(txn)?;
    // A prepared entry carries the canonical request only while it is undecided: the ciphertexts in it die with the
    // decision (forward secrecy of packages).
    let limit = u64::from(request.limit.clamp(1, MOST));
    let last = head.min(request.after.saturating_add(limit));
    let mut entries = Vec::new();
    let mut bytes_so_far = 0usize;
    for sequence in request.after.saturating_add(1)..=last {
        if let Some(bytes) = txn.record(&[PREFIX, &sequence.to_be_bytes()].concat())? {
            let mut entry = wire::JournalEntry::decode(bytes.as_slice())?;
            if entry.kind == "prepared" {
                let id = OperationId::parse(&entry.operation_id)?;
                entry.operation =
                    ledger::attempt(txn, &id, entry.attempt)?.map(|a| a.request).unwrap_or_default();
            }
            bytes_so_far = bytes_so_far.saturating_add(entry.encoded_len());
            entries.push(entry);
            // A page that holds anything goes through any message limit.
            if bytes_so_far >= MOST_BYTES {
                break;
            }
        }
    }
    Ok(wire::ReadJournalResponse { entries, head })
}
