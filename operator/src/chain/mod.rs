//! The operator's own view of the chain, from its own bitcoind (S12).
//!
//! The source of truth is the header table: what was connected, block by block, and is disconnected again when
//! the node's best chain leaves it. Notifications only say when to look. What a block means for deposits and
//! leaves is decided by the [`ChainSink`].

mod bitcoind;
mod follow;
mod mempool;
mod output;
mod store;

use std::{collections::HashSet, error::Error as StdError};

use async_trait::async_trait;
use bitcoin::{Block, BlockHash, OutPoint, Transaction, Txid, block::Header};

pub use bitcoind::BitcoindSource;
pub use follow::{ChainStatus, Follower, Start};
pub use mempool::Mempool;
pub use output::{OutputState, Spent};
pub use store::{HeaderStore, MemoryHeaders, StoredHeader};

/// A block's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId {
    /// Height in its chain.
    pub height: u32,
    /// Hash.
    pub hash: BlockHash,
}

/// What the node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Last block of its best chain.
    pub best: BlockId,
    /// Whether it is still catching up.
    pub initial_download: bool,
}

/// Errors of other modules, behind the traits of this one.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why the chain cannot be read or followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The node does not answer, or refuses the login.
    #[error("bitcoind is unreachable")]
    Unreachable(#[source] BoxError),
    /// The node answers a call with an error.
    #[error("bitcoind refuses {method} with code {code}")]
    Refused {
        /// RPC method.
        method: &'static str,
        /// Its error code.
        code: i64,
        /// Its message.
        #[source]
        source: BoxError,
    },
    /// The node's answer is not what its documentation says.
    #[error("bitcoind's answer to {method} makes no sense")]
    Malformed {
        /// RPC method.
        method: &'static str,
        /// Why, if known.
        #[source]
        source: BoxError,
    },
    /// The node is on another network.
    #[error("bitcoind is on {found}, not on {expected}")]
    WrongNetwork {
        /// As configured.
        expected: &'static str,
        /// As it says.
        found: String,
    },
    /// A development snapshot (version x.99) must not guard real money.
    #[error("bitcoind {version} is a development snapshot: refused on mainnet")]
    Snapshot {
        /// As it says.
        version: i64,
    },
    /// The best chain leaves ours further back than configured. A person must look.
    #[error("reorganisation of more than {limit} blocks")]
    ReorgTooDeep {
        /// The configured limit.
        limit: u32,
    },
    /// The header table failed.
    #[error("header table failed")]
    Store(#[source] BoxError),
    /// The receiver of blocks failed.
    #[error("a block could not be processed")]
    Sink(#[source] BoxError),
}

/// A node.
#[async_trait]
pub trait ChainSource: Send + Sync + 'static {
    /// Tip and state.
    async fn info(&self) -> Result<NodeInfo, ChainError>;
    /// Block of the best chain at a height; `None` above the tip.
    async fn hash_at(&self, height: u32) -> Result<Option<BlockHash>, ChainError>;
    /// A whole block.
    async fn block(&self, hash: &BlockHash) -> Result<Block, ChainError>;
    /// Returns when the tip differs from `known`, or after `at_most`.
    async fn wait_for_new_block(
        &self,
        known: &BlockHash,
        at_most: std::time::Duration,
    ) -> Result<(), ChainError>;
    /// What the node knows of an output, as of its tip.
    async fn output(&self, outpoint: &OutPoint) -> Result<OutputState, ChainError>;
    /// Ids of all transactions in the mempool.
    async fn mempool_txids(&self) -> Result<Vec<Txid>, ChainError>;
    /// Hands a transaction to the network.
    ///
    /// # Errors
    /// [`ChainError::Refused`] if the node has it already, or does not want it (yet).
    async fn broadcast(&self, transaction: &Transaction) -> Result<(), ChainError>;
    /// A transaction of the mempool; `None` if it has left.
    async fn mempool_transaction(&self, txid: &Txid) -> Result<Option<Transaction>, ChainError>;
}

/// A block that joined our chain.
#[derive(Debug, Clone)]
pub struct BlockConnected {
    /// Its place.
    pub id: BlockId,
    /// Its content, checked against its header.
    pub block: Block,
}

/// A block that left our chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDisconnected {
    /// Its place.
    pub id: BlockId,
    /// Its header.
    pub header: Header,
}

/// Learns of blocks, in order: always the child of the last one connected, or that one disconnected.
///
/// After a crash the last event may come again: the header table changes after the sink returned. What
/// it does must be the same when done twice.
#[async_trait]
pub trait ChainSink: Send + Sync + 'static {
    /// A block joined.
    async fn connected(&self, event: &BlockConnected) -> Result<(), BoxError>;
    /// The last block left.
    async fn disconnected(&self, event: &BlockDisconnected) -> Result<(), BoxError>;
    /// A look at the mempool on top of the last block connected: what `came` since the last look, and the ids of
    /// all that it `held`. After a start everything comes again.
    async fn mempool(&self, came: &[Transaction], held: &HashSet<Txid>) -> Result<(), BoxError>;
}
