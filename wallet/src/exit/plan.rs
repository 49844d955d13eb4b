use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use super::{Child, DEFAULT_FEE_RATE, ExitError, MAX_FEE_RATE, kind, timelock, transactions};
use crate::{Wallet, WalletError};

/// One transaction still to confirm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// "node" or "refund".
    pub kind: String,
    /// Its id.
    pub txid: Txid,
    /// Blocks that it waits after the one before.
    pub timelock: u16,
    /// Fee of the package, satoshis.
    pub fee_sats: u64,
}

/// What an exit costs, before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitPlan {
    /// Leaf.
    pub leaf_id: String,
    /// Its value.
    pub value_sats: u64,
    /// sat/vB.
    pub fee_rate: u64,
    /// Transactions that are not on the chain yet, from the root down.
    pub transactions: Vec<Lane>,
    /// Blocks of all timelocks together; each transaction needs at least one more to confirm.
    pub timelock_blocks: u32,
    /// Fees of the nodes, from the fee address.
    pub node_fees_sats: u64,
    /// Fee of the refund, from the leaf itself.
    pub refund_fee_sats: u64,
    /// What arrives.
    pub receives_sats: u64,
    /// Where to pay the fees of the nodes to.
    pub fee_address: String,
    /// What must lie there in one output; what is not used stays there.
    pub fee_needed_sats: u64,
    /// What lies there in its largest confirmed output.
    pub fee_available_sats: u64,
    /// Fees are less than what arrives.
    pub economic: bool,
}

impl Wallet {
    /// Lays out an exit at `fee_rate` sat/vB, or bitcoind's estimate. Nothing is sent.
    pub async fn exit_plan(&self, leaf_id: &str, fee_rate: Option<u64>) -> Result<ExitPlan, WalletError> {
        let (stored, lineage) = self.stored_leaf(leaf_id)?;
        let fee_rate = self.fee_rate(fee_rate).await?;
        let transactions = transactions(&lineage)?;
        let mut lanes = Vec::new();
        let (mut node_fees, mut refund_fee, mut blocks, mut needed) = (0u64, 0u64, 0u32, 0u64);
        for (i, tx) in transactions.iter().enumerate() {
            let txid = tx.compute_txid();
            if self.chain()?.confirmations(&txid).await?.is_some_and(|c| c > 0) {
                continue;
            }
            let lane = Lane {
                kind: kind(i, transactions.len()),
                txid,
                timelock: timelock(tx),
                fee_sats: Child::fee(tx, fee_rate),
            };
            blocks = blocks.saturating_add(lane.timelock.into());
            if lane.kind == "refund" {
                refund_fee = lane.fee_sats;
            } else {
                node_fees = node_fees.saturating_add(lane.fee_sats);
                needed = node_fees.saturating_add(Child::needs(tx, 0));
            }
            lanes.push(lane);
        }
        let fee_address = self.exit_fee_address()?;
        let money = self.chain()?.scan(&fee_address).await?;
        let receives = stored.value.saturating_sub(refund_fee);
        Ok(ExitPlan {
            leaf_id: leaf_id.to_owned(),
            value_sats: stored.value,
            fee_rate,
            transactions: lanes,
            timelock_blocks: blocks,
            node_fees_sats: node_fees,
            refund_fee_sats: refund_fee,
            receives_sats: receives,
            fee_address,
            fee_needed_sats: needed,
            fee_available_sats: money.iter().map(|u| u.txout.value.to_sat()).max().unwrap_or(0),
            economic: node_fees.saturating_add(refund_fee) < receives,
        })
    }

    pub(crate) async fn fee_rate(&self, chosen: Option<u64>) -> Result<u64, WalletError> {
        let rate = match chosen {
            Some(rate) => rate,
            None => self.chain()?.fee_rate().await?.unwrap_or(DEFAULT_FEE_RATE),
        };
        if (1..=MAX_FEE_RATE).contains(&rate) { Ok(rate) } else { Err(ExitError::FeeRate.into()) }
    }
}
