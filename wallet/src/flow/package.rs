//! The package of a send: refunds to the receivers, secrets for them, tweaks for the operators.

use bitcoin::secp256k1::PublicKey;
use rand::rngs::OsRng;
use spark_proto::spark::{
    HashVariant, SenderTransferPackage, StartTransferRequest, StartTransferV3Request, TransferPackage,
};
use spark_rules::{
    ids::TransferId,
    package, point,
    tx::{Basis, LEAST_REFUND_STEP, Plan, Purpose as Of, Source, TimelockError},
    vote::Kind,
};
use spark_signer::secret::SecretScalar;

use crate::{
    Wallet, WalletError,
    recipients::Purpose,
    seal,
    signing::{CommitmentSets, job},
    state::{SendRecord, Wire},
    tweak::{LeafTweak, seal_send},
    verify::{Node, VerifyError},
    wallet::now,
};

impl Wallet {
    /// Builds the request of a send anew, with fresh keys and commitments.
    pub(super) async fn build_request(&self, record: &mut SendRecord) -> Result<(), WalletError> {
        let mut to = Vec::with_capacity(record.leaves.len());
        for part in record.parts() {
            let receiver = hex::decode(&part.receiver).unwrap_or_default();
            let receiver = point::parse("receiver", &receiver).map_err(VerifyError::from)?;
            to.extend(part.leaves.into_iter().map(|leaf| (leaf, receiver)));
        }
        let package = self.transfer_package(&record.transfer_id, &to).await?;
        let transfer_id = record.transfer_id.clone();
        let owner = self.keys().identity().public_key().serialize().to_vec();
        if record.shares.is_empty() {
            let receiver = to.first().ok_or(WalletError::Answer("a leaf"))?.1;
            record.request = Wire::of(&StartTransferRequest {
                transfer_id,
                owner_identity_public_key: owner,
                receiver_identity_public_key: receiver.serialize().to_vec(),
                transfer_package: Some(package),
                spark_invoice: record.invoice.clone(),
                ..Default::default()
            });
        } else {
            let receivers = to.iter().map(|(leaf, receiver)| (leaf.clone(), receiver.serialize().to_vec()));
            record.many = Some(Wire::of(&StartTransferV3Request {
                transfer_id,
                sender_packages: vec![SenderTransferPackage {
                    owner_identity_public_key: owner,
                    transfer_package: Some(package),
                    receiver_identity_public_keys: receivers.collect(),
                }],
                expiry_time: None,
            }));
        }
        record.built = now();
        Ok(())
    }

    /// A package that gives each leaf to its receiver.
    async fn transfer_package(
        &self,
        id: &str,
        to: &[(String, PublicKey)],
    ) -> Result<TransferPackage, WalletError> {
        let leaves: Vec<String> = to.iter().map(|(leaf, _)| leaf.clone()).collect();
        let federation = &self.config().federation;
        let nodes = self.agreed_nodes(&leaves).await?;
        let (sets, recipients) = tokio::try_join!(self.commitments(leaves.clone(), 3, 0), self.recipients())?;
        let mut package = TransferPackage { hash_variant: HashVariant::V2 as i32, ..Default::default() };
        let mut tweaks = Vec::with_capacity(leaves.len());
        for ((leaf_id, receiver), mut sets) in to.iter().zip(CommitmentSets::by_leaf(sets, 3, leaves.len())?)
        {
            let node = Node::parse(nodes.get(leaf_id).ok_or(WalletError::Answer("a leaf"))?)?;
            let old = self.keys().leaf(&node.id)?;
            let plan = send_plan(&node, receiver)?;
            for planned in plan.transactions() {
                let job = job(leaf_id, planned, &old, &node.verifying_key, &mut sets, federation)?;
                match planned.purpose() {
                    Of::Refund => package.leaves_to_send.push(job),
                    Of::DirectRefund => package.direct_leaves_to_send.push(job),
                    _ => package.direct_from_cpfp_leaves_to_send.push(job),
                }
            }
            let new = SecretScalar::random(&mut OsRng);
            let cipher = seal::seal(receiver, &*new.to_bytes()).map_err(crate::TweakError::from)?;
            let digest = package::secret_cipher_digest(leaf_id, id, &cipher);
            let signature = self.keys().identity().sign_ecdsa(digest)?.serialize_compact().to_vec();
            tweaks.push(
                LeafTweak::new(leaf_id.clone(), old.secret(), &new, federation)?
                    .with_cipher(cipher, signature),
            );
        }
        let uuid = package::parse_transfer_id(id).map_err(VerifyError::from)?;
        let (transfer, owner) =
            (TransferId::from_bytes(*uuid.as_bytes()), self.keys().identity().public_key());
        let purpose = Purpose { kind: Kind::Send, transfer, owner };
        package.key_tweak_package = seal_send(&tweaks, federation, &recipients, &purpose)?;
        let digest = package::transfer_payload(&uuid, &package.key_tweak_package);
        package.user_signature = self.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec();
        Ok(package)
    }
}

/// Refunds one step below the present ones, to the receiver's identity key.
fn send_plan(node: &Node, receiver: &PublicKey) -> Result<Plan, VerifyError> {
    let present = node.refund_timelock()?;
    let step = present.step_down()?;
    if step < LEAST_REFUND_STEP {
        return Err(TimelockError::Exhausted(present.blocks()).into());
    }
    let basis = Basis { node: node.spend()?, direct_node: node.direct_spend()? };
    Ok(Plan::refunds(Source::Build, &basis, receiver, step)?)
}
