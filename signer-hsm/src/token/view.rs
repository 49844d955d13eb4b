//! The roots as another process sees them.

use std::sync::Arc;

use spark_signer::vault::{RootId, TokenError};
use zeroize::Zeroizing;

use super::{
    config::{DeviceConfig, PinSource, Security, TokenRef},
    link::Link,
    module::Module,
    pin,
    profile::RootMechanism,
    roots,
};

/// Looks at the roots token and changes nothing.
pub struct RootsView {
    module: Arc<Module>,
    roots: Arc<Link>,
    mechanism: RootMechanism,
}

impl std::fmt::Debug for RootsView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootsView").finish_non_exhaustive()
    }
}

impl RootsView {
    /// Loads the module and logs in to the roots token.
    pub fn open(config: &DeviceConfig, security: Security) -> Result<Self, TokenError> {
        let module = Module::load(&config.module)?;
        let roots = Link::new(&module, &config.roots, security)?;
        Ok(Self { module, roots, mechanism: config.profile.root_mechanism })
    }

    /// Which device it is, and all roots that it shows to a library that was started afresh: one that ran on may hide an object whose
    /// destruction failed.
    pub fn look(&self) -> Result<([u8; 32], Vec<RootId>), TokenError> {
        self.module.reinitialize()?;
        Ok((roots::fingerprint(&self.roots, self.mechanism)?, roots::list(&self.roots, self.mechanism)?))
    }
}

impl TokenRef {
    /// Reads the PIN, once: a prompt or a descriptor gives it only once, and later its file may be out of reach.
    pub fn hold_pin(&mut self, security: Security) -> Result<Zeroizing<String>, TokenError> {
        let pin = pin::text(self, security)?;
        self.pin = PinSource::Held(pin.clone());
        Ok(pin)
    }
}

impl DeviceConfig {
    /// Whether another entry means the same token; how its PIN comes is of no account.
    pub fn is_same(&self, other: &Self) -> bool {
        self.module == other.module
            && self.profile.name == other.profile.name
            && self.profile.root_mechanism == other.profile.root_mechanism
            && self.roots.is_token(&other.roots)
    }
}
