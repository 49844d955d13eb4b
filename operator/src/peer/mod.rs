//! The other operators: channels to them, and what they may ask of us.

mod client;
mod service;

pub use client::{PeerClient, Signers};
pub(crate) use service::call_status;
pub use service::{PeerIndex, PeerService, index_of_spki};
