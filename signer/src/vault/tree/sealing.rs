//! Sealing what a batch writes anew, all of it at once: no page needs another one's seal, only its key.

use super::Place;
use crate::vault::{
    cores,
    seal::{self, Buffer, DataKey, SealBroken},
    store::Extent,
};

/// A page or node in the clear, and the key that it is to be sealed under.
pub(super) struct Unsealed {
    place: Place,
    /// Until it is sealed.
    key: Option<DataKey>,
    page: Buffer,
    /// So many bytes stay in the clear; they are associated data.
    clear: usize,
}

impl Unsealed {
    /// Give `page` room for the tag.
    pub(super) const fn new(place: Place, key: DataKey, page: Buffer, clear: usize) -> Self {
        Self { place, key: Some(key), page, clear }
    }

    pub(super) const fn at(&self) -> Extent {
        self.place.at
    }

    fn seal(&mut self) -> Result<(), SealBroken> {
        let Some(key) = &self.key else { return Ok(()) };
        let (open, text) = self.page.split_at_mut_checked(self.clear).ok_or(SealBroken)?;
        let tag = self.place.bind(open, |context| seal::seal_in_place(key.expose(), context, text))?;
        self.page.extend_from_slice(&tag);
        self.key = None;
        Ok(())
    }

    /// What the store gets.
    fn sealed(mut self) -> Result<Vec<u8>, SealBroken> {
        if self.key.is_some() { Err(SealBroken) } else { Ok(self.page.take()) }
    }
}

/// Seals all, in the order given.
pub(super) fn seal_all(mut pages: Vec<Unsealed>) -> Result<Vec<(Extent, Vec<u8>)>, SealBroken> {
    // One that fails keeps its key, and is not given away.
    cores::each(&mut pages, |page| {
        let _ = page.seal();
    });
    pages.into_iter().map(|page| Ok((page.place.at, page.sealed()?))).collect()
}
