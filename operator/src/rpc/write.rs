//! Calls that run an operation.

use spark_proto::{
    peer::v1::operation::Request,
    spark::{self, renew_leaf_request::SigningJobs, renew_leaf_response::RenewResult},
};
use uuid::Uuid;

use super::{
    Api, input,
    package::Bounds,
    refusal::{of_retryable, of_send},
};
use crate::{
    authn::Session,
    convert::transfer_uuid,
    db::{
        query_node,
        query_transfer::{self, Listing},
        transfer::{COMPLETED, TransferRow},
    },
    status::{Reason, Refused},
};

impl Api {
    pub(super) fn bounds(&self) -> Bounds<'_> {
        Bounds::new(&self.parts.federation)
    }

    pub(super) async fn deposit(
        &self,
        session: &Session,
        request: spark::FinalizeDepositTreeCreationRequest,
    ) -> Result<spark::FinalizeDepositTreeCreationResponse, Refused> {
        input::own_identity("identity_public_key", &request.identity_public_key, session)?;
        self.bounds().deposit(&request)?;
        let utxos = request.on_chain_utxo.iter().chain(&request.additional_on_chain_utxos);
        for utxo in utxos {
            input::network("on_chain_utxo.network", utxo.network, self.parts.network)?;
        }
        let leaf = self.deposit_leaf(session, &request).await?;
        self.parts
            .operations
            .run(Request::Deposit(request), &session.identity)
            .await
            .map_err(of_retryable)?;
        Ok(spark::FinalizeDepositTreeCreationResponse {
            root_node: Some(self.own_node(leaf, session).await?),
        })
    }

    /// The leaf that the deposit's address was made for.
    async fn deposit_leaf(
        &self,
        session: &Session,
        request: &spark::FinalizeDepositTreeCreationRequest,
    ) -> Result<Uuid, Refused> {
        let unknown =
            || Refused::new(Reason::AddressUnknown, "no deposit address of yours is paid by this output");
        let utxo = request.on_chain_utxo.as_ref().ok_or_else(unknown)?;
        let tx: bitcoin::Transaction = bitcoin::consensus::deserialize(&utxo.raw_tx)
            .map_err(|_| Refused::field("on_chain_utxo.raw_tx", "is not a transaction"))?;
        let output = usize::try_from(utxo.vout).ok().and_then(|vout| tx.output.get(vout));
        let output = output
            .ok_or_else(|| Refused::field("on_chain_utxo.vout", "is not an output of the transaction"))?;
        let row =
            crate::db::address::by_script(self.parts.db.pool(), output.script_pubkey.as_bytes()).await?;
        row.filter(|row| row.identity == session.identity.serialize())
            .map(|row| row.leaf_id)
            .ok_or_else(unknown)
    }

    pub(super) async fn send(
        &self,
        session: &Session,
        request: spark::StartTransferRequest,
    ) -> Result<spark::StartTransferResponse, Refused> {
        input::own_identity("owner_identity_public_key", &request.owner_identity_public_key, session)?;
        self.bounds().send(&request)?;
        let id = request.transfer_id.clone();
        let leaf = first_leaf(request.transfer_package.as_ref());
        self.started(session, &id, &leaf, Request::Send(request)).await
    }

    /// A transfer to several receivers: all of them or none.
    pub(super) async fn send_many(
        &self,
        session: &Session,
        request: spark::StartTransferV3Request,
    ) -> Result<spark::StartTransferResponse, Refused> {
        let package = self.bounds().send_many(&request)?;
        input::own_identity(
            "sender_packages.owner_identity_public_key",
            &package.owner_identity_public_key,
            session,
        )?;
        let id = request.transfer_id.clone();
        let leaf = first_leaf(package.transfer_package.as_ref());
        self.started(session, &id, &leaf, Request::SendMany(request)).await
    }

    async fn started(
        &self,
        session: &Session,
        id: &str,
        leaf: &str,
        request: Request,
    ) -> Result<spark::StartTransferResponse, Refused> {
        let id = transfer_uuid(input::transfer_id("transfer_id", id)?);
        self.parts
            .operations
            .run(request, &session.identity)
            .await
            .map_err(|refused| of_send(refused, leaf))?;
        self.parts.events.wake();
        let (row, _) = self.transfer_of(id, session).await?;
        // Aggregated here: the sender has nothing left to do.
        Ok(spark::StartTransferResponse {
            transfer: Some(self.transfer(&row, None).await?),
            signing_results: Vec::new(),
        })
    }

    pub(super) async fn claim(
        &self,
        session: &Session,
        request: spark::ClaimTransferRequest,
    ) -> Result<spark::ClaimTransferResponse, Refused> {
        let receiver =
            input::own_identity("owner_identity_public_key", &request.owner_identity_public_key, session)?;
        self.bounds().claim(&request)?;
        let id = transfer_uuid(input::transfer_id("transfer_id", &request.transfer_id)?);
        let (_, share) = self.transfer_of(id, session).await?;
        let share = share.ok_or_else(Refused::not_owner)?;
        // Two devices of one wallet claim the same transfer: the later one gets the result of the earlier, once that is
        // everywhere.
        if share.status != COMPLETED || !self.settled(id, session).await? {
            self.parts
                .operations
                .run(Request::Claim(request), &session.identity)
                .await
                .map_err(of_retryable)?;
        }
        let (row, _) = self.transfer_of(id, session).await?;
        let transfer = self.transfer(&row, Some(&receiver.serialize())).await?;
        Ok(spark::ClaimTransferResponse { transfer: Some(transfer) })
    }

    async fn settled(&self, id: Uuid, session: &Session) -> Result<bool, Refused> {
        let identity = Some(session.identity.serialize().to_vec());
        let listing = Listing { receiver: identity, ids: vec![id], ..Listing::default() };
        Ok(!query_transfer::page(self.parts.db.pool(), &listing, 1, 0).await?.is_empty())
    }

    pub(super) async fn renew(
        &self,
        session: &Session,
        request: spark::RenewLeafRequest,
    ) -> Result<spark::RenewLeafResponse, Refused> {
        self.bounds().renew(&request)?;
        let leaf = input::leaf_id("leaf_id", &request.leaf_id)?.uuid();
        let owned =
            query_node::owned_among(self.parts.db.pool(), &[leaf], &session.identity.serialize()).await?;
        if owned.is_empty() {
            return Err(Refused::new(Reason::LeafUnknown, "leaf is not known").with("leaf", request.leaf_id));
        }
        let path = request.signing_jobs.clone();
        self.parts.operations.run(Request::Renew(request), &session.identity).await.map_err(of_retryable)?;
        let node = Some(self.own_node(leaf, session).await?);
        let result = match path {
            Some(SigningJobs::RenewRefundTimelockSigningJob(_)) => {
                RenewResult::RenewRefundTimelockResult(spark::RenewRefundTimelockResult { node })
            }
            Some(SigningJobs::RenewNodeTimelockSigningJob(_)) => {
                let split_node = self.parent(node.as_ref(), session).await?;
                RenewResult::RenewNodeTimelockResult(spark::RenewNodeTimelockResult { split_node, node })
            }
            Some(SigningJobs::RenewNodeZeroTimelockSigningJob(_)) => {
                let split_node = self.parent(node.as_ref(), session).await?;
                RenewResult::RenewNodeZeroTimelockResult(spark::RenewNodeZeroTimelockResult {
                    split_node,
                    node,
                })
            }
            None => return Err(Refused::field("signing_jobs", "is missing")),
        };
        Ok(spark::RenewLeafResponse { renew_result: Some(result) })
    }

    async fn parent(
        &self,
        node: Option<&spark::TreeNode>,
        session: &Session,
    ) -> Result<Option<spark::TreeNode>, Refused> {
        match node.and_then(|node| node.parent_node_id.as_deref()) {
            Some(parent) => {
                Ok(Some(self.own_node(input::leaf_id("parent_node_id", parent)?.uuid(), session).await?))
            }
            None => Ok(None),
        }
    }

    async fn own_node(&self, leaf: Uuid, session: &Session) -> Result<spark::TreeNode, Refused> {
        let rows =
            query_node::visible(self.parts.db.pool(), &[leaf], &session.identity.serialize(), &[]).await?;
        let row = rows.first().ok_or_else(|| Refused::new(Reason::LeafUnknown, "leaf is not known"))?;
        Ok(self.converter.node(row)?)
    }

    pub(super) async fn transfer(
        &self,
        row: &TransferRow,
        receiver: Option<&[u8]>,
    ) -> Result<spark::Transfer, Refused> {
        let mut shown = self.shown(std::slice::from_ref(row), receiver).await?;
        shown.pop().ok_or_else(|| Refused::new(Reason::TransferUnknown, "transfer is not known"))
    }
}

/// Whose leaf a refusal names.
pub(super) fn first_leaf(package: Option<&spark::TransferPackage>) -> String {
    package.and_then(|p| p.leaves_to_send.first()).map(|job| job.leaf_id.clone()).unwrap_or_default()
}
