//! The roots as another process sees them.

use std::sync::Arc;

use spark_signer::vault::{RootId, TokenError};
use zeroize::Zeroizing;

use super::{
    config::{PinSource, TokenConfig},
    link::Link,
    module::Module,
    pin, roots,
};

/// Looks at the roots token and changes nothing.
pub struct RootsView {
    module: Arc<Module>,
    roots: Arc<Link>,
}

impl std::fmt::Debug for RootsView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootsView").finish_non_exhaustive()
    }
}

impl RootsView {
    /// Loads the module and logs in to the roots token.
    pub fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let module = Module::load(&config.module)?;
        let roots = Link::new(&module, &config.roots, config.security)?;
        Ok(Self { module, roots })
    }

    /// All roots that the token shows to a library that was started afresh: one that ran on may hide an object whose
    /// destruction failed.
    pub fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.module.reinitialize()?;
        roots::list(&self.roots)
    }
}

impl TokenConfig {
    /// Reads the PIN of the roots token, once: a prompt or a descriptor gives it only once.
    pub fn hold_roots_pin(&mut self) -> Result<Zeroizing<String>, TokenError> {
        let pin = pin::text(&self.roots, self.security)?;
        self.roots.pin = PinSource::Held(pin.clone());
        Ok(pin)
    }

    /// Reads the PIN of the keys token, once: later its file may be out of reach.
    pub fn hold_keys_pin(&mut self) -> Result<(), TokenError> {
        self.keys.pin = PinSource::Held(pin::text(&self.keys, self.security)?);
        Ok(())
    }
}
