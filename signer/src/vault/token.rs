//! What an HSM must do.

use std::fmt;

use bitcoin::secp256k1::{PublicKey, ecdsa};
use spark_rules::federation_key::FederationKey;
use zeroize::Zeroizing;

/// One vault's roots, told from another's; drawn at the ceremony.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeId(pub [u8; 8]);

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A root key's name in the token (`CKA_ID`): tree, then epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootId {
    /// Vault it belongs to.
    pub tree: TreeId,
    /// Epoch it seals.
    pub epoch: u64,
}

impl RootId {
    /// 16 bytes: tree ‖ epoch, big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0u8; 16];
        let (tree, epoch) = bytes.split_at_mut(8);
        tree.copy_from_slice(&self.tree.0);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        bytes
    }

    /// From the 16 bytes of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tree, epoch) = bytes.split_first_chunk::<8>()?;
        Some(Self { tree: TreeId(*tree), epoch: u64::from_be_bytes(epoch.try_into().ok()?) })
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a token did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Device, library or session is gone; a reconnect may help.
    #[error("token is unavailable: {0}")]
    Unavailable(String),
    /// It shows none of the objects it must have. Never to be read as a fresh token.
    #[error("token shows no objects: it is unhealthy or not the right one")]
    NoObjects,
    /// The PIN was refused. It is not tried again.
    #[error("token refused the PIN")]
    PinRefused,
    /// The PIN is locked; its security officer must act.
    #[error("token PIN is locked")]
    PinLocked,
    /// No root of this name.
    #[error("token has no root {0}")]
    RootMissing(RootId),
    /// A root of this name is there already.
    #[error("token already has root {0}")]
    RootExists(RootId),
    /// A key lacks an attribute that the claim rests on.
    #[error("token key {key}: attribute {attribute} is not as required")]
    Attribute {
        /// Label of the key.
        key: &'static str,
        /// Name of the attribute.
        attribute: &'static str,
    },
    /// The destruction of a root failed. It stays failed for the life of the process: a library may show
    /// the object as gone while it is not.
    #[error("root {0} was not destroyed")]
    NotDestroyed(RootId),
    /// What came back does not verify.
    #[error("token gave a wrong answer: {0}")]
    WrongAnswer(&'static str),
    /// A device of this vault is not there.
    #[error("device {0} is away; a person may allow to start without it")]
    DeviceAway(DeviceId),
    /// It does not know a mechanism or forbids the call.
    #[error("token does not allow this: {0}")]
    Unsupported(String),
    /// Anything else, by the name of its PKCS#11 return value.
    #[error("token failed: {0}")]
    Failed(String),
}

/// One of a signer's devices, by the number that the configuration gives it. Never used again for another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u8);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where roots live: keys of a pseudo-random function (HMAC-SHA-256, or AES-CMAC in counter mode) that never leave it.
///
/// Calls that change objects come one at a time, if not always from the same thread; all others may come from any, at
/// any time.
pub trait RootToken: Send + Sync {
    /// Generates the root in the token and asserts its attributes.
    fn create_root(&self, root: &RootId) -> Result<(), TokenError>;

    /// All roots of any tree. `Ok(vec![])` only when the token has shown in the same call that it can
    /// list objects; otherwise [`TokenError::NoObjects`].
    fn roots(&self) -> Result<Vec<RootId>, TokenError>;

    /// The root's function at `context`. Consecutive calls use different sessions.
    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError>;

    /// Destroys the root and checks that it is gone. An error is sticky: later calls for the same root
    /// fail alike.
    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError>;

    /// Makes created and destroyed objects survive a power cut, where the token does not do so itself.
    fn sync(&self) -> Result<(), TokenError>;

    /// Which device this is: 32 bytes that no other one shows, by a key that never leaves it.
    fn fingerprint(&self) -> Result<[u8; 32], TokenError>;
}

impl<T: RootToken + ?Sized> RootToken for std::sync::Arc<T> {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        (**self).create_root(root)
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        (**self).roots()
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        (**self).derive(root, context)
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        (**self).destroy_root(root)
    }

    fn sync(&self) -> Result<(), TokenError> {
        (**self).sync()
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        (**self).fingerprint()
    }
}

/// The keys that speak for the signer: in a token of their own, apart from the roots (D13).
///
/// Calls may come from any thread.
pub trait Token: Send + Sync {
    /// The identity key (secp256k1).
    fn identity_public_key(&self) -> PublicKey;

    /// ECDSA over a 32-byte digest: low-S, verified before it is returned.
    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError>;

    /// X coordinate (32 bytes, big-endian) of the identity key times `point`.
    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError>;

    /// The federation key, of either kind.
    fn federation_public_key(&self) -> FederationKey;

    /// A signature over `message` in the form that [`FederationKey::verifies`] accepts, verified before it is returned.
    /// Two over one message may differ. Callers separate domains.
    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError>;
}

impl<T: Token + ?Sized> Token for std::sync::Arc<T> {
    fn identity_public_key(&self) -> PublicKey {
        (**self).identity_public_key()
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        (**self).sign_identity(digest)
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        (**self).identity_ecdh_x(point)
    }

    fn federation_public_key(&self) -> FederationKey {
        (**self).federation_public_key()
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        (**self).sign_federation(message)
    }
}
