//! The set hash over public records.
//!
//! XOR of HMAC-SHA-256 over all (key, value) pairs, which form a set since keys are unique. Nobody outside
//! sees the sum or any term (the sum is sealed in the header), so another set has the same sum only by
//! chance of 2⁻²⁵⁶.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::{
    cores,
    seal::{DataKey, SealBroken},
};

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

    /// Starts adding up a whole set, as it is read.
    pub(super) const fn tally(&self) -> Tally<'_> {
        Tally { set: self, state: SetState::EMPTY, portions: Vec::new() }
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

/// Records that are added up together.
#[derive(Default)]
struct Portion {
    /// Keys and values, one after the other.
    bytes: Vec<u8>,
    /// Where each key, and then its value, ends.
    ends: Vec<(usize, usize)>,
    state: Option<SetState>,
}

impl Portion {
    const RECORDS: usize = 128;

    fn sum(&mut self, set: &RecordSet) {
        let mut state = SetState::EMPTY;
        let mut start = 0;
        for (key, value) in &self.ends {
            let parts = (self.bytes.get(start..*key), self.bytes.get(*key..*value));
            if let (Some(key), Some(value)) = parts {
                set.add(&mut state, key, value);
            }
            start = *value;
        }
        self.state = Some(state);
    }
}

/// A set that is being added up.
pub(super) struct Tally<'a> {
    set: &'a RecordSet,
    state: SetState,
    portions: Vec<Portion>,
}

impl Tally<'_> {
    /// Some megabytes.
    const PORTIONS: usize = 128;

    /// One more record.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        match self.portions.last_mut() {
            Some(last) if last.ends.len() < Portion::RECORDS => {}
            _ => {
                if self.portions.len() == Self::PORTIONS {
                    self.sum();
                }
                self.portions.push(Portion::default());
            }
        }
        if let Some(portion) = self.portions.last_mut() {
            portion.bytes.extend_from_slice(key);
            let end = portion.bytes.len();
            portion.bytes.extend_from_slice(value);
            portion.ends.push((end, portion.bytes.len()));
        }
    }

    fn sum(&mut self) {
        let set = self.set;
        cores::each(&mut self.portions, |portion| portion.sum(set));
        for part in self.portions.drain(..).filter_map(|portion| portion.state) {
            self.state.sum.iter_mut().zip(part.sum).for_each(|(sum, byte)| *sum ^= byte);
            self.state.count = self.state.count.wrapping_add(part.count);
        }
    }

    /// What all of them come to.
    pub(super) fn finish(mut self) -> SetState {
        self.sum();
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_comes_to_what_adding_one_by_one_does() {
        let set = RecordSet::empty().unwrap();
        for count in [0u32, 1, 127, 128, 129, 128 * 128 + 5, 128 * 300] {
            let (mut state, mut tally) = (SetState::EMPTY, set.tally());
            for n in 0..count {
                let (key, value) = (n.to_be_bytes(), vec![7u8; n as usize % 9]);
                set.add(&mut state, &key, &value);
                tally.add(&key, &value);
            }
            let tallied = tally.finish();
            assert!(tallied.matches(&state) && tallied.count == u64::from(count));
        }
    }
}
