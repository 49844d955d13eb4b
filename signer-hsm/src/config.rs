//! Configuration of the signer: one TOML file, unknown fields refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use spark_rules::{
    federation_key::FederationKey,
    ids::{Incarnation, OperatorIndex},
};
use spark_signer::engine::ApprovedRepair;

use crate::{
    hardening::{Hardening, HardeningConfig},
    token::{Security, TokenConfig},
};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML of the expected form.
    #[error("configuration: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value is not legal.
    #[error("configuration: {0}")]
    Value(String),
}

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// "production" (default) or "development".
    #[serde(default)]
    pub profile: Security,
    /// Index of this operator in the federation.
    pub operator: u16,
    /// The store's file.
    pub store: PathBuf,
    /// Federation file, signed by all members; needed to start, not for the ceremony.
    pub federation: Option<PathBuf>,
    /// Pinned hash of the federation file, hex; obligatory in production.
    pub federation_hash: Option<String>,
    /// Repairs of peers that a person approved here; those peers are not waited for at start.
    #[serde(default)]
    pub approved_repairs: Vec<RepairApproval>,
    /// Where the operator connects.
    pub listen: Option<SocketAddr>,
    /// Metrics and health, plain HTTP.
    pub http: Option<SocketAddr>,
    /// Certificates.
    pub tls: Option<TlsConfig>,
    /// The socket for administration on this host.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The tokens.
    pub token: TokenConfig,
    /// What the process gives up.
    #[serde(default)]
    pub hardening: HardeningConfig,
    /// Where this was read from; empty if from a text.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A peer's repair, by what its people read out: the new signer's incarnation and federation key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairApproval {
    /// Index of the peer.
    pub operator: u16,
    /// Incarnation of its new signer, 16 bytes hex.
    pub incarnation: String,
    /// Federation key in its HSM, hex as in its transcript.
    pub federation_key: String,
}

/// Administration on this host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Unix socket; default: beside the store, with the ending `sock`.
    pub socket: Option<PathBuf>,
}

/// Mutual TLS towards the operator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM chain.
    pub cert: PathBuf,
    /// The key: `"key.pem"`, `{ file = "key.pem" }` or `{ token = true }`.
    pub key: TlsKeySource,
    /// PEM authorities of the operator's replicas.
    pub client_ca: PathBuf,
    /// SHA-256 of the SubjectPublicKeyInfo of each allowed client, hex.
    pub allow: Vec<String>,
}

/// Where the listener's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsKeySource {
    /// PEM.
    File(PathBuf),
    /// In the keys token, made by `spark-signer tls generate`; the certificate says which.
    Token,
}

impl<'de> Deserialize<'de> for TlsKeySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Path(PathBuf),
            Table(Table),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        enum Table {
            File(PathBuf),
            Token(bool),
        }
        match Form::deserialize(deserializer)? {
            Form::Path(path) | Form::Table(Table::File(path)) => Ok(Self::File(path)),
            Form::Table(Table::Token(true)) => Ok(Self::Token),
            Form::Table(Table::Token(false)) => Err(D::Error::custom("tls.key: token = false says nothing")),
        }
    }
}

impl TlsConfig {
    /// All files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let key = match &self.key {
            TlsKeySource::File(path) => Some(path),
            TlsKeySource::Token => None,
        };
        [&self.cert, &self.client_ca].into_iter().chain(key).map(PathBuf::as_path)
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let path =
            path.canonicalize().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Ok(Self { path, ..Self::parse(&text)? })
    }

    /// Parses and checks a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)?;
        config.token.security = config.profile;
        config.token.apply_facts();
        if config.operator >= 15 {
            return Err(ConfigError::Value("operator must be below 15".into()));
        }
        let ids: BTreeSet<u8> = config.token.devices.iter().map(|device| device.id).collect();
        if ids.len() != config.token.devices.len() {
            return Err(ConfigError::Value("token.devices need distinct ids; token.roots is 0".into()));
        }
        if config.profile == Security::Production && config.token.is_shared() {
            return Err(ConfigError::Value("token.keys must not be a token with roots".into()));
        }
        if config.token.is_twice() {
            return Err(ConfigError::Value("token.devices name one token twice".into()));
        }
        if config.profile == Security::Production
            && config.federation.is_some()
            && config.federation_hash.is_none()
        {
            return Err(ConfigError::Value("federation_hash must be pinned in production".into()));
        }
        if config.tls.as_ref().is_some_and(|t| t.allow.is_empty()) {
            return Err(ConfigError::Value("tls.allow names no client".into()));
        }
        config.pinned_hash()?;
        config.repairs()?;
        Ok(config)
    }

    /// The socket for administration.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.store.with_extension("sock"))
    }

    /// What the process gives up.
    pub const fn hardening(&self) -> Hardening<'_> {
        Hardening::new(&self.hardening, self.profile)
    }

    /// The approved repairs, by peer; each peer once, and never this operator itself.
    pub fn repairs(&self) -> Result<BTreeMap<OperatorIndex, ApprovedRepair>, ConfigError> {
        let mut repairs = BTreeMap::new();
        for approval in &self.approved_repairs {
            let refused = |what: &str| ConfigError::Value(format!("approved_repairs: {what}"));
            let mut incarnation = [0u8; 16];
            hex::decode_to_slice(&approval.incarnation, &mut incarnation)
                .map_err(|_| refused("incarnation is not 16 bytes of hex"))?;
            let federation_key = approval
                .federation_key
                .parse::<FederationKey>()
                .map_err(|error| refused(&format!("federation_key {error}")))?;
            let incarnation = Incarnation::from_bytes(incarnation);
            let index = OperatorIndex::new(approval.operator);
            let known = repairs.insert(index, ApprovedRepair { incarnation, federation_key });
            if known.is_some() || approval.operator == self.operator || approval.operator >= 15 {
                return Err(refused("operator is this one, named twice or not below 15"));
            }
        }
        Ok(repairs)
    }

    /// The pinned federation hash.
    pub fn pinned_hash(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        let Some(text) = &self.federation_hash else { return Ok(None) };
        let mut hash = [0u8; 32];
        hex::decode_to_slice(text, &mut hash)
            .map_err(|_| ConfigError::Value("federation_hash must be 32 bytes hex".into()))?;
        Ok(Some(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardening::{Mode, SyscallMode};

    const TEXT: &str = r#"
        operator = 0
        store = "store.redb"
        [token]
        module = "/usr/lib/softhsm/libsofthsm2.so"
        profile = "softhsm"
        roots = { label = "roots", pin = { file = "pin" } }
        keys = { label = "keys", pin = { file = "pin" } }
    "#;

    #[test]
    fn a_minimal_file_is_for_production() {
        let config = Config::parse(TEXT).unwrap();
        assert_eq!(config.profile, Security::Production);
        assert_eq!(config.token.security, Security::Production);
    }

    #[test]
    fn unknown_fields_and_bad_values_are_refused() {
        assert!(Config::parse(&TEXT.replace("operator = 0", "operator = 0\nspeed = 1")).is_err());
        assert!(Config::parse(&TEXT.replace("operator = 0", "operator = 15")).is_err());
        let device = r#"
        [[token.devices]]
        id = 1
        module = "/usr/lib/softhsm/libsofthsm2.so"
        profile = "softhsm"
        roots = { label = "second", pin = { file = "pin" } }
        "#;
        let two = Config::parse(&[TEXT, device].concat()).unwrap();
        assert_eq!(two.token.devices.iter().map(|device| device.id).collect::<Vec<_>>(), [0, 1]);
        assert!(Config::parse(&[TEXT, device, device].concat()).is_err());
        assert!(Config::parse(&[TEXT, &device.replace("id = 1", "id = 0")].concat()).is_err());
        let same = [TEXT, &device.replace("second", "roots")].concat();
        assert!(Config::parse(&same).unwrap_err().to_string().contains("twice"));
        let named = same.replace("\"roots\", pin", "\"roots\", serial = \"1\", pin");
        assert!(
            Config::parse(&named.replacen("serial = \"1\", ", "", 1))
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert!(Config::parse(&named.replacen("\"1\"", "\"2\"", 1)).is_ok());
        let shared = TEXT.replace("\"keys\"", "\"roots\"");
        assert!(Config::parse(&shared).unwrap_err().to_string().contains("token.keys"));
        assert!(Config::parse(&format!("profile = \"development\"\n{shared}")).is_ok());
        let unpinned = TEXT.replace("operator = 0", "operator = 0\nfederation = \"f.json\"");
        assert!(Config::parse(&unpinned).unwrap_err().to_string().contains("pinned"));
        assert!(
            Config::parse(&TEXT.replace("operator = 0", "operator = 0\nfederation_hash = \"00\"")).is_err()
        );
    }

    #[test]
    fn a_tls_key_is_in_a_file_or_in_the_token() {
        let with = |key: &str| {
            let tls = format!("[tls]\ncert = \"c\"\nkey = {key}\nclient_ca = \"a\"\nallow = [\"00\"]\n");
            Config::parse(&format!("{TEXT}\n{tls}")).map(|config| config.tls.unwrap().key)
        };
        let file = TlsKeySource::File("k".into());
        assert_eq!(with("\"k\"").unwrap(), file);
        assert_eq!(with("{ file = \"k\" }").unwrap(), file);
        assert_eq!(with("{ token = true }").unwrap(), TlsKeySource::Token);
        for bad in ["{ token = false }", "{ hsm = true }", "{}", "1"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_admin_socket_is_beside_the_store_or_where_it_is_put() {
        assert_eq!(Config::parse(TEXT).unwrap().admin_socket(), Path::new("store.sock"));
        let put = Config::parse(&format!("{TEXT}\n[admin]\nsocket = \"/run/s\"\n")).unwrap();
        assert_eq!(put.admin_socket(), Path::new("/run/s"));
        assert!(Config::parse(&format!("{TEXT}\n[admin]\nport = 1\n")).is_err());
    }

    #[test]
    fn hardening_is_a_table_of_known_measures() {
        let with = |text: &str| Config::parse(&format!("{TEXT}\n[hardening]\n{text}"));
        assert_eq!(with("").unwrap().hardening.filesystem, None);
        let vendor =
            with("syscalls = \"log\"\nmemory = \"off\"\nread = [\"/opt/vendor\"]\nconnect_ports = [1792]");
        let vendor = vendor.unwrap().hardening;
        assert_eq!(vendor.memory, Some(Mode::Off));
        assert_eq!(vendor.syscalls, Some(SyscallMode::Log));
        for bad in [
            "seccomp = \"enforce\"",
            "syscalls = \"maybe\"",
            "filesystem = \"log\"",
            "connect_ports = [70000]",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    /// RFC 8032, test 1.
    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn d12_repairs_are_approved_in_full() {
        let (incarnation, key) = ("11".repeat(16), KEY.to_owned());
        let with = |operator: u16, incarnation: &str, key: &str| {
            format!(
                "{TEXT}\n[[approved_repairs]]\noperator = {operator}\nincarnation = \"{incarnation}\"\n\
                 federation_key = \"{key}\"\n"
            )
        };
        let text = with(1, &incarnation, &key);
        let repairs = Config::parse(&text).unwrap().repairs().unwrap();
        let expected = ApprovedRepair {
            incarnation: Incarnation::from_bytes([0x11; 16]),
            federation_key: key.parse().unwrap(),
        };
        assert_eq!(repairs, BTreeMap::from([(OperatorIndex::new(1), expected)]));
        let twice = text.clone() + text.strip_prefix(TEXT).unwrap();
        for wrong in [
            twice,
            with(0, &incarnation, &key),
            with(15, &incarnation, &key),
            with(1, &key, &key),
            with(1, &incarnation, &incarnation),
            text.replace("federation_key", "key"),
        ] {
            assert!(Config::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
