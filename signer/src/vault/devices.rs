//! The devices that hold the roots, each its own: nothing is cloned.
//!
//! The header's top key is wrapped once for each device, so any one of them unlocks the store; a root counts as
//! destroyed when every device has destroyed its own. A device that fails is left behind, as long as another one goes
//! on: it keeps the roots of its last epochs, and what these seal stays *pending* until it comes back.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rand_core::{OsRng, RngCore as _};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::header::Head;
use super::seal::DataKey;
use super::token::{DeviceId, RootId, RootToken, Token, TokenError};

/// What a vault is given: keys that speak for the signer, and at least one device for roots.
pub struct Devices {
    pub(super) keys: Arc<dyn Token>,
    pub(super) roots: Vec<(DeviceId, Arc<dyn RootToken>)>,
    pub(super) start_without: BTreeSet<DeviceId>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.roots.iter().map(|(id, _)| id)).finish()
    }
}

impl Devices {
    /// The signer's keys, and no device for roots yet.
    pub fn new(keys: Arc<dyn Token>) -> Self {
        Self { keys, roots: Vec::new(), start_without: BTreeSet::new() }
    }

    /// One more device; instead of an earlier one of the same number.
    #[must_use]
    pub fn with(mut self, id: DeviceId, token: Arc<dyn RootToken>) -> Self {
        self.roots.retain(|(of, _)| *of != id);
        self.roots.push((id, token));
        self
    }

    /// Members that a person allows to be away when the vault becomes writable. A store that was copied can go on in
    /// two places if each has a device of its own, so this is nobody else's decision.
    #[must_use]
    pub fn start_without(mut self, devices: impl IntoIterator<Item = DeviceId>) -> Self {
        self.start_without.extend(devices);
        self
    }
}

/// One that holds the signer's keys and is its only device for roots.
impl<T: Token + RootToken + 'static> From<Arc<T>> for Devices {
    fn from(token: Arc<T>) -> Self {
        let keys: Arc<dyn Token> = Arc::<T>::clone(&token);
        Self::new(keys).with(DeviceId(0), token)
    }
}

/// Whether a device takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It unlocks the store as it is now.
    Serving,
    /// It does not: it failed, was away when the store changed, or is new.
    Away,
    /// It takes no part any more, and its roots are to be destroyed.
    Retiring,
}

impl DeviceState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Serving, Self::Away, Self::Retiring];

    /// Name for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Away => "away",
            Self::Retiring => "retiring",
        }
    }
}

/// One device, as the vault sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its number.
    pub id: DeviceId,
    /// Whether it takes part.
    pub state: DeviceState,
    /// What kept it from doing so, if it does not.
    pub trouble: Option<TokenError>,
}

/// What a device did not do.
pub(super) enum Refusal {
    /// Another copy of the store lives on the device: this one is over. The error, if the device gave one.
    TakenOver(Option<TokenError>),
    /// It failed.
    Failed(TokenError),
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        Self::Failed(error)
    }
}

/// A device of an open vault.
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) token: Arc<dyn RootToken>,
    pub(super) state: DeviceState,
    pub(super) trouble: Option<TokenError>,
    /// Whether the present header opens by it: then the present root must stay on it.
    pub(super) wrapped: bool,
    /// Roots that no header needs: left by a crash, or made for a batch that never reached the commit point.
    pub(super) strays: Vec<RootId>,
    /// Superseded roots whose destruction failed.
    pub(super) undestroyed: Vec<RootId>,
    /// A root that waits for the next batch that needs one.
    spare: Option<Spare>,
}

impl Device {
    pub(super) fn serving(id: DeviceId, token: Arc<dyn RootToken>, strays: Vec<RootId>) -> Self {
        let state = DeviceState::Serving;
        Self { id, token, state, trouble: None, wrapped: true, strays, undestroyed: Vec::new(), spare: None }
    }

    pub(super) fn away(id: DeviceId, token: Arc<dyn RootToken>, trouble: Option<TokenError>) -> Self {
        Self { state: DeviceState::Away, trouble, wrapped: false, ..Self::serving(id, token, Vec::new()) }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.state == DeviceState::Serving
    }

    pub(super) fn status(&self) -> DeviceStatus {
        DeviceStatus { id: self.id, state: self.state, trouble: self.trouble.clone() }
    }

    /// Takes no part until it joins again. What it holds then is found by asking it.
    pub(super) fn leave(&mut self, trouble: TokenError) {
        self.state = DeviceState::Away;
        self.trouble = Some(trouble);
        self.spare = None;
        self.strays.clear();
        self.undestroyed.clear();
    }

    /// Destroys roots of batches that never reached the commit point.
    pub(super) fn sweep(&mut self, current: &RootId) -> Result<(), Refusal> {
        if self.strays.is_empty() {
            return Ok(());
        }
        let present = self.token.roots()?;
        if !present.contains(current) {
            // Another copy of this store took over: what is there is its own.
            return Err(Refusal::TakenOver(Some(TokenError::RootMissing(*current))));
        }
        while let Some(stray) = self.strays.last().copied() {
            if present.contains(&stray) {
                self.token.destroy_root(&stray)?;
            }
            self.strays.pop();
        }
        Ok(())
    }

    /// Makes a root and counts it among the uncommitted.
    fn create(&mut self, root: RootId) -> Result<(), Refusal> {
        self.strays.push(root);
        self.token.create_root(&root).map_err(|error| match error {
            TokenError::RootExists(_) => {
                // Another copy of this store made it and lives on it: it is not ours to sweep.
                self.strays.pop();
                Refusal::TakenOver(Some(error))
            }
            error => Refusal::Failed(error),
        })
    }

    /// The root that the batch under way will seal with: the spare one, or a new one.
    pub(super) fn next_root(&mut self, current: &RootId, next: RootId) -> Result<(), Refusal> {
        self.sweep(current)?;
        match self.spare.take() {
            Some(spare) => self.take_spare(spare),
            None => self.create(next),
        }
    }

    /// Another copy of this store, opened meanwhile, destroys roots that it does not know and may have made one of the
    /// same name: then this copy is over.
    fn take_spare(&mut self, spare: Spare) -> Result<(), Refusal> {
        match spare.is_there(&*self.token) {
            Ok(true) => {
                self.strays.push(spare.root);
                Ok(())
            }
            Ok(false) => Err(Refusal::TakenOver(None)),
            // Not known to be ours: it is asked again, and not swept.
            Err(error) => {
                self.spare = Some(spare);
                Err(error.into())
            }
        }
    }

    pub(super) fn prepare_spare(&mut self, current: &RootId) -> Result<(), Refusal> {
        if self.spare.is_some() {
            return Ok(());
        }
        self.sweep(current)?;
        let next = RootId { epoch: current.epoch.saturating_add(1), ..*current };
        self.create(next)?;
        let spare = Spare::made(&*self.token, next)?;
        self.strays.pop();
        self.spare = Some(spare);
        Ok(())
    }

    /// The store is sealed under the next root.
    pub(super) fn superseded(&mut self, root: RootId) -> Result<(), Refusal> {
        self.strays.clear();
        match self.token.destroy_root(&root) {
            Ok(()) => {}
            // It was there when this copy of the store was opened: another copy destroyed it.
            Err(error @ TokenError::RootMissing(_)) => return Err(Refusal::TakenOver(Some(error))),
            Err(_) => self.undestroyed.push(root),
        }
        Ok(())
    }

    /// Tries again to destroy superseded roots.
    pub(super) fn retry_destroy(&mut self) {
        let token = Arc::clone(&self.token);
        self.undestroyed
            .retain(|root| !matches!(token.destroy_root(root), Ok(()) | Err(TokenError::RootMissing(_))));
    }

    /// Destroys every root on the device but one, and says whether that one is there.
    pub(super) fn destroy_all_but(
        &mut self,
        tree: &RootId,
        keep: Option<&RootId>,
    ) -> Result<bool, TokenError> {
        let roots = self.token.roots()?;
        if roots.iter().any(|root| root.tree != tree.tree) {
            return Err(TokenError::WrongAnswer("roots of another vault"));
        }
        if roots.iter().any(|root| root.epoch > tree.epoch.saturating_add(1)) {
            // Another copy of the store lives on it.
            return Err(TokenError::WrongAnswer("roots newer than the store"));
        }
        for root in roots.iter().filter(|root| Some(*root) != keep) {
            match self.token.destroy_root(root) {
                Ok(()) | Err(TokenError::RootMissing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.strays.clear();
        self.undestroyed.clear();
        self.spare = None;
        Ok(keep.is_some_and(|keep| roots.contains(keep)))
    }

    /// Destroys what a crash left on a device that serves, as it stands now: older roots to finish a deletion, a newer
    /// one because it was never committed.
    pub(super) fn finish(&mut self, current: &RootId) -> Result<(), TokenError> {
        let roots = self.token.roots()?;
        if !roots.contains(current) {
            return Err(TokenError::RootMissing(*current));
        }
        let newest = current.epoch.saturating_add(1);
        if roots.iter().any(|root| root.tree != current.tree || root.epoch > newest) {
            return Err(TokenError::WrongAnswer("roots of another vault, or newer than the store"));
        }
        // One made ahead is a newer root as well.
        self.spare = None;
        self.strays = roots.into_iter().filter(|root| root != current).collect();
        while let Some(stray) = self.strays.last().copied() {
            match self.token.destroy_root(&stray) {
                Ok(()) => {}
                Err(_) if stray.epoch < current.epoch => self.undestroyed.push(stray),
                Err(error) => return Err(error),
            }
            self.strays.pop();
        }
        Ok(())
    }

    /// Makes the device ready for the next header: only the present root is on it.
    pub(super) fn join(&mut self, current: &RootId) -> Result<(), TokenError> {
        if !self.destroy_all_but(current, Some(current))? {
            self.token.create_root(current)?;
            self.token.sync()?;
        }
        self.serve();
        Ok(())
    }

    /// Takes part: the present root is on it.
    pub(super) fn serve(&mut self) {
        self.state = DeviceState::Serving;
        self.trouble = None;
    }
}

/// Derives twice, from two sessions, and compares: a cluster must have replicated the root by then.
pub(super) fn derive_checked(token: &dyn RootToken, head: &Head) -> Result<DataKey, TokenError> {
    let context = head.derivation();
    let first = token.derive(&head.root, &context)?;
    let second = token.derive(&head.root, &context)?;
    if !bool::from(first.ct_eq(&*second)) {
        return Err(TokenError::WrongAnswer("two derivations differ"));
    }
    DataKey::from_slice(&first[..]).ok_or(TokenError::WrongAnswer("derived key has a wrong length"))
}

/// A root made ahead.
struct Spare {
    root: RootId,
    nonce: [u8; 32],
    /// What this very key makes of the nonce.
    check: Zeroizing<[u8; 32]>,
}

impl Spare {
    const CONTEXT: &'static [u8] = b"spark/vault/spare/v1";

    fn made(token: &dyn RootToken, root: RootId) -> Result<Self, TokenError> {
        let mut nonce = [0u8; 32];
        OsRng.fill_bytes(&mut nonce);
        let check = token.derive(&root, &[Self::CONTEXT, &nonce].concat())?;
        Ok(Self { root, nonce, check })
    }

    fn is_there(&self, token: &dyn RootToken) -> Result<bool, TokenError> {
        match token.derive(&self.root, &[Self::CONTEXT, &self.nonce].concat()) {
            Ok(check) => Ok(check.ct_eq(&*self.check).into()),
            Err(TokenError::RootMissing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
