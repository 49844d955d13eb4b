//! Transactions before they are in a block: a leaf whose outputs they spend must not be voted for (D21). The effort
//! of a look depends on what is new in the mempool, not on the number of leaves.

use std::collections::HashSet;

use bitcoin::{BlockHash, Txid};

use super::{ChainError, ChainSink, ChainSource};

/// Transactions fetched in one look. What is left comes with the next: after a start the whole mempool is new, and
/// blocks must not wait for it.
const LIMIT: usize = 2000;
/// Bytes of them, about: a block's worth. Whoever pays for a mempool full of large transactions fills no memory.
const MAX_BYTES: usize = 4 << 20;

/// What was in the mempool at the last look.
#[derive(Debug, Default)]
pub struct Mempool {
    known: HashSet<Txid>,
}

impl Mempool {
    /// One look, told to the sink. Nothing happens if the node's tip is no longer `tip`: a transaction that left for
    /// a block would be forgotten before that block is connected. True when nothing is left to look at.
    ///
    /// # Errors
    /// The next look repeats what this one did not tell.
    pub async fn look(
        &mut self,
        source: &dyn ChainSource,
        sink: &dyn ChainSink,
        tip: BlockHash,
    ) -> Result<bool, ChainError> {
        let held: HashSet<Txid> = source.mempool_txids().await?.into_iter().collect();
        if source.info().await?.best.hash != tip {
            return Ok(false);
        }
        let (mut came, mut bytes, mut all) = (Vec::new(), 0usize, true);
        for txid in held.difference(&self.known) {
            if came.len() >= LIMIT || bytes >= MAX_BYTES {
                all = false;
                break;
            }
            // Gone between the two calls: then the next look does not find it either.
            if let Some(tx) = source.mempool_transaction(txid).await? {
                bytes = bytes.saturating_add(tx.total_size());
                came.push(tx);
            }
        }
        sink.mempool(&came, &held).await.map_err(ChainError::Sink)?;
        self.known.retain(|txid| held.contains(txid));
        self.known.extend(came.iter().map(bitcoin::Transaction::compute_txid));
        Ok(all)
    }
}
