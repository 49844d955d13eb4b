//! Feldman commitments to a secret-sharing polynomial (Feldman 1987): F_k = a_k·G, k = 0 … t − 1.

use bitcoin::secp256k1::{PublicKey, SECP256K1, Scalar, SecretKey};

use crate::{
    ids::OperatorIndex,
    point::{self, PointError},
};

/// Commitments or shares that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeldmanError {
    /// Not exactly t commitments: fewer or more would change the threshold.
    #[error("exactly {expected} commitments are needed, not {actual}")]
    Count {
        /// t.
        expected: u16,
        /// Commitments found.
        actual: usize,
    },
    /// Not a point.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The share is not the polynomial's value.
    #[error("share does not match its commitments")]
    Share,
    /// A sum is the point at infinity.
    #[error("points cancel out")]
    Identity,
}

/// Commitments to a polynomial of degree t − 1, lowest coefficient first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proofs {
    constant: PublicKey,
    points: Vec<PublicKey>,
}

impl Proofs {
    /// Exactly `threshold` compressed points, `threshold` being the federation's.
    pub fn parse<B: AsRef<[u8]>>(commitments: &[B], threshold: u16) -> Result<Self, FeldmanError> {
        let points = commitments
            .iter()
            .map(|bytes| point::parse("feldman commitment", bytes.as_ref()))
            .collect::<Result<Vec<_>, _>>();
        Self::from_points(points?, threshold)
    }

    /// Exactly `threshold` points.
    pub fn from_points(points: Vec<PublicKey>, threshold: u16) -> Result<Self, FeldmanError> {
        match points.first() {
            Some(&constant) if points.len() == usize::from(threshold) => Ok(Self { constant, points }),
            _ => Err(FeldmanError::Count { expected: threshold, actual: points.len() }),
        }
    }

    /// The commitments, lowest coefficient first; never empty.
    pub fn points(&self) -> &[PublicKey] {
        &self.points
    }

    /// F_0, the public key of the shared secret.
    pub const fn constant(&self) -> PublicKey {
        self.constant
    }

    /// f(i)·G = Σ iᵏ·F_k for the operator's share index i = index + 1.
    pub fn share_commitment(&self, index: OperatorIndex) -> Result<PublicKey, FeldmanError> {
        let mut step = [0u8; 32];
        step[30..].copy_from_slice(&index.share_index().to_be_bytes());
        let step = Scalar::from_be_bytes(step).map_err(|_| FeldmanError::Identity)?;
        let mut terms = self.points.iter().rev();
        let highest = *terms.next().ok_or(FeldmanError::Identity)?;
        // Horner: libsecp256k1's time grows with the length of the (small) multiplier.
        terms
            .try_fold(highest, |sum, term| {
                let scaled = if step == Scalar::ONE { sum } else { sum.mul_tweak(SECP256K1, &step)? };
                scaled.combine(term)
            })
            .map_err(|_| FeldmanError::Identity)
    }

    /// Checks a share, 32 bytes big-endian. Zero and overflowing scalars are refused.
    pub fn verify_share(&self, index: OperatorIndex, scalar: &[u8; 32]) -> Result<(), FeldmanError> {
        let mut key = SecretKey::from_slice(scalar).map_err(|_| FeldmanError::Share)?;
        let public = PublicKey::from_secret_key(SECP256K1, &key);
        key.non_secure_erase();
        if self.share_commitment(index)? == public { Ok(()) } else { Err(FeldmanError::Share) }
    }

    /// Adds the shared polynomial to a sharing: the new operators' key and the new public shares, by operator
    /// index. With the user's key reduced by f(0) the verifying key stays the same.
    pub fn apply(
        &self,
        group: &PublicKey,
        public_shares: &[PublicKey],
    ) -> Result<(PublicKey, Vec<PublicKey>), FeldmanError> {
        let group = group.combine(&self.constant()).map_err(|_| FeldmanError::Identity)?;
        let shares = (0u16..)
            .zip(public_shares)
            .map(|(index, share)| {
                let tweak = self.share_commitment(OperatorIndex::new(index))?;
                share.combine(&tweak).map_err(|_| FeldmanError::Identity)
            })
            .collect::<Result<_, _>>()?;
        Ok((group, shares))
    }
}
