//! An independent verifier of an operator's deletion log.
//!
//! It re-checks a whole log from its tiles and, for an auditor, its entries, and says what that proves and what not.
//! It shares no code with the signer: its own notes (C2SP signed-note), checkpoints (C2SP tlog-checkpoint), Merkle trees
//! (RFC 6962), tiles (C2SP tlog-tiles), cosignatures (C2SP tlog-cosignature) and receipts.

use std::{io, path::PathBuf};

pub mod checkpoint;
pub mod claims;
pub mod entries;
pub mod failure;
pub mod federation;
pub mod fuzz;
pub mod history;
pub mod key;
pub mod merkle;
pub mod note;
pub mod refreshes;
pub mod report;
pub mod since;
pub mod source;
pub mod tiles;
mod transcript;
mod tree;
mod verify;
pub mod witness;

pub use failure::{Failure, Reason};
pub use report::Report;
pub use verify::verify;

/// Where a log is read from.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder with the files of the log.
    Directory(PathBuf),
    /// The log's prefix, `https://host:port/path`.
    Https {
        /// Prefix of all paths.
        url: String,
        /// Authorities of the server's certificate, PEM.
        ca: PathBuf,
    },
}

/// What to verify, and against what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The federation file, JSON.
    pub federation: PathBuf,
    /// Index of the operator whose log it is.
    pub operator: u16,
    /// The log.
    pub location: Location,
    /// Receipts in log order, JSON lines.
    pub entries: Option<PathBuf>,
    /// An earlier checkpoint of this log.
    pub since: Option<PathBuf>,
    /// Cosignatures of distinct other operators that are needed; `None` takes what makes two forks impossible.
    pub witnesses: Option<usize>,
    /// Where to store the checkpoint if everything holds.
    pub save: Option<PathBuf>,
}

/// Nothing can be said about the log: the question or an input is no good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options do not fit together or do not fit the federation.
    #[error("{0}")]
    Usage(String),
    /// A file of the caller's.
    #[error("{path}: {error}")]
    File {
        /// As given.
        path: String,
        /// Of the system.
        error: io::Error,
    },
    /// The federation file has not the expected form.
    #[error(transparent)]
    Federation(#[from] federation::Malformed),
    /// The earlier checkpoint is none of this log.
    #[error("earlier checkpoint: {0}")]
    Since(String),
    /// A line of the entries cannot be read.
    #[error("entries, line {line}: {what}")]
    Entries {
        /// From 1.
        line: u64,
        /// Why.
        what: String,
    },
    /// The log's place does not answer as it should.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// More records than this program takes.
    #[error("the log states {0} records, more than this program takes")]
    TooLarge(u64),
}

impl Error {
    /// Stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Usage(_) => "USAGE",
            Self::File { .. } => "FILE_UNREADABLE",
            Self::Federation(_) => "FEDERATION_MALFORMED",
            Self::Since(_) => "SINCE_MALFORMED",
            Self::Entries { .. } => "ENTRIES_UNREADABLE",
            Self::Source(error) => error.reason(),
            Self::TooLarge(_) => "LOG_TOO_LARGE",
        }
    }
}
