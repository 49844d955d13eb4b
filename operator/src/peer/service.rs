//! What peers may ask: every call comes from a pinned key that names one member.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use spark_proto::{
    peer::v1::{self as wire, peer_server::Peer},
    signer::v1 as signer,
    transport::{PeerSpki, Spki},
};
use spark_rules::{
    federation::Federation,
    ids::OperatorIndex,
    vote::{Position, VoteError},
};
use tonic::{Code, Request, Response, Status};

use crate::{
    call::CallError,
    deletion_log::Heads,
    deposit_address::DepositAddresses,
    keypool,
    op::{Engine, EngineError},
    static_deposit::StaticDeposits,
};

/// Which member calls: set by a layer from the pinned TLS key, or derived here from [`PeerSpki`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIndex(pub OperatorIndex);

/// The member whose federation entry pins this TLS key.
pub fn index_of_spki(federation: &Federation, spki: &Spki) -> Option<OperatorIndex> {
    federation.members().iter().find(|m| m.tls_spki.contains(spki.as_bytes())).map(|m| m.index)
}

/// The peer listener's service.
#[derive(Debug, Clone)]
pub struct PeerService {
    engine: Engine,
    addresses: DepositAddresses,
    refunds: StaticDeposits,
    heads: Heads,
    /// Evidence against members that is in the log already.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl PeerService {
    /// Over the engine, the deposit addresses and the static deposits of this operator, and the heads of logs that it sees.
    pub fn new(engine: Engine, addresses: DepositAddresses, refunds: StaticDeposits, heads: Heads) -> Self {
        Self { engine, addresses, refunds, heads, told: Arc::default() }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<OperatorIndex, Status> {
        let extensions = request.extensions();
        let index = match (extensions.get::<PeerIndex>(), extensions.get::<PeerSpki>()) {
            (Some(PeerIndex(index)), _) => Some(*index),
            (None, Some(PeerSpki(Some(spki)))) => index_of_spki(self.engine.federation(), spki),
            _ => None,
        };
        index
            .filter(|i| {
                *i != self.engine.signers().own_index() && self.engine.federation().member(*i).is_some()
            })
            .ok_or_else(|| Status::unauthenticated("TLS key is not that of another member"))
    }
}

/// The claimed index must be the caller's.
fn same(caller: OperatorIndex, claimed: u32) -> Result<(), Status> {
    if u32::from(caller.get()) == claimed {
        Ok(())
    } else {
        Err(Status::permission_denied("speaks for another operator"))
    }
}

pub(crate) fn status(error: EngineError) -> Status {
    let text = error.to_string();
    match error {
        EngineError::Db(error) => {
            tracing::error!(%error, "database");
            Status::unavailable("database")
        }
        EngineError::Call(error) => call_status(error),
        EngineError::Vote(_) => Status::invalid_argument(text),
        EngineError::Operation(error) => Status::failed_precondition(format!("{}: {error}", error.reason())),
        EngineError::ChainStale(_) => Status::unavailable(text),
        EngineError::Unknown => Status::not_found(text),
        EngineError::Forbidden(_) => Status::permission_denied(text),
        EngineError::State(_) => Status::failed_precondition(text),
        EngineError::Stored(_) | EngineError::Task(_) => {
            tracing::error!(%text, "engine");
            Status::internal("stored state")
        }
    }
}

/// The own signer's answer is the peer's business; not reaching it is ours.
pub(crate) fn call_status(error: CallError) -> Status {
    match error {
        CallError::Status(status) if error_is_transport(&status) => {
            Status::unavailable("signer is not reached")
        }
        CallError::Status(status) => Status::new(status.code(), status.message()),
        error @ (CallError::Deadline(_) | CallError::Stranger(_)) => Status::unavailable(error.to_string()),
    }
}

fn error_is_transport(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unauthenticated | Code::PermissionDenied | Code::Unknown
    )
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Peer for PeerService {
    async fn hello(&self, request: Request<wire::HelloRequest>) -> Reply<wire::HelloResponse> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().sender)?;
        let federation = self.engine.federation();
        let hello = request.get_ref();
        if hello.federation_epoch != federation.epoch() || hello.federation_hash != federation.hash() {
            return Err(Status::failed_precondition("another federation file"));
        }
        Ok(Response::new(wire::HelloResponse {
            federation_epoch: federation.epoch(),
            federation_hash: federation.hash().to_vec(),
            sender: self.engine.signers().own_index().get().into(),
            ready: self.engine.db().ping().await.is_ok(),
        }))
    }

    async fn commit_nonces(
        &self,
        request: Request<signer::CommitNoncesRequest>,
    ) -> Reply<signer::CommitNoncesResponse> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.commit_nonces(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn bind_keyshare(
        &self,
        request: Request<signer::BindKeyshareRequest>,
    ) -> Reply<signer::BindKeyshareResponse> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().binding.as_ref().map_or(u32::MAX, |b| b.coordinator))?;
        self.addresses.on_bind(request.into_inner()).await.map(Response::new).map_err(Status::from)
    }

    async fn prove_possession(
        &self,
        request: Request<signer::ProvePossessionRequest>,
    ) -> Reply<signer::ProvePossessionResponse> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.prove_possession(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn refund_static_deposit(
        &self,
        request: Request<signer::RefundStaticDepositRequest>,
    ) -> Reply<signer::RefundStaticDepositResponse> {
        self.caller(&request)?;
        self.refunds.on_refund(request.into_inner()).await.map(Response::new).map_err(Status::from)
    }

    async fn prepare(&self, request: Request<wire::Operation>) -> Reply<wire::PrepareReply> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().coordinator)?;
        let vote = self.engine.on_prepare(caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::PrepareReply { vote: Some(vote) }))
    }

    async fn release(&self, request: Request<signer::ReleaseRequest>) -> Reply<signer::ReleaseResponse> {
        self.caller(&request)?;
        self.engine.on_release(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Reply<wire::ApplyReply> {
        self.caller(&request)?;
        let receipts = self.engine.on_apply(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::ApplyReply { receipts }))
    }

    async fn sign_abort(
        &self,
        request: Request<signer::SignAbortRequest>,
    ) -> Reply<signer::SignAbortResponse> {
        let caller = self.caller(&request)?;
        self.engine.on_sign_abort(caller, request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Reply<wire::AbortReply> {
        self.caller(&request)?;
        self.engine.on_abort(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::AbortReply {}))
    }

    async fn query_proof(&self, request: Request<wire::QueryProofRequest>) -> Reply<wire::QueryProofReply> {
        self.caller(&request)?;
        self.engine.on_query(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn close(&self, request: Request<wire::CloseRequest>) -> Reply<wire::CloseReply> {
        let caller = self.caller(&request)?;
        self.engine.on_close(caller, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::CloseReply {}))
    }

    async fn refresh_open(
        &self,
        request: Request<signer::RefreshOpenRequest>,
    ) -> Reply<signer::RefreshOpening> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().coordinator)?;
        let own = self.engine.signers().own();
        own.refresh_open(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn refresh_deal(&self, request: Request<signer::RefreshOpeningSet>) -> Reply<wire::RefreshDeal> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.refresh_deal(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn ask_settlement(
        &self,
        request: Request<wire::SettlementQuestion>,
    ) -> Reply<wire::SettlementAnswer> {
        self.caller(&request)?;
        self.engine.on_ask_settlement(&request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn settle(&self, request: Request<wire::SettleRequest>) -> Reply<wire::SettleReply> {
        self.caller(&request)?;
        let receipts = self.engine.on_settle(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(wire::SettleReply { receipts }))
    }

    async fn dkg_start(&self, request: Request<signer::DkgStartRequest>) -> Reply<signer::DkgRound1> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().initiator)?;
        if request.get_ref().count > keypool::MAX_BATCH {
            return Err(Status::invalid_argument(format!("at most {} keys in a batch", keypool::MAX_BATCH)));
        }
        let own = self.engine.signers().own();
        own.dkg_start(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn dkg_respond(&self, request: Request<signer::DkgRound1Set>) -> Reply<signer::DkgRound2> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.dkg_respond(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn dkg_finish(&self, request: Request<signer::DkgRound2Set>) -> Reply<signer::DkgTranscript> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.dkg_finish(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn dkg_confirm(
        &self,
        request: Request<signer::DkgTranscriptSet>,
    ) -> Reply<signer::DkgConfirmResponse> {
        self.caller(&request)?;
        let request = request.into_inner();
        let session = request.session_id.clone();
        let confirmed = self.engine.signers().own().dkg_confirm(request).await.map_err(call_status)?;
        keypool::record(self.engine.db(), self.engine.federation(), &session, &confirmed)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(confirmed))
    }

    async fn answer_witness(
        &self,
        request: Request<signer::WitnessQuestion>,
    ) -> Reply<signer::WitnessAnswer> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().asker)?;
        Position::parse(request.get_ref().position.as_ref())
            .and_then(|p| if p.signer == caller { Ok(()) } else { Err(VoteError::Disagree("signer")) })
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = self.engine.signers().own();
        own.answer_witness(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn cosign_log(
        &self,
        request: Request<signer::CosignLogRequest>,
    ) -> Reply<signer::CosignLogResponse> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().operator)?;
        let own = self.engine.signers().own();
        let request = request.into_inner();
        let note = request.checkpoint.clone();
        let reply = own.cosign_log(request).await.map_err(call_status)?;
        if !reply.cosignature.is_empty() {
            self.heads.cosigned(caller, note);
        }
        // It will ask again and again: said once.
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(reply.evidence.clone());
        if !reply.distrust.is_empty() && told() {
            tracing::error!(
                operator = caller.get(),
                reason = %reply.distrust,
                evidence = %reply.evidence,
                "deletion log of this operator contradicts itself"
            );
        }
        Ok(Response::new(reply))
    }

    async fn show_logs(&self, request: Request<wire::ShowLogsRequest>) -> Reply<wire::ShowLogsReply> {
        self.caller(&request)?;
        Ok(Response::new(self.heads.shown()))
    }

    async fn prove_log(
        &self,
        request: Request<signer::ProveConsistencyRequest>,
    ) -> Reply<signer::ProveConsistencyResponse> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.prove_consistency(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn repair_list(&self, request: Request<signer::RepairTicket>) -> Reply<signer::RepairListing> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().lost)?;
        let own = self.engine.signers().own();
        own.repair_list(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn repair_split(&self, request: Request<signer::RepairListingSet>) -> Reply<signer::RepairDeltas> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.repair_split(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn repair_sum(&self, request: Request<signer::RepairDeltaSet>) -> Reply<signer::RepairSum> {
        self.caller(&request)?;
        let own = self.engine.signers().own();
        own.repair_sum(request.into_inner()).await.map(Response::new).map_err(call_status)
    }

    async fn repair_close(
        &self,
        request: Request<signer::RepairProgress>,
    ) -> Reply<signer::RepairCloseResponse> {
        let caller = self.caller(&request)?;
        same(caller, request.get_ref().lost)?;
        let own = self.engine.signers().own();
        own.repair_close(request.into_inner()).await.map(Response::new).map_err(call_status)
    }
}
