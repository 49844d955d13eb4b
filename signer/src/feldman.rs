//! The secret half of Feldman's sharing: making shares and taking them.

use bitcoin::secp256k1::PublicKey;
use k256::Scalar;
use rand_core::{CryptoRng, RngCore};
use spark_rules::{feldman::Proofs, ids::OperatorIndex};
use zeroize::Zeroizing;

use crate::secret::SecretScalar;

/// A sharing that cannot be made or a share that cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SharingError {
    /// Threshold and member count do not form a sharing.
    #[error("threshold {threshold} of {members} is not a sharing")]
    Parameters {
        /// t.
        threshold: u16,
        /// n.
        members: u16,
    },
    /// The share does not match its commitments.
    #[error("share does not match its commitments")]
    Share,
}

/// A secret shared among n operators.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct Split {
    /// f(i) for i = 1 … n, by operator index.
    pub shares: Vec<SecretScalar>,
    /// Commitments to the t coefficients, lowest first.
    pub proofs: Vec<PublicKey>,
}

/// Shares a secret by a random polynomial of degree `threshold` − 1 with the secret as constant term.
pub fn split(
    secret: &SecretScalar,
    threshold: u16,
    n: u16,
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Split, SharingError> {
    if threshold == 0 || threshold > n {
        return Err(SharingError::Parameters { threshold, members: n });
    }
    loop {
        let coefficients: Vec<SecretScalar> = (1..threshold).map(|_| SecretScalar::random(rng)).collect();
        let polynomial: Vec<&SecretScalar> = std::iter::once(secret).chain(&coefficients).collect();
        // A zero share (probability 2⁻²⁵⁶) is not representable: take other coefficients.
        let Ok(shares) = (0..n).map(|index| evaluate(&polynomial, OperatorIndex::new(index))).collect()
        else {
            if threshold == 1 {
                return Err(SharingError::Share);
            }
            continue;
        };
        let proofs = polynomial.iter().map(|coefficient| coefficient.public_key()).collect();
        return Ok(Split { shares, proofs });
    }
}

/// Checks a received share (32 bytes big-endian) against its commitments and takes it.
pub fn verify_and_take(
    proofs: &Proofs,
    index: OperatorIndex,
    bytes: &Zeroizing<[u8; 32]>,
) -> Result<SecretScalar, SharingError> {
    let share = SecretScalar::from_bytes(bytes).map_err(|_| SharingError::Share)?;
    let expected = proofs.share_commitment(index).map_err(|_| SharingError::Share)?;
    if share.public_key() == expected { Ok(share) } else { Err(SharingError::Share) }
}

/// f(i) by Horner's rule; fails where the value is zero.
pub(crate) fn evaluate(
    coefficients: &[&SecretScalar],
    index: OperatorIndex,
) -> Result<SecretScalar, crate::secret::SecretError> {
    let x = Scalar::from(u64::from(index.share_index()));
    let mut value = Zeroizing::new(Scalar::ZERO);
    for coefficient in coefficients.iter().rev() {
        *value = *value * x + coefficient.scalar();
    }
    SecretScalar::from_scalar(*value)
}
