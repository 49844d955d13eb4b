//! The secret half of FROST: nonce pairs and signature shares.
//!
//! A [`NoncePair`] is consumed by the share it makes, so one pair cannot answer two packages (S3). Parities, R,
//! binding factors and challenge come from a [`Session`] that the caller computed from its own records.
//!
//! A second share from the same pair does not compile:
//!
//! ```compile_fail,E0382
//! # use spark_rules::{frost::Session, ids::OperatorIndex};
//! # use spark_signer::{frost::{NoncePair, sign_operator}, secret::SecretScalar};
//! fn twice(first: &Session, second: &Session, nonce: NoncePair, share: &SecretScalar) {
//!     let me = OperatorIndex::new(0);
//!     let _ = sign_operator(first, me, nonce, share);
//!     let _ = sign_operator(second, me, nonce, share);
//! }
//! ```

mod nonce;

use k256::Scalar;
use spark_rules::{
    frost::{Coefficients, KeyContext, PackageError, Session, SignatureShare, SigningPackage, SigningTerms},
    ids::OperatorIndex,
};
use zeroize::Zeroizing;

pub use self::nonce::NoncePair;
use crate::secret::SecretScalar;

/// A share that must not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The package does not name this signer.
    #[error("not a participant of the package")]
    NotAParticipant,
    /// The package holds another commitment for this signer.
    #[error("package does not carry this nonce's commitment")]
    Commitment,
    /// The share came out as zero.
    #[error("signature share is zero")]
    Zero,
}

/// The session of a package as its signer computes it: the own part of R comes from the nonces themselves. Equal
/// to [`SigningPackage::session_with`] and faster.
pub fn signing_session(
    package: &SigningPackage,
    key: &KeyContext,
    coefficients: &Coefficients,
    me: OperatorIndex,
    nonce: &NoncePair,
) -> Result<Session, PackageError> {
    if package.operators().get(&me) != Some(nonce.commitment()) {
        // Not this nonce's package; signing will refuse it.
        return package.session_with(key, coefficients);
    }
    Session::with_own_nonce(package, key, coefficients, me, |factor| {
        SecretScalar::from_scalar(*bound(nonce, factor)).ok().map(|sum| sum.public_key())
    })
}

/// d + ρe.
fn bound(nonce: &NoncePair, binding_factor: &Scalar) -> Zeroizing<Scalar> {
    Zeroizing::new(nonce.binding().scalar() * binding_factor + nonce.hiding().scalar())
}

/// An operator's signature share. The nonce is erased whether or not a share results.
pub fn sign_operator(
    session: &Session,
    me: OperatorIndex,
    nonce: NoncePair,
    share: &SecretScalar,
) -> Result<SignatureShare, SignError> {
    sign(&session.operator_terms(me).ok_or(SignError::NotAParticipant)?, nonce, share)
}

/// The user's signature share. The nonce is erased whether or not a share results.
pub fn sign_user(
    session: &Session,
    nonce: NoncePair,
    key: &SecretScalar,
) -> Result<SignatureShare, SignError> {
    sign(&session.user_terms().ok_or(SignError::NotAParticipant)?, nonce, key)
}

fn sign(terms: &SigningTerms, nonce: NoncePair, key: &SecretScalar) -> Result<SignatureShare, SignError> {
    if terms.commitment() != nonce.commitment() {
        return Err(SignError::Commitment);
    }
    // The only line where secrets meet public values: constant-time scalar arithmetic. The sign is public.
    let bound = bound(&nonce, terms.binding_factor());
    let mut z = terms.key_factor() * key.scalar() + terms.constant();
    if terms.negate_nonce() {
        z -= &*bound;
    } else {
        z += &*bound;
    }
    SignatureShare::from_scalar(z).ok_or(SignError::Zero)
}
