//! Repair of the own signer, which lost its store or its HSM (D12): messages between it and the others' signers are
//! carried, page by page. Whatever is secret in them is encrypted from signer to signer.
//!
//! Nothing of it is kept here. The signer knows how far it is; whoever crashes, a page is begun again.

use std::{collections::BTreeSet, future::Future, time::Duration};

use futures::future::{join_all, try_join_all};
use rand::seq::IteratorRandom as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{federation::Federation, ids::OperatorIndex};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    call::CallError,
    db::projection,
    deposit_address::DepositAddresses,
    metrics::Metrics,
    op::Engine,
    peer::Signers,
    recovery::{self, RecoveryError},
};

/// Items of one page: as many as signers give.
const PAGE: u32 = 64;
/// How often the signer is asked whether it waits for repair.
const LOOK: Duration = Duration::from_secs(5);
/// Pause before an interrupted page is begun again.
const RETRY: Duration = Duration::from_secs(1);
/// First pause before what was left out is tried again, and the longest one: every run lists all leaves, and locks them.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Tries to tell the others that a page is over; afterwards their leaves are free by time.
const CLOSE_TRIES: u32 = 3;
const CLOSE_PAUSE: Duration = Duration::from_millis(300);

/// A repair that is interrupted. It goes on at the page that was begun.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The own signer, or a peer's, was not reached or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What was repaired is not in the tables yet.
    #[error(transparent)]
    Recovery(#[from] Box<RecoveryError>),
}

/// Carries the messages of one operator's repair.
#[derive(Debug, Clone)]
pub struct Repair {
    signers: Signers,
    threshold: usize,
    metrics: Metrics,
}

impl Repair {
    /// Of the own signer, by the others of this federation.
    pub fn new(signers: Signers, federation: &Federation, metrics: Metrics) -> Self {
        Self { signers, threshold: usize::from(federation.threshold()), metrics }
    }

    /// All pages that are left, if the signer waits for them.
    pub async fn complete(&self) -> Result<(), RepairError> {
        let status = self.status().await?;
        if !status.waiting {
            return Ok(());
        }
        tracing::warn!(taken = status.taken, "the own signer is under repair");
        self.pages().await
    }

    /// How far the signer is.
    pub async fn status(&self) -> Result<wire::RepairStatus, CallError> {
        let status = self.signers.own().get_status(wire::GetStatusRequest {}).await?;
        let repair = status.repair.unwrap_or_default();
        self.metrics.repair(&repair);
        Ok(repair)
    }

    async fn pages(&self) -> Result<(), RepairError> {
        loop {
            let progress = self.page().await?;
            tracing::info!(taken = progress.taken, left_out = progress.skipped, "a page is repaired");
            if progress.done {
                let status = self.status().await?;
                tracing::info!(taken = status.taken, left_out = status.skipped, "the own signer is repaired");
                return Ok(());
            }
        }
    }

    /// One page: asked for by the own signer, listed by all others, its shares made by t of them.
    async fn page(&self) -> Result<wire::RepairProgress, RepairError> {
        let (own, helpers) = (self.signers.own(), self.helpers());
        let session_id = Uuid::new_v4().as_bytes().to_vec();
        let open = wire::RepairOpenRequest {
            session_id: session_id.clone(),
            helpers: helpers.iter().map(|index| index.get().into()).collect(),
            limit: PAGE,
        };
        let ticket = own.repair_open(open).await?;
        let asked = self.signers.peers().map(|(_, peer)| peer.repair_list(ticket.clone()));
        let listings = try_join_all(asked).await?;
        let (mut deltas, mut sums) = (Vec::new(), Vec::new());
        // Only helpers made a one-time key, and only of keyshares there is something to open with it.
        if ticket.table == 0 {
            let set = wire::RepairListingSet { session_id: session_id.clone(), messages: listings.clone() };
            deltas = try_join_all(helpers.iter().map(|index| {
                let set = set.clone();
                async move { self.signers.peer(*index)?.repair_split(set).await }
            }))
            .await?;
            let set = wire::RepairDeltaSet { session_id: session_id.clone(), messages: deltas.clone() };
            sums = try_join_all(helpers.iter().map(|index| {
                let set = set.clone();
                async move { self.signers.peer(*index)?.repair_sum(set).await }
            }))
            .await?;
        }
        let finish = wire::RepairFinishRequest { session_id, listings, deltas, sums };
        let progress = own.repair_finish(finish).await?;
        self.close(&progress).await;
        Ok(progress)
    }

    /// t of the others, chosen anew for every page: one whose own record differs does not hold it up for ever.
    fn helpers(&self) -> BTreeSet<OperatorIndex> {
        let others = self.signers.peers().map(|(index, _)| index);
        others.choose_multiple(&mut rand::thread_rng(), self.threshold).into_iter().collect()
    }

    async fn close(&self, progress: &wire::RepairProgress) {
        let mut waiting: Vec<_> = self.signers.peers().collect();
        for tried in 0..CLOSE_TRIES {
            if tried > 0 {
                sleep(CLOSE_PAUSE).await;
            }
            let told = join_all(waiting.iter().map(|(_, peer)| peer.repair_close(progress.clone()))).await;
            waiting =
                waiting.into_iter().zip(told).filter(|(_, told)| told.is_err()).map(|(p, _)| p).collect();
            if waiting.is_empty() {
                return;
            }
        }
        for (peer, _) in waiting {
            tracing::warn!(
                peer = peer.get(),
                "does not know that a page is repaired: its leaves stay locked for a while"
            );
        }
    }

    /// Carries on what was interrupted and, now and then, what was left out, until `shutdown`.
    pub async fn run(
        &self,
        engine: &Engine,
        addresses: &DepositAddresses,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let mut pause = SHORTEST_PAUSE;
        // What of the journal the tables have followed: they had followed all of it when this began.
        let (mut followed, mut owed) = (None, false);
        loop {
            self.count_unserved(engine).await;
            let next = match self.status().await {
                Ok(status) if status.waiting => Some(RETRY),
                Ok(status) if status.skipped > 0 => {
                    let rest = pause;
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                    Some(rest)
                }
                // The signer has all; the tables do not follow it yet.
                Ok(_) if owed => Some(SHORTEST_PAUSE),
                Ok(_) => {
                    pause = SHORTEST_PAUSE;
                    None
                }
                Err(error) => {
                    tracing::debug!(%error, "signer");
                    None
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = sleep(next.unwrap_or(LOOK)) => {}
            }
            if next.is_some() {
                let again = self.again(engine, addresses, &mut followed).await;
                owed = again.is_err();
                if let Err(error) = again {
                    tracing::warn!(%error, "repair is interrupted");
                }
            }
        }
    }

    async fn count_unserved(&self, engine: &Engine) {
        match projection::unrepaired(engine.db().pool()).await {
            Ok(leaves) => self.metrics.unserved(leaves),
            Err(error) => tracing::debug!(%error, "leaves that are put aside"),
        }
    }

    /// One more run over the pages, and what it brought into the tables. A run that breaks off has brought what its pages
    /// brought; what cannot be followed now is followed the next time.
    async fn again(
        &self,
        engine: &Engine,
        addresses: &DepositAddresses,
        followed: &mut Option<u64>,
    ) -> Result<(), RepairError> {
        let mut after = match *followed {
            Some(after) => after,
            None => {
                self.signers.own().read_journal(wire::ReadJournalRequest { after: 0, limit: 1 }).await?.head
            }
        };
        *followed = Some(after);
        let brought = self.pages().await;
        let result = recovery::follow_repaired(engine, addresses, &mut after).await.map_err(Box::new);
        *followed = Some(after);
        result?;
        brought
    }
}
