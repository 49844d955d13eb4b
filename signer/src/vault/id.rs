//! Names of secrets.

use std::{cmp::Ordering, fmt};

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
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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

impl Ord for SecretId {
    fn cmp(&self, other: &Self) -> Ordering {
        // As numbers: a batch compares names more often than anything else.
        let order = |id: &Self| (u128::from_be_bytes(id.owner), id.kind as u8, id.version);
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for SecretId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}/{}", hex::encode(self.owner), self.kind, self.version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = SecretId> {
        let near = || prop_oneof![any::<u8>(), Just(0), Just(0x80)];
        (near(), near(), 1u8..9, prop_oneof![any::<u64>(), 0u64..3]).prop_map(
            |(first, last, kind, version)| {
                let mut owner = [0; 16];
                (owner[0], owner[15]) = (first, last);
                SecretId::new(owner, SecretKind::from_byte(kind).unwrap(), version)
            },
        )
    }

    proptest! {
        #[test]
        fn names_are_ordered_as_their_bytes_are(one in name(), other in name()) {
            prop_assert_eq!(one.cmp(&other), one.to_bytes().cmp(&other.to_bytes()));
            prop_assert_eq!(one == other, one.cmp(&other) == Ordering::Equal);
        }
    }
}
