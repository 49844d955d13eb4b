use bitcoin::hashes::Hash as _;
use bitcoin::{OutPoint, Txid};
use serde::{Deserialize, Serialize};

use super::{Timelock, Variant};

/// Bytes that are no key of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a maturity has 39 bytes: txid, vout, step, variant")]
pub struct MaturityError;

/// Key of the ledger of released transactions (D6): when a spend of an outpoint becomes valid, and how it pays.
/// The step is the timelock without the offset of the purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Maturity {
    /// The output that is spent.
    pub outpoint: OutPoint,
    /// Blocks, a multiple of 100.
    pub step: Timelock,
    /// Anchor or fee.
    pub variant: Variant,
}

impl Maturity {
    /// As a storage key: txid (32, internal order), vout (4), step (2), variant (1), integers big-endian.
    pub fn to_bytes(self) -> [u8; 39] {
        let mut bytes = [0; 39];
        bytes[..32].copy_from_slice(self.outpoint.txid.as_byte_array());
        bytes[32..36].copy_from_slice(&self.outpoint.vout.to_be_bytes());
        bytes[36..38].copy_from_slice(&self.step.blocks().to_be_bytes());
        bytes[38] = match self.variant {
            Variant::Cpfp => 0,
            Variant::Direct => 1,
        };
        bytes
    }

    /// Inverse of [`Maturity::to_bytes`].
    pub fn from_bytes(bytes: &[u8; 39]) -> Result<Self, MaturityError> {
        let (txid, rest) = bytes.split_first_chunk::<32>().ok_or(MaturityError)?;
        let (vout, rest) = rest.split_first_chunk::<4>().ok_or(MaturityError)?;
        let &[high, low, variant] = rest else { return Err(MaturityError) };
        Ok(Self {
            outpoint: OutPoint { txid: Txid::from_byte_array(*txid), vout: u32::from_be_bytes(*vout) },
            step: Timelock::new(u16::from_be_bytes([high, low])).map_err(|_| MaturityError)?,
            variant: match variant {
                0 => Variant::Cpfp,
                1 => Variant::Direct,
                _ => return Err(MaturityError),
            },
        })
    }
}
