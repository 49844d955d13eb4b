//! Receipts: what an auditor gets to read behind the salted hashes.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use sha2::{Digest as _, Sha256};

use crate::transcript::Transcript;

/// Longest line of the file, in bytes.
pub const MAX_LINE: u64 = 64 * 1024;

/// Bytes that JSON has as lower-case hex.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HexBytes(pub Vec<u8>);

impl fmt::Debug for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(de::Error::custom("hex must be lower-case"));
        }
        hex::decode(text).map(Self).map_err(de::Error::custom)
    }
}

/// One receipt (`peer.v1.Receipt`): what a signer did to one keyshare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Receipt {
    /// Of the signer, 16 bytes.
    pub incarnation: HexBytes,
    /// Of the signer's journal.
    pub sequence: u64,
    /// Which keyshare.
    pub keyshare_id: HexBytes,
    /// Which leaf.
    pub leaf_id: String,
    /// Which operation; empty for the making.
    pub operation_id: HexBytes,
    /// What happened: "dkg", "deposit", "send", "claim", "renew", "refresh", "abort", "repair", "unused".
    pub phase: String,
    /// Version that is destroyed.
    pub retired_version: u64,
    /// Version that takes its place.
    pub new_version: u64,
    /// Public share of the one, 33 bytes.
    pub retired_public_share: HexBytes,
    /// Public share of the other, 33 bytes.
    pub new_public_share: HexBytes,
    /// The difference, 33 bytes, or empty.
    pub tweak_commitment: HexBytes,
    /// Epoch of the root under which the retired version was sealed.
    pub root_epoch_before: u64,
    /// Epoch of the root after the batch.
    pub root_epoch_after: u64,
    /// Names the former root.
    pub root_id_before: HexBytes,
    /// What destruction means on this device, by its configuration.
    pub delete_claim: String,
    /// "identity" (long-lived) or "one-time": the key to which the tweak was encrypted.
    pub package_kind: String,
    /// Of the signer's clock.
    pub unix_seconds: u64,
    /// Versions that still live.
    pub live_versions: Vec<u64>,
    /// Signed by nobody; not looked at.
    pub state: String,
    /// 32 bytes.
    pub salt: HexBytes,
    /// Place in the log.
    pub log_index: u64,
    /// Of phase "unused": one-time package keys that nobody used, ascending.
    pub package_keys: Vec<HexBytes>,
}

impl Receipt {
    /// Reads a line: an object, since fields without names would pass for others.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if line.trim_ascii_start().first() != Some(&b'{') {
            return Err("it is no object".to_owned());
        }
        serde_json::from_slice(line).map_err(|e| e.to_string())
    }

    /// The canonical entry: everything but salt, place and state.
    pub fn entry(&self) -> [u8; 32] {
        let head = Transcript::new("spark/receipt/v1")
            .part(&self.incarnation.0)
            .number(self.sequence)
            .part(&self.keyshare_id.0)
            .part(self.leaf_id.as_bytes())
            .part(&self.operation_id.0)
            .part(self.phase.as_bytes())
            .number(self.retired_version)
            .number(self.new_version)
            .part(&self.retired_public_share.0)
            .part(&self.new_public_share.0)
            .part(&self.tweak_commitment.0)
            .number(self.root_epoch_before)
            .number(self.root_epoch_after)
            .part(&self.root_id_before.0)
            .part(self.delete_claim.as_bytes())
            .part(self.package_kind.as_bytes())
            .number(self.unix_seconds)
            .number(self.live_versions.len() as u64);
        let versions = self.live_versions.iter().fold(head, |t, version| t.number(*version));
        if self.phase != "unused" {
            return versions.finish();
        }
        let keys = versions.number(self.package_keys.len() as u64);
        self.package_keys.iter().fold(keys, |t, id| t.part(&id.0)).finish()
    }

    /// The record of the log: SHA-256(salt ‖ entry).
    pub fn record(&self) -> [u8; 32] {
        Sha256::new().chain_update(&self.salt.0).chain_update(self.entry()).finalize().into()
    }

    /// Whether the destruction that this reports is confirmed, where every root before `destroyed_before` is said to be
    /// destroyed. A key's first receipt retires nothing; the secrets of its making died under earlier roots.
    pub fn is_confirmed(&self, destroyed_before: u64) -> bool {
        let root_is_gone =
            ["dkg", "repair"].contains(&self.phase.as_str()) || self.root_epoch_before < destroyed_before;
        self.root_epoch_after <= destroyed_before && root_is_gone
    }
}
