//! Hashing of statements: every part is preceded by its length.

use sha2::{Digest as _, Sha256};

/// SHA-256 over parts, each after its length as 8 big-endian bytes; the first part names what is hashed.
pub(crate) struct Transcript(Sha256);

impl Transcript {
    pub(crate) fn new(domain: &str) -> Self {
        Self(Sha256::new()).part(domain.as_bytes())
    }

    #[must_use]
    pub(crate) fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// A part of 8 big-endian bytes.
    #[must_use]
    pub(crate) fn number(self, value: u64) -> Self {
        self.part(&value.to_be_bytes())
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
