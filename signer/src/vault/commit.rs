//! The commit order.
//!
//! On every serving device: 0 new root · 1 derive twice, sync the token. At the same time: 2 re-key the touched pages and
//! write them to free slots, durably. When both are done: seal the header · 3 one store transaction with header and
//! records, the commit point · 4 on every device, destroy the old root; forget the old keys; the slots of what was
//! superseded become free. A batch that destroys nothing keeps the root and skips 0 and 4.

use std::collections::BTreeMap;

use super::cores;
use super::devices::{Device, DeviceState, Refusal};
use super::error::VaultError;
use super::failpoint::Step;
use super::hand::{Hand, Hook, Stop};
use super::header::{BodyRef, Head};
use super::ledger::{RecordSet, SetState};
use super::open::Vault;
use super::seal::SealBroken;
use super::store::{SealedStore, StoreCommit, StoreError};
use super::token::{DeviceId, RootId, TokenError};
use super::tree::{Change, OpenPages, Written};
use super::txn::{Changes, Fate};

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
    /// The vault's content could not be read, sealed or written: nothing has changed.
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

impl Vault {
    pub(super) fn commit(&mut self, changes: Changes, open: &OpenPages) -> Result<Committed, CommitError> {
        let rotate = changes.ends > 0;
        self.commit_under(changes, open, rotate)
    }

    /// Seals the store under a new root although nothing is destroyed: another open copy of the store, over the same
    /// token, can make no commit after it.
    ///
    /// Fails if a device is left behind by it: a copy could go on there. It can be called again.
    pub fn renew_root(&mut self) -> Result<Committed, CommitError> {
        let serving = |vault: &Self| -> Vec<DeviceId> {
            vault.devices.iter().filter(|device| device.is_serving()).map(|device| device.id).collect()
        };
        let before = serving(self);
        let committed = self.commit_under(Changes::default(), &OpenPages::none(), true)?;
        let after = serving(self);
        match before.into_iter().find(|id| !after.contains(id) && !self.start_without.contains(id)) {
            Some(left) => Err(TokenError::DeviceAway(left).into()),
            None => Ok(committed),
        }
    }

    fn commit_under(
        &mut self,
        changes: Changes,
        open: &OpenPages,
        rotate: bool,
    ) -> Result<Committed, CommitError> {
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

        let sealed = match self.prepare(&head, rotate.then_some(before), changes, open) {
            Ok(sealed) => sealed,
            Err(Stop::Over(error)) => {
                self.cut_off = true;
                return Err(error);
            }
            Err(Stop::Failed(error)) => {
                // Best effort: a root that stays is swept before the next one is made.
                self.devices.iter_mut().filter(|device| device.is_serving()).for_each(|device| {
                    let _ = device.sweep(&before);
                });
                return Err(error);
            }
        };
        self.step(Step::Sealed)?;
        if let Err(error) = self.store.apply(&sealed.store) {
            self.cut_off = true;
            return Err(CommitError::OutcomeUnknown(error));
        }
        self.step(Step::StoreCommitted)?;
        self.head = head;
        for device in &mut self.devices {
            device.wrapped = sealed.wrapped.contains(&device.id);
        }
        self.records.state = sealed.state;
        self.tree.adopt(sealed.tree);
        if rotate {
            for at in 0..self.devices.len() {
                let Some(device) = self.devices.get_mut(at).filter(|device| device.is_serving()) else {
                    continue;
                };
                if device.superseded(before).is_err() {
                    self.cut_off = true;
                    return Err(CommitError::MustReopen);
                }
                self.step(Step::RootDestroyed)?;
            }
        }
        Ok(Committed {
            epoch_before: before.epoch,
            epoch_after: after.epoch,
            root_before: before,
            root_after: after,
            sequence: self.head.sequence,
            destruction: match (rotate, self.holds_superseded()) {
                (false, _) => Destruction::None,
                (true, false) => Destruction::Reported,
                (true, true) => Destruction::Pending,
            },
        })
    }

    /// Whether a device has, or may have, a root that was superseded.
    fn holds_superseded(&self) -> bool {
        let behind = |device: &Device| match device.state {
            DeviceState::Serving => !device.undestroyed.is_empty(),
            DeviceState::Away | DeviceState::Retiring => self.members.contains_key(&device.id),
        };
        self.devices.iter().any(behind)
            || self.members.keys().any(|member| self.devices.iter().all(|device| device.id != *member))
    }

    /// Makes the next epoch's root ahead of the batch that will need it, so that the batch need not wait for the
    /// token. A restart destroys one that was not used.
    pub fn prepare_spare(&mut self) -> Result<(), TokenError> {
        if self.cut_off || !self.witnessed {
            return Ok(());
        }
        let current = self.head.root;
        for device in self.devices.iter_mut().filter(|device| device.is_serving()) {
            match device.prepare_spare(&current) {
                Ok(()) => {}
                Err(Refusal::Failed(error)) => return Err(error),
                Err(Refusal::TakenOver(error)) => {
                    self.cut_off = true;
                    return Err(error.unwrap_or(TokenError::RootMissing(current)));
                }
            }
        }
        Ok(())
    }

    /// Everything before the commit point. `former` is the root that the batch supersedes, if it does.
    fn prepare(
        &mut self,
        head: &Head,
        former: Option<RootId>,
        changes: Changes,
        open: &OpenPages,
    ) -> Result<Sealed, Stop> {
        let Changes { secrets, records, .. } = changes;
        let secrets: Vec<Change> = secrets.into_iter().map(|(id, Fate { value, .. })| (id, value)).collect();
        let Self { devices, hook, store, tree, records: set, .. } = self;
        let (hook, store) = (Hook::new(hook.as_deref()), &**store);
        let mut hand = Hand { devices, hook };
        let mut keys = || hand.header_keys(head, former);
        let pages = || -> Result<(SetState, Written), Stop> {
            hook.step(Step::PagesBegun)?;
            let state = state_after(set, store, &records)?;
            let tree = tree.rewrite(store, open, &secrets)?;
            hook.step(Step::PagesWritten)?;
            Ok((state, tree))
        };
        // Making a root takes a device as long as the pages take the disk; using one takes next to nothing.
        let (keys, pages) = if former.is_some() { cores::both(keys, pages) } else { (Some(keys()), pages()) };
        let keys = keys.unwrap_or(Err(Stop::Over(CommitError::MustReopen)));
        let (keys, (state, tree)) = match (keys, pages) {
            (Ok(keys), Ok(pages)) => (keys, pages),
            (Err(over @ Stop::Over(_)), _) | (_, Err(over @ Stop::Over(_))) => return Err(over),
            (Err(failed), _) | (_, Err(failed)) => return Err(failed),
        };
        let body = BodyRef {
            incarnation: self.incarnation,
            records: &self.records,
            state,
            top: tree.top.as_ref(),
            end: tree.end(),
            secrets: tree.len,
        };
        let header =
            body.seal(head, &keys).map_err(|SealBroken| VaultError::Damaged("header could not be sealed"))?;
        let store = StoreCommit { header, records: records.into_iter().collect() };
        Ok(Sealed { store, state, tree, wrapped: keys.into_iter().map(|(id, _)| id).collect() })
    }

    fn step(&mut self, step: Step) -> Result<(), CommitError> {
        match Hook::new(self.hook.as_deref()).step(step) {
            Ok(()) => Ok(()),
            Err(Stop::Over(error) | Stop::Failed(error)) => {
                self.cut_off = true;
                Err(error)
            }
        }
    }
}

/// The set of records after these changes.
fn state_after(
    set: &RecordSet,
    store: &dyn SealedStore,
    changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
) -> Result<SetState, VaultError> {
    let mut state = set.state;
    for (record, value) in changes {
        if let Some(old) = store.record(record)? {
            set.remove(&mut state, record, &old);
        }
        if let Some(new) = value {
            set.add(&mut state, record, new);
        }
    }
    Ok(state)
}

/// A batch whose pages are written, and what the vault becomes with it.
struct Sealed {
    store: StoreCommit,
    state: SetState,
    tree: Written,
    /// Devices by which the header opens.
    wrapped: Vec<DeviceId>,
}
