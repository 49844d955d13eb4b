//! The signer's engine: every durable change of the signer is one of these calls, and many calls share one batch
//! of the vault (OPERATION.md D2, D10).
//!
//! No clock, no network: the caller gives the time and carries messages. A call that fails leaves nothing behind,
//! except that nonces it touched are gone.

mod abort;
mod alarms;
mod apply;
mod bind;
mod contradiction;
mod cosign;
mod deletion_log;
mod devices;
mod error;
mod generate;
mod journal;
mod ledger;
mod package_keys;
mod pending;
mod prepare;
mod refresh;
mod release;
mod repair;
mod rotate;
mod settle;
mod split_view;
mod static_deposit;
mod status;
#[cfg(test)]
mod tests;
mod witness;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand_core::{OsRng, RngCore as _};
use spark_proto::signer::v1 as wire;
use spark_rules::{
    federation::Federation,
    ids::OperatorIndex,
    vote::{Ballot, Position},
};

pub use alarms::{Acknowledge, Alarm};
pub use devices::DeviceReport;
pub use error::EngineError;
pub use repair::ApprovedRepair;
pub use rotate::{Mark, Marks, Rotated};

use crate::{
    nonce::NonceBook,
    vault::{Destruction, DeviceId, RootId, Token, Txn, Vault},
};

/// A call.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once, from the queue to its handler")]
pub enum Request {
    /// Where the signer stands.
    GetStatus(wire::GetStatusRequest),
    /// New nonces.
    CommitNonces(wire::CommitNoncesRequest),
    /// New one-time keys for packages.
    IssuePackageKeys(wire::IssuePackageKeysRequest),
    /// Binds a keyshare to a deposit address.
    BindKeyshare(wire::BindKeyshareRequest),
    /// A share of a proof of possession.
    ProvePossession(wire::ProvePossessionRequest),
    /// A share of a static deposit's refund.
    RefundStaticDeposit(wire::RefundStaticDepositRequest),
    /// Checks, stages, votes.
    Prepare(wire::PrepareRequest),
    /// Hands out the shares of one stage.
    Release(wire::ReleaseRequest),
    /// Makes a proof of commit true.
    Apply(wire::ApplyRequest),
    /// Promises never to release.
    SignAbort(wire::SignAbortRequest),
    /// Makes a proof of abort true.
    Abort(wire::AbortRequest),
    /// Says how a conditional operation ends.
    SignSettlement(wire::SignSettlementRequest),
    /// Makes the word of all deciders true.
    Settle(wire::SettleRequest),
    /// Reads the journal.
    ReadJournal(wire::ReadJournalRequest),
    /// Key generation: round 1.
    DkgStart(wire::DkgStartRequest),
    /// Key generation: round 2.
    DkgRespond(wire::DkgRound1Set),
    /// Key generation: keys and transcript.
    DkgFinish(wire::DkgRound2Set),
    /// Key generation: keys become usable.
    DkgConfirm(wire::DkgTranscriptSet),
    /// Fingerprint and roots that the confirmer saw on a device. Comes from this process only, never over the wire.
    ConfirmDestruction(DeviceId, [u8; 32], Vec<RootId>),
    /// Question to the peers' memory.
    AskWitness(wire::AskWitnessRequest),
    /// Answer to a peer's question.
    AnswerWitness(wire::WitnessQuestion),
    /// The peers' answers.
    AcceptWitness(wire::AcceptWitnessRequest),
    /// The log's head.
    GetCheckpoint(wire::GetCheckpointRequest),
    /// Receipts of a leaf.
    GetReceipts(wire::GetReceiptsRequest),
    /// That the log only grew.
    ProveConsistency(wire::ProveConsistencyRequest),
    /// A tile of the log.
    ReadTile(wire::ReadTileRequest),
    /// Entries of the log.
    ReadLog(wire::ReadLogRequest),
    /// Follows another operator's log.
    CosignLog(wire::CosignLogRequest),
    /// Compares what others were shown of another operator's log.
    CompareLog(wire::CompareLogRequest),
    /// Repair of this signer: opens the next page.
    RepairOpen(wire::RepairOpenRequest),
    /// Repair of another signer: lists the page.
    RepairList(wire::RepairTicket),
    /// Repair of another signer, as helper: splits the weighted shares.
    RepairSplit(wire::RepairListingSet),
    /// Repair of another signer, as helper: adds the deltas up.
    RepairSum(wire::RepairDeltaSet),
    /// Repair of this signer: stores the page.
    RepairFinish(wire::RepairFinishRequest),
    /// Repair of another signer: its page is stored.
    RepairClose(wire::RepairProgress),
    /// Refresh of keyshares: a one-time key.
    RefreshOpen(wire::RefreshOpenRequest),
    /// Refresh of keyshares: deals to everybody.
    RefreshDeal(wire::RefreshOpeningSet),
    /// Leaves that were repaired and not refreshed.
    RefreshPending(wire::RefreshPendingRequest),
}

impl Request {
    /// Whether it may destroy a secret, so that its batch takes a new root of every device. Others never do.
    pub const fn may_destroy(&self) -> bool {
        matches!(
            self,
            Self::Apply(_)
                | Self::Abort(_)
                | Self::SignAbort(_)
                | Self::Settle(_)
                | Self::IssuePackageKeys(_)
        )
    }
}

/// What a call returns.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each variant is the reply of the request with the same name")]
pub enum Reply {
    Status(wire::GetStatusResponse),
    CommitNonces(wire::CommitNoncesResponse),
    PackageKeys(wire::IssuePackageKeysResponse),
    BindKeyshare(wire::BindKeyshareResponse),
    ProvePossession(wire::ProvePossessionResponse),
    RefundStaticDeposit(wire::RefundStaticDepositResponse),
    Prepare(wire::PrepareResponse),
    Release(wire::ReleaseResponse),
    Apply(wire::ApplyResponse),
    SignAbort(wire::SignAbortResponse),
    Abort(wire::AbortResponse),
    SignSettlement(wire::SignSettlementResponse),
    Settle(wire::ApplyResponse),
    ReadJournal(wire::ReadJournalResponse),
    DkgRound1(wire::DkgRound1),
    DkgRound2(wire::DkgRound2),
    DkgTranscript(wire::DkgTranscript),
    DkgConfirm(wire::DkgConfirmResponse),
    WitnessQuestion(wire::WitnessQuestion),
    WitnessAnswer(wire::WitnessAnswer),
    Checkpoint(wire::GetCheckpointResponse),
    Receipts(wire::GetReceiptsResponse),
    Consistency(wire::ProveConsistencyResponse),
    Tile(wire::ReadTileResponse),
    Log(wire::ReadLogResponse),
    Cosigned(wire::CosignLogResponse),
    Compared(wire::CompareLogResponse),
    RepairTicket(wire::RepairTicket),
    RepairListing(wire::RepairListing),
    RepairDeltas(wire::RepairDeltas),
    RepairSum(wire::RepairSum),
    RepairProgress(wire::RepairProgress),
    RepairClosed(wire::RepairCloseResponse),
    RefreshOpening(wire::RefreshOpening),
    RefreshDeal(spark_proto::peer::v1::RefreshDeal),
    RefreshPending(wire::RefreshPendingResponse),
    DestroyedBefore(u64),
}

/// Every alarm, by its stable name.
pub const ALARMS: &[&str] = &[
    "abort_after_release",
    "both_proofs",
    "commit_failed",
    "confirmer_differs",
    "destroy_pending",
    "device_away",
    "log_distrusted",
    "nonce_replayed",
    "prepare_differs",
    "rebind",
    "rolled_back",
];

/// Least pause between two tries to destroy what the token did not destroy.
const RETRY_DESTROY_SECONDS: u64 = 10;

/// How a signer is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who the signers are; from the federation file only.
    pub federation: Federation,
    /// Which of them this is.
    pub me: OperatorIndex,
    /// What the HSM's vendor profile may claim of a destroyed key.
    pub delete_claim: String,
    /// Repairs that a person approved here (D12). Those peers are not waited for at start (D11).
    pub approved_repairs: BTreeMap<OperatorIndex, ApprovedRepair>,
}

/// What the calls share besides the batch.
struct Shared {
    federation: Federation,
    me: OperatorIndex,
    delete_claim: String,
    nonces: NonceBook,
    possession: bind::PossessionNonces,
    refunds: static_deposit::Answers,
    generation: generate::Sessions,
    approved: BTreeMap<OperatorIndex, ApprovedRepair>,
    repairs: repair::Sessions,
    refreshes: refresh::Sessions,
    gate: witness::Gate,
    unproven: split_view::Unproven,
    alarms: alarms::Alarms,
    retired: BTreeSet<DeviceId>,
    token: Arc<dyn Token>,
    incarnation: spark_rules::ids::Incarnation,
    now: u64,
}

/// The engine over an open vault.
pub struct Engine {
    vault: Vault,
    retry_destroy_at: u64,
    shared: Shared,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("me", &self.shared.me)
            .field("vault", &self.vault)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Takes over an opened vault. Until [`Request::AcceptWitness`] succeeds it is locked: it reads and answers,
    /// but does not vote, release or destroy.
    pub fn new(vault: Vault, settings: Settings) -> Self {
        let token = Arc::clone(vault.token());
        let incarnation = vault.incarnation();
        let gate = witness::Gate::new();
        let repairs = repair::Sessions::new(&vault);
        let alarms = alarms::Alarms::of(&vault);
        let retired = devices::retired(&vault);
        let shared = Shared {
            federation: settings.federation,
            me: settings.me,
            delete_claim: settings.delete_claim,
            nonces: NonceBook::new(),
            possession: bind::PossessionNonces::default(),
            refunds: static_deposit::Answers::default(),
            generation: generate::Sessions::default(),
            approved: settings.approved_repairs,
            repairs,
            refreshes: refresh::Sessions::default(),
            gate,
            unproven: split_view::Unproven::default(),
            alarms,
            retired,
            token,
            incarnation,
            now: 0,
        };
        Self { vault, retry_destroy_at: 0, shared }
    }

    /// True until the peers' memory was heard.
    pub const fn is_locked(&self) -> bool {
        self.shared.gate.is_locked()
    }

    /// Alarms that a person must look at, by stable name.
    pub fn alarms(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.shared.alarms.kinds()
    }

    /// Open nonces.
    pub fn open_nonces(&self) -> usize {
        self.shared.nonces.len()
    }

    /// Operators whose log contradicts itself, each with the reason and the id of the evidence: nothing that they
    /// coordinate gets a vote until a person settles it.
    pub fn distrusted(&mut self) -> Result<Vec<(OperatorIndex, String, [u8; 32])>, EngineError> {
        let found = self.shared.distrusted(&self.vault.begin())?;
        if !found.is_empty() {
            self.shared.alarm("log_distrusted");
        }
        let named = found.into_iter().map(|(operator, evidence)| {
            let id = cosign::evidence_id(&evidence);
            (operator, evidence.reason, id)
        });
        Ok(named.collect())
    }

    /// Receipts in the deletion log.
    pub fn log_size(&mut self) -> Result<u64, EngineError> {
        deletion_log::size(&self.vault.begin())
    }

    /// Epoch before which every root is confirmed to be destroyed.
    pub fn destroyed_before(&mut self) -> Result<u64, EngineError> {
        deletion_log::destroyed_before(&self.vault.begin())
    }

    /// The vault, for reading.
    pub const fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The vault back, when the process stops.
    pub fn into_vault(self) -> Vault {
        self.vault
    }

    /// Runs calls in order, in one batch. Each fails alone; if the batch itself cannot be made durable, all of it
    /// fails. An acceptance of witnesses is a batch of its own: before it nothing can be written.
    pub fn run(&mut self, requests: Vec<Request>, now: u64) -> Vec<Result<Reply, EngineError>> {
        self.shared.now = now;
        self.shared.repairs.expire(now);
        if !self.vault.destroy_pending().is_empty() && now >= self.retry_destroy_at {
            self.retry_destroy_at = now.saturating_add(RETRY_DESTROY_SECONDS);
            if self.vault.retry_destroy() {
                self.shared.alarms.end("destroy_pending");
            }
        }
        let mut replies = Vec::with_capacity(requests.len());
        let mut batch = Vec::new();
        for request in requests {
            if matches!(request, Request::AcceptWitness(_)) {
                replies.extend(self.run_batch(std::mem::take(&mut batch)));
                replies.push(self.accept(request));
            } else {
                batch.push(request);
            }
        }
        replies.extend(self.run_batch(batch));
        replies
    }

    /// Work for when nobody waits: the root that the next batch will need.
    pub fn between_batches(&mut self) {
        // A token that fails now fails, or recovers, when the batch comes: that one reports it.
        let _ = self.vault.prepare_spare();
    }

    fn run_batch(&mut self, requests: Vec<Request>) -> Vec<Result<Reply, EngineError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        let mut txn = self.vault.begin();
        let mut replies = Vec::with_capacity(requests.len());
        for request in requests {
            let savepoint = txn.savepoint();
            let reply = self.shared.handle(&mut txn, request);
            if reply.is_err() {
                txn.rollback_to(savepoint);
            }
            replies.push(reply);
        }
        self.shared.alarms.keep(&mut txn);
        if txn.is_empty() {
            return replies;
        }
        match txn.commit() {
            Ok(committed) => {
                self.shared.alarms.kept();
                if committed.destruction == Destruction::Pending && !self.vault.destroy_pending().is_empty() {
                    self.shared.alarm("destroy_pending");
                }
                self.note_devices();
                replies
            }
            Err(error) => {
                self.shared.alarm("commit_failed");
                self.shared.repairs.begin_anew(&self.vault);
                let text = error.to_string();
                replies.into_iter().map(|_| Err(EngineError::Commit(text.clone()))).collect()
            }
        }
    }

    fn accept(&mut self, request: Request) -> Result<Reply, EngineError> {
        let was_locked = self.is_locked();
        self.shared.handle(&mut self.vault.begin(), request)?;
        if was_locked {
            // A fresh root before the first vote: of two copies of this store over one HSM only one can make it.
            let opened = self.vault.confirm_witnessed().map_err(EngineError::from);
            let opened = opened.and_then(|()| {
                self.vault.renew_root().map_err(|error| EngineError::Commit(error.to_string()))
            });
            if let Err(error) = opened {
                self.shared.gate.lock();
                return Err(error);
            }
        }
        Ok(Reply::Status(self.shared.status(&self.vault.begin())?))
    }
}

impl Shared {
    fn handle(&mut self, txn: &mut Txn<'_>, request: Request) -> Result<Reply, EngineError> {
        Ok(match request {
            Request::GetStatus(_) => Reply::Status(self.status(txn)?),
            Request::CommitNonces(r) => Reply::CommitNonces(self.commit_nonces(txn, &r)?),
            Request::IssuePackageKeys(r) => Reply::PackageKeys(self.issue_package_keys(txn, &r)?),
            Request::BindKeyshare(r) => Reply::BindKeyshare(self.bind(txn, r)?),
            Request::ProvePossession(r) => Reply::ProvePossession(self.prove_possession(txn, &r)?),
            Request::RefundStaticDeposit(r) => {
                Reply::RefundStaticDeposit(self.refund_static_deposit(txn, &r)?)
            }
            Request::Prepare(r) => Reply::Prepare(self.prepare(txn, r)?),
            Request::Release(r) => Reply::Release(self.release(txn, &r)?),
            Request::Apply(r) => Reply::Apply(self.apply(txn, &r)?),
            Request::SignAbort(r) => Reply::SignAbort(self.sign_abort(txn, &r)?),
            Request::Abort(r) => Reply::Abort(self.abort(txn, &r)?),
            Request::SignSettlement(r) => Reply::SignSettlement(self.sign_settlement(txn, &r)?),
            Request::Settle(r) => Reply::Settle(self.settle_conditional(txn, &r)?),
            Request::ReadJournal(r) => Reply::ReadJournal(journal::read(txn, &r)?),
            Request::DkgStart(r) => Reply::DkgRound1(self.dkg_start(txn, &r)?),
            Request::DkgRespond(r) => Reply::DkgRound2(self.dkg_respond(txn, r)?),
            Request::DkgFinish(r) => Reply::DkgTranscript(self.dkg_finish(txn, r)?),
            Request::DkgConfirm(r) => Reply::DkgConfirm(self.dkg_confirm(txn, &r)?),
            Request::ConfirmDestruction(device, fingerprint, roots) => {
                Reply::DestroyedBefore(self.confirm(txn, device, &fingerprint, &roots)?)
            }
            Request::AskWitness(_) => Reply::WitnessQuestion(self.ask_witness(txn)?),
            Request::AnswerWitness(r) => Reply::WitnessAnswer(self.answer_witness(txn, &r)?),
            Request::AcceptWitness(r) => {
                self.accept_witness(txn, &r)?;
                // Heard, but not told: the vault then stays as it was, and so does the gate.
                Reply::Status(self.status(txn).inspect_err(|_| self.gate.lock())?)
            }
            Request::GetCheckpoint(_) => Reply::Checkpoint(self.checkpoint(txn)?),
            Request::GetReceipts(r) => Reply::Receipts(self.receipts(txn, &r)?),
            Request::ProveConsistency(r) => Reply::Consistency(deletion_log::prove_consistency(txn, &r)?),
            Request::ReadTile(r) => Reply::Tile(deletion_log::read_tile(txn, &r)?),
            Request::ReadLog(r) => Reply::Log(self.read_log(txn, &r)?),
            Request::CosignLog(r) => Reply::Cosigned(self.cosign_log(txn, &r)?),
            Request::CompareLog(r) => Reply::Compared(self.compare_log(txn, &r)?),
            Request::RepairOpen(r) => Reply::RepairTicket(self.repair_open(txn, &r)?),
            Request::RepairList(r) => Reply::RepairListing(self.repair_list(txn, r)?),
            Request::RepairSplit(r) => Reply::RepairDeltas(self.repair_split(txn, r)?),
            Request::RepairSum(r) => Reply::RepairSum(self.repair_sum(txn, r)?),
            Request::RepairFinish(r) => Reply::RepairProgress(self.repair_finish(txn, r)?),
            Request::RepairClose(r) => Reply::RepairClosed(self.repair_close(&r)?),
            Request::RefreshOpen(r) => Reply::RefreshOpening(self.refresh_open(txn, &r)?),
            Request::RefreshDeal(r) => Reply::RefreshDeal(self.refresh_deal(txn, r)?),
            Request::RefreshPending(r) => Reply::RefreshPending(self.refresh_pending(txn, &r)?),
        })
    }

    /// Where the batch ends: part of everything that this signer signs in it.
    fn position(&self, txn: &Txn<'_>) -> Position {
        let after = txn.position_after();
        Position {
            federation_epoch: self.federation.epoch(),
            signer: self.me,
            incarnation: self.incarnation,
            root_epoch: after.epoch,
            sequence: after.sequence,
        }
    }

    /// Heard by the peers, and not with half a ledger.
    fn unlocked(&self) -> Result<(), EngineError> {
        self.heard()?;
        if self.repairs.incomplete() { Err(EngineError::Repairing) } else { Ok(()) }
    }

    fn heard(&self) -> Result<(), EngineError> {
        if self.gate.is_locked() { Err(EngineError::Locked) } else { Ok(()) }
    }

    fn sign_statement(
        &self,
        position: &Position,
        domain: &str,
        payload: &[u8],
    ) -> Result<Vec<u8>, EngineError> {
        Ok(self.token.sign_federation(&position.statement(&self.federation, domain, payload))?.to_vec())
    }

    fn sign_vote(
        &self,
        txn: &Txn<'_>,
        ballot: Ballot,
        reason: String,
    ) -> Result<spark_proto::peer::v1::Vote, EngineError> {
        let position = self.position(txn);
        let signature = self.token.sign_federation(&ballot.statement(&self.federation, &position))?.to_vec();
        Ok(ballot.into_wire(position, signature, reason))
    }

    fn alarm(&mut self, name: &'static str) {
        debug_assert!(ALARMS.contains(&name), "{name} is not listed");
        self.alarms.raise(name, self.now);
    }

    fn random<const N: usize>() -> [u8; N] {
        let mut bytes = [0u8; N];
        OsRng.fill_bytes(&mut bytes);
        bytes
    }
}
