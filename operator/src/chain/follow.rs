//! Follows the node's best chain: walks back to the fork point, then forward block by block.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, time};

use super::{
    BlockConnected, BlockDisconnected, BlockId, ChainError, ChainSink, ChainSource, HeaderStore, Mempool,
    StoredHeader,
};
use crate::{config::Chain, metrics::Metrics};

/// Where a follower with an empty header table begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the block at this height.
    Height(u32),
    /// This many blocks before the node's tip: for a federation without deposits.
    BehindTip(u32),
}

/// What others may know of the follower.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainStatus {
    /// Last block connected.
    pub tip: Option<BlockId>,
    /// Its time, in seconds since 1970.
    pub tip_time: u32,
    /// Whether the node is still catching up.
    pub initial_download: bool,
    /// Whether the whole mempool was looked at since the start.
    pub mempool: bool,
    /// What keeps the follower from the node's tip.
    pub trouble: Option<String>,
}

impl ChainStatus {
    /// Age of the tip by its own clock.
    pub fn tip_age(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(Duration::from_secs(self.tip_time.into()))
    }

    /// `Ok` with one line for a person if deposits may be credited on this view, `Err` otherwise.
    pub fn fresh(&self, max_age: Duration) -> Result<String, String> {
        let Some(tip) = self.tip else { return Err("no block yet".to_owned()) };
        if let Some(trouble) = &self.trouble {
            return Err(trouble.clone());
        }
        let (height, age) = (tip.height, self.tip_age());
        if self.initial_download {
            return Err(format!("bitcoind is catching up, height {height}"));
        }
        if !self.mempool {
            return Err(format!("the mempool is being read, height {height}"));
        }
        if age > max_age {
            return Err(format!("tip {height} is {} s old", age.as_secs()));
        }
        Ok(format!("tip {height}, {} s old", age.as_secs()))
    }
}

/// Keeps the header table and the sink in step with the node.
pub struct Follower {
    source: Arc<dyn ChainSource>,
    store: Arc<dyn HeaderStore>,
    sink: Arc<dyn ChainSink>,
    config: Chain,
    start: Start,
    metrics: Metrics,
    status: watch::Sender<ChainStatus>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("config", &self.config)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl Follower {
    /// A follower that has not begun.
    pub fn new(
        source: Arc<dyn ChainSource>,
        store: Arc<dyn HeaderStore>,
        sink: Arc<dyn ChainSink>,
        config: Chain,
        start: Start,
        metrics: Metrics,
    ) -> Self {
        Self { source, store, sink, config, start, metrics, status: watch::Sender::default() }
    }

    /// Changes with every look at the node.
    pub fn status(&self) -> watch::Receiver<ChainStatus> {
        self.status.subscribe()
    }

    /// Follows until `shutdown` resolves. Trouble is logged, shown in the status, and tried again.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut mempool = Mempool::default();
        loop {
            let round = async {
                if let Err(error) = self.look(&mut mempool).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "chain cannot be followed");
                    self.status.send_modify(|status| status.trouble = Some(error.to_string()));
                    time::sleep(self.config.poll).await;
                }
            };
            // Dropping a round between two steps is what a crash does: the next start repeats the last event.
            tokio::select! {
                () = &mut shutdown => return,
                () = round => {}
            }
        }
    }

    /// Blocks, then the mempool on top of them, then a wait for the next block.
    async fn look(&self, mempool: &mut Mempool) -> Result<(), ChainError> {
        let tip = self.sync().await?;
        if !mempool.look(&*self.source, &*self.sink, tip.hash).await? {
            return Ok(());
        }
        self.status.send_if_modified(|status| !std::mem::replace(&mut status.mempool, true));
        let waited = self.source.wait_for_new_block(&tip.hash, self.config.poll);
        // The node's own timeout may fail us: never wait longer than the poll.
        if let Ok(Err(error)) = time::timeout(self.config.poll, waited).await {
            tracing::debug!(%error, "waiting for a block failed");
            time::sleep(self.config.poll).await;
        }
        Ok(())
    }

    /// One look: brings table and sink to the node's tip, and returns it.
    ///
    /// # Errors
    /// What is done stays done; call it again.
    pub async fn sync(&self) -> Result<BlockId, ChainError> {
        loop {
            let info = self.source.info().await?;
            let stored = self.store.tip().await.map_err(ChainError::Store)?;
            if let Some(stored) = stored
                && stored.id == info.best
            {
                self.publish(stored, info.initial_download);
                return Ok(stored.id);
            }
            let fork = self.walk_back(stored).await?;
            self.walk_forward(fork, info.best.height).await?;
            // The best chain may have changed meanwhile.
        }
    }

    /// Disconnects what left the best chain; returns the last common block.
    async fn walk_back(&self, tip: Option<StoredHeader>) -> Result<Option<StoredHeader>, ChainError> {
        let limit = self.config.max_reorg.get();
        let mut stale = Vec::new();
        let mut cursor = tip;
        while let Some(header) = cursor {
            if self.source.hash_at(header.id.height).await? == Some(header.id.hash) {
                break;
            }
            stale.push(header);
            // Before anything is undone.
            if stale.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
                return Err(ChainError::ReorgTooDeep { limit });
            }
            let Some(below) = header.id.height.checked_sub(1) else {
                return Err(ChainError::ReorgTooDeep { limit });
            };
            cursor = self.store.at(below).await.map_err(ChainError::Store)?;
            if cursor.is_none() {
                // The table ends above the fork point.
                return Err(ChainError::ReorgTooDeep { limit });
            }
        }
        if !stale.is_empty() {
            let depth = u32::try_from(stale.len()).unwrap_or(u32::MAX);
            tracing::warn!(depth, "reorganisation");
            self.metrics.reorganised(depth);
        }
        for StoredHeader { id, header } in stale {
            self.sink.disconnected(&BlockDisconnected { id, header }).await.map_err(ChainError::Sink)?;
            self.store.pop(id).await.map_err(ChainError::Store)?;
        }
        Ok(cursor)
    }

    /// Connects blocks after `last` up to `target`, or until the best chain moves away.
    async fn walk_forward(&self, mut last: Option<StoredHeader>, target: u32) -> Result<(), ChainError> {
        loop {
            let height = match (last, self.start) {
                (Some(last), _) => last.id.height.saturating_add(1),
                (None, Start::Height(height)) => height,
                (None, Start::BehindTip(blocks)) => target.saturating_sub(blocks),
            };
            if height > target {
                return Ok(());
            }
            let Some(hash) = self.source.hash_at(height).await? else { return Ok(()) };
            let block = self.source.block(&hash).await?;
            check(&block, hash)?;
            if last.is_some_and(|last| last.id.hash != block.header.prev_blockhash) {
                return Ok(());
            }
            let stored = StoredHeader { id: BlockId { height, hash }, header: block.header };
            let event = BlockConnected { id: stored.id, block };
            self.sink.connected(&event).await.map_err(ChainError::Sink)?;
            self.store.push(stored).await.map_err(ChainError::Store)?;
            tracing::debug!(height, %hash, "block connected");
            last = Some(stored);
        }
    }

    fn publish(&self, tip: StoredHeader, initial_download: bool) {
        let mempool = self.status.borrow().mempool;
        let status = ChainStatus {
            tip: Some(tip.id),
            tip_time: tip.header.time,
            initial_download,
            mempool,
            trouble: None,
        };
        self.metrics.chain_tip(tip.id.height, status.tip_age());
        self.status.send_replace(status);
    }
}

/// The node is ours, but a block that is not what its hash says must not reach anyone.
fn check(block: &bitcoin::Block, hash: bitcoin::BlockHash) -> Result<(), ChainError> {
    if block.block_hash() == hash && block.check_merkle_root() {
        Ok(())
    } else {
        Err(ChainError::Malformed { method: "getblock", source: "block does not match its hash".into() })
    }
}
