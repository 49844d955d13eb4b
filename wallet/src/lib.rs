//! Spark wallet: holds its own keys, trusts operators only where no proof exists.
//!
//! [`Wallet`] is the surface; the command line only formats. Every transaction comes from `spark_rules::tx`,
//! every answer passes through [`verify`], and whatever must survive a crash is in [`state`] before it is sent.

pub mod amount;
pub mod bundle;
pub mod chain;
pub mod client;
pub mod config;
pub mod exit;
pub mod flow;
pub mod keys;
pub mod receipts;
mod recipients;
mod seal;
mod seed;
pub mod select;
mod signing;
pub mod state;
#[cfg(test)]
mod testing;
mod tweak;
pub mod verify;
mod wallet;

pub use recipients::PackageKeyRefusal;
pub use seed::SeedError;
pub use signing::SigningError;
pub use tweak::TweakError;
pub use wallet::{ErrorClass, Wallet, WalletError};
