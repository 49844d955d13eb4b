//! An operator's public service that answers whatever a test wants: where tests need a liar, no honest program will
//! do.

use std::{any::Any, collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use spark_proto::{
    log::v1::{
        WatchLeavesRequest, WatchLeavesResponse,
        deletion_log_server::{DeletionLog, DeletionLogServer},
    },
    packages::v1::{
        ReserveKeyRequest, ReserveKeyResponse,
        package_keys_server::{PackageKeys, PackageKeysServer},
    },
    signer::v1 as signer,
    spark::{
        self,
        spark_service_server::{SparkService, SparkServiceServer},
    },
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

type Answer = Box<dyn Any + Send>;
type Handler = Arc<dyn Fn(Answer) -> Option<Result<Answer, Status>> + Send + Sync>;

/// Methods by name; what is not set is unimplemented.
#[derive(Clone, Default)]
pub(crate) struct Liar(BTreeMap<&'static str, Handler>);

impl Liar {
    /// Answers `method` by a function of the request.
    pub(crate) fn on<Q: 'static, A: Send + 'static>(
        mut self,
        method: &'static str,
        answer: impl Fn(Q) -> Result<A, Status> + Send + Sync + 'static,
    ) -> Self {
        let handler = move |request: Answer| {
            let request = request.downcast::<Q>().expect("the method's request");
            Some(answer(*request).map(|a| Box::new(a) as Answer))
        };
        self.0.insert(method, Arc::new(handler));
        self
    }

    /// Never answers `method`.
    pub(crate) fn hang(mut self, method: &'static str) -> Self {
        self.0.insert(method, Arc::new(|_| None));
        self
    }

    async fn answer<Q: Send + 'static, A: 'static>(
        &self,
        method: &str,
        request: Request<Q>,
    ) -> Result<Response<A>, Status> {
        let handler = self.0.get(method).ok_or_else(|| Status::unimplemented(method.to_owned()))?.clone();
        let Some(answer) = handler(Box::new(request.into_inner())) else {
            return std::future::pending().await;
        };
        Ok(Response::new(*answer?.downcast::<A>().expect("the method's answer")))
    }

    /// Serves on a port of its own.
    pub(crate) fn serve(self) -> Channel {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let server = Server::builder()
            .add_service(SparkServiceServer::new(self.clone()))
            .add_service(DeletionLogServer::new(self.clone()))
            .add_service(PackageKeysServer::new(self));
        tokio::spawn(server.serve_with_incoming(incoming));
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
    }
}

type Reply<'f, A> = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send + 'f>>;

macro_rules! service {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {
        impl SparkService for Liar {
            type subscribe_to_eventsStream =
                futures::stream::Pending<Result<spark::SubscribeToEventsResponse, Status>>;

            fn subscribe_to_events<'l, 'f>(
                &'l self,
                _: Request<spark::SubscribeToEventsRequest>,
            ) -> Reply<'f, Self::subscribe_to_eventsStream>
            where
                'l: 'f,
                Self: 'f,
            {
                Box::pin(async { Ok(Response::new(futures::stream::pending())) })
            }

            $(
                fn $method<'l, 'f>(&'l self, request: Request<$request>) -> Reply<'f, $answer>
                where
                    'l: 'f,
                    Self: 'f,
                {
                    Box::pin(self.answer(stringify!($method), request))
                }
            )*
        }
    };
}

service! {
    generate_deposit_address(spark::GenerateDepositAddressRequest) -> spark::GenerateDepositAddressResponse;
    generate_static_deposit_address(spark::GenerateStaticDepositAddressRequest) -> spark::GenerateStaticDepositAddressResponse;
    rotate_static_deposit_address(spark::RotateStaticDepositAddressRequest) -> spark::RotateStaticDepositAddressResponse;
    start_deposit_tree_creation(spark::StartDepositTreeCreationRequest) -> spark::StartDepositTreeCreationResponse;
    finalize_deposit_tree_creation(spark::FinalizeDepositTreeCreationRequest) -> spark::FinalizeDepositTreeCreationResponse;
    finalize_transfer_with_transfer_package(spark::FinalizeTransferWithTransferPackageRequest) -> spark::FinalizeTransferResponse;
    query_pending_transfers(spark::TransferFilter) -> spark::QueryTransfersResponse;
    query_all_transfers(spark::TransferFilter) -> spark::QueryTransfersResponse;
    claim_transfer_tweak_keys(spark::ClaimTransferTweakKeysRequest) -> ();
    store_preimage_share(spark::StorePreimageShareRequest) -> ();
    store_preimage_share_v2(spark::StorePreimageShareV2Request) -> ();
    get_signing_commitments(spark::GetSigningCommitmentsRequest) -> spark::GetSigningCommitmentsResponse;
    provide_preimage(spark::ProvidePreimageRequest) -> spark::ProvidePreimageResponse;
    query_preimage(spark::QueryPreimageRequest) -> spark::QueryPreimageResponse;
    query_htlc(spark::QueryHtlcRequest) -> spark::QueryHtlcResponse;
    renew_leaf(spark::RenewLeafRequest) -> spark::RenewLeafResponse;
    get_signing_operator_list(()) -> spark::GetSigningOperatorListResponse;
    query_nodes(spark::QueryNodesRequest) -> spark::QueryNodesResponse;
    query_balance(spark::QueryBalanceRequest) -> spark::QueryBalanceResponse;
    query_user_signed_refunds(spark::QueryUserSignedRefundsRequest) -> spark::QueryUserSignedRefundsResponse;
    query_unused_deposit_addresses(spark::QueryUnusedDepositAddressesRequest) -> spark::QueryUnusedDepositAddressesResponse;
    query_static_deposit_addresses(spark::QueryStaticDepositAddressesRequest) -> spark::QueryStaticDepositAddressesResponse;
    initiate_static_deposit_utxo_refund(spark::InitiateStaticDepositUtxoRefundRequest) -> spark::InitiateStaticDepositUtxoRefundResponse;
    exit_single_node_trees(spark::ExitSingleNodeTreesRequest) -> spark::ExitSingleNodeTreesResponse;
    cooperative_exit_v2(spark::CooperativeExitRequest) -> spark::CooperativeExitResponse;
    claim_transfer_sign_refunds_v2(spark::ClaimTransferSignRefundsRequest) -> spark::ClaimTransferSignRefundsResponse;
    finalize_node_signatures_v2(spark::FinalizeNodeSignaturesRequest) -> spark::FinalizeNodeSignaturesResponse;
    initiate_preimage_swap_v2(spark::InitiatePreimageSwapRequest) -> spark::InitiatePreimageSwapResponse;
    initiate_preimage_swap_v3(spark::InitiatePreimageSwapRequest) -> spark::InitiatePreimageSwapResponse;
    start_leaf_swap_v2(spark::StartTransferRequest) -> spark::StartTransferResponse;
    start_transfer_v2(spark::StartTransferRequest) -> spark::StartTransferResponse;
    start_transfer_v3(spark::StartTransferV3Request) -> spark::StartTransferResponse;
    claim_transfer(spark::ClaimTransferRequest) -> spark::ClaimTransferResponse;
    get_utxos_for_address(spark::GetUtxosForAddressRequest) -> spark::GetUtxosForAddressResponse;
    get_utxos_for_identity(spark::GetUtxosForIdentityRequest) -> spark::GetUtxosForIdentityResponse;
    query_spark_invoices(spark::QuerySparkInvoicesRequest) -> spark::QuerySparkInvoicesResponse;
    initiate_swap_primary_transfer(spark::InitiateSwapPrimaryTransferRequest) -> spark::InitiateSwapPrimaryTransferResponse;
    update_wallet_setting(spark::UpdateWalletSettingRequest) -> spark::UpdateWalletSettingResponse;
    query_wallet_setting(spark::QueryWalletSettingRequest) -> spark::QueryWalletSettingResponse;
    query_spark_transaction_volumes(spark::QuerySparkTransactionVolumesRequest) -> spark::QuerySparkTransactionVolumesResponse;
}

#[tonic::async_trait]
impl DeletionLog for Liar {
    async fn get_checkpoint(
        &self,
        request: Request<signer::GetCheckpointRequest>,
    ) -> Result<Response<signer::GetCheckpointResponse>, Status> {
        self.answer("get_checkpoint", request).await
    }

    async fn get_receipts(
        &self,
        request: Request<signer::GetReceiptsRequest>,
    ) -> Result<Response<signer::GetReceiptsResponse>, Status> {
        self.answer("get_receipts", request).await
    }

    async fn prove_consistency(
        &self,
        request: Request<signer::ProveConsistencyRequest>,
    ) -> Result<Response<signer::ProveConsistencyResponse>, Status> {
        self.answer("prove_consistency", request).await
    }

    type WatchLeavesStream = futures::stream::BoxStream<'static, Result<WatchLeavesResponse, Status>>;

    /// Says what a test likes, and then nothing for ever.
    async fn watch_leaves(
        &self,
        request: Request<WatchLeavesRequest>,
    ) -> Result<Response<Self::WatchLeavesStream>, Status> {
        use futures::StreamExt as _;
        let said: Vec<WatchLeavesResponse> = self.answer("watch_leaves", request).await?.into_inner();
        let said = futures::stream::iter(said.into_iter().map(Ok)).chain(futures::stream::pending());
        Ok(Response::new(said.boxed()))
    }
}

#[tonic::async_trait]
impl PackageKeys for Liar {
    async fn reserve_key(
        &self,
        request: Request<ReserveKeyRequest>,
    ) -> Result<Response<ReserveKeyResponse>, Status> {
        self.answer("reserve_key", request).await
    }
}
