//! What the node knows of one output.

use bitcoin::{BlockHash, TxOut};

use super::BlockId;

/// Whether an output is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// Neither in a block nor in the mempool.
    No,
    /// By a transaction in the mempool.
    InMempool,
    /// By a transaction in a block.
    InChain,
}

/// An output as of the node's tip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputState {
    /// Neither in a block nor in the mempool, as far as the node can tell.
    Unknown,
    /// In the mempool only.
    Unconfirmed {
        /// Value and script.
        output: TxOut,
    },
    /// In a block of the best chain.
    Confirmed {
        /// Value and script.
        output: TxOut,
        /// The block.
        block: BlockId,
        /// Confirmations: 1 in the tip itself.
        depth: u32,
        /// Whether it is spent.
        spent: Spent,
        /// The tip this was seen from.
        tip: BlockHash,
    },
}

impl OutputState {
    /// The output if it is in a block with at least `depth` confirmations and unspent.
    pub fn spendable_at(&self, needed: u32) -> Option<&TxOut> {
        match self {
            Self::Confirmed { output, depth, spent: Spent::No, .. } if *depth >= needed => Some(output),
            _ => None,
        }
    }
}
