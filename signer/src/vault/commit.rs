//! The commit order.
//!
//! 0 new root · 1 derive twice, sync the token · 2 re-key the touched pages and seal the header · 3 one
//! store transaction, the commit point · 4 destroy the old root, forget the old keys. A batch that
//! destroys nothing keeps the root and skips 0 and 4.

use rand_core::{OsRng, RngCore as _};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::error::VaultError;
use super::failpoint::Step;
use super::header::{BodyRef, Head};
use super::ledger::SetState;
use super::open::{Vault, derive_checked};
use super::seal::SealBroken;
use super::store::{StoreCommit, StoreError};
use super::token::{RootId, Token, TokenError};
use super::tree::{Change, OpenPages, Rewrite};
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

impl Vault {
    pub(super) fn commit(&mut self, changes: Changes, open: &OpenPages) -> Result<Committed, CommitError> {
        let rotate = changes.ends > 0;
        self.commit_under(changes, open, rotate)
    }

    /// Seals the store under a new root although nothing is destroyed: another open copy of the store, over the same
    /// token, can make no commit after it.
    pub fn renew_root(&mut self) -> Result<Committed, CommitError> {
        self.commit_under(Changes::default(), &OpenPages::none(), true)
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

        if rotate {
            self.sweep_uncommitted()?;
            match self.spare.take() {
                Some(spare) => self.take_spare(spare)?,
                None => self.create_next(after)?,
            }
            self.step(Step::RootCreated)?;
        }
        let prepared = self.prepare(&head, changes, open, rotate);
        let sealed = match prepared {
            Ok(sealed) => sealed,
            Err(error) => {
                // Best effort: a root that stays is swept before the next one is made.
                if !self.cut_off {
                    let _ = self.sweep_uncommitted();
                }
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
        self.records.state = sealed.state;
        self.tree.adopt(sealed.tree);
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
        if !present.contains(&self.head.root) {
            // Another copy of this store took over: what is there is its own.
            self.cut_off = true;
            return Err(TokenError::RootMissing(self.head.root));
        }
        while let Some(stray) = self.strays.last().copied() {
            if present.contains(&stray) {
                self.token.destroy_root(&stray)?;
            }
            self.strays.pop();
        }
        Ok(())
    }

    /// Makes the next epoch's root ahead of the batch that will need it, so that the batch need not wait for the
    /// token. A restart destroys one that was not used.
    pub fn prepare_spare(&mut self) -> Result<(), TokenError> {
        if self.spare.is_some() || self.cut_off || !self.witnessed {
            return Ok(());
        }
        self.sweep_uncommitted()?;
        let root = self.head.root;
        let next = RootId { epoch: root.epoch.saturating_add(1), ..root };
        self.create_next(next)?;
        let spare = Spare::made(&*self.token, next)?;
        self.strays.pop();
        self.spare = Some(spare);
        Ok(())
    }

    /// Another copy of this store, opened meanwhile, destroys roots that it does not know and may have made one of the
    /// same name: then this copy is over.
    fn take_spare(&mut self, spare: Spare) -> Result<(), CommitError> {
        match spare.is_there(&*self.token) {
            Ok(true) => {
                self.strays.push(spare.root);
                Ok(())
            }
            Ok(false) => {
                self.cut_off = true;
                Err(CommitError::MustReopen)
            }
            // Not known to be ours: it is asked again, and not swept.
            Err(error) => {
                self.spare = Some(spare);
                Err(error.into())
            }
        }
    }

    /// Makes a root and counts it among the uncommitted.
    fn create_next(&mut self, root: RootId) -> Result<(), TokenError> {
        self.strays.push(root);
        self.token.create_root(&root).inspect_err(|error| {
            if matches!(error, TokenError::RootExists(_)) {
                // Another copy of this store made it and lives on it: it is not ours to sweep, and this copy is over.
                self.strays.pop();
                self.cut_off = true;
            }
        })
    }

    fn prepare(
        &mut self,
        head: &Head,
        changes: Changes,
        open: &OpenPages,
        rotate: bool,
    ) -> Result<Sealed, CommitError> {
        let key = derive_checked(&*self.token, head)?;
        self.step(Step::KeyDerived)?;
        if rotate {
            self.token.sync()?;
            self.step(Step::TokenSynced)?;
        }
        let Changes { secrets, records, .. } = changes;
        let mut state = self.records.state;
        for (record, value) in &records {
            if let Some(old) = self.store.record(record).map_err(VaultError::from)? {
                self.records.remove(&mut state, record, &old);
            }
            if let Some(new) = value {
                self.records.add(&mut state, record, new);
            }
        }
        let secrets: Vec<Change> = secrets.into_iter().map(|(id, Fate { value, .. })| (id, value)).collect();
        let mut tree = self.tree.rewrite(&*self.store, open, &secrets)?;
        let body = BodyRef {
            incarnation: self.incarnation,
            records: &self.records,
            state,
            top: tree.top.as_ref(),
            next_page: tree.next,
            secrets: tree.len,
        };
        let header =
            body.seal(head, &key).map_err(|SealBroken| VaultError::Damaged("header could not be sealed"))?;
        let pages = std::mem::take(&mut tree.pages).into_iter().collect();
        let store = StoreCommit { header, pages, records: records.into_iter().collect() };
        Ok(Sealed { store, state, tree })
    }

    fn step(&mut self, step: Step) -> Result<(), CommitError> {
        if self.hook.as_mut().is_none_or(|hook| hook.reached(step)) {
            return Ok(());
        }
        self.cut_off = true;
        Err(CommitError::CutOff(step))
    }
}

/// A root made ahead.
pub(super) struct Spare {
    root: RootId,
    nonce: [u8; 32],
    /// What this very key makes of the nonce.
    check: Zeroizing<[u8; 32]>,
}

impl Spare {
    const CONTEXT: &'static [u8] = b"spark/vault/spare/v1";

    fn made(token: &dyn Token, root: RootId) -> Result<Self, TokenError> {
        let mut nonce = [0u8; 32];
        OsRng.fill_bytes(&mut nonce);
        let check = token.derive(&root, &[Self::CONTEXT, &nonce].concat())?;
        Ok(Self { root, nonce, check })
    }

    fn is_there(&self, token: &dyn Token) -> Result<bool, TokenError> {
        match token.derive(&self.root, &[Self::CONTEXT, &self.nonce].concat()) {
            Ok(check) => Ok(check.ct_eq(&*self.check).into()),
            Err(TokenError::RootMissing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A batch ready for the store, and what the vault becomes with it.
struct Sealed {
    store: StoreCommit,
    state: SetState,
    tree: Rewrite,
}
