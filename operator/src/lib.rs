//! A Spark operator: public API, consensus with the other operators, chain view. Key shares live with its
//! signer.

pub mod call;
pub mod db;
pub mod deposit_address;
pub mod keypool;
pub mod op;
pub mod peer;
pub mod recovery;
pub mod signer_client;
