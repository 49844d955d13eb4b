//! The roots as another process sees them.

use std::sync::Arc;

use spark_signer::vault::{DeviceId, RootId, TokenError};
use zeroize::Zeroizing;

use super::{
    config::{DeviceConfig, PinSource, Security, TokenConfig},
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
    pub fn open(config: &DeviceConfig, security: Security) -> Result<Self, TokenError> {
        let module = Module::load(&config.module)?;
        let roots = Link::new(&module, &config.roots, security)?;
        Ok(Self { module, roots })
    }

    /// Which device it is, and all roots that it shows to a library that was started afresh: one that ran on may hide an object whose
    /// destruction failed.
    pub fn look(&self) -> Result<([u8; 32], Vec<RootId>), TokenError> {
        self.module.reinitialize()?;
        Ok((roots::fingerprint(&self.roots)?, roots::list(&self.roots)?))
    }
}

impl TokenConfig {
    /// Reads the PIN of each device's roots token, once: a prompt or a descriptor gives it only once.
    pub fn hold_roots_pins(&mut self) -> Result<Vec<(DeviceId, Zeroizing<String>)>, TokenError> {
        let security = self.security;
        let others = self.devices.iter_mut().map(|device| (device.id, &mut device.roots));
        std::iter::once((0, &mut self.roots))
            .chain(others)
            .map(|(id, token)| {
                let pin = pin::text(token, security)?;
                token.pin = PinSource::Held(pin.clone());
                Ok((DeviceId(id), pin))
            })
            .collect()
    }

    /// Reads the PIN of the keys token, once: later its file may be out of reach.
    pub fn hold_keys_pin(&mut self) -> Result<(), TokenError> {
        self.keys.pin = PinSource::Held(pin::text(&self.keys, self.security)?);
        Ok(())
    }
}
