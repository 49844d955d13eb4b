//! Secret scalars.

use bitcoin::secp256k1::{PublicKey, SECP256K1, SecretKey};
use k256::{
    Scalar,
    elliptic_curve::{Field as _, PrimeField as _},
};
use rand_core::{CryptoRng, RngCore};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes that are no secret scalar: zero, or not below the group order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a scalar between 1 and the group order")]
pub struct SecretError;

/// A non-zero scalar that stays at one heap address, is compared in constant time, never printed, and erased when
/// dropped. Moving it moves a pointer, so no copy stays behind.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct SecretScalar(Box<Forms>);

/// The scalar in the forms of both libraries: k256 computes with it, libsecp256k1 makes its public key.
struct Forms {
    scalar: Scalar,
    key: SecretKey,
}

impl Drop for Forms {
    fn drop(&mut self) {
        self.scalar.zeroize();
        self.key.non_secure_erase();
    }
}

impl SecretScalar {
    /// 32 big-endian bytes; zero and overflow are refused.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SecretError> {
        Option::from(Scalar::from_repr((*bytes).into())).ok_or(SecretError).and_then(Self::from_scalar)
    }

    /// Uniform. The generator must be the operating system's or one that erases its state (D14).
    pub fn random(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        loop {
            let scalar = Zeroizing::new(Scalar::random(&mut *rng));
            if let Ok(secret) = Self::from_scalar(*scalar) {
                return secret;
            }
        }
    }

    pub(crate) fn from_scalar(scalar: Scalar) -> Result<Self, SecretError> {
        let scalar = Zeroizing::new(scalar);
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(scalar.to_bytes().into());
        let mut key = SecretKey::from_slice(&*bytes).map_err(|_| SecretError)?;
        let secret = Self(Box::new(Forms { scalar: *scalar, key }));
        key.non_secure_erase();
        Ok(secret)
    }

    pub(crate) const fn scalar(&self) -> &Scalar {
        &self.0.scalar
    }

    /// The scalar times G, by libsecp256k1's blinded, constant-time routine.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_secret_key(SECP256K1, &self.0.key)
    }

    /// The sum modulo the group order; fails where it is zero.
    pub fn add(&self, other: &Self) -> Result<Self, SecretError> {
        Self::from_scalar(self.scalar() + other.scalar())
    }

    /// The difference modulo the group order; fails where it is zero.
    pub fn sub(&self, other: &Self) -> Result<Self, SecretError> {
        Self::from_scalar(self.scalar() - other.scalar())
    }

    /// 32 big-endian bytes.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.scalar().to_bytes().into())
    }

    /// Equality in constant time.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.scalar().ct_eq(other.scalar()).into()
    }
}
