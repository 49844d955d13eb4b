//! A page: up to 64 secrets under one key.
//!
//! On disk: count (u16) ‖ directory (per slot: secret id, length u32) ‖ sealed values. The directory is
//! associated data, together with tree, incarnation and page number, so a secret cannot change its name,
//! version, kind or place.

use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::id::{MAX_SECRET_BYTES, SecretId};
use super::seal::{DataKey, SealBroken, TAG_BYTES};
use super::token::TreeId;

/// Secrets per page.
pub(super) const SLOTS: usize = 64;
/// A page takes no further secret beyond this many bytes of values; a longer one has a page of its own.
const FULL_BYTES: usize = 8 * 1024;
const DIRECTORY_ENTRY: usize = SecretId::BYTES + 4;

/// Where a page lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) tree: TreeId,
    pub(super) incarnation: Incarnation,
    pub(super) number: u32,
}

/// How full a page is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) slots: usize,
    pub(super) bytes: usize,
}

impl Fill {
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.slots == 0 || (self.slots < SLOTS && self.bytes.saturating_add(bytes) <= FULL_BYTES)
    }

    /// Worth trying for a secret of usual size.
    pub(super) fn is_roomy(&self) -> bool {
        self.has_room(64)
    }
}

/// Page in the clear.
#[derive(Default)]
pub(super) struct Page {
    slots: Vec<(SecretId, Zeroizing<Vec<u8>>)>,
}

impl Page {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn fill(&self) -> Fill {
        Fill { slots: self.slots.len(), bytes: self.slots.iter().map(|(_, value)| value.len()).sum() }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &SecretId> {
        self.slots.iter().map(|(id, _)| id)
    }

    pub(super) fn remove(&mut self, id: &SecretId) {
        self.slots.retain(|(slot, _)| slot != id);
    }

    pub(super) fn insert(&mut self, id: SecretId, value: Zeroizing<Vec<u8>>) {
        self.slots.push((id, value));
    }

    pub(super) fn take(self, id: &SecretId) -> Option<Zeroizing<Vec<u8>>> {
        self.slots.into_iter().find_map(|(slot, value)| (slot == *id).then_some(value))
    }

    /// Seals under a fresh key.
    pub(super) fn seal(&self, place: &Place, key: &DataKey) -> Result<Vec<u8>, SealBroken> {
        let mut directory = Vec::with_capacity(2 + self.slots.len() * DIRECTORY_ENTRY);
        directory.extend_from_slice(&u16::try_from(self.slots.len()).map_err(|_| SealBroken)?.to_be_bytes());
        for (id, value) in &self.slots {
            id.encode(&mut directory);
            directory.extend_from_slice(&u32::try_from(value.len()).map_err(|_| SealBroken)?.to_be_bytes());
        }
        let mut values = Zeroizing::new(Vec::with_capacity(self.fill().bytes + TAG_BYTES));
        for (_, value) in &self.slots {
            values.extend_from_slice(value);
        }
        key.seal(&context(place, &directory), &mut values)?;
        directory.extend_from_slice(&values);
        Ok(directory)
    }

    /// Opens what [`Self::seal`] made for the same place.
    pub(super) fn open(place: &Place, key: &DataKey, stored: &[u8]) -> Result<Self, SealBroken> {
        let (count, _) = stored.split_first_chunk::<2>().ok_or(SealBroken)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count > SLOTS {
            return Err(SealBroken);
        }
        let (directory, sealed) = stored.split_at_checked(2 + count * DIRECTORY_ENTRY).ok_or(SealBroken)?;
        let values = key.open(&context(place, directory), sealed)?;
        let mut rest: &[u8] = &values;
        let mut slots = Vec::with_capacity(count);
        for entry in directory.get(2..).unwrap_or_default().chunks_exact(DIRECTORY_ENTRY) {
            let (id, length) = entry.split_first_chunk::<{ SecretId::BYTES }>().ok_or(SealBroken)?;
            let id = SecretId::decode(id).ok_or(SealBroken)?;
            let length = u32::from_be_bytes(length.try_into().map_err(|_| SealBroken)?) as usize;
            if length > MAX_SECRET_BYTES {
                return Err(SealBroken);
            }
            let (value, after) = rest.split_at_checked(length).ok_or(SealBroken)?;
            slots.push((id, Zeroizing::new(value.to_vec())));
            rest = after;
        }
        if rest.is_empty() { Ok(Self { slots }) } else { Err(SealBroken) }
    }
}

fn context(place: &Place, directory: &[u8]) -> Vec<u8> {
    let mut context = b"spark/vault/page/v1".to_vec();
    context.extend_from_slice(&place.tree.0);
    context.extend_from_slice(place.incarnation.as_bytes());
    context.extend_from_slice(&place.number.to_be_bytes());
    context.extend_from_slice(directory);
    context
}
