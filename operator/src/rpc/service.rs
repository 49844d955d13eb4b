//! The service trait, method by method: session out of the request, handler, reply.

use spark_proto::spark::{self, SubscribeToEventsResponse, spark_service_server::SparkService};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Api,
    commitments::{self, Wanted},
    input,
    transfers::Scope,
};
use crate::{
    authn::{Reader, Session},
    db::query_node,
    status::{Reason, Refused},
};

#[tonic::async_trait]
impl SparkService for Api {
    type subscribe_to_eventsStream = ReceiverStream<Result<SubscribeToEventsResponse, Status>>;

    async fn generate_deposit_address(
        &self,
        request: Request<spark::GenerateDepositAddressRequest>,
    ) -> Result<Response<spark::GenerateDepositAddressResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.new_deposit_address(&session, request).await?))
    }

    async fn generate_static_deposit_address(
        &self,
        request: Request<spark::GenerateStaticDepositAddressRequest>,
    ) -> Result<Response<spark::GenerateStaticDepositAddressResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.static_deposit_address(&session, request).await?))
    }

    async fn rotate_static_deposit_address(
        &self,
        request: Request<spark::RotateStaticDepositAddressRequest>,
    ) -> Result<Response<spark::RotateStaticDepositAddressResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.rotated_static_deposit_address(&session, request).await?))
    }

    async fn start_deposit_tree_creation(
        &self,
        _: Request<spark::StartDepositTreeCreationRequest>,
    ) -> Result<Response<spark::StartDepositTreeCreationResponse>, Status> {
        Err(Refused::unimplemented("start_deposit_tree_creation").into())
    }

    async fn finalize_deposit_tree_creation(
        &self,
        request: Request<spark::FinalizeDepositTreeCreationRequest>,
    ) -> Result<Response<spark::FinalizeDepositTreeCreationResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.deposit(&session, request).await?))
    }

    async fn finalize_transfer_with_transfer_package(
        &self,
        _: Request<spark::FinalizeTransferWithTransferPackageRequest>,
    ) -> Result<Response<spark::FinalizeTransferResponse>, Status> {
        Err(Refused::unimplemented("finalize_transfer_with_transfer_package").into())
    }

    async fn query_pending_transfers(
        &self,
        request: Request<spark::TransferFilter>,
    ) -> Result<Response<spark::QueryTransfersResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.transfers(&reader, request, Scope::Pending).await?))
    }

    async fn query_all_transfers(
        &self,
        request: Request<spark::TransferFilter>,
    ) -> Result<Response<spark::QueryTransfersResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.transfers(&reader, request, Scope::All).await?))
    }

    async fn claim_transfer_tweak_keys(
        &self,
        _: Request<spark::ClaimTransferTweakKeysRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Refused::unimplemented("claim_transfer_tweak_keys").into())
    }

    async fn store_preimage_share(
        &self,
        _: Request<spark::StorePreimageShareRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Refused::unimplemented("store_preimage_share").into())
    }

    async fn store_preimage_share_v2(
        &self,
        _: Request<spark::StorePreimageShareV2Request>,
    ) -> Result<Response<()>, Status> {
        Err(Refused::unimplemented("store_preimage_share_v2").into())
    }

    async fn get_signing_commitments(
        &self,
        request: Request<spark::GetSigningCommitmentsRequest>,
    ) -> Result<Response<spark::GetSigningCommitmentsResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.signing_commitments(&session, &request).await?))
    }

    async fn provide_preimage(
        &self,
        request: Request<spark::ProvidePreimageRequest>,
    ) -> Result<Response<spark::ProvidePreimageResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.preimage_provided(&session, request).await?))
    }

    async fn query_preimage(
        &self,
        _: Request<spark::QueryPreimageRequest>,
    ) -> Result<Response<spark::QueryPreimageResponse>, Status> {
        Err(Refused::unimplemented("query_preimage").into())
    }

    async fn query_htlc(
        &self,
        request: Request<spark::QueryHtlcRequest>,
    ) -> Result<Response<spark::QueryHtlcResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.htlcs(&session, request).await?))
    }

    async fn renew_leaf(
        &self,
        request: Request<spark::RenewLeafRequest>,
    ) -> Result<Response<spark::RenewLeafResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.renew(&session, request).await?))
    }

    async fn get_signing_operator_list(
        &self,
        _: Request<()>,
    ) -> Result<Response<spark::GetSigningOperatorListResponse>, Status> {
        Ok(Response::new(self.operators()))
    }

    async fn query_nodes(
        &self,
        request: Request<spark::QueryNodesRequest>,
    ) -> Result<Response<spark::QueryNodesResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.nodes(&reader, request).await?))
    }

    async fn query_balance(
        &self,
        request: Request<spark::QueryBalanceRequest>,
    ) -> Result<Response<spark::QueryBalanceResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.balance(&reader, request).await?))
    }

    async fn query_user_signed_refunds(
        &self,
        _: Request<spark::QueryUserSignedRefundsRequest>,
    ) -> Result<Response<spark::QueryUserSignedRefundsResponse>, Status> {
        Err(Refused::unimplemented("query_user_signed_refunds").into())
    }

    async fn query_unused_deposit_addresses(
        &self,
        request: Request<spark::QueryUnusedDepositAddressesRequest>,
    ) -> Result<Response<spark::QueryUnusedDepositAddressesResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.unused_deposit_addresses(&reader, request).await?))
    }

    async fn query_static_deposit_addresses(
        &self,
        request: Request<spark::QueryStaticDepositAddressesRequest>,
    ) -> Result<Response<spark::QueryStaticDepositAddressesResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.static_deposit_addresses(&reader, request).await?))
    }

    async fn subscribe_to_events(
        &self,
        request: Request<spark::SubscribeToEventsRequest>,
    ) -> Result<Response<Self::subscribe_to_eventsStream>, Status> {
        let session = Session::of(&request)?;
        let identity =
            input::own_identity("identity_public_key", &request.get_ref().identity_public_key, &session)?;
        Ok(Response::new(self.parts.events.subscribe(identity.serialize()).await?))
    }

    async fn initiate_static_deposit_utxo_refund(
        &self,
        request: Request<spark::InitiateStaticDepositUtxoRefundRequest>,
    ) -> Result<Response<spark::InitiateStaticDepositUtxoRefundResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.refund_static_deposit(&session, request).await?))
    }

    async fn exit_single_node_trees(
        &self,
        _: Request<spark::ExitSingleNodeTreesRequest>,
    ) -> Result<Response<spark::ExitSingleNodeTreesResponse>, Status> {
        Err(Refused::unimplemented("exit_single_node_trees").into())
    }

    async fn cooperative_exit_v2(
        &self,
        request: Request<spark::CooperativeExitRequest>,
    ) -> Result<Response<spark::CooperativeExitResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.exit_cooperatively(&session, request).await?))
    }

    async fn claim_transfer_sign_refunds_v2(
        &self,
        _: Request<spark::ClaimTransferSignRefundsRequest>,
    ) -> Result<Response<spark::ClaimTransferSignRefundsResponse>, Status> {
        Err(Refused::unimplemented("claim_transfer_sign_refunds_v2").into())
    }

    async fn finalize_node_signatures_v2(
        &self,
        _: Request<spark::FinalizeNodeSignaturesRequest>,
    ) -> Result<Response<spark::FinalizeNodeSignaturesResponse>, Status> {
        Err(Refused::unimplemented("finalize_node_signatures_v2").into())
    }

    async fn initiate_preimage_swap_v2(
        &self,
        _: Request<spark::InitiatePreimageSwapRequest>,
    ) -> Result<Response<spark::InitiatePreimageSwapResponse>, Status> {
        Err(Refused::unimplemented("initiate_preimage_swap_v2").into())
    }

    async fn initiate_preimage_swap_v3(
        &self,
        request: Request<spark::InitiatePreimageSwapRequest>,
    ) -> Result<Response<spark::InitiatePreimageSwapResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.send_for_preimage(&session, request).await?))
    }

    async fn start_leaf_swap_v2(
        &self,
        _: Request<spark::StartTransferRequest>,
    ) -> Result<Response<spark::StartTransferResponse>, Status> {
        Err(Refused::unimplemented("start_leaf_swap_v2").into())
    }

    async fn start_transfer_v2(
        &self,
        request: Request<spark::StartTransferRequest>,
    ) -> Result<Response<spark::StartTransferResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.send(&session, request).await?))
    }

    async fn start_transfer_v3(
        &self,
        request: Request<spark::StartTransferV3Request>,
    ) -> Result<Response<spark::StartTransferResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.send_many(&session, request).await?))
    }

    async fn claim_transfer(
        &self,
        request: Request<spark::ClaimTransferRequest>,
    ) -> Result<Response<spark::ClaimTransferResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.claim(&session, request).await?))
    }

    async fn get_utxos_for_address(
        &self,
        request: Request<spark::GetUtxosForAddressRequest>,
    ) -> Result<Response<spark::GetUtxosForAddressResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.utxos_of_address(&reader, request).await?))
    }

    async fn get_utxos_for_identity(
        &self,
        request: Request<spark::GetUtxosForIdentityRequest>,
    ) -> Result<Response<spark::GetUtxosForIdentityResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.utxos_of_identity(&reader, request).await?))
    }

    async fn query_spark_invoices(
        &self,
        request: Request<spark::QuerySparkInvoicesRequest>,
    ) -> Result<Response<spark::QuerySparkInvoicesResponse>, Status> {
        let (reader, request) = (self.reader(&request)?, request.into_inner());
        Ok(Response::new(self.invoices(&reader, &request).await?))
    }

    async fn initiate_swap_primary_transfer(
        &self,
        _: Request<spark::InitiateSwapPrimaryTransferRequest>,
    ) -> Result<Response<spark::InitiateSwapPrimaryTransferResponse>, Status> {
        Err(Refused::unimplemented("initiate_swap_primary_transfer").into())
    }

    async fn update_wallet_setting(
        &self,
        request: Request<spark::UpdateWalletSettingRequest>,
    ) -> Result<Response<spark::UpdateWalletSettingResponse>, Status> {
        let (session, request) = (Session::of(&request)?, request.into_inner());
        Ok(Response::new(self.update_setting(&session, request).await?))
    }

    async fn query_wallet_setting(
        &self,
        request: Request<spark::QueryWalletSettingRequest>,
    ) -> Result<Response<spark::QueryWalletSettingResponse>, Status> {
        let session = Session::of(&request)?;
        Ok(Response::new(self.setting(&session).await?))
    }

    async fn query_spark_transaction_volumes(
        &self,
        _: Request<spark::QuerySparkTransactionVolumesRequest>,
    ) -> Result<Response<spark::QuerySparkTransactionVolumesResponse>, Status> {
        Err(Refused::unimplemented("query_spark_transaction_volumes").into())
    }
}

impl Api {
    /// Who asks a query.
    pub(super) fn reader<T>(&self, request: &Request<T>) -> Result<Reader, Refused> {
        Reader::of(request, self.parts.open_reads)
    }

    async fn signing_commitments(
        &self,
        session: &Session,
        request: &spark::GetSigningCommitmentsRequest,
    ) -> Result<spark::GetSigningCommitmentsResponse, Refused> {
        let wanted = Wanted::parse(request)?;
        if let Wanted::Bound { leaves, .. } = &wanted {
            let ids: Vec<_> = leaves.iter().map(|leaf| leaf.uuid()).collect();
            let owned =
                query_node::owned_among(self.parts.db.pool(), &ids, &session.identity.serialize()).await?;
            if let Some(foreign) = leaves.iter().find(|leaf| !owned.contains(&leaf.uuid())) {
                // Wallets with an old view of their leaves synchronise on this text.
                return Err(Refused::new(Reason::LeafUnknown, "leaf is not owned by this session")
                    .with("leaf", foreign));
            }
        }
        let parts = &self.parts;
        let signing_commitments =
            commitments::collect(&parts.federation, parts.own, &parts.nonces, &wanted, session).await?;
        Ok(spark::GetSigningCommitmentsResponse { signing_commitments })
    }
}
