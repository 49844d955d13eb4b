//! One's own records: the operator's are in Postgres, the signer's in its ledger.

use std::collections::BTreeSet;

use bitcoin::{Script, secp256k1::PublicKey};
use serde::{Deserialize, Serialize};

use crate::{
    address::Network,
    ids::{KeyshareId, LeafId, TransferId},
    leaf::LeafRecord,
};

/// A keyshare bound to a deposit address (D20).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Which keyshare; its version is 0.
    pub keyshare_id: KeyshareId,
    /// The leaf that a deposit makes.
    pub leaf_id: LeafId,
    /// D.
    pub user_key: PublicKey,
    /// The owner.
    pub identity: PublicKey,
    /// Network of the address.
    pub network: Network,
    /// S.
    pub group_key: PublicKey,
    /// Public shares by operator index.
    pub public_shares: Vec<PublicKey>,
    /// P = S + D.
    pub verifying_key: PublicKey,
    /// Of a static address: it takes any number of deposits, and no leaf ever stands on one.
    pub is_static: bool,
}

/// A send that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRecord {
    /// Transfer id.
    pub id: [u8; 16],
    /// Identity key of the sender.
    pub sender: PublicKey,
    /// Identity key of the receiver.
    pub receiver: PublicKey,
    /// Its leaves.
    pub leaves: BTreeSet<[u8; 16]>,
    /// The receiver has claimed it.
    pub claimed: bool,
}

/// What one knows.
pub trait Records {
    /// A leaf.
    fn leaf(&self, id: &LeafId) -> Option<LeafRecord>;
    /// The deposit address with this script.
    fn binding(&self, script: &Script) -> Option<Binding>;
    /// A send that was applied.
    fn transfer(&self, id: &TransferId) -> Option<TransferRecord>;
}

impl TransferRecord {
    /// For storage.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Inverse of [`TransferRecord::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, crate::leaf::DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
