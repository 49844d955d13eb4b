//! How a transfer for a preimage ended for its sender.
//!
//! A leaf that came back is not safe where it is: the receiver's refund is complete and matures 30 blocks before the
//! sender's, and the receiver may know the preimage. So it gets new refunds at once, which mature before both: by a
//! renewal where operators renew, else by a transfer to this wallet itself, over the shared step where there is one.

use std::collections::BTreeSet;

use spark_proto::spark::{
    PreimageRequestRole as Role, PreimageRequestStatus as Status, PreimageRequestWithTransfer,
    transfer_filter::Participant,
};
use spark_rules::{ids::LeafId, tx::INTERVAL};
use uuid::Uuid;

use super::{
    htlc::{Which, known_preimage},
    order::Order,
    sync::LeafView,
};
use crate::{
    Wallet, WalletError,
    state::{SendRecord, SendShare, SendState},
};

/// Transfers that are asked about at once.
const ASKED: usize = 64;
/// Transfers that are tried, one after the other failed for good.
const ATTEMPTS: u8 = 8;
/// Operators renew at or below this.
const RENEWABLE: u16 = 3 * INTERVAL;

impl Wallet {
    /// Looks how this wallet's transfers for a preimage ended: leaves of settled ones are marked as gone, leaves that came
    /// back get refunds that win. Says how many transfers came back and are safe again.
    pub async fn end_htlcs(&self) -> Result<usize, WalletError> {
        let open: Vec<SendRecord> = self
            .state()
            .all::<SendRecord>()?
            .into_iter()
            .filter(|send| send.htlc.is_some() && send.state == SendState::Done && !send.ended)
            .collect();
        let mut safe = 0usize;
        for some in open.chunks(ASKED) {
            let which = Which {
                transfers: some.iter().map(|send| send.transfer_id.clone()).collect(),
                ..Which::default()
            };
            let which = &which;
            let answers = self
                .operators()
                .each(|o| async move { self.preimage_requests(o, which, Role::Sender).await });
            let requests: Vec<_> =
                answers.await.into_iter().filter_map(|(_, answer)| answer.ok()).flatten().collect();
            for send in some {
                let of_it = |request: &&PreimageRequestWithTransfer| {
                    request.transfer.as_ref().is_some_and(|t| t.id == send.transfer_id)
                };
                let own_hash = send.htlc.as_ref().map(|terms| terms.payment_hash.as_str());
                // The preimage is what shows that it was settled, and of this wallet's own hash; that it came back is
                // looked at everywhere before anything is done.
                let paid = |request: &PreimageRequestWithTransfer| {
                    request.status() == Status::PreimageShared
                        && Some(hex::encode(&request.payment_hash).as_str()) == own_hash
                        && known_preimage(request).is_some()
                };
                let mut shown = requests.iter().filter(of_it);
                if shown.clone().any(paid) {
                    self.forget_sent(send)?;
                    self.end_htlc(send)?;
                } else if shown.any(|request| request.status() == Status::Returned) {
                    let secured = self.secure(send).await?;
                    safe = safe.saturating_add(usize::from(secured));
                }
            }
        }
        Ok(safe)
    }

    fn end_htlc(&self, send: &SendRecord) -> Result<(), WalletError> {
        self.state().put(&SendRecord { ended: true, ..send.clone() })?;
        self.forget_htlc_exits(&send.transfer_id)
    }

    /// New refunds for the leaves of one that came back. False while operators do not show all of them as this wallet's.
    async fn secure(&self, send: &SendRecord) -> Result<bool, WalletError> {
        let mut known = None;
        let mut id = moved_id(&send.transfer_id, 0)?;
        for attempt in 1..ATTEMPTS {
            known = self.state().get::<SendRecord>(&id.to_string())?;
            if known.as_ref().is_none_or(|record| record.state != SendState::Failed) {
                break;
            }
            id = moved_id(&send.transfer_id, attempt)?;
        }
        if known.is_none() {
            let busy = self.busy_leaves()?;
            let views = self.sync().await?;
            let gone = self.sent_since(send)?;
            let mut to_move: Vec<&LeafView> = Vec::new();
            for leaf in send.leaves.iter().filter(|leaf| !gone.contains(*leaf)) {
                let Some(view) = views.iter().find(|view| view.leaf_id == *leaf) else { return Ok(false) };
                // A word that all operators give: one that lies makes nothing move.
                if !view.is_spendable() || busy.contains(&view.leaf_id) {
                    return Ok(false);
                }
                if view.refund_timelock.is_some_and(|timelock| timelock <= RENEWABLE) {
                    self.renew(&view.leaf_id).await?;
                } else {
                    to_move.push(view);
                }
            }
            if to_move.is_empty() {
                self.end_htlc(send)?;
                return Ok(true);
            }
            let own = self.keys().identity().public_key().to_string();
            let amount = to_move.iter().fold(0u64, |sum, view| sum.saturating_add(view.value_sats));
            let leaves = to_move.iter().map(|view| view.leaf_id.clone()).collect();
            let order =
                Order { payees: vec![(own.clone(), amount)], invoice: String::new(), htlc: None, exit: None };
            let mut record =
                order.record(id.to_string(), vec![SendShare { receiver: own, amount, leaves }])?;
            record.step_over = true;
            self.build_request(&mut record).await?;
            self.state().put(&record)?;
        }
        let record = self.state().get::<SendRecord>(&id.to_string())?;
        let mut record = record.ok_or(WalletError::Answer("the stored request"))?;
        if record.state == SendState::Failed {
            return Err(WalletError::Refused(format!("transfer {id} failed: send what came back elsewhere")));
        }
        if record.state == SendState::Doubtful {
            (record.state, record.attempt) = (SendState::Pending, 0);
            self.state().put(&record)?;
        }
        self.finish_send(record).await?;
        let own = self.keys().identity().public_key().serialize().to_vec();
        let participant = Participant::ReceiverIdentityPublicKey(own);
        let operator = self.operators().coordinator();
        let moved = self.transfer_at(operator, &id.to_string(), participant).await?;
        self.claim(&moved.ok_or(WalletError::Answer("the transfer"))?).await?;
        self.end_htlc(send)?;
        Ok(true)
    }
}

impl Wallet {
    /// Leaves that this wallet has sent away since: they have refunds of that send.
    fn sent_since(&self, send: &SendRecord) -> Result<BTreeSet<String>, WalletError> {
        let later = self.state().all::<SendRecord>()?.into_iter().filter(|other| {
            other.state == SendState::Done
                && other.transfer_id != send.transfer_id
                && other.created >= send.created
        });
        Ok(later.flat_map(|other| other.leaves).collect())
    }
}

/// The transfer that moves what came back: one for each, so that a repeat is the same.
fn moved_id(transfer_id: &str, attempt: u8) -> Result<Uuid, WalletError> {
    let id: Uuid = transfer_id.parse().map_err(|_| WalletError::Answer("the stored request"))?;
    Ok(LeafId::derive("spark/wallet/returned", &[id.as_bytes(), &[attempt]]).uuid())
}
