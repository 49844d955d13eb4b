//! Transfers that a preimage completes: made by the sender, settled by the receiver, listed for both.

use bitcoin::hashes::{Hash as _, sha256};
use futures::future::join_all;
use spark_proto::{
    peer::v1::{self as peer, operation::Request},
    spark::{self, PreimageRequestRole as Role, PreimageRequestStatus as Status},
};

use super::{
    Api, input,
    page::{MAX_PAGE, Page},
    refusal::of_send,
    write::first_leaf,
};
use crate::{
    authn::Session,
    convert::{timestamp, transfer_uuid},
    db::{
        htlc::{self, Filter, HtlcRow, HtlcState},
        transfer,
    },
    status::{Reason, Refused},
};

impl Api {
    pub(super) async fn send_for_preimage(
        &self,
        session: &Session,
        request: spark::InitiatePreimageSwapRequest,
    ) -> Result<spark::InitiatePreimageSwapResponse, Refused> {
        if !self.parts.htlc {
            return Err(Refused::unimplemented("initiate_preimage_swap_v3"));
        }
        let transfer = self.bounds().htlc(&request)?;
        input::own_identity(
            "transfer_request.owner_identity_public_key",
            &transfer.owner_identity_public_key,
            session,
        )?;
        let id = transfer_uuid(input::transfer_id("transfer_request.transfer_id", &transfer.transfer_id)?);
        let leaf = first_leaf(transfer.transfer_package.as_ref());
        // The engine fixes the height.
        let htlc = peer::Htlc { request: Some(request), expiry_height: 0 };
        self.parts
            .operations
            .run(Request::Htlc(htlc), &session.identity)
            .await
            .map_err(|refused| of_send(refused, &leaf))?;
        self.parts.events.wake();
        let (row, _) = self.transfer_of(id, session).await?;
        Ok(spark::InitiatePreimageSwapResponse {
            preimage: Vec::new(),
            transfer: Some(self.transfer(&row, None).await?),
        })
    }

    /// Only the receiver provides it: a preimage that somebody else learns early settles nothing.
    pub(super) async fn preimage_provided(
        &self,
        session: &Session,
        request: spark::ProvidePreimageRequest,
    ) -> Result<spark::ProvidePreimageResponse, Refused> {
        let receiver =
            input::own_identity("identity_public_key", &request.identity_public_key, session)?.serialize();
        let preimage: [u8; 32] = request
            .preimage
            .as_slice()
            .try_into()
            .map_err(|_| Refused::field("preimage", "must have 32 bytes"))?;
        let payment_hash = sha256::Hash::hash(&preimage).to_byte_array();
        if request.payment_hash != payment_hash {
            return Err(Refused::field("preimage", "does not hash to payment_hash"));
        }
        let pending = htlc::of_payment(self.parts.db.pool(), &payment_hash, &receiver).await?;
        let Some(largest) = pending.first().map(|row| row.transfer_id) else {
            return Err(Refused::new(Reason::TransferUnknown, "no transfer to you waits for this preimage"));
        };
        // Whoever pays for the same preimage pays now; the answer is about the largest that came in time.
        let ended = join_all(pending.iter().map(|row| self.parts.operations.provide(row, &preimage))).await;
        self.parts.events.wake();
        let settled =
            pending.iter().zip(&ended).find(|(_, ended)| ended.is_ok()).map(|(row, _)| row.transfer_id);
        if let (None, Some(Err(refused))) = (settled, ended.into_iter().next()) {
            return Err(refused);
        }
        let transfer_id = settled.unwrap_or(largest);
        let (row, _) = self.transfer_of(transfer_id, session).await?;
        Ok(spark::ProvidePreimageResponse { transfer: Some(self.transfer(&row, Some(&receiver)).await?) })
    }

    pub(super) async fn htlcs(
        &self,
        session: &Session,
        request: spark::QueryHtlcRequest,
    ) -> Result<spark::QueryHtlcResponse, Refused> {
        let identity = input::own_identity("identity_public_key", &request.identity_public_key, session)?;
        let identity = identity.serialize().to_vec();
        if request.limit > MAX_PAGE {
            return Err(Refused::field("limit", format!("at most {MAX_PAGE}")));
        }
        let page = Page::parse(request.limit, request.offset)?;
        let filter = filter(&identity, &request)?;
        let rows = htlc::list(self.parts.db.pool(), &filter, page.fetch(), page.offset()).await?;
        let (rows, offset) = page.cut(rows);
        let mut preimage_requests = Vec::with_capacity(rows.len());
        for row in rows {
            preimage_requests.push(self.preimage_request(&identity, row).await?);
        }
        Ok(spark::QueryHtlcResponse { preimage_requests, offset })
    }

    async fn preimage_request(
        &self,
        identity: &[u8],
        row: HtlcRow,
    ) -> Result<spark::PreimageRequestWithTransfer, Refused> {
        let transfer = transfer::get(self.parts.db.pool(), row.transfer_id).await?;
        let transfer =
            transfer.ok_or_else(|| Refused::new(Reason::TransferUnknown, "transfer is not known"))?;
        let receiver = (row.receiver == identity).then_some(identity);
        Ok(spark::PreimageRequestWithTransfer {
            payment_hash: row.pending.condition.payment_hash().map(|hash| hash.to_vec()).unwrap_or_default(),
            receiver_identity_pubkey: row.receiver.clone(),
            status: match row.state {
                HtlcState::Pending => Status::WaitingForPreimage,
                HtlcState::Settled => Status::PreimageShared,
                HtlcState::Returned => Status::Returned,
            }
            .into(),
            created_time: Some(timestamp(row.created_micros)),
            transfer: Some(self.transfer(&transfer, receiver).await?),
            // The sender's proof of payment, once the leaves are the receiver's.
            preimage: row.preimage.filter(|_| row.state == HtlcState::Settled).map(|bytes| bytes.to_vec()),
            sender_identity_pubkey: row.sender,
        })
    }
}

fn filter(identity: &[u8], request: &spark::QueryHtlcRequest) -> Result<Filter, Refused> {
    if request.payment_hashes.len() > input::MAX_IDS {
        return Err(Refused::field("payment_hashes", format!("at most {}", input::MAX_IDS)));
    }
    if request.payment_hashes.iter().any(|hash| hash.len() != 32) {
        return Err(Refused::field("payment_hashes", "must have 32 bytes each"));
    }
    let (sends, receives) = match Role::try_from(request.match_role) {
        Ok(Role::Receiver) => (false, true),
        Ok(Role::Sender) => (true, false),
        Ok(Role::ReceiverAndSender) => (true, true),
        Err(_) => return Err(Refused::field("match_role", "is not known")),
    };
    let state = match request.status.map(Status::try_from) {
        None => None,
        Some(Ok(Status::WaitingForPreimage)) => Some(HtlcState::Pending),
        Some(Ok(Status::PreimageShared)) => Some(HtlcState::Settled),
        Some(Ok(Status::Returned)) => Some(HtlcState::Returned),
        Some(Err(_)) => return Err(Refused::field("status", "is not known")),
    };
    Ok(Filter {
        sender: sends.then(|| identity.to_vec()),
        receiver: receives.then(|| identity.to_vec()),
        payment_hashes: request.payment_hashes.clone(),
        transfers: input::transfer_ids(&request.transfer_ids)?.iter().map(|id| id.uuid()).collect(),
        state,
    })
}
