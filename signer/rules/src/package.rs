//! What user signatures cover: transfer and claim packages, secret ciphers, addresses, challenges.

use std::collections::BTreeMap;

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{Message, PublicKey, SECP256K1};
use bitcoin::{Amount, OutPoint};
use sha2::{Digest as _, Sha256};
use spark_proto::spark::{ClaimPackage, HashVariant, TransferPackage};
use spark_proto::spark_authn::Challenge;
use uuid::Uuid;

use crate::address::Network;
use crate::hash::StructuredHash;
use crate::tx::{StaticRefund, sighash};

/// A statement that its signature does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// Hashed in the legacy way, without domain separation.
    #[error("hash variant must be V2")]
    HashVariant,
    /// Not a lower-case, hyphenated UUID.
    #[error("transfer id must be a lower-case uuid")]
    TransferId,
    /// Neither DER nor 64 bytes, or it does not verify.
    #[error("signature by the identity key is invalid")]
    Signature,
}

/// A transfer's id. Its text is part of what senders sign, so only the canonical form is accepted.
pub fn parse_transfer_id(text: &str) -> Result<Uuid, PackageError> {
    Uuid::try_parse(text)
        .ok()
        .filter(|id| id.as_hyphenated().to_string() == text)
        .ok_or(PackageError::TransferId)
}

/// Hash that the sender signs: transfer id and every operator's ciphertext.
pub fn transfer_payload(transfer_id: &Uuid, key_tweak_package: &BTreeMap<String, Vec<u8>>) -> [u8; 32] {
    payload("transfer", transfer_id, key_tweak_package)
}

/// Hash that the receiver signs in a claim.
pub fn claim_payload(transfer_id: &Uuid, key_tweak_package: &BTreeMap<String, Vec<u8>>) -> [u8; 32] {
    payload("claim", transfer_id, key_tweak_package)
}

fn payload(kind: &str, transfer_id: &Uuid, packages: &BTreeMap<String, Vec<u8>>) -> [u8; 32] {
    StructuredHash::new(&["spark", kind, "signing payload"])
        .bytes(transfer_id.as_bytes())
        .map(packages.iter().map(|(operator, sealed)| (operator.as_str(), sealed.as_slice())))
        .finish()
}

/// Verifies the sender's signature over a transfer package.
pub fn verify_transfer_package(
    transfer_id: &Uuid,
    package: &TransferPackage,
    sender: &PublicKey,
) -> Result<(), PackageError> {
    check_variant(package.hash_variant)?;
    verify_der(&transfer_payload(transfer_id, &package.key_tweak_package), &package.user_signature, sender)
}

/// Verifies the receiver's signature over a claim package.
pub fn verify_claim_package(
    transfer_id: &Uuid,
    package: &ClaimPackage,
    receiver: &PublicKey,
) -> Result<(), PackageError> {
    check_variant(package.hash_variant)?;
    verify_der(&claim_payload(transfer_id, &package.key_tweak_package), &package.user_signature, receiver)
}

fn check_variant(variant: i32) -> Result<(), PackageError> {
    if variant == HashVariant::V2 as i32 { Ok(()) } else { Err(PackageError::HashVariant) }
}

/// Digest that the sender signs per leaf: SHA256(leaf id ‖ transfer id ‖ cipher), both ids as text.
pub fn secret_cipher_digest(leaf_id: &str, transfer_id: &str, secret_cipher: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(leaf_id.as_bytes())
        .chain_update(transfer_id.as_bytes())
        .chain_update(secret_cipher)
        .finalize()
        .into()
}

/// Verifies the sender's signature over a leaf's secret cipher, 64 bytes or DER.
pub fn verify_secret_cipher(
    leaf_id: &str,
    transfer_id: &str,
    secret_cipher: &[u8],
    signature: &[u8],
    sender: &PublicKey,
) -> Result<(), PackageError> {
    let digest = secret_cipher_digest(leaf_id, transfer_id, secret_cipher);
    verify_compact_or_der(&digest, signature, sender)
}

/// Message of the operators' proof that they hold S: BIP340 under S, tweaked without a script tree.
pub fn proof_of_possession(identity: &PublicKey, group_key: &PublicKey, address: &str) -> [u8; 32] {
    StructuredHash::new(&["spark", "deposit", "proof_of_possession"])
        .bytes(&identity.serialize())
        .bytes(&group_key.serialize())
        .text(address)
        .finish()
}

/// Digest that the owner of a static deposit signs to take it back: action, network, txid as text, output, request
/// type 2 (refund), value of the refund, and its sighash. Integers are little-endian, and nothing has a length before
/// it: only the sighash and the txid vary in their bytes, and both have 32.
pub fn static_refund_digest(
    network: Network,
    outpoint: &OutPoint,
    value: Amount,
    sighash: &[u8; 32],
) -> [u8; 32] {
    const REFUND: u8 = 2;
    Sha256::new()
        .chain_update(b"claim_static_deposit")
        .chain_update(network.name().to_lowercase())
        .chain_update(outpoint.txid.to_string())
        .chain_update(outpoint.vout.to_le_bytes())
        .chain_update([REFUND])
        .chain_update(value.to_sat().to_le_bytes())
        .chain_update(sighash)
        .finalize()
        .into()
}

/// Verifies the owner's statement over a refund of his static deposit, DER. Returns the sighash that it holds.
pub fn verify_static_refund(
    network: Network,
    refund: &StaticRefund,
    signature: &[u8],
    owner: &PublicKey,
) -> Result<[u8; 32], PackageError> {
    let spend = refund.spend();
    let sighash = sighash(&refund.build(), std::slice::from_ref(&spend.txout), 0)
        .map_err(|_| PackageError::Signature)?;
    let digest = static_refund_digest(network, &spend.outpoint, refund.value(), &sighash);
    verify_der(&digest, signature, owner)?;
    Ok(sighash)
}

/// Digest of an operator's statement that an address is its federation's.
pub fn address_digest(address: &str) -> [u8; 32] {
    Sha256::digest(address.as_bytes()).into()
}

/// Verifies an operator's address statement, DER.
pub fn verify_address(address: &str, signature: &[u8], operator: &PublicKey) -> Result<(), PackageError> {
    verify_der(&address_digest(address), signature, operator)
}

/// Digest that a login signs: SHA256 of the challenge's protobuf encoding.
pub fn challenge_digest(challenge: &Challenge) -> [u8; 32] {
    use prost::Message as _;
    Sha256::digest(challenge.encode_to_vec()).into()
}

/// Verifies a login's signature, DER.
pub fn verify_challenge(
    challenge: &Challenge,
    signature: &[u8],
    identity: &PublicKey,
) -> Result<(), PackageError> {
    verify_der(&challenge_digest(challenge), signature, identity)
}

/// A challenge's nonce: 16 random bytes, then 16 that bind them to the operator, so that a wallet can refuse a
/// relayed challenge (D24).
pub fn challenge_nonce(operator_identity: &PublicKey, random: [u8; 16]) -> [u8; 32] {
    let bound = StructuredHash::new(&["spark", "authn", "challenge nonce"])
        .bytes(&operator_identity.serialize())
        .bytes(&random)
        .finish();
    let mut nonce = [0; 32];
    nonce[..16].copy_from_slice(&random);
    nonce[16..].copy_from_slice(&bound[..16]);
    nonce
}

/// Whether a challenge's nonce was made by this operator.
pub fn challenge_nonce_is_for(nonce: &[u8], operator_identity: &PublicKey) -> bool {
    match nonce.first_chunk::<16>() {
        Some(random) => challenge_nonce(operator_identity, *random) == nonce,
        None => false,
    }
}

/// Verifies an ECDSA signature in DER over a digest. High-S signatures are accepted: some wallets make them, and
/// nothing here identifies a statement by its signature.
pub fn verify_der(digest: &[u8; 32], signature: &[u8], key: &PublicKey) -> Result<(), PackageError> {
    verify(digest, Signature::from_der(signature), key)
}

/// [`verify_der`] that also takes the 64-byte form.
pub fn verify_compact_or_der(
    digest: &[u8; 32],
    signature: &[u8],
    key: &PublicKey,
) -> Result<(), PackageError> {
    let parsed = if signature.len() == 64 {
        Signature::from_compact(signature)
    } else {
        Signature::from_der(signature)
    };
    verify(digest, parsed, key)
}

fn verify(
    digest: &[u8; 32],
    signature: Result<Signature, secp256k1::Error>,
    key: &PublicKey,
) -> Result<(), PackageError> {
    let mut signature = signature.map_err(|_| PackageError::Signature)?;
    signature.normalize_s();
    SECP256K1
        .verify_ecdsa(&Message::from_digest(*digest), &signature, key)
        .map_err(|_| PackageError::Signature)
}
