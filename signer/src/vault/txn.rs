//! A batch under construction: an overlay over the vault that reads through and can be undone in part.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use zeroize::Zeroizing;

use super::commit::{CommitError, Committed};
use super::error::VaultError;
use super::id::{MAX_SECRET_BYTES, SecretId, SecretKind};
use super::open::{Position, Vault};
use super::store::Record;
use super::tree::OpenPages;

type Secret = Zeroizing<Vec<u8>>;

/// What becomes of a secret.
pub(super) struct Fate {
    /// Its value; `None` removes.
    pub(super) value: Option<Secret>,
    /// Whether the vault holds one of this name, which then ends.
    pub(super) ends: bool,
}

/// What a batch changes. Of records, `None` removes.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) secrets: BTreeMap<SecretId, Fate>,
    pub(super) records: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// How many of the vault's secrets end.
    pub(super) ends: usize,
}

enum Undo {
    Secret(SecretId, Option<Fate>),
    Record(Vec<u8>, Option<Option<Vec<u8>>>),
}

/// A point within a batch to fall back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub struct Savepoint(usize);

/// A batch. Dropped without [`Txn::commit`], it never was.
pub struct Txn<'v> {
    vault: &'v mut Vault,
    open: OpenPages,
    changes: Changes,
    undo: Vec<Undo>,
}

impl fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn").field("changes", &self.undo.len()).finish_non_exhaustive()
    }
}

impl<'v> Txn<'v> {
    pub(super) fn new(vault: &'v mut Vault) -> Self {
        Self { vault, open: OpenPages::of_a_batch(), changes: Changes::default(), undo: Vec::new() }
    }

    /// The vault as of the last commit.
    pub fn committed(&self) -> &Vault {
        self.vault
    }

    /// Reads what the batch will need to know of these secrets, all at once: faster than one by one where they are many.
    pub fn open_ahead(&self, ids: impl IntoIterator<Item = SecretId>) -> Result<(), VaultError> {
        self.vault.open_ahead(&self.open, &mut ids.into_iter())
    }

    /// A secret, as this batch leaves it.
    pub fn get_secret(&self, id: &SecretId) -> Result<Option<Secret>, VaultError> {
        match self.changes.secrets.get(id) {
            Some(fate) => Ok(fate.value.as_ref().map(|value| Zeroizing::new(value.to_vec()))),
            None => self.vault.secret(&self.open, id),
        }
    }

    /// Whether a secret exists, as this batch leaves it.
    pub fn has_secret(&self, id: &SecretId) -> Result<bool, VaultError> {
        match self.changes.secrets.get(id) {
            Some(fate) => Ok(fate.value.is_some()),
            None => self.vault.contains(&self.open, id),
        }
    }

    /// Names of an owner's secrets, as this batch leaves them, ordered by kind and version.
    pub fn secrets_of(&self, owner: &[u8; 16]) -> Result<Vec<SecretId>, VaultError> {
        let mut ids = self.vault.owned(&self.open, owner)?;
        ids.retain(|id| !self.changes.secrets.contains_key(id));
        let first = SecretId::new(*owner, SecretKind::Keyshare, 0);
        let changed = self.changes.secrets.range(first..).take_while(|(id, _)| id.owner == *owner);
        ids.extend(changed.filter(|(_, fate)| fate.value.is_some()).map(|(id, _)| *id));
        ids.sort_unstable();
        Ok(ids)
    }

    /// Writes a secret. Overwriting one destroys what was there.
    pub fn put_secret(&mut self, id: SecretId, value: Secret) -> Result<(), VaultError> {
        if value.len() > MAX_SECRET_BYTES {
            return Err(VaultError::SecretTooLong);
        }
        let ends = match self.changes.secrets.get(&id) {
            Some(fate) => fate.ends,
            None => self.vault.contains(&self.open, &id)?,
        };
        self.settle(id, Fate { value: Some(value), ends });
        Ok(())
    }

    /// Destroys a secret. Says whether there was one.
    pub fn delete_secret(&mut self, id: &SecretId) -> Result<bool, VaultError> {
        let (there, ends) = match self.changes.secrets.get(id) {
            Some(fate) => (fate.value.is_some(), fate.ends),
            None => {
                let there = self.vault.contains(&self.open, id)?;
                (there, there)
            }
        };
        if there {
            self.settle(*id, Fate { value: None, ends });
        }
        Ok(there)
    }

    fn settle(&mut self, id: SecretId, fate: Fate) {
        let ends = fate.ends;
        let before = self.changes.secrets.insert(id, fate);
        if before.is_none() {
            self.changes.ends = self.changes.ends.saturating_add(usize::from(ends));
        }
        self.undo.push(Undo::Secret(id, before));
    }

    /// A record, as this batch leaves it.
    pub fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        match self.changes.records.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.vault.record(key),
        }
    }

    /// Writes a record.
    pub fn put_record(&mut self, key: &[u8], value: Vec<u8>) {
        self.change_record(key, Some(value));
    }

    /// Removes a record.
    pub fn delete_record(&mut self, key: &[u8]) {
        self.change_record(key, None);
    }

    fn change_record(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let before = self.changes.records.insert(key.to_vec(), value);
        self.undo.push(Undo::Record(key.to_vec(), before));
    }

    /// All records with this prefix, as this batch leaves them, ascending.
    pub fn scan_records(&self, prefix: &[u8]) -> Result<Vec<Record>, VaultError> {
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> =
            self.vault.scan_records(prefix, None, usize::MAX)?.into_iter().collect();
        let changed = self.changes.records.range(prefix.to_vec()..);
        for (key, value) in changed.take_while(|(key, _)| key.starts_with(prefix)) {
            match value {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(found.into_iter().collect())
    }

    /// Up to `limit` records with this prefix and a key above `after`, as this batch leaves them, ascending.
    pub fn scan_records_after(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, VaultError> {
        let changed = self.changes.records.range(prefix.to_vec()..);
        let changed: Vec<_> = changed
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .collect();
        // So many that those which this batch removed do not count.
        let most = limit.saturating_add(changed.len());
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> =
            self.vault.scan_records(prefix, after, most)?.into_iter().collect();
        for (key, value) in changed {
            match value {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(found.into_iter().take(limit).collect())
    }

    /// Marks a point to fall back to.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Undoes everything since the savepoint, and with it all later savepoints.
    pub fn rollback_to(&mut self, savepoint: Savepoint) {
        while self.undo.len() > savepoint.0 {
            match self.undo.pop() {
                Some(Undo::Secret(id, before)) => {
                    let first = before.is_none();
                    let undone = restore(self.changes.secrets.entry(id), before);
                    if first && undone.is_some_and(|fate| fate.ends) {
                        self.changes.ends = self.changes.ends.saturating_sub(1);
                    }
                }
                Some(Undo::Record(key, before)) => drop(restore(self.changes.records.entry(key), before)),
                None => return,
            }
        }
    }

    /// Whether the batch, as it stands, destroys a committed secret.
    pub const fn destroys(&self) -> bool {
        self.changes.ends > 0
    }

    /// Epoch that a commit of the batch, as it stands, ends in. It can still rise by later changes, and
    /// fall only if the change that raised it is undone.
    pub fn epoch_after(&self) -> u64 {
        self.vault.epoch().saturating_add(u64::from(self.destroys()))
    }

    /// Where a commit of the batch, as it stands, ends.
    pub fn position_after(&self) -> Position {
        Position { epoch: self.epoch_after(), sequence: self.vault.sequence().saturating_add(1) }
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.undo.is_empty()
    }

    /// Makes the batch durable and destroys what it supersedes.
    pub fn commit(self) -> Result<Committed, CommitError> {
        self.vault.commit(self.changes, &self.open)
    }
}

/// Puts an entry back as it was; returns what it had become.
fn restore<K: Ord, V>(entry: Entry<'_, K, V>, before: Option<V>) -> Option<V> {
    match (entry, before) {
        (Entry::Occupied(mut slot), Some(value)) => Some(slot.insert(value)),
        (Entry::Occupied(slot), None) => Some(slot.remove()),
        (Entry::Vacant(slot), Some(value)) => {
            slot.insert(value);
            None
        }
        (Entry::Vacant(_), None) => None,
    }
}
