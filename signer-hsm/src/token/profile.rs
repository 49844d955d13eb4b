//! What a vendor's tokens can do, how sure that is, and what their reports of a destruction may be called.
//!
//! The cells are from vendors' documents and our measurements. Each carries a [`Mark`]; `spark-signer
//! conformance` confirms or refutes them on a real device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use spark_signer::vault::TokenError;

/// Where SoftHSM looks without `SOFTHSM2_CONF`.
const SYSTEM_CONF: &str = "/etc/softhsm/softhsm2.conf";

/// How sure a property is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// Measured by us on this kind of token.
    Verified,
    /// The vendor documents it; nobody here tried.
    Documented,
    /// Expected. Ask the vendor and run the conformance suite.
    Unverified,
}

impl Mark {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Documented => "documented",
            Self::Unverified => "unverified",
        }
    }
}

/// How a root becomes a sealing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum RootMechanism {
    /// HMAC-SHA-256 with a generic secret made in the token.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// AES-256-CMAC in counter mode (SP 800-108), where a token makes no keys for HMAC.
    #[serde(rename = "aes-cmac")]
    AesCmac,
}

impl RootMechanism {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::AesCmac => "aes-cmac",
        }
    }
}

/// `CKA_COPYABLE`, `CKA_MODIFIABLE` and `CKA_DESTROYABLE`: older libraries do not know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policies {
    /// Set in every template and asserted.
    Required,
    /// Set; where the token refuses them, left away. Not asserted.
    Optional,
}

impl Policies {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
        }
    }
}

/// Whether a result of ECDH can be read out, which opening packages needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EcdhExtract {
    /// Yes.
    Yes,
    /// Depends on the device's policy (FIPS mode, for example).
    Policy,
    /// There is no ECDH on secp256k1.
    No,
}

impl EcdhExtract {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Policy => "policy",
            Self::No => "no",
        }
    }
}

/// The signature of the federation key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LogSignature {
    /// Ed25519.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// ECDSA on P-256, where a token lacks EdDSA.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
}

impl LogSignature {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256",
        }
    }
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

    /// The one that says less.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        let days = |claim| match claim {
            Self::DeviceMinusBackups(days) => u16::MAX.saturating_sub(days),
            _ => 0,
        };
        if (self.rank(), days(self)) <= (other.rank(), days(other)) { self } else { other }
    }

    const fn rank(self) -> u8 {
        match self {
            Self::None => 0,
            Self::HostMedia => 1,
            Self::DeviceMinusBackups(_) => 2,
            Self::Device => 3,
        }
    }
}

/// What only the operator knows of his devices. Nothing is taken for granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// The roots partition is in no cloning domain with another device.
    pub no_cloning: bool,
    /// No backup device or backup file holds this partition.
    pub no_backup: bool,
    /// The partition is not member of a vendor's high-availability group.
    pub ha_off: bool,
    /// "Key Invalidation", which keeps deleted keys, is off (Securosys).
    pub key_invalidation_off: bool,
    /// No key has the capability `exportable-under-wrap` (YubiHSM 2).
    pub no_exportable: bool,
    /// Days that the vendor keeps backups (CloudHSM: 7 to 379).
    pub backup_days: Option<u16>,
    /// Claim less than the profile allows: "host-media" or "none".
    pub at_most: Option<AtMost>,
}

/// A ceiling set by the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtMost {
    /// A file on the host was removed.
    HostMedia,
    /// Nothing.
    None,
}

/// One statement that must be true before a claim holds.
type Fact = (&'static str, fn(&Facts) -> bool);

const NO_CLONING: Fact = ("no_cloning", |facts| facts.no_cloning);
const NO_BACKUP: Fact = ("no_backup", |facts| facts.no_backup);
const HA_OFF: Fact = ("ha_off", |facts| facts.ha_off);
const INVALIDATION_OFF: Fact = ("key_invalidation_off", |facts| facts.key_invalidation_off);
const NO_EXPORTABLE: Fact = ("no_exportable", |facts| facts.no_exportable);
const BACKUP_DAYS: Fact = ("backup_days", |facts| facts.backup_days.is_some());

/// How sure each property of a profile is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Of `root_mechanism`.
    pub root_mechanism: Mark,
    /// Of `policies`.
    pub policies: Mark,
    /// Of `ecdh_extract`.
    pub ecdh_extract: Mark,
    /// Of `log_signature`.
    pub log_signature: Mark,
    /// Of `delete_claim`.
    pub delete_claim: Mark,
    /// Of `min_batch`.
    pub min_batch: Mark,
}

/// A vendor's properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Name in the configuration.
    pub name: &'static str,
    /// Kind of root.
    pub root_mechanism: RootMechanism,
    /// Object policies in templates.
    pub policies: Policies,
    /// Whether packages can be opened.
    pub ecdh_extract: EcdhExtract,
    /// What signs the log.
    pub log_signature: LogSignature,
    /// What may be claimed. In a loaded configuration: after the operator's facts.
    pub delete_claim: DeleteClaim,
    /// How long a batch that destroys waits for more calls, so that the flash of the device, and its time, are spared.
    pub min_batch: Duration,
    /// Whether the token keeps objects in host files without syncing them.
    pub host_files: bool,
    /// How sure that is.
    pub marks: Marks,
}

const UNVERIFIED: Marks = Marks {
    root_mechanism: Mark::Unverified,
    policies: Mark::Unverified,
    ecdh_extract: Mark::Unverified,
    log_signature: Mark::Unverified,
    delete_claim: Mark::Unverified,
    min_batch: Mark::Unverified,
};
const VERIFIED: Marks = Marks {
    root_mechanism: Mark::Verified,
    policies: Mark::Verified,
    ecdh_extract: Mark::Verified,
    log_signature: Mark::Verified,
    delete_claim: Mark::Verified,
    min_batch: Mark::Verified,
};

/// A hardware token of which little is known: what differs is set by each profile.
const HARDWARE: Profile = Profile {
    name: "",
    root_mechanism: RootMechanism::HmacSha256,
    policies: Policies::Optional,
    ecdh_extract: EcdhExtract::Policy,
    log_signature: LogSignature::Ed25519,
    delete_claim: DeleteClaim::Device,
    min_batch: Duration::from_millis(250),
    host_files: false,
    marks: UNVERIFIED,
};

impl Profile {
    /// Thales Luna 7.
    pub const LUNA: Self = Self { name: "luna", ..HARDWARE };

    /// Entrust nShield: token objects are encrypted files on the host.
    pub const NSHIELD: Self = Self {
        name: "nshield",
        delete_claim: DeleteClaim::HostMedia,
        min_batch: Duration::from_millis(500),
        marks: Marks {
            root_mechanism: Mark::Documented,
            log_signature: Mark::Documented,
            delete_claim: Mark::Documented,
            ..UNVERIFIED
        },
        ..HARDWARE
    };

    /// AWS CloudHSM: daily backups of the cluster hold all keys.
    pub const CLOUDHSM: Self = Self {
        name: "cloudhsm",
        log_signature: LogSignature::EcdsaP256,
        delete_claim: DeleteClaim::DeviceMinusBackups(7),
        min_batch: Duration::from_secs(1),
        marks: Marks {
            root_mechanism: Mark::Documented,
            log_signature: Mark::Documented,
            delete_claim: Mark::Documented,
            ..UNVERIFIED
        },
        ..HARDWARE
    };

    /// YubiHSM 2: 62 log entries must be drained at least every 20 batches.
    pub const YUBIHSM2: Self = Self {
        name: "yubihsm2",
        ecdh_extract: EcdhExtract::Yes,
        min_batch: Duration::from_secs(2),
        marks: Marks {
            root_mechanism: Mark::Documented,
            policies: Mark::Documented,
            ecdh_extract: Mark::Documented,
            log_signature: Mark::Documented,
            delete_claim: Mark::Documented,
            ..UNVERIFIED
        },
        ..HARDWARE
    };

    /// Securosys Primus.
    pub const SECUROSYS: Self = Self { name: "securosys", ..HARDWARE };

    /// SoftHSM 2: development only.
    pub const SOFTHSM: Self = Self {
        name: "softhsm",
        policies: Policies::Required,
        ecdh_extract: EcdhExtract::Yes,
        delete_claim: DeleteClaim::None,
        min_batch: Duration::ZERO,
        host_files: true,
        marks: VERIFIED,
        ..HARDWARE
    };

    /// kryoptic: development only, roots only.
    pub const KRYOPTIC: Self = Self {
        name: "kryoptic",
        policies: Policies::Required,
        ecdh_extract: EcdhExtract::No,
        log_signature: LogSignature::EcdsaP256,
        delete_claim: DeleteClaim::None,
        min_batch: Duration::ZERO,
        marks: VERIFIED,
        ..HARDWARE
    };

    /// All.
    pub const ALL: [Self; 7] = [
        Self::LUNA,
        Self::NSHIELD,
        Self::CLOUDHSM,
        Self::YUBIHSM2,
        Self::SECUROSYS,
        Self::SOFTHSM,
        Self::KRYOPTIC,
    ];

    /// By name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// Property, value and mark of each cell.
    pub fn cells(&self) -> [(&'static str, String, Mark); 6] {
        let claim = match self.delete_claim {
            DeleteClaim::DeviceMinusBackups(days) => format!("device-minus-backups({days} days)"),
            other => other.as_str().to_owned(),
        };
        [
            ("root_mechanism", self.root_mechanism.as_str().to_owned(), self.marks.root_mechanism),
            ("policies", self.policies.as_str().to_owned(), self.marks.policies),
            ("ecdh_extract", self.ecdh_extract.as_str().to_owned(), self.marks.ecdh_extract),
            ("log_signature", self.log_signature.as_str().to_owned(), self.marks.log_signature),
            ("delete_claim", claim, self.marks.delete_claim),
            ("min_batch", format!("{} ms", self.min_batch.as_millis()), self.marks.min_batch),
        ]
    }

    /// With this kind of federation key instead: what a device offers may depend on its firmware and policy.
    #[must_use]
    pub const fn with_log_signature(mut self, kind: LogSignature) -> Self {
        if !matches!(
            (self.log_signature, kind),
            (LogSignature::Ed25519, LogSignature::Ed25519)
                | (LogSignature::EcdsaP256, LogSignature::EcdsaP256)
        ) {
            self.log_signature = kind;
            self.marks.log_signature = Mark::Unverified;
        }
        self
    }

    /// With this kind of root instead, if the device makes no others.
    #[must_use]
    pub fn with_root_mechanism(mut self, kind: RootMechanism) -> Self {
        if self.root_mechanism != kind {
            self.root_mechanism = kind;
            self.marks.root_mechanism = Mark::Unverified;
        }
        self
    }

    /// What must be stated before the profile's claim holds.
    const fn conditions(&self) -> &'static [Fact] {
        match self.name.as_bytes() {
            b"luna" => &[NO_CLONING, NO_BACKUP, HA_OFF],
            b"cloudhsm" => &[BACKUP_DAYS],
            b"yubihsm2" => &[NO_EXPORTABLE, NO_BACKUP],
            b"securosys" => &[INVALIDATION_OFF, NO_BACKUP],
            _ => &[],
        }
    }

    /// The facts that are missing for the profile's claim, by their names in the configuration.
    pub fn missing_facts(&self, facts: &Facts) -> Vec<&'static str> {
        self.conditions().iter().filter(|(_, holds)| !holds(facts)).map(|(name, _)| *name).collect()
    }

    /// The profile with what may be claimed under these facts. Facts lower a claim and never raise it: with
    /// one missing nobody knows how long a copy lives, so nothing is claimed.
    pub fn under(mut self, facts: &Facts) -> Self {
        let mut claim = if self.missing_facts(facts).is_empty() {
            match (self.delete_claim, facts.backup_days) {
                (DeleteClaim::DeviceMinusBackups(least), Some(days)) => {
                    DeleteClaim::DeviceMinusBackups(days.max(least))
                }
                (claim, _) => claim,
            }
        } else {
            DeleteClaim::None
        };
        let ceiling = match facts.at_most {
            Some(AtMost::HostMedia) => DeleteClaim::HostMedia,
            Some(AtMost::None) => DeleteClaim::None,
            None => DeleteClaim::Device,
        };
        if ceiling.rank() < claim.rank() {
            claim = ceiling;
        }
        self.delete_claim = claim;
        self
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

    const EVERYTHING: Facts = Facts {
        no_cloning: true,
        no_backup: true,
        ha_off: true,
        key_invalidation_off: true,
        no_exportable: true,
        backup_days: Some(30),
        at_most: None,
    };

    #[test]
    fn a_claim_needs_every_fact_and_no_fact_raises_it() {
        assert_eq!(Profile::LUNA.under(&EVERYTHING).delete_claim, DeleteClaim::Device);
        for profile in Profile::ALL {
            let full = profile.under(&EVERYTHING);
            assert!(full.delete_claim.rank() <= profile.delete_claim.rank(), "{}", profile.name);
            assert_eq!(full.delete_claim.rank(), profile.delete_claim.rank(), "{}", profile.name);
            if !profile.conditions().is_empty() {
                let bare = profile.under(&Facts::default());
                assert_eq!(bare.delete_claim, DeleteClaim::None, "{}", profile.name);
            }
            let lowered = profile.under(&Facts { at_most: Some(AtMost::None), ..EVERYTHING });
            assert_eq!(lowered.delete_claim, DeleteClaim::None);
            let lowered = profile.under(&Facts { at_most: Some(AtMost::HostMedia), ..EVERYTHING });
            assert!(lowered.delete_claim.rank() <= profile.delete_claim.rank());
        }
        for without in [
            Facts { no_cloning: false, ..EVERYTHING },
            Facts { no_backup: false, ..EVERYTHING },
            Facts { ha_off: false, ..EVERYTHING },
        ] {
            assert_eq!(Profile::LUNA.under(&without).delete_claim, DeleteClaim::None);
        }
        let days = |backup_days| Profile::CLOUDHSM.under(&Facts { backup_days, ..EVERYTHING }).delete_claim;
        assert_eq!(days(Some(30)), DeleteClaim::DeviceMinusBackups(30));
        assert_eq!(days(Some(1)), DeleteClaim::DeviceMinusBackups(7));
        assert_eq!(Profile::NSHIELD.under(&EVERYTHING).delete_claim, DeleteClaim::HostMedia);
    }

    #[test]
    fn only_what_we_measured_is_called_verified() {
        for profile in Profile::ALL {
            let ours = ["softhsm", "kryoptic"].contains(&profile.name);
            assert!(profile.cells().iter().all(|(.., mark)| (*mark == Mark::Verified) == ours));
            assert_eq!(Profile::by_name(profile.name), Some(profile));
        }
        assert_eq!(Profile::by_name("other"), None);
    }
}
