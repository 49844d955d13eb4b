//! The package of a send: refunds to the receivers, secrets for them, tweaks for the operators.

use std::collections::BTreeMap;

use bitcoin::{hashes::Hash as _, secp256k1::PublicKey};
use rand::rngs::OsRng;
use spark_proto::spark::{
    CooperativeExitRequest, HashVariant, InitiatePreimageSwapRequest, InvoiceAmount, SenderTransferPackage,
    StartTransferRequest, StartTransferV3Request, TransferPackage,
};
use spark_rules::{
    ids::TransferId,
    package, point,
    tx::{Basis, Connectors, Htlc, LEAST_REFUND_STEP, Plan, Purpose as Of, Source, Spend, TimelockError},
    vote::Kind,
};
use spark_signer::secret::SecretScalar;
use uuid::Uuid;

use crate::{
    Wallet, WalletError,
    recipients::Purpose,
    seal,
    signing::{CommitmentSets, job},
    state::{SendRecord, SendState, Wire},
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
        let htlc = self.htlc_of(record)?;
        let connectors = match &record.exit {
            Some(terms) => {
                let raw = hex::decode(&terms.connector_tx).unwrap_or_default();
                Some((Connectors::parse(&raw).map_err(VerifyError::from)?, raw))
            }
            None => None,
        };
        let shape = match (&htlc, &connectors) {
            (Some(htlc), _) => Shape::Htlc(htlc),
            (None, Some((connectors, _))) => Shape::Exit(connectors.outputs()),
            (None, None) => Shape::Plain,
        };
        let (package, steps) =
            self.transfer_package(&record.transfer_id, &to, shape, record.step_over).await?;
        let transfer_id = record.transfer_id.clone();
        let owner = self.keys().identity().public_key().serialize().to_vec();
        if record.shares.is_empty() {
            let receiver = to.first().ok_or(WalletError::Answer("a leaf"))?.1.serialize().to_vec();
            let mut request = StartTransferRequest {
                transfer_id,
                owner_identity_public_key: owner,
                receiver_identity_public_key: receiver.clone(),
                transfer_package: Some(package),
                spark_invoice: record.invoice.clone(),
                ..Default::default()
            };
            if let (Some(terms), Some(htlc)) = (&record.htlc, &htlc) {
                let seconds = i64::try_from(terms.expires).unwrap_or(i64::MAX);
                request.expiry_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
                let amount = InvoiceAmount { value_sats: record.amount, invoice_amount_proof: None };
                record.swap = Some(Wire::of(&InitiatePreimageSwapRequest {
                    payment_hash: htlc.payment_hash().to_vec(),
                    invoice_amount: Some(amount),
                    receiver_identity_public_key: receiver,
                    transfer_request: Some(request),
                    ..Default::default()
                }));
            } else if let (Some(terms), Some((connectors, raw))) = (&mut record.exit, connectors) {
                let seconds = i64::try_from(terms.expires).unwrap_or(i64::MAX);
                request.expiry_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
                terms.steps = steps;
                // In the order in which it is shown.
                let mut exit_txid = connectors.exit().txid.to_byte_array().to_vec();
                exit_txid.reverse();
                record.coop = Some(Wire::of(&CooperativeExitRequest {
                    transfer: Some(request),
                    exit_id: Uuid::now_v7().as_hyphenated().to_string(),
                    exit_txid,
                    connector_tx: raw,
                }));
            } else {
                record.request = Wire::of(&request);
            }
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

    /// What completes a send, where a preimage does.
    pub(super) fn htlc_of(&self, record: &SendRecord) -> Result<Option<Htlc>, WalletError> {
        let Some(terms) = &record.htlc else { return Ok(None) };
        let receiver = hex::decode(&record.receiver).unwrap_or_default();
        let receiver = point::parse("receiver", &receiver).map_err(VerifyError::from)?;
        let hash: Result<[u8; 32], _> = hex::FromHex::from_hex(&terms.payment_hash);
        let hash = hash.map_err(|_| WalletError::Answer("the stored request"))?;
        Ok(Some(Htlc::new(hash, receiver, self.keys().identity().public_key())))
    }

    /// A package that gives each leaf to its receiver, or to whoever its shape says, and the steps of its refunds.
    async fn transfer_package(
        &self,
        id: &str,
        to: &[(String, PublicKey)],
        shape: Shape<'_>,
        step_over: bool,
    ) -> Result<(TransferPackage, Vec<u16>), WalletError> {
        let leaves: Vec<String> = to.iter().map(|(leaf, _)| leaf.clone()).collect();
        let federation = &self.config().federation;
        let nodes = self.agreed_nodes(&leaves).await?;
        let (sets, recipients) = tokio::try_join!(self.commitments(leaves.clone(), 3, 0), self.recipients())?;
        let mut package = TransferPackage { hash_variant: HashVariant::V2 as i32, ..Default::default() };
        let mut tweaks = Vec::with_capacity(leaves.len());
        let mut steps = Vec::with_capacity(leaves.len());
        let used = self.used_steps()?;
        for (position, ((leaf_id, receiver), mut sets)) in
            to.iter().zip(CommitmentSets::by_leaf(sets, 3, leaves.len())?).enumerate()
        {
            let node = Node::parse(nodes.get(leaf_id).ok_or(WalletError::Answer("a leaf"))?)?;
            let old = self.keys().leaf(&node.id)?;
            let used = used.get(leaf_id).map(Vec::as_slice).unwrap_or_default();
            let plan = send_plan(&node, receiver, shape, position, used, step_over)?;
            steps.extend(plan.transactions().first().map(|planned| planned.template.step().blocks()));
            for planned in plan.transactions() {
                let job = job(leaf_id, planned, &old, &node.verifying_key, &mut sets, federation)?;
                match planned.purpose() {
                    Of::Refund | Of::HtlcRefund | Of::ConnectorRefund => package.leaves_to_send.push(job),
                    Of::DirectRefund | Of::HtlcDirectRefund | Of::ConnectorDirectRefund => {
                        package.direct_leaves_to_send.push(job);
                    }
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
        let kind = match shape {
            Shape::Plain => Kind::Send,
            Shape::Htlc(_) => Kind::Htlc,
            Shape::Exit(_) => Kind::CoopExit,
        };
        let purpose = Purpose { kind, transfer, owner };
        package.key_tweak_package = seal_send(&tweaks, federation, &recipients, &purpose)?;
        let digest = package::transfer_payload(&uuid, &package.key_tweak_package);
        package.user_signature = self.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec();
        Ok((package, steps))
    }

    /// Steps at which exits of a leaf were signed that may have come back: no signer signs another refund at them.
    fn used_steps(&self) -> Result<BTreeMap<String, Vec<u16>>, WalletError> {
        let mut used: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        for send in self.state().all::<SendRecord>()?.into_iter().filter(|s| s.state == SendState::Done) {
            for (leaf, step) in send.leaves.iter().zip(send.exit.iter().flat_map(|terms| &terms.steps)) {
                used.entry(leaf.clone()).or_default().push(*step);
            }
        }
        Ok(used)
    }
}

/// What completes a send.
#[derive(Debug, Clone, Copy)]
enum Shape<'a> {
    /// Nothing else.
    Plain,
    /// A preimage.
    Htlc(&'a Htlc),
    /// A payment on chain; leaf by leaf a connector.
    Exit(&'a [Spend]),
}

/// Refunds one step below the present ones, or below those in `used`, one more with `step_over` if there is one, to the receiver's identity key, or to whom a
/// preimage or time says.
fn send_plan(
    node: &Node,
    receiver: &PublicKey,
    shape: Shape<'_>,
    position: usize,
    used: &[u16],
    step_over: bool,
) -> Result<Plan, VerifyError> {
    let present = node.refund_timelock()?;
    let mut step = present.step_down()?;
    if step_over {
        step = step.step_down().ok().filter(|lower| *lower >= LEAST_REFUND_STEP).unwrap_or(step);
    }
    while used.contains(&step.blocks()) {
        step = step.step_down()?;
    }
    if step < LEAST_REFUND_STEP {
        return Err(TimelockError::Exhausted(present.blocks()).into());
    }
    let basis = Basis { node: node.spend()?, direct_node: node.direct_spend()? };
    Ok(match shape {
        Shape::Plain => Plan::refunds(Source::Build, &basis, receiver, step)?,
        Shape::Htlc(htlc) => Plan::htlc(Source::Build, &basis, htlc, step)?,
        Shape::Exit(connectors) => {
            let connector = connectors.get(position).ok_or(VerifyError::Field("connector_tx"))?;
            Plan::exit(Source::Build, &basis, connector, receiver, step)?
        }
    })
}
