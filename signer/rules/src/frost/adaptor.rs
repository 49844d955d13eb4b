//! Pre-signatures: signatures that lack the discrete logarithm of an adaptor point T.

use bitcoin::secp256k1::{
    Message, Parity, PublicKey, SECP256K1, SecretKey, XOnlyPublicKey, schnorr::Signature,
};
use k256::{Scalar, elliptic_curve::PrimeField as _};

use super::{
    aggregate::signature_bytes,
    scalar::{signed, to_secp},
    session::Session,
};

/// A pre-signature that could not be completed or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdaptorError {
    /// The secret is not the discrete logarithm of the adaptor point.
    #[error("secret does not belong to the adaptor point")]
    Secret,
    /// The signature does not complete this pre-signature.
    #[error("signature does not complete this pre-signature")]
    Signature,
}

/// x(R + T) ‖ Σz with the key, message and adaptor point it was verified for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreSignature {
    r: [u8; 32],
    z: Scalar,
    commitment_odd: bool,
    adaptor: PublicKey,
    output_key: XOnlyPublicKey,
    message: [u8; 32],
}

impl PreSignature {
    /// Checks `Σz·G = ±(R − T) + c·Q`, the sign being that of R (which includes T).
    pub(super) fn verified(session: &Session, adaptor: &PublicKey, z: Scalar) -> Option<Self> {
        let odd = session.commitment_odd();
        let nonces: Vec<&PublicKey> = session.nonce_points().collect();
        let nonces = PublicKey::combine_keys(&nonces).ok()?;
        let output = session.output_key().public_key(Parity::Even);
        // ±(Σz·G − c·Q) = R − T
        let left = output
            .mul_tweak(SECP256K1, &to_secp(&signed(-*session.challenge_scalar(), odd)))
            .and_then(|key| key.add_exp_tweak(SECP256K1, &to_secp(&signed(z, odd))))
            .ok()?;
        (left == nonces).then_some(Self {
            r: session.r(),
            z,
            commitment_odd: odd,
            adaptor: *adaptor,
            output_key: session.output_key(),
            message: *session.message(),
        })
    }

    /// x(R + T) ‖ Σz, 64 bytes.
    pub fn to_bytes(&self) -> [u8; 64] {
        signature_bytes(&self.r, &self.z)
    }

    /// The adaptor point.
    pub const fn adaptor(&self) -> &PublicKey {
        &self.adaptor
    }

    /// The BIP340 signature, given the discrete logarithm of T (32 bytes big-endian); verified under Q.
    pub fn complete(&self, secret: &[u8; 32]) -> Result<[u8; 64], AdaptorError> {
        let key = SecretKey::from_slice(secret).map_err(|_| AdaptorError::Secret)?;
        if PublicKey::from_secret_key(SECP256K1, &key) != self.adaptor {
            return Err(AdaptorError::Secret);
        }
        let secret =
            Option::<Scalar>::from(Scalar::from_repr((*secret).into())).ok_or(AdaptorError::Secret)?;
        let signature = signature_bytes(&self.r, &(self.z + signed(secret, self.commitment_odd)));
        self.verify(&signature)?;
        Ok(signature)
    }

    /// The discrete logarithm of T (32 bytes big-endian) from a completed signature.
    pub fn extract(&self, signature: &[u8; 64]) -> Result<[u8; 32], AdaptorError> {
        self.verify(signature)?;
        let (r, z) = signature.split_at(32);
        let z = <[u8; 32]>::try_from(z).map_err(|_| AdaptorError::Signature)?;
        let z = Option::<Scalar>::from(Scalar::from_repr(z.into())).ok_or(AdaptorError::Signature)?;
        let secret: [u8; 32] = signed(z - self.z, self.commitment_odd).to_bytes().into();
        let key = SecretKey::from_slice(&secret).map_err(|_| AdaptorError::Signature)?;
        if r != self.r || PublicKey::from_secret_key(SECP256K1, &key) != self.adaptor {
            return Err(AdaptorError::Signature);
        }
        Ok(secret)
    }

    fn verify(&self, signature: &[u8; 64]) -> Result<(), AdaptorError> {
        Signature::from_slice(signature)
            .and_then(|s| SECP256K1.verify_schnorr(&s, &Message::from_digest(self.message), &self.output_key))
            .map_err(|_| AdaptorError::Signature)
    }
}
