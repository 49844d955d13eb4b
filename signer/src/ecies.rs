//! Packages for one recipient: ECIES over secp256k1 with HKDF-SHA256 and AES-256-GCM, as public wallets make them.
//!
//! Layout: ephemeral key (65 bytes, uncompressed) ‖ nonce (16) ‖ tag (16) ‖ ciphertext. The AES key is HKDF without
//! salt and info over the ephemeral key and the shared point, both uncompressed. The nonce has 16 bytes, not 12.

use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{AesGcm, aes::Aes256};
use bitcoin::secp256k1::{PublicKey, SecretKey, ecdh};
use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::SecretScalar;

type Cipher = AesGcm<Aes256, U16>;

const POINT: usize = 65;
const NONCE: usize = 16;
const TAG: usize = 16;
/// First byte of an uncompressed point (SEC 1).
const UNCOMPRESSED: u8 = 4;
/// Bytes that sealing adds.
pub const OVERHEAD: usize = POINT + NONCE + TAG;

/// An envelope that does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EciesError {
    /// Shorter than an empty envelope.
    #[error("envelope has {0} bytes, fewer than 97")]
    Short(usize),
    /// The first byte names another kind of envelope, such as one with a one-time key.
    #[error("envelope of unknown kind {0}")]
    Kind(u8),
    /// The ephemeral key is not on the curve.
    #[error("envelope has an invalid ephemeral key")]
    Ephemeral,
    /// Sealed for another key, or altered.
    #[error("envelope does not open")]
    Open,
    /// A shared x coordinate that no point has.
    #[error("shared secret is no x coordinate")]
    Shared,
}

/// An envelope taken apart; its ephemeral key is valid.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    ephemeral: PublicKey,
    nonce: &'a [u8; NONCE],
    tag: &'a [u8; TAG],
    ciphertext: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes an envelope apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EciesError> {
        match bytes.first() {
            None => return Err(EciesError::Short(0)),
            Some(&kind) if kind != UNCOMPRESSED => return Err(EciesError::Kind(kind)),
            Some(_) => {}
        }
        let short = || EciesError::Short(bytes.len());
        let (point, rest) = bytes.split_first_chunk::<POINT>().ok_or_else(short)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or_else(short)?;
        let (tag, ciphertext) = rest.split_first_chunk::<TAG>().ok_or_else(short)?;
        let ephemeral = PublicKey::from_slice(point).map_err(|_| EciesError::Ephemeral)?;
        Ok(Self { ephemeral, nonce, tag, ciphertext })
    }

    /// The sender's ephemeral key, to multiply with the recipient's secret.
    pub const fn ephemeral(&self) -> &PublicKey {
        &self.ephemeral
    }

    /// Opens with the recipient's secret key.
    pub fn open(&self, recipient: &SecretScalar) -> Result<Zeroizing<Vec<u8>>, EciesError> {
        self.open_with_point(&*shared_point(recipient, &self.ephemeral)?)
    }

    /// Opens with the x coordinate of the shared point, all that `CKM_ECDH1_DERIVE` gives. Both points with this
    /// x are tried; the tag decides.
    pub fn open_with_shared_x(&self, shared_x: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, EciesError> {
        let mut compressed = Zeroizing::new([0u8; 33]);
        compressed[1..].copy_from_slice(shared_x);
        let mut result = Err(EciesError::Shared);
        for prefix in [2, 3] {
            compressed[0] = prefix;
            let point = PublicKey::from_slice(compressed.as_slice()).map_err(|_| EciesError::Shared)?;
            let uncompressed = Zeroizing::new(point.serialize_uncompressed());
            let mut shared = Zeroizing::new([0u8; 64]);
            shared.copy_from_slice(&uncompressed[1..]);
            result = self.open_with_point(&shared);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn open_with_point(&self, shared: &[u8; 64]) -> Result<Zeroizing<Vec<u8>>, EciesError> {
        let mut plaintext = Zeroizing::new(self.ciphertext.to_vec());
        cipher(&self.ephemeral, shared)
            .decrypt_inout_detached(self.nonce.into(), &[], plaintext.as_mut_slice().into(), self.tag.into())
            .map_err(|_| EciesError::Open)?;
        Ok(plaintext)
    }
}

/// Seals `plaintext` for `recipient`.
pub fn seal(
    recipient: &PublicKey,
    plaintext: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Vec<u8>, EciesError> {
    let secret = SecretScalar::random(rng);
    let ephemeral = secret.public_key();
    let shared = shared_point(&secret, recipient)?;
    let mut nonce = [0u8; NONCE];
    rng.fill_bytes(&mut nonce);
    // Encrypted in place, so the plaintext leaves no copy behind.
    let mut sealed = Vec::with_capacity(OVERHEAD + plaintext.len());
    sealed.extend_from_slice(&ephemeral.serialize_uncompressed());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&[0; TAG]);
    sealed.extend_from_slice(plaintext);
    let (head, body) = sealed.split_at_mut(OVERHEAD);
    // Only a plaintext of more than 64 GiB is refused.
    let tag = cipher(&ephemeral, &shared)
        .encrypt_inout_detached(&nonce.into(), &[], body.into())
        .map_err(|_| EciesError::Open)?;
    head[POINT + NONCE..].copy_from_slice(&tag);
    Ok(sealed)
}

fn cipher(ephemeral: &PublicKey, shared: &[u8; 64]) -> Cipher {
    let mut material = Zeroizing::new([0u8; 2 * POINT]);
    material[..POINT].copy_from_slice(&ephemeral.serialize_uncompressed());
    material[POINT] = UNCOMPRESSED;
    material[POINT + 1..].copy_from_slice(shared);
    let mut key = Zeroizing::new([0u8; 32]);
    // HKDF gives up to 255 blocks; one is asked for.
    let expanded = Hkdf::<Sha256>::new(None, material.as_slice()).expand(&[], key.as_mut_slice());
    debug_assert!(expanded.is_ok(), "one block of HKDF");
    Cipher::new((&*key).into())
}

/// x ‖ y of the product.
pub(crate) fn shared_point(
    secret: &SecretScalar,
    public: &PublicKey,
) -> Result<Zeroizing<[u8; 64]>, EciesError> {
    let mut key = SecretKey::from_slice(secret.to_bytes().as_slice()).map_err(|_| EciesError::Shared)?;
    let shared = Zeroizing::new(ecdh::shared_secret_point(public, &key));
    key.non_secure_erase();
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::OsRng;

    fn scalar(bytes: &[u8]) -> SecretScalar {
        SecretScalar::from_bytes(bytes.try_into().unwrap()).unwrap()
    }

    fn shared_x(envelope: &Envelope<'_>, recipient: &SecretScalar) -> [u8; 32] {
        shared_point(recipient, envelope.ephemeral()).unwrap()[..32].try_into().unwrap()
    }

    #[test]
    fn opens_what_public_wallets_seal() {
        let text = include_str!("../rules/tests/vectors/public-sdk.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = vectors["ecies"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
            let (recipient, sealed) = (scalar(&bytes("secret")), bytes("sealed"));
            let envelope = Envelope::parse(&sealed).unwrap();
            assert_eq!(*envelope.open(&recipient).unwrap(), bytes("plaintext"), "{}", case["by"]);
            let x = shared_x(&envelope, &recipient);
            assert_eq!(*envelope.open_with_shared_x(&x).unwrap(), bytes("plaintext"), "{}", case["by"]);
        }
    }

    #[test]
    fn later_kinds_are_named() {
        assert_eq!(Envelope::parse(&[5; 200]).map(|_| ()), Err(EciesError::Kind(5)));
        assert_eq!(Envelope::parse(&[]).map(|_| ()), Err(EciesError::Short(0)));
        assert_eq!(Envelope::parse(&[4; 96]).map(|_| ()), Err(EciesError::Short(96)));
        assert_eq!(Envelope::parse(&[4; 97]).map(|_| ()), Err(EciesError::Ephemeral));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn both_ways_open_and_no_bit_may_change(plaintext: Vec<u8>, secret: u8, flip: prop::sample::Index) {
            let recipient = scalar(&[secret % 0xfe + 1; 32]);
            let mut sealed = seal(&recipient.public_key(), &plaintext, &mut OsRng).unwrap();
            prop_assert_eq!(sealed.len(), plaintext.len() + OVERHEAD);
            let envelope = Envelope::parse(&sealed).unwrap();
            prop_assert_eq!(&*envelope.open(&recipient).unwrap(), &plaintext);
            let x = shared_x(&envelope, &recipient);
            prop_assert_eq!(&*envelope.open_with_shared_x(&x).unwrap(), &plaintext);
            let bit = flip.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Envelope::parse(&sealed).and_then(|e| e.open(&recipient)).is_err());
        }

        #[test]
        fn foreign_bytes_do_not_panic(mut bytes: Vec<u8>, x: [u8; 32]) {
            if let Some(first) = bytes.first_mut() {
                *first = 4;
            }
            if let Ok(envelope) = Envelope::parse(&bytes) {
                prop_assert!(envelope.open_with_shared_x(&x).is_err());
            }
        }
    }
}
