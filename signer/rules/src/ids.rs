//! Names of things: operators, leaves, keyshares, operations.

use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// An id that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a lower-case, hyphenated UUID.
    #[error("leaf id must be a lower-case uuid")]
    LeafId,
    /// Wrong number of bytes.
    #[error("{name} must have {expected} bytes, not {actual}")]
    Length {
        /// What it is.
        name: &'static str,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        actual: usize,
    },
    /// Not an operator of this federation.
    #[error("operator identifier is not one of this federation")]
    Operator,
}

/// Position of an operator in the federation, from 0. Its FROST identifier is `index + 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperatorIndex(u16);

impl OperatorIndex {
    /// The operator at `index`; a federation has at most 15 members, checked where it is parsed.
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// From a wire integer.
    pub fn from_wire(index: u32) -> Result<Self, IdError> {
        u16::try_from(index).ok().filter(|i| *i < 15).map(Self).ok_or(IdError::Operator)
    }

    /// From the 64 hex digits that map keys carry on the public wire.
    pub fn from_identifier(hex64: &str) -> Result<Self, IdError> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(hex64, &mut bytes).map_err(|_| IdError::Operator)?;
        let [head @ .., last] = bytes;
        if head.iter().any(|b| *b != 0)
            || last == 0
            || last > 15
            || hex64.bytes().any(|b| b.is_ascii_uppercase())
        {
            return Err(IdError::Operator);
        }
        Ok(Self(u16::from(last) - 1))
    }

    /// Zero-based position.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Zero-based position as an index.
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }

    /// Evaluation point of the shares, `index + 1`.
    pub fn share_index(self) -> u16 {
        self.0.saturating_add(1)
    }

    /// FROST identifier: `index + 1` as 32 big-endian bytes.
    pub fn identifier(self) -> [u8; 32] {
        let mut bytes = [0u8; 32];
        bytes[30..].copy_from_slice(&self.share_index().to_be_bytes());
        bytes
    }

    /// The identifier as 64 hex digits, the form of map keys on the public wire.
    pub fn identifier_hex(self) -> String {
        hex::encode(self.identifier())
    }
}

/// A leaf's id. Its text is key material for wallets, so it is kept exactly: lower-case, hyphenated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeafId(Uuid);

impl LeafId {
    /// From the wire; only the canonical text form is accepted.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let id = Uuid::try_parse(text).map_err(|_| IdError::LeafId)?;
        if id.as_hyphenated().to_string() == text { Ok(Self(id)) } else { Err(IdError::LeafId) }
    }

    /// From raw bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// An id that every operator derives alike, formatted as a version 8 UUID (RFC 9562).
    pub fn derive(domain: &str, parts: &[&[u8]]) -> Self {
        Self(Uuid::new_v8(derive16(domain, parts)))
    }

    /// What stands where a leaf id stands for a static deposit address, which never makes a leaf. It follows from the
    /// keyshare, and no leaf may have an id of its form (a UUID of version 5), so that nobody can occupy it before.
    pub fn of_static_address(keyshare: &KeyshareId) -> Self {
        let bytes = derive16("spark/static-address", &[keyshare.as_bytes()]);
        Self(uuid::Builder::from_sha1_bytes(bytes).into_uuid())
    }

    /// Whether only a static address may have it.
    pub fn has_static_form(&self) -> bool {
        self.0.get_version_num() == 5
    }

    /// As UUID, for storage.
    pub const fn uuid(&self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for LeafId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From 16 raw bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// From the wire.
            pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError::Length {
                    name: stringify!($name),
                    expected: 16,
                    actual: bytes.len(),
                })
            }

            /// Raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The first 16 bytes of a domain-separated SHA-256 over length-prefixed parts.
            pub fn derive(domain: &str, parts: &[&[u8]]) -> Self {
                Self(derive16(domain, parts))
            }

            /// The same bytes as a UUID, for storage.
            pub const fn uuid(&self) -> Uuid {
                Uuid::from_bytes(self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(*id.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.uuid().as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id16!(
    /// A keyshare: one key of the operators, made by one DKG batch.
    KeyshareId
);
id16!(
    /// One run of the operation engine: derived from what it acts on, in a domain of its kind. Names that a client
    /// may choose are never an operation id: one kind of operation could occupy the id of another.
    OperationId
);
id16!(
    /// A transfer, as its sender named it.
    TransferId
);
id16!(
    /// A signer's life between two ceremonies (D11).
    Incarnation
);

fn derive16(domain: &str, parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in std::iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0u8; 16];
    id.copy_from_slice(&digest[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_round_trip_and_refuse_strangers() {
        for i in 0..15 {
            let index = OperatorIndex::new(i);
            assert_eq!(OperatorIndex::from_identifier(&index.identifier_hex()), Ok(index));
        }
        assert_eq!(OperatorIndex::new(0).identifier_hex(), format!("{:064x}", 1));
        assert!(OperatorIndex::from_identifier(&format!("{:064x}", 0)).is_err());
        assert!(OperatorIndex::from_identifier(&format!("{:064x}", 16)).is_err());
        assert!(OperatorIndex::from_identifier("01").is_err());
    }

    #[test]
    fn leaf_ids_keep_their_text() {
        let text = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";
        assert_eq!(LeafId::parse(text).map(|id| id.to_string()).as_deref(), Ok(text));
        assert!(LeafId::parse(&text.to_uppercase()).is_err());
        assert!(LeafId::parse(&text.replace('-', "")).is_err());
    }
}
