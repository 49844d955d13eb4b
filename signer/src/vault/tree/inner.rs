//! A node: the keys of up to 64 pages or nodes below it.
//!
//! On disk, sealed: count (u16) ‖ per child: first name below it, where it lies (6 bytes), key (32 bytes). A full one
//! fits a slot.

use std::ops::Range;

use super::{Place, sealing::Unsealed};
use crate::vault::{
    id::SecretId,
    seal::{self, Buffer, DataKey, KEY_BYTES, SealBroken, TAG_BYTES},
    store::Extent,
};

/// Children per node.
pub(super) const FAN_OUT: usize = 64;
const ENTRY: usize = SecretId::BYTES + Extent::BYTES + KEY_BYTES;
const _: () = assert!(Extent::slots_for(2 + FAN_OUT * ENTRY + TAG_BYTES) == 1);

/// Children in order of their first names. A list under construction may be longer than a node.
pub(super) struct Kids {
    firsts: Vec<SecretId>,
    places: Vec<Extent>,
    keys: Buffer,
}

impl Kids {
    pub(super) fn with_capacity(children: usize) -> Self {
        Self {
            firsts: Vec::with_capacity(children),
            places: Vec::with_capacity(children),
            keys: Buffer::with_capacity(children * KEY_BYTES),
        }
    }

    pub(super) fn push(&mut self, first: SecretId, at: Extent, key: &[u8; KEY_BYTES]) {
        self.make_room(KEY_BYTES);
        self.firsts.push(first);
        self.places.push(at);
        self.keys.extend_from_slice(key);
    }

    /// A vector that grows by itself leaves its old content behind.
    fn make_room(&mut self, bytes: usize) {
        if self.keys.capacity() - self.keys.len() < bytes {
            let mut larger = Buffer::with_capacity((self.keys.len() + bytes) * 2);
            larger.extend_from_slice(&self.keys);
            self.keys = larger;
        }
    }

    /// Appends children of another list.
    pub(super) fn extend(&mut self, other: &Self, range: Range<usize>) {
        let keys = range.start.saturating_mul(KEY_BYTES)..range.end.saturating_mul(KEY_BYTES);
        let parts = (other.firsts.get(range.clone()), other.places.get(range), other.keys.get(keys));
        if let (Some(firsts), Some(places), Some(keys)) = parts {
            self.make_room(keys.len());
            self.firsts.extend_from_slice(firsts);
            self.places.extend_from_slice(places);
            self.keys.extend_from_slice(keys);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first(&self) -> Option<SecretId> {
        self.firsts.first().copied()
    }

    pub(super) fn firsts(&self) -> &[SecretId] {
        &self.firsts
    }

    pub(super) fn get(&self, at: usize) -> Option<(SecretId, Extent, &[u8; KEY_BYTES])> {
        let key = self.keys.get(at.checked_mul(KEY_BYTES)?..)?.first_chunk()?;
        Some((*self.firsts.get(at)?, *self.places.get(at)?, key))
    }

    /// The child that a name belongs to.
    pub(super) fn of(&self, id: &SecretId) -> usize {
        self.firsts.partition_point(|first| first <= id).saturating_sub(1)
    }
}

/// An open node.
pub(super) struct Inner(Kids);

impl Inner {
    pub(super) const fn new(kids: Kids) -> Self {
        Self(kids)
    }

    pub(super) const fn kids(&self) -> &Kids {
        &self.0
    }

    pub(super) fn open(place: &Place, key: &[u8; KEY_BYTES], stored: &[u8]) -> Result<Self, SealBroken> {
        let text = place.bind(&[], |context| seal::open(key, context, stored))?;
        let (count, rest) = text.split_first_chunk::<2>().ok_or(SealBroken)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count > FAN_OUT || rest.len() != count * ENTRY {
            return Err(SealBroken);
        }
        let mut kids = Kids::with_capacity(count);
        for entry in rest.chunks_exact(ENTRY) {
            let (first, entry) = entry.split_first_chunk::<{ SecretId::BYTES }>().ok_or(SealBroken)?;
            let (at, key) = entry.split_first_chunk::<{ Extent::BYTES }>().ok_or(SealBroken)?;
            let first = SecretId::decode(first).ok_or(SealBroken)?;
            if kids.firsts.last().is_some_and(|last| *last >= first) {
                return Err(SealBroken);
            }
            let at = Extent::from_bytes(*at).ok_or(SealBroken)?;
            kids.push(first, at, key.first_chunk().ok_or(SealBroken)?);
        }
        Ok(Self(kids))
    }

    /// Slots that a node of any size takes.
    pub(super) const SLOTS: u64 = 1;

    /// Lays out the node, to be sealed under a fresh key.
    pub(super) fn unsealed(&self, place: Place, key: DataKey) -> Result<Unsealed, SealBroken> {
        let kids = &self.0;
        let mut page = Buffer::with_capacity(2 + kids.len() * ENTRY + TAG_BYTES);
        page.extend_from_slice(&u16::try_from(kids.len()).map_err(|_| SealBroken)?.to_be_bytes());
        for (at, first) in kids.firsts.iter().enumerate() {
            let (_, place, key) = kids.get(at).ok_or(SealBroken)?;
            page.extend_from_slice(&first.to_bytes());
            page.extend_from_slice(&place.to_bytes());
            page.extend_from_slice(key);
        }
        Ok(Unsealed::new(place, key, page, 0))
    }
}
