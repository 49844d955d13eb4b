//! The deletion log for wallets: this operator's signer answers, owners only (D16).

use spark_proto::{
    log::v1::deletion_log_server::DeletionLog,
    signer::v1::{GetCheckpointRequest, GetCheckpointResponse, GetReceiptsRequest, GetReceiptsResponse},
};
use spark_rules::ids::LeafId;
use tonic::{Request, Response, Status};

use crate::{
    authn::Session,
    call::CallError,
    db::{Db, leaf},
    signer_client::SignerClient,
    status::{Reason, Refused},
};

/// Answers from the own signer.
#[derive(Debug, Clone)]
pub struct LogService {
    db: Db,
    signer: SignerClient,
}

impl LogService {
    /// Over the own tables and the own signer.
    pub const fn new(db: Db, signer: SignerClient) -> Self {
        Self { db, signer }
    }
}

fn unreachable(error: &CallError) -> Refused {
    tracing::warn!(%error, "deletion log");
    Refused::new(Reason::SignerUnreachable, "signer does not answer")
}

#[tonic::async_trait]
impl DeletionLog for LogService {
    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        Session::of(&request)?;
        let reply = self.signer.get_checkpoint(request.into_inner()).await.map_err(|e| unreachable(&e))?;
        Ok(Response::new(reply))
    }

    async fn get_receipts(
        &self,
        request: Request<GetReceiptsRequest>,
    ) -> Result<Response<GetReceiptsResponse>, Status> {
        let session = Session::of(&request)?;
        let request = request.into_inner();
        let id =
            LeafId::parse(&request.leaf_id).map_err(|_| Refused::field("leaf_id", "is not a leaf id"))?;
        let identity = session.identity.serialize();
        let last =
            leaf::last_owned_version(self.db.pool(), id.uuid(), &identity).await.map_err(Refused::from)?;
        let last = last.and_then(|version| u64::try_from(version).ok()).ok_or_else(Refused::not_owner)?;
        let mut reply = self.signer.get_receipts(request).await.map_err(|e| unreachable(&e))?;
        // What became of the leaf after it was theirs is for its later owners only.
        let theirs: Vec<bool> =
            reply.receipts.iter().map(|receipt| receipt.retired_version <= last).collect();
        let mut keep = theirs.iter();
        reply.receipts.retain(|_| keep.next().copied().unwrap_or(false));
        let mut keep = theirs.iter();
        reply.proofs.retain(|_| keep.next().copied().unwrap_or(false));
        Ok(Response::new(reply))
    }
}
