//! Administration of a running signer: a Unix socket on its own host, for the user that it runs as and for root.

mod client;
mod service;
mod socket;

pub use client::{AdminClient, AdminError};
pub use service::Admin;
pub use socket::{listen, serve};

/// Most bytes of one message: a page of the log.
const MAX_MESSAGE: usize = 8 << 20;
