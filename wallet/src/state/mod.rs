//! What the wallet must not forget, in one redb file.
//!
//! A request is stored, to the byte, before it leaves: after a crash the same bytes are sent again and the
//! operators answer as they did the first time (D7). Values are JSON, protobuf messages inside are hex.
//! Nothing here is secret: new leaf keys lie only inside the sealed request.

mod records;

use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};

pub use records::{
    ClaimRecord, ClaimTweak, DepositRecord, DepositState, DirectSteps, ExitRecord, ExitState, ExitTerms,
    FinalLeaf, HtlcExit, HtlcTerms, LeafKeyKind, SeenHead, SendRecord, SendShare, SendState, StoredLeaf,
    StoredStep, UsedPackageKey, Wire,
};

/// Name of the file in the wallet's directory.
pub const FILE: &str = "state.redb";

const FORMAT: &str = "1";

const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");
const DEPOSITS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("deposits");
const SENDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("sends");
const CLAIMS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("claims");
const LEAVES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("leaves");
const EXITS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("exits");
const HTLC_EXITS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("htlc-exits");
const PACKAGE_KEYS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("package-keys");
const HEADS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("log-heads");

/// A store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has the file open.
    #[error("another spark-wallet uses this directory")]
    InUse,
    /// The file, or the disk below it, fails.
    #[error("wallet state cannot be read or written")]
    Store(#[source] Box<redb::Error>),
    /// A record that this program cannot read.
    #[error("record {key} of {table} cannot be read: {reason}")]
    Record {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
        /// What the parser says.
        reason: String,
    },
    /// Written by another version, or for another wallet.
    #[error("wallet state has {what} {found:?}, not {expected:?}")]
    Other {
        /// What differs.
        what: &'static str,
        /// In the file.
        found: String,
        /// This program's, or this wallet's.
        expected: String,
    },
}

fn store(error: impl Into<redb::Error>) -> StateError {
    StateError::Store(Box::new(error.into()))
}

/// The open store. One process at a time.
pub struct State(Database);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

/// A kind of record, with its table and key.
pub trait Record: Serialize + DeserializeOwned {
    /// Table.
    #[doc(hidden)]
    const TABLE: Table;

    /// Key within the table.
    fn key(&self) -> &str;
}

/// A table of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Deposit addresses.
    Deposits,
    /// Outgoing transfers.
    Sends,
    /// Incoming transfers.
    Claims,
    /// Leaves with everything an exit needs.
    Leaves,
    /// Exits under way.
    Exits,
    /// Heads of deletion logs.
    Heads,
    /// One-time package keys that were sealed to.
    PackageKeys,
    /// Exits of what a preimage completes.
    HtlcExits,
}

impl Table {
    const ALL: [Self; 8] = [
        Self::Deposits,
        Self::Sends,
        Self::Claims,
        Self::Leaves,
        Self::Exits,
        Self::Heads,
        Self::PackageKeys,
        Self::HtlcExits,
    ];

    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Deposits => DEPOSITS,
            Self::Sends => SENDS,
            Self::Claims => CLAIMS,
            Self::Leaves => LEAVES,
            Self::Exits => EXITS,
            Self::Heads => HEADS,
            Self::PackageKeys => PACKAGE_KEYS,
            Self::HtlcExits => HTLC_EXITS,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Deposits => "deposits",
            Self::Sends => "sends",
            Self::Claims => "claims",
            Self::Leaves => "leaves",
            Self::Exits => "exits",
            Self::Heads => "log-heads",
            Self::PackageKeys => "package-keys",
            Self::HtlcExits => "htlc-exits",
        }
    }
}

impl State {
    /// Opens or creates the store of the wallet with this identity key (hex).
    pub fn open(dir: &Path, identity: &str) -> Result<Self, StateError> {
        let database = Database::create(dir.join(FILE)).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => StateError::InUse,
            other => store(other),
        })?;
        let write = database.begin_write().map_err(store)?;
        for table in Table::ALL {
            write.open_table(table.definition()).map_err(store)?;
        }
        {
            let mut meta = write.open_table(META).map_err(store)?;
            for (what, expected) in [("format", FORMAT), ("identity", identity)] {
                let found = meta.get(what).map_err(store)?.map(|v| v.value().to_owned());
                match found {
                    Some(found) if found != expected => {
                        return Err(StateError::Other { what, found, expected: expected.to_owned() });
                    }
                    Some(_) => {}
                    None => {
                        meta.insert(what, expected).map_err(store)?;
                    }
                }
            }
        }
        write.commit().map_err(store)?;
        Ok(Self(database))
    }

    /// Writes a record; it is on disk when this returns.
    pub fn put<R: Record>(&self, record: &R) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(record).map_err(|e| unreadable(R::TABLE, record.key(), &e))?;
        let write = self.0.begin_write().map_err(store)?;
        write
            .open_table(R::TABLE.definition())
            .map_err(store)?
            .insert(record.key(), bytes.as_slice())
            .map_err(store)?;
        write.commit().map_err(store)
    }

    /// Writes records, all of them new. One whose key is there already: nothing is written, and the key is returned.
    pub fn put_new<R: Record>(&self, records: &[&R]) -> Result<Option<String>, StateError> {
        if records.is_empty() {
            return Ok(None);
        }
        let write = self.0.begin_write().map_err(store)?;
        {
            let mut table = write.open_table(R::TABLE.definition()).map_err(store)?;
            for record in records {
                let key = record.key();
                let bytes = serde_json::to_vec(record).map_err(|e| unreadable(R::TABLE, key, &e))?;
                if table.insert(key, bytes.as_slice()).map_err(store)?.is_some() {
                    return Ok(Some(key.to_owned()));
                }
            }
        }
        write.commit().map_err(store)?;
        Ok(None)
    }

    /// Writes `new` under `key` if what lies there is still `old`; false: somebody else wrote meanwhile.
    pub fn replace<R: Record + PartialEq>(
        &self,
        key: &str,
        old: Option<&R>,
        new: &R,
    ) -> Result<bool, StateError> {
        let bytes = serde_json::to_vec(new).map_err(|e| unreadable(R::TABLE, key, &e))?;
        let write = self.0.begin_write().map_err(store)?;
        {
            let mut table = write.open_table(R::TABLE.definition()).map_err(store)?;
            let found: Option<R> = match table.get(key).map_err(store)? {
                Some(value) => {
                    Some(serde_json::from_slice(value.value()).map_err(|e| unreadable(R::TABLE, key, &e))?)
                }
                None => None,
            };
            if found.as_ref() != old {
                return Ok(false);
            }
            table.insert(key, bytes.as_slice()).map_err(store)?;
        }
        write.commit().map_err(store)?;
        Ok(true)
    }

    /// Reads a record.
    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>, StateError> {
        let read = self.0.begin_read().map_err(store)?;
        let table = read.open_table(R::TABLE.definition()).map_err(store)?;
        let Some(value) = table.get(key).map_err(store)? else { return Ok(None) };
        serde_json::from_slice(value.value()).map(Some).map_err(|e| unreadable(R::TABLE, key, &e))
    }

    /// All records of a kind, by key.
    pub fn all<R: Record>(&self) -> Result<Vec<R>, StateError> {
        let read = self.0.begin_read().map_err(store)?;
        let table = read.open_table(R::TABLE.definition()).map_err(store)?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(store)? {
            let (key, value) = entry.map_err(store)?;
            records.push(
                serde_json::from_slice(value.value()).map_err(|e| unreadable(R::TABLE, key.value(), &e))?,
            );
        }
        Ok(records)
    }

    /// Removes records, in one write.
    pub fn remove_all<R: Record>(&self, keys: &[&str]) -> Result<(), StateError> {
        if keys.is_empty() {
            return Ok(());
        }
        let write = self.0.begin_write().map_err(store)?;
        {
            let mut table = write.open_table(R::TABLE.definition()).map_err(store)?;
            for key in keys {
                table.remove(*key).map_err(store)?;
            }
        }
        write.commit().map_err(store)
    }

    /// Removes a record.
    pub fn remove<R: Record>(&self, key: &str) -> Result<(), StateError> {
        let write = self.0.begin_write().map_err(store)?;
        write.open_table(R::TABLE.definition()).map_err(store)?.remove(key).map_err(store)?;
        write.commit().map_err(store)
    }
}

fn unreadable(table: Table, key: &str, error: &serde_json::Error) -> StateError {
    StateError::Record { table: table.name(), key: key.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(id: &str, state: SendState) -> SendRecord {
        SendRecord {
            transfer_id: id.into(),
            receiver: "02".into(),
            amount: 5,
            leaves: vec!["leaf".into()],
            shares: Vec::new(),
            invoice: String::new(),
            many: None,
            htlc: None,
            swap: None,
            exit: None,
            coop: None,
            request: Wire::of(&spark_proto::spark::StartTransferRequest {
                transfer_id: id.into(),
                ..Default::default()
            }),
            attempt: 0,
            state,
            created: 1,
            built: 1,
            step_over: false,
            ended: false,
        }
    }

    #[test]
    fn records_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "id").unwrap();
        assert!(matches!(State::open(dir.path(), "id"), Err(StateError::InUse)));
        state.put(&send("a", SendState::Pending)).unwrap();
        state.put(&send("b", SendState::Pending)).unwrap();
        state.put(&send("a", SendState::Done)).unwrap();
        drop(state);
        let state = State::open(dir.path(), "id").unwrap();
        assert_eq!(state.get::<SendRecord>("a").unwrap(), Some(send("a", SendState::Done)));
        assert_eq!(state.all::<SendRecord>().unwrap().len(), 2);
        assert_eq!(state.get::<SendRecord>("c").unwrap(), None);
        state.remove::<SendRecord>("a").unwrap();
        assert_eq!(state.all::<SendRecord>().unwrap(), vec![send("b", SendState::Pending)]);
    }

    #[test]
    fn a_store_belongs_to_one_wallet() {
        let dir = tempfile::tempdir().unwrap();
        drop(State::open(dir.path(), "id").unwrap());
        assert!(matches!(State::open(dir.path(), "other"), Err(StateError::Other { what: "identity", .. })));
    }

    #[test]
    fn requests_keep_their_bytes() {
        let record = send("a", SendState::Pending);
        let json = serde_json::to_vec(&record).unwrap();
        let again: SendRecord = serde_json::from_slice(&json).unwrap();
        assert_eq!(again.request.decode().unwrap().transfer_id, "a");
        assert_eq!(again, record);
    }

    #[test]
    fn new_records_are_written_all_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "02").unwrap();
        let key = |id: &str| UsedPackageKey { id: id.into(), expires: 1 };
        let (a, b, c) = (key("a"), key("b"), key("c"));
        assert_eq!(state.put_new(&[&a, &b]).unwrap(), None);
        assert_eq!(state.put_new(&[&c, &b]).unwrap(), Some("b".into()));
        assert_eq!(state.all::<UsedPackageKey>().unwrap(), [a, b.clone()]);
        state.remove_all::<UsedPackageKey>(&["a", "z"]).unwrap();
        assert_eq!(state.all::<UsedPackageKey>().unwrap(), [b]);
    }

    #[test]
    fn a_record_is_replaced_only_where_it_is_still_the_one_that_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "02").unwrap();
        let head = |note: &str| SeenHead { origin: "o".into(), note: note.into(), contradiction: None };
        let (one, two) = (head("one"), head("two"));
        assert!(!state.replace("o", Some(&one), &two).unwrap(), "there is none yet");
        assert!(state.replace("o", None, &one).unwrap());
        assert!(!state.replace("o", None, &two).unwrap());
        assert!(!state.replace("o", Some(&two), &two).unwrap());
        assert_eq!(state.get::<SeenHead>("o").unwrap(), Some(one.clone()));
        assert!(state.replace("o", Some(&one), &two).unwrap());
        assert_eq!(state.get::<SeenHead>("o").unwrap(), Some(two));
    }
}
