//! What a leaf stands on: outputs of the chain, where a bitcoind can be asked.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, TxOut};
use spark_rules::{
    ids::LeafId,
    leaf::LeafStatus,
    tx::{MAX_ROOT_INPUTS, Spend},
};

use super::query::Nodes;
use crate::{
    Wallet, WalletError,
    verify::{Agreement, Lineage},
};

/// A leaf with all its parents, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    /// Leaf first.
    pub(super) lineage: Lineage,
    /// A confirmed unspent output of the chain carries it. Without a bitcoind nobody knows.
    pub(super) anchored: bool,
}

impl Wallet {
    /// Checks the chain of parents of a leaf; where a bitcoind is configured, also that the deposit, or a node
    /// above the leaf, is a confirmed unspent output there (of a deposit that waits for its block: any output).
    ///
    /// Only `agreement` of all operators stands in for outputs of a root with several inputs that nobody here can
    /// show.
    pub(super) async fn verified_lineage(
        &self,
        leaf: &LeafId,
        nodes: &Nodes,
        agreement: &Agreement,
    ) -> Result<Verified, WalletError> {
        let lineage = Lineage::assemble(leaf, nodes)?;
        let Some(chain) = self.chain_if_any() else {
            let single = lineage.deposit_outpoints().len() == 1;
            if single || *agreement != Agreement::All {
                lineage.check(&BTreeMap::new())?;
            } else {
                lineage.check_below_root()?;
            }
            return Ok(Verified { lineage, anchored: false });
        };
        let creating = lineage.leaf()?.status == LeafStatus::Creating.name();
        let deep = |confirmations: u32| creating || confirmations > 0;
        let outpoints = lineage.deposit_outpoints();
        let mut deposits = BTreeMap::new();
        let mut confirmed = true;
        for outpoint in outpoints.iter().take(MAX_ROOT_INPUTS) {
            if let Some(unspent) = chain.unspent(outpoint).await? {
                confirmed &= deep(unspent.confirmations);
                deposits.insert(*outpoint, unspent.txout);
            }
        }
        if !outpoints.is_empty() && deposits.len() == outpoints.len() {
            // Values and scripts of the chain, not those that the root's signature would fit.
            lineage.check(&deposits)?;
            if confirmed {
                return Ok(Verified { lineage, anchored: true });
            }
            return Err(WalletError::Refused(format!("leaf {leaf} stands on an unconfirmed output")));
        }
        // The root is on its way to the chain or there. The ids of its descendants commit to it, so an output of
        // one of them proves it.
        for node in lineage.nodes() {
            let Spend { outpoint, .. } = node.spend()?;
            if chain.unspent(&outpoint).await?.is_some_and(|u| deep(u.confirmations)) {
                lineage.check_below_root()?;
                return Ok(Verified { lineage, anchored: true });
            }
        }
        Err(WalletError::Refused(format!("leaf {leaf} stands on no confirmed unspent output of the chain")))
    }

    /// Outputs that a root spends, as far as bitcoind can show them.
    pub(crate) async fn deposits_of(
        &self,
        lineage: &Lineage,
    ) -> Result<BTreeMap<OutPoint, TxOut>, WalletError> {
        let mut found = BTreeMap::new();
        let Some(chain) = self.chain_if_any() else { return Ok(found) };
        for outpoint in lineage.deposit_outpoints().into_iter().take(MAX_ROOT_INPUTS) {
            let txout = match chain.unspent(&outpoint).await? {
                Some(unspent) => Some(unspent.txout),
                // Spent by the root, perhaps: with an index the transaction is known still.
                None => {
                    let tx = chain.transaction(&outpoint.txid).await?;
                    usize::try_from(outpoint.vout).ok().and_then(|i| tx.as_ref()?.output.get(i).cloned())
                }
            };
            if let Some(txout) = txout {
                found.insert(outpoint, txout);
            }
        }
        Ok(found)
    }
}
