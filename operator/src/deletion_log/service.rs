//! The deletion log for wallets: this operator's signer answers, receipts to owners only (D16).

use std::sync::Arc;

use spark_proto::{
    log::v1::{WatchLeavesRequest, WatchLeavesResponse, deletion_log_server::DeletionLog},
    signer::v1::{
        GetCheckpointRequest, GetCheckpointResponse, GetReceiptsRequest, GetReceiptsResponse,
        ProveConsistencyRequest, ProveConsistencyResponse,
    },
};
use spark_rules::ids::LeafId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    publish::{Head, Published},
    theirs::Theirs,
    watch::Watch,
};
use crate::{
    authn::Session,
    call::CallError,
    db::Db,
    signer_client::SignerClient,
    status::{Reason, Refused},
};

/// Answers from the own signer.
#[derive(Debug, Clone)]
pub struct LogService {
    db: Db,
    signer: SignerClient,
    published: Published,
    watch: Watch,
}

impl LogService {
    /// Over the own tables, the own signer, and what was published.
    pub fn new(db: Db, signer: SignerClient, published: Published) -> Self {
        let watch = Watch::start(db.clone(), Arc::new(signer.clone()), published.clone());
        Self { db, signer, published, watch }
    }

    /// One head for all answers: what the signer says in between has no cosignatures.
    fn head(&self) -> Result<Arc<Head>, Refused> {
        let unpublished = || Refused::new(Reason::SignerUnreachable, "no head of the log is published yet");
        self.published.newest().ok_or_else(unpublished)
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
        Ok(Response::new(GetCheckpointResponse { checkpoint: self.head()?.note.clone() }))
    }

    async fn prove_consistency(
        &self,
        request: Request<ProveConsistencyRequest>,
    ) -> Result<Response<ProveConsistencyResponse>, Status> {
        Session::of(&request)?;
        let request = request.into_inner();
        if request.old_size == 0 || request.old_size > request.new_size {
            return Err(Refused::field("old_size", "is 0 or more than new_size").into());
        }
        if request.new_size > self.head()?.checkpoint.size {
            return Err(Refused::field("new_size", "is more than was published").into());
        }
        let reply = self.signer.prove_consistency(request).await.map_err(|e| unreachable(&e))?;
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
        let theirs = Theirs::of(&self.db, &id, &session.identity.serialize()).await?;
        let head = self.head()?;
        // A later page leads to the head that the first one came with.
        let (checkpoint, tree_size) = match request.tree_size {
            0 => (head.note.clone(), head.checkpoint.size),
            earlier if earlier <= head.checkpoint.size => (String::new(), earlier),
            _ => return Err(Refused::field("tree_size", "is more than was published").into()),
        };
        let mut reply = GetReceiptsResponse { checkpoint, ..Default::default() };
        if tree_size == 0 {
            return Ok(Response::new(reply));
        }
        let request = GetReceiptsRequest { tree_size, ..request };
        let found = self.signer.get_receipts(request).await.map_err(|e| unreachable(&e))?;
        (reply.receipts, reply.proofs, reply.next) = (found.receipts, found.proofs, found.next);
        let shown: Vec<bool> = reply.receipts.iter().map(|receipt| theirs.includes(receipt)).collect();
        let mut keep = shown.iter();
        reply.receipts.retain(|_| keep.next().copied().unwrap_or(false));
        let mut keep = shown.iter();
        reply.proofs.retain(|_| keep.next().copied().unwrap_or(false));
        Ok(Response::new(reply))
    }
    type WatchLeavesStream = ReceiverStream<Result<WatchLeavesResponse, Status>>;

    async fn watch_leaves(
        &self,
        request: Request<WatchLeavesRequest>,
    ) -> Result<Response<Self::WatchLeavesStream>, Status> {
        let session = Session::of(&request)?;
        Ok(Response::new(self.watch.subscribe(&session, &request.get_ref().leaf_ids).await?))
    }
}
