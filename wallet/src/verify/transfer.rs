use bitcoin::secp256k1::{PublicKey, SECP256K1};
use spark_proto::spark::{Transfer, TransferType};
use spark_rules::{
    package, point,
    tx::{Htlc, Timelock},
};
use spark_signer::secret::SecretScalar;

use super::{
    Node, VerifyError,
    refunds::{To, intermediate_refunds},
};
use crate::keys::SigningKey;

/// A leaf of an incoming transfer, verified and opened.
pub struct Incoming {
    /// As the coordinator describes it.
    pub node: Node,
    /// d: with it, and the operators, the leaf is this wallet's.
    pub secret: SecretScalar,
    /// Step of the intermediate refund.
    pub step: Timelock,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("node", &self.node).field("step", &self.step).finish_non_exhaustive()
    }
}

/// Checks an incoming transfer: the sender's signature over each leaf's cipher, the intermediate refunds to this
/// wallet's identity key, or to `htlc` where a preimage completed it, and that the opened secret and the operators' key make the leaf's key.
pub fn incoming(
    transfer: &Transfer,
    identity: &SigningKey,
    htlc: Option<&Htlc>,
) -> Result<Vec<Incoming>, VerifyError> {
    let sender = point::parse("sender_identity_public_key", &transfer.sender_identity_public_key)?;
    package::parse_transfer_id(&transfer.id)?;
    if transfer.receiver_identity_public_key != identity.public_key().serialize() {
        return Err(VerifyError::Field("receiver_identity_public_key"));
    }
    if transfer.leaves.is_empty() {
        return Err(VerifyError::Field("leaves"));
    }
    let mut total = 0u64;
    let mut opened = Vec::with_capacity(transfer.leaves.len());
    for leaf in &transfer.leaves {
        let node = Node::parse(leaf.leaf.as_ref().ok_or(VerifyError::Field("leaf"))?)?;
        if opened.iter().any(|other: &Incoming| other.node.id == node.id) {
            return Err(VerifyError::Field("leaves"));
        }
        package::verify_secret_cipher(
            &node.id.to_string(),
            &transfer.id,
            &leaf.secret_cipher,
            &leaf.signature,
            &sender,
        )?;
        let own = identity.public_key();
        let to = match htlc {
            Some(htlc) => To::Htlc(htlc),
            None if transfer.r#type() == TransferType::CooperativeExit => To::Connector(&own),
            None => To::Key(&own),
        };
        let step = intermediate_refunds(&node, leaf, to)?;
        let secret = open(&leaf.secret_cipher, identity)?;
        if !makes(&secret.public_key(), &node) {
            return Err(VerifyError::Garbage("the secret does not belong to the leaf"));
        }
        total = total.saturating_add(node.value);
        opened.push(Incoming { node, secret, step });
    }
    if total != transfer.total_value {
        return Err(VerifyError::Field("total_value"));
    }
    Ok(opened)
}

fn makes(user_key: &PublicKey, node: &Node) -> bool {
    user_key.combine(&node.group_key) == Ok(node.verifying_key)
        && node.verifying_key.combine(&user_key.negate(SECP256K1)) == Ok(node.group_key)
}

fn open(cipher: &[u8], identity: &SigningKey) -> Result<SecretScalar, VerifyError> {
    let garbage = VerifyError::Garbage("the cipher does not open");
    let plain = crate::seal::open(identity, cipher).map_err(|_| garbage.clone())?;
    let bytes: &[u8; 32] = plain.as_slice().try_into().map_err(|_| garbage.clone())?;
    SecretScalar::from_bytes(bytes).map_err(|_| garbage)
}
