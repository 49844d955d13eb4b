//! The append-only log of receipts (S7): an RFC 6962 tree in the C2SP tlog layout, its head signed by the
//! federation key.

use prost::Message as _;
use signed_note::{Note, Signature};
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    checkpoint::{self, Extension, SignedAt},
    ids::{LeafId, OperationId},
    receipt,
};
use tlog_tiles::{Checkpoint, Error as LogError, Hash, HashReader, Tile, record_hash};

use super::{EngineError, Shared, journal};
use crate::vault::{DeviceId, DeviceState, RootId, Txn};

const SIZE: &[u8] = b"log-size";
/// Levels of the tree in one tile (C2SP tlog-tiles).
const TILE_HEIGHT: u8 = 8;
/// Most entries of one answer.
pub(super) const MAX_ENTRIES: u64 = 4096;
/// An answer ends with the entry that reaches this many bytes: what carries it on is bounded in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Most receipts of a leaf in one answer; each comes with a proof.
pub(super) const MAX_RECEIPTS: usize = 256;
/// Every root of an earlier epoch than this is destroyed, independently confirmed.
const DESTROYED_BEFORE: &[u8] = b"destroyed-before";

/// Epoch before which every root is confirmed to be destroyed.
pub(super) fn destroyed_before(txn: &Txn<'_>) -> Result<u64, EngineError> {
    match txn.record(DESTROYED_BEFORE)? {
        Some(bytes) => Ok(u64::from_be_bytes(
            bytes.as_slice().try_into().map_err(|_| EngineError::Malformed("destroyed-before"))?,
        )),
        None => Ok(0),
    }
}

pub(super) fn size(txn: &Txn<'_>) -> Result<u64, EngineError> {
    match txn.record(SIZE)? {
        Some(bytes) => Ok(u64::from_be_bytes(
            bytes.as_slice().try_into().map_err(|_| EngineError::Malformed("log size"))?,
        )),
        None => Ok(0),
    }
}

fn hash_key(index: u64) -> Vec<u8> {
    [b"log-hash/".as_slice(), &index.to_be_bytes()].concat()
}

fn receipt_key(index: u64) -> Vec<u8> {
    [b"receipt/".as_slice(), &index.to_be_bytes()].concat()
}

struct Hashes<'a, 'v>(&'a Txn<'v>);

impl HashReader for Hashes<'_, '_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, LogError> {
        indexes
            .iter()
            .map(|index| {
                let bytes =
                    self.0.record(&hash_key(*index)).ok().flatten().ok_or(LogError::IndexesNotInTree)?;
                Ok(Hash(bytes.as_slice().try_into().map_err(|_| LogError::MalformedHash)?))
            })
            .collect()
    }
}

/// Receipts of an applied attempt, by index list.
pub(super) fn index_operation(
    txn: &mut Txn<'_>,
    operation: &OperationId,
    attempt: u32,
    receipts: &[peer::Receipt],
) {
    let list: Vec<u8> = receipts.iter().flat_map(|r| r.log_index.to_be_bytes()).collect();
    txn.put_record(&operation_key(operation, attempt), list);
}

fn operation_key(operation: &OperationId, attempt: u32) -> Vec<u8> {
    [b"receipts-op/".as_slice(), operation.as_bytes(), &attempt.to_be_bytes()].concat()
}

pub(super) fn of_operation(
    txn: &Txn<'_>,
    operation: &OperationId,
    attempt: u32,
) -> Result<Vec<peer::Receipt>, EngineError> {
    let list = txn.record(&operation_key(operation, attempt))?.unwrap_or_default();
    read(txn, list.chunks_exact(8))
}

fn read<'a>(
    txn: &Txn<'_>,
    indexes: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<peer::Receipt>, EngineError> {
    let destroyed_before = destroyed_before(txn)?;
    indexes.map(|index| entry(txn, place(index)?, destroyed_before)).collect()
}

fn place(bytes: &[u8]) -> Result<u64, EngineError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| EngineError::Malformed("receipt index"))
}

/// One entry, under the knowledge of what is destroyed.
fn entry(txn: &Txn<'_>, index: u64, destroyed_before: u64) -> Result<peer::Receipt, EngineError> {
    let bytes = txn.record(&receipt_key(index))?.ok_or(EngineError::Unknown("receipt"))?;
    let mut receipt = peer::Receipt::decode(bytes.as_slice())?;
    if receipt::is_confirmed(&receipt, destroyed_before) {
        receipt.state = "confirmed".to_owned();
    }
    Ok(receipt)
}

/// Members, and the epoch before which every root is confirmed to be gone from each; the greatest number when it
/// retires and its last root is gone.
pub(super) fn members(txn: &Txn<'_>) -> Result<Vec<(DeviceId, u64)>, EngineError> {
    let confirmed = |(id, joined): (DeviceId, u64)| match txn.record(&device_key(id))? {
        None => Ok((id, joined)),
        Some(bytes) => {
            let bytes = bytes.as_slice().try_into();
            let bytes = bytes.map_err(|_| EngineError::Malformed("destroyed-before of a device"))?;
            let epoch = u64::from_be_bytes(bytes);
            // It was empty once, and has come back.
            let back = epoch == u64::MAX && !has_state(txn, id, DeviceState::Retiring);
            Ok((id, if back { joined } else { epoch.max(joined) }))
        }
    };
    txn.committed().members()?.into_iter().map(confirmed).collect()
}

fn has_state(txn: &Txn<'_>, device: DeviceId, state: DeviceState) -> bool {
    txn.committed().devices().iter().any(|status| status.id == device && status.state == state)
}

fn device_key(device: DeviceId) -> Vec<u8> {
    [b"device-destroyed-before/".as_slice(), &[device.0]].concat()
}

/// Drops what was confirmed of a device: another one may get its number.
pub(super) fn forget_device(txn: &mut Txn<'_>, device: DeviceId) {
    txn.delete_record(&device_key(device));
}

impl Shared {
    /// What somebody else saw on a device: every root of the tree that it shows. All roots before the oldest of them
    /// are destroyed there, since roots are made in order; one is destroyed when it is on no device. Returns the epoch
    /// before which all are.
    pub(super) fn confirm(
        &mut self,
        txn: &mut Txn<'_>,
        device: DeviceId,
        fingerprint: &[u8; 32],
        seen: &[RootId],
    ) -> Result<u64, EngineError> {
        if txn.committed().fingerprint_of(device).as_ref() != Some(fingerprint) {
            self.alarm("confirmer_differs");
            return Err(EngineError::Malformed("device that the confirmer saw"));
        }
        let tree = txn.committed().root().tree;
        let epoch = match seen.iter().map(|root| root.epoch).min() {
            // It looked at a moment at which the signer stood at this epoch or a later one.
            Some(oldest) if oldest <= txn.committed().epoch() && seen.iter().all(|r| r.tree == tree) => {
                oldest
            }
            None if has_state(txn, device, DeviceState::Retiring) => u64::MAX,
            // Cleared, and about to join: nothing new is known.
            None if !has_state(txn, device, DeviceState::Serving) => 0,
            _ => {
                self.alarm("confirmer_differs");
                return Err(EngineError::Malformed("roots that the confirmer saw"));
            }
        };
        // It began before the vault was sealed and opened again: it is asked once more when there is something to write.
        if !txn.committed().is_witnessed() {
            return Err(EngineError::Locked);
        }
        let known = members(txn)?.into_iter().find(|(id, _)| *id == device);
        let (_, known) = known.ok_or(EngineError::Unknown("device"))?;
        if epoch > known {
            txn.put_record(&device_key(device), epoch.to_be_bytes().to_vec());
        }
        // A member that has not been looked at yet holds everything back.
        let all = members(txn)?.into_iter().map(|(_, epoch)| epoch).min().unwrap_or(0);
        let all = all.min(txn.committed().epoch());
        let before = destroyed_before(txn)?;
        if all > before {
            txn.put_record(DESTROYED_BEFORE, all.to_be_bytes().to_vec());
        }
        Ok(all.max(before))
    }

    /// Completes a receipt and appends it. It is *pending* until the destruction is confirmed independently: the signer
    /// itself never says *destroyed*.
    pub(super) fn append_receipt(
        &self,
        txn: &mut Txn<'_>,
        mut receipt: peer::Receipt,
    ) -> Result<peer::Receipt, EngineError> {
        let index = size(txn)?;
        receipt.incarnation = self.incarnation.as_bytes().to_vec();
        receipt.sequence = journal::head(txn)?;
        receipt.root_epoch_before = txn.committed().epoch();
        receipt.root_epoch_after = txn.epoch_after();
        receipt.root_id_before = txn.committed().root().to_bytes().to_vec();
        receipt.delete_claim.clone_from(&self.delete_claim);
        receipt.unix_seconds = self.now;
        receipt.state = "pending".to_owned();
        receipt.salt = Self::random::<32>().to_vec();
        receipt.log_index = index;
        let record = record_hash(&receipt::leaf(&receipt));
        let hashes = tlog_tiles::stored_hashes_for_record_hash(index, record, &Hashes(txn))
            .map_err(|_| EngineError::Malformed("log"))?;
        let first = tlog_tiles::stored_hash_index(0, index);
        for (offset, hash) in (0u64..).zip(hashes) {
            txn.put_record(&hash_key(first.saturating_add(offset)), hash.0.to_vec());
        }
        txn.put_record(&receipt_key(index), receipt.encode_to_vec());
        if receipt.phase != receipt::UNUSED {
            let leaf = LeafId::parse(&receipt.leaf_id)?;
            let by_leaf = [b"receipts-leaf/".as_slice(), leaf.as_bytes(), &index.to_be_bytes()].concat();
            txn.put_record(&by_leaf, Vec::new());
        }
        txn.put_record(SIZE, index.saturating_add(1).to_be_bytes().to_vec());
        Ok(receipt)
    }

    /// The present head of the log, as a signed note.
    pub(super) fn checkpoint(&self, txn: &Txn<'_>) -> Result<wire::GetCheckpointResponse, EngineError> {
        Ok(wire::GetCheckpointResponse { checkpoint: self.head(txn, size(txn)?)? })
    }

    /// The head of the log as it was with `size` entries, signed now.
    fn head(&self, txn: &Txn<'_>, at: u64) -> Result<String, EngineError> {
        let malformed = || EngineError::Malformed("checkpoint");
        let root = if at == 0 {
            tlog_tiles::EMPTY_HASH
        } else {
            tlog_tiles::tree_hash(at, &Hashes(txn)).map_err(|_| malformed())?
        };
        let position = self.committed_position(txn);
        let extension = Extension {
            position: SignedAt { root_epoch: position.root_epoch, sequence: position.sequence },
            destroyed_before: destroyed_before(txn)?,
            log_size: size(txn)?,
        };
        let origin = checkpoint::origin(&self.federation, self.me);
        let text =
            Checkpoint::new(&origin, at, root, &extension.to_lines()).map_err(|_| malformed())?.to_bytes();
        let key = self.token.federation_public_key();
        let id = key.note_id(&origin);
        let signature = key.note_blob(&self.token.sign_federation(&text)?).ok_or_else(malformed)?;
        let signature = Signature::new(origin, id, signature).map_err(|_| malformed())?;
        let note = Note::new(&text, &[signature]).map_err(|_| malformed())?;
        String::from_utf8(note.to_bytes()).map_err(|_| malformed())
    }

    /// Receipts of a leaf with inclusion proofs into the present head, or into the one that is asked for. A leaf that is
    /// sent to and fro has as many as its owners like, so an answer is a page.
    pub(super) fn receipts(
        &self,
        txn: &Txn<'_>,
        request: &wire::GetReceiptsRequest,
    ) -> Result<wire::GetReceiptsResponse, EngineError> {
        let leaf = LeafId::parse(&request.leaf_id)?;
        let size = match request.tree_size {
            0 => size(txn)?,
            asked => within(txn, asked)?,
        };
        let prefix = [b"receipts-leaf/".as_slice(), leaf.as_bytes()].concat();
        let after = request.from.checked_sub(1).map(|last| [&prefix, last.to_be_bytes().as_slice()].concat());
        // One more shows whether there is another page.
        let keys = txn.scan_records_after(&prefix, after.as_deref(), MAX_RECEIPTS.saturating_add(1))?;
        let destroyed_before = destroyed_before(txn)?;
        let mut answer = wire::GetReceiptsResponse::default();
        let mut bytes = 0usize;
        for (key, _) in &keys {
            let index = place(key.get(prefix.len()..).unwrap_or_default())?;
            if index >= size {
                break;
            }
            if answer.receipts.len() >= MAX_RECEIPTS || bytes >= MAX_BYTES {
                answer.next = index;
                break;
            }
            let receipt = entry(txn, index, destroyed_before)?;
            let proof = tlog_tiles::prove_record(size, index, &Hashes(txn)).map_err(broken)?;
            let proof = wire::InclusionProof {
                index,
                tree_size: size,
                hashes: proof.iter().map(|h| h.0.to_vec()).collect(),
            };
            bytes = bytes.saturating_add(receipt.encoded_len()).saturating_add(proof.encoded_len());
            answer.receipts.push(receipt);
            answer.proofs.push(proof);
        }
        if request.tree_size == 0 {
            answer.checkpoint = self.head(txn, size)?;
        }
        Ok(answer)
    }

    /// Entries in order, and the head of the log as it was after them.
    pub(super) fn read_log(
        &self,
        txn: &Txn<'_>,
        request: &wire::ReadLogRequest,
    ) -> Result<wire::ReadLogResponse, EngineError> {
        let until = within(txn, request.until)?.min(request.from.saturating_add(MAX_ENTRIES));
        let destroyed_before = destroyed_before(txn)?;
        let (mut entries, mut bytes) = (Vec::new(), 0usize);
        for index in request.from..until {
            if bytes >= MAX_BYTES {
                break;
            }
            let entry = entry(txn, index, destroyed_before)?;
            bytes = bytes.saturating_add(entry.encoded_len());
            entries.push(entry);
        }
        let until = request.from.saturating_add(entries.len() as u64).min(until);
        Ok(wire::ReadLogResponse { entries, checkpoint: self.head(txn, until)? })
    }
}

fn broken(_: LogError) -> EngineError {
    EngineError::Malformed("log")
}

/// A size that the log has, or had.
fn within(txn: &Txn<'_>, asked: u64) -> Result<u64, EngineError> {
    if asked > size(txn)? { Err(EngineError::Unknown("log of this size")) } else { Ok(asked) }
}

/// That the log of one size begins with that of another.
pub(super) fn prove_consistency(
    txn: &Txn<'_>,
    request: &wire::ProveConsistencyRequest,
) -> Result<wire::ProveConsistencyResponse, EngineError> {
    let new = within(txn, request.new_size)?;
    if request.old_size == 0 || request.old_size > new {
        return Err(EngineError::Malformed("old_size"));
    }
    let proof = tlog_tiles::prove_tree(new, request.old_size, &Hashes(txn)).map_err(broken)?;
    Ok(wire::ProveConsistencyResponse { hashes: proof.iter().map(|hash| hash.0.to_vec()).collect() })
}

/// One tile, full or partial, of hashes or of records.
pub(super) fn read_tile(
    txn: &Txn<'_>,
    request: &wire::ReadTileRequest,
) -> Result<wire::ReadTileResponse, EngineError> {
    let malformed = || EngineError::Malformed("tile");
    let level = u8::try_from(request.level).ok().filter(|level| *level < 8).ok_or_else(malformed)?;
    if !(1..=1 << TILE_HEIGHT).contains(&request.width) {
        return Err(malformed());
    }
    let level = if request.records { 0 } else { level };
    let first = request.index.checked_mul(1 << TILE_HEIGHT).ok_or_else(malformed)?;
    let last = first.checked_add(request.width.into()).ok_or_else(malformed)?;
    // What stands at a level exists once the subtree below it is complete.
    let records =
        last.checked_mul(1u64.checked_shl(u32::from(level) * 8).unwrap_or(0)).ok_or_else(malformed)?;
    within(txn, records)?;
    if !request.records {
        let tile = Tile::new(TILE_HEIGHT, level, request.index, request.width, false);
        return Ok(wire::ReadTileResponse { data: tile.read_data(&Hashes(txn)).map_err(broken)? });
    }
    let mut data = Vec::new();
    for index in first..last {
        let bytes = txn.record(&receipt_key(index))?.ok_or(EngineError::Unknown("receipt"))?;
        let record = receipt::leaf(&peer::Receipt::decode(bytes.as_slice())?);
        data.extend_from_slice(&(record.len() as u16).to_be_bytes());
        data.extend_from_slice(&record);
    }
    Ok(wire::ReadTileResponse { data })
}
