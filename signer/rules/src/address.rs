//! Deposit addresses and Spark addresses.

mod bech;
mod invoice;
mod network;

pub use bech::{AddressError, SparkAddress};
pub use invoice::{Invoice, Payment};
pub use network::{Network, UnknownNetwork};

use bitcoin::Address;
use bitcoin::secp256k1::PublicKey;

use crate::tx::p2tr_script;

/// The deposit address of a verifying key: P2TR without a script tree (BIP 341, BIP 350).
pub fn deposit_address(verifying_key: &PublicKey, network: Network) -> String {
    // A P2TR script of our own making always has an address.
    Address::from_script(&p2tr_script(verifying_key), network.params())
        .map(|a| a.to_string())
        .unwrap_or_default()
}

/// Whether `address` is the deposit address of `verifying_key` on `network`. The text must be canonical: what
/// operators sign is the text.
pub fn is_deposit_address(address: &str, verifying_key: &PublicKey, network: Network) -> bool {
    !address.is_empty() && deposit_address(verifying_key, network) == address
}
