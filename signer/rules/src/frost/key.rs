//! From a verifying key to its taproot output key.

use bitcoin::secp256k1::{Parity, PublicKey, SECP256K1, XOnlyPublicKey};
use k256::Scalar;

use super::{hash, package::PackageError, scalar::to_secp};

/// What signing needs of a verifying key, computed once per key: the output key of BIP341 with an empty merkle
/// root, its tweak and the two parities.
#[derive(Debug, Clone, Copy)]
pub struct KeyContext {
    verifying_key: PublicKey,
    output: XOnlyPublicKey,
    pub(super) tweak: Scalar,
    pub(super) key_odd: bool,
    pub(super) output_odd: bool,
}

impl KeyContext {
    /// Fails only where the tweak cancels the key, which nobody can arrange without breaking SHA-256.
    pub fn new(verifying_key: PublicKey) -> Result<Self, PackageError> {
        let (internal, parity) = verifying_key.x_only_public_key();
        let tweak = hash::tap_tweak(&internal.serialize());
        let (output, output_parity) =
            internal.add_tweak(SECP256K1, &to_secp(&tweak)).map_err(|_| PackageError::Identity)?;
        Ok(Self {
            verifying_key,
            output,
            tweak,
            key_odd: parity == Parity::Odd,
            output_odd: output_parity == Parity::Odd,
        })
    }

    /// The verifying key `P`.
    pub const fn verifying_key(&self) -> &PublicKey {
        &self.verifying_key
    }

    /// The output key `Q`.
    pub const fn output_key(&self) -> XOnlyPublicKey {
        self.output
    }

    /// The tweak `t`.
    pub const fn tweak(&self) -> &Scalar {
        &self.tweak
    }

    /// The tweak `t`, 32 bytes big-endian.
    pub fn tap_tweak(&self) -> [u8; 32] {
        self.tweak.to_bytes().into()
    }
}

/// Output key of a verifying key: BIP341 with an empty merkle root.
pub fn output_key(verifying_key: &PublicKey) -> XOnlyPublicKey {
    let (internal, _) = verifying_key.x_only_public_key();
    // The tweak cannot cancel a key without breaking SHA-256; then the key itself is unspendable either way.
    KeyContext::new(*verifying_key).map_or(internal, |key| key.output)
}
