//! What the vault needs of a disk: slots for pages, which only ever get new content while nothing durable refers to
//! them, and a crash-safe map for the header and the records.

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("store is in use by another process")]
    InUse,
    /// There is no store here.
    #[error("no store here")]
    Missing,
    /// Not a store of this format.
    #[error("store has format {0}, not one this program knows")]
    Format(u64),
    /// The pages are not where the rest of the store is.
    #[error("the store's pages are missing")]
    PagesMissing,
    /// The pages that lie with the store were made for another one.
    #[error("the pages are another store's")]
    PagesForeign,
    /// Reading or writing failed.
    #[error("store failed: {0}")]
    Failed(String),
}

/// A record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Where a page lies: slots of the store, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(u64);

impl Extent {
    /// Bytes of a slot: a block of the disk, so that writing one never touches another.
    pub const SLOT_BYTES: usize = 4096;
    /// What a page takes of its slots beside its content: its length, four bytes.
    pub const LENGTH_BYTES: usize = 4;
    /// Slots that no page has are below this one; a store may keep something of its own there.
    pub const FIRST: u64 = 1;
    /// On disk.
    pub(super) const BYTES: usize = 6;
    const MOST_SLOTS: u64 = 32;

    /// `slots` slots from `first` on, if there can be such.
    pub const fn new(first: u64, slots: u64) -> Option<Self> {
        if first < Self::FIRST || first >> 43 != 0 || slots == 0 || slots > Self::MOST_SLOTS {
            return None;
        }
        Some(Self(first * Self::MOST_SLOTS + slots - 1))
    }

    /// The first slot.
    pub const fn first(self) -> u64 {
        self.0 / Self::MOST_SLOTS
    }

    /// How many there are.
    pub const fn slots(self) -> u64 {
        self.0 % Self::MOST_SLOTS + 1
    }

    /// The slot after the last one.
    pub const fn end(self) -> u64 {
        self.first() + self.slots()
    }

    /// How many bytes they hold together.
    pub const fn bytes(self) -> usize {
        // At most 32 slots.
        self.slots() as usize * Self::SLOT_BYTES
    }

    /// Slots that a page of this length takes.
    pub(super) const fn slots_for(length: usize) -> u64 {
        length.saturating_add(Self::LENGTH_BYTES).div_ceil(Self::SLOT_BYTES) as u64
    }

    /// One number for both.
    pub(super) const fn number(self) -> u64 {
        self.0
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        Self::new(number / Self::MOST_SLOTS, number % Self::MOST_SLOTS + 1)
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [a, b, c, d, e, f] = bytes;
        Self::from_number(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

/// One atomic change. `None` removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreCommit {
    /// New header.
    pub header: Vec<u8>,
    /// Records by key.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What the vault needs of a disk.
pub trait SealedStore: Send + Sync {
    /// The header, absent in an empty store.
    fn header(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// What was last written there, absent where nothing whole was. It may be anything: the vault opens it by its key.
    fn page(&self, at: Extent) -> Result<Option<Vec<u8>>, StoreError>;

    /// A record.
    fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Records with this prefix and a key above `after`, ascending, until `visit` says `false`. `visit`
    /// does not call the store.
    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;

    /// Writes pages. The header that was applied last does not refer to these slots: after an error, or a crash, they
    /// may hold anything, and nothing else has changed.
    fn write_pages(&self, pages: &[(Extent, &[u8])]) -> Result<(), StoreError>;

    /// Makes all pages durable that were written: when this returns `Ok` they survive a power cut.
    fn sync_pages(&self) -> Result<(), StoreError>;

    /// Applies the change atomically and durably: when this returns `Ok` it survives a power cut. After an
    /// error it may or may not have happened.
    fn apply(&self, commit: &StoreCommit) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_bounded_and_come_back_from_their_bytes() {
        for (first, slots) in [(1, 1), (7, 32), ((1 << 43) - 1, 17)] {
            let extent = Extent::new(first, slots).unwrap();
            assert_eq!((extent.first(), extent.slots(), extent.end()), (first, slots, first + slots));
            assert_eq!(Extent::from_bytes(extent.to_bytes()), Some(extent));
            assert_eq!(Extent::from_number(extent.number()), Some(extent));
        }
        for (first, slots) in [(0, 1), (1, 0), (1, 33), (1 << 43, 1)] {
            assert_eq!(Extent::new(first, slots), None);
        }
        assert_eq!(Extent::from_bytes([0; Extent::BYTES]), None);
        assert_eq!([0, 4092, 4093, 8188, 8189].map(Extent::slots_for), [1, 1, 2, 2, 3]);
    }
}
