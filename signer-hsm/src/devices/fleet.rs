//! What is loaded.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use spark_signer::vault::{DeviceId, Devices, RootToken, Token, TokenError};

use crate::{
    config::Config,
    confirmer::Pins,
    metrics::HsmMetrics,
    token::{
        Apart, DeleteClaim, DeviceConfig, LoadError, Observed, RootDevice, Security, TokenConfig, TokenInfo,
        preload,
    },
};

/// What is wrong with a device before anybody looks for its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Its library does not load. A signer that serves loads no new one: name it in `token.preload`.
    Module,
    /// There is no PIN.
    Pin,
    /// The files of a token that is made of files are not there.
    Files,
    /// The configuration does not have it, or cannot be read.
    Unknown,
    /// The configuration means another token than before.
    Changed,
    /// It proves nothing of deletion, and there is real money.
    Claim,
}

impl Condition {
    /// Stable name.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Module => "DEVICE_MODULE",
            Self::Pin => "DEVICE_PIN",
            Self::Files => "DEVICE_FILES",
            Self::Unknown => "DEVICE_UNKNOWN",
            Self::Changed => "DEVICE_CHANGED",
            Self::Claim => "DEVICE_CLAIM",
        }
    }
}

/// A device that cannot be loaded. `token.start_without` lets a signer start without it.
#[derive(Debug, thiserror::Error)]
#[error("{}: device {device}: {error}", condition.reason())]
pub struct DeviceError {
    /// Which.
    pub device: DeviceId,
    /// What is wrong.
    pub condition: Condition,
    error: String,
}

impl DeviceError {
    fn new(device: u8, condition: Condition, error: impl ToString) -> Self {
        Self { device: DeviceId(device), condition, error: error.to_string() }
    }

    fn load(device: u8, error: &LoadError) -> Self {
        let condition = match error {
            LoadError::Module(_) => Condition::Module,
            LoadError::Pin(_) => Condition::Pin,
            LoadError::Files(_) => Condition::Files,
        };
        Self::new(device, condition, error)
    }
}

/// Reads the PIN of each device's roots token, while files can be reached. One that may be missing may lack library and
/// PIN, too.
pub fn hold_pins(config: &mut TokenConfig) -> Result<Pins, DeviceError> {
    let pins = Pins::default();
    let security = config.security;
    let missing = config.start_without.clone();
    for device in &mut config.devices {
        if !device.module.exists() && !missing.contains(&device.id) {
            let why = format!("library {} is not there", device.module.display());
            return Err(DeviceError::new(device.id, Condition::Module, why));
        }
        match device.roots.hold_pin(security) {
            Ok(pin) => pins.set(DeviceId(device.id), pin),
            Err(error) if missing.contains(&device.id) => {
                tracing::warn!(device = device.id, %error, "starting without it");
            }
            Err(error) => return Err(DeviceError::new(device.id, Condition::Pin, error)),
        }
    }
    Ok(pins)
}

/// A device as the configuration has it.
struct Configured {
    config: DeviceConfig,
    /// Nothing if it was missing at the start.
    loaded: Option<Loaded>,
}

type Loaded = (Arc<Apart<RootDevice>>, Arc<dyn RootToken>);

/// Whether a device answers; see [`RootDevice::revive`].
pub(super) type Look = Box<dyn FnOnce() -> Result<(), TokenError> + Send>;

/// The configured devices.
pub struct Fleet {
    devices: Mutex<BTreeMap<DeviceId, Configured>>,
    start_without: Vec<u8>,
    security: Security,
    real_money: bool,
    path: PathBuf,
    pins: Pins,
    metrics: HsmMetrics,
    /// The keys token, in production.
    keys: Option<TokenInfo>,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all().keys()).finish()
    }
}

impl Fleet {
    /// Loads their libraries. None of the tokens needs to be there; libraries and PINs do, but for devices that a
    /// person has named in `token.start_without`.
    pub fn load(config: &Config, metrics: &HsmMetrics) -> Result<Self, DeviceError> {
        for module in &config.token.preload {
            preload(module).map_err(|error| DeviceError::new(0, Condition::Module, error))?;
        }
        let mut devices = BTreeMap::new();
        for device in &config.token.devices {
            let loaded = match load(device, config.token.security, metrics) {
                Ok(loaded) => Some(loaded),
                Err(error) if config.token.may_be_missing(device.id) => {
                    tracing::warn!(%error, "starting without it");
                    None
                }
                Err(error) => return Err(error),
            };
            devices.insert(DeviceId(device.id), Configured { config: device.clone(), loaded });
        }
        Ok(Self {
            devices: Mutex::new(devices),
            start_without: config.token.start_without.clone(),
            security: config.token.security,
            real_money: false,
            path: config.path.clone(),
            pins: Pins::default(),
            metrics: metrics.clone(),
            keys: None,
        })
    }

    /// Whether a device that claims nothing may join.
    #[must_use]
    pub fn with_real_money(self, real_money: bool) -> Self {
        Self { real_money, ..self }
    }

    /// In production no device is the keys token, neither now nor when it comes later (D13).
    #[must_use]
    pub fn apart_from(self, keys: &TokenInfo) -> Self {
        if self.security != Security::Production {
            return self;
        }
        for (device, _) in self.all().values().filter_map(|device| device.loaded.as_ref()) {
            device.inner().never(keys.clone());
        }
        Self { keys: Some(keys.clone()), ..self }
    }

    /// Where the PIN of a device goes that is added later.
    #[must_use]
    pub fn with_pins(self, pins: Pins) -> Self {
        Self { pins, ..self }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Configured>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the vault opens with.
    pub fn devices(&self, keys: Arc<dyn Token>) -> Devices {
        // Also one that retires: it is a member until its roots are gone.
        self.all()
            .iter()
            .filter_map(|(id, device)| Some((*id, Arc::clone(&device.loaded.as_ref()?.1))))
            .fold(Devices::new(keys), |devices, (id, token)| devices.with(id, token))
            .start_without(self.start_without.iter().copied().map(DeviceId))
    }

    /// What may be said of a destruction: the least that holds for any device.
    pub fn delete_claim(&self) -> DeleteClaim {
        let all = self.all();
        let claims = all.values().map(|device| device.config.profile.delete_claim);
        claims.reduce(DeleteClaim::least).unwrap_or(DeleteClaim::None)
    }

    /// How long a batch that destroys waits for more, so that flash that wears, or a slow device, is spared: the longest
    /// that any of these devices asks for.
    pub fn min_batch(&self, serving: &[DeviceId]) -> Duration {
        let all = self.all();
        let asked = serving.iter().filter_map(|id| all.get(id)).map(|device| device.config.profile.min_batch);
        asked.max().unwrap_or_default()
    }

    /// Whether the configuration ends its part.
    pub(super) fn retires(&self, id: DeviceId) -> bool {
        self.all().get(&id).is_some_and(|device| device.config.retire)
    }

    /// A look at a loaded device.
    pub(super) fn look(&self, id: DeviceId) -> Option<Look> {
        let device = Arc::clone(&self.all().get(&id)?.loaded.as_ref()?.0);
        Some(Box::new(move || device.revive()))
    }

    /// Reads the configuration again and loads this device, if it is not loaded.
    pub(super) fn load_again(&self, id: DeviceId) -> Result<Loaded, DeviceError> {
        let unknown = |why: &dyn fmt::Display| DeviceError::new(id.0, Condition::Unknown, why);
        let config = Config::load(&self.path).map_err(|error| unknown(&error))?;
        let found = config.token.devices.into_iter().find(|device| device.id == id.0);
        let mut found = found.ok_or_else(|| unknown(&"the configuration does not name it"))?;
        if let Some(known) = self.all().get_mut(&id) {
            if !known.config.is_same(&found) {
                let why = "its number means another token than when the signer started";
                return Err(DeviceError::new(id.0, Condition::Changed, why));
            }
            if let Some((device, token)) = &known.loaded {
                known.config.retire = found.retire;
                return Ok((Arc::clone(device), Arc::clone(token)));
            }
        }
        if self.real_money && found.profile.delete_claim == DeleteClaim::None {
            return Err(DeviceError::new(id.0, Condition::Claim, "it claims nothing of deletion"));
        }
        let pin = found.roots.hold_pin(self.security);
        let pin = pin.map_err(|error| DeviceError::new(id.0, Condition::Pin, error))?;
        let (device, token) = load(&found, self.security, &self.metrics)?;
        if let Some(keys) = &self.keys {
            device.inner().never(keys.clone());
        }
        self.pins.set(id, pin);
        let loaded = Some((Arc::clone(&device), Arc::clone(&token)));
        self.all().insert(id, Configured { config: found, loaded });
        Ok((device, token))
    }
}

fn load(config: &DeviceConfig, security: Security, metrics: &HsmMetrics) -> Result<Loaded, DeviceError> {
    let loaded = RootDevice::load(config, security).map_err(|error| DeviceError::load(config.id, &error))?;
    let apart = Apart::new(Arc::new(loaded));
    let loaded = Arc::new(apart.map_err(|error| DeviceError::new(config.id, Condition::Module, error))?);
    let counted: Arc<dyn RootToken> = Arc::new(Observed::new(Arc::clone(&loaded), metrics.clone()));
    Ok((loaded, counted))
}
