//! `wallet.toml`: who the operators are, how to reach them, and which bitcoind to ask.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use spark_rules::{
    address::Network,
    federation::{Federation, FederationError, FederationFile},
    ids::OperatorIndex,
};

/// Name of the file in the wallet's directory.
pub const FILE: &str = "wallet.toml";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not TOML of the expected form.
    #[error("{path}: {reason}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A value has no legal meaning.
    #[error("{field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The federation file is refused.
    #[error(transparent)]
    Federation(#[from] FederationError),
}

/// The file as written. Relative paths start at the file's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// "mainnet", "testnet", "signet" or "regtest".
    pub network: String,
    /// Account of the seed; default 0 on regtest, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<u32>,
    /// Who the operators are.
    pub federation: RawFederation,
    /// How to recognise them, and to prove oneself.
    pub tls: RawTls,
    /// Where they are, if not where the federation file says.
    #[serde(default, rename = "operator", skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<RawOperator>,
    /// For deposits, exits and checks against the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitcoind: Option<RawBitcoind>,
    /// To which keys packages for operators are sealed.
    #[serde(default, skip_serializing_if = "PackageKeys::is_default")]
    pub package_keys: PackageKeys,
    /// How long a call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
}

/// To which keys the operators' parts of a package are sealed (D14).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackageKeys {
    /// One-time keys only. An operator without them gets no package.
    #[default]
    OneTime,
    /// One-time keys where an operator offers them, its long-lived identity key otherwise.
    PreferOneTime,
    /// Identity keys, as public wallets do. Whoever records a package and later gets the use of that key opens it.
    LongLived,
}

impl PackageKeys {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Section `[federation]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFederation {
    /// The file, signed by all members.
    pub file: PathBuf,
    /// Its hash, 32 bytes hex. Without it the file is trusted as it lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// The operator that coordinates this wallet's requests.
    #[serde(default)]
    pub coordinator: u16,
}

/// Section `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    /// Authorities of the operators' certificates, PEM.
    pub ca: PathBuf,
    /// Own certificate, PEM. Absent only together with `anonymous = true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Connect without a certificate, to listeners that do not ask for one.
    #[serde(default)]
    pub anonymous: bool,
}

/// Section `[[operator]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawOperator {
    /// Position in the federation file.
    pub index: u16,
    /// `https://host:port`.
    pub address: String,
    /// SHA-256 of the public key that the server must show, 32 bytes hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_spki_sha256: Option<String>,
}

/// Section `[bitcoind]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBitcoind {
    /// `http://host:port`.
    pub url: String,
    /// Cookie file; or else user and password file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<PathBuf>,
    /// RPC user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the RPC password in its first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bitcoin network, the federation's.
    pub network: Network,
    /// Account of the seed.
    pub account: u32,
    /// Who the operators are.
    pub federation: Federation,
    /// The operator that coordinates.
    pub coordinator: OperatorIndex,
    /// All operators, in index order.
    pub endpoints: Vec<Endpoint>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Chain access, if any.
    pub bitcoind: Option<Bitcoind>,
    /// To which keys packages are sealed.
    pub package_keys: PackageKeys,
    /// For each call.
    pub deadline: Duration,
}

/// Where an operator listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Which operator.
    pub index: OperatorIndex,
    /// Name in its certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The only key it may show.
    pub pinned: Option<[u8; 32]>,
}

/// Certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities.
    pub ca: PathBuf,
    /// Own certificate and key; none only when the file says `anonymous = true`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How to reach bitcoind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitcoind {
    /// `http://host:port`.
    pub url: String,
    /// How to log in.
    pub login: Login,
}

/// How to log in to bitcoind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// By bitcoind's cookie file.
    Cookie(PathBuf),
    /// By name and a file that holds the password.
    Password {
        /// RPC user.
        user: String,
        /// First line is the password.
        file: PathBuf,
    },
}

impl Config {
    /// Reads and checks `wallet.toml` of `dir` and the federation file it names.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE);
        let text = read(&path)?;
        let raw: RawConfig =
            toml::from_str(&text).map_err(|e| ConfigError::Format { path, reason: e.to_string() })?;
        Self::check(raw, dir)
    }

    /// Checks what a file says.
    pub fn check(raw: RawConfig, dir: &Path) -> Result<Self, ConfigError> {
        let pinned = raw.federation.hash.as_deref().map(|h| hash("federation.hash", h)).transpose()?;
        let file = FederationFile::parse(&read(&dir.join(&raw.federation.file))?)?;
        let federation = file.verify(pinned.as_ref())?;
        let network = network(&raw.network)?;
        if network.bitcoin() != federation.network() {
            return Err(field("network", format!("the federation is on {}", federation.network())));
        }
        let coordinator = OperatorIndex::new(raw.federation.coordinator);
        if federation.member(coordinator).is_none() {
            return Err(field("federation.coordinator", "is no operator of the federation".into()));
        }
        let endpoints = endpoints(&raw.operators, &federation)?;
        let tls = tls(&raw.tls, dir)?;
        let bitcoind = raw.bitcoind.as_ref().map(|b| bitcoind(b, dir)).transpose()?;
        let deadline = raw.deadline_seconds.unwrap_or(60);
        if deadline == 0 || deadline > 600 {
            return Err(field("deadline_seconds", "must be 1 to 600".into()));
        }
        Ok(Self {
            network,
            account: raw.account.unwrap_or(crate::keys::default_account(network)),
            federation,
            coordinator,
            endpoints,
            tls,
            bitcoind,
            package_keys: raw.package_keys,
            deadline: Duration::from_secs(deadline),
        })
    }
}

fn field(field: &'static str, reason: String) -> ConfigError {
    ConfigError::Field { field, reason }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn network(name: &str) -> Result<Network, ConfigError> {
    name.to_ascii_uppercase()
        .parse()
        .ok()
        .filter(|_| name.bytes().all(|b| b.is_ascii_lowercase()))
        .ok_or_else(|| field("network", "must be mainnet, testnet, signet or regtest".into()))
}

fn hash(name: &'static str, text: &str) -> Result<[u8; 32], ConfigError> {
    let mut bytes = [0u8; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| field(name, "must be 32 bytes hex".into()))?;
    Ok(bytes)
}

fn endpoints(overrides: &[RawOperator], federation: &Federation) -> Result<Vec<Endpoint>, ConfigError> {
    for (i, o) in overrides.iter().enumerate() {
        if federation.member(OperatorIndex::new(o.index)).is_none() {
            return Err(field("operator.index", format!("{} is no operator of the federation", o.index)));
        }
        if overrides.iter().take(i).any(|earlier| earlier.index == o.index) {
            return Err(field("operator.index", format!("{} appears twice", o.index)));
        }
    }
    federation
        .members()
        .iter()
        .map(|member| {
            let chosen = overrides.iter().find(|o| o.index == member.index.get());
            let address = chosen.map_or(member.public_address.as_str(), |o| o.address.as_str());
            let (host, port) = split_address(address)
                .ok_or_else(|| field("operator.address", format!("{address:?} is not https://host:port")))?;
            let pinned = chosen.and_then(|o| o.tls_spki_sha256.as_deref());
            let pinned = pinned.map(|p| hash("operator.tls_spki_sha256", p)).transpose()?;
            Ok(Endpoint { index: member.index, host, port, pinned })
        })
        .collect()
}

/// Host without brackets, and port.
fn split_address(address: &str) -> Option<(String, u16)> {
    let authority = address.strip_prefix("https://")?.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_');
    if host.is_empty() || !host.bytes().all(legal) {
        return None;
    }
    Some((host.to_owned(), port.parse().ok().filter(|p| *p != 0)?))
}

fn tls(raw: &RawTls, dir: &Path) -> Result<TlsFiles, ConfigError> {
    let identity = match (&raw.certificate, &raw.key, raw.anonymous) {
        (Some(certificate), Some(key), false) => Some((dir.join(certificate), dir.join(key))),
        (None, None, true) => None,
        _ => {
            let reason = "name certificate and key, or say anonymous = true and name neither";
            return Err(field("tls", reason.into()));
        }
    };
    Ok(TlsFiles { ca: dir.join(&raw.ca), identity })
}

fn bitcoind(raw: &RawBitcoind, dir: &Path) -> Result<Bitcoind, ConfigError> {
    let login = match (&raw.cookie, &raw.user, &raw.password_file) {
        (Some(cookie), None, None) => Login::Cookie(dir.join(cookie)),
        (None, Some(user), Some(file)) => Login::Password { user: user.clone(), file: dir.join(file) },
        _ => return Err(field("bitcoind", "name either cookie, or user and password_file".into())),
    };
    if !raw.url.starts_with("http://") {
        return Err(field("bitcoind.url", "must be http://host:port".into()));
    }
    Ok(Bitcoind { url: raw.url.clone(), login })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_refused() {
        let text = "network = \"regtest\"\ncolour = 1\n[federation]\nfile = \"f\"\n[tls]\nca = \"c\"\n";
        assert!(toml::from_str::<RawConfig>(text).is_err());
        assert!(toml::from_str::<RawConfig>(&text.replace("colour = 1\n", "")).is_ok());
        let bitcoind = "url = \"http://h:1\"\npassword = \"x\"";
        assert!(toml::from_str::<RawBitcoind>(bitcoind).is_err());
    }

    #[test]
    fn certificates_are_needed_unless_refused_in_words() {
        let raw = |certificate: Option<&str>, key: Option<&str>, anonymous| RawTls {
            ca: "ca".into(),
            certificate: certificate.map(Into::into),
            key: key.map(Into::into),
            anonymous,
        };
        let check = |raw: RawTls| tls(&raw, Path::new("/w")).map(|t| t.identity.is_some());
        assert!(matches!(check(raw(Some("c"), Some("k"), false)), Ok(true)));
        assert!(matches!(check(raw(None, None, true)), Ok(false)));
        assert!(check(raw(None, None, false)).is_err());
        assert!(check(raw(Some("c"), None, false)).is_err());
        assert!(check(raw(Some("c"), Some("k"), true)).is_err());
    }

    #[test]
    fn addresses_are_https() {
        assert_eq!(split_address("https://localhost:8535"), Some(("localhost".into(), 8535)));
        assert_eq!(split_address("https://[::1]:8535/"), Some(("::1".into(), 8535)));
        for bad in
            ["http://localhost:1", "https://localhost", "https://:1", "https://a:0", "https://a/b:1", "a:1"]
        {
            assert_eq!(split_address(bad), None, "{bad}");
        }
    }
}
