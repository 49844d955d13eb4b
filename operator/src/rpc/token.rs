//! Tokens are not offered yet; wallets need one honest answer to synchronise.

use spark_proto::{
    spark,
    spark_token::{self as wire, spark_token_service_server::SparkTokenService},
};
use tonic::{Request, Response, Status};

use super::{Api, input};
use crate::{authn::Session, status::Refused};

/// Keys or token ids of one query.
const MAX_KEYS: usize = 1000;

#[tonic::async_trait]
impl SparkTokenService for Api {
    async fn query_token_outputs(
        &self,
        request: Request<wire::QueryTokenOutputsRequest>,
    ) -> Result<Response<wire::QueryTokenOutputsResponse>, Status> {
        let session = Session::of(&request)?;
        Ok(Response::new(self.token_outputs(&session, &request.into_inner())?))
    }

    async fn start_transaction(
        &self,
        _: Request<wire::StartTransactionRequest>,
    ) -> Result<Response<wire::StartTransactionResponse>, Status> {
        Err(Refused::unimplemented("start_transaction").into())
    }

    async fn commit_transaction(
        &self,
        _: Request<wire::CommitTransactionRequest>,
    ) -> Result<Response<wire::CommitTransactionResponse>, Status> {
        Err(Refused::unimplemented("commit_transaction").into())
    }

    async fn query_token_metadata(
        &self,
        _: Request<wire::QueryTokenMetadataRequest>,
    ) -> Result<Response<wire::QueryTokenMetadataResponse>, Status> {
        Err(Refused::unimplemented("query_token_metadata").into())
    }

    async fn query_token_transactions(
        &self,
        _: Request<wire::QueryTokenTransactionsRequest>,
    ) -> Result<Response<wire::QueryTokenTransactionsResponse>, Status> {
        Err(Refused::unimplemented("query_token_transactions").into())
    }

    async fn freeze_tokens(
        &self,
        _: Request<wire::FreezeTokensRequest>,
    ) -> Result<Response<wire::FreezeTokensResponse>, Status> {
        Err(Refused::unimplemented("freeze_tokens").into())
    }

    async fn broadcast_transaction(
        &self,
        _: Request<wire::BroadcastTransactionRequest>,
    ) -> Result<Response<wire::BroadcastTransactionResponse>, Status> {
        Err(Refused::unimplemented("broadcast_transaction").into())
    }
}

impl Api {
    /// There are no tokens, so nobody has outputs.
    fn token_outputs(
        &self,
        session: &Session,
        request: &wire::QueryTokenOutputsRequest,
    ) -> Result<wire::QueryTokenOutputsResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let keys = request.owner_public_keys.len().max(request.issuer_public_keys.len());
        if keys.max(request.token_identifiers.len()) > MAX_KEYS {
            return Err(Refused::field("owner_public_keys", format!("at most {MAX_KEYS} keys or token ids")));
        }
        for owner in &request.owner_public_keys {
            input::own_identity("owner_public_keys", owner, session)?;
        }
        Ok(wire::QueryTokenOutputsResponse {
            outputs_with_previous_transaction_data: Vec::new(),
            page_response: Some(spark::PageResponse::default()),
        })
    }
}
