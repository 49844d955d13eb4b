//! Everything about signing that holds no secret: transaction templates, sighashes, policy, the public half
//! of FROST, Feldman checks, votes and proofs, receipts and log proofs. No secret type exists here, so
//! operators and wallets may depend on it.

pub mod address;
pub mod checkpoint;
pub mod federation;
pub mod federation_key;
pub mod feldman;
pub mod frost;
pub mod fuzz;
pub mod hash;
pub mod ids;
pub mod leaf;
pub mod operation;
pub mod package;
pub mod package_key;
pub mod point;
pub mod receipt;
pub mod settlement;
pub mod transcript;
pub mod tx;
pub mod vote;
pub mod witness;
