use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, schnorr};
use spark_proto::spark::DepositAddressProof;
use spark_rules::{
    address::{Network, is_deposit_address},
    federation::Federation,
    frost::output_key,
    package, point,
};

use super::VerifyError;

/// A verified deposit address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepositAddress {
    /// P2TR(P).
    pub address: String,
    /// P = S + D.
    pub verifying_key: PublicKey,
    /// S.
    pub group_key: PublicKey,
}

/// Checks that `address` is P2TR of P = S + D, that every operator vouches for it by its identity key, and that
/// the operators together hold S.
pub fn deposit_address(
    address: &str,
    verifying_key: &[u8],
    proof: &DepositAddressProof,
    user_key: &PublicKey,
    identity: &PublicKey,
    network: Network,
    federation: &Federation,
) -> Result<DepositAddress, VerifyError> {
    let verifying_key = point::parse("verifying_key", verifying_key)?;
    let group_key = verifying_key.combine(&user_key.negate(SECP256K1)).map_err(|_| VerifyError::KeySum)?;
    if !is_deposit_address(address, &verifying_key, network) {
        return Err(VerifyError::Address);
    }
    for member in federation.members() {
        proof
            .address_signatures
            .get(&member.index.identifier_hex())
            .filter(|signature| package::verify_address(address, signature, &member.identity).is_ok())
            .ok_or(VerifyError::AddressSignature(member.index.get()))?;
    }
    let message = Message::from_digest(package::proof_of_possession(identity, &group_key, address));
    let signature = schnorr::Signature::from_slice(&proof.proof_of_possession_signature)
        .map_err(|_| VerifyError::Possession)?;
    SECP256K1
        .verify_schnorr(&signature, &message, &output_key(&group_key))
        .map_err(|_| VerifyError::Possession)?;
    Ok(DepositAddress { address: address.to_owned(), verifying_key, group_key })
}
