//! The header table.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bitcoin::block::Header;

use super::{BlockId, BoxError};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredHeader {
    /// Its place.
    pub id: BlockId,
    /// The header.
    pub header: Header,
}

/// One chain of headers without gaps; only its end changes.
#[async_trait]
pub trait HeaderStore: Send + Sync + 'static {
    /// The last header; `None` before the first block.
    async fn tip(&self) -> Result<Option<StoredHeader>, BoxError>;
    /// The header at a height, if it is stored.
    async fn at(&self, height: u32) -> Result<Option<StoredHeader>, BoxError>;
    /// Appends the child of the tip. Appending the tip again changes nothing.
    async fn push(&self, header: StoredHeader) -> Result<(), BoxError>;
    /// Removes the tip, which must be this block.
    async fn pop(&self, tip: BlockId) -> Result<(), BoxError>;
}

/// A table in memory, for tests and tools.
#[derive(Debug, Default)]
pub struct MemoryHeaders {
    headers: Mutex<BTreeMap<u32, StoredHeader>>,
}

#[derive(Debug, thiserror::Error)]
#[error("block does not fit the end of the header table")]
struct Misfit;

impl MemoryHeaders {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, StoredHeader>> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl HeaderStore for MemoryHeaders {
    async fn tip(&self) -> Result<Option<StoredHeader>, BoxError> {
        Ok(self.lock().last_key_value().map(|(_, header)| *header))
    }

    async fn at(&self, height: u32) -> Result<Option<StoredHeader>, BoxError> {
        Ok(self.lock().get(&height).copied())
    }

    async fn push(&self, header: StoredHeader) -> Result<(), BoxError> {
        let mut headers = self.lock();
        if let Some((_, tip)) = headers.last_key_value() {
            if tip.id == header.id {
                return Ok(());
            }
            if header.header.prev_blockhash != tip.id.hash || header.id.height != tip.id.height + 1 {
                return Err(Misfit.into());
            }
        }
        headers.insert(header.id.height, header);
        Ok(())
    }

    async fn pop(&self, tip: BlockId) -> Result<(), BoxError> {
        let mut headers = self.lock();
        match headers.last_entry() {
            Some(last) if last.get().id == tip => {
                last.remove();
                Ok(())
            }
            _ => Err(Misfit.into()),
        }
    }
}
