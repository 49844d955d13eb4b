//! The vault: every secret that must outlive a process, and every record a signer must never forget.
//!
//! Secrets lie in the pages of a *key tree*: a page's key lies in its parent, the key of the top in the header,
//! which is sealed under a key derived from the token's *root* of the current *epoch*. A batch that destroys a
//! secret re-keys the touched pages and what leads to them, seals the header under a new root and destroys the
//! old one: no copy of the old store opens again. Neither the token's work nor the number of its objects grows
//! with the batch or the vault. Public records lie in the clear and are covered by a keyed set hash in the
//! header. A rollback of store *and* token together cannot be seen from here; the peers' memory sees it,
//! so a freshly opened vault is read-only until [`Vault::confirm_witnessed`].

mod commit;
mod cores;
#[cfg(test)]
mod device_tests;
mod devices;
mod error;
mod failpoint;
mod hand;
mod header;
mod id;
mod ledger;
mod members;
#[cfg(test)]
pub(crate) mod memory;
mod open;
mod seal;
mod store;
#[cfg(test)]
mod tests;
mod token;
mod tree;
mod txn;

pub use commit::{CommitError, Committed, Destruction};
pub use devices::{DeviceState, DeviceStatus, Devices};
pub use error::{CreateError, OpenError, VaultError};
pub use failpoint::{FailPoint, Step};
pub use id::{MAX_SECRET_BYTES, SecretId, SecretKind};
pub use open::{Position, Vault};
pub use store::{Extent, Record, SealedStore, StoreCommit, StoreError};
pub use token::{DeviceId, RootId, RootToken, Token, TokenError, TreeId};
pub use txn::{Savepoint, Txn};
