//! The signer's pure core: no I/O, no async, no FFI.

pub mod dkg;
pub mod ecies;
pub mod engine;
pub mod feldman;
pub mod frost;
pub mod nonce;
pub mod one_time;
pub mod refresh;
pub mod repair;
pub mod secret;
pub mod vault;
