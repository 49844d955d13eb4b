//! The vault's disk: two files, mode 0600, locked against other processes.
//!
//! Header and records lie in a redb database, whose transaction is the commit point; pages lie in slots of a file beside
//! it ([`pages_path`]), written and synced before. What the header leads to is never written over, so the second file
//! needs no transactions of its own, and a batch is written to it in few long runs.

mod pages;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rand_core::{OsRng, RngCore as _};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase as _, TableDefinition,
    TableError, WriteTransaction,
};
use spark_signer::vault::{Extent, SealedStore, StoreCommit, StoreError};

use self::pages::PageFile;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const HEADER: TableDefinition<'_, (), &[u8]> = TableDefinition::new("header");
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 3;
/// By which database and pages know each other.
const STORE_KEY: &str = "store";
const CACHE_BYTES: usize = 256 << 20;

/// Where the pages of a store lie: beside its file, whose name is continued by `.pages`.
pub fn pages_path(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".pages");
    name.into()
}

/// A store in a file, and another one with its pages.
pub struct RedbStore {
    database: Database,
    pages: PageFile,
    /// The tables as of the last commit: opening them for every read costs more than the read.
    reader: Mutex<Option<Reader>>,
}

/// The tables as of one commit. While it lives, the file cannot use the space again that later commits free.
struct Reader {
    header: ReadOnlyTable<(), &'static [u8]>,
    records: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}

impl RedbStore {
    /// Makes a new, empty store. Refuses when one of its files exists.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let file = options().create_new(true).mode(0o600).open(path).map_err(failed)?;
        let id = OsRng.next_u64();
        // What was made just now goes again; what was there before stays.
        let undo = |path: &Path| std::fs::remove_file(path).unwrap_or_default();
        let pages = PageFile::create(&pages_path(path), id).inspect_err(|_| undo(path))?;
        Self::begin_with(file, pages, id, path.parent()).inspect_err(|_| {
            undo(&pages_path(path));
            undo(path);
        })
    }

    fn begin_with(file: File, pages: PageFile, id: u64, folder: Option<&Path>) -> Result<Self, StoreError> {
        let store = Self { database: database(file)?, pages, reader: Mutex::default() };
        let txn = store.begin()?;
        {
            let mut meta = txn.open_table(META).map_err(failed)?;
            meta.insert(FORMAT_KEY, FORMAT).map_err(failed)?;
            meta.insert(STORE_KEY, id).map_err(failed)?;
        }
        txn.open_table(HEADER).map_err(failed)?;
        txn.open_table(RECORDS).map_err(failed)?;
        txn.commit().map_err(failed)?;
        // The files' names must survive a power cut as their content does.
        if let Some(folder) = folder {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(store)
    }

    /// Opens a store that [`Self::create`] made. A missing, empty or foreign file is an error, never a
    /// fresh start.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = options().open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::Missing,
            _ => failed(error),
        })?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.mode() & 0o077 != 0 {
            return Err(StoreError::Failed("file is open to group or others, mode must be 0600".into()));
        }
        if metadata.len() == 0 {
            return Err(StoreError::Format(0));
        }
        let database = database(file)?;
        let txn = database.begin_read().map_err(failed)?;
        let (format, id) = match txn.open_table(META) {
            Ok(table) => {
                let get = |key| table.get(key).map(|found| found.map_or(0, |value| value.value()));
                (get(FORMAT_KEY).map_err(failed)?, get(STORE_KEY).map_err(failed)?)
            }
            Err(TableError::TableDoesNotExist(_)) => (0, 0),
            Err(error) => return Err(failed(error)),
        };
        if format != FORMAT {
            return Err(StoreError::Format(format));
        }
        let pages = PageFile::open(&pages_path(path), id)?;
        Ok(Self { database, pages, reader: Mutex::default() })
    }

    fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match &mut *reader {
            Some(open) => open,
            None => {
                let txn = self.database.begin_read().map_err(failed)?;
                reader.insert(Reader {
                    header: txn.open_table(HEADER).map_err(failed)?,
                    records: txn.open_table(RECORDS).map_err(failed)?,
                })
            }
        };
        read(open)
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut txn = self.database.begin_write().map_err(failed)?;
        txn.set_durability(Durability::Immediate).map_err(failed)?;
        txn.set_two_phase_commit(true);
        Ok(txn)
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits();
    options.read(true).write(true).custom_flags(no_follow.cast_signed());
    options
}

fn database(file: File) -> Result<Database, StoreError> {
    let backend = FileBackend::new(file).map_err(failed)?;
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse,
        error => failed(error),
    })
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl SealedStore for RedbStore {
    fn header(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|tables| Ok(tables.header.get(()).map_err(failed)?.map(|header| header.value().to_vec())))
    }

    fn page(&self, at: Extent) -> Result<Option<Vec<u8>>, StoreError> {
        self.pages.read(at)
    }

    fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|tables| Ok(tables.records.get(key).map_err(failed)?.map(|value| value.value().to_vec())))
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.read(|tables| {
            let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
            for entry in tables.records.range(start..).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                if after.is_none_or(|after| key.value() > after) && !visit(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn write_pages(&self, pages: &[(Extent, &[u8])]) -> Result<(), StoreError> {
        self.pages.write(pages)
    }

    fn sync_pages(&self) -> Result<(), StoreError> {
        self.pages.sync()
    }

    fn apply(&self, commit: &StoreCommit) -> Result<(), StoreError> {
        let txn = self.begin()?;
        {
            let mut header = txn.open_table(HEADER).map_err(failed)?;
            header.insert((), commit.header.as_slice()).map_err(failed)?;
            let mut records = txn.open_table(RECORDS).map_err(failed)?;
            for (key, value) in &commit.records {
                match value {
                    Some(value) => records.insert(key.as_slice(), value.as_slice()).map_err(failed)?,
                    None => records.remove(key.as_slice()).map_err(failed)?,
                };
            }
        }
        txn.commit().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(store: &RedbStore, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        store
            .scan(prefix, after, &mut |key, _| {
                found.push(key.to_vec());
                found.len() < limit
            })
            .unwrap();
        found
    }

    #[test]
    fn keeps_what_was_applied_and_refuses_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.redb");
        assert_eq!(RedbStore::open(&path).unwrap_err(), StoreError::Missing);
        let store = RedbStore::create(&path).unwrap();
        assert!(RedbStore::create(&path).is_err());
        assert_eq!(RedbStore::open(&path).unwrap_err(), StoreError::InUse);
        let beside = folder.path().join("beside");
        std::fs::write(pages_path(&beside), b"somebody's").unwrap();
        assert!(RedbStore::create(&beside).is_err() && !beside.exists());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(store.header().unwrap(), None);
        let key = |bytes: &[u8]| (bytes.to_vec(), Some(bytes.to_vec()));
        let (far, near) = (Extent::new(7, 2).unwrap(), Extent::new(1, 1).unwrap());
        assert_eq!(store.page(near).unwrap(), None);
        store.write_pages(&[(far, &[2; 5000]), (near, &[3])]).unwrap();
        store.sync_pages().unwrap();
        let commit = StoreCommit {
            header: vec![1; 100],
            records: [b"a/1", b"a/2", b"a/3", b"b/1"].iter().map(|k| key(*k)).collect(),
        };
        store.apply(&commit).unwrap();
        drop(store);
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.header().unwrap(), Some(vec![1; 100]));
        assert_eq!(store.page(far).unwrap(), Some(vec![2; 5000]));
        assert_eq!(store.page(near).unwrap(), Some(vec![3]));
        assert_eq!(store.record(b"a/2").unwrap().as_deref(), Some(b"a/2".as_slice()));
        assert_eq!(records(&store, b"a/", None, 9), [b"a/1", b"a/2", b"a/3"]);
        assert_eq!(records(&store, b"a/", Some(b"a/1"), 1), [b"a/2"]);
        assert_eq!(records(&store, b"", Some(b"a/3"), 9), [b"b/1"]);
        let removal = StoreCommit { header: vec![4], records: vec![(b"a/2".to_vec(), None)] };
        store.apply(&removal).unwrap();
        assert_eq!(records(&store, b"a/", None, 9), [b"a/1", b"a/3"]);
    }

    #[test]
    fn foreign_and_readable_files_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8], mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        assert_eq!(RedbStore::open(&write("empty", b"", 0o600)).unwrap_err(), StoreError::Format(0));
        assert!(RedbStore::open(&write("text", &[b'x'; 5000], 0o600)).is_err());
        assert!(RedbStore::open(&write("open", b"x", 0o640)).is_err());
        let foreign = folder.path().join("foreign");
        drop(Database::create(&foreign).unwrap());
        std::fs::set_permissions(&foreign, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(RedbStore::open(&foreign).unwrap_err(), StoreError::Format(0));
        // The layout before, with the pages in the database.
        let earlier = folder.path().join("earlier");
        let database = Database::create(&earlier).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(META).unwrap().insert(FORMAT_KEY, 2).unwrap();
        txn.commit().unwrap();
        drop(database);
        std::fs::set_permissions(&earlier, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(RedbStore::open(&earlier).unwrap_err(), StoreError::Format(2));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&foreign, &link).unwrap();
        assert!(RedbStore::open(&link).is_err());
    }
}
