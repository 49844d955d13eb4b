//! A signed archive of a signer's public material.
//!
//! It holds what a person needs to set up a lost signer's repair and to prove its history, and no secret: shares,
//! tweaks and roots never leave store and HSM. PINs are taken out of the configuration. What is restored of it is read
//! by people and auditors; no signer starts from it (S8).

mod log;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use spark_rules::federation_key::FederationKey;
use spark_signer::vault::Token as _;

pub use log::{CheckedLog, Marks, Seen, take};

use crate::config::{Config, TlsKeySource};
use crate::store::pages_path;
use crate::token::KeysToken;

/// Starts what is signed, so that it is no statement of another kind.
const DOMAIN: &[u8] = b"spark/signer/backup/v1\n";
const VERSION: u16 = 1;
/// End of the first line of a PEM file that must not leave.
const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-----";
/// Most bytes of one file: nothing public of ours is larger.
const MAX_FILE: u64 = 64 << 20;

/// Content. Its JSON, without white space and in this order, is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Form of the archive.
    pub version: u16,
    /// Index of the operator.
    pub operator: u16,
    /// When.
    pub unix_seconds: u64,
    /// Federation key of this signer, hex: the signer of the archive.
    pub federation_public_key: String,
    /// Identity key of this signer, hex.
    pub identity_public_key: String,
    /// What destroying a root means on this hardware.
    pub delete_claim: String,
    /// Name and content, hex.
    pub files: BTreeMap<String, String>,
}

/// The archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// What is signed.
    pub content: Content,
    /// By that key, 64 bytes hex.
    pub signature: String,
}

/// What an archive is, without its files' content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Index of the operator.
    pub operator: u16,
    /// When.
    pub unix_seconds: u64,
    /// Who signed.
    pub federation_public_key: String,
    /// Name and size in bytes.
    pub files: BTreeMap<String, usize>,
    /// The deletion log, checked against its signed head; nothing if the archive has none.
    pub log: Option<CheckedLog>,
}

fn message(content: &Content) -> anyhow::Result<Vec<u8>> {
    let mut message = DOMAIN.to_vec();
    serde_json::to_writer(&mut message, content)?;
    Ok(message)
}

/// Only the last part of a path: an archive writes into its folder and nowhere else.
fn plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Makes an archive of the configuration, the federation file, `more` public files and the `log` that [`take`] read,
/// signed in the HSM.
pub fn create(config: &Config, more: &[PathBuf], log: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Archive> {
    let token = KeysToken::open(&config.token)?;
    let mut files = BTreeMap::new();
    let text = fs::read_to_string(&config.path).with_context(|| config.path.display().to_string())?;
    add(&mut files, "signer.toml", without_pins(&text)?.as_bytes())?;
    for path in config.federation.iter().chain(more) {
        ensure!(!is_secret(config, path), "{} is not public", path.display());
        let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        let size = fs::metadata(path).with_context(|| path.display().to_string())?.len();
        ensure!(size <= MAX_FILE, "{} is too large", path.display());
        add(&mut files, name, &fs::read(path).with_context(|| path.display().to_string())?)?;
    }
    for (name, file) in log {
        add(&mut files, name, file)?;
    }
    let content = Content {
        version: VERSION,
        operator: config.operator,
        unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        federation_public_key: hex::encode(token.federation_public_key()),
        identity_public_key: hex::encode(token.identity_public_key().serialize()),
        delete_claim: config.token.delete_claim().as_str().to_owned(),
        files,
    };
    log::check(&content)?;
    let signature = hex::encode(token.sign_federation(&message(&content)?)?);
    Ok(Archive { content, signature })
}

/// The store, a PIN of any device, the TLS key.
fn is_secret(config: &Config, path: &Path) -> bool {
    let tokens = config.token.devices.iter().map(|device| &device.roots).chain([&config.token.keys.token]);
    tokens.filter_map(|token| token.pin.path()).any(|pin| same_file(pin, path))
        || same_file(&config.store, path)
        || same_file(&pages_path(&config.store), path)
        || matches!(config.tls.as_ref().map(|tls| &tls.key), Some(TlsKeySource::File(key)) if same_file(key, path))
}

fn same_file(one: &Path, two: &Path) -> bool {
    matches!((one.canonicalize(), two.canonicalize()), (Ok(one), Ok(two)) if one == two)
}

fn add(files: &mut BTreeMap<String, String>, name: &str, content: &[u8]) -> anyhow::Result<()> {
    ensure!(plain_name(name), "{name:?} cannot be archived");
    // A key that somebody names by mistake.
    let private = content.windows(PRIVATE_KEY.len()).any(|window| window == PRIVATE_KEY);
    ensure!(!private, "{name} holds a private key");
    ensure!(files.insert(name.to_owned(), hex::encode(content)).is_none(), "two files are called {name}");
    Ok(())
}

/// The configuration with every `pin` replaced, so that an inline PIN does not leave.
fn without_pins(text: &str) -> anyhow::Result<String> {
    fn clean(value: &mut toml::Value) {
        if let Some(list) = value.as_array_mut() {
            list.iter_mut().for_each(clean);
        }
        let Some(table) = value.as_table_mut() else { return };
        for (key, value) in table.iter_mut() {
            if key == "pin" {
                *value = toml::Value::String("prompt".into());
            } else {
                clean(value);
            }
        }
    }
    // Not through `toml::from_str::<Value>` errors: they would quote the text.
    let Ok(table) = text.parse::<toml::Table>() else { bail!("configuration is not TOML") };
    let mut value = toml::Value::Table(table);
    clean(&mut value);
    Ok(toml::to_string_pretty(&value)?)
}

/// Reads an archive and checks its signature: by `key` if given, else by the key that it names itself.
pub fn read(path: &Path, key: Option<&str>) -> anyhow::Result<Archive> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let archive: Archive = serde_json::from_str(&text)?;
    ensure!(archive.content.version == VERSION, "archive has version {}", archive.content.version);
    let named = &archive.content.federation_public_key;
    ensure!(
        key.is_none_or(|key| key.eq_ignore_ascii_case(named)),
        "archive is signed by another key, {named}"
    );
    let public: FederationKey = named.parse().context("archive's key is malformed")?;
    let mut signature = [0u8; 64];
    hex::decode_to_slice(&archive.signature, &mut signature).context("archive's signature is malformed")?;
    let message = message(&archive.content)?;
    ensure!(public.verifies(&message, &signature), "archive's signature does not verify");
    for name in archive.content.files.keys() {
        ensure!(plain_name(name), "archive names a file {name:?}");
    }
    Ok(archive)
}

impl Archive {
    /// What it holds. A log that does not lead to its signed head is refused.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        Ok(Summary {
            operator: self.content.operator,
            unix_seconds: self.content.unix_seconds,
            federation_public_key: self.content.federation_public_key.clone(),
            files: self.content.files.iter().map(|(name, hex)| (name.clone(), hex.len() / 2)).collect(),
            log: log::check(&self.content)?,
        })
    }

    /// Writes the files into a folder that is empty or does not exist.
    pub fn restore(&self, into: &Path) -> anyhow::Result<Vec<PathBuf>> {
        log::check(&self.content)?;
        fs::create_dir_all(into).with_context(|| into.display().to_string())?;
        ensure!(fs::read_dir(into)?.next().is_none(), "{} is not empty", into.display());
        let mut written = Vec::new();
        for (name, content) in &self.content.files {
            let content = hex::decode(content).with_context(|| format!("archive's {name} is malformed"))?;
            let path = into.join(name);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
            std::io::Write::write_all(&mut file, &content)?;
            file.sync_all()?;
            written.push(path);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with a second device, whose PINs lie in `folder`.
    fn text(folder: &Path) -> String {
        let pin = |name| folder.join(name).display().to_string();
        format!(
            r#"
            operator = 0
            store = "{}"
            [token]
            module = "/usr/lib/softhsm/libsofthsm2.so"
            profile = "softhsm"
            roots = {{ label = "roots", pin = {{ file = "{}" }} }}
            keys = {{ label = "keys", pin = {{ file = "{}" }} }}
            [[token.devices]]
            id = 1
            module = "/usr/lib/softhsm/libsofthsm2.so"
            profile = "softhsm"
            roots = {{ label = "second", pin = {{ file = "{}" }} }}
            "#,
            pin("store.redb"),
            pin("roots.pin"),
            pin("keys.pin"),
            pin("device1.pin"),
        )
    }

    #[test]
    fn no_device_s_pin_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::parse(&text(folder.path())).unwrap();
        for (name, secret) in [
            ("store.redb", true),
            ("roots.pin", true),
            ("keys.pin", true),
            ("device1.pin", true),
            ("federation.json", false),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, "1234").unwrap();
            assert_eq!(is_secret(&config, &path), secret, "{name}");
        }
        let inline = text(folder.path()).replace("{ file = ", "{ inline = ").replace(".pin", "-5678");
        let clean = without_pins(&inline).unwrap();
        assert!(!clean.contains("5678"), "{clean}");
        assert_eq!(clean.matches("prompt").count(), 3);
    }
}
