//! Why a vault is not created, not opened, or not read.

use super::store::StoreError;
use super::token::{DeviceId, RootId, TokenError};

/// A read or a change of a batch that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A page or record is not what was written.
    #[error("vault content is damaged: {0}")]
    Damaged(&'static str),
    /// Longer than [`super::MAX_SECRET_BYTES`].
    #[error("secret is too long")]
    SecretTooLong,
    /// A commit was cut off: only opening the vault again tells where it stands.
    #[error("vault must be opened again")]
    MustReopen,
}

/// Why no vault was created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The store has content.
    #[error("store is not empty")]
    StoreNotEmpty,
    /// The token has roots.
    #[error("token already holds roots: {0:?}")]
    RootsExist(Vec<RootId>),
    /// The token failed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Sealing failed.
    #[error("header could not be sealed")]
    Seal,
}

/// Why a vault does not open. Nothing is repaired or begun anew by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Neither store nor token knows a vault.
    #[error("no vault here: run the ceremony")]
    NotCreated,
    /// The token has roots and the store is empty.
    #[error("store is empty but the token holds roots {0:?}: the store was lost")]
    StoreLost(Vec<RootId>),
    /// The root of the store's epoch is not in the token.
    #[error("store needs root {needed}, token has {found:?}: one of them was rolled back or lost")]
    RootMissing {
        /// Root that sealed the store's header.
        needed: RootId,
        /// Roots in the token.
        found: Vec<RootId>,
    },
    /// The token holds roots of another vault, or one twice.
    #[error("token holds roots that are not this vault's: {0:?}")]
    ForeignRoots(Vec<RootId>),
    /// The header is not of this format.
    #[error(
        "header is not of the format that this version of the signer reads: it makes a new store, by a ceremony or a repair"
    )]
    Format,
    /// The header was not sealed under this root.
    #[error("header does not open under its root")]
    HeaderBroken,
    /// No device is configured that unlocks the header.
    #[error("store is sealed for the devices {0:?}, and none of them is configured")]
    NoDevice(Vec<DeviceId>),
    /// What begins in this slot is not what was written there under this header: missing, changed or older.
    #[error("page in slot {0} is not the one that its parent names")]
    PageBroken(u64),
    /// The pages do not hold what the header counted.
    #[error("store does not hold as many secrets as the header says")]
    PagesCount,
    /// Records are missing, added or changed.
    #[error("records are not those the header covers")]
    RecordsBroken,
    /// The token failed, or shows no objects.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
