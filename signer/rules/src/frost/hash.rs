//! Hashes of the ciphersuite FROST-secp256k1-SHA256-TR-v1 (RFC 9591 section 6.5 with its own context string).

use k256::{
    Scalar,
    elliptic_curve::hash2curve::{ExpandMsgXmd, hash_to_field},
};
use secp256k1::hashes::{Hash as _, HashEngine as _, sha256};

use super::scalar::reduce;

const CONTEXT: &[u8] = b"FROST-secp256k1-SHA256-TR-v1";

fn hash_to_scalar(message: &[&[u8]], purpose: &[u8]) -> Scalar {
    let mut out = [Scalar::ZERO];
    // The only errors of expand_message_xmd are an over-long output and an empty domain; both are fixed here.
    // Were it ever to fail, zero would be refused by every caller's multiplication.
    if hash_to_field::<ExpandMsgXmd<sha2::Sha256>, Scalar>(message, &[CONTEXT, purpose], &mut out).is_err() {
        return Scalar::ZERO;
    }
    let [scalar] = out;
    scalar
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    for part in parts {
        engine.input(part);
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

/// H1: the binding factor of one participant.
pub(super) fn binding_factor(prefix: &[u8], identifier: &[u8; 32]) -> Scalar {
    hash_to_scalar(&[prefix, identifier], b"rho")
}

/// H3: a nonce from 32 fresh random bytes, hedged with a secret (RFC 9591 section 4.1). The result is secret.
pub fn nonce_scalar(random: &[u8; 32], hedge: &[u8]) -> Scalar {
    hash_to_scalar(&[random, hedge], b"nonce")
}

/// H4: digest of the message.
pub(super) fn message(message: &[u8; 32]) -> [u8; 32] {
    sha256(&[CONTEXT, b"msg", message])
}

/// H5: digest of the encoded commitment list.
pub(super) fn commitments(list: &[u8]) -> [u8; 32] {
    sha256(&[CONTEXT, b"com", list])
}

/// HDKG: the challenge of a DKG proof of knowledge over identifier, constant term and nonce point.
pub fn dkg_challenge(identifier: &[u8; 32], constant: &[u8; 33], nonce: &[u8; 33]) -> Scalar {
    hash_to_scalar(&[identifier, constant, nonce], b"dkg")
}

/// The BIP340 challenge over x(R), x(Q) and the message.
pub(super) fn challenge(r: &[u8; 32], q: &[u8; 32], message: &[u8; 32]) -> Scalar {
    tagged(b"BIP0340/challenge", &[r, q, message])
}

/// The BIP341 tweak of an internal key without a script path.
pub(super) fn tap_tweak(internal: &[u8; 32]) -> Scalar {
    tagged(b"TapTweak", &[internal])
}

fn tagged(tag: &[u8], parts: &[&[u8]]) -> Scalar {
    let tag = sha256(&[tag]);
    let mut engine = sha256::Hash::engine();
    engine.input(&tag);
    engine.input(&tag);
    for part in parts {
        engine.input(part);
    }
    reduce(&sha256::Hash::from_engine(engine).to_byte_array())
}
