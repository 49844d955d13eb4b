//! Keys with which operators sign: Ed25519, or ECDSA over SHA-256 on P-256.

use ed25519_dalek::{Signature, VerifyingKey};
use p256::ecdsa::{Signature as EcSignature, VerifyingKey as EcKey, signature::Verifier as _};
use sha2::{Digest as _, Sha256};

/// SubjectPublicKeyInfo of a key on P-256 up to its point.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Type of a P-256 cosignature: C2SP has none.
const COSIGNATURE_P256: &[u8] = b"\xffspark/cosignature/ecdsa-p256/v1";

/// A key of the federation file.
#[derive(Debug, Clone, PartialEq)]
pub enum Key {
    /// 32 bytes.
    Ed25519(VerifyingKey),
    /// A compressed point, 33 bytes.
    P256(EcKey),
}

impl Key {
    /// From the file's hex; no weak key, no other form of a point.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = hex::decode(text).ok()?;
        match bytes.len() {
            32 => {
                let key = VerifyingKey::from_bytes(bytes.as_slice().try_into().ok()?).ok()?;
                (!key.is_weak()).then_some(Self::Ed25519(key))
            }
            33 => {
                let key = Self::P256(EcKey::from_sec1_bytes(&bytes).ok()?);
                // One key has one name.
                (key.bytes() == bytes).then_some(key)
            }
            _ => None,
        }
    }

    /// The bytes that name it.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.as_bytes().to_vec(),
            Self::P256(key) => key.to_encoded_point(true).as_bytes().to_vec(),
        }
    }

    /// A signature of 64 bytes in its only form: strict Ed25519 (RFC 8032), or r and s with the lower s.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => {
                Signature::from_slice(signature).is_ok_and(|s| key.verify_strict(message, &s).is_ok())
            }
            Self::P256(key) => EcSignature::from_slice(signature)
                .is_ok_and(|s| s.normalize_s().is_none() && key.verify(message, &s).is_ok()),
        }
    }

    /// What a note's line has for it: ECDSA stands there in DER.
    pub fn signed_note(&self, text: &[u8], blob: &[u8]) -> bool {
        match self {
            Self::Ed25519(_) => self.signed(text, blob),
            Self::P256(_) => EcSignature::from_der(blob)
                .is_ok_and(|s| s.to_der().as_bytes() == blob && self.signed(text, &s.to_bytes())),
        }
    }

    /// Key id of plain signatures: types 1 and 2 of C2SP signed-note.
    pub fn note_id(&self, name: &str) -> [u8; 4] {
        match self {
            Self::Ed25519(key) => id(&[name.as_bytes(), b"\n\x01", key.as_bytes()]),
            Self::P256(key) => id(&[&SPKI, key.to_encoded_point(false).as_bytes()]),
        }
    }

    /// Key id of timestamped cosignatures.
    pub fn cosignature_id(&self, name: &str) -> [u8; 4] {
        let kind: &[u8] = match self {
            Self::Ed25519(_) => b"\x04",
            Self::P256(_) => COSIGNATURE_P256,
        };
        id(&[name.as_bytes(), b"\n", kind, &self.bytes()])
    }
}

/// First four bytes of SHA-256.
fn id(parts: &[&[u8]]) -> [u8; 4] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(parts.concat()).into();
    [a, b, c, d]
}
