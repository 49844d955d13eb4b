//! The engine's parts, its errors and its answers.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message as _;
use sha2::{Digest as _, Sha256};
use spark_proto::{peer::v1 as wire, signer::v1 as signer};
use spark_rules::{
    federation::Federation,
    ids::{OperationId, OperatorIndex},
    operation::{Keys, Operation, OperationError, identify},
    vote::{Choice, Kind, VoteError},
};
use tokio::sync::watch;

use super::{heavy::heavy, records::Snapshot};

use crate::{
    call::CallError,
    chain::ChainStatus,
    db::{
        Db, DbError,
        operation::{AttemptId, NewOperation, OperationRow, State},
        work::{Claims, VoteWrite},
    },
    metrics::Metrics,
    peer::Signers,
};

/// Why a step could not be done. None of these decides anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Signer or peer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A vote, certificate or proof does not hold.
    #[error(transparent)]
    Vote(#[from] VoteError),
    /// The request breaks a rule.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The attempt is not known here.
    #[error("operation is not known")]
    Unknown,
    /// The caller may not ask for this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The chain cannot be seen: nothing is voted for.
    #[error("chain view is stale: {0}")]
    ChainStale(String),
    /// The step does not fit what is recorded.
    #[error("{0}")]
    State(&'static str),
    /// A stored message does not decode.
    #[error("stored message is malformed: {0}")]
    Stored(#[from] prost::DecodeError),
    /// The task that drove the attempt ended before its time.
    #[error("operation task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why an attempt ended without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub id: OperationId,
    /// Of what kind.
    pub kind: Kind,
    /// Stable reason, for example `LEAF_UNAVAILABLE`.
    pub reason: String,
}

/// What a handler tells the wallet (D7).
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Outcome {
    /// Every operator applied it: read the result from the database.
    Applied(OperationId),
    /// Refused before anybody was asked; nothing was written.
    Invalid(OperationError),
    /// Ended by a proof of abort, or another operation holds a leaf. Nothing changed.
    Refused(Refusal),
    /// The session's identity may not ask for this operation: PERMISSION_DENIED. Nothing was written.
    NotRequester(OperationId),
    /// Another request under this id is undecided: ABORTED.
    Conflict(OperationId),
    /// Another request under this id was committed: ALREADY_EXISTS.
    Exists(OperationId),
    /// Not decided, or not applied everywhere, in time: UNAVAILABLE. The same request again attaches to it.
    Undecided(OperationId),
}

/// Waits and limits.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often a peer or signer that was not reached is asked again within one run.
    pub tries: u32,
    /// Pause between these, growing linearly.
    pub pause: Duration,
    /// How long a repeated request waits for the running attempt.
    pub attach: Duration,
    /// After this many seconds a participant asks others about an undecided attempt.
    pub ask_after: i64,
    /// After this many seconds anybody may ask our signer for an ABORT, and the coordinator works on it again.
    pub stale_after: i64,
    /// Votes for transfers that a preimage completes.
    pub htlc: bool,
    /// Votes for cooperative exits.
    pub coop_exit: bool,
    /// Confirmations that complete an exit; votes for none with fewer.
    pub exit_depth: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tries: 4,
            pause: Duration::from_millis(250),
            attach: Duration::from_secs(20),
            ask_after: 10,
            stale_after: 30,
            htlc: false,
            coop_exit: false,
            exit_depth: 6,
        }
    }
}

/// The operation engine of one operator; clones share everything.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) db: Db,
    pub(super) federation: Arc<Federation>,
    pub(super) signers: Signers,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    chain: Option<(watch::Receiver<ChainStatus>, Duration)>,
    /// Attempts that a task of this process drives now: a second one could end what the first carries on.
    driven: Mutex<BTreeSet<AttemptId>>,
}

/// See [`Engine::driving`].
pub(super) struct Driving {
    inner: Arc<Inner>,
    id: AttemptId,
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.inner.driven.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// One attempt with its request and what the rules make of it.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) request: wire::Operation,
    pub(super) operation: Operation,
    pub(super) digest: [u8; 32],
}

impl Attempt {
    pub(super) fn body(&self) -> Result<&wire::operation::Request, EngineError> {
        self.request.request.as_ref().ok_or(EngineError::Operation(OperationError::Malformed("request")))
    }

    pub(super) fn new_row(&self, coordinates: bool) -> NewOperation {
        NewOperation {
            id: self.id,
            kind: self.operation.kind.code(),
            coordinates,
            coordinator: self.operation.coordinator,
            request: self.request.encode_to_vec(),
            request_digest: self.digest,
            named: self.operation.named.clone(),
        }
    }

    /// A deposit makes its leaf, so there is no version to take: it claims the leaf id itself. One that replaces
    /// another takes that one's version, as everything does that would spend the leaf.
    pub(super) fn claims(&self) -> Result<Claims, DbError> {
        let mut claims = Claims::default();
        let makes = self.operation.kind == Kind::Deposit && self.operation.replaces().is_none();
        for claim in self.operation.claims() {
            if makes {
                claims.resources.push(("leaf", claim.leaf.as_bytes().to_vec()));
            } else {
                let version = i64::try_from(claim.version).map_err(|_| DbError::Corrupt("leaf.version"))?;
                claims.leaves.push((claim.leaf.uuid(), version));
            }
        }
        claims.resources.extend(self.operation.resources.iter().map(|r| (r.kind, r.key.clone())));
        // One order for all sessions: two operations over the same leaves wait for each other, never in a circle.
        claims.leaves.sort_unstable();
        claims.resources.sort_unstable();
        Ok(claims)
    }
}

/// Digest of a client's words, whatever attempt and coordinator carry them, and whatever height the coordinator took his
/// expiry for, or depth it demands. Equal messages have equal bytes.
pub(super) fn request_digest(request: &wire::operation::Request) -> [u8; 32] {
    let mut request = request.clone();
    match &mut request {
        wire::operation::Request::Htlc(htlc) => htlc.expiry_height = 0,
        wire::operation::Request::CoopExit(exit) => (exit.expiry_height, exit.depth) = (0, 0),
        _ => {}
    }
    let bare = wire::Operation { request: Some(request), ..wire::Operation::default() };
    Sha256::digest(bare.encode_to_vec()).into()
}

/// The clock, for terms that end (D18: it counts because every other operator votes by its own).
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(super) const fn choice_column(choice: Choice) -> &'static str {
    match choice {
        Choice::Yes => "YES",
        Choice::No => "NO",
        Choice::Abort => "ABORT",
        // Part of a proof, never a row of its own.
        Choice::Commit => "COMMIT",
    }
}

pub(super) fn vote_write(signer: OperatorIndex, choice: Choice, vote: &wire::Vote) -> VoteWrite {
    VoteWrite { signer, choice: choice_column(choice), body: vote.encode_to_vec() }
}

impl Engine {
    /// Over one database, one federation and the signers of its members.
    pub fn new(
        db: Db,
        federation: Arc<Federation>,
        signers: Signers,
        settings: Settings,
        metrics: Metrics,
    ) -> Self {
        let inner =
            Inner { db, federation, signers, settings, metrics, chain: None, driven: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Votes only while this view of the chain is fresh.
    #[must_use]
    pub fn with_chain(self, status: watch::Receiver<ChainStatus>, max_age: Duration) -> Self {
        let Inner { db, federation, signers, settings, metrics, .. } = &*self.inner;
        let inner = Inner {
            db: db.clone(),
            federation: Arc::clone(federation),
            signers: signers.clone(),
            settings: *settings,
            metrics: metrics.clone(),
            chain: Some((status, max_age)),
            driven: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    /// The federation.
    pub fn federation(&self) -> &Federation {
        &self.inner.federation
    }

    /// The members' signers.
    pub fn signers(&self) -> &Signers {
        &self.inner.signers
    }

    pub(super) fn own(&self) -> OperatorIndex {
        self.inner.signers.own_index()
    }

    pub(super) fn peer_indices(&self) -> Vec<OperatorIndex> {
        self.inner.signers.peers().map(|(index, _)| index).collect()
    }

    /// Parses a request and derives the operation from one's own records.
    pub(super) async fn derive(&self, request: wire::Operation) -> Result<(Attempt, Snapshot), EngineError> {
        let body = request.request.as_ref().ok_or(OperationError::Malformed("request"))?;
        let snapshot = Snapshot::load(self.db(), body).await?;
        let attempt = self.attempt(request, &snapshot)?;
        Ok((attempt, snapshot))
    }

    /// The attempt of a stored row.
    pub(super) async fn reload(&self, row: &OperationRow) -> Result<Attempt, EngineError> {
        let bytes = row.request.as_ref().ok_or(EngineError::State("the request is no longer stored"))?;
        let request = wire::Operation::decode(bytes.as_slice())?;
        match row.state {
            State::Proposed => Ok(self.derive(request).await?.0),
            _ => self.derive_voted(request).await,
        }
    }

    /// Derives an operation that was voted for, by this operator or by the others.
    pub(super) async fn derive_voted(&self, request: wire::Operation) -> Result<Attempt, EngineError> {
        let body = request.request.as_ref().ok_or(OperationError::Malformed("request"))?;
        let snapshot = Snapshot::load(self.db(), body).await?;
        let (_, kind) = identify(&request, &snapshot)?;
        self.attempt(request, &snapshot.as_voted(kind))
    }

    fn attempt(&self, request: wire::Operation, snapshot: &Snapshot) -> Result<Attempt, EngineError> {
        let body = request.request.as_ref().ok_or(OperationError::Malformed("request"))?;
        let digest = request_digest(body);
        let operation =
            heavy(snapshot.leaves(), || Operation::derive(&request, snapshot, self.federation()))?;
        let id = AttemptId { op: operation.id, attempt: operation.attempt };
        Ok(Attempt { id, request, operation, digest })
    }

    /// Marks an attempt as driven by this process until the guard falls; `None` if it is already.
    pub(super) fn driving(&self, id: AttemptId) -> Option<Driving> {
        let mut driven = self.inner.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.insert(id).then(|| Driving { inner: Arc::clone(&self.inner), id })
    }

    /// A vote needs a view of the chain that is neither stale nor cut off (S12, D21).
    pub(super) fn chain_is_fresh(&self) -> Result<(), EngineError> {
        let Some((status, max_age)) = &self.inner.chain else { return Ok(()) };
        status.borrow().fresh(*max_age).map(drop).map_err(EngineError::ChainStale)
    }

    /// The own tip, if the view of the chain is fresh.
    pub(super) fn tip(&self) -> Result<u32, EngineError> {
        self.chain_is_fresh()?;
        let tip = self.inner.chain.as_ref().and_then(|(status, _)| status.borrow().tip);
        tip.map(|tip| tip.height).ok_or_else(|| EngineError::ChainStale("no block yet".to_owned()))
    }

    /// The keys that the operation makes, from what the own signer opened; asks the signer again if the row lost it.
    pub(super) async fn keys(&self, attempt: &Attempt, row: &OperationRow) -> Result<Keys, EngineError> {
        let opened = match &row.opened {
            Some(bytes) => signer::PrepareResponse::decode(bytes.as_slice())?.opened,
            None => {
                let request = signer::PrepareRequest { operation: Some(attempt.request.clone()) };
                self.inner.signers.own().prepare(request).await?.opened
            }
        };
        Ok(Keys::derive(&attempt.operation, &opened)?)
    }

    pub(super) async fn pause(&self, tried: u32) {
        tokio::time::sleep(self.inner.settings.pause.saturating_mul(tried)).await;
    }
}
