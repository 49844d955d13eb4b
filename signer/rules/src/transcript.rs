//! Unambiguous hashing of our own statements: every part is length-prefixed.

use sha2::{Digest as _, Sha256};

/// SHA-256 over a domain and length-prefixed parts.
#[derive(Debug, Clone)]
pub struct Transcript(Sha256);

impl Transcript {
    /// Starts with the domain as first part.
    pub fn new(domain: &str) -> Self {
        let mut this = Self(Sha256::new());
        this.bytes(domain.as_bytes());
        this
    }

    /// Adds a part.
    pub fn bytes(&mut self, part: &[u8]) -> &mut Self {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// Adds an integer as a part of 8 big-endian bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
