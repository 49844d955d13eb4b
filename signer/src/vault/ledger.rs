//! The set hash over public records.
//!
//! XOR of HMAC-SHA-256 over all (key, value) pairs, which form a set since keys are unique. Nobody outside
//! sees the sum or any term (the sum is sealed in the header), so another set has the same sum only by
//! chance of 2⁻²⁵⁶.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::seal::{DataKey, SealBroken};

/// Key, sum and number of records.
pub(super) struct RecordSet {
    key: DataKey,
    mac: Hmac<Sha256>,
    pub(super) state: SetState,
}

/// Sum and number of records.
#[derive(Clone, Copy)]
pub(super) struct SetState {
    pub(super) sum: [u8; 32],
    pub(super) count: u64,
}

impl SetState {
    pub(super) const EMPTY: Self = Self { sum: [0; 32], count: 0 };

    pub(super) fn matches(&self, other: &Self) -> bool {
        self.count == other.count && bool::from(self.sum.ct_eq(&other.sum))
    }
}

impl RecordSet {
    /// The empty set under a fresh key.
    pub(super) fn empty() -> Result<Self, SealBroken> {
        Self::with(DataKey::random(), SetState::EMPTY)
    }

    pub(super) fn with(key: DataKey, state: SetState) -> Result<Self, SealBroken> {
        let mac = Hmac::<Sha256>::new_from_slice(key.expose()).map_err(|_| SealBroken)?;
        Ok(Self { key, mac, state })
    }

    pub(super) fn key(&self) -> &DataKey {
        &self.key
    }

    fn toggle(&self, state: &mut SetState, key: &[u8], value: &[u8]) {
        let mut mac = self.mac.clone();
        mac.update(&(key.len() as u64).to_be_bytes());
        mac.update(key);
        mac.update(value);
        state.sum.iter_mut().zip(mac.finalize().into_bytes()).for_each(|(sum, byte)| *sum ^= byte);
    }

    /// Adds a record that is not in the set.
    pub(super) fn add(&self, state: &mut SetState, key: &[u8], value: &[u8]) {
        self.toggle(state, key, value);
        state.count = state.count.wrapping_add(1);
    }

    /// Removes a record that is in the set.
    pub(super) fn remove(&self, state: &mut SetState, key: &[u8], value: &[u8]) {
        self.toggle(state, key, value);
        state.count = state.count.wrapping_sub(1);
    }
}
