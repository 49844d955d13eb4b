//! Points from foreign bytes.

use bitcoin::secp256k1::PublicKey;

/// Bytes that are no compressed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} must be a compressed secp256k1 point of 33 bytes")]
pub struct PointError(pub &'static str);

/// A 33-byte point with prefix 02 or 03. Other SEC1 forms are refused: what is hashed must be what is decoded.
pub fn parse(name: &'static str, bytes: &[u8]) -> Result<PublicKey, PointError> {
    match bytes {
        [2 | 3, rest @ ..] if rest.len() == 32 => PublicKey::from_slice(bytes).map_err(|_| PointError(name)),
        _ => Err(PointError(name)),
    }
}
