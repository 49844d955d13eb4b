//! The structured hash of user statements: SHA256(tag ‖ tag ‖ values), where tag = SHA256(parts), and every
//! part and value is preceded by its length as u64, big-endian. Tags separate domains; lengths make the
//! encoding injective.

use sha2::{Digest as _, Sha256};

/// Builds a structured hash value by value.
#[derive(Debug, Clone)]
pub struct StructuredHash(Sha256);

impl StructuredHash {
    /// Starts a hash in the domain of `tag`.
    pub fn new(tag: &[&str]) -> Self {
        let mut parts = Self(Sha256::new());
        for part in tag {
            parts = parts.bytes(part.as_bytes());
        }
        let tag = parts.0.finalize();
        Self(Sha256::new().chain_update(tag).chain_update(tag))
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
        self
    }

    /// Adds text as UTF-8.
    #[must_use]
    pub fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    /// Adds an integer; all widths are hashed as 8 bytes.
    #[must_use]
    pub fn int(self, value: impl Into<u64>) -> Self {
        self.bytes(&value.into().to_be_bytes())
    }

    /// Adds a map: its size, then key and value of each entry in order of the key's bytes.
    #[must_use]
    pub fn map<'a>(mut self, entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        self = self.int(entries.len() as u64);
        for (key, value) in entries {
            self = self.text(key).bytes(value);
        }
        self
    }

    /// The hash.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
