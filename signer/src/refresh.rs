//! Refresh of shares, pure: every member deals a random polynomial whose constant term is zero, every member adds what it
//! was dealt to its share (Herzberg and others 1995; value for value what frost-core's `keys::refresh` computes).
//!
//! A dealer's polynomial is f(x) = x·g(x) with g of degree t − 2, so that no other constant term can be dealt by
//! mistake, and none can be committed to.

use std::collections::BTreeMap;

use k256::Scalar;
use rand_core::{CryptoRng, RngCore};
use spark_rules::{feldman::ZeroProofs, ids::OperatorIndex};
use zeroize::Zeroizing;

use crate::{feldman::evaluate, secret::SecretScalar};

/// A refresh that changes no share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// Threshold and member count do not form a sharing that can be refreshed.
    #[error("threshold {threshold} of {members} cannot be refreshed")]
    Parameters {
        /// t.
        threshold: u16,
        /// n.
        members: u16,
    },
    /// A dealer's values are missing.
    #[error("values of the refresh are not complete")]
    Incomplete,
    /// What a dealer sent is not on the polynomial that it committed to: another value, another degree, or a constant
    /// term other than zero.
    #[error("operator {} dealt a value that is not on its polynomial", culprit.get())]
    Share {
        /// Who.
        culprit: OperatorIndex,
    },
    /// All values add up to zero: chance of 2⁻²⁵⁶, or nobody is honest.
    #[error("the dealt values cancel out")]
    Cancelled,
}

/// One member's part for one keyshare. The polynomial is gone already; the values go, encrypted, to their members.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct Deal {
    /// f(i) for i = 1 … n, by operator index.
    pub shares: Vec<SecretScalar>,
    /// For everybody.
    pub proofs: ZeroProofs,
}

/// Deals for a `t`-of-`n` sharing. The generator must be the operating system's or one that erases its state (D14).
pub fn deal(t: u16, n: u16, rng: &mut (impl RngCore + CryptoRng)) -> Result<Deal, RefreshError> {
    let parameters = RefreshError::Parameters { threshold: t, members: n };
    if t < 2 || t > n {
        return Err(parameters);
    }
    loop {
        let coefficients: Vec<SecretScalar> = (1..t).map(|_| SecretScalar::random(rng)).collect();
        let g: Vec<&SecretScalar> = coefficients.iter().collect();
        let value = |index: u16| {
            let index = OperatorIndex::new(index);
            let below = evaluate(&g, index)?;
            SecretScalar::from_scalar(below.scalar() * &Scalar::from(u64::from(index.share_index())))
        };
        // A value of zero (probability 2⁻²⁵⁶) is not representable: take other coefficients.
        let Ok(shares) = (0..n).map(value).collect() else { continue };
        let points = coefficients.iter().map(SecretScalar::public_key).collect();
        let proofs = ZeroProofs::from_points(points, t).map_err(|_| parameters)?;
        return Ok(Deal { shares, proofs });
    }
}

/// Checks each value that `me` was dealt against its dealer's commitments and adds them up: to be added to the share.
pub fn take(
    me: OperatorIndex,
    proofs: &BTreeMap<OperatorIndex, &ZeroProofs>,
    shares: &BTreeMap<OperatorIndex, SecretScalar>,
) -> Result<SecretScalar, RefreshError> {
    if proofs.is_empty() || !proofs.keys().eq(shares.keys()) {
        return Err(RefreshError::Incomplete);
    }
    let mut sum = Zeroizing::new(Scalar::ZERO);
    for ((dealer, proofs), share) in proofs.iter().zip(shares.values()) {
        if proofs.share_commitment(me) != Ok(share.public_key()) {
            return Err(RefreshError::Share { culprit: *dealer });
        }
        *sum += share.scalar();
    }
    SecretScalar::from_scalar(*sum).map_err(|_| RefreshError::Cancelled)
}
