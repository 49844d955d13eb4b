//! The public half of nested 1 + (t, n) FROST over secp256k1 with BIP340 output (RFC 9591, BIP341).
//!
//! A leaf's verifying key is `P = Y_operators + Y_user`. Operators hold a t-of-n Shamir sharing of the first
//! part, the user holds the second. Lagrange coefficients run over the operators alone; the user's is 1.
//! Without a user, `P` is the operators' key.
//!
//! Everything here is public data, so libsecp256k1's variable-time arithmetic is used.

mod adaptor;
mod aggregate;
mod hash;
mod key;
mod lagrange;
mod package;
mod scalar;
mod session;
mod share;

pub use self::{
    adaptor::{AdaptorError, PreSignature},
    aggregate::{AggregateError, Culprits},
    hash::{dkg_challenge, nonce_scalar},
    key::{KeyContext, output_key},
    lagrange::Coefficients,
    package::{Commitment, PackageError, SigningPackage},
    scalar::{from_secp, to_secp},
    session::{Session, ShareError, SigningTerms},
    share::{ShareParseError, SignatureShare},
};

/// Identifier of the user, `HID("user")` of the ciphersuite FROST-secp256k1-SHA256-TR-v1. It sorts after every
/// operator's.
pub const USER_IDENTIFIER: [u8; 32] = [
    0x68, 0x7d, 0xa6, 0x4d, 0x52, 0xa1, 0x6c, 0x6f, 0xc7, 0x92, 0xc6, 0xfc, 0x83, 0x1e, 0xc1, 0xaf, 0xa7,
    0x97, 0xa9, 0x1f, 0x77, 0x54, 0x96, 0x68, 0xa6, 0xb5, 0x42, 0x1f, 0x12, 0xc1, 0xac, 0x77,
];
