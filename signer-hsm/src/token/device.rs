//! One device that holds roots.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spark_signer::vault::{RootId, RootToken, TokenError};
use zeroize::Zeroizing;

use super::apart::Hangs;
use super::config::{DeviceConfig, Security};
use super::inventory::TokenInfo;
use super::link::Link;
use super::module::Module;
use super::profile::Profile;
use super::roots;

/// Least time between two starts of a library for one device.
const ANEW: Duration = Duration::from_secs(30);

/// Why a device's token cannot even be looked for.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its library does not load.
    #[error("library: {0}")]
    Module(TokenError),
    /// There is no PIN.
    #[error("PIN: {0}")]
    Pin(TokenError),
    /// The files that the library keeps its objects in are not there.
    #[error("files: {0}")]
    Files(TokenError),
}

impl From<LoadError> for TokenError {
    fn from(error: LoadError) -> Self {
        let (LoadError::Module(error) | LoadError::Pin(error) | LoadError::Files(error)) = error;
        error
    }
}

/// A token for roots behind PKCS#11. It need not be there: calls fail until it is.
pub struct RootDevice {
    module: Arc<Module>,
    profile: Profile,
    link: Arc<Link>,
    files: Option<File>,
    not_destroyed: Mutex<BTreeSet<RootId>>,
    /// When the library was started anew for this device.
    started: Mutex<Option<Instant>>,
}

impl fmt::Debug for RootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootDevice").field("profile", &self.profile.name).finish_non_exhaustive()
    }
}

impl RootDevice {
    /// Loads the module (once per process) and reads the PIN. Logs in at the first call.
    pub fn load(config: &DeviceConfig, security: Security) -> Result<Self, LoadError> {
        let module = Module::load(&config.module).map_err(LoadError::Module)?;
        let link = Link::later(&module, &config.roots, security).map_err(LoadError::Pin)?;
        let files = config.profile.open_files().map_err(LoadError::Files)?;
        Ok(Self {
            module,
            profile: config.profile,
            link,
            files,
            not_destroyed: Mutex::default(),
            started: Mutex::default(),
        })
    }

    /// This token is not the device's, whatever the configuration calls it: calls that meet it fail.
    pub fn never(&self, token: TokenInfo) {
        self.link.never(token);
    }

    /// What the token is and what may be claimed of it.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether it answers and can list its objects.
    pub fn probe(&self) -> Result<(), TokenError> {
        roots::assert_listable(&self.link, self.profile.root_mechanism)
    }

    /// Whether it answers, if need be after its library was started anew: some do not find a device again by themselves.
    /// That closes the sessions of all devices behind the library, so it is not done often.
    pub fn revive(&self) -> Result<(), TokenError> {
        match self.probe() {
            Err(TokenError::PinRefused | TokenError::PinLocked) => return Err(TokenError::PinRefused),
            Err(_) => self.link.reset(),
            Ok(()) => return Ok(()),
        }
        match self.probe() {
            Err(_) if self.may_start_anew() => {
                self.module.reinitialize()?;
                self.started_anew()
            }
            result => result,
        }
    }

    /// The same because a person asks for it, however lately the library was started.
    pub fn revive_now(&self) -> Result<(), TokenError> {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.revive()
    }

    /// Starts the library anew at once.
    pub(super) fn reconnect(&self) -> Result<(), TokenError> {
        self.module.reinitialize()?;
        self.started_anew()
    }

    /// Whether this library is the other one's, too.
    pub(super) fn shares(&self, module: &std::path::Path) -> bool {
        Module::load(module).is_ok_and(|module| Arc::ptr_eq(&module, &self.module))
    }

    fn may_start_anew(&self) -> bool {
        let mut last = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < ANEW) {
            return false;
        }
        *last = Some(Instant::now());
        true
    }

    /// After a fresh start objects show as they are, so a destruction may be tried again.
    fn started_anew(&self) -> Result<(), TokenError> {
        self.sticky().clear();
        self.probe()
    }

    fn sticky(&self) -> MutexGuard<'_, BTreeSet<RootId>> {
        self.not_destroyed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hangs for RootDevice {
    fn note_hang(&self, ended: Arc<AtomicBool>) {
        self.module.note_hang(ended);
    }
}

impl RootToken for RootDevice {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        roots::create(&self.link, &self.profile, root)
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        roots::list(&self.link, self.profile.root_mechanism)
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        roots::derive(&self.link, &self.profile, root, context)
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        if self.sticky().contains(root) {
            return Err(TokenError::NotDestroyed(*root));
        }
        let result = roots::destroy(&self.link, self.profile.root_mechanism, root);
        if matches!(result, Err(TokenError::NotDestroyed(_))) {
            self.sticky().insert(*root);
        }
        result
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        roots::fingerprint(&self.link, self.profile.root_mechanism)
    }

    fn sync(&self) -> Result<(), TokenError> {
        let Some(files) = &self.files else { return Ok(()) };
        rustix::fs::syncfs(files).map_err(|error| TokenError::Unavailable(format!("sync: {error}")))
    }
}
