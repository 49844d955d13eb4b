//! The configuration file: as written, then as checked ([`Config`]).
//!
//! Unknown fields are errors. Secrets are references to where they lie, never values. All faults are reported
//! at once, each with the path of its field.

mod raw;
mod reference;

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::Network;
pub use reference::{SecretError, SecretRef};
use secp256k1::PublicKey;
use spark_proto::transport::Spki;
use spark_rules::ids::OperatorIndex;

use crate::{edge::QuotaLimits, telemetry::LogFormat};

/// Checked configuration of an operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Bitcoin network.
    pub network: Network,
    /// Own position in the federation file.
    pub operator: OperatorIndex,
    /// Path of the federation file.
    pub federation: PathBuf,
    /// The hash that it must have.
    pub federation_hash: [u8; 32],
    /// Authority of the other operators' certificates, for both directions.
    pub peers_ca: PathBuf,
    /// Sockets.
    pub listen: Listen,
    /// Own certificate.
    pub tls: Tls,
    /// The signer.
    pub signer: Signer,
    /// Postgres.
    pub database: Database,
    /// Bitcoin Core.
    pub bitcoind: Bitcoind,
    /// How the chain is read.
    pub chain: Chain,
    /// Quotas of public callers.
    pub limits: QuotaLimits,
    /// Identity keys of service providers (SSPs).
    pub providers: Vec<PublicKey>,
    /// Life of a session.
    pub session_ttl: Duration,
    /// Days for which events wait for wallets that are away.
    pub event_retention_days: u16,
    /// Refreshes the shares of what the own signer's repair brought back (D12).
    pub refresh_after_repair: bool,
    /// Answers queries about an identity to everybody, also without a session, unless its owner has closed it. Off by
    /// default: an identity is closed unless its owner opens it.
    pub open_reads: bool,
    /// Answers what only public SDKs' own test suites call. On regtest, in a build with the feature `development`.
    pub sdk_suites: bool,
    /// Offers transfers that a preimage completes, and votes for those of others. Those that are pending go on without.
    pub htlc: bool,
    /// Offers cooperative exits, and votes for those of others. Off by default, for the same reason.
    pub coop_exit: bool,
    /// Look of log lines.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`.
    pub log_filter: String,
}

/// Sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// For wallets, at least one.
    pub public: Vec<PublicListener>,
    /// For other operators, mutual TLS.
    pub peer: SocketAddr,
    /// For administrators, mutual TLS; off when absent.
    pub admin: Option<AdminListener>,
    /// Metrics and health, without TLS.
    pub http: SocketAddr,
}

/// One socket for wallets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicListener {
    /// Where.
    pub address: SocketAddr,
    /// Whether wallets need a certificate.
    pub client_auth: ClientCertificates,
}

/// The socket for administrators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminListener {
    /// Where.
    pub address: SocketAddr,
    /// TLS keys that may come in: `tls.client_ca` certifies wallets, too.
    pub allow: Vec<Spki>,
}

/// Whether clients of a listener need a certificate under `tls.client_ca`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Yes.
    #[default]
    Required,
    /// If they have one, it must be good.
    Optional,
    /// None is asked for: public SDKs cannot present one.
    Off,
}

/// Own certificate, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authority of wallets' and administrators' certificates; there whenever a listener asks for them.
    pub client_ca: Option<PathBuf>,
}

/// The signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// `host:port`.
    pub address: String,
    /// Name that its certificate carries.
    pub server_name: String,
    /// Authority of its certificate.
    pub ca: PathBuf,
    /// Own certificate towards it.
    pub cert: PathBuf,
    /// Private key of that.
    pub key: PathBuf,
    /// The only TLS key it may have.
    pub spki: Spki,
    /// Longest wait for an answer.
    pub deadline: Duration,
}

/// Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Where its connection URL lies, which may contain a password.
    pub url: SecretRef,
    /// Size of the pool.
    pub max_connections: NonZeroU32,
}

/// Bitcoin Core's RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitcoind {
    /// `http://host:port`.
    pub url: String,
    /// How to log in.
    pub auth: BitcoindAuth,
}

/// How to log in to Bitcoin Core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitcoindAuth {
    /// The cookie file, which changes with every start of bitcoind.
    Cookie(PathBuf),
    /// Where `user:password` lies.
    UserPassword(SecretRef),
}

/// How the chain is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Confirmations of a deposit before its leaf becomes available.
    pub deposit_depth: NonZeroU32,
    /// Confirmations of an exit transaction before a cooperative exit is settled.
    pub exit_depth: NonZeroU32,
    /// Deepest reorganisation that is followed; a deeper one stops the operator's chain view.
    pub max_reorg: NonZeroU32,
    /// Where a follower with an empty header table begins: below every deposit, when lost tables are made again.
    /// Absent: a few blocks behind the tip, for a federation without deposits.
    pub start_height: Option<u32>,
    /// Longest time without a look at the tip.
    pub poll: Duration,
    /// A tip older than this is stale: nothing is credited.
    pub max_tip_age: Duration,
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Fault {
    /// Path of the field.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown or missing field, or a wrong type; the message shows the place.
    #[error("configuration does not parse: {0}")]
    Parse(#[from] toml::de::Error),
    /// Values that cannot be right.
    #[error("configuration is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Faults(Vec<Fault>),
}

impl Config {
    /// Reads and checks a file. Relative paths in it are taken from the folder of the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// Checks the text of a file that lies in `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ConfigError> {
        let raw: raw::RawConfig = toml::from_str(text)?;
        raw.check(folder)
    }

    /// `config check`: reads, checks, and opens every file the configuration names, without connecting to
    /// anything.
    pub fn check(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let config = Self::load(path)?;
        let mut faults = Vec::new();
        for (field, path) in config.files() {
            if let Err(error) = std::fs::File::open(path) {
                faults.push(Fault { field, problem: format!("cannot open {}: {error}", path.display()) });
            }
        }
        for (field, secret) in config.secrets() {
            if let Err(error) = secret.read() {
                faults.push(Fault { field: field.to_owned(), problem: error.to_string() });
            }
        }
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }

    fn files(&self) -> Vec<(String, &Path)> {
        let mut files = vec![
            ("federation", &self.federation),
            ("peers_ca", &self.peers_ca),
            ("tls.cert", &self.tls.cert),
            ("tls.key", &self.tls.key),
            ("signer.ca", &self.signer.ca),
            ("signer.cert", &self.signer.cert),
            ("signer.key", &self.signer.key),
        ];
        files.extend(self.tls.client_ca.iter().map(|path| ("tls.client_ca", path)));
        if let BitcoindAuth::Cookie(path) = &self.bitcoind.auth {
            files.push(("bitcoind.auth.cookie", path));
        }
        files.into_iter().map(|(field, path)| (field.to_owned(), path.as_path())).collect()
    }

    fn secrets(&self) -> Vec<(&'static str, &SecretRef)> {
        let mut secrets = vec![("database.url", &self.database.url)];
        if let BitcoindAuth::UserPassword(secret) = &self.bitcoind.auth {
            secrets.push(("bitcoind.auth.user_password", secret));
        }
        secrets
    }
}

#[cfg(test)]
mod tests;
