//! A page of secrets.
//!
//! On disk: count (u16) ‖ directory (per slot: name, length u32) ‖ sealed values. The directory is associated data,
//! together with the page's place, so a secret cannot change its name, version, kind or place.

use std::ops::Range;

use zeroize::Zeroizing;

use super::Place;
use crate::vault::{
    id::{MAX_SECRET_BYTES, SecretId},
    seal::{self, SealBroken, TAG_BYTES},
};

/// Secrets per page.
pub(super) const SLOTS: usize = 64;
/// A page takes no further secret beyond this weight: it fits one page of the store. A heavier secret has a page of
/// its own.
pub(super) const FULL: usize = SLOTS * (ENTRY + 32);
const ENTRY: usize = SecretId::BYTES + 4;

/// A secret by name.
pub(super) type Slot<'a> = (SecretId, &'a [u8]);

/// What a slot takes of a page, in bytes.
pub(super) const fn weight(value: &[u8]) -> usize {
    ENTRY + value.len()
}

/// A page in the clear.
pub(super) struct Leaf {
    text: Zeroizing<Vec<u8>>,
    directory: Vec<(SecretId, Range<usize>)>,
}

impl Leaf {
    pub(super) fn open(place: &Place, key: &[u8; 32], stored: &[u8]) -> Result<Self, SealBroken> {
        let (count, rest) = stored.split_first_chunk::<2>().ok_or(SealBroken)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count > SLOTS {
            return Err(SealBroken);
        }
        let (directory, sealed) = rest.split_at_checked(count * ENTRY).ok_or(SealBroken)?;
        let mut context = place.context(2 + directory.len());
        context.extend_from_slice(stored.get(..2 + directory.len()).ok_or(SealBroken)?);
        let text = seal::open(key, &context, sealed)?;
        let mut slots = Vec::with_capacity(count);
        let mut at = 0usize;
        for entry in directory.chunks_exact(ENTRY) {
            let (id, length) = entry.split_first_chunk::<{ SecretId::BYTES }>().ok_or(SealBroken)?;
            let id = SecretId::decode(id).ok_or(SealBroken)?;
            let length = u32::from_be_bytes(length.try_into().map_err(|_| SealBroken)?) as usize;
            let end = at.checked_add(length).ok_or(SealBroken)?;
            if length > MAX_SECRET_BYTES || end > text.len() {
                return Err(SealBroken);
            }
            slots.push((id, at..end));
            at = end;
        }
        if at == text.len() { Ok(Self { text, directory: slots }) } else { Err(SealBroken) }
    }

    /// Seals slots, ascending by name, under a fresh key.
    pub(super) fn seal(place: &Place, key: &[u8; 32], slots: &[Slot<'_>]) -> Result<Vec<u8>, SealBroken> {
        let values: usize = slots.iter().map(|(_, value)| value.len()).sum();
        let mut out = Vec::with_capacity(2 + slots.len() * ENTRY + values + TAG_BYTES);
        out.extend_from_slice(&u16::try_from(slots.len()).map_err(|_| SealBroken)?.to_be_bytes());
        for (id, value) in slots {
            id.encode(&mut out);
            out.extend_from_slice(&u32::try_from(value.len()).map_err(|_| SealBroken)?.to_be_bytes());
        }
        let mut context = place.context(out.len());
        context.extend_from_slice(&out);
        let mut text = Zeroizing::new(Vec::with_capacity(values + TAG_BYTES));
        for (_, value) in slots {
            text.extend_from_slice(value);
        }
        seal::seal(key, &context, &mut text)?;
        out.extend_from_slice(&text);
        Ok(out)
    }

    pub(super) fn len(&self) -> usize {
        self.directory.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.directory.is_empty()
    }

    pub(super) fn first(&self) -> Option<SecretId> {
        self.directory.first().map(|(id, _)| *id)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (&SecretId, &[u8])> {
        self.directory.iter().map(|(id, range)| (id, self.text.get(range.clone()).unwrap_or_default()))
    }

    pub(super) fn find(&self, id: &SecretId) -> Option<&[u8]> {
        let at = self.directory.binary_search_by(|(slot, _)| slot.cmp(id)).ok()?;
        self.text.get(self.directory.get(at)?.1.clone())
    }
}
