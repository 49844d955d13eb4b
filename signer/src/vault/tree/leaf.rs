//! A page of secrets.
//!
//! On disk: count (u16) ‖ directory (per slot: name, length u32) ‖ sealed values. The directory is associated data,
//! together with the page's place, so a secret cannot change its name, version, kind or place.

use super::{Place, sealing::Unsealed};
use crate::vault::{
    id::{MAX_SECRET_BYTES, SecretId},
    seal::{self, Buffer, DataKey, SealBroken, TAG_BYTES},
    store::Extent,
};

/// Secrets per page.
pub(super) const SLOTS: usize = 64;
/// A page takes no further secret beyond this weight: it fits one slot of the store. A heavier secret has a page of
/// its own, of several slots.
pub(super) const FULL: usize = SLOTS * (ENTRY + 32);
const ENTRY: usize = SecretId::BYTES + 4;
const _: () = assert!(Extent::slots_for(2 + FULL + TAG_BYTES) == 1);
const _: () = assert!(Extent::new(1, Extent::slots_for(2 + ENTRY + MAX_SECRET_BYTES + TAG_BYTES)).is_some());

/// Longest part of a page that is in the clear, in bytes.
pub(super) const MOST_CLEAR: usize = 2 + SLOTS * ENTRY;

/// A secret by name.
pub(super) type Slot<'a> = (SecretId, &'a [u8]);

/// What a slot takes of a page, in bytes.
pub(super) const fn weight(value: &[u8]) -> usize {
    ENTRY + value.len()
}

/// A page in the clear: as on disk, without the tag.
pub(super) struct Leaf {
    page: Buffer,
    slots: usize,
}

impl Leaf {
    pub(super) fn open(place: &Place, key: &[u8; 32], stored: Vec<u8>) -> Result<Self, SealBroken> {
        let count = stored.first_chunk::<2>().ok_or(SealBroken)?;
        let slots = usize::from(u16::from_be_bytes(*count));
        if slots > SLOTS {
            return Err(SealBroken);
        }
        let clear = 2 + slots * ENTRY;
        let mut page = Buffer::from(stored);
        let (open, sealed) = page.split_at_mut_checked(clear).ok_or(SealBroken)?;
        let text = place.bind(open, |context| seal::open_in_place(key, context, sealed))?;
        page.truncate(clear + text);
        let leaf = Self { page, slots };
        let mut values = 0usize;
        for entry in leaf.directory().chunks_exact(ENTRY) {
            let (_, length) = decode(entry).ok_or(SealBroken)?;
            if length > MAX_SECRET_BYTES {
                return Err(SealBroken);
            }
            values = values.checked_add(length).ok_or(SealBroken)?;
        }
        if values == leaf.values().len() { Ok(leaf) } else { Err(SealBroken) }
    }

    fn directory(&self) -> &[u8] {
        self.page.get(2..2 + self.slots * ENTRY).unwrap_or_default()
    }

    fn values(&self) -> &[u8] {
        self.page.get(2 + self.slots * ENTRY..).unwrap_or_default()
    }

    /// Slots of the store that a page with these secrets takes.
    pub(super) fn extent(slots: &[Slot<'_>]) -> u64 {
        let weight: usize = slots.iter().map(|(_, value)| weight(value)).sum();
        Extent::slots_for(2 + weight + TAG_BYTES)
    }

    /// Lays out slots, ascending by name, to be sealed under a fresh key.
    pub(super) fn unsealed(place: Place, key: DataKey, slots: &[Slot<'_>]) -> Result<Unsealed, SealBroken> {
        let values: usize = slots.iter().map(|(_, value)| value.len()).sum();
        let clear = 2 + slots.len() * ENTRY;
        let mut page = Buffer::with_capacity(clear + values + TAG_BYTES);
        page.extend_from_slice(&u16::try_from(slots.len()).map_err(|_| SealBroken)?.to_be_bytes());
        for (id, value) in slots {
            page.extend_from_slice(&id.to_bytes());
            page.extend_from_slice(&u32::try_from(value.len()).map_err(|_| SealBroken)?.to_be_bytes());
        }
        for (_, value) in slots {
            page.extend_from_slice(value);
        }
        Ok(Unsealed::new(place, key, page, clear))
    }

    pub(super) const fn len(&self) -> usize {
        self.slots
    }

    /// What its slots weigh together.
    pub(super) fn weight(&self) -> usize {
        self.slots * ENTRY + self.values().len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.slots == 0
    }

    pub(super) fn first(&self) -> Option<SecretId> {
        self.slots().next().map(|(id, _)| id)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let mut values = self.values();
        self.directory().chunks_exact(ENTRY).filter_map(move |entry| {
            let (id, length) = decode(entry)?;
            let (value, rest) = values.split_at_checked(length)?;
            values = rest;
            Some((id, value))
        })
    }

    pub(super) fn find(&self, id: &SecretId) -> Option<&[u8]> {
        let name = id.to_bytes();
        let (entries, _) = self.directory().as_chunks::<ENTRY>();
        let at = entries.partition_point(|entry| entry.get(..SecretId::BYTES) < Some(name.as_slice()));
        let (before, from) = entries.split_at_checked(at)?;
        let (found, length) = decode(from.first()?)?;
        let start: usize = before.iter().filter_map(|entry| decode_length(entry)).sum();
        if found == *id { self.values().get(start..start.checked_add(length)?) } else { None }
    }
}

fn decode(entry: &[u8]) -> Option<(SecretId, usize)> {
    Some((SecretId::decode(entry.first_chunk()?)?, decode_length(entry)?))
}

fn decode_length(entry: &[u8]) -> Option<usize> {
    let length = entry.last_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}
