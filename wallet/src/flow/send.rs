use std::{collections::BTreeSet, time::Duration};

use spark_proto::spark::{Transfer, TransferStatus, transfer_filter::Participant};
use spark_rules::{address::SparkAddress, operation::MAX_RECEIVERS};
use tonic::Code;
use uuid::Uuid;

use super::{
    certain::{Committed, Known, Standing, committed},
    invoice::payable,
    order::Order,
};
use crate::{
    Wallet, WalletError,
    state::{SendRecord, SendState},
    wallet::now,
};

/// Times that a request is built anew after the operators proved an abort.
const ATTEMPTS: u32 = 4;
/// Reasons that no new package changes.
const FINAL: [&str; 5] = ["INVOICE_PAID", "EXPIRED", "FIELD_INVALID", "RULE_VIOLATED", "UNIMPLEMENTED"];
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
    /// Receiver's identity key, the first of several.
    pub receiver: String,
    /// Every receiver with what it gets.
    pub payees: Vec<(String, u64)>,
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
        self.check_receiver(to)?;
        if to.invoice.is_some() {
            return Err(WalletError::Refused("this is an invoice: pay it as its text says".into()));
        }
        let payees = vec![(to.identity.to_string(), amount)];
        self.start_send(Order { payees, invoice: String::new(), htlc: None, exit: None }, id).await
    }

    /// Sends to several receivers in one transfer: all get theirs or none does.
    pub async fn send_many(&self, to: &[(SparkAddress, u64)], id: Option<Uuid>) -> Result<Sent, WalletError> {
        let mut payees = Vec::with_capacity(to.len());
        for (address, amount) in to {
            self.check_receiver(address)?;
            if address.invoice.is_some() {
                return Err(WalletError::Refused("invoices are paid one by one".into()));
            }
            payees.push((address.identity.to_string(), *amount));
        }
        let receivers: BTreeSet<&String> = payees.iter().map(|(receiver, _)| receiver).collect();
        if payees.is_empty() || receivers.len() > MAX_RECEIVERS {
            return Err(WalletError::Refused(format!("1 to {MAX_RECEIVERS} receivers")));
        }
        self.start_send(Order { payees, invoice: String::new(), htlc: None, exit: None }, id).await
    }

    /// Pays a Spark invoice, which operators let happen once. `amount` is for invoices that leave it open.
    pub async fn pay_invoice(
        &self,
        text: &str,
        amount: Option<u64>,
        id: Option<Uuid>,
    ) -> Result<Sent, WalletError> {
        let to = SparkAddress::decode(text)?;
        self.check_receiver(&to)?;
        let amount = payable(&to, amount, &self.keys().identity().public_key(), now())
            .map_err(|why| WalletError::Refused(why.into()))?;
        let payees = vec![(to.identity.to_string(), amount)];
        self.start_send(Order { payees, invoice: text.to_owned(), htlc: None, exit: None }, id).await
    }

    pub(super) fn check_receiver(&self, to: &SparkAddress) -> Result<(), WalletError> {
        if to.network != self.config().network {
            return Err(WalletError::Refused(format!("the address is for {}", to.network)));
        }
        Ok(to.verify()?)
    }

    pub(super) async fn start_send(&self, order: Order, id: Option<Uuid>) -> Result<Sent, WalletError> {
        let id = id.unwrap_or_else(Uuid::now_v7).as_hyphenated().to_string();
        let record = match self.state().get::<SendRecord>(&id)? {
            Some(record) if !order.is_of(&record) => {
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
                let parts = match self.doubtful_twin(&order.payees)? {
                    Some(earlier) => self.same_leaves(earlier, &order.payees).await?,
                    None => self.choose(&order.payees).await?,
                };
                let mut record = order.record(id, parts)?;
                self.build_request(&mut record).await?;
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

    pub(super) async fn finish_send(&self, mut record: SendRecord) -> Result<Sent, WalletError> {
        while record.state == SendState::Pending {
            match self.submit(&record).await? {
                Outcome::Done => {
                    self.confirm_sent(&record).await?;
                    self.keep_timeout_exit(&record).await?;
                    record.state = SendState::Done;
                }
                Outcome::Aborted(reason) => self.after_refusal(&mut record, reason).await?,
            }
            self.state().put(&record)?;
        }
        if record.htlc.is_none() && record.exit.is_none() {
            // What something else completes may come back.
            self.forget_sent(&record)?;
        }
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
        let final_word = FINAL.iter().any(|word| reason.contains(word));
        record.attempt = if final_word { ATTEMPTS } else { record.attempt.saturating_add(1) };
        let standing = self.standing(&record.leaves).await;
        if standing == Standing::Ours && record.attempt < ATTEMPTS {
            return self.build_request(record).await;
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
            let (coordinator, identity) = (self.operators().coordinator(), self.keys().identity());
            let unreadable = |_| WalletError::Answer("the stored request");
            let answer = match (&record.many, &record.swap) {
                _ if record.coop.is_some() => {
                    let request = record.coop.as_ref().map(|stored| stored.decode().map_err(unreadable));
                    let request = request.transpose()?.unwrap_or_default();
                    coordinator
                        .spark(identity, request, |mut c, r| async move { c.cooperative_exit_v2(r).await })
                        .await
                        .map(|answer| answer.transfer)
                }
                (_, Some(request)) => {
                    let request = request.decode().map_err(unreadable)?;
                    coordinator
                        .spark(
                            identity,
                            request,
                            |mut c, r| async move { c.initiate_preimage_swap_v3(r).await },
                        )
                        .await
                        .map(|answer| answer.transfer)
                }
                (None, None) => {
                    let request = record.request.decode().map_err(unreadable)?;
                    coordinator
                        .spark(identity, request, |mut c, r| async move { c.start_transfer_v2(r).await })
                        .await
                        .map(|answer| answer.transfer)
                }
                (Some(request), None) => {
                    let request = request.decode().map_err(unreadable)?;
                    coordinator
                        .spark(identity, request, |mut c, r| async move { c.start_transfer_v3(r).await })
                        .await
                        .map(|answer| answer.transfer)
                }
            };
            let error = match answer {
                Ok(answer) => {
                    let transfer = answer.ok_or(WalletError::Answer("the transfer"))?;
                    return self.outcome(record, &transfer);
                }
                Err(error) => error,
            };
            let message = error.to_string();
            let reason = error.reason();
            if let Some(word) =
                reason.as_deref().and_then(|reason| FINAL.iter().find(|word| **word == reason))
            {
                return Ok(Outcome::Aborted(format!("{message} ({word})")));
            }
            if is_abort(reason.as_deref(), error.code(), &message) {
                return Ok(Outcome::Aborted(message));
            }
            // No operator takes these bytes, whenever they come: they are wrong, or too many.
            if matches!(error.code(), Some(Code::InvalidArgument | Code::OutOfRange)) {
                return Ok(Outcome::Aborted(format!("{message} (FIELD_INVALID)")));
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

    /// What a preimage completes may never end: by time this wallet gets it back alone.
    async fn keep_timeout_exit(&self, record: &SendRecord) -> Result<(), WalletError> {
        let Some(terms) = self.htlc_of(record)? else { return Ok(()) };
        let transfer = self.transfer_of(record).await?.ok_or(WalletError::Answer("the transfer"))?;
        if transfer.status() != TransferStatus::SenderKeyTweakPending {
            // A repeat, after its end.
            return Ok(());
        }
        self.keep_htlc_exit(&transfer, &terms, None).await
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
}

fn sent(record: SendRecord) -> Sent {
    Sent {
        payees: record.payees(),
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
