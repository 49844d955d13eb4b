//! A Spark operator: public API, consensus with the other operators, chain view. Key shares live with its
//! signer.

pub mod authn;
pub mod call;
pub mod chain;
mod checks;
pub mod config;
pub mod convert;
pub mod db;
pub mod deletion_log;
pub mod deposit_address;
pub mod edge;
pub mod events;
pub mod health;
pub mod http;
pub mod keypool;
pub mod metrics;
pub mod op;
pub mod package_keys;
pub mod peer;
pub mod recovery;
pub mod refresh;
pub mod repair;
pub mod rpc;
pub mod sampler;
pub mod server;
pub mod signer_client;
pub mod static_deposit;
pub mod status;
pub mod streams;
pub mod telemetry;
pub mod watchtower;
