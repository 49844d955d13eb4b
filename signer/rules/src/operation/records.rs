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
    /// Who gets what, each receiver once, in the order of the package.
    pub receivers: Vec<TransferShare>,
    /// The Spark invoice that it pays, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub invoice: String,
    /// Seconds since 1970 until which it had to be decided; 0 is no limit.
    #[serde(default)]
    pub expiry_seconds: i64,
}

/// One receiver's part of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferShare {
    /// Identity key.
    pub receiver: PublicKey,
    /// The leaves, and no others, that this receiver claims.
    pub leaves: BTreeSet<[u8; 16]>,
    /// It has claimed them.
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
    /// What one receiver gets; none if it is no receiver.
    pub fn share(&self, receiver: &PublicKey) -> Option<&TransferShare> {
        self.receivers.iter().find(|share| share.receiver == *receiver)
    }

    /// A receiver has claimed its leaves.
    pub fn claim(&mut self, receiver: &PublicKey) {
        for share in self.receivers.iter_mut().filter(|share| share.receiver == *receiver) {
            share.claimed = true;
        }
    }

    /// For storage.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Inverse of [`TransferRecord::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, crate::leaf::DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
