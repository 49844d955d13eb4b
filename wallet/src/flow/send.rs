use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use rand::rngs::OsRng;
use spark_proto::spark::{
    HashVariant, StartTransferRequest, Transfer, TransferPackage, TransferStatus,
    transfer_filter::Participant,
};
use spark_rules::{
    address::SparkAddress,
    package, point,
    tx::{Basis, LEAST_REFUND_STEP, Plan, Purpose, Source, TimelockError},
};
use spark_signer::secret::SecretScalar;
use tonic::Code;
use uuid::Uuid;

use super::sync::LeafView;
use crate::{
    Wallet, WalletError, seal, select,
    signing::{CommitmentSets, job},
    state::{SendRecord, SendState, Wire},
    tweak::{LeafTweak, seal_send},
    verify::{Node, VerifyError},
    wallet::now,
};

/// Times that a request is built anew after the operators proved an abort.
const ATTEMPTS: u32 = 4;
/// Times that the same bytes are sent again while no answer comes.
const REPEATS: u32 = 5;

/// A transfer that all operators have applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// UUID.
    pub transfer_id: String,
    /// Satoshis.
    pub amount: u64,
    /// Leaves that left.
    pub leaves: Vec<String>,
    /// Receiver's identity key.
    pub receiver: String,
}

enum Outcome {
    Done,
    /// The leaves were not available: this attempt has a proof of abort, or another operation holds them.
    Aborted(String),
}

impl Wallet {
    /// Sends exactly `amount` satoshis. The same `id` with the same receiver and amount is the same transfer, also
    /// after a crash: the stored request is sent again.
    pub async fn send(&self, to: &SparkAddress, amount: u64, id: Option<Uuid>) -> Result<Sent, WalletError> {
        if to.network != self.config().network {
            return Err(WalletError::Refused(format!("the address is for {}", to.network)));
        }
        to.verify()?;
        let id = id.unwrap_or_else(Uuid::now_v7).as_hyphenated().to_string();
        let record = match self.state().get::<SendRecord>(&id)? {
            Some(record) if record.amount != amount || record.receiver != to.identity.to_string() => {
                return Err(WalletError::Refused(format!("{id} is another transfer")));
            }
            Some(record) if record.state == SendState::Failed => {
                return Err(WalletError::Refused(format!("{id} failed before; use another id")));
            }
            Some(record) => record,
            None => {
                let leaves = self.choose(amount).await?;
                let request = self.transfer_request(&id, &to.identity, &leaves).await?;
                let record = SendRecord {
                    transfer_id: id,
                    receiver: to.identity.to_string(),
                    amount,
                    leaves,
                    request: Wire::of(&request),
                    attempt: 0,
                    state: SendState::Pending,
                    created: now(),
                };
                self.state().put(&record)?;
                record
            }
        };
        self.finish_send(record).await
    }

    /// Finishes the sends that a crash or an outage interrupted. One that fails stays pending and does not stop
    /// the others; its error comes with its id.
    pub async fn resume_sends(&self) -> Result<Vec<Result<Sent, (String, WalletError)>>, WalletError> {
        let mut outcomes = Vec::new();
        for record in self.state().all::<SendRecord>()? {
            if record.state == SendState::Pending {
                let id = record.transfer_id.clone();
                outcomes.push(self.finish_send(record).await.map_err(|error| (id, error)));
            }
        }
        Ok(outcomes)
    }

    async fn finish_send(&self, mut record: SendRecord) -> Result<Sent, WalletError> {
        while record.state == SendState::Pending {
            match self.submit(&record).await? {
                Outcome::Done => record.state = SendState::Done,
                Outcome::Aborted(reason) => {
                    let free = self.still_ours(&record).await?;
                    record.attempt = record.attempt.saturating_add(1);
                    if !free || record.attempt >= ATTEMPTS {
                        // Only what is provably undone is forgotten.
                        if free && self.transfer_of(&record).await?.is_none() {
                            record.state = SendState::Failed;
                            self.state().put(&record)?;
                        }
                        return Err(WalletError::Refused(reason));
                    }
                    let receiver = hex::decode(&record.receiver).unwrap_or_default();
                    let receiver = point::parse("receiver", &receiver).map_err(VerifyError::from)?;
                    let request =
                        self.transfer_request(&record.transfer_id, &receiver, &record.leaves).await?;
                    record.request = Wire::of(&request);
                }
            }
            self.state().put(&record)?;
        }
        Ok(Sent {
            transfer_id: record.transfer_id,
            amount: record.amount,
            leaves: record.leaves,
            receiver: record.receiver,
        })
    }

    async fn submit(&self, record: &SendRecord) -> Result<Outcome, WalletError> {
        let mut repeats = 0;
        loop {
            let request = record.request.decode().map_err(|_| WalletError::Answer("the stored request"))?;
            let answer = self
                .operators()
                .coordinator()
                .spark(
                    self.keys().identity(),
                    request,
                    |mut c, r| async move { c.start_transfer_v2(r).await },
                )
                .await;
            let error = match answer {
                Ok(answer) => {
                    let transfer = answer.transfer.ok_or(WalletError::Answer("the transfer"))?;
                    return self.committed(record, &transfer);
                }
                Err(error) => error,
            };
            let message = error.to_string();
            if is_abort(error.reason().as_deref(), error.code(), &message) {
                return Ok(Outcome::Aborted(message));
            }
            match error.code() {
                Some(Code::AlreadyExists) => {
                    let transfer =
                        self.transfer_of(record).await?.ok_or(WalletError::Answer("the transfer"))?;
                    return self.committed(record, &transfer);
                }
                // Undecided, or no answer: only the same bytes may follow (D7).
                Some(Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
                    if repeats < REPEATS =>
                {
                    repeats = repeats.saturating_add(1);
                    tokio::time::sleep(Duration::from_millis(500 << repeats.min(4))).await;
                }
                _ => return Err(error.into()),
            }
        }
    }

    fn committed(&self, record: &SendRecord, transfer: &Transfer) -> Result<Outcome, WalletError> {
        let same = transfer.id == record.transfer_id
            && transfer.sender_identity_public_key == self.keys().identity().public_key().serialize()
            && hex::encode(&transfer.receiver_identity_public_key) == record.receiver
            && transfer.total_value == record.amount;
        if !same {
            return Err(WalletError::Refused("the operator answers with another transfer".into()));
        }
        match transfer.status() {
            TransferStatus::SenderInitiated
            | TransferStatus::SenderInitiatedCoordinator
            | TransferStatus::SenderKeyTweakPending
            | TransferStatus::ApplyingSenderKeyTweak => Err(WalletError::Refused(
                "the transfer is not decided yet; repeat it with the same id".into(),
            )),
            TransferStatus::Expired | TransferStatus::Returned => {
                Ok(Outcome::Aborted("transfer returned".into()))
            }
            _ => Ok(Outcome::Done),
        }
    }

    async fn transfer_of(&self, record: &SendRecord) -> Result<Option<Transfer>, WalletError> {
        let sender = self.keys().identity().public_key().serialize().to_vec();
        self.transfer(&record.transfer_id, Participant::SenderIdentityPublicKey(sender)).await
    }

    async fn still_ours(&self, record: &SendRecord) -> Result<bool, WalletError> {
        let views = self.sync().await?;
        Ok(record.leaves.iter().all(|id| views.iter().any(|v| v.leaf_id == *id && v.is_spendable())))
    }

    async fn choose(&self, amount: u64) -> Result<Vec<String>, WalletError> {
        let busy = self.busy_leaves()?;
        let views: Vec<LeafView> = self
            .sync()
            .await?
            .into_iter()
            .filter(|v| v.is_spendable() && !busy.contains(&v.leaf_id))
            .collect();
        let values: Vec<u64> = views.iter().map(|v| v.value_sats).collect();
        let mut leaves = Vec::new();
        for position in select::exact(&values, amount)? {
            let view = views.get(position).ok_or(WalletError::Answer("a leaf"))?;
            if view.needs_renewal() {
                self.renew(&view.leaf_id).await?;
            }
            leaves.push(view.leaf_id.clone());
        }
        Ok(leaves)
    }

    async fn transfer_request(
        &self,
        id: &str,
        receiver: &PublicKey,
        leaves: &[String],
    ) -> Result<StartTransferRequest, WalletError> {
        let federation = &self.config().federation;
        let nodes = self.agreed_nodes(leaves).await?;
        let sets = self.commitments(leaves.to_vec(), 3, 0).await?;
        let mut package = TransferPackage { hash_variant: HashVariant::V2 as i32, ..Default::default() };
        let mut tweaks = Vec::with_capacity(leaves.len());
        for (leaf_id, mut sets) in leaves.iter().zip(CommitmentSets::by_leaf(sets, 3, leaves.len())?) {
            let node = Node::parse(nodes.get(leaf_id).ok_or(WalletError::Answer("a leaf"))?)?;
            let old = self.keys().leaf(&node.id)?;
            let plan = send_plan(&node, receiver)?;
            for planned in plan.transactions() {
                let job = job(leaf_id, planned, &old, &node.verifying_key, &mut sets, federation)?;
                match planned.purpose() {
                    Purpose::Refund => package.leaves_to_send.push(job),
                    Purpose::DirectRefund => package.direct_leaves_to_send.push(job),
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
        package.key_tweak_package = seal_send(&tweaks, federation)?;
        let uuid = package::parse_transfer_id(id).map_err(VerifyError::from)?;
        let digest = package::transfer_payload(&uuid, &package.key_tweak_package);
        package.user_signature = self.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec();
        Ok(StartTransferRequest {
            transfer_id: id.to_owned(),
            owner_identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
            receiver_identity_public_key: receiver.serialize().to_vec(),
            transfer_package: Some(package),
            ..Default::default()
        })
    }
}

/// This attempt came to nothing: its nonces are gone, it was aborted, or the leaves were in use.
fn is_abort(reason: Option<&str>, code: Option<Code>, message: &str) -> bool {
    matches!(reason, Some("LEAF_UNAVAILABLE" | "NONCE_UNKNOWN" | "OPERATION_ABORTED"))
        || (code == Some(Code::FailedPrecondition) && message.contains("not available to transfer"))
}

/// Refunds one step below the present ones, to the receiver's identity key.
pub(super) fn send_plan(node: &Node, receiver: &PublicKey) -> Result<Plan, VerifyError> {
    let present = node.refund_timelock()?;
    let step = present.step_down()?;
    if step < LEAST_REFUND_STEP {
        return Err(TimelockError::Exhausted(present.blocks()).into());
    }
    let basis = Basis { node: node.spend()?, direct_node: node.direct_spend()? };
    Ok(Plan::refunds(Source::Build, &basis, receiver, step)?)
}
