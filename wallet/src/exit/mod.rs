//! Leaving without the operators: node by node to the chain, then the refund to an address of the user.
//!
//! Every node and the refund carry no fee of their own; a child that spends the anchor pays for both, and the
//! two go out as one package. Fees of nodes come from the wallet's on-chain fee address, the refund's from the
//! money itself. What is confirmed is read from the chain each time, so an exit can be resumed at any point.

mod advance;
mod build;
mod look;
mod path;
mod plan;
mod start;

use bitcoin::{Transaction, Txid, consensus::encode};
use serde::{Deserialize, Serialize};
use spark_rules::tx::SequenceField;

pub use advance::FeePolicy;
pub use build::{Child, ChildError};
pub use plan::{ExitPlan, Lane};

use crate::{
    Wallet, WalletError,
    state::{ExitRecord, StoredLeaf},
    verify::{Lineage, VerifyError},
};

/// Without an estimate of bitcoind, sat/vB.
pub const DEFAULT_FEE_RATE: u64 = 2;
/// Most that the wallet pays, sat/vB.
pub const MAX_FEE_RATE: u64 = 1000;

/// An exit that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExitError {
    /// Not stored here: synchronise, or import a bundle.
    #[error("no exit data for leaf {0}: synchronise first")]
    UnknownLeaf(String),
    /// Not started.
    #[error("no exit of leaf {0} is under way")]
    NotStarted(String),
    /// The address is for another network, or none.
    #[error("{0:?} is no address of this network")]
    Destination(String),
    /// Started with another address.
    #[error("the exit of leaf {leaf} goes to {destination}")]
    Other {
        /// Which.
        leaf: String,
        /// As started.
        destination: String,
    },
    /// A child cannot be built.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The fee address has no suitable money.
    #[error("the fee address {address} needs one confirmed output of at least {needed} sat")]
    FeeMoney {
        /// Where to pay to.
        address: String,
        /// Satoshis.
        needed: u64,
    },
    /// The fee rate is out of bounds.
    #[error("fee rate must be 1 to {MAX_FEE_RATE} sat/vB")]
    FeeRate,
    /// Fees eat the leaf.
    #[error("uneconomic: fees of {fees} sat for {value} sat; repeat with --force to do it anyway")]
    Uneconomic {
        /// Satoshis.
        fees: u64,
        /// Satoshis.
        value: u64,
    },
    /// Another transaction took the output.
    #[error("{txid} cannot confirm: another transaction spends its input")]
    Conflict {
        /// Of ours.
        txid: Txid,
    },
    /// The leaf left this wallet: its stored refund is an old owner's, and whoever owns it now is faster.
    #[error(
        "leaf {0} was sent away; its new owner's refund comes first (repeat with --force to do it anyway)"
    )]
    Sent(String),
    /// Somebody published a transaction that has no refund.
    #[error(
        "{txid} was published in place of the leaf's node tx, and no refund of it exists: ask the operators"
    )]
    NoRefund {
        /// Of the twin.
        txid: Txid,
    },
    /// A stored record is damaged.
    #[error("stored exit: {0}")]
    Stored(&'static str),
}

impl ExitError {
    pub(crate) const fn is_refusal(&self) -> bool {
        !matches!(self, Self::Stored(_))
    }
}

/// Where one transaction of an exit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Its turn has not come.
    Later,
    /// It waits for its timelock.
    Timelock,
    /// It can go out now.
    Ready,
    /// In the mempool.
    Mempool,
    /// In a block.
    Confirmed,
}

/// One transaction of an exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// "node" or "refund"; "direct-node", "direct-refund" or "direct-from-cpfp-refund" where somebody published that
    /// in its place.
    pub kind: String,
    /// Its id.
    pub txid: Txid,
    /// Where it stands.
    pub state: StepState,
    /// Blocks that it waits after the one before.
    pub timelock: u16,
    /// Blocks still to wait for that.
    pub blocks_left: u32,
    /// Child that pays its fee.
    pub child_txid: Option<Txid>,
    /// Of the package, sat/vB.
    pub fee_rate: Option<u64>,
}

/// An exit as the chain shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Leaf that leaves.
    pub leaf_id: String,
    /// User's address.
    pub destination: String,
    /// The money is on the user's address, confirmed.
    pub done: bool,
    /// Satoshis that arrive, once the refund is out.
    pub amount_sats: Option<u64>,
    /// Blocks still to wait for all timelocks, at least.
    pub blocks_left: u32,
    /// From the root down.
    pub steps: Vec<StepView>,
    /// Where the transaction stands that takes the refund's output to the destination.
    pub sweep_state: StepState,
    /// Its id, as last made by this wallet.
    pub sweep_txid: Option<Txid>,
}

impl Wallet {
    /// Address whose confirmed money pays the fees of exits.
    pub fn exit_fee_address(&self) -> Result<String, WalletError> {
        let key = self.keys().exit_fee()?.public_key();
        Ok(spark_rules::address::deposit_address(&key, self.config().network))
    }

    fn stored_leaf(&self, leaf_id: &str) -> Result<(StoredLeaf, Lineage), WalletError> {
        let stored = self.state().get::<StoredLeaf>(leaf_id)?;
        let stored = stored.ok_or_else(|| ExitError::UnknownLeaf(leaf_id.to_owned()))?;
        let lineage = parse_lineage(&stored)?;
        Ok((stored, lineage))
    }

    /// Exits under way and done.
    pub fn exits(&self) -> Result<Vec<ExitRecord>, WalletError> {
        Ok(self.state().all()?)
    }
}

/// The nodes of a stored leaf, leaf first.
pub(crate) fn parse_lineage(stored: &StoredLeaf) -> Result<Lineage, WalletError> {
    let nodes = stored
        .lineage
        .iter()
        .map(|node| node.decode().map_err(|_| ExitError::Stored("a node")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Lineage::from_nodes(&nodes)?)
}

/// Node transactions from the root down, then the refund.
fn transactions(lineage: &Lineage) -> Result<Vec<Transaction>, VerifyError> {
    let mut all: Vec<Transaction> = lineage.nodes().iter().rev().map(|n| n.node_tx.clone()).collect();
    all.push(lineage.leaf()?.refund_tx.clone().ok_or(VerifyError::Field("refund_tx"))?);
    Ok(all)
}

/// Blocks that a transaction waits after what it spends.
fn timelock(tx: &Transaction) -> u16 {
    let field = tx.input.first().and_then(|input| SequenceField::parse(input.sequence).ok());
    field.map_or(0, |field| field.timelock.blocks())
}

fn kind(index: usize, count: usize) -> String {
    if index.saturating_add(1) == count { "refund" } else { "node" }.into()
}

fn decode(hex: &str) -> Result<Transaction, ExitError> {
    encode::deserialize_hex(hex).map_err(|_| ExitError::Stored("a transaction"))
}
