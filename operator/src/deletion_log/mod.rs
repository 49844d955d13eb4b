//! The deletion log towards the world: published heads with their cosignatures, tiles for everybody, receipts for
//! owners (D16), and to owners news of them.

mod compare;
mod export;
mod files;
mod publish;
mod service;
mod theirs;
mod watch;

pub use compare::{Comparer, Heads};
pub use export::export;
pub use files::{FILES, LogFiles};
pub use publish::{Head, Published, Publisher};
pub use service::LogService;
pub use watch::{LogReader, MOST_LEAVES, Watch};
