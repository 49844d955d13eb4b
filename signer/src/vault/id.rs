//! Names of secrets.

use std::fmt;

/// Longest secret, in bytes: the signature shares of the largest operation fit.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// What a secret is. The numbers are on disk and bound into every seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum SecretKind {
    /// A FROST share of one version of a keyshare.
    Keyshare = 1,
    /// A decrypted tweak that waits for its proof of commit or abort.
    StagedTweak = 2,
    /// Signature shares computed at prepare, not yet released.
    SignatureShares = 3,
    /// A share from a DKG batch that is not yet usable.
    DkgShare = 4,
    /// Polynomial and one-time package key of an open DKG batch.
    DkgSecret = 5,
    /// Secret half of a one-time package key.
    PackageKey = 6,
    /// Share of a payment preimage.
    PreimageShare = 7,
    /// Contribution to a repair.
    RepairShare = 8,
}

impl SecretKind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Keyshare,
            2 => Self::StagedTweak,
            3 => Self::SignatureShares,
            4 => Self::DkgShare,
            5 => Self::DkgSecret,
            6 => Self::PackageKey,
            7 => Self::PreimageShare,
            8 => Self::RepairShare,
            _ => return None,
        })
    }
}

/// Full name of a secret: whose, what, which version. Ordered by owner, kind, version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId {
    /// Keyshare, operation or batch that it belongs to.
    pub owner: [u8; 16],
    /// What it is.
    pub kind: SecretKind,
    /// Version of the keyshare, or position among the owner's secrets of this kind.
    pub version: u64,
}

impl SecretId {
    pub(super) const BYTES: usize = 25;

    /// Names a secret.
    pub const fn new(owner: [u8; 16], kind: SecretKind, version: u64) -> Self {
        Self { owner, kind, version }
    }

    /// On disk. Names are ordered as their bytes are.
    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (owner, rest) = bytes.split_at_mut(16);
        let (kind, version) = rest.split_at_mut(1);
        owner.copy_from_slice(&self.owner);
        kind.copy_from_slice(&[self.kind as u8]);
        version.copy_from_slice(&self.version.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (owner, rest) = bytes.split_first_chunk::<16>()?;
        let (kind, rest) = rest.split_first()?;
        let version = rest.first_chunk::<8>()?;
        Some(Self {
            owner: *owner,
            kind: SecretKind::from_byte(*kind)?,
            version: u64::from_be_bytes(*version),
        })
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}/{}", hex::encode(self.owner), self.kind, self.version)
    }
}
