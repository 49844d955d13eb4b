//! What a ceremony will make.

use std::fmt;

use serde::Serialize;

use crate::{
    config::Config,
    token::{LogSignature, Policies, RootMechanism},
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

/// All of it, and what the profile says.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Index of the operator.
    pub operator: u16,
    /// PKCS#11 library.
    pub module: String,
    /// Store to be made.
    pub store: String,
    /// Whether that file exists, which the ceremony refuses.
    pub store_exists: bool,
    /// Vendor profile.
    pub profile: &'static str,
    /// Property, value, mark.
    pub cells: Vec<(&'static str, String, &'static str)>,
    /// What may be claimed of a destruction.
    pub delete_claim: &'static str,
    /// Facts that are missing for the profile's full claim.
    pub missing_facts: Vec<&'static str>,
    /// Objects.
    pub objects: Vec<Planned>,
}

impl Plan {
    /// From the configuration alone; touches no token.
    pub fn new(config: &Config) -> Self {
        let (first, keys) = (config.token.first(), &config.token.keys);
        // The configuration has one.
        let profile = &first.map_or(keys.profile, |first| first.profile);
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
        let object = |token: &str, label, kind, purpose| Planned {
            token: token.to_owned(),
            label,
            kind,
            purpose,
            attributes: attributes.clone(),
        };
        let roots = first.map_or("", |first| first.roots.label.as_str());
        let module = &first.map_or(&keys.module, |first| &first.module);
        let facts = first.map(|first| first.facts).unwrap_or_default();
        let keys = keys.token.label.as_str();
        let root = match profile.root_mechanism {
            RootMechanism::HmacSha256 => "generic secret, 32 bytes",
            RootMechanism::AesCmac => "AES key, 32 bytes",
        };
        Self {
            operator: config.operator,
            module: module.display().to_string(),
            store: config.store.display().to_string(),
            store_exists: config.store.exists(),
            profile: profile.name,
            cells: profile
                .cells()
                .into_iter()
                .map(|(cell, value, mark)| (cell, value, mark.as_str()))
                .collect(),
            delete_claim: profile.delete_claim.as_str(),
            missing_facts: profile.missing_facts(&facts),
            objects: vec![
                object(roots, "spark-sentinel", root, "shows that the roots token can be listed"),
                object(
                    roots,
                    "spark-root",
                    root,
                    "root of the first epoch; destroyed and made anew with every batch that forgets",
                ),
                object(
                    keys,
                    "spark-identity",
                    "key pair, secp256k1",
                    "identity key: votes, receipts, opening of packages",
                ),
                object(
                    keys,
                    "spark-federation",
                    match config.token.keys.profile.log_signature {
                        LogSignature::Ed25519 => "key pair, Ed25519",
                        LogSignature::EcdsaP256 => "key pair, P-256",
                    },
                    "federation key: statements to other operators, the log",
                ),
            ],
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operator     {}", self.operator)?;
        writeln!(f, "library      {}", self.module)?;
        let refused = if self.store_exists { " (EXISTS: the ceremony will refuse)" } else { "" };
        writeln!(f, "store        {}{refused}", self.store)?;
        writeln!(f, "profile      {}", self.profile)?;
        for (cell, value, mark) in &self.cells {
            writeln!(f, "  {cell:<16} {value:<28} {mark}")?;
        }
        writeln!(f, "delete_claim {}", self.delete_claim)?;
        if !self.missing_facts.is_empty() {
            writeln!(
                f,
                "  for the profile's full claim state in [token.facts]: {}",
                self.missing_facts.join(", ")
            )?;
        }
        for object in &self.objects {
            writeln!(f, "token {}: {} ({}), {}", object.token, object.label, object.kind, object.purpose)?;
            writeln!(f, "  {}", object.attributes.join(" "))?;
        }
        Ok(())
    }
}
