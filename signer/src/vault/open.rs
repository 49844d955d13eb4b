//! Creating, opening and reading a vault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use rand_core::{OsRng, RngCore as _};
use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::devices::{Device, Devices, derive_checked};
use super::error::{CreateError, OpenError, VaultError};
use super::failpoint::FailPoint;
use super::header::{Body, BodyRef, Head};
use super::id::SecretId;
use super::ledger::RecordSet;
use super::members::{Fingerprint, distinct, member};
use super::seal::SealBroken;
use super::store::{Record, SealedStore, StoreCommit, StoreError};
use super::token::{DeviceId, RootId, RootToken, Token, TokenError, TreeId};
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
    pub(super) devices: Vec<Device>,
    /// Devices whose roots must be gone before anything counts as destroyed.
    pub(super) members: BTreeMap<DeviceId, Fingerprint>,
    pub(super) start_without: BTreeSet<DeviceId>,
    pub(super) store: Box<dyn SealedStore>,
    pub(super) hook: Option<Box<dyn FailPoint>>,
    pub(super) head: Head,
    pub(super) incarnation: Incarnation,
    pub(super) records: RecordSet,
    pub(super) tree: Tree,
    pub(super) witnessed: bool,
    pub(super) cut_off: bool,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("root", &self.head.root).field("position", &self.position()).finish()
    }
}

impl Vault {
    /// Makes a new vault. Ceremony only: refuses when the store or a device holds anything.
    pub fn create(
        devices: impl Into<Devices>,
        store: Box<dyn SealedStore>,
        incarnation: Incarnation,
    ) -> Result<Self, CreateError> {
        let Devices { keys: token, roots: devices, start_without } = devices.into();
        if devices.is_empty() {
            return Err(TokenError::Unavailable("no device for roots".into()).into());
        }
        if store.header()?.is_some() || has_records(&*store)? {
            return Err(CreateError::StoreNotEmpty);
        }
        for (_, device) in &devices {
            let roots = device.roots()?;
            if !roots.is_empty() {
                return Err(CreateError::RootsExist(roots));
            }
        }
        let members = distinct(&devices)?;
        let mut id = [0u8; 8];
        OsRng.fill_bytes(&mut id);
        let head = Head::fresh(RootId { tree: TreeId(id), epoch: 1 }, 1);
        let mut keys = Vec::with_capacity(devices.len());
        for (id, device) in &devices {
            device.create_root(&head.root)?;
            keys.push((*id, derive_checked(&**device, &head)?));
            device.sync()?;
        }
        let mut records = RecordSet::empty().map_err(|SealBroken| CreateError::Seal)?;
        let made: Vec<_> = members.iter().map(|(id, print)| member(*id, head.root.epoch, print)).collect();
        let mut state = records.state;
        made.iter().for_each(|(key, value)| records.add(&mut state, key, value));
        records.state = state;
        let tree = Tree::empty(Origin { tree: head.root.tree, incarnation });
        let body = BodyRef { incarnation, state, records: &records, top: None, end: tree.end(), secrets: 0 };
        let header = body.seal(&head, &keys).map_err(|SealBroken| CreateError::Seal)?;
        let records_made = made.into_iter().map(|(key, value)| (key, Some(value))).collect();
        store.apply(&StoreCommit { header, records: records_made })?;
        Ok(Self {
            token,
            members,
            devices: devices.into_iter().map(|(id, token)| Device::serving(id, token, Vec::new())).collect(),
            start_without,
            store,
            hook: None,
            head,
            incarnation,
            records,
            tree,
            witnessed: true,
            cut_off: false,
        })
    }

    /// Opens an existing vault by any one of its devices, reads it through and refuses whatever does not fit.
    ///
    /// The vault is read-only, and roots left by a crash stay, until [`Self::confirm_witnessed`].
    pub fn open(devices: impl Into<Devices>, store: Box<dyn SealedStore>) -> Result<Self, OpenError> {
        let Devices { keys: token, roots: devices, start_without } = devices.into();
        let Some(stored) = store.header()? else { return Err(without_header(&devices)) };
        let (head, _) = Head::decode(&stored).ok_or(OpenError::Format)?;
        let wrapped = Head::devices(&stored).ok_or(OpenError::Format)?;
        let mut body = None;
        let mut trouble = None;
        let mut opened = Vec::with_capacity(devices.len());
        for (id, token) in devices {
            let strays = match token.roots() {
                Ok(roots) if wrapped.contains(&id) => strays(&head.root, roots)?,
                // What it holds is dealt with when it joins.
                Ok(_) => {
                    opened.push(Device::away(id, token, None));
                    continue;
                }
                Err(error) => {
                    trouble.get_or_insert_with(|| error.clone());
                    let mut device = Device::away(id, token, Some(error));
                    device.wrapped = wrapped.contains(&id);
                    opened.push(device);
                    continue;
                }
            };
            match derive_checked(&*token, &head) {
                Ok(key) => {
                    let found =
                        Body::open(&stored, id, &key).map_err(|SealBroken| OpenError::HeaderBroken)?;
                    body.get_or_insert(found);
                    opened.push(Device::serving(id, token, strays));
                }
                Err(error) => {
                    trouble.get_or_insert_with(|| error.clone());
                    let mut device = Device::away(id, token, Some(error));
                    device.wrapped = true;
                    opened.push(device);
                }
            }
        }
        let Some(body) = body else {
            return Err(trouble.map_or(OpenError::NoDevice(wrapped), OpenError::Token));
        };
        let origin = Origin { tree: head.root.tree, incarnation: body.incarnation };
        let tree =
            Tree::open(origin, body.top, body.end, body.secrets, &*store).map_err(|error| match error {
                TreeError::Store(error) => OpenError::Store(error),
                TreeError::Broken(number) => OpenError::PageBroken(number),
                TreeError::Count => OpenError::PagesCount,
            })?;
        let mut vault = Self {
            token,
            devices: opened,
            members: BTreeMap::new(),
            start_without,
            store,
            hook: None,
            head,
            incarnation: body.incarnation,
            records: body.records,
            tree,
            witnessed: false,
            cut_off: false,
        };
        vault.check_records()?;
        vault.members = vault.scan_members()?;
        vault.check_devices()?;
        Ok(vault)
    }

    fn check_records(&self) -> Result<(), OpenError> {
        let mut tally = self.records.tally();
        self.store.scan(&[], None, &mut |key, value| {
            tally.add(key, value);
            true
        })?;
        if tally.finish().matches(&self.records.state) { Ok(()) } else { Err(OpenError::RecordsBroken) }
    }

    /// Installs a hook that sees every step of a commit. See [`super::Step::ALL`].
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
    pub fn stray_roots(&self) -> Vec<RootId> {
        self.devices.iter().flat_map(|device| device.strays.iter().copied()).collect()
    }

    /// Superseded roots whose destruction failed. No destruction may be claimed while there is any.
    pub fn destroy_pending(&self) -> Vec<RootId> {
        self.devices.iter().flat_map(|device| device.undestroyed.iter().copied()).collect()
    }

    /// Tries again to destroy superseded roots that the token did not destroy when asked. True when none is left.
    pub fn retry_destroy(&mut self) -> bool {
        self.devices.iter_mut().for_each(Device::retry_destroy);
        self.devices.iter().all(|device| device.undestroyed.is_empty())
    }

    /// True once a commit was cut off: whether it is durable shows when the vault is opened again.
    pub const fn must_reopen(&self) -> bool {
        self.cut_off
    }

    /// Token that holds the keys which speak for the signer.
    pub fn token(&self) -> &Arc<dyn Token> {
        &self.token
    }

    /// Checks that every serving device still computes with the current root.
    pub fn probe(&self) -> Result<(), TokenError> {
        let mut serving = self.devices.iter().filter(|device| device.is_serving());
        serving.try_for_each(|device| derive_checked(&*device.token, &self.head).map(|_| ()))
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

    pub(super) fn open_ahead(
        &self,
        open: &OpenPages,
        ids: &mut dyn Iterator<Item = SecretId>,
    ) -> Result<(), VaultError> {
        self.check_usable()?;
        self.tree.open_ahead(&*self.store, open, ids)
    }

    pub(super) fn owned(&self, open: &OpenPages, owner: &[u8; 16]) -> Result<Vec<SecretId>, VaultError> {
        self.check_usable()?;
        self.tree.of_owner(&*self.store, open, owner)
    }

    /// Number of secrets.
    pub fn secret_count(&self) -> u64 {
        self.tree.len()
    }

    /// Slots of the store that its pages take, and how many it has for them. See [`super::Extent::SLOT_BYTES`].
    pub const fn slots(&self) -> (u64, u64) {
        self.tree.slots()
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

/// Why a vault without a header does not open.
fn without_header(devices: &[(DeviceId, Arc<dyn RootToken>)]) -> OpenError {
    let mut found = Vec::new();
    for (_, device) in devices {
        match device.roots() {
            Ok(roots) => found.extend(roots),
            Err(error) => return error.into(),
        }
    }
    if found.is_empty() { OpenError::NotCreated } else { OpenError::StoreLost(found) }
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
