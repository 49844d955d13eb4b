//! What a ceremony will make.

use std::fmt;

use serde::Serialize;

use crate::{
    config::Config,
    token::{DeleteClaim, DeviceConfig, LogSignature, Policies, Profile, RootMechanism},
};

/// One object.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// Label of the token.
    pub token: String,
    /// Label of the object.
    pub label: &'static str,
    /// What it is.
    pub kind: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Attributes of the secret or private object, asserted after it is made.
    pub attributes: Vec<&'static str>,
}

/// A device for roots.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedDevice {
    /// Its number.
    pub id: u8,
    /// PKCS#11 library.
    pub module: String,
    /// Vendor profile.
    pub profile: &'static str,
    /// Property, value, mark.
    pub cells: Vec<(&'static str, String, &'static str)>,
    /// What may be claimed of a destruction on it.
    pub delete_claim: &'static str,
    /// Facts that are missing for the profile's full claim.
    pub missing_facts: Vec<&'static str>,
}

/// All of it, and what the profiles say.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Index of the operator.
    pub operator: u16,
    /// PKCS#11 library of the keys.
    pub keys_module: String,
    /// Store to be made.
    pub store: String,
    /// Whether that file exists, which the ceremony refuses.
    pub store_exists: bool,
    /// Devices for roots.
    pub devices: Vec<PlannedDevice>,
    /// What receipts will claim of a destruction: the least that holds for any device.
    pub delete_claim: &'static str,
    /// Objects.
    pub objects: Vec<Planned>,
}

impl PlannedDevice {
    fn new(device: &DeviceConfig) -> Self {
        let profile = &device.profile;
        let cells = profile.cells().into_iter();
        Self {
            id: device.id,
            module: device.module.display().to_string(),
            profile: profile.name,
            cells: cells.map(|(cell, value, mark)| (cell, value, mark.as_str())).collect(),
            delete_claim: profile.delete_claim.as_str(),
            missing_facts: profile.missing_facts(&device.facts),
        }
    }
}

/// What each object will have.
fn attributes(profile: &Profile) -> Vec<&'static str> {
    let mut attributes = vec![
        "CKA_TOKEN=true",
        "CKA_PRIVATE=true",
        "CKA_SENSITIVE=true",
        "CKA_EXTRACTABLE=false",
        "CKA_LOCAL=true",
        "CKA_NEVER_EXTRACTABLE=true",
        "CKA_ALWAYS_SENSITIVE=true",
    ];
    if profile.policies == Policies::Required {
        attributes.extend(["CKA_COPYABLE=false", "CKA_MODIFIABLE=false", "CKA_DESTROYABLE=true"]);
    }
    attributes
}

/// The objects of a device.
fn of_device(device: &DeviceConfig) -> [Planned; 2] {
    let kind = match device.profile.root_mechanism {
        RootMechanism::HmacSha256 => "generic secret, 32 bytes",
        RootMechanism::AesCmac => "AES key, 32 bytes",
    };
    [
        ("spark-sentinel", "shows that the roots token can be listed"),
        ("spark-root", "root of the first epoch; destroyed and made anew with every batch that forgets"),
    ]
    .map(|(label, purpose)| Planned {
        token: device.roots.label.clone(),
        label,
        kind,
        purpose,
        attributes: attributes(&device.profile),
    })
}

impl Plan {
    /// From the configuration alone; touches no token.
    pub fn new(config: &Config) -> Self {
        let (devices, keys) = (&config.token.devices, &config.token.keys);
        let federation = match keys.profile.log_signature {
            LogSignature::Ed25519 => "key pair, Ed25519",
            LogSignature::EcdsaP256 => "key pair, P-256",
        };
        let mut objects: Vec<_> = devices.iter().flat_map(of_device).collect();
        objects.extend(
            [
                (
                    "spark-identity",
                    "key pair, secp256k1",
                    "identity key: what wallets know the operator by, opening of packages",
                ),
                (
                    "spark-federation",
                    federation,
                    "federation key: votes, statements to other operators, receipts and heads of the log",
                ),
            ]
            .map(|(label, kind, purpose)| Planned {
                token: keys.token.label.clone(),
                label,
                kind,
                purpose,
                attributes: attributes(&keys.profile),
            }),
        );
        let claims = devices.iter().map(|device| device.profile.delete_claim);
        Self {
            operator: config.operator,
            keys_module: keys.module.display().to_string(),
            store: config.store.display().to_string(),
            store_exists: config.store.exists(),
            devices: devices.iter().map(PlannedDevice::new).collect(),
            delete_claim: claims.reduce(DeleteClaim::least).unwrap_or(DeleteClaim::None).as_str(),
            objects,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operator     {}", self.operator)?;
        writeln!(f, "keys         {}", self.keys_module)?;
        let refused = if self.store_exists { " (EXISTS: the ceremony will refuse)" } else { "" };
        writeln!(f, "store        {}{refused}", self.store)?;
        for device in &self.devices {
            writeln!(f, "device {:<5} {}, profile {}", device.id, device.module, device.profile)?;
            for (cell, value, mark) in &device.cells {
                writeln!(f, "  {cell:<16} {value:<28} {mark}")?;
            }
            writeln!(f, "  claims {}", device.delete_claim)?;
            if !device.missing_facts.is_empty() {
                writeln!(
                    f,
                    "  for the profile's full claim state in its facts: {}",
                    device.missing_facts.join(", ")
                )?;
            }
        }
        writeln!(f, "delete_claim {}", self.delete_claim)?;
        for object in &self.objects {
            writeln!(f, "token {}: {} ({}), {}", object.token, object.label, object.kind, object.purpose)?;
            writeln!(f, "  {}", object.attributes.join(" "))?;
        }
        Ok(())
    }
}
