use std::fmt;
use std::str::FromStr;

use bitcoin::params::Params;
use serde::{Deserialize, Serialize};
use spark_proto::spark;

/// Not one of the four networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("network must be MAINNET, REGTEST, TESTNET or SIGNET")]
pub struct UnknownNetwork;

/// A bitcoin network, named as on the public wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Network {
    /// Real money.
    Mainnet,
    /// Private chain.
    Regtest,
    /// Testnet, version 3.
    Testnet,
    /// Default signet (BIP 325).
    Signet,
}

impl Network {
    /// From the enumeration of the public wire.
    pub fn from_wire(network: i32) -> Result<Self, UnknownNetwork> {
        match spark::Network::try_from(network) {
            Ok(spark::Network::Mainnet) => Ok(Self::Mainnet),
            Ok(spark::Network::Regtest) => Ok(Self::Regtest),
            Ok(spark::Network::Testnet) => Ok(Self::Testnet),
            Ok(spark::Network::Signet) => Ok(Self::Signet),
            Ok(spark::Network::Unspecified) | Err(_) => Err(UnknownNetwork),
        }
    }

    /// The enumeration of the public wire.
    pub const fn to_wire(self) -> spark::Network {
        match self {
            Self::Mainnet => spark::Network::Mainnet,
            Self::Regtest => spark::Network::Regtest,
            Self::Testnet => spark::Network::Testnet,
            Self::Signet => spark::Network::Signet,
        }
    }

    /// The same network for `bitcoin`.
    pub const fn bitcoin(self) -> bitcoin::Network {
        match self {
            Self::Mainnet => bitcoin::Network::Bitcoin,
            Self::Regtest => bitcoin::Network::Regtest,
            Self::Testnet => bitcoin::Network::Testnet,
            Self::Signet => bitcoin::Network::Signet,
        }
    }

    /// Name on the public wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mainnet => "MAINNET",
            Self::Regtest => "REGTEST",
            Self::Testnet => "TESTNET",
            Self::Signet => "SIGNET",
        }
    }

    pub(crate) fn params(self) -> &'static Params {
        self.bitcoin().params()
    }
}

impl From<Network> for bitcoin::Network {
    fn from(network: Network) -> Self {
        network.bitcoin()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(name: &str) -> Result<Self, UnknownNetwork> {
        match name {
            "MAINNET" => Ok(Self::Mainnet),
            "REGTEST" => Ok(Self::Regtest),
            "TESTNET" => Ok(Self::Testnet),
            "SIGNET" => Ok(Self::Signet),
            _ => Err(UnknownNetwork),
        }
    }
}
