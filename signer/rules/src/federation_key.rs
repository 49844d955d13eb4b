//! Federation keys: what signs votes, statements to other operators, and heads of the deletion log.
//!
//! Ed25519, or ECDSA on P-256 where an HSM lacks EdDSA. A key's own bytes say its kind: 32 are an Ed25519 key (RFC 8032),
//! 33 a compressed point on P-256 (SEC 1). Of every statement one form of a signature is accepted: nobody who holds one
//! can make another of it. A signer may still sign one statement twice with different results, so what is counted or
//! remembered is what was said, never a signature.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature as EdSignature, VerifyingKey as EdKey};
use p256::ecdsa::{Signature as EcSignature, VerifyingKey as EcKey, signature::Verifier as _};
use sha2::{Digest as _, Sha256};
use signed_note::Verifier;

/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480).
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Type of plain Ed25519 signatures (C2SP signed-note).
const NOTE_ED25519: &[u8] = &[0x01];
/// Type of timestamped Ed25519 cosignatures (C2SP tlog-cosignature).
const COSIGNATURE_ED25519: &[u8] = &[0x04];
/// Type of the same by a P-256 key. C2SP has none, so this is one of ours, of the form that signed-note has for these.
const COSIGNATURE_P256: &[u8] = b"\xffspark/cosignature/ecdsa-p256/v1";

/// The kinds of federation keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519, verified strictly.
    Ed25519,
    /// ECDSA over SHA-256 on P-256, low S.
    EcdsaP256,
}

impl KeyKind {
    /// Name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256",
        }
    }
}

/// The public half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FederationKey(Bytes);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Bytes {
    Ed25519([u8; 32]),
    P256([u8; 33]),
}

/// Neither an Ed25519 key nor a compressed point on P-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an Ed25519 key of 32 bytes or a compressed P-256 key of 33 bytes")]
pub struct NotAKey;

impl FederationKey {
    /// Parses and checks the key's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAKey> {
        if let Ok(key) = <[u8; 32]>::try_from(bytes) {
            return match EdKey::from_bytes(&key) {
                Ok(parsed) if !parsed.is_weak() => Ok(Self(Bytes::Ed25519(key))),
                _ => Err(NotAKey),
            };
        }
        let key = <[u8; 33]>::try_from(bytes).map_err(|_| NotAKey)?;
        let parsed = EcKey::from_sec1_bytes(&key).map_err(|_| NotAKey)?;
        // SEC 1 has a form of this length without the sign of y: another name of a key is none.
        if parsed.to_encoded_point(true).as_bytes() != key {
            return Err(NotAKey);
        }
        Ok(Self(Bytes::P256(key)))
    }

    /// The bytes that name it everywhere.
    pub const fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Ed25519(key) => key,
            Bytes::P256(key) => key,
        }
    }

    /// Its kind.
    pub const fn kind(&self) -> KeyKind {
        match self.0 {
            Bytes::Ed25519(_) => KeyKind::Ed25519,
            Bytes::P256(_) => KeyKind::EcdsaP256,
        }
    }

    /// Verifies a signature of 64 bytes over `message`: Ed25519 strictly (RFC 8032 without weak keys); ECDSA as r ‖ s with
    /// s in the lower half.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Bytes::Ed25519(key) => EdSignature::from_slice(signature).is_ok_and(|signature| {
                EdKey::from_bytes(key).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
            }),
            Bytes::P256(key) => EcSignature::from_slice(signature).is_ok_and(|signature| {
                signature.normalize_s().is_none()
                    && EcKey::from_sec1_bytes(key).is_ok_and(|key| key.verify(message, &signature).is_ok())
            }),
        }
    }

    /// Id of this key under a name, for signatures over a note's text (C2SP signed-note).
    pub fn note_id(&self, name: &str) -> u32 {
        match &self.0 {
            Bytes::Ed25519(key) => id([name.as_bytes(), b"\n", NOTE_ED25519, key]),
            Bytes::P256(_) => id([self.spki().as_slice(), b"", b"", b""]),
        }
    }

    /// What stands in a note's line for a signature of 64 bytes: itself, or ECDSA in DER. Nothing if it is malformed.
    pub fn note_blob(&self, signature: &[u8; 64]) -> Option<Vec<u8>> {
        match self.0 {
            Bytes::Ed25519(_) => Some(signature.to_vec()),
            Bytes::P256(_) => Some(EcSignature::from_slice(signature).ok()?.to_der().as_bytes().to_vec()),
        }
    }

    /// Verifies what stands in a note's line: the one form that [`Self::note_blob`] gives.
    pub fn note_verifies(&self, text: &[u8], blob: &[u8]) -> bool {
        match self.0 {
            Bytes::Ed25519(_) => self.verifies(text, blob),
            Bytes::P256(_) => EcSignature::from_der(blob).is_ok_and(|signature| {
                signature.to_der().as_bytes() == blob && self.verifies(text, &signature.to_bytes())
            }),
        }
    }

    /// As a verifier of notes, under a name.
    pub fn note_verifier(self, name: &str) -> impl Verifier + use<> {
        NoteKey { name: name.to_owned(), key: self }
    }

    /// Id of this key under a name, for timestamped cosignatures.
    pub fn cosignature_id(&self, name: &str) -> u32 {
        match &self.0 {
            Bytes::Ed25519(key) => id([name.as_bytes(), b"\n", COSIGNATURE_ED25519, key]),
            Bytes::P256(key) => id([name.as_bytes(), b"\n", COSIGNATURE_P256, key]),
        }
    }

    /// SubjectPublicKeyInfo of a P-256 key; nothing for another.
    fn spki(&self) -> Vec<u8> {
        let Bytes::P256(key) = &self.0 else { return Vec::new() };
        let point = EcKey::from_sec1_bytes(key).map(|key| key.to_encoded_point(false));
        point.map(|point| [SPKI_HEAD.as_slice(), point.as_bytes()].concat()).unwrap_or_default()
    }
}

fn id(parts: [&[u8]; 4]) -> u32 {
    let digest = Sha256::digest(parts.concat());
    u32::from_be_bytes(*digest.first_chunk::<4>().unwrap_or(&[0; 4]))
}

struct NoteKey {
    name: String,
    key: FederationKey,
}

impl Verifier for NoteKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.key.note_id(&self.name)
    }

    fn verify(&self, text: &[u8], blob: &[u8]) -> bool {
        self.key.note_verifies(text, blob)
    }
}

/// r ‖ s with s brought into the lower half: what a token's own ECDSA signature becomes. Nothing if it is malformed.
pub fn low_s(signature: &[u8]) -> Option<[u8; 64]> {
    let signature = EcSignature::from_slice(signature).ok()?;
    Some(signature.normalize_s().unwrap_or(signature).to_bytes().into())
}

impl AsRef<[u8]> for FederationKey {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for FederationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for FederationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FederationKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        Self::from_bytes(&hex::decode(text).map_err(|_| NotAKey)?)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer as _;
    use p256::ecdsa::{SigningKey, signature::RandomizedSigner as _};
    use rand::rngs::OsRng;

    use super::*;

    /// RFC 6979, A.2.5: P-256 with SHA-256, message "sample".
    const X: &str = "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6";
    const R: &str = "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716";
    const S: &str = "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8";

    fn known() -> (FederationKey, Vec<u8>) {
        let key: FederationKey = format!("03{X}").parse().unwrap();
        (key, hex::decode(format!("{R}{S}")).unwrap())
    }

    #[test]
    fn a_known_signature_has_one_form() {
        let (key, high) = known();
        assert_eq!(key.kind(), KeyKind::EcdsaP256);
        // The specification's own s is in the upper half.
        assert!(!key.verifies(b"sample", &high));
        let low = low_s(&high).unwrap();
        assert_eq!(low_s(&low), Some(low));
        assert!(key.verifies(b"sample", &low) && !key.verifies(b"Sample", &low));
        for bad in [&low[..63], &[low.as_slice(), &[0]].concat(), &[0; 64], &[0xff; 64]] {
            assert!(!key.verifies(b"sample", bad));
        }
        let other: FederationKey = format!("02{X}").parse().unwrap();
        assert!(!other.verifies(b"sample", &low), "the other point of this x");
    }

    #[test]
    fn a_note_takes_one_der_and_nothing_beside_it() {
        let (key, high) = known();
        let low = low_s(&high).unwrap();
        let blob = key.note_blob(&low).unwrap();
        assert!(key.note_verifies(b"sample", &blob));
        assert!(!key.note_verifies(b"sample", &low), "not bare");
        let high: [u8; 64] = high.try_into().unwrap();
        assert!(!key.note_verifies(b"sample", &key.note_blob(&high).unwrap()), "high s");
        assert!(!key.note_verifies(b"sample", &[blob.as_slice(), &[0]].concat()), "more behind it");
        // r begins with a set bit and so with a zero byte; one more is BER.
        let mut long = blob.clone();
        long[1] += 1;
        long[3] += 1;
        long.insert(4, 0);
        assert!(!key.note_verifies(b"sample", &long), "padded");
        // SHA-256 of the SubjectPublicKeyInfo, whatever the name.
        assert_eq!(key.note_id("a"), key.note_id("b"));
        assert_ne!(key.cosignature_id("a"), key.cosignature_id("b"));
        assert_eq!(key.spki().len(), 91);
    }

    #[test]
    fn a_key_says_its_kind_and_one_text_is_one_key() {
        let ed = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let key = FederationKey::from_bytes(ed.verifying_key().as_bytes()).unwrap();
        assert_eq!((key.kind(), key.to_string().len()), (KeyKind::Ed25519, 64));
        assert_eq!(key.to_string().parse(), Ok(key));
        let signature = ed.sign(b"x").to_bytes();
        assert!(key.verifies(b"x", &signature) && key.note_verifies(b"x", &signature));
        for bad in
            [vec![0; 32], vec![], vec![2; 31], vec![4; 33], vec![2; 65], [&[2][..], &[0xff; 32]].concat()]
        {
            assert_eq!(FederationKey::from_bytes(&bad), Err(NotAKey), "{bad:?}");
        }
        // An uncompressed or hybrid form of the same key is another text: it is refused.
        let ec = EcKey::from(&SigningKey::random(&mut OsRng));
        assert!(FederationKey::from_bytes(ec.to_encoded_point(true).as_bytes()).is_ok());
        assert_eq!(FederationKey::from_bytes(ec.to_encoded_point(false).as_bytes()), Err(NotAKey));
        let compact = [&[5][..], &ec.to_encoded_point(true).as_bytes()[1..]].concat();
        assert_eq!(FederationKey::from_bytes(&compact), Err(NotAKey));
    }

    #[test]
    fn a_token_that_signs_anew_signs_otherwise_and_both_verify() {
        let secret = SigningKey::random(&mut OsRng);
        let public = EcKey::from(&secret).to_encoded_point(true);
        let key = FederationKey::from_bytes(public.as_bytes()).unwrap();
        let sign = || -> [u8; 64] {
            let signature: EcSignature = secret.sign_with_rng(&mut OsRng, b"vote");
            low_s(&signature.to_bytes()).unwrap()
        };
        for _ in 0..20 {
            let (one, two) = (sign(), sign());
            assert_ne!(one, two);
            assert!(key.verifies(b"vote", &one) && key.verifies(b"vote", &two));
        }
    }
}
