//! Nonce pairs.

use rand_core::{CryptoRng, RngCore};
use spark_rules::frost::{Commitment, nonce_scalar};
use zeroize::Zeroizing;

use crate::secret::SecretScalar;

/// A single-use pair of nonces with its commitment. It can be neither copied, printed nor stored; signing takes it
/// by value and drop erases it.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct NoncePair {
    hiding: SecretScalar,
    binding: SecretScalar,
    commitment: Commitment,
}

impl NoncePair {
    /// A fresh pair. Each nonce is H3(32 random bytes ‖ hedge) as in RFC 9591 section 4.1; a hedge, the key share
    /// or another long-lived secret, protects against a weak generator. The generator must be the operating
    /// system's or one that erases its state (D14).
    pub fn generate(rng: &mut (impl RngCore + CryptoRng), hedge: Option<&SecretScalar>) -> Self {
        let hedge = hedge.map(SecretScalar::to_bytes);
        let hedge: &[u8] = hedge.as_ref().map_or(&[], |bytes| bytes.as_slice());
        let hiding = fresh(rng, hedge);
        let binding = fresh(rng, hedge);
        Self::from_secrets(hiding, binding)
    }

    /// From two scalars, for known-answer tests and imports that guarantee single use themselves.
    pub fn from_secrets(hiding: SecretScalar, binding: SecretScalar) -> Self {
        let commitment = Commitment { hiding: hiding.public_key(), binding: binding.public_key() };
        Self { hiding, binding, commitment }
    }

    /// The public half.
    pub const fn commitment(&self) -> &Commitment {
        &self.commitment
    }

    pub(super) const fn hiding(&self) -> &SecretScalar {
        &self.hiding
    }

    pub(super) const fn binding(&self) -> &SecretScalar {
        &self.binding
    }
}

fn fresh(rng: &mut (impl RngCore + CryptoRng), hedge: &[u8]) -> SecretScalar {
    loop {
        let mut random = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(&mut *random);
        if let Ok(nonce) = SecretScalar::from_scalar(nonce_scalar(&random, hedge)) {
            return nonce;
        }
    }
}
