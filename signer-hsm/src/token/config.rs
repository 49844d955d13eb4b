//! What a token is: where, which, and what its vendor lets us claim.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use spark_signer::vault::TokenError;
use zeroize::Zeroizing;

/// Where SoftHSM looks without `SOFTHSM2_CONF`.
const SYSTEM_CONF: &str = "/etc/softhsm/softhsm2.conf";

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
    /// Set by the program from its own profile, never read from here.
    #[serde(skip)]
    pub security: Security,
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

/// How a root becomes a sealing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMechanism {
    /// HMAC-SHA-256 with a generic secret made in the token.
    HmacSha256,
}

/// What a destruction reported by this kind of token may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteClaim {
    /// Gone from the device.
    Device,
    /// Gone from the device; vendor backups keep it for this many days.
    DeviceMinusBackups(u16),
    /// A file on the host was removed.
    HostMedia,
    /// Nothing.
    None,
}

impl DeleteClaim {
    /// The words of receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::DeviceMinusBackups(_) => "device-minus-backups",
            Self::HostMedia => "host-media",
            Self::None => "none",
        }
    }
}

/// A vendor's properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Name in the configuration.
    pub name: &'static str,
    /// Kind of root.
    pub root_mechanism: RootMechanism,
    /// Whether `CKA_COPYABLE`, `CKA_MODIFIABLE` and `CKA_DESTROYABLE` may stand in templates.
    pub object_policies: bool,
    /// What may be claimed.
    pub delete_claim: DeleteClaim,
    /// Shortest time between two batches.
    pub min_batch: Duration,
    /// Whether the token keeps objects in host files without syncing them.
    pub host_files: bool,
}

impl Profile {
    /// SoftHSM 2: development only.
    pub const SOFTHSM: Self = Self {
        name: "softhsm",
        root_mechanism: RootMechanism::HmacSha256,
        object_policies: true,
        delete_claim: DeleteClaim::None,
        min_batch: Duration::ZERO,
        host_files: true,
    };

    /// By name.
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::SOFTHSM].into_iter().find(|profile| profile.name == name)
    }

    /// The folder to sync where the token does not sync its files itself.
    pub(super) fn open_files(&self) -> Result<Option<File>, TokenError> {
        let Some((_, tokens)) = self.host_files()? else { return Ok(None) };
        File::open(&tokens).map(Some).map_err(|error| files_error(&tokens, &error))
    }

    /// Where the token keeps its objects in host files: its configuration, and their folder.
    pub fn host_files(&self) -> Result<Option<(PathBuf, PathBuf)>, TokenError> {
        if !self.host_files {
            return Ok(None);
        }
        let conf = std::env::var_os("SOFTHSM2_CONF").map_or_else(|| SYSTEM_CONF.into(), PathBuf::from);
        let text = std::fs::read_to_string(&conf).map_err(|error| files_error(&conf, &error))?;
        let tokens = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| key.trim() == "directories.tokendir")
            .map(|(_, value)| PathBuf::from(value.trim()))
            .ok_or_else(|| files_error(&conf, &"no directories.tokendir"))?;
        Ok(Some((conf, tokens)))
    }
}

fn files_error(what: &Path, error: &dyn std::fmt::Display) -> TokenError {
    TokenError::Failed(format!("token files, {}: {error}", what.display()))
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name).ok_or_else(|| D::Error::custom(format!("unknown token profile {name}")))
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
