//! The operator's own signer.

use std::time::Duration;

use spark_proto::{
    peer::v1::RefreshDeal,
    signer::v1::{self as wire, signer_client::SignerClient as Client},
};
use tonic::transport::Channel;

use crate::call::{CallError, MAX_MESSAGE, unary};

/// One persistent channel; clones share it.
#[derive(Debug, Clone)]
pub struct SignerClient {
    client: Client<Channel>,
    deadline: Duration,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $response:ident;)*) => {
        impl SignerClient {
            $($(#[$doc])*
            pub async fn $name(&self, request: wire::$request) -> Result<wire::$response, CallError> {
                let mut client = self.client.clone();
                unary(self.deadline, request, |r| async move { client.$name(r).await }).await
            })*
        }
    };
}

impl SignerClient {
    /// Over a channel made once; `deadline` bounds every call.
    pub fn new(channel: Channel, deadline: Duration) -> Self {
        let client = Client::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Self { client, deadline }
    }

    /// Refresh of shares: what the own signer deals.
    pub async fn refresh_deal(&self, request: wire::RefreshOpeningSet) -> Result<RefreshDeal, CallError> {
        let mut client = self.client.clone();
        unary(self.deadline, request, |r| async move { client.refresh_deal(r).await }).await
    }
}

calls! {
    /// Where the signer stands.
    get_status: GetStatusRequest -> GetStatusResponse;
    /// Fresh nonce commitments.
    commit_nonces: CommitNoncesRequest -> CommitNoncesResponse;
    /// One-time keys for packages.
    issue_package_keys: IssuePackageKeysRequest -> IssuePackageKeysResponse;
    /// Binds a keyshare to a deposit address.
    bind_keyshare: BindKeyshareRequest -> BindKeyshareResponse;
    /// A share of the proof of possession.
    prove_possession: ProvePossessionRequest -> ProvePossessionResponse;
    /// A share of a static deposit's refund.
    refund_static_deposit: RefundStaticDepositRequest -> RefundStaticDepositResponse;
    /// Policy, staging, vote.
    prepare: PrepareRequest -> PrepareResponse;
    /// Signature shares of one stage.
    release: ReleaseRequest -> ReleaseResponse;
    /// Applies a proof of commit.
    apply: ApplyRequest -> ApplyResponse;
    /// A signed ABORT, if nothing was released.
    sign_abort: SignAbortRequest -> SignAbortResponse;
    /// Applies a proof of abort.
    abort: AbortRequest -> AbortResponse;
    /// A decider's word on how a conditional operation ends.
    sign_settlement: SignSettlementRequest -> SignSettlementResponse;
    /// What the words of all deciders lead to.
    settle: SettleRequest -> ApplyResponse;
    /// Journal entries after a sequence.
    read_journal: ReadJournalRequest -> ReadJournalResponse;
    /// First round of key generation.
    dkg_start: DkgStartRequest -> DkgRound1;
    /// Second round.
    dkg_respond: DkgRound1Set -> DkgRound2;
    /// Transcript.
    dkg_finish: DkgRound2Set -> DkgTranscript;
    /// Keys become usable.
    dkg_confirm: DkgTranscriptSet -> DkgConfirmResponse;
    /// A question for the peers' signers (D11).
    ask_witness: AskWitnessRequest -> WitnessQuestion;
    /// An answer for a peer's signer.
    answer_witness: WitnessQuestion -> WitnessAnswer;
    /// The peers' answers.
    accept_witness: AcceptWitnessRequest -> GetStatusResponse;
    /// Signed log head.
    get_checkpoint: GetCheckpointRequest -> GetCheckpointResponse;
    /// Receipts of a leaf.
    get_receipts: GetReceiptsRequest -> GetReceiptsResponse;
    /// That the log only grew.
    prove_consistency: ProveConsistencyRequest -> ProveConsistencyResponse;
    /// A tile of the log.
    read_tile: ReadTileRequest -> ReadTileResponse;
    /// Entries of the log.
    read_log: ReadLogRequest -> ReadLogResponse;
    /// As witness of another operator's log.
    cosign_log: CosignLogRequest -> CosignLogResponse;
    /// As witness, of what others were shown.
    compare_log: CompareLogRequest -> CompareLogResponse;
    /// Repair of the own signer: the next page.
    repair_open: RepairOpenRequest -> RepairTicket;
    /// Repair of another signer: the page as this one has it.
    repair_list: RepairTicket -> RepairListing;
    /// Repair of another signer: deltas of the weighted shares, encrypted.
    repair_split: RepairListingSet -> RepairDeltas;
    /// Repair of another signer: their sums, encrypted.
    repair_sum: RepairDeltaSet -> RepairSum;
    /// Repair of the own signer: what the others answered.
    repair_finish: RepairFinishRequest -> RepairProgress;
    /// Repair of another signer: it has the page.
    repair_close: RepairProgress -> RepairCloseResponse;
    /// Refresh of shares: a one-time key.
    refresh_open: RefreshOpenRequest -> RefreshOpening;
    /// Leaves that were repaired and not refreshed.
    refresh_pending: RefreshPendingRequest -> RefreshPendingResponse;
}
