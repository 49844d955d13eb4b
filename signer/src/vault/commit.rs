//! The commit order.
//!
//! 0 new root · 1 derive twice, sync the token · 2 re-key the touched pages and seal the header · 3 one
//! store transaction, the commit point · 4 destroy the old root, forget the old keys. A batch that
//! destroys nothing keeps the root and skips 0 and 4.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use zeroize::Zeroizing;

use super::error::VaultError;
use super::failpoint::Step;
use super::header::{BodyRef, Head};
use super::id::SecretId;
use super::ledger::SetState;
use super::open::{Vault, derive_checked};
use super::page::{Fill, Page};
use super::seal::{DataKey, SealBroken};
use super::store::{StoreCommit, StoreError};
use super::token::{RootId, TokenError};
use super::txn::Changes;

/// What became of the secrets that a batch replaced or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destruction {
    /// The batch destroyed nothing.
    None,
    /// The superseded root is destroyed, as the token reports it. Independent confirmation is another step.
    Reported,
    /// This root, or an earlier one, is not destroyed. See [`Vault::destroy_pending`].
    Pending,
}

/// A durable batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Epoch before the batch.
    pub epoch_before: u64,
    /// Epoch after it.
    pub epoch_after: u64,
    /// Root before the batch.
    pub root_before: RootId,
    /// Root after it; the same if nothing was destroyed.
    pub root_after: RootId,
    /// Number of the commit.
    pub sequence: u64,
    /// What became of what it destroyed.
    pub destruction: Destruction,
}

/// Why a batch was not made durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The vault is read-only until [`Vault::confirm_witnessed`].
    #[error("vault is read-only until its position is witnessed")]
    Unwitnessed,
    /// The token failed before the commit point: nothing has changed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The vault's content could not be read or sealed: nothing has changed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store failed at the commit point; whether the batch is durable shows when the vault is opened again.
    #[error("outcome unknown, open the vault again: {0}")]
    OutcomeUnknown(StoreError),
    /// An earlier commit was cut off.
    #[error("vault must be opened again")]
    MustReopen,
    /// A fail point cut the commit off.
    #[error("commit was cut off at {0:?}")]
    CutOff(Step),
}

/// The touched pages, re-keyed, and what the vault becomes with them.
struct Plan {
    pages: BTreeMap<u32, Option<(DataKey, Vec<u8>, Fill)>>,
    moved: Vec<(SecretId, Option<u32>)>,
    next_page: u32,
}

impl Vault {
    pub(super) fn destroys(&self, changes: &Changes) -> bool {
        changes.secrets.keys().any(|id| self.index.contains_key(id))
    }

    pub(super) fn commit(&mut self, changes: Changes) -> Result<Committed, CommitError> {
        let rotate = self.destroys(&changes);
        self.commit_under(changes, rotate)
    }

    /// Seals the store under a new root although nothing is destroyed: another open copy of the store, over the same
    /// token, can make no commit after it.
    pub fn renew_root(&mut self) -> Result<Committed, CommitError> {
        self.commit_under(Changes::default(), true)
    }

    fn commit_under(&mut self, changes: Changes, rotate: bool) -> Result<Committed, CommitError> {
        if self.cut_off {
            return Err(CommitError::MustReopen);
        }
        if !self.witnessed {
            return Err(CommitError::Unwitnessed);
        }
        self.step(Step::Start)?;
        let before = self.head.root;
        let after = RootId { epoch: before.epoch.saturating_add(u64::from(rotate)), ..before };
        let head = Head::fresh(after, self.head.sequence.saturating_add(1));

        if rotate {
            self.sweep_uncommitted()?;
            self.strays.push(after);
            if let Err(error) = self.token.create_root(&after) {
                if matches!(error, TokenError::RootExists(_)) {
                    // Another copy of this store made it and lives on it: it is not ours to sweep, and this copy is over.
                    self.strays.pop();
                    self.cut_off = true;
                }
                return Err(error.into());
            }
            self.step(Step::RootCreated)?;
        }
        let prepared = self.prepare(&head, changes, rotate);
        let (plan, commit) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                // Best effort: a root that stays is swept before the next one is made.
                if !self.cut_off {
                    let _ = self.sweep_uncommitted();
                }
                return Err(error);
            }
        };
        self.step(Step::Sealed)?;
        if let Err(error) = self.store.apply(&commit.store) {
            self.cut_off = true;
            return Err(CommitError::OutcomeUnknown(error));
        }
        self.step(Step::StoreCommitted)?;
        self.adopt(head, plan, commit.state);
        if rotate {
            self.strays.clear();
            if self.token.destroy_root(&before).is_err() {
                self.undestroyed.push(before);
            }
            self.step(Step::RootDestroyed)?;
        }
        Ok(Committed {
            epoch_before: before.epoch,
            epoch_after: after.epoch,
            root_before: before,
            root_after: after,
            sequence: self.head.sequence,
            destruction: match (rotate, self.undestroyed.is_empty()) {
                (false, _) => Destruction::None,
                (true, true) => Destruction::Reported,
                (true, false) => Destruction::Pending,
            },
        })
    }

    /// Destroys roots of batches that never reached the commit point.
    fn sweep_uncommitted(&mut self) -> Result<(), TokenError> {
        if self.strays.is_empty() {
            return Ok(());
        }
        let present = self.token.roots()?;
        while let Some(stray) = self.strays.last().copied() {
            if present.contains(&stray) {
                self.token.destroy_root(&stray)?;
            }
            self.strays.pop();
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        head: &Head,
        changes: Changes,
        rotate: bool,
    ) -> Result<(Plan, Sealed), CommitError> {
        let key = derive_checked(&*self.token, head)?;
        self.step(Step::KeyDerived)?;
        if rotate {
            self.token.sync()?;
            self.step(Step::TokenSynced)?;
        }
        let Changes { secrets, records } = changes;
        let mut state = self.records.state;
        for (record, value) in &records {
            if let Some(old) = self.store.record(record).map_err(VaultError::from)? {
                self.records.remove(&mut state, record, &old);
            }
            if let Some(new) = value {
                self.records.add(&mut state, record, new);
            }
        }
        let plan = self.plan(secrets)?;
        let mut keys: BTreeMap<u32, &DataKey> = self.pages.iter().map(|(n, key)| (*n, key)).collect();
        for (number, page) in &plan.pages {
            match page {
                Some((key, ..)) => keys.insert(*number, key),
                None => keys.remove(number),
            };
        }
        let body = BodyRef {
            incarnation: self.incarnation,
            records: &self.records,
            state,
            next_page: plan.next_page,
            pages: &keys,
        };
        let header = body.seal(head, &key).map_err(|SealBroken| unsealable())?;
        let pages = plan
            .pages
            .iter()
            .map(|(number, page)| (*number, page.as_ref().map(|(_, sealed, _)| sealed.clone())))
            .collect();
        let store = StoreCommit { header, pages, records: records.into_iter().collect() };
        Ok((plan, Sealed { store, state }))
    }

    /// Takes the touched pages apart and puts them together again under fresh keys.
    fn plan(&self, secrets: BTreeMap<SecretId, Option<Zeroizing<Vec<u8>>>>) -> Result<Plan, VaultError> {
        let mut open: BTreeMap<u32, Page> = BTreeMap::new();
        for id in secrets.keys() {
            if let Some(number) = self.index.get(id) {
                let page = match open.entry(*number) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(self.load_page(*number)?),
                };
                page.remove(id);
            }
        }
        let mut next_page = self.next_page;
        let mut moved = Vec::with_capacity(secrets.len());
        for (id, value) in secrets {
            let Some(value) = value else {
                moved.push((id, None));
                continue;
            };
            let number = match self.find_room(&open, value.len()) {
                Some(number) => number,
                None => {
                    let fresh = next_page;
                    next_page = fresh.checked_add(1).ok_or(VaultError::Damaged("no page numbers left"))?;
                    fresh
                }
            };
            let page = match open.entry(number) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) if self.pages.contains_key(&number) => {
                    entry.insert(self.load_page(number)?)
                }
                Entry::Vacant(entry) => entry.insert(Page::default()),
            };
            page.insert(id, value);
            moved.push((id, Some(number)));
        }
        let mut pages = BTreeMap::new();
        for (number, page) in open {
            let sealed = if page.is_empty() {
                None
            } else {
                let key = DataKey::random();
                let sealed = page.seal(&self.place(number), &key).map_err(|SealBroken| unsealable())?;
                Some((key, sealed, page.fill()))
            };
            pages.insert(number, sealed);
        }
        Ok(Plan { pages, moved, next_page })
    }

    /// Prefers pages that the batch rewrites anyway.
    fn find_room(&self, open: &BTreeMap<u32, Page>, bytes: usize) -> Option<u32> {
        open.iter().find(|(_, page)| page.fill().has_room(bytes)).map(|(number, _)| *number).or_else(|| {
            let fits = |number: &&u32| self.fills.get(number).is_some_and(|fill| fill.has_room(bytes));
            self.roomy.iter().filter(|number| !open.contains_key(number)).find(fits).copied()
        })
    }

    fn adopt(&mut self, head: Head, plan: Plan, state: SetState) {
        self.head = head;
        self.records.state = state;
        self.next_page = plan.next_page;
        for (number, page) in plan.pages {
            match page {
                Some((key, _, fill)) => {
                    self.pages.insert(number, key);
                    self.note_fill(number, fill);
                }
                None => {
                    self.pages.remove(&number);
                    self.fills.remove(&number);
                    self.roomy.remove(&number);
                }
            }
        }
        for (id, number) in plan.moved {
            match number {
                Some(number) => self.index.insert(id, number),
                None => self.index.remove(&id),
            };
        }
    }

    fn step(&mut self, step: Step) -> Result<(), CommitError> {
        if self.hook.as_mut().is_none_or(|hook| hook.reached(step)) {
            return Ok(());
        }
        self.cut_off = true;
        Err(CommitError::CutOff(step))
    }
}

/// A batch ready for the store.
struct Sealed {
    store: StoreCommit,
    state: SetState,
}

fn unsealable() -> VaultError {
    VaultError::Damaged("content could not be sealed")
}
