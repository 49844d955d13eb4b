//! Persistent channels to the peers, and one way to reach the signer of any member.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use spark_proto::{
    peer::v1::{self as wire, peer_client::PeerClient as Client},
    signer::v1 as signer,
};
use spark_rules::ids::OperatorIndex;
use tonic::{Code, transport::Channel};

use crate::{
    call::{CallError, MAX_MESSAGE, unary},
    metrics::Metrics,
    signer_client::SignerClient,
};

/// One peer; clones share the channel.
#[derive(Debug, Clone)]
pub struct PeerClient {
    index: OperatorIndex,
    client: Client<Channel>,
    deadline: Duration,
    metrics: Metrics,
}

impl PeerClient {
    /// Over a channel made once; `deadline` bounds every call, and each is counted.
    pub fn new(index: OperatorIndex, channel: Channel, deadline: Duration, metrics: Metrics) -> Self {
        let client = Client::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Self { index, client, deadline, metrics }
    }

    fn ended<T>(&self, result: &Result<T, CallError>, started: Instant) {
        let code = result.as_ref().map_or_else(CallError::code, |_| Code::Ok);
        self.metrics.peer_call(self.index.get(), code, started.elapsed());
    }
}

macro_rules! peer_calls {
    ($($(#[$doc:meta])* $name:ident: $request:ty => $response:ty;)*) => {
        impl PeerClient {
            $($(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response, CallError> {
                let (mut client, started) = (self.client.clone(), Instant::now());
                let result = unary(self.deadline, request, |r| async move { client.$name(r).await }).await;
                self.ended(&result, started);
                result
            })*
        }
    };
}

peer_calls! {
    /// Same federation?
    hello: wire::HelloRequest => wire::HelloResponse;
    /// Asks for a vote.
    prepare: wire::Operation => wire::PrepareReply;
    /// Hands over a proof of commit.
    apply: wire::ApplyRequest => wire::ApplyReply;
    /// Hands over a proof of abort.
    abort: wire::AbortRequest => wire::AbortReply;
    /// What do you know?
    query_proof: wire::QueryProofRequest => wire::QueryProofReply;
    /// Everybody has applied it.
    close: wire::CloseRequest => wire::CloseReply;
    /// How does this conditional operation end?
    ask_settlement: wire::SettlementQuestion => wire::SettlementAnswer;
    /// Hands over how it ended.
    settle: wire::SettleRequest => wire::SettleReply;
    /// Nonce commitments of the peer's signer.
    commit_nonces: signer::CommitNoncesRequest => signer::CommitNoncesResponse;
    /// Binding by the peer's signer.
    bind_keyshare: signer::BindKeyshareRequest => signer::BindKeyshareResponse;
    /// Possession share of the peer's signer.
    prove_possession: signer::ProvePossessionRequest => signer::ProvePossessionResponse;
    /// Share of a static deposit's refund, of the peer's signer.
    refund_static_deposit: signer::RefundStaticDepositRequest => signer::RefundStaticDepositResponse;
    /// Signature shares of the peer's signer.
    release: signer::ReleaseRequest => signer::ReleaseResponse;
    /// ABORT of the peer's signer.
    sign_abort: signer::SignAbortRequest => signer::SignAbortResponse;
    /// Key generation, first round.
    dkg_start: signer::DkgStartRequest => signer::DkgRound1;
    /// Key generation, second round.
    dkg_respond: signer::DkgRound1Set => signer::DkgRound2;
    /// Key generation, transcript.
    dkg_finish: signer::DkgRound2Set => signer::DkgTranscript;
    /// Key generation, end.
    dkg_confirm: signer::DkgTranscriptSet => signer::DkgConfirmResponse;
    /// Refresh of shares: a one-time key of the peer's signer.
    refresh_open: signer::RefreshOpenRequest => signer::RefreshOpening;
    /// Refresh of shares: what the peer's signer deals.
    refresh_deal: signer::RefreshOpeningSet => wire::RefreshDeal;
    /// The peer's signer as witness.
    answer_witness: signer::WitnessQuestion => signer::WitnessAnswer;
    /// The peer's signer as witness of the own log.
    cosign_log: signer::CosignLogRequest => signer::CosignLogResponse;
    /// Heads of logs as the peer sees them.
    show_logs: wire::ShowLogsRequest => wire::ShowLogsReply;
    /// That the peer's log only grew.
    prove_log: signer::ProveConsistencyRequest => signer::ProveConsistencyResponse;
    /// Repair of the own signer: the page as the peer's signer has it.
    repair_list: signer::RepairTicket => signer::RepairListing;
    /// Repair of the own signer: a helper's deltas, encrypted.
    repair_split: signer::RepairListingSet => signer::RepairDeltas;
    /// Repair of the own signer: a helper's sums, encrypted.
    repair_sum: signer::RepairDeltaSet => signer::RepairSum;
    /// Repair of the own signer: it has the page.
    repair_close: signer::RepairProgress => signer::RepairCloseResponse;
}

/// The signers of all members: the own one directly, the others through their operators.
#[derive(Debug, Clone)]
pub struct Signers {
    own: OperatorIndex,
    signer: SignerClient,
    peers: BTreeMap<OperatorIndex, PeerClient>,
}

impl Signers {
    /// `peers` are all members but `own`.
    pub fn new(own: OperatorIndex, signer: SignerClient, peers: BTreeMap<OperatorIndex, PeerClient>) -> Self {
        Self { own, signer, peers }
    }

    /// This operator.
    pub const fn own_index(&self) -> OperatorIndex {
        self.own
    }

    /// The own signer.
    pub const fn own(&self) -> &SignerClient {
        &self.signer
    }

    /// One peer.
    pub fn peer(&self, index: OperatorIndex) -> Result<&PeerClient, CallError> {
        self.peers.get(&index).ok_or(CallError::Stranger(index.get()))
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = (OperatorIndex, &PeerClient)> {
        self.peers.iter().map(|(index, peer)| (*index, peer))
    }

    /// All members, ascending.
    pub fn members(&self) -> Vec<OperatorIndex> {
        let mut all: Vec<_> = self.peers.keys().copied().chain([self.own]).collect();
        all.sort_unstable();
        all
    }
}

macro_rules! everywhere {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $response:ident;)*) => {
        impl Signers {
            $($(#[$doc])*
            pub async fn $name(
                &self,
                index: OperatorIndex,
                request: signer::$request,
            ) -> Result<signer::$response, CallError> {
                if index == self.own {
                    self.signer.$name(request).await
                } else {
                    self.peer(index)?.$name(request).await
                }
            })*
        }
    };
}

everywhere! {
    /// Nonce commitments of a member's signer.
    commit_nonces: CommitNoncesRequest -> CommitNoncesResponse;
    /// Binding by a member's signer.
    bind_keyshare: BindKeyshareRequest -> BindKeyshareResponse;
    /// Possession share of a member's signer.
    prove_possession: ProvePossessionRequest -> ProvePossessionResponse;
    /// Signature shares of a member's signer.
    release: ReleaseRequest -> ReleaseResponse;
    /// ABORT of a member's signer.
    sign_abort: SignAbortRequest -> SignAbortResponse;
    /// Key generation, first round.
    dkg_start: DkgStartRequest -> DkgRound1;
    /// Key generation, second round.
    dkg_respond: DkgRound1Set -> DkgRound2;
    /// Key generation, transcript.
    dkg_finish: DkgRound2Set -> DkgTranscript;
    /// Key generation, end.
    dkg_confirm: DkgTranscriptSet -> DkgConfirmResponse;
    /// Refresh of shares: a one-time key of a member's signer.
    refresh_open: RefreshOpenRequest -> RefreshOpening;
}

impl Signers {
    /// Refresh of shares: what a member's signer deals.
    pub async fn refresh_deal(
        &self,
        index: OperatorIndex,
        request: signer::RefreshOpeningSet,
    ) -> Result<wire::RefreshDeal, CallError> {
        if index == self.own {
            self.signer.refresh_deal(request).await
        } else {
            self.peer(index)?.refresh_deal(request).await
        }
    }
}
