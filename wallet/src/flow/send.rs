use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use rand::rngs::OsRng;
use spark_proto::spark::{
    HashVariant, StartTransferRequest, Transfer, TransferPackage, transfer_filter::Participant,
};
use spark_rules::{
    address::SparkAddress,
    ids::TransferId,
    package, point,
    tx::{Basis, LEAST_REFUND_STEP, Plan, Purpose as Of, Source, TimelockError},
    vote::Kind,
};
use spark_signer::secret::SecretScalar;
use tonic::Code;
use uuid::Uuid;

use super::{
    certain::{Committed, Known, Standing, committed, doubtful_until},
    sync::LeafView,
};
use crate::{
    Wallet, WalletError,
    recipients::Purpose,
    seal, select,
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
            Some(mut record) => {
                if record.state == SendState::Doubtful {
                    // The same transfer again, over the same leaves.
                    (record.state, record.attempt) = (SendState::Pending, 0);
                    self.state().put(&record)?;
                }
                record
            }
            None => {
                let leaves = match self.doubtful_twin(&to.identity.to_string(), amount)? {
                    Some(earlier) => self.same_leaves(earlier).await?,
                    None => self.choose(amount).await?,
                };
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
                    built: now(),
                };
                self.state().put(&record)?;
                record
            }
        };
        self.finish_send(record).await
    }

    /// Finishes the sends that a crash or an outage interrupted, and looks what became of refused ones. One that
    /// fails stays pending and does not stop the others; its error comes with its id.
    pub async fn resume_sends(&self) -> Result<Vec<Result<Sent, (String, WalletError)>>, WalletError> {
        let mut outcomes = Vec::new();
        for mut record in self.state().all::<SendRecord>()? {
            let id = record.transfer_id.clone();
            match record.state {
                SendState::Pending => {
                    outcomes.push(self.finish_send(record).await.map_err(|error| (id, error)));
                }
                SendState::Doubtful => match self.settle_doubtful(&mut record).await {
                    Ok(()) if record.state == SendState::Done => outcomes.push(Ok(sent(record))),
                    Ok(()) => {}
                    Err(error) => outcomes.push(Err((id, error))),
                },
                SendState::Done | SendState::Failed => {}
            }
        }
        Ok(outcomes)
    }

    async fn finish_send(&self, mut record: SendRecord) -> Result<Sent, WalletError> {
        while record.state == SendState::Pending {
            match self.submit(&record).await? {
                Outcome::Done => {
                    self.confirm_sent(&record).await?;
                    record.state = SendState::Done;
                }
                Outcome::Aborted(reason) => self.after_refusal(&mut record, reason).await?,
            }
            self.state().put(&record)?;
        }
        self.forget_sent(&record)?;
        Ok(sent(record))
    }

    /// The coordinator says that nothing happened. A new package over the same leaves may follow at once, since at
    /// most one of the two can ever commit; more than that takes the word of all operators.
    async fn after_refusal(&self, record: &mut SendRecord, reason: String) -> Result<(), WalletError> {
        match self.known(record).await {
            Known::ByQuorum => {
                record.state = SendState::Done;
                return Ok(());
            }
            Known::BySome => {
                return Err(WalletError::Undecided(format!("{reason}; but an operator shows the transfer")));
            }
            Known::Unknown | Known::ByNone => {}
        }
        record.attempt = record.attempt.saturating_add(1);
        let standing = self.standing(&record.leaves).await;
        if standing == Standing::Ours && record.attempt < ATTEMPTS {
            let receiver = hex::decode(&record.receiver).unwrap_or_default();
            let receiver = point::parse("receiver", &receiver).map_err(VerifyError::from)?;
            let request = self.transfer_request(&record.transfer_id, &receiver, &record.leaves).await?;
            record.request = Wire::of(&request);
            record.built = now();
            return Ok(());
        }
        if standing != Standing::Unclear {
            record.state = SendState::Doubtful;
            self.state().put(record)?;
            self.settle_doubtful(record).await?;
            if record.state == SendState::Done {
                return Ok(());
            }
        }
        Err(WalletError::Refused(reason))
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
                    return self.outcome(record, &transfer);
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
                    return self.outcome(record, &transfer);
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

    fn outcome(&self, record: &SendRecord, transfer: &Transfer) -> Result<Outcome, WalletError> {
        match committed(record, &self.keys().identity().public_key().serialize(), transfer) {
            None => Err(WalletError::Refused("the operator answers with another transfer".into())),
            Some(Committed::NotYet) => Err(WalletError::Undecided(
                "the transfer is not decided yet; repeat it with the same id".into(),
            )),
            Some(Committed::Never) => Ok(Outcome::Aborted("transfer returned".into())),
            Some(Committed::Yes) => Ok(Outcome::Done),
        }
    }

    async fn transfer_of(&self, record: &SendRecord) -> Result<Option<Transfer>, WalletError> {
        let sender = self.keys().identity().public_key().serialize().to_vec();
        let participant = Participant::SenderIdentityPublicKey(sender);
        Ok(self.transfer_at(self.operators().coordinator(), &record.transfer_id, participant).await?)
    }

    /// The leaves of an earlier payment that may still happen, for the same payment again: at most one of the two
    /// can take them.
    async fn same_leaves(&self, earlier: SendRecord) -> Result<Vec<String>, WalletError> {
        if self.standing(&earlier.leaves).await == Standing::Ours {
            return Ok(earlier.leaves);
        }
        Err(WalletError::Refused(format!(
            "transfer {} of the same amount to the same receiver was refused, but may still happen until unix time {}",
            earlier.transfer_id,
            doubtful_until(&earlier)
        )))
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
        let (sets, recipients) =
            tokio::try_join!(self.commitments(leaves.to_vec(), 3, 0), self.recipients())?;
        let mut package = TransferPackage { hash_variant: HashVariant::V2 as i32, ..Default::default() };
        let mut tweaks = Vec::with_capacity(leaves.len());
        for (leaf_id, mut sets) in leaves.iter().zip(CommitmentSets::by_leaf(sets, 3, leaves.len())?) {
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
        Ok(StartTransferRequest {
            transfer_id: id.to_owned(),
            owner_identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
            receiver_identity_public_key: receiver.serialize().to_vec(),
            transfer_package: Some(package),
            ..Default::default()
        })
    }
}

fn sent(record: SendRecord) -> Sent {
    Sent {
        transfer_id: record.transfer_id,
        amount: record.amount,
        leaves: record.leaves,
        receiver: record.receiver,
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
