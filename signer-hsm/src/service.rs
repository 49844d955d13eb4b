//! The gRPC service: one call of the engine each, errors mapped in one place.

use std::time::Instant;

use spark_proto::signer::v1::{self as wire, signer_server::Signer};
use spark_signer::engine::{EngineError, Reply, Request as Call};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

use crate::{metrics::Metrics, worker::Worker};

/// Metadata key of the stable reason.
pub const REASON: &str = "spark-reason";

/// `signer.v1.Signer` over the engine's thread.
#[derive(Debug, Clone)]
pub struct SignerService {
    worker: Worker,
    metrics: Metrics,
}

impl SignerService {
    /// Serves calls on `worker`.
    pub const fn new(worker: Worker, metrics: Metrics) -> Self {
        Self { worker, metrics }
    }

    async fn call(&self, method: &'static str, request: Call) -> Result<Reply, Status> {
        let started = Instant::now();
        let result = match self.worker.call(request).await {
            Ok(Ok(reply)) => {
                self.metrics.replied(&reply);
                Ok(reply)
            }
            Ok(Err(error)) => {
                self.metrics.refused(error.reason());
                tracing::info!(method, reason = error.reason(), %error, "refused");
                Err(status(&error))
            }
            Err(overloaded) => {
                self.metrics.refused("OVERLOADED");
                Err(with_reason(Status::resource_exhausted(overloaded.to_string()), "OVERLOADED"))
            }
        };
        let code = result.as_ref().map_or_else(|s| code_name(s.code()), |_| "OK");
        self.metrics.request(method, code, started.elapsed());
        result
    }
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::Aborted => "ABORTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DataLoss => "DATA_LOSS",
        _ => "OTHER",
    }
}

pub(crate) fn with_reason(mut status: Status, reason: &'static str) -> Status {
    status.metadata_mut().insert(REASON, MetadataValue::from_static(reason));
    status
}

/// The one mapping from refusals to gRPC. Nothing secret is in any text.
pub fn status(error: &EngineError) -> Status {
    let code = match error.reason() {
        "FIELD_INVALID" => Code::InvalidArgument,
        "UNKNOWN" => Code::NotFound,
        "OPERATION_DIFFERS" => Code::AlreadyExists,
        "LEAF_UNAVAILABLE" | "NONCE_UNKNOWN" => Code::Aborted,
        "ROLLBACK_DETECTED" | "STORE_CORRUPT" => Code::DataLoss,
        _ if error.is_transient() => Code::Unavailable,
        _ => Code::FailedPrecondition,
    };
    with_reason(Status::new(code, error.to_string()), error.reason())
}

macro_rules! calls {
    ($($method:ident: $request:ty => $variant:ident, $reply:ident($response:ty);)*) => {
        #[tonic::async_trait]
        impl Signer for SignerService {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    match self.call(stringify!($method), Call::$variant(request.into_inner())).await? {
                        Reply::$reply(reply) => Ok(Response::new(reply)),
                        _ => Err(Status::internal("reply of another kind")),
                    }
                }
            )*
        }
    };
}

calls! {
    get_status: wire::GetStatusRequest => GetStatus, Status(wire::GetStatusResponse);
    commit_nonces: wire::CommitNoncesRequest => CommitNonces, CommitNonces(wire::CommitNoncesResponse);
    issue_package_keys: wire::IssuePackageKeysRequest => IssuePackageKeys, PackageKeys(wire::IssuePackageKeysResponse);
    bind_keyshare: wire::BindKeyshareRequest => BindKeyshare, BindKeyshare(wire::BindKeyshareResponse);
    prove_possession: wire::ProvePossessionRequest => ProvePossession, ProvePossession(wire::ProvePossessionResponse);
    refund_static_deposit: wire::RefundStaticDepositRequest => RefundStaticDeposit, RefundStaticDeposit(wire::RefundStaticDepositResponse);
    prepare: wire::PrepareRequest => Prepare, Prepare(wire::PrepareResponse);
    release: wire::ReleaseRequest => Release, Release(wire::ReleaseResponse);
    apply: wire::ApplyRequest => Apply, Apply(wire::ApplyResponse);
    sign_abort: wire::SignAbortRequest => SignAbort, SignAbort(wire::SignAbortResponse);
    abort: wire::AbortRequest => Abort, Abort(wire::AbortResponse);
    sign_settlement: wire::SignSettlementRequest => SignSettlement, SignSettlement(wire::SignSettlementResponse);
    settle: wire::SettleRequest => Settle, Settle(wire::ApplyResponse);
    read_journal: wire::ReadJournalRequest => ReadJournal, ReadJournal(wire::ReadJournalResponse);
    dkg_start: wire::DkgStartRequest => DkgStart, DkgRound1(wire::DkgRound1);
    dkg_respond: wire::DkgRound1Set => DkgRespond, DkgRound2(wire::DkgRound2);
    dkg_finish: wire::DkgRound2Set => DkgFinish, DkgTranscript(wire::DkgTranscript);
    dkg_confirm: wire::DkgTranscriptSet => DkgConfirm, DkgConfirm(wire::DkgConfirmResponse);
    ask_witness: wire::AskWitnessRequest => AskWitness, WitnessQuestion(wire::WitnessQuestion);
    answer_witness: wire::WitnessQuestion => AnswerWitness, WitnessAnswer(wire::WitnessAnswer);
    accept_witness: wire::AcceptWitnessRequest => AcceptWitness, Status(wire::GetStatusResponse);
    get_checkpoint: wire::GetCheckpointRequest => GetCheckpoint, Checkpoint(wire::GetCheckpointResponse);
    get_receipts: wire::GetReceiptsRequest => GetReceipts, Receipts(wire::GetReceiptsResponse);
    prove_consistency: wire::ProveConsistencyRequest => ProveConsistency, Consistency(wire::ProveConsistencyResponse);
    read_tile: wire::ReadTileRequest => ReadTile, Tile(wire::ReadTileResponse);
    read_log: wire::ReadLogRequest => ReadLog, Log(wire::ReadLogResponse);
    cosign_log: wire::CosignLogRequest => CosignLog, Cosigned(wire::CosignLogResponse);
    compare_log: wire::CompareLogRequest => CompareLog, Compared(wire::CompareLogResponse);
    repair_open: wire::RepairOpenRequest => RepairOpen, RepairTicket(wire::RepairTicket);
    repair_list: wire::RepairTicket => RepairList, RepairListing(wire::RepairListing);
    repair_split: wire::RepairListingSet => RepairSplit, RepairDeltas(wire::RepairDeltas);
    repair_sum: wire::RepairDeltaSet => RepairSum, RepairSum(wire::RepairSum);
    repair_finish: wire::RepairFinishRequest => RepairFinish, RepairProgress(wire::RepairProgress);
    repair_close: wire::RepairProgress => RepairClose, RepairClosed(wire::RepairCloseResponse);
    refresh_open: wire::RefreshOpenRequest => RefreshOpen, RefreshOpening(wire::RefreshOpening);
    refresh_deal: wire::RefreshOpeningSet => RefreshDeal, RefreshDeal(spark_proto::peer::v1::RefreshDeal);
    refresh_pending: wire::RefreshPendingRequest => RefreshPending, RefreshPending(wire::RefreshPendingResponse);
}
