//! Which tokens, and where their PINs come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::profile::{Facts, Profile};

/// Whether shortcuts for development are allowed: PINs in configuration or environment, imported keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// No.
    #[default]
    Production,
    /// Yes.
    Development,
}

/// Both tokens of a signer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// PKCS#11 library.
    pub module: PathBuf,
    /// Vendor profile.
    pub profile: Profile,
    /// Token that holds the roots and nothing else.
    pub roots: TokenRef,
    /// Token that holds the identity and federation keys.
    pub keys: TokenRef,
    /// Further devices that hold roots, each its own; the two tokens above are device 0.
    #[serde(default)]
    pub devices: Vec<DeviceConfig>,
    /// Devices that may be away when the signer starts. A copy of the store could go on elsewhere by such a device: name
    /// one only if you know where it is.
    #[serde(default)]
    pub start_without: Vec<u8>,
    /// Further PKCS#11 libraries to load at the start, for devices that may be added while the signer runs.
    #[serde(default)]
    pub preload: Vec<PathBuf>,
    /// What the operator states of the devices; a claim rests on it.
    #[serde(default)]
    pub facts: Facts,
    /// Set by the program from its own profile, never read from here.
    #[serde(skip)]
    pub security: Security,
}

/// A device that holds roots of its own: any one device unlocks the store, and what it seals is destroyed when all have
/// destroyed their roots.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Number, from 1 on; never given to another device later.
    pub id: u8,
    /// PKCS#11 library.
    pub module: PathBuf,
    /// Vendor profile.
    pub profile: Profile,
    /// Token that holds the roots and nothing else.
    pub roots: TokenRef,
    /// What the operator states of the device; a claim rests on it.
    #[serde(default)]
    pub facts: Facts,
    /// End its part: its roots are destroyed, and when that is confirmed it is forgotten.
    #[serde(default)]
    pub retire: bool,
}

/// One token, found by label and, if given, serial number.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRef {
    /// Label.
    pub label: String,
    /// Serial number; needed where labels repeat.
    #[serde(default)]
    pub serial: Option<String>,
    /// Where the user PIN comes from.
    pub pin: PinSource,
}

/// Where a PIN comes from. Never from the command line.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PinSource {
    /// A file that only its owner can read.
    File(PathBuf),
    /// An inherited descriptor, read to its end.
    Descriptor(u32),
    /// A person at the terminal.
    Prompt,
    /// An environment variable; development only.
    Environment(String),
    /// The PIN itself; development only.
    Inline(String),
    /// Read before, from one of the others.
    #[serde(skip)]
    Held(Zeroizing<String>),
}

impl PinSource {
    /// The file that holds it, if it is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }
}

impl std::fmt::Debug for PinSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "file",
            Self::Descriptor(_) => "descriptor",
            Self::Prompt => "prompt",
            Self::Environment(_) => "environment",
            Self::Inline(_) => "inline",
            Self::Held(_) => "held",
        })
    }
}

impl TokenConfig {
    /// Whether a device may be missing altogether when the signer starts.
    pub fn may_be_missing(&self, device: u8) -> bool {
        device != 0 && self.start_without.contains(&device)
    }

    /// All devices in order, the first one as number 0.
    pub fn root_devices(&self) -> Vec<DeviceConfig> {
        let first = DeviceConfig {
            id: 0,
            module: self.module.clone(),
            profile: self.profile,
            roots: self.roots.clone(),
            facts: self.facts,
            retire: false,
        };
        std::iter::once(first).chain(self.devices.iter().cloned()).collect()
    }

    /// Lowers the claim of each device's profile to what the operator's facts support.
    pub fn apply_facts(&mut self) {
        self.profile = self.profile.under(&self.facts);
        for device in &mut self.devices {
            device.profile = device.profile.under(&device.facts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        module = "/usr/lib/softhsm/libsofthsm2.so"
        profile = "softhsm"
        [roots]
        label = "roots"
        pin = { file = "/run/credentials/roots-pin" }
        [keys]
        label = "keys"
        serial = "0123456789abcdef"
        pin = "prompt"
    "#;

    #[test]
    fn configuration_is_read_strictly() {
        let config: TokenConfig = toml::from_str(TEXT).unwrap();
        assert_eq!(config.profile, Profile::SOFTHSM);
        assert_eq!(config.security, Security::Production);
        assert!(matches!(config.roots.pin, PinSource::File(_)));
        assert!(matches!(config.keys.pin, PinSource::Prompt));
        for (old, new) in [
            ("\"softhsm\"", "\"other\""),
            ("[roots]", "security = \"development\"\n[roots]"),
            ("serial", "number"),
            ("file", "path"),
        ] {
            assert!(toml::from_str::<TokenConfig>(&TEXT.replace(old, new)).is_err(), "{new}");
        }
        let shown = format!("{:?}", PinSource::Inline("4711".into()));
        assert!(!shown.contains("4711"));
    }
}
