//! Refresh after a repair (D12): what the own signer got back is given new shares, at all operators, until the share that
//! was lost combines with none that is in use.
//!
//! Batch by batch, each an operation like any other. Nothing of it is kept here: the signer says what is left, and who
//! crashes begins another session.

use std::{collections::BTreeSet, future::Future, time::Duration};

use futures::future::try_join_all;
use rand::seq::{IteratorRandom as _, SliceRandom as _};
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
/// Leaves of which a batch is chosen.
const WINDOW: usize = 1024;

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

/// What is left of one pass over everything that waits. The signer is asked once for each: an answer for all takes it as
/// long as there are keyshares. What cannot be refreshed now waits for the next pass.
#[derive(Debug, Default)]
struct Pass {
    left: Vec<Uuid>,
    waiting: usize,
}

impl Pass {
    /// Another one, over these.
    fn over(mut leaves: Vec<Uuid>) -> Self {
        // A leaf that makes batches fail is not always the next one.
        leaves.shuffle(&mut rand::thread_rng());
        Self { waiting: leaves.len(), left: leaves }
    }

    fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    /// Those to choose a batch of.
    fn window(&self) -> &[Uuid] {
        self.left.get(self.left.len().saturating_sub(WINDOW)..).unwrap_or_default()
    }

    /// None of the window can be refreshed now.
    fn skip(&mut self) {
        self.left.truncate(self.left.len().saturating_sub(WINDOW));
    }

    /// These wait no more.
    fn done(&mut self, batch: &[Uuid]) {
        let from = self.left.len().saturating_sub(WINDOW);
        let window: Vec<Uuid> = self.left.drain(from..).filter(|leaf| !batch.contains(leaf)).collect();
        self.left.extend(window);
        self.waiting = self.waiting.saturating_sub(batch.len());
    }
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
        let mut pass = Pass::default();
        loop {
            let next = match self.round(&mut pass, size).await {
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

    async fn round(&self, pass: &mut Pass, size: i64) -> Result<Round, RefreshError> {
        let own = self.engine.signers().own();
        let repair = own.get_status(wire::GetStatusRequest {}).await?.repair.unwrap_or_default();
        // First all that can be repaired; what is left out may be for long.
        if repair.waiting || !repair.repaired {
            *pass = Pass::default();
            return Ok(Round { waiting: 0, refreshed: 0 });
        }
        if pass.is_over() {
            *pass = Pass::over(self.waiting().await?);
        }
        self.metrics.unrefreshed(pass.waiting);
        if !self.automatic {
            let waiting = std::mem::take(pass).waiting;
            return Ok(Round { waiting, refreshed: 0 });
        }
        let pool = self.engine.db().pool();
        while !pass.is_over() {
            let mut batch = leaf::idle(pool, pass.window(), size).await?;
            let frozen = chain::frozen(pool, &batch).await?;
            batch.retain(|leaf| !frozen.contains(leaf));
            if batch.is_empty() {
                pass.skip();
                continue;
            }
            return match self.refresh(&batch).await? {
                Outcome::Applied(_) => {
                    pass.done(&batch);
                    self.metrics.unrefreshed(pass.waiting);
                    Ok(Round { waiting: pass.waiting, refreshed: batch.len() })
                }
                outcome => Err(RefreshError::Ended(outcome)),
            };
        }
        Ok(Round { waiting: pass.waiting, refreshed: 0 })
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
        // This operator is none of them: the others could not end a refresh that it leaves undecided.
        let others = signers.peers().map(|(index, _)| index);
        let mut deciders: Vec<OperatorIndex> =
            others.choose_multiple(&mut rand::thread_rng(), federation.threshold().into());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u32) -> Vec<Uuid> {
        (0..count).map(|n| Uuid::from_u128(n.into())).collect()
    }

    /// However many wait, and in however small batches: each page is listed once for a pass.
    #[test]
    fn a_pass_goes_through_all_that_waits_once() {
        let (mut listed, mut refreshed) = (0, BTreeSet::new());
        let mut pass = Pass::default();
        while refreshed.len() < 3000 {
            if pass.is_over() {
                listed += 1;
                pass = Pass::over(leaves(3000));
            }
            assert!(pass.window().len() <= WINDOW);
            let batch: Vec<Uuid> = pass.window().iter().step_by(40).take(32).copied().collect();
            assert!(batch.iter().all(|leaf| refreshed.insert(*leaf)), "none twice");
            pass.done(&batch);
            assert_eq!(pass.waiting, 3000 - refreshed.len());
        }
        assert_eq!(listed, 1);
        assert!(pass.is_over());
    }

    /// What is busy for long does not keep the rest from its turn, and is counted.
    #[test]
    fn what_is_busy_waits_for_the_next_pass() {
        let mut pass = Pass::over(leaves(2500));
        let mut windows = 0;
        while !pass.is_over() {
            pass.skip();
            windows += 1;
        }
        assert_eq!((windows, pass.waiting), (3, 2500));
    }
}
