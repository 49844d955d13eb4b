//! The file as written, and its check.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::Network;
use secp256k1::PublicKey;
use serde::Deserialize;
use spark_proto::transport::Spki;
use spark_rules::{ids::OperatorIndex, operation::MAX_DEPTH};

use super::{
    AdminListener, Bitcoind, BitcoindAuth, Chain, ClientCertificates, Config, ConfigError, Database, Fault,
    Listen, PublicListener, SecretRef, Signer, Tls,
};
use crate::{edge::QuotaLimits, telemetry::LogFormat};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    network: String,
    operator: u32,
    federation: PathBuf,
    federation_hash: String,
    peers_ca: PathBuf,
    listen: RawListen,
    tls: RawTls,
    signer: RawSigner,
    database: RawDatabase,
    bitcoind: RawBitcoind,
    #[serde(default)]
    chain: RawChain,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    providers: RawProviders,
    #[serde(default)]
    sessions: RawSessions,
    #[serde(default)]
    events: RawEvents,
    #[serde(default)]
    repair: RawRepair,
    #[serde(default)]
    privacy: RawPrivacy,
    #[cfg(feature = "development")]
    #[serde(default)]
    development: RawDevelopment,
    #[serde(default)]
    htlc: RawHtlc,
    #[serde(default)]
    coop_exit: RawCoopExit,
    #[serde(default)]
    log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    public: Vec<RawPublic>,
    peer: SocketAddr,
    admin: Option<RawAdmin>,
    http: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPublic {
    address: SocketAddr,
    #[serde(default)]
    client_auth: ClientCertificates,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmin {
    address: SocketAddr,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSigner {
    address: String,
    server_name: Option<String>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    spki: String,
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    deadline: Duration,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDatabase {
    url: String,
    #[serde(default = "twenty")]
    max_connections: u32,
}

fn twenty() -> u32 {
    20
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBitcoind {
    url: String,
    auth: RawAuth,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum RawAuth {
    Cookie(PathBuf),
    UserPassword(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawChain {
    deposit_depth: u32,
    exit_depth: u32,
    max_reorg: u32,
    start_height: Option<u32>,
    #[serde(with = "humantime_serde")]
    poll: Duration,
    #[serde(with = "humantime_serde")]
    max_tip_age: Duration,
}

impl Default for RawChain {
    fn default() -> Self {
        Self {
            deposit_depth: 3,
            exit_depth: 6,
            max_reorg: 100,
            start_height: None,
            poll: Duration::from_secs(10),
            max_tip_age: Duration::from_secs(90 * 60),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    address_per_second: u32,
    address_burst: u32,
    identity_per_second: u32,
    identity_burst: u32,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { address_per_second: 500, address_burst: 2000, identity_per_second: 100, identity_burst: 500 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProviders {
    identity_keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSessions {
    #[serde(with = "humantime_serde")]
    ttl: Duration,
}

impl Default for RawSessions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(15 * 60) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawEvents {
    retention_days: u16,
}

impl Default for RawEvents {
    fn default() -> Self {
        Self { retention_days: 7 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRepair {
    refresh: bool,
}

impl Default for RawRepair {
    fn default() -> Self {
        Self { refresh: true }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHtlc {
    offered: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCoopExit {
    offered: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPrivacy {
    open_by_default: bool,
}

#[cfg(feature = "development")]
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDevelopment {
    sdk_suites: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    format: LogFormat,
    filter: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

/// Collects faults; a bad value is replaced by one that is never used, since any fault fails the whole.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: &str, problem: impl Into<String>) {
        self.0.push(Fault { field: field.to_owned(), problem: problem.into() });
    }

    fn or_fault<T>(&mut self, field: &str, value: Option<T>, problem: &str) -> Option<T> {
        if value.is_none() {
            self.add(field, problem);
        }
        value
    }

    fn positive(&mut self, field: &str, value: u32) -> NonZeroU32 {
        self.or_fault(field, NonZeroU32::new(value), "must be at least 1").unwrap_or(NonZeroU32::MIN)
    }
}

impl RawConfig {
    pub(super) fn check(self, folder: &Path) -> Result<Config, ConfigError> {
        let mut faults = Faults::default();
        let network = faults.or_fault(
            "network",
            network(&self.network),
            "must be one of mainnet, testnet, testnet4, signet, regtest",
        );
        let operator = faults.or_fault(
            "operator",
            OperatorIndex::from_wire(self.operator).ok(),
            "must be the position in the federation file, 0 to 14",
        );
        let mut federation_hash = [0u8; 32];
        if hex::decode_to_slice(&self.federation_hash, &mut federation_hash).is_err() {
            let problem = "must be 64 hex digits: what `spark-signer federation verify` prints";
            faults.add("federation_hash", problem);
        }
        let mainnet = network == Some(Network::Bitcoin);
        let listen = self.listen.check(self.tls.client_ca.is_some(), &mut faults);
        let signer = self.signer.check(folder, &mut faults);
        let max_connections = faults.positive("database.max_connections", self.database.max_connections);
        let url = secret("database.url", &self.database.url, folder, mainnet, &mut faults);
        let bitcoind = self.bitcoind.check(folder, mainnet, &mut faults);
        let chain = self.chain.check(&mut faults);
        let limits = self.limits.check(&mut faults);
        let providers = self.providers.check(&mut faults);
        let ttl = self.sessions.ttl;
        if ttl < Duration::from_secs(120) || ttl > Duration::from_secs(24 * 3600) {
            // Wallets drop a token up to a minute early.
            faults.add("sessions.ttl", "must be between 2 minutes and 24 hours");
        }
        let retention = self.events.retention_days;
        if !(1..=365).contains(&retention) {
            faults.add("events.retention_days", "must be between 1 and 365");
        }
        #[cfg(feature = "development")]
        let sdk_suites = self.development.sdk_suites;
        #[cfg(not(feature = "development"))]
        let sdk_suites = false;
        if sdk_suites && network != Some(Network::Regtest) {
            faults.add("development.sdk_suites", "is for regtest");
        }
        match (network, operator, signer, url, bitcoind) {
            (Some(network), Some(operator), Some(signer), Some(url), Some(bitcoind))
                if faults.0.is_empty() =>
            {
                Ok(Config {
                    network,
                    operator,
                    federation: folder.join(self.federation),
                    federation_hash,
                    peers_ca: folder.join(self.peers_ca),
                    listen,
                    tls: Tls {
                        cert: folder.join(self.tls.cert),
                        key: folder.join(self.tls.key),
                        client_ca: self.tls.client_ca.map(|path| folder.join(path)),
                    },
                    signer,
                    database: Database { url, max_connections },
                    bitcoind,
                    chain,
                    limits,
                    providers,
                    session_ttl: ttl,
                    event_retention_days: retention,
                    refresh_after_repair: self.repair.refresh,
                    open_reads: self.privacy.open_by_default,
                    sdk_suites,
                    htlc: self.htlc.offered,
                    coop_exit: self.coop_exit.offered,
                    log_format: self.log.format,
                    log_filter: self.log.filter,
                })
            }
            _ => Err(ConfigError::Faults(faults.0)),
        }
    }
}

/// By the names of this project; Bitcoin Core's `main` and `test` are not accepted, to have one spelling.
fn network(name: &str) -> Option<Network> {
    Some(match name {
        "mainnet" => Network::Bitcoin,
        "testnet" => Network::Testnet,
        "testnet4" => Network::Testnet4,
        "signet" => Network::Signet,
        "regtest" => Network::Regtest,
        _ => return None,
    })
}

fn secret(field: &str, text: &str, folder: &Path, mainnet: bool, faults: &mut Faults) -> Option<SecretRef> {
    // The text itself may be a secret that someone wrote here by mistake: never repeat it.
    let secret = faults.or_fault(field, SecretRef::parse(text, folder), "must be file:PATH or env:NAME")?;
    if mainnet && matches!(secret, SecretRef::Env(_)) {
        faults.add(field, "env: is refused on mainnet; use file:PATH");
    }
    Some(secret)
}

impl RawListen {
    fn check(self, has_client_ca: bool, faults: &mut Faults) -> Listen {
        if self.public.is_empty() {
            faults.add("listen.public", "must have at least one entry");
        }
        let asks = self.admin.is_some()
            || self.public.iter().any(|listener| listener.client_auth != ClientCertificates::Off);
        if asks && !has_client_ca {
            faults.add(
                "tls.client_ca",
                "is needed: listen.public or listen.admin asks for client certificates",
            );
        }
        let public: Vec<_> = self
            .public
            .into_iter()
            .map(|raw| PublicListener { address: raw.address, client_auth: raw.client_auth })
            .collect();
        let mut addresses: Vec<SocketAddr> = public.iter().map(|listener| listener.address).collect();
        addresses.extend([self.peer, self.http]);
        let admin = self.admin.map(|admin| admin.check(faults));
        addresses.extend(admin.iter().map(|admin| admin.address));
        addresses.retain(|address| address.port() != 0);
        addresses.sort_unstable();
        for pair in addresses.windows(2) {
            if let [one, other] = pair
                && one == other
            {
                faults.add("listen", format!("{one} is used twice"));
            }
        }
        Listen { public, peer: self.peer, admin, http: self.http }
    }
}

impl RawAdmin {
    fn check(self, faults: &mut Faults) -> AdminListener {
        if self.allow.is_empty() {
            faults.add("listen.admin.allow", "must name at least one TLS key");
        }
        let mut allow = Vec::with_capacity(self.allow.len());
        for (index, text) in self.allow.iter().enumerate() {
            let field = format!("listen.admin.allow[{index}]");
            allow.extend(faults.or_fault(&field, text.parse::<Spki>().ok(), "must be 64 hex digits"));
        }
        AdminListener { address: self.address, allow }
    }
}

impl RawSigner {
    fn check(self, folder: &Path, faults: &mut Faults) -> Option<Signer> {
        let host = self
            .address
            .rsplit_once(':')
            .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            .map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let host = faults.or_fault("signer.address", host, "must be host:port");
        let spki: Option<Spki> = self.spki.parse().ok();
        let spki =
            faults.or_fault("signer.spki", spki, "must be 64 hex digits: SHA-256 of its TLS public key");
        if self.deadline.is_zero() {
            faults.add("signer.deadline", "must not be zero");
        }
        Some(Signer {
            server_name: self.server_name.or(host)?,
            address: self.address,
            ca: folder.join(self.ca),
            cert: folder.join(self.cert),
            key: folder.join(self.key),
            spki: spki?,
            deadline: self.deadline,
        })
    }
}

impl RawBitcoind {
    fn check(self, folder: &Path, mainnet: bool, faults: &mut Faults) -> Option<Bitcoind> {
        let authority =
            self.url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or_default());
        match authority {
            Some(authority) if authority.contains('@') => {
                faults.add("bitcoind.url", "must not contain a password; use bitcoind.auth");
            }
            Some(authority) if !authority.is_empty() => {}
            _ => faults.add("bitcoind.url", "must be http://host:port"),
        }
        let auth = match self.auth {
            RawAuth::Cookie(path) => BitcoindAuth::Cookie(folder.join(path)),
            RawAuth::UserPassword(text) => BitcoindAuth::UserPassword(secret(
                "bitcoind.auth.user_password",
                &text,
                folder,
                mainnet,
                faults,
            )?),
        };
        Some(Bitcoind { url: self.url, auth })
    }
}

impl RawChain {
    fn check(self, faults: &mut Faults) -> Chain {
        if self.poll < Duration::from_millis(100) || self.poll > Duration::from_secs(60) {
            faults.add("chain.poll", "must be between 100ms and 60s");
        }
        if self.max_tip_age < Duration::from_secs(60) {
            faults.add("chain.max_tip_age", "must be at least 1m");
        }
        let deposit_depth = faults.positive("chain.deposit_depth", self.deposit_depth);
        let exit_depth = faults.positive("chain.exit_depth", self.exit_depth);
        let max_reorg = faults.positive("chain.max_reorg", self.max_reorg);
        if deposit_depth > max_reorg {
            faults.add("chain.deposit_depth", "must not exceed chain.max_reorg");
        }
        if exit_depth > max_reorg || exit_depth.get() > MAX_DEPTH {
            faults.add("chain.exit_depth", format!("must not exceed chain.max_reorg, nor {MAX_DEPTH}"));
        }
        Chain {
            deposit_depth,
            exit_depth,
            max_reorg,
            start_height: self.start_height,
            poll: self.poll,
            max_tip_age: self.max_tip_age,
        }
    }
}

impl RawLimits {
    fn check(self, faults: &mut Faults) -> QuotaLimits {
        let limits = QuotaLimits {
            address_per_second: faults.positive("limits.address_per_second", self.address_per_second),
            address_burst: faults.positive("limits.address_burst", self.address_burst),
            identity_per_second: faults.positive("limits.identity_per_second", self.identity_per_second),
            identity_burst: faults.positive("limits.identity_burst", self.identity_burst),
        };
        let dearest = crate::edge::TABLE.iter().map(|method| method.cost).max().unwrap_or(1);
        if self.identity_burst < dearest {
            faults.add("limits.identity_burst", format!("must be at least {dearest}, the cost of one call"));
        }
        limits
    }
}

impl RawProviders {
    fn check(self, faults: &mut Faults) -> Vec<PublicKey> {
        let mut keys = Vec::with_capacity(self.identity_keys.len());
        for (index, text) in self.identity_keys.iter().enumerate() {
            let field = format!("providers.identity_keys[{index}]");
            let key =
                Some(text).filter(|text| text.len() == 66).and_then(|text| text.parse::<PublicKey>().ok());
            keys.extend(faults.or_fault(&field, key, "must be a compressed public key of 66 hex digits"));
        }
        keys
    }
}
