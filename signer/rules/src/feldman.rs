//! Feldman commitments to a secret-sharing polynomial (Feldman 1987): F_k = a_k·G, k = 0 … t − 1.

use bitcoin::secp256k1::{PublicKey, SECP256K1, Scalar, SecretKey};

use crate::{
    frost::{Coefficients, to_secp},
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

/// Commitments to a polynomial of degree t − 1 whose constant term is zero. That one has no commitment (it would be the
/// point at infinity), so there is none to be wrong: whoever shares another constant shares off its polynomial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroProofs(Proofs);

impl ZeroProofs {
    /// Exactly `threshold` − 1 compressed points: F_1 … F_(t−1).
    pub fn parse<B: AsRef<[u8]>>(commitments: &[B], threshold: u16) -> Result<Self, FeldmanError> {
        Ok(Self(Proofs::parse(commitments, threshold.saturating_sub(1))?))
    }

    /// Exactly `threshold` − 1 points.
    pub fn from_points(points: Vec<PublicKey>, threshold: u16) -> Result<Self, FeldmanError> {
        Ok(Self(Proofs::from_points(points, threshold.saturating_sub(1))?))
    }

    /// F_1 … F_(t−1).
    pub fn points(&self) -> &[PublicKey] {
        self.0.points()
    }

    /// f(i)·G = i · Σ iᵏ⁻¹·F_k for the operator's share index i.
    pub fn share_commitment(&self, index: OperatorIndex) -> Result<PublicKey, FeldmanError> {
        let mut step = [0u8; 32];
        step[30..].copy_from_slice(&index.share_index().to_be_bytes());
        let step = Scalar::from_be_bytes(step).map_err(|_| FeldmanError::Identity)?;
        let value = self.0.share_commitment(index)?;
        if step == Scalar::ONE {
            return Ok(value);
        }
        value.mul_tweak(SECP256K1, &step).map_err(|_| FeldmanError::Identity)
    }

    /// The sum of several polynomials of one length; none of none.
    pub fn sum(all: &[Self]) -> Result<Self, FeldmanError> {
        let mut rest = all.iter();
        let mut points = rest.next().ok_or(FeldmanError::Identity)?.points().to_vec();
        for next in rest {
            if next.points().len() != points.len() {
                return Err(FeldmanError::Identity);
            }
            for (sum, point) in points.iter_mut().zip(next.points()) {
                *sum = sum.combine(point).map_err(|_| FeldmanError::Identity)?;
            }
        }
        let terms = u16::try_from(points.len()).map_err(|_| FeldmanError::Identity)?;
        Ok(Self(Proofs::from_points(points, terms)?))
    }

    /// The public shares after the polynomial was added; the key stays.
    pub fn apply(&self, public_shares: &[PublicKey]) -> Result<Vec<PublicKey>, FeldmanError> {
        (0u16..)
            .zip(public_shares)
            .map(|(index, share)| {
                let tweak = self.share_commitment(OperatorIndex::new(index))?;
                share.combine(&tweak).map_err(|_| FeldmanError::Identity)
            })
            .collect()
    }
}

/// Whether these points, one for each operator by index, lie on one polynomial of degree `threshold` − 1 whose constant
/// term is zero: what a refresh adds to public shares, and nothing else does.
pub fn is_zero_sharing(points: &[PublicKey], threshold: u16) -> bool {
    shares(points, threshold, None)
}

/// Whether these public shares, one for each operator by index, are those of `group`: points of one polynomial of degree
/// `threshold` − 1 whose constant term is that key.
pub fn is_sharing_of(group: &PublicKey, points: &[PublicKey], threshold: u16) -> bool {
    shares(points, threshold, Some(group))
}

/// Whether all points lie on one polynomial with this constant term, or with none.
fn shares(points: &[PublicKey], threshold: u16, constant: Option<&PublicKey>) -> bool {
    let first = usize::from(threshold.saturating_sub(1));
    let operators: Vec<_> = (0u16..).take(points.len()).map(OperatorIndex::new).collect();
    let (Some((base, others)), Some(base_points)) = (operators.split_at_checked(first), points.get(..first))
    else {
        return false;
    };
    // The first t − 1 points and any other one interpolate to the same constant term.
    !base.is_empty()
        && !others.is_empty()
        && others.iter().all(|other| {
            let weights = Coefficients::new(&base.iter().chain([other]).copied().collect());
            let part = |index: &OperatorIndex, point: &PublicKey| {
                point.mul_tweak(SECP256K1, &to_secp(weights.get(*index)?)).ok()
            };
            let parts: Option<Vec<_>> =
                base.iter().zip(base_points).map(|(i, point)| part(i, point)).collect();
            let last = points.get(other.as_usize()).and_then(|point| part(other, point));
            parts.zip(last).is_some_and(|(parts, last)| {
                let parts: Vec<_> = parts.iter().collect();
                // Without the last one they add up to what it lacks of the constant term.
                let lacking = match constant {
                    None => Some(last.negate(SECP256K1)),
                    // Equal points differ by the point at infinity, which no sum is.
                    Some(constant) => constant.combine(&last.negate(SECP256K1)).ok(),
                };
                lacking.is_some_and(|lacking| PublicKey::combine_keys(&parts) == Ok(lacking))
            })
        })
}
