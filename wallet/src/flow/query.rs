use std::collections::BTreeMap;

use prost::Message as _;
use spark_proto::spark::{
    GetSigningCommitmentsRequest, QueryNodesRequest, RequestedSigningCommitments, Transfer, TransferFilter,
    TreeNode, TreeNodeIds, query_nodes_request::Source, transfer_filter::Participant,
};
use spark_rules::ids::OperatorIndex;

use super::paging::{PAGE, Paging};
use crate::{
    Wallet, WalletError,
    client::{ClientError, Operator},
    verify::{Agreement, Disagreement, Verdict, compare},
};

/// Nodes by id, parents included.
pub(super) type Nodes = BTreeMap<String, TreeNode>;

/// What operators other than the coordinator answer.
pub(super) type Others = Vec<(OperatorIndex, Result<Nodes, ClientError>)>;

/// Whether all operators say of a node what the coordinator says.
pub(super) fn agreement(node: &TreeNode, others: &Others) -> Agreement {
    others.iter().fold(Agreement::All, |agreement, (index, answer)| {
        agreement.and(match answer {
            Ok(nodes) => match compare(node, nodes.get(&node.id)) {
                Ok(()) => Verdict::Same,
                Err(reason @ Disagreement::Status) => {
                    Verdict::Silent(format!("operator {}: {reason}", index.get()))
                }
                Err(reason) => Verdict::Other(format!("operator {}: {reason}", index.get())),
            },
            Err(error) => Verdict::Silent(error.to_string()),
        })
    })
}

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
        let mut paging = Paging::of(operator);
        loop {
            let request = QueryNodesRequest {
                source: Some(source.clone()),
                include_parents: true,
                limit: PAGE,
                offset: paging.offset(),
                network: self.config().network.to_wire() as i32,
                statuses: Vec::new(),
            };
            let answer = operator
                .spark(self.keys().identity(), request, |mut c, r| async move { c.query_nodes(r).await })
                .await?;
            let (bytes, before) = (answer.encoded_len(), all.len());
            all.extend(answer.nodes);
            if !paging.more(all.len().saturating_sub(before), bytes, answer.offset)? {
                return Ok(all);
            }
        }
    }

    /// What the coordinator says of some leaves, and what the others say.
    pub(super) async fn nodes_everywhere(&self, ids: &[String]) -> Result<(Nodes, Others), WalletError> {
        let answers = self.operators().each(|o| self.nodes_by_id(o, ids.to_vec())).await;
        self.split(answers)
    }

    /// The coordinator's answer, without which nothing goes on, and those of the others.
    pub(super) fn split(&self, mut answers: Others) -> Result<(Nodes, Others), WalletError> {
        let coordinator = self.operators().coordinator().index();
        let position = answers.iter().position(|(i, _)| *i == coordinator);
        let reference = answers.swap_remove(position.ok_or(WalletError::Answer("nodes"))?).1?;
        Ok((reference, answers))
    }

    /// What the coordinator says of these leaves, if all other operators say the same.
    pub(super) async fn agreed_nodes(&self, ids: &[String]) -> Result<Nodes, WalletError> {
        let (reference, mut others) = self.nodes_everywhere(ids).await?;
        if let Some(silent) = others.iter().position(|(_, answer)| answer.is_err()) {
            others.swap_remove(silent).1?;
        }
        for id in ids {
            let node = reference.get(id).ok_or(WalletError::Answer("a leaf"))?;
            if let Some(reason) = agreement(node, &others).problem() {
                return Err(WalletError::Refused(format!("{reason}: leaf {id}")));
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

    /// A transfer by id, as one operator knows it.
    pub(super) async fn transfer_at(
        &self,
        operator: &Operator,
        id: &str,
        participant: Participant,
    ) -> Result<Option<Transfer>, ClientError> {
        let filter = TransferFilter {
            participant: Some(participant),
            transfer_ids: vec![id.to_owned()],
            network: self.config().network.to_wire() as i32,
            limit: 1,
            ..Default::default()
        };
        let answer = operator
            .spark(self.keys().identity(), filter, |mut c, r| async move { c.query_all_transfers(r).await })
            .await?;
        Ok(answer.transfers.into_iter().find(|t| t.id == id))
    }

    /// A transfer by id, as each operator knows it.
    pub(super) async fn transfer_everywhere(
        &self,
        id: &str,
        participant: &Participant,
    ) -> Vec<(OperatorIndex, Result<Option<Transfer>, ClientError>)> {
        self.operators().each(|o| self.transfer_at(o, id, participant.clone())).await
    }

    /// Transfers that wait for this wallet's claim.
    pub async fn pending(&self) -> Result<Vec<Transfer>, WalletError> {
        let receiver = self.keys().identity().public_key().serialize().to_vec();
        let operator = self.operators().coordinator();
        let mut all: BTreeMap<String, Transfer> = BTreeMap::new();
        let mut order = Vec::new();
        let mut paging = Paging::of(operator);
        loop {
            let filter = TransferFilter {
                participant: Some(Participant::ReceiverIdentityPublicKey(receiver.clone())),
                network: self.config().network.to_wire() as i32,
                limit: PAGE,
                offset: paging.offset(),
                ..Default::default()
            };
            let answer = operator
                .spark(self.keys().identity(), filter, |mut c, r| async move {
                    c.query_pending_transfers(r).await
                })
                .await?;
            let (bytes, before) = (answer.encoded_len(), order.len());
            for transfer in answer.transfers {
                if !all.contains_key(&transfer.id) {
                    order.push(transfer.id.clone());
                    all.insert(transfer.id.clone(), transfer);
                }
            }
            if !paging.more(order.len().saturating_sub(before), bytes, answer.offset)? {
                return Ok(order.iter().filter_map(|id| all.remove(id)).collect());
            }
        }
    }
}
