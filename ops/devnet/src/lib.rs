//! Parts of a development network, each the real thing on loopback: Bitcoin Core, PostgreSQL, certificates.
//!
//! Every part is one value that owns its child process or task and ends it when dropped; ports, folders and
//! keys are fresh unless the caller fixes them, so any number of networks run side by side.

pub mod bitcoind;
pub mod certs;
pub mod control;
pub mod demo;
pub mod exposition;
pub mod faucet;
pub mod http;
pub mod member;
pub mod network;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod replace;
pub mod rpc;
pub mod rpcfront;
pub mod stamp;
pub mod state;
pub mod user;
pub mod wallet;
