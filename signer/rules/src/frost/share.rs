//! Signature shares.

use std::fmt;

use k256::{Scalar, elliptic_curve::PrimeField as _};

/// Bytes that are no signature share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signature share must be a non-zero scalar of 32 big-endian bytes")]
pub struct ShareParseError;

/// One participant's part of a signature: a non-zero scalar below the group order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignatureShare(Scalar);

impl SignatureShare {
    /// 32 canonical big-endian bytes. Zero is refused: it occurs with probability 2⁻²⁵⁶ unless forged.
    pub fn parse(bytes: &[u8]) -> Result<Self, ShareParseError> {
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| ShareParseError)?;
        Option::from(Scalar::from_repr(bytes.into())).and_then(Self::from_scalar).ok_or(ShareParseError)
    }

    /// From a scalar; none if it is zero.
    pub fn from_scalar(scalar: Scalar) -> Option<Self> {
        (!bool::from(scalar.is_zero())).then_some(Self(scalar))
    }

    /// 32 big-endian bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes().into()
    }

    pub(super) const fn scalar(&self) -> &Scalar {
        &self.0
    }
}

impl fmt::Debug for SignatureShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureShare({})", hex::encode(self.to_bytes()))
    }
}
