//! A Spark operator: public API, consensus with the other operators, chain view. Key shares live with its
//! signer.

pub mod authn;
pub mod chain;
pub mod config;
pub mod convert;
pub mod db;
pub mod edge;
pub mod events;
pub mod health;
pub mod http;
pub mod metrics;
pub mod rpc;
pub mod status;
pub mod telemetry;
