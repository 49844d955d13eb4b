//! The append-only log of receipts (S7): an RFC 6962 tree in the C2SP tlog layout, its head signed by the
//! federation key.

use prost::Message as _;
use signed_note::{Note, Signature};
use spark_proto::{peer::v1 as peer, signer::v1 as wire};
use spark_rules::{
    ids::{LeafId, OperationId, OperatorIndex},
    receipt::{self, checkpoint_origin},
};
use tlog_tiles::{Checkpoint, Error as LogError, Hash, HashReader, record_hash};

use super::{EngineError, Shared, journal};
use crate::vault::{RootId, Txn};

const SIZE: &[u8] = b"log-size";
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
    let mut receipts = Vec::new();
    for index in indexes {
        let index =
            u64::from_be_bytes(index.try_into().map_err(|_| EngineError::Malformed("receipt index"))?);
        let bytes = txn.record(&receipt_key(index))?.ok_or(EngineError::Unknown("receipt"))?;
        let mut receipt = peer::Receipt::decode(bytes.as_slice())?;
        if receipt::is_confirmed(&receipt, destroyed_before) {
            receipt.state = "confirmed".to_owned();
        }
        receipts.push(receipt);
    }
    Ok(receipts)
}

impl Shared {
    /// What somebody else saw in the token: every root of the tree that it shows. All roots before the oldest of them
    /// are destroyed, since roots are made in order. Returns the epoch before which all are.
    pub(super) fn confirm(&mut self, txn: &mut Txn<'_>, seen: &[RootId]) -> Result<u64, EngineError> {
        let known = destroyed_before(txn)?;
        let tree = txn.committed().root().tree;
        let oldest = seen.iter().map(|root| root.epoch).min();
        let epoch = match oldest {
            // It looked at a moment at which the signer stood at this epoch or a later one.
            Some(oldest) if oldest <= txn.committed().epoch() && seen.iter().all(|r| r.tree == tree) => {
                oldest
            }
            _ => {
                self.alarm("confirmer_differs");
                return Err(EngineError::Malformed("roots that the confirmer saw"));
            }
        };
        if epoch > known {
            txn.put_record(DESTROYED_BEFORE, epoch.to_be_bytes().to_vec());
        }
        Ok(epoch.max(known))
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
        let leaf = LeafId::parse(&receipt.leaf_id)?;
        let by_leaf = [b"receipts-leaf/".as_slice(), leaf.as_bytes(), &index.to_be_bytes()].concat();
        txn.put_record(&by_leaf, Vec::new());
        txn.put_record(SIZE, index.saturating_add(1).to_be_bytes().to_vec());
        Ok(receipt)
    }

    /// The head of the log as of the last commit, as a signed note.
    pub(super) fn checkpoint(&self, txn: &Txn<'_>) -> Result<wire::GetCheckpointResponse, EngineError> {
        let malformed = || EngineError::Malformed("checkpoint");
        let size = size(txn)?;
        let root = if size == 0 {
            tlog_tiles::EMPTY_HASH
        } else {
            tlog_tiles::tree_hash(size, &Hashes(txn)).map_err(|_| malformed())?
        };
        let origin = self.origin(self.me);
        let position = self.committed_position(txn);
        let extension = format!(
            "spark/position {} {}\n{}",
            position.root_epoch,
            position.sequence,
            receipt::destroyed_before_line(destroyed_before(txn)?)
        );
        let text = Checkpoint::new(&origin, size, root, &extension).map_err(|_| malformed())?.to_bytes();
        let key = self.token.federation_public_key();
        let id = signed_note::key_id(&origin, &[[1u8].as_slice(), &key].concat());
        let signature = self.token.sign_federation(&text)?;
        let signature = Signature::new(origin, id, signature.to_vec()).map_err(|_| malformed())?;
        let note = Note::new(&text, &[signature]).map_err(|_| malformed())?;
        Ok(wire::GetCheckpointResponse {
            checkpoint: String::from_utf8(note.to_bytes()).map_err(|_| malformed())?,
        })
    }

    fn origin(&self, index: OperatorIndex) -> String {
        checkpoint_origin(&self.federation, index)
    }

    /// All receipts of a leaf with inclusion proofs into the present head.
    pub(super) fn receipts(
        &self,
        txn: &Txn<'_>,
        request: &wire::GetReceiptsRequest,
    ) -> Result<wire::GetReceiptsResponse, EngineError> {
        let leaf = LeafId::parse(&request.leaf_id)?;
        let size = size(txn)?;
        let prefix = [b"receipts-leaf/".as_slice(), leaf.as_bytes()].concat();
        let keys = txn.scan_records(&prefix)?;
        let receipts = read(txn, keys.iter().filter_map(|record| record.0.get(prefix.len()..)))?;
        let mut proofs = Vec::with_capacity(receipts.len());
        for receipt in &receipts {
            let proof = tlog_tiles::prove_record(size, receipt.log_index, &Hashes(txn))
                .map_err(|_| EngineError::Malformed("log"))?;
            proofs.push(wire::InclusionProof {
                index: receipt.log_index,
                tree_size: size,
                hashes: proof.iter().map(|h| h.0.to_vec()).collect(),
            });
        }
        Ok(wire::GetReceiptsResponse { receipts, proofs, checkpoint: self.checkpoint(txn)?.checkpoint })
    }
}
