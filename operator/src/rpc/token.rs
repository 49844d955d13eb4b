//! Tokens are not offered yet; wallets need one honest answer to synchronise.

use spark_proto::{
    spark,
    spark_token::{
        self as wire, query_token_transactions_request::QueryType,
        spark_token_service_server::SparkTokenService,
    },
};
use tonic::{Request, Response, Status};

use super::{Api, input};
use crate::{authn::Reader, status::Refused};

/// Keys or token ids of one query.
const MAX_KEYS: usize = 1000;

#[tonic::async_trait]
impl SparkTokenService for Api {
    async fn query_token_outputs(
        &self,
        request: Request<wire::QueryTokenOutputsRequest>,
    ) -> Result<Response<wire::QueryTokenOutputsResponse>, Status> {
        let reader = self.reader(&request)?;
        Ok(Response::new(self.token_outputs(&reader, &request.into_inner()).await?))
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
        request: Request<wire::QueryTokenTransactionsRequest>,
    ) -> Result<Response<wire::QueryTokenTransactionsResponse>, Status> {
        let reader = self.reader(&request)?;
        Ok(Response::new(self.token_transactions(&reader, &request.into_inner()).await?))
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
    /// There are no tokens, so nobody has transactions.
    async fn token_transactions(
        &self,
        reader: &Reader,
        request: &wire::QueryTokenTransactionsRequest,
    ) -> Result<wire::QueryTokenTransactionsResponse, Refused> {
        let owners = match &request.query_type {
            Some(QueryType::ByFilters(filters)) => &filters.owner_public_keys,
            Some(QueryType::ByTxHash(_)) | None => &request.owner_public_keys,
        };
        self.owners(owners, reader).await?;
        Ok(wire::QueryTokenTransactionsResponse {
            token_transactions_with_status: Vec::new(),
            offset: -1,
            page_response: Some(spark::PageResponse::default()),
        })
    }

    /// Keys about whose tokens the reader may ask.
    async fn owners(&self, owners: &[Vec<u8>], reader: &Reader) -> Result<(), Refused> {
        if owners.len() > MAX_KEYS {
            return Err(Refused::field("owner_public_keys", format!("at most {MAX_KEYS}")));
        }
        for owner in owners {
            self.readable("owner_public_keys", owner, reader).await?;
        }
        Ok(())
    }

    /// There are no tokens, so nobody has outputs.
    async fn token_outputs(
        &self,
        reader: &Reader,
        request: &wire::QueryTokenOutputsRequest,
    ) -> Result<wire::QueryTokenOutputsResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let keys = request.owner_public_keys.len().max(request.issuer_public_keys.len());
        if keys.max(request.token_identifiers.len()) > MAX_KEYS {
            return Err(Refused::field("owner_public_keys", format!("at most {MAX_KEYS} keys or token ids")));
        }
        self.owners(&request.owner_public_keys, reader).await?;
        Ok(wire::QueryTokenOutputsResponse {
            outputs_with_previous_transaction_data: Vec::new(),
            page_response: Some(spark::PageResponse::default()),
        })
    }
}
