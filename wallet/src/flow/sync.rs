use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use spark_proto::spark::TreeNode;
use spark_rules::{leaf::LeafStatus, point, tx::LEAST_REFUND_STEP};

use super::{
    anchor::Verified,
    query::{Nodes, Others, agreement},
};
use crate::{
    Wallet, WalletError,
    state::{DepositRecord, DepositState, ExitRecord, LeafKeyKind, SendRecord, SendState},
    verify::{Agreement, Node, VerifyError, check_refunds, compare},
};

/// A leaf of this wallet as the last synchronisation found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafView {
    /// UUID.
    pub leaf_id: String,
    /// Satoshis.
    pub value_sats: u64,
    /// As the operators say: "AVAILABLE", "CREATING", ...
    pub status: String,
    /// Blocks that an exit waits for the refund.
    pub refund_timelock: Option<u16>,
    /// Blocks that an exit waits for the node tx.
    pub node_timelock: Option<u16>,
    /// Transactions from the deposit down to the leaf's node tx.
    pub depth: usize,
    /// Operators that say the same of it.
    pub operators_agreeing: usize,
    /// This wallet's bitcoind shows a confirmed output that carries it; false where none is configured.
    #[serde(default)]
    pub anchored: bool,
    /// Why it does not count, if so.
    pub problem: Option<String>,
}

/// Sums in satoshis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Verified, agreed by all operators, not in use.
    pub available_sats: u64,
    /// Deposits without enough confirmations.
    pub unconfirmed_sats: u64,
    /// Sent to this wallet, not claimed yet.
    pub incoming_sats: u64,
    /// In a send, a renewal or an exit.
    pub locked_sats: u64,
    /// Listed by operators, but failing a check.
    pub doubtful_sats: u64,
}

impl LeafView {
    /// May be spent now.
    pub fn is_spendable(&self) -> bool {
        self.problem.is_none() && self.status == LeafStatus::Available.name()
    }

    /// Has no step left for a send.
    pub fn needs_renewal(&self) -> bool {
        self.refund_timelock.is_some_and(|t| t < LEAST_REFUND_STEP.blocks().saturating_mul(2))
    }
}

impl Wallet {
    /// Asks all operators for this wallet's leaves, checks every transaction, and stores what an exit needs.
    ///
    /// A leaf that fails a check is listed with its problem; what was stored of it before is kept.
    pub async fn sync(&self) -> Result<Vec<LeafView>, WalletError> {
        let answers = self.operators().each(|o| self.owned_nodes(o)).await;
        let (reference, others) = self.split(answers)?;
        let identity = self.keys().identity().public_key().serialize();
        let mut views = Vec::new();
        for node in reference.values().filter(|n| n.owner_identity_public_key == identity) {
            if !self.is_ours(node) {
                continue;
            }
            views.push(self.view(node, &reference, &others).await?);
        }
        Ok(views)
    }

    /// Whether P is the sum of the operators' key and this wallet's key for the leaf's id. Parents of renewed
    /// leaves and leaves that were sent are not ours, whoever lists them.
    pub(super) fn is_ours(&self, node: &TreeNode) -> bool {
        let check = || -> Result<bool, WalletError> {
            let id = spark_rules::ids::LeafId::parse(&node.id).map_err(VerifyError::from)?;
            let own = self.keys().leaf(&id)?.public_key();
            let keyshare = node.signing_keyshare.as_ref().ok_or(VerifyError::Field("signing_keyshare"))?;
            let group = point::parse("signing_keyshare", &keyshare.public_key).map_err(VerifyError::from)?;
            let sum = own.combine(&group).map_err(|_| VerifyError::KeySum)?;
            Ok(sum.serialize().as_slice() == node.verifying_public_key)
        };
        check().unwrap_or(false)
    }

    async fn view(&self, node: &TreeNode, nodes: &Nodes, others: &Others) -> Result<LeafView, WalletError> {
        let agreement = agreement(node, others);
        let agreeing = others.iter().filter(|(_, answer)| {
            answer.as_ref().is_ok_and(|nodes| compare(node, nodes.get(&node.id)).is_ok())
        });
        let mut view = LeafView {
            leaf_id: node.id.clone(),
            value_sats: node.value,
            status: node.status.clone(),
            refund_timelock: None,
            node_timelock: None,
            depth: 0,
            operators_agreeing: agreeing.count().saturating_add(1),
            anchored: false,
            problem: agreement.problem().map(ToOwned::to_owned),
        };
        match self.check_leaf(node, nodes, &agreement).await {
            Ok((verified, leaf)) => {
                view.refund_timelock = leaf.refund_timelock().ok().map(|t| t.blocks());
                view.node_timelock = leaf.node_timelock().ok().map(|t| t.blocks());
                view.depth = verified.lineage.nodes().len();
                view.anchored = verified.anchored;
                self.remember(&verified.lineage, nodes, LeafKeyKind::Leaf, &agreement)?;
                if agreement == Agreement::All {
                    self.note_deposit(&leaf)?;
                }
            }
            // Without an answer from bitcoind nothing is known, and nothing is wrong with the leaf.
            Err(WalletError::Chain(error)) => return Err(error.into()),
            Err(error) => view.problem = Some(error.to_string()),
        }
        Ok(view)
    }

    async fn check_leaf(
        &self,
        node: &TreeNode,
        nodes: &Nodes,
        agreement: &Agreement,
    ) -> Result<(Verified, Node), WalletError> {
        let leaf = Node::parse(node)?;
        let own = self.keys().leaf(&leaf.id)?.public_key();
        check_refunds(&leaf, &own)?;
        let verified = self.verified_lineage(&leaf.id, nodes, agreement).await?;
        Ok((verified, leaf))
    }

    /// Leaves that a stored send or exit uses.
    pub(super) fn busy_leaves(&self) -> Result<BTreeSet<String>, WalletError> {
        let sends = self.state().all::<SendRecord>()?;
        let exits = self.state().all::<ExitRecord>()?;
        let sending = sends.into_iter().filter(|s| s.state == SendState::Pending).flat_map(|s| s.leaves);
        Ok(sending.chain(exits.into_iter().map(|e| e.leaf_id)).collect())
    }

    /// Sums over a fresh synchronisation and the transfers that wait.
    pub async fn balance(&self) -> Result<Balance, WalletError> {
        let views = self.sync().await?;
        let busy = self.busy_leaves()?;
        let mut balance = Balance::default();
        for view in &views {
            let sum = if view.problem.is_some() {
                &mut balance.doubtful_sats
            } else if view.status == LeafStatus::Creating.name() {
                &mut balance.unconfirmed_sats
            } else if view.status == LeafStatus::Available.name() && !busy.contains(&view.leaf_id) {
                &mut balance.available_sats
            } else {
                &mut balance.locked_sats
            };
            *sum = sum.saturating_add(view.value_sats);
        }
        for transfer in self.pending().await? {
            balance.incoming_sats = balance.incoming_sats.saturating_add(transfer.total_value);
        }
        Ok(balance)
    }

    /// Deposit addresses of this wallet.
    pub fn deposits(&self) -> Result<Vec<DepositRecord>, WalletError> {
        Ok(self
            .state()
            .all::<DepositRecord>()?
            .into_iter()
            .filter(|d| d.state != DepositState::Requested)
            .collect())
    }
}
