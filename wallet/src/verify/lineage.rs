use std::collections::BTreeMap;

use bitcoin::{OutPoint, TxOut};
use spark_proto::spark::TreeNode;
use spark_rules::{
    ids::LeafId,
    tx::{Spend, Template, verify_input},
};

use super::{Node, VerifyError, node::unsigned};

/// Most nodes from leaf to root. Each zero renewal adds one, every 18 sends or so.
pub const MAX_DEPTH: usize = 512;

/// A leaf, its parent, and so on to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<Node>);

impl Lineage {
    /// Follows the parents of `leaf` through `nodes`.
    pub fn assemble(leaf: &LeafId, nodes: &BTreeMap<String, TreeNode>) -> Result<Self, VerifyError> {
        let mut chain = Vec::new();
        let mut next = Some(*leaf);
        while let Some(id) = next {
            if chain.len() >= MAX_DEPTH {
                return Err(VerifyError::Lineage("too deep, or a loop"));
            }
            let node = nodes.get(&id.to_string()).ok_or(VerifyError::Lineage("a node is missing"))?;
            let node = Node::parse(node)?;
            if node.id != id {
                return Err(VerifyError::Lineage("a node is listed under another id"));
            }
            next = node.parent;
            chain.push(node);
        }
        Ok(Self(chain))
    }

    /// From nodes in order, leaf first.
    pub fn from_nodes(nodes: &[TreeNode]) -> Result<Self, VerifyError> {
        let map = nodes.iter().map(|n| (n.id.clone(), n.clone())).collect();
        let first = nodes.first().ok_or(VerifyError::Lineage("empty"))?;
        Self::assemble(&LeafId::parse(&first.id)?, &map)
    }

    /// Leaf first, root last.
    pub fn nodes(&self) -> &[Node] {
        &self.0
    }

    /// The leaf.
    pub fn leaf(&self) -> Result<&Node, VerifyError> {
        self.0.first().ok_or(VerifyError::Lineage("empty"))
    }

    /// What the root spends: outputs on the chain.
    pub fn deposit_outpoints(&self) -> Vec<OutPoint> {
        self.0
            .last()
            .map_or_else(Vec::new, |root| root.node_tx.input.iter().map(|i| i.previous_output).collect())
    }

    /// What the leaf's node tx spends.
    pub fn leaf_parent_spend(&self, deposits: &BTreeMap<OutPoint, TxOut>) -> Result<Spend, VerifyError> {
        match self.0.get(1) {
            Some(parent) => {
                Spend::of(&parent.node_tx, self.leaf()?.vout).ok_or(VerifyError::Lineage("no such output"))
            }
            None => {
                root_spends(self.leaf()?, deposits)?.into_iter().next().ok_or(VerifyError::Field("node_tx"))
            }
        }
    }

    /// Checks shape and signature of every node tx, and that each spends its parent, down from the deposit.
    ///
    /// `deposits` are the outputs that the root spends, as the chain says. A root with one input needs none:
    /// its only possible prevout follows from its own output, since the template moves the whole value.
    pub fn check(&self, deposits: &BTreeMap<OutPoint, TxOut>) -> Result<(), VerifyError> {
        self.check_below_root()?;
        let root = self.0.last().ok_or(VerifyError::Lineage("empty"))?;
        let spends = root_spends(root, deposits)?;
        let prevouts: Vec<TxOut> = spends.iter().map(|s| s.txout.clone()).collect();
        Template::root(spends)?.check(&unsigned(&root.node_tx))?;
        for input in 0..root.node_tx.input.len() {
            verify_input(&root.node_tx, &prevouts, input)
                .map_err(|source| VerifyError::Signature { what: "root tx", source })?;
        }
        Ok(())
    }
}

impl Lineage {
    /// [`Lineage::check`] without the root's own signatures: enough where the chain has the root already.
    pub fn check_below_root(&self) -> Result<(), VerifyError> {
        for (child, parent) in self.0.iter().zip(self.0.iter().skip(1)) {
            check_child(child, parent)?;
        }
        Ok(())
    }
}

fn check_child(child: &Node, parent: &Node) -> Result<(), VerifyError> {
    let spend = Spend::of(&parent.node_tx, child.vout).ok_or(VerifyError::Lineage("no such output"))?;
    let step = child.node_timelock()?;
    let prevouts = [spend.txout.clone()];
    // A split has the shape of a node without timelock.
    Template::node(spend.clone(), &child.verifying_key, step)?.check(&unsigned(&child.node_tx))?;
    verify_input(&child.node_tx, &prevouts, 0)
        .map_err(|source| VerifyError::Signature { what: "node tx", source })?;
    if let Some(direct) = &child.direct_tx {
        Template::direct_node(spend, &child.verifying_key, step)?.check(&unsigned(direct))?;
        verify_input(direct, &prevouts, 0)
            .map_err(|source| VerifyError::Signature { what: "direct node tx", source })?;
    }
    Ok(())
}

fn root_spends(root: &Node, deposits: &BTreeMap<OutPoint, TxOut>) -> Result<Vec<Spend>, VerifyError> {
    let inputs: Vec<OutPoint> = root.node_tx.input.iter().map(|i| i.previous_output).collect();
    inputs
        .iter()
        .map(|outpoint| {
            let txout = match (deposits.get(outpoint), inputs.len()) {
                (Some(txout), _) => txout.clone(),
                (None, 1) => root.spend()?.txout,
                (None, _) => {
                    return Err(VerifyError::Lineage("the deposit's outputs are needed from the chain"));
                }
            };
            Ok(Spend { outpoint: *outpoint, txout })
        })
        .collect()
}
