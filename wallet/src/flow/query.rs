use std::collections::BTreeMap;

use bitcoin::{OutPoint, TxOut};
use spark_proto::spark::{
    GetSigningCommitmentsRequest, QueryNodesRequest, RequestedSigningCommitments, Transfer, TransferFilter,
    TreeNode, TreeNodeIds, query_nodes_request::Source, transfer_filter::Participant,
};
use spark_rules::ids::LeafId;

use crate::{
    Wallet, WalletError,
    client::{ClientError, Operator},
    verify::{Disagreement, Lineage, compare},
};

const PAGE: i64 = 100;
/// Most nodes of one answer that are read; a wallet with more needs several calls by id.
const MAX_NODES: usize = 100_000;

/// Nodes by id, parents included.
pub(super) type Nodes = BTreeMap<String, TreeNode>;

impl Wallet {
    /// All nodes that an operator lists under this identity, and their parents.
    pub(super) async fn owned_nodes(&self, operator: &Operator) -> Result<Nodes, ClientError> {
        let identity = self.keys().identity().public_key().serialize().to_vec();
        self.nodes(operator, Source::OwnerIdentityPubkey(identity)).await
    }

    /// Nodes by id, and their parents.
    pub(crate) async fn nodes_by_id(
        &self,
        operator: &Operator,
        node_ids: Vec<String>,
    ) -> Result<Nodes, ClientError> {
        self.nodes(operator, Source::NodeIds(TreeNodeIds { node_ids })).await
    }

    async fn nodes(&self, operator: &Operator, source: Source) -> Result<Nodes, ClientError> {
        let mut all = Nodes::new();
        let mut offset = 0;
        loop {
            let request = QueryNodesRequest {
                source: Some(source.clone()),
                include_parents: true,
                limit: PAGE,
                offset,
                network: self.config().network.to_wire() as i32,
                statuses: Vec::new(),
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move { c.query_nodes(r).await })
                .await?;
            let empty = answer.nodes.is_empty();
            all.extend(answer.nodes);
            // Offsets must grow, or a careless operator keeps us here for ever.
            if empty || answer.offset <= offset || all.len() > MAX_NODES {
                return Ok(all);
            }
            offset = answer.offset;
        }
    }

    /// What the coordinator says of these leaves, if all other operators say the same.
    pub(super) async fn agreed_nodes(&self, ids: &[String]) -> Result<Nodes, WalletError> {
        let answers = self.operators().each(|o| self.nodes_by_id(o, ids.to_vec())).await;
        let mut reference = None;
        let mut others = Vec::new();
        for (index, answer) in answers {
            let answer = answer?;
            if index == self.operators().coordinator().index() {
                reference = Some(answer);
            } else {
                others.push((index, answer));
            }
        }
        let reference = reference.ok_or(WalletError::Answer("nodes"))?;
        for id in ids {
            let node = reference.get(id).ok_or(WalletError::Answer("a leaf"))?;
            for (index, nodes) in &others {
                compare(node, nodes.get(id)).map_err(|e: Disagreement| {
                    WalletError::Refused(format!("operator {} {e}: leaf {id}", index.get()))
                })?;
            }
        }
        Ok(reference)
    }

    /// Sets of nonce commitments: `count` for each node, or `count` per unnamed node.
    pub(super) async fn commitments(
        &self,
        node_ids: Vec<String>,
        count: u32,
        node_id_count: u32,
    ) -> Result<Vec<RequestedSigningCommitments>, WalletError> {
        let request = GetSigningCommitmentsRequest { node_ids, count, node_id_count };
        let answer =
            self.operators()
                .coordinator()
                .spark(self.keys().identity(), request, |mut c, r| async move {
                    c.get_signing_commitments(r).await
                })
                .await?;
        Ok(answer.signing_commitments)
    }

    /// Outputs that roots with several inputs spend, from bitcoind.
    pub(super) async fn deposits_of(
        &self,
        lineage: &Lineage,
    ) -> Result<BTreeMap<OutPoint, TxOut>, WalletError> {
        let outpoints = lineage.deposit_outpoints();
        let mut found = BTreeMap::new();
        if outpoints.len() < 2 {
            return Ok(found);
        }
        for outpoint in outpoints {
            let tx = self.chain()?.transaction(&outpoint.txid).await?;
            let txout = usize::try_from(outpoint.vout).ok().and_then(|i| tx.as_ref()?.output.get(i).cloned());
            if let Some(txout) = txout {
                found.insert(outpoint, txout);
            }
        }
        Ok(found)
    }

    /// Checks the chain of parents of a leaf; where a bitcoind is configured, also that the deposit, or a node
    /// above the leaf, is an unspent output there.
    pub(super) async fn verified_lineage(
        &self,
        leaf: &LeafId,
        nodes: &Nodes,
    ) -> Result<Lineage, WalletError> {
        let lineage = Lineage::assemble(leaf, nodes)?;
        lineage.check(&self.deposits_of(&lineage).await?)?;
        let Some(chain) = self.chain_if_any() else { return Ok(lineage) };
        let mut anchored = true;
        for outpoint in lineage.deposit_outpoints() {
            anchored &= chain.unspent(&outpoint).await?.is_some();
        }
        for node in lineage.nodes() {
            if anchored {
                break;
            }
            anchored = chain.unspent(&node.spend()?.outpoint).await?.is_some();
        }
        if anchored {
            Ok(lineage)
        } else {
            Err(WalletError::Refused(format!("leaf {leaf} stands on no unspent output of the chain")))
        }
    }

    /// A transfer by id, as the coordinator knows it.
    pub(super) async fn transfer(
        &self,
        id: &str,
        participant: Participant,
    ) -> Result<Option<Transfer>, WalletError> {
        let filter = TransferFilter {
            participant: Some(participant),
            transfer_ids: vec![id.to_owned()],
            network: self.config().network.to_wire() as i32,
            limit: 1,
            ..Default::default()
        };
        let answer = self
            .operators()
            .coordinator()
            .spark(self.keys().identity(), filter, |mut c, r| async move { c.query_all_transfers(r).await })
            .await?;
        Ok(answer.transfers.into_iter().find(|t| t.id == id))
    }

    /// Transfers that wait for this wallet's claim.
    pub async fn pending(&self) -> Result<Vec<Transfer>, WalletError> {
        let receiver = self.keys().identity().public_key().serialize().to_vec();
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let filter = TransferFilter {
                participant: Some(Participant::ReceiverIdentityPublicKey(receiver.clone())),
                network: self.config().network.to_wire() as i32,
                limit: PAGE,
                offset,
                ..Default::default()
            };
            let answer = self
                .operators()
                .coordinator()
                .spark(self.keys().identity(), filter, |mut c, r| async move {
                    c.query_pending_transfers(r).await
                })
                .await?;
            let empty = answer.transfers.is_empty();
            all.extend(answer.transfers);
            if empty || answer.offset <= offset || all.len() > MAX_NODES {
                return Ok(all);
            }
            offset = answer.offset;
        }
    }
}
