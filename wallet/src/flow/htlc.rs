//! Transfers that a preimage completes.

use bitcoin::hashes::{Hash as _, sha256};
use serde::{Deserialize, Serialize};
use spark_proto::spark::{
    PreimageRequestRole as Role, PreimageRequestStatus as Status, PreimageRequestWithTransfer,
    QueryHtlcRequest, Transfer, TransferType,
};
use spark_rules::{
    address::SparkAddress,
    point,
    tx::{Htlc, opens},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    order::Order,
    paging::{PAGE, Paging},
    send::Sent,
};
use crate::{Wallet, WalletError, client::Operator, state::HtlcTerms, verify::VerifyError, wallet::now};

/// A transfer that a preimage completes, as the coordinator lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HtlcView {
    /// UUID.
    pub transfer_id: String,
    /// This wallet sent it.
    pub sent: bool,
    /// Identity key of the other side, hex.
    pub counterparty: String,
    /// Satoshis.
    pub amount_sats: u64,
    /// SHA-256 of the preimage, hex.
    pub payment_hash: String,
    /// "pending", "settled" or "returned".
    pub status: String,
    /// Unix seconds, of which operators made a height.
    pub expires: i64,
    /// Hex, once it is settled: it fits the payment hash.
    pub preimage: Option<String>,
}

/// What a sender needs to tell the receiver, or keeps from him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentHtlc {
    /// The transfer.
    pub sent: Sent,
    /// SHA-256 of the preimage.
    pub payment_hash: [u8; 32],
}

impl Wallet {
    /// Locks exactly `amount` satoshis for whoever has the preimage: `to` gets them with it, this wallet gets them back
    /// after `expires_in` seconds. Without a payment hash the preimage is this wallet's own ([`Wallet::preimage`]).
    pub async fn send_for_preimage(
        &self,
        to: &SparkAddress,
        amount: u64,
        payment_hash: Option<[u8; 32]>,
        expires_in: u64,
        id: Option<Uuid>,
    ) -> Result<SentHtlc, WalletError> {
        self.check_receiver(to)?;
        if to.invoice.is_some() {
            return Err(WalletError::Refused("an invoice is not paid for a preimage".into()));
        }
        let id = id.unwrap_or_else(Uuid::now_v7);
        let payment_hash = match payment_hash {
            Some(hash) => hash,
            None => sha256::Hash::hash(&*self.preimage(&id)?).to_byte_array(),
        };
        let terms =
            HtlcTerms { payment_hash: hex::encode(payment_hash), expires: now().saturating_add(expires_in) };
        let payees = vec![(to.identity.to_string(), amount)];
        let order = Order { payees, invoice: String::new(), htlc: Some(terms), exit: None };
        Ok(SentHtlc { sent: self.start_send(order, Some(id)).await?, payment_hash })
    }

    /// The preimage that belongs to a transfer of this wallet: it follows from the seed, as deployed wallets derive it.
    pub fn preimage(&self, transfer: &Uuid) -> Result<Zeroizing<[u8; 32]>, WalletError> {
        Ok(self.keys().preimage(&transfer.as_simple().to_string())?)
    }

    /// What this wallet sent or gets for a preimage, newest first. Its own that ended are finished before
    /// ([`Wallet::end_htlcs`]).
    pub async fn htlcs(&self) -> Result<Vec<HtlcView>, WalletError> {
        if let Err(error) = self.end_htlcs().await {
            tracing::warn!(%error, "what ended could not be finished yet");
        }
        let operator = self.operators().coordinator();
        let requests = self.preimage_requests(operator, &Which::default(), Role::ReceiverAndSender).await?;
        requests.iter().map(|request| self.view_htlc(request)).collect()
    }

    fn view_htlc(&self, request: &PreimageRequestWithTransfer) -> Result<HtlcView, WalletError> {
        let transfer = request.transfer.as_ref().ok_or(WalletError::Answer("the transfer"))?;
        let own = self.keys().identity().public_key().serialize();
        let sent = request.sender_identity_pubkey == own;
        let other = if sent { &request.receiver_identity_pubkey } else { &request.sender_identity_pubkey };
        Ok(HtlcView {
            transfer_id: transfer.id.clone(),
            sent,
            counterparty: hex::encode(other),
            amount_sats: transfer.total_value,
            payment_hash: hex::encode(&request.payment_hash),
            status: match request.status() {
                Status::WaitingForPreimage => "pending",
                Status::PreimageShared => "settled",
                Status::Returned => "returned",
            }
            .into(),
            expires: transfer.expiry_time.as_ref().map_or(0, |time| time.seconds),
            preimage: known_preimage(request).map(hex::encode),
        })
    }

    /// The terms under which a transfer came, where a preimage completed it: without the preimage its refunds are
    /// nobody's exit yet.
    pub(super) async fn terms_of(&self, transfer: &Transfer) -> Result<Option<Htlc>, WalletError> {
        if transfer.r#type() != TransferType::PreimageSwap {
            return Ok(None);
        }
        let which = Which { transfers: vec![transfer.id.clone()], ..Which::default() };
        let requests = self.preimage_requests(self.operators().coordinator(), &which, Role::Receiver).await?;
        let request = requests.first().ok_or(WalletError::Answer("the payment hash"))?;
        if known_preimage(request).is_none() {
            return Err(WalletError::Answer("the preimage"));
        }
        let hash: Result<[u8; 32], _> = request.payment_hash.as_slice().try_into();
        let hash = hash.map_err(|_| WalletError::Answer("the payment hash"))?;
        let sender = point::parse("sender_identity_public_key", &transfer.sender_identity_public_key)
            .map_err(VerifyError::from)?;
        Ok(Some(Htlc::new(hash, self.keys().identity().public_key(), sender)))
    }

    /// As one operator lists them.
    pub(super) async fn preimage_requests(
        &self,
        operator: &Operator,
        which: &Which,
        role: Role,
    ) -> Result<Vec<PreimageRequestWithTransfer>, WalletError> {
        let mut all = Vec::new();
        let mut paging = Paging::of(operator);
        loop {
            let request = QueryHtlcRequest {
                identity_public_key: self.keys().identity().public_key().serialize().to_vec(),
                limit: PAGE,
                offset: paging.offset(),
                transfer_ids: which.transfers.clone(),
                payment_hashes: which.payment_hashes.clone(),
                match_role: role.into(),
                ..QueryHtlcRequest::default()
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move { c.query_htlc(r).await })
                .await?;
            let (bytes, came) = (prost::Message::encoded_len(&answer), answer.preimage_requests.len());
            all.extend(answer.preimage_requests);
            if !paging.more(came, bytes, answer.offset)? {
                return Ok(all);
            }
        }
    }
}

/// Which of them to ask for; empty lists mean all.
#[derive(Debug, Clone, Default)]
pub(super) struct Which {
    pub(super) transfers: Vec<String>,
    pub(super) payment_hashes: Vec<Vec<u8>>,
}

/// The preimage, if it is one.
pub(super) fn known_preimage(request: &PreimageRequestWithTransfer) -> Option<&[u8]> {
    let hash: &[u8; 32] = request.payment_hash.as_slice().try_into().ok()?;
    request.preimage.as_deref().filter(|preimage| preimage.len() == 32 && opens(hash, preimage))
}
