//! Spends of watched outpoints before they are in a block: such a leaf must not be voted for (D21).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bitcoin::{OutPoint, Transaction, Txid};

use super::{ChainError, ChainSource, WatchSet};

/// Outpoints per call to the node.
const CHUNK: usize = 1000;

/// A change in the mempool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MempoolEvent {
    /// A transaction that spends a watched outpoint came.
    Seen {
        /// What it spends.
        outpoint: OutPoint,
        /// The transaction.
        transaction: Transaction,
    },
    /// It left: into a block, replaced, or dropped. In a block it comes with the block's event.
    Gone {
        /// What it spent.
        outpoint: OutPoint,
        /// Its id.
        txid: Txid,
    },
}

/// Compares the mempool with what it held at the last look.
pub struct MempoolWatch {
    source: Arc<dyn ChainSource>,
    watched: WatchSet,
    seen: Mutex<HashMap<OutPoint, Txid>>,
}

impl std::fmt::Debug for MempoolWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MempoolWatch").finish_non_exhaustive()
    }
}

impl MempoolWatch {
    /// Nothing seen yet.
    pub fn new(source: Arc<dyn ChainSource>, watched: WatchSet) -> Self {
        Self { source, watched, seen: Mutex::default() }
    }

    /// The transaction in the mempool that spends it, as of the last look.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(outpoint).copied()
    }

    /// One look. A replacement is a `Gone` followed by a `Seen`.
    ///
    /// # Errors
    /// Nothing counts as seen or gone then.
    pub async fn poll(&self) -> Result<Vec<MempoolEvent>, ChainError> {
        let mut now: HashMap<OutPoint, Txid> = HashMap::new();
        for chunk in self.watched.all().chunks(CHUNK) {
            now.extend(self.source.mempool_spends(chunk).await?);
        }
        let before = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut events: Vec<_> = before
            .iter()
            .filter(|(outpoint, txid)| now.get(outpoint) != Some(txid))
            .map(|(outpoint, txid)| MempoolEvent::Gone { outpoint: *outpoint, txid: *txid })
            .collect();
        let mut kept = HashMap::with_capacity(now.len());
        for (outpoint, txid) in now {
            if before.get(&outpoint) != Some(&txid) {
                // Gone between the two calls: the next look tells.
                let Some(transaction) = self.source.mempool_transaction(&txid).await? else { continue };
                events.push(MempoolEvent::Seen { outpoint, transaction });
            }
            kept.insert(outpoint, txid);
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(events)
    }
}
