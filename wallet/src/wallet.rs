use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use spark_rules::address::{AddressError, SparkAddress};

use crate::{
    PackageKeyRefusal, SeedError, SigningError, TweakError,
    bundle::BundleError,
    chain::{Chain, ChainError},
    client::{ClientError, Operators},
    config::{Config, ConfigError},
    exit::ExitError,
    keys::{KeyError, Keys, Phrase},
    receipts::ReceiptError,
    seed,
    select::SelectError,
    state::{State, StateError},
    verify::VerifyError,
};

/// Anything that stops a wallet's action.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Seed file.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Local state.
    #[error(transparent)]
    State(#[from] StateError),
    /// An operator's answer, or none.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// bitcoind.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// What operators say does not hold.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Own half of a signature.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// Key tweak package.
    #[error(transparent)]
    Tweak(#[from] TweakError),
    /// An operator offers no one-time package key, or none that can be trusted.
    #[error(transparent)]
    PackageKey(#[from] PackageKeyRefusal),
    /// No leaves fit the amount.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// Not a Spark address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Unilateral exit.
    #[error(transparent)]
    Exit(#[from] ExitError),
    /// Exit bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Deletion receipts.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// The wallet's own policy says no.
    #[error("{0}")]
    Refused(String),
    /// Not all operators show what one of them says: try again.
    #[error("{0}")]
    Undecided(String),
    /// An answer lacks a part.
    #[error("the operator's answer lacks {0}")]
    Answer(&'static str),
}

/// What a caller can do about an error; the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// It failed.
    Failed,
    /// A policy, of an operator or of this wallet, refuses it.
    Refused,
    /// Something that is needed cannot be reached; try again.
    Unavailable,
}

impl WalletError {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        use tonic::Code;
        match self {
            Self::Client(e) if e.is_unavailable() => ErrorClass::Unavailable,
            Self::Client(e) => match e.code() {
                Some(
                    Code::FailedPrecondition
                    | Code::PermissionDenied
                    | Code::AlreadyExists
                    | Code::InvalidArgument,
                ) => ErrorClass::Refused,
                Some(Code::ResourceExhausted | Code::Aborted) => ErrorClass::Unavailable,
                _ => ErrorClass::Failed,
            },
            Self::Chain(ChainError::Refused { .. }) => ErrorClass::Refused,
            Self::Chain(_) | Self::State(StateError::InUse) | Self::Undecided(_) => ErrorClass::Unavailable,
            Self::Verify(_) | Self::PackageKey(_) | Self::Select(_) | Self::Refused(_) | Self::Receipt(_) => {
                ErrorClass::Refused
            }
            Self::Exit(e) if e.is_refusal() => ErrorClass::Refused,
            _ => ErrorClass::Failed,
        }
    }
}

/// An open wallet.
#[derive(Debug)]
pub struct Wallet {
    config: Config,
    keys: Keys,
    operators: Operators,
    state: State,
    chain: Option<Chain>,
}

impl Wallet {
    /// Makes a wallet of these words in `dir`, whose `wallet.toml` must be there. Refuses a directory that
    /// already has one.
    pub fn create(dir: &Path, phrase: &Phrase) -> Result<Self, WalletError> {
        Config::load(dir)?;
        seed::write(dir, phrase)?;
        Self::open(dir)
    }

    /// Opens the wallet in `dir`. Nothing is sent yet.
    pub fn open(dir: &Path) -> Result<Self, WalletError> {
        Self::open_with(dir, Config::load(dir)?)
    }

    /// The same with a configuration that is not as the file says.
    pub fn open_with(dir: &Path, config: Config) -> Result<Self, WalletError> {
        let keys = seed::read(dir)?.keys(config.account)?;
        let operators = Operators::new(&config)?;
        let state = State::open(dir, &keys.identity().public_key().to_string())?;
        let chain = config.bitcoind.as_ref().map(Chain::new).transpose()?;
        let this = Self { config, keys, operators, state, chain };
        this.forget_package_keys()?;
        Ok(this)
    }

    /// Of parts, without files of configuration.
    #[cfg(test)]
    pub(crate) const fn of(
        config: Config,
        keys: Keys,
        operators: Operators,
        state: State,
        chain: Option<Chain>,
    ) -> Self {
        Self { config, keys, operators, state, chain }
    }

    /// Its configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Its keys.
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The operators.
    pub const fn operators(&self) -> &Operators {
        &self.operators
    }

    /// What it remembers.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// bitcoind, if one is configured.
    pub fn chain(&self) -> Result<&Chain, ChainError> {
        self.chain.as_ref().ok_or(ChainError::NotConfigured)
    }

    /// bitcoind, where it is only an extra check.
    pub const fn chain_if_any(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Where others pay to.
    pub fn address(&self) -> Result<String, WalletError> {
        let address = SparkAddress {
            network: self.config.network,
            identity: self.keys.identity().public_key(),
            invoice: None,
            signature: None,
        };
        Ok(address.encode()?)
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
