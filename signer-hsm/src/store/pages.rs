//! The slots: a file of blocks, mode 0600, locked against other processes.
//!
//! The first slot names the store that the file belongs to; then come the vault's, each page with its length at the end of
//! its last slot. A slot is written whole and never while the store's header refers to it, so no write needs to be atomic;
//! whether what is read is what the vault wrote shows when it is opened by its key.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
};

use spark_signer::vault::{Extent, StoreError};

use super::{failed, options};

const MAGIC: &[u8; 16] = b"spark/pages/v1\0\0";
/// Most that is written at once, bytes.
const RUN_BYTES: usize = 1 << 20;

pub(super) struct PageFile {
    file: File,
    /// Where a run is laid out. What is in it lies in the file as well.
    run: Mutex<Vec<u8>>,
}

impl PageFile {
    /// Makes a file without pages. Refuses when there is one.
    pub(super) fn create(path: &Path, store: u64) -> Result<Self, StoreError> {
        let file = options().create_new(true).mode(0o600).open(path).map_err(failed)?;
        let begin = || {
            lock(&file)?;
            file.write_all_at(&first_slot(store), 0).map_err(failed)?;
            file.sync_all().map_err(failed)
        };
        begin().inspect_err(|_| std::fs::remove_file(path).unwrap_or_default())?;
        Ok(Self { file, run: Mutex::default() })
    }

    /// Opens the file that was made for this store.
    pub(super) fn open(path: &Path, store: u64) -> Result<Self, StoreError> {
        let file = options().open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::PagesMissing,
            _ => failed(error),
        })?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(StoreError::Failed("file is open to group or others, mode must be 0600".into()));
        }
        lock(&file)?;
        let mut first = vec![0; Extent::SLOT_BYTES];
        match file.read_exact_at(&mut first, 0) {
            Ok(()) if first == first_slot(store) => Ok(Self { file, run: Mutex::default() }),
            Ok(()) => Err(StoreError::PagesForeign),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StoreError::PagesMissing),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn read(&self, at: Extent) -> Result<Option<Vec<u8>>, StoreError> {
        let mut page = vec![0; at.bytes()];
        match self.file.read_exact_at(&mut page, offset(at)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let length = page.last_chunk().map(|length| u32::from_le_bytes(*length));
        let length = length.and_then(|length| usize::try_from(length).ok());
        let whole = length.filter(|length| *length <= at.bytes().saturating_sub(Extent::LENGTH_BYTES));
        Ok(whole.map(|length| {
            page.truncate(length);
            page
        }))
    }

    /// Writes pages where they belong, neighbours together.
    pub(super) fn write(&self, pages: &[(Extent, &[u8])]) -> Result<(), StoreError> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.clear();
        let mut start = 0;
        let mut pages = pages.iter().peekable();
        while let Some((at, page)) = pages.next() {
            if run.is_empty() {
                start = offset(*at);
            }
            add(&mut run, *at, page)?;
            let goes_on = pages.peek().is_some_and(|(next, _)| {
                next.first() == at.end() && run.len().saturating_add(next.bytes()) <= RUN_BYTES
            });
            if !goes_on {
                self.file.write_all_at(&run, start).map_err(failed)?;
                run.clear();
            }
        }
        Ok(())
    }

    /// What was written survives a power cut.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(failed)
    }
}

/// Lays a page out over its slots.
fn add(run: &mut Vec<u8>, at: Extent, page: &[u8]) -> Result<(), StoreError> {
    let too_long = || StoreError::Failed("page is longer than its slots".into());
    let room = at.bytes().checked_sub(Extent::LENGTH_BYTES).filter(|room| page.len() <= *room);
    let gap = room.ok_or_else(too_long)?.saturating_sub(page.len());
    let length = u32::try_from(page.len()).map_err(|_| too_long())?;
    run.extend_from_slice(page);
    run.resize(run.len().saturating_add(gap), 0);
    run.extend_from_slice(&length.to_le_bytes());
    Ok(())
}

fn offset(at: Extent) -> u64 {
    at.first().saturating_mul(Extent::SLOT_BYTES as u64)
}

fn first_slot(store: u64) -> Vec<u8> {
    let mut slot = [MAGIC.as_slice(), &store.to_be_bytes()].concat();
    slot.resize(Extent::SLOT_BYTES, 0);
    slot
}

fn lock(file: &File) -> Result<(), StoreError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::InUse,
        TryLockError::Error(error) => failed(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on disk, byte by byte.
    #[test]
    fn a_page_ends_with_its_length_at_the_end_of_its_slots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pages");
        let file = PageFile::create(&path, 0x0102_0304_0506_0708).unwrap();
        let at = |first, slots| Extent::new(first, slots).unwrap();
        let pages = vec![(at(4, 1), vec![4; 4092]), (at(5, 2), vec![5; 4100]), (at(2, 1), vec![])];
        let borrowed: Vec<_> = pages.iter().map(|(at, page)| (*at, page.as_slice())).collect();
        file.write(&borrowed).unwrap();
        file.sync().unwrap();
        for (at, page) in &pages {
            assert_eq!(file.read(*at).unwrap().as_ref(), Some(page));
        }
        assert!(file.write(&[(at(2, 1), &[0; 4093])]).is_err());
        assert_eq!(file.read(at(6, 2)).unwrap(), None, "beyond the end");
        assert_eq!(file.read(at(3, 1)).unwrap().as_deref(), Some([].as_slice()), "never written");

        let mut expected = b"spark/pages/v1\0\0\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        expected.resize(4 * 4096, 0);
        expected.extend([4; 4092]);
        expected.extend([0xfc, 0x0f, 0, 0]);
        expected.extend([5; 4100]);
        expected.resize(7 * 4096 - 4, 0);
        expected.extend([0x04, 0x10, 0, 0]);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}
