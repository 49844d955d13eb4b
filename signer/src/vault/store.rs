//! A crash-safe map of opaque pages and records.

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
    /// Reading or writing failed.
    #[error("store failed: {0}")]
    Failed(String),
}

/// A record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// One atomic change. `None` removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreCommit {
    /// New header.
    pub header: Vec<u8>,
    /// Pages and nodes of the key tree by number.
    pub pages: Vec<(u64, Option<Vec<u8>>)>,
    /// Records by key.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What the vault needs of a disk.
pub trait SealedStore: Send {
    /// The header, absent in an empty store.
    fn header(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// A page or node of the key tree.
    fn page(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// How many of them there are.
    fn page_count(&self) -> Result<u64, StoreError>;

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

    /// Applies the change atomically and durably: when this returns `Ok` it survives a power cut. After an
    /// error it may or may not have happened.
    fn apply(&self, commit: &StoreCommit) -> Result<(), StoreError>;
}
