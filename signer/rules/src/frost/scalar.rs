//! Passage between the two libraries' scalars.

use k256::{
    Scalar,
    elliptic_curve::{bigint::U256, ops::Reduce},
};

/// A public k256 scalar as a libsecp256k1 scalar. Not for secrets: the result is not erased.
pub fn to_secp(scalar: &Scalar) -> secp256k1::Scalar {
    // A reduced scalar is always in range; zero makes every multiplication that uses it fail.
    secp256k1::Scalar::from_be_bytes(scalar.to_bytes().into()).unwrap_or(secp256k1::Scalar::ZERO)
}

/// A libsecp256k1 scalar as a k256 scalar.
pub fn from_secp(scalar: &secp256k1::Scalar) -> Scalar {
    reduce(&scalar.to_be_bytes())
}

/// Big-endian bytes modulo the group order (BIP340's `int(...) mod n`).
pub(super) fn reduce(bytes: &[u8; 32]) -> Scalar {
    <Scalar as Reduce<U256>>::reduce_bytes(bytes.into())
}

pub(super) fn signed(scalar: Scalar, negative: bool) -> Scalar {
    if negative { -scalar } else { scalar }
}
