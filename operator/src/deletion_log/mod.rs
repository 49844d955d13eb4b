//! The deletion log towards the world: published heads with their cosignatures, tiles for everybody, receipts for
//! owners (D16).

mod export;
mod files;
mod publish;
mod service;

pub use export::export;
pub use files::{FILES, LogFiles};
pub use publish::{Head, Published, Publisher};
pub use service::LogService;
