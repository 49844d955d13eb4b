//! Which tokens, and where their PINs come from.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::profile::{DeleteClaim, Facts, LogSignature, Profile, RootMechanism};

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

/// The tokens of a signer. In the file, `[token.roots]` is short for device 0 with the library, profile and facts of
/// `[token]`, and `[token.keys]` has these, too, if it names none.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Form")]
pub struct TokenConfig {
    /// The token that holds the identity, federation and TLS keys.
    pub keys: KeysConfig,
    /// The devices for roots, at least one. None differs from the others.
    pub devices: Vec<DeviceConfig>,
    /// Devices that may be away when the signer starts. A copy of the store could go on elsewhere by such a device: name
    /// one only if you know where it is.
    pub start_without: Vec<u8>,
    /// Further PKCS#11 libraries to load at the start, for devices that may be added while the signer runs.
    pub preload: Vec<PathBuf>,
    /// Set by the program from its own profile, never read from here.
    pub security: Security,
}

/// The token that holds the keys which speak for the signer.
#[derive(Debug, Clone)]
pub struct KeysConfig {
    /// PKCS#11 library.
    pub module: PathBuf,
    /// Vendor profile.
    pub profile: Profile,
    /// Which token.
    pub token: TokenRef,
    /// The process ends when none of its threads has come back from the token for so long; never if zero.
    pub end_after: Duration,
}

impl KeysConfig {
    /// What holds if the file does not say.
    pub const END_AFTER: Duration = Duration::from_secs(300);
}

/// What stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    module: Option<PathBuf>,
    profile: Option<Profile>,
    roots: Option<TokenRef>,
    keys: KeysForm,
    #[serde(default)]
    devices: Vec<DeviceConfig>,
    #[serde(default)]
    start_without: Vec<u8>,
    #[serde(default)]
    preload: Vec<PathBuf>,
    facts: Option<Facts>,
    root_mechanism: Option<RootMechanism>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysForm {
    module: Option<PathBuf>,
    profile: Option<Profile>,
    label: String,
    serial: Option<String>,
    pin: PinSource,
    end_after_seconds: Option<u32>,
    /// "ed25519" or "ecdsa-p256"; default: the profile's.
    federation_key: Option<LogSignature>,
}

impl TryFrom<Form> for TokenConfig {
    type Error = &'static str;

    fn try_from(form: Form) -> Result<Self, Self::Error> {
        let KeysForm { module, profile, label, serial, pin, end_after_seconds, federation_key } = form.keys;
        let profile = profile.or(form.profile).ok_or("the keys token has no profile")?;
        let keys = KeysConfig {
            module: module.or_else(|| form.module.clone()).ok_or("the keys token has no module")?,
            profile: federation_key.map_or(profile, |kind| profile.with_log_signature(kind)),
            token: TokenRef { label, serial, pin },
            end_after: end_after_seconds
                .map_or(KeysConfig::END_AFTER, |seconds| Duration::from_secs(seconds.into())),
        };
        let mut devices = form.devices;
        match form.roots {
            Some(roots) => devices.insert(
                0,
                DeviceConfig {
                    id: 0,
                    module: form.module.ok_or("the roots token has no module")?,
                    profile: form.profile.ok_or("the roots token has no profile")?,
                    roots,
                    facts: form.facts.unwrap_or_default(),
                    root_mechanism: form.root_mechanism,
                    retire: false,
                },
            ),
            None if form.facts.is_some() || form.root_mechanism.is_some() => {
                return Err("facts or root_mechanism without a roots token: state them of a device");
            }
            None => {}
        }
        for device in &mut devices {
            if let Some(kind) = device.root_mechanism {
                device.profile = device.profile.with_root_mechanism(kind);
            }
        }
        if devices.is_empty() {
            return Err("neither a roots token nor a device");
        }
        Ok(Self {
            keys,
            devices,
            start_without: form.start_without,
            preload: form.preload,
            security: Security::default(),
        })
    }
}

/// A device that holds roots of its own: any one device unlocks the store, and what it seals is destroyed when all have
/// destroyed their roots.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Number; never given to another device later. That of `[token.roots]` is 0.
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
    /// "hmac-sha256" or "aes-cmac"; default: the profile's. Never changed for a device that holds roots.
    #[serde(default)]
    pub root_mechanism: Option<RootMechanism>,
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
    pub fn path(&self) -> Option<&Path> {
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
        self.start_without.contains(&device)
    }

    /// The device that is listed first: what ceremonies describe.
    pub fn first(&self) -> Option<&DeviceConfig> {
        self.devices.first()
    }

    /// One device.
    pub fn device(&self, id: u8) -> Option<&DeviceConfig> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// Whether the keys lie in a token with roots (D13 wants them apart), as far as the configuration tells. The tokens
    /// are asked when they are opened.
    pub fn is_shared(&self) -> bool {
        let KeysConfig { module, token, .. } = &self.keys;
        self.devices
            .iter()
            .any(|device| is_library(&device.module, module) && device.roots.may_be_token(token))
    }

    /// Whether two devices mean one token, as far as the configuration tells.
    pub fn is_twice(&self) -> bool {
        let same = |a: &DeviceConfig, b: &DeviceConfig| {
            is_library(&a.module, &b.module) && a.roots.may_be_token(&b.roots)
        };
        let mut devices = self.devices.iter();
        std::iter::from_fn(|| devices.next().map(|one| devices.clone().any(|other| same(one, other))))
            .any(|twice| twice)
    }

    /// What may be said of a destruction: the least that holds for any device.
    pub fn delete_claim(&self) -> DeleteClaim {
        let claims = self.devices.iter().map(|device| device.profile.delete_claim);
        claims.reduce(DeleteClaim::least).unwrap_or(DeleteClaim::None)
    }

    /// Lowers the claim of each device's profile to what the operator's facts support.
    pub fn apply_facts(&mut self) {
        for device in &mut self.devices {
            device.profile = device.profile.under(&device.facts);
        }
    }
}

impl TokenRef {
    /// Whether both mean one token of a library; how its PIN comes is of no account.
    pub fn is_token(&self, other: &Self) -> bool {
        self.label == other.label && self.serial == other.serial
    }

    /// The same where one of them may have left the serial number out.
    fn may_be_token(&self, other: &Self) -> bool {
        let differ = |one: &String| other.serial.as_ref().is_some_and(|serial| serial != one);
        self.label == other.label && !self.serial.as_ref().is_some_and(differ)
    }
}

/// Whether two paths lead to one library, links followed.
fn is_library(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
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
        assert_eq!(config.security, Security::Production);
        let first = config.first().unwrap();
        assert_eq!((first.id, first.profile), (0, Profile::SOFTHSM));
        assert_eq!((&config.keys.module, config.keys.profile), (&first.module, first.profile));
        assert!(matches!(first.roots.pin, PinSource::File(_)));
        assert!(matches!(config.keys.token.pin, PinSource::Prompt));
        assert!(!config.is_shared());
        assert_eq!(config.keys.end_after.as_secs(), 300);
        for (old, new) in [
            ("\"softhsm\"", "\"other\""),
            ("[roots]", "security = \"development\"\n[roots]"),
            ("serial", "number"),
            ("file", "path"),
        ] {
            assert!(toml::from_str::<TokenConfig>(&TEXT.replace(old, new)).is_err(), "{new}");
        }
        let shared: TokenConfig =
            toml::from_str(&TEXT.replace("\"keys\"", "\"roots\"").replace("serial", "# ")).unwrap();
        assert!(shared.is_shared());
        let named: TokenConfig = toml::from_str(&TEXT.replace("\"keys\"", "\"roots\"")).unwrap();
        assert!(named.is_shared(), "a serial number that is left out fits any");
        let shown = format!("{:?}", PinSource::Inline("4711".into()));
        assert!(!shown.contains("4711"));
    }

    #[test]
    fn keys_have_a_token_of_their_own_and_no_device_is_special() {
        const APART: &str = r#"
            [keys]
            module = "/opt/keys.so"
            profile = "luna"
            label = "keys"
            pin = "prompt"
            [[devices]]
            id = 3
            module = "/opt/roots.so"
            profile = "nshield"
            roots = { label = "roots", pin = "prompt" }
            [[devices]]
            id = 0
            module = "/opt/roots.so"
            profile = "nshield"
            roots = { label = "more", pin = "prompt" }
        "#;
        let config: TokenConfig = toml::from_str(APART).unwrap();
        assert_eq!((config.keys.profile.name, &*config.keys.token.label), ("luna", "keys"));
        assert_eq!(config.devices.iter().map(|device| device.id).collect::<Vec<_>>(), [3, 0]);
        let cmac = APART.replacen("id = 3", "id = 3\nroot_mechanism = \"aes-cmac\"", 1);
        let cmac: TokenConfig = toml::from_str(&cmac).unwrap();
        let kinds: Vec<_> = cmac.devices.iter().map(|device| device.profile.root_mechanism).collect();
        assert_eq!(kinds, [RootMechanism::AesCmac, RootMechanism::HmacSha256]);
        let kind = |more: &str| {
            let text = APART.replacen("label = \"keys\"", &format!("label = \"keys\"\n{more}"), 1);
            toml::from_str::<TokenConfig>(&text).map(|config| config.keys.profile.log_signature)
        };
        assert_eq!(kind("").unwrap(), LogSignature::Ed25519);
        assert_eq!(kind("federation_key = \"ecdsa-p256\"").unwrap(), LogSignature::EcdsaP256);
        assert!(kind("federation_key = \"rsa\"").is_err());
        assert_eq!(config.delete_claim(), DeleteClaim::HostMedia, "the keys token claims nothing");
        for wrong in [
            APART.split("[[devices]]").next().unwrap().to_owned(),
            APART.replacen("profile = \"luna\"", "", 1),
            format!("facts = {{ ha_off = true }}\n{APART}"),
            format!("roots = {{ label = \"x\", pin = \"prompt\" }}\n{APART}"),
        ] {
            assert!(toml::from_str::<TokenConfig>(&wrong).is_err(), "{wrong}");
        }
    }
}
