//! Receipts of destruction (DESIGN section 4, OPERATION.md D15, D16). Their log's head: [`crate::checkpoint`].
//!
//! A log leaf is SHA-256(salt ‖ entry): tiles show hashes only, entry and salt go to the leaf's owners, the
//! peers' signers and auditors.

use sha2::{Digest as _, Sha256};
use spark_proto::{peer::v1 as wire, signer::v1 as signer_wire};
use tlog_tiles::{Error as LogError, Hash};

use crate::transcript::Transcript;

/// Phase of a key's first receipt in the log of a signer that was repaired (D12): it retires nothing, and of what an
/// earlier life of the signer held nothing is shown.
pub const REPAIR: &str = "repair";

/// Phase of a receipt for a version whose shares were refreshed: the key stays, and no old share combines with a new one.
pub const REFRESH: &str = "refresh";

/// Phase of a receipt for one-time package keys that died unused (D14). It is of no keyshare and no leaf.
pub const UNUSED: &str = "unused";

/// Most package keys in one receipt.
pub const MAX_PACKAGE_KEYS: usize = 256;

/// A receipt or proof that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// A field has no legal value.
    #[error("receipt: {0} is malformed")]
    Malformed(&'static str),
    /// The inclusion proof does not lead to the checkpoint's root.
    #[error("receipt is not included in the log: {0}")]
    Inclusion(LogError),
}

/// The canonical entry of a receipt: everything but salt, index and state (which changes).
pub fn entry(receipt: &wire::Receipt) -> Vec<u8> {
    let mut t = Transcript::new("spark/receipt/v1");
    t.bytes(&receipt.incarnation).u64(receipt.sequence).bytes(&receipt.keyshare_id);
    t.bytes(receipt.leaf_id.as_bytes()).bytes(&receipt.operation_id).bytes(receipt.phase.as_bytes());
    t.u64(receipt.retired_version).u64(receipt.new_version);
    t.bytes(&receipt.retired_public_share).bytes(&receipt.new_public_share).bytes(&receipt.tweak_commitment);
    t.u64(receipt.root_epoch_before).u64(receipt.root_epoch_after).bytes(&receipt.root_id_before);
    t.bytes(receipt.delete_claim.as_bytes()).bytes(receipt.package_kind.as_bytes()).u64(receipt.unix_seconds);
    t.u64(receipt.live_versions.len() as u64);
    for version in &receipt.live_versions {
        t.u64(*version);
    }
    if receipt.phase == UNUSED {
        t.u64(receipt.package_keys.len() as u64);
        for id in &receipt.package_keys {
            t.bytes(id);
        }
    }
    t.finish().to_vec()
}

/// Whether a receipt of phase [`UNUSED`] speaks of package keys and of nothing else, and names each once.
pub fn is_of_unused_keys(receipt: &wire::Receipt) -> bool {
    let ids = &receipt.package_keys;
    let named = !ids.is_empty() && ids.len() <= MAX_PACKAGE_KEYS && ids.iter().all(|id| id.len() == 16);
    named
        && ids.is_sorted_by(|a, b| a < b)
        && receipt.keyshare_id.is_empty()
        && receipt.leaf_id.is_empty()
        && receipt.operation_id.is_empty()
        && receipt.retired_public_share.is_empty()
        && receipt.new_public_share.is_empty()
        && receipt.tweak_commitment.is_empty()
        && receipt.live_versions.is_empty()
        && (receipt.retired_version, receipt.new_version) == (0, 0)
}

/// What the log stores: SHA-256(salt ‖ entry).
pub fn leaf(receipt: &wire::Receipt) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&receipt.salt);
    hash.update(entry(receipt));
    hash.finalize().into()
}

/// Verifies that the receipt is record `proof.index` of the log of `tree_size` records with `root` (RFC 6962).
pub fn verify_inclusion(
    receipt: &wire::Receipt,
    proof: &signer_wire::InclusionProof,
    root: [u8; 32],
) -> Result<(), ReceiptError> {
    let hashes = proof
        .hashes
        .iter()
        .map(|h| <[u8; 32]>::try_from(h.as_slice()).map(Hash))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| ReceiptError::Malformed("hashes"))?;
    let record = tlog_tiles::record_hash(&leaf(receipt));
    tlog_tiles::check_record(&hashes, proof.tree_size, Hash(root), proof.index, record)
        .map_err(ReceiptError::Inclusion)
}

/// Whether the destruction that a receipt reports is confirmed, where all roots before `destroyed_before` are known to
/// be destroyed: the root that sealed what the receipt retires is one of them. A key's first receipt retires nothing;
/// the secrets of its making died under earlier roots.
pub fn is_confirmed(receipt: &wire::Receipt, destroyed_before: u64) -> bool {
    let retires = !matches!(receipt.phase.as_str(), "dkg" | REPAIR);
    receipt.root_epoch_after <= destroyed_before && (!retires || receipt.root_epoch_before < destroyed_before)
}
