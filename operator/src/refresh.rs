//! Refresh after a repair (D12): what the own signer got back is given new shares, at all operators, until the share that
//! was lost combines with none that is in use.
//!
//! Batch by batch, each an operation like any other. Nothing of it is kept here: the signer says what is left, and who
//! crashes begins another session.

use std::{collections::BTreeSet, future::Future, time::Duration};

use futures::future::try_join_all;
use rand::seq::IteratorRandom as _;
use spark_proto::{
    peer::v1::{Refresh, operation::Request},
    signer::v1 as wire,
};
use spark_rules::ids::{IdError, LeafId, OperatorIndex};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    call::CallError,
    db::{DbError, chain, leaf},
    metrics::Metrics,
    op::{Engine, EngineError, Outcome},
};

/// How often the signer is asked whether anything waits.
const LOOK: Duration = Duration::from_secs(5);
/// Pause between two batches: refreshed leaves are locked meanwhile, and their owners come first.
const BETWEEN: Duration = Duration::from_secs(1);
/// First and longest pause after a batch that changed nothing.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Most leaves of a batch.
const MAX_BATCH: i64 = 32;
/// Keyshares that the signer looks at for one answer.
const PAGE: u32 = 1024;

/// A batch that refreshed nothing. Another one is begun later.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The own signer, or a peer's, was not reached or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The operation.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The signer named no leaf.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Not applied by all.
    #[error("the refresh ended without effect: {0:?}")]
    Ended(Outcome),
}

/// What a round found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    waiting: usize,
    refreshed: usize,
}

/// Refreshes what the own signer's repair brought back.
#[derive(Debug, Clone)]
pub struct Refresher {
    engine: Engine,
    metrics: Metrics,
    automatic: bool,
}

impl Refresher {
    /// Over the engine of operations. Without `automatic` it only counts.
    pub const fn new(engine: Engine, metrics: Metrics, automatic: bool) -> Self {
        Self { engine, metrics, automatic }
    }

    /// Batch by batch until `shutdown`. A batch that fails is tried again later, smaller and of other leaves: one that
    /// cannot be refreshed now does not keep the others from it.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let (mut size, mut pause) = (MAX_BATCH, SHORTEST_PAUSE);
        loop {
            let next = match self.round(size).await {
                Ok(Round { refreshed: 0, .. }) => LOOK,
                Ok(round) => {
                    tracing::info!(
                        refreshed = round.refreshed,
                        waiting = round.waiting,
                        "shares are refreshed"
                    );
                    (size, pause) = (size.saturating_mul(2).min(MAX_BATCH), SHORTEST_PAUSE);
                    BETWEEN
                }
                Err(error) => {
                    let rest = pause;
                    tracing::warn!(%error, leaves = size, retry_in = ?rest, "shares are not refreshed yet");
                    (size, pause) = ((size / 2).max(1), pause.saturating_mul(2).min(LONGEST_PAUSE));
                    rest
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = sleep(next) => {}
            }
        }
    }

    async fn round(&self, size: i64) -> Result<Round, RefreshError> {
        let own = self.engine.signers().own();
        let repair = own.get_status(wire::GetStatusRequest {}).await?.repair.unwrap_or_default();
        // First all that can be repaired; what is left out may be for long.
        if repair.waiting || !repair.repaired {
            return Ok(Round { waiting: 0, refreshed: 0 });
        }
        let waiting = self.waiting().await?;
        self.metrics.unrefreshed(waiting.len());
        if waiting.is_empty() || !self.automatic {
            return Ok(Round { waiting: waiting.len(), refreshed: 0 });
        }
        let pool = self.engine.db().pool();
        let mut batch = leaf::idle(pool, &waiting, size).await?;
        let frozen = chain::frozen(pool, &batch).await?;
        batch.retain(|leaf| !frozen.contains(leaf));
        if batch.is_empty() {
            return Ok(Round { waiting: waiting.len(), refreshed: 0 });
        }
        match self.refresh(&batch).await? {
            Outcome::Applied(_) => {
                let waiting = waiting.len().saturating_sub(batch.len());
                self.metrics.unrefreshed(waiting);
                Ok(Round { waiting, refreshed: batch.len() })
            }
            outcome => Err(RefreshError::Ended(outcome)),
        }
    }

    async fn waiting(&self) -> Result<Vec<Uuid>, RefreshError> {
        let (mut waiting, mut after) = (Vec::new(), Vec::new());
        loop {
            let request = wire::RefreshPendingRequest { after, limit: PAGE };
            let page = self.engine.signers().own().refresh_pending(request).await?;
            for leaf in &page.leaf_ids {
                waiting.push(LeafId::parse(leaf)?.uuid());
            }
            after = page.through;
            if after.is_empty() {
                return Ok(waiting);
            }
        }
    }

    /// One session: all open it, all deal, and from there on it is an operation.
    async fn refresh(&self, leaves: &[Uuid]) -> Result<Outcome, RefreshError> {
        let (signers, federation) = (self.engine.signers(), self.engine.federation());
        let (own, members) = (signers.own_index(), signers.members());
        let session_id = Uuid::new_v4().as_bytes().to_vec();
        let ids: BTreeSet<LeafId> = leaves.iter().map(|leaf| LeafId::from(*leaf)).collect();
        let leaf_ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let open = wire::RefreshOpenRequest {
            session_id: session_id.clone(),
            coordinator: own.get().into(),
            leaf_ids: leaf_ids.clone(),
        };
        let messages = try_join_all(members.iter().map(|i| signers.refresh_open(*i, open.clone()))).await?;
        let set = wire::RefreshOpeningSet { session_id: session_id.clone(), messages };
        let deals = try_join_all(members.iter().map(|i| signers.refresh_deal(*i, set.clone()))).await?;
        let others = usize::from(federation.threshold()).saturating_sub(1);
        let mut deciders: Vec<OperatorIndex> =
            signers.peers().map(|(index, _)| index).choose_multiple(&mut rand::thread_rng(), others);
        deciders.push(own);
        deciders.sort_unstable();
        let request = Refresh {
            session_id,
            leaf_ids,
            deciders: deciders.into_iter().map(|index| index.get().into()).collect(),
            deals,
        };
        let requester =
            federation.member(own).ok_or(EngineError::State("no member of the federation"))?.identity;
        Ok(self.engine.run(Request::Refresh(request), &requester).await?)
    }
}
