//! Creating, opening and reading a vault.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rand_core::{OsRng, RngCore as _};
use spark_rules::ids::Incarnation;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::commit::Spare;
use super::error::{CreateError, OpenError, VaultError};
use super::failpoint::FailPoint;
use super::header::{Body, BodyRef, Head};
use super::id::SecretId;
use super::ledger::{RecordSet, SetState};
use super::seal::{DataKey, SealBroken};
use super::store::{Record, SealedStore, StoreCommit, StoreError};
use super::token::{RootId, Token, TokenError, TreeId};
use super::tree::{OpenPages, Origin, Tree, TreeError};
use super::txn::Txn;

/// A point in a vault's life. Later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Root epoch; grows by one with each batch that destroys a secret.
    pub epoch: u64,
    /// Grows by one with each commit.
    pub sequence: u64,
}

/// An open vault. One thread owns it.
pub struct Vault {
    pub(super) token: Arc<dyn Token>,
    pub(super) store: Box<dyn SealedStore>,
    pub(super) hook: Option<Box<dyn FailPoint>>,
    pub(super) head: Head,
    pub(super) incarnation: Incarnation,
    pub(super) records: RecordSet,
    pub(super) tree: Tree,
    pub(super) witnessed: bool,
    pub(super) cut_off: bool,
    pub(super) strays: Vec<RootId>,
    /// A root that waits for the next batch that needs one.
    pub(super) spare: Option<Spare>,
    pub(super) undestroyed: Vec<RootId>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("root", &self.head.root).field("position", &self.position()).finish()
    }
}

/// Derives twice, from two sessions, and compares: a cluster must have replicated the root by then.
pub(super) fn derive_checked(token: &dyn Token, head: &Head) -> Result<DataKey, TokenError> {
    let context = head.derivation();
    let first = token.derive(&head.root, &context)?;
    let second = token.derive(&head.root, &context)?;
    if !bool::from(first.ct_eq(&*second)) {
        return Err(TokenError::WrongAnswer("two derivations differ"));
    }
    DataKey::from_slice(&first[..]).ok_or(TokenError::WrongAnswer("derived key has a wrong length"))
}

impl Vault {
    /// Makes a new vault. Ceremony only: refuses when the store or the token holds anything.
    pub fn create(
        token: Arc<dyn Token>,
        store: Box<dyn SealedStore>,
        incarnation: Incarnation,
    ) -> Result<Self, CreateError> {
        if store.header()?.is_some() || store.page_count()? > 0 || has_records(&*store)? {
            return Err(CreateError::StoreNotEmpty);
        }
        let roots = token.roots()?;
        if !roots.is_empty() {
            return Err(CreateError::RootsExist(roots));
        }
        let mut tree = [0u8; 8];
        OsRng.fill_bytes(&mut tree);
        let head = Head::fresh(RootId { tree: TreeId(tree), epoch: 1 }, 1);
        token.create_root(&head.root)?;
        let key = derive_checked(&*token, &head)?;
        token.sync()?;
        let records = RecordSet::empty().map_err(|SealBroken| CreateError::Seal)?;
        let body = BodyRef {
            incarnation,
            state: records.state,
            records: &records,
            top: None,
            next_page: 0,
            secrets: 0,
        };
        let header = body.seal(&head, &key).map_err(|SealBroken| CreateError::Seal)?;
        store.apply(&StoreCommit { header, pages: Vec::new(), records: Vec::new() })?;
        let tree = Tree::empty(Origin { tree: head.root.tree, incarnation });
        Ok(Self {
            token,
            store,
            hook: None,
            head,
            incarnation,
            records,
            tree,
            witnessed: true,
            cut_off: false,
            strays: Vec::new(),
            spare: None,
            undestroyed: Vec::new(),
        })
    }

    /// Opens an existing vault, reads it through and refuses whatever does not fit.
    ///
    /// The vault is read-only, and roots left by a crash stay, until [`Self::confirm_witnessed`].
    pub fn open(token: Arc<dyn Token>, store: Box<dyn SealedStore>) -> Result<Self, OpenError> {
        let Some(stored) = store.header()? else {
            return Err(match token.roots()? {
                roots if roots.is_empty() => OpenError::NotCreated,
                roots => OpenError::StoreLost(roots),
            });
        };
        let (head, _) = Head::decode(&stored).ok_or(OpenError::Format)?;
        let strays = strays(&head.root, token.roots()?)?;
        let key = derive_checked(&*token, &head)?;
        let body = Body::open(&stored, &key).map_err(|SealBroken| OpenError::HeaderBroken)?;
        let origin = Origin { tree: head.root.tree, incarnation: body.incarnation };
        let tree =
            Tree::open(origin, body.top, body.next_page, body.secrets, &*store).map_err(
                |error| match error {
                    TreeError::Store(error) => OpenError::Store(error),
                    TreeError::Broken(number) => OpenError::PageBroken(number),
                    TreeError::Count => OpenError::PagesCount,
                },
            )?;
        let vault = Self {
            token,
            store,
            hook: None,
            head,
            incarnation: body.incarnation,
            records: body.records,
            tree,
            witnessed: false,
            cut_off: false,
            strays,
            spare: None,
            undestroyed: Vec::new(),
        };
        vault.check_records()?;
        Ok(vault)
    }

    fn check_records(&self) -> Result<(), OpenError> {
        let mut state = SetState::EMPTY;
        self.store.scan(&[], None, &mut |key, value| {
            self.records.add(&mut state, key, value);
            true
        })?;
        if state.matches(&self.records.state) { Ok(()) } else { Err(OpenError::RecordsBroken) }
    }

    /// Makes the vault writable and destroys the roots that a crash left behind: older ones to finish a
    /// deletion, a newer one because it was never committed. Call it only when every peer's witnessed
    /// position is at or below [`Self::position`].
    pub fn confirm_witnessed(&mut self) -> Result<(), TokenError> {
        while let Some(stray) = self.strays.last().copied() {
            match self.token.destroy_root(&stray) {
                Ok(()) => {}
                Err(_) if stray.epoch < self.head.root.epoch => self.undestroyed.push(stray),
                Err(error) => return Err(error),
            }
            self.strays.pop();
        }
        self.witnessed = true;
        Ok(())
    }

    /// Installs a hook that sees every step of a commit.
    pub fn set_fail_point(&mut self, hook: Box<dyn FailPoint>) {
        self.hook = Some(hook);
    }

    /// Starts a batch.
    pub fn begin(&mut self) -> Txn<'_> {
        Txn::new(self)
    }

    /// Whose vault it is, since the last ceremony.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Epoch of the root that seals the store now.
    pub fn epoch(&self) -> u64 {
        self.head.root.epoch
    }

    /// Number of the last commit.
    pub fn sequence(&self) -> u64 {
        self.head.sequence
    }

    /// Epoch and sequence.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch(), sequence: self.sequence() }
    }

    /// Root that seals the store now.
    pub fn root(&self) -> RootId {
        self.head.root
    }

    /// Whether [`Self::confirm_witnessed`] has been called.
    pub fn is_witnessed(&self) -> bool {
        self.witnessed
    }

    /// Roots that a crash left and [`Self::confirm_witnessed`] will destroy.
    pub fn stray_roots(&self) -> &[RootId] {
        &self.strays
    }

    /// Superseded roots whose destruction failed. No destruction may be claimed while there is any.
    pub fn destroy_pending(&self) -> &[RootId] {
        &self.undestroyed
    }

    /// Tries again to destroy superseded roots that the token did not destroy when asked. True when none is left.
    pub fn retry_destroy(&mut self) -> bool {
        let token = Arc::clone(&self.token);
        self.undestroyed
            .retain(|root| !matches!(token.destroy_root(root), Ok(()) | Err(TokenError::RootMissing(_))));
        self.undestroyed.is_empty()
    }

    /// True once a commit was cut off: whether it is durable shows when the vault is opened again.
    pub const fn must_reopen(&self) -> bool {
        self.cut_off
    }

    /// Token behind the vault.
    pub fn token(&self) -> &Arc<dyn Token> {
        &self.token
    }

    /// Checks that the token still computes with the current root.
    pub fn probe(&self) -> Result<(), TokenError> {
        derive_checked(&*self.token, &self.head).map(|_| ())
    }

    /// A secret.
    pub fn get_secret(&self, id: &SecretId) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        self.secret(&OpenPages::none(), id)
    }

    /// Whether a secret exists.
    pub fn has_secret(&self, id: &SecretId) -> Result<bool, VaultError> {
        self.contains(&OpenPages::none(), id)
    }

    /// Names of all secrets of an owner, ordered by kind and version.
    pub fn secrets_of(&self, owner: &[u8; 16]) -> Result<Vec<SecretId>, VaultError> {
        self.owned(&OpenPages::none(), owner)
    }

    pub(super) fn secret(
        &self,
        open: &OpenPages,
        id: &SecretId,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        self.check_usable()?;
        self.tree.get(&*self.store, open, id)
    }

    pub(super) fn contains(&self, open: &OpenPages, id: &SecretId) -> Result<bool, VaultError> {
        self.check_usable()?;
        self.tree.contains(&*self.store, open, id)
    }

    pub(super) fn owned(&self, open: &OpenPages, owner: &[u8; 16]) -> Result<Vec<SecretId>, VaultError> {
        self.check_usable()?;
        self.tree.of_owner(&*self.store, open, owner)
    }

    /// Number of secrets.
    pub fn secret_count(&self) -> u64 {
        self.tree.len()
    }

    /// A record.
    pub fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        self.check_usable()?;
        Ok(self.store.record(key)?)
    }

    /// Up to `limit` records with this prefix and a key above `after`, ascending.
    pub fn scan_records(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, VaultError> {
        self.check_usable()?;
        let mut found = Vec::new();
        if limit > 0 {
            self.store.scan(prefix, after, &mut |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                found.len() < limit
            })?;
        }
        Ok(found)
    }

    fn check_usable(&self) -> Result<(), VaultError> {
        if self.cut_off { Err(VaultError::MustReopen) } else { Ok(()) }
    }
}

fn has_records(store: &dyn SealedStore) -> Result<bool, StoreError> {
    let mut any = false;
    store.scan(&[], None, &mut |_, _| {
        any = true;
        false
    })?;
    Ok(any)
}

/// All roots but the current one, which must be there once.
fn strays(current: &RootId, roots: Vec<RootId>) -> Result<Vec<RootId>, OpenError> {
    let distinct: BTreeSet<RootId> = roots.iter().copied().collect();
    if distinct.len() != roots.len() || roots.iter().any(|root| root.tree != current.tree) {
        return Err(OpenError::ForeignRoots(roots));
    }
    if !distinct.contains(current) {
        return Err(OpenError::RootMissing { needed: *current, found: roots });
    }
    Ok(distinct.into_iter().filter(|root| root != current).collect())
}
