//! The operation engine (OPERATION.md D1-D10): one engine for every kind of operation.
//!
//! [`tally`] and [`shares`] are the transition core and do no I/O. [`Engine`] drives it: short SQL transactions,
//! calls with deadlines, never one inside the other.

mod adopt;
mod coordinate;
mod decide;
mod engine;
mod fail;
mod heavy;
mod observe;
mod outcome;
mod participate;
pub(crate) mod records;
mod settle;
pub mod shares;
pub mod tally;
mod terminate;

pub(crate) use coordinate::INVOICE_PAID;
pub use engine::{Engine, EngineError, Outcome, Refusal, Settings};
#[cfg(feature = "failpoints")]
pub use fail::Point;
pub use records::Snapshot;
pub use settle::Provided;
