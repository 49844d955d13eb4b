//! Envelopes sealed to a one-time key of a signer: ECIES over secp256k1 with HKDF-SHA256 and AES-256-GCM.
//!
//! Key and nonce are HKDF without salt over the shared point (x ‖ y), its info the header, the recipient's key and
//! what the envelope is for (`spark_rules::package_key::binding`). Both are fresh with every ephemeral key. The layout is
//! `spark_rules::package_key`'s.

use aes_gcm::{
    Aes256Gcm,
    aead::{AeadInOut as _, KeyInit as _},
};
use bitcoin::secp256k1::PublicKey;
use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use spark_rules::package_key::{Envelope, KeyId, ONE_TIME, OVERHEAD};
use zeroize::Zeroizing;

use crate::{
    ecies::{EciesError, shared_point},
    secret::SecretScalar,
};

const DOMAIN: &[u8] = b"spark/package/one-time/v1";
const TAG: usize = 16;

/// Seals `plaintext` to the key of this name, for what `binding` says.
pub fn seal(
    key_id: &KeyId,
    key: &PublicKey,
    binding: &[u8; 32],
    plaintext: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Vec<u8>, EciesError> {
    let secret = SecretScalar::random(rng);
    let shared = shared_point(&secret, key)?;
    let mut sealed = Vec::with_capacity(OVERHEAD + plaintext.len());
    sealed.push(ONE_TIME);
    sealed.extend_from_slice(key_id);
    sealed.extend_from_slice(&secret.public_key().serialize());
    let (cipher, nonce) = cipher(&sealed, key, binding, &shared)?;
    let at = sealed.len();
    sealed.extend_from_slice(&[0; TAG]);
    // Encrypted in place, so the plaintext leaves no copy behind.
    sealed.extend_from_slice(plaintext);
    let (header, rest) = sealed.split_at_mut(at);
    let (tag, body) = rest.split_first_chunk_mut::<TAG>().ok_or(EciesError::Open)?;
    let made =
        cipher.encrypt_inout_detached((&*nonce).into(), header, body.into()).map_err(|_| EciesError::Open)?;
    tag.copy_from_slice(&made);
    Ok(sealed)
}

/// Opens an envelope with the secret half of its key. Fails where it was sealed for something else.
pub fn open(
    envelope: &Envelope<'_>,
    secret: &SecretScalar,
    binding: &[u8; 32],
) -> Result<Zeroizing<Vec<u8>>, EciesError> {
    let shared = shared_point(secret, &envelope.ephemeral)?;
    let (cipher, nonce) = cipher(envelope.header, &secret.public_key(), binding, &shared)?;
    let mut plaintext = Zeroizing::new(envelope.ciphertext.to_vec());
    cipher
        .decrypt_inout_detached(
            (&*nonce).into(),
            envelope.header,
            plaintext.as_mut_slice().into(),
            envelope.tag.into(),
        )
        .map_err(|_| EciesError::Open)?;
    Ok(plaintext)
}

fn cipher(
    header: &[u8],
    recipient: &PublicKey,
    binding: &[u8; 32],
    shared: &[u8; 64],
) -> Result<(Aes256Gcm, Zeroizing<[u8; 12]>), EciesError> {
    let info = [DOMAIN, header, &recipient.serialize(), binding].concat();
    let mut material = Zeroizing::new([0u8; 32 + 12]);
    Hkdf::<Sha256>::new(None, shared).expand(&info, material.as_mut_slice()).map_err(|_| EciesError::Open)?;
    let (key, rest) = material.split_first_chunk::<32>().ok_or(EciesError::Open)?;
    let mut nonce = Zeroizing::new([0u8; 12]);
    nonce.copy_from_slice(rest);
    Ok((Aes256Gcm::new(key.into()), nonce))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::OsRng;
    use spark_rules::package_key::PackageKeyError;

    use super::*;

    const CAPTURED: &str = include_str!("../tests/data/one-time-envelope.hex");

    fn key(byte: u8) -> SecretScalar {
        SecretScalar::from_bytes(&[byte; 32]).unwrap()
    }

    /// Bytes as a wallet once sent them: the layout and the derivation of its key are a protocol.
    #[test]
    fn a_captured_envelope_opens() {
        let sealed = hex::decode(CAPTURED.trim()).unwrap();
        let envelope = Envelope::parse(&sealed).unwrap();
        assert_eq!(envelope.key_id, [7; 16]);
        assert_eq!(*open(&envelope, &key(42), &[8; 32]).unwrap(), b"a tweak for one operator");
    }

    #[test]
    fn only_its_key_opens_it_and_only_for_its_purpose() {
        let sealed = seal(&[7; 16], &key(42).public_key(), &[8; 32], b"tweak", &mut OsRng).unwrap();
        let envelope = Envelope::parse(&sealed).unwrap();
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        assert_eq!(*open(&envelope, &key(42), &[8; 32]).unwrap(), b"tweak");
        assert_eq!(open(&envelope, &key(43), &[8; 32]), Err(EciesError::Open));
        assert_eq!(open(&envelope, &key(42), &[9; 32]), Err(EciesError::Open));
        assert_eq!(crate::ecies::Envelope::parse(&sealed).map(drop), Err(EciesError::Kind(ONE_TIME)));
    }

    #[test]
    fn other_bytes_are_named() {
        let parse = |bytes: &[u8]| Envelope::parse(bytes).map(drop);
        assert_eq!(parse(&[]), Err(PackageKeyError::Short(0)));
        assert_eq!(parse(&[4; 200]), Err(PackageKeyError::Kind(4)));
        assert_eq!(parse(&[1; OVERHEAD - 1]), Err(PackageKeyError::Short(OVERHEAD - 1)));
        assert_eq!(parse(&[1; OVERHEAD]), Err(PackageKeyError::Ephemeral));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bit_may_change(plaintext: Vec<u8>, flip: prop::sample::Index) {
            let mut sealed = seal(&[7; 16], &key(42).public_key(), &[8; 32], &plaintext, &mut OsRng).unwrap();
            prop_assert_eq!(&*open(&Envelope::parse(&sealed).unwrap(), &key(42), &[8; 32]).unwrap(), &plaintext);
            let bit = flip.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(envelope) = Envelope::parse(&sealed) {
                prop_assert!(open(&envelope, &key(42), &[8; 32]).is_err());
            }
        }
    }
}
