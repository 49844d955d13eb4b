//! Looking through a block for what concerns us; the effort depends on the block, not on the number of leaves.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use bitcoin::{Block, OutPoint, ScriptBuf, Transaction, TxOut};

/// Outpoints whose spends matter. Clones share one set.
#[derive(Debug, Clone, Default)]
pub struct WatchSet {
    outpoints: Arc<RwLock<HashSet<OutPoint>>>,
}

impl WatchSet {
    /// Watches these, too.
    pub fn watch(&self, outpoints: impl IntoIterator<Item = OutPoint>) {
        self.outpoints.write().unwrap_or_else(PoisonError::into_inner).extend(outpoints);
    }

    /// Stops watching one.
    pub fn forget(&self, outpoint: &OutPoint) {
        self.outpoints.write().unwrap_or_else(PoisonError::into_inner).remove(outpoint);
    }

    /// Whether it is watched.
    pub fn contains(&self, outpoint: &OutPoint) -> bool {
        self.outpoints.read().unwrap_or_else(PoisonError::into_inner).contains(outpoint)
    }

    /// A copy of the set.
    pub fn all(&self) -> Vec<OutPoint> {
        self.outpoints.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Every spend of a watched outpoint in the block, with the spending transaction.
pub fn spends_of<'a>(block: &'a Block, watched: &WatchSet) -> Vec<(OutPoint, &'a Transaction)> {
    block
        .txdata
        .iter()
        .flat_map(|tx| tx.input.iter().map(move |input| (input.previous_output, tx)))
        .filter(|(outpoint, _)| watched.contains(outpoint))
        .collect()
}

/// Every output of the block that pays one of the scripts, also when several pay the same one.
pub fn outputs_to(block: &Block, pays: impl Fn(&ScriptBuf) -> bool) -> Vec<(OutPoint, &TxOut)> {
    let mut found = Vec::new();
    for tx in &block.txdata {
        let mut txid = None;
        for (vout, output) in (0u32..).zip(&tx.output) {
            if pays(&output.script_pubkey) {
                let txid = *txid.get_or_insert_with(|| tx.compute_txid());
                found.push((OutPoint { txid, vout }, output));
            }
        }
    }
    found
}
