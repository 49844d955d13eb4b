//! The signer process: the engine of `spark-signer` over a PKCS#11 token and a redb file, behind mutual TLS.

pub mod admin;
pub mod backup;
pub mod ceremony;
pub mod config;
pub mod confirmer;
pub mod devices;
pub mod doctor;
#[cfg(feature = "failpoints")]
pub mod fail;
pub mod federation;
pub mod hardening;
pub mod http;
pub mod metrics;
pub mod server;
pub mod service;
pub mod starter;
pub mod store;
pub mod tls;
pub mod token;
pub mod worker;
