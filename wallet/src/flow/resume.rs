//! Claims that a crash interrupted.

use std::collections::BTreeSet;

use spark_proto::spark::{TransferStatus, transfer_filter::Participant};

use super::receive::Claimed;
use crate::{
    Wallet, WalletError,
    state::{ClaimRecord, SendRecord, SendState},
    verify::{Node, check_refunds},
};

impl Wallet {
    /// Finishes claims that a crash interrupted after the operators had decided. One that fails does not stop the
    /// others; its error comes with its id.
    pub async fn resume_claims(&self) -> Result<Vec<Result<Claimed, (String, WalletError)>>, WalletError> {
        let mut finished = Vec::new();
        for record in self.state().all::<ClaimRecord>()? {
            if record.done || record.request.is_none() {
                continue;
            }
            let id = record.transfer_id.clone();
            if let Some(outcome) = self.resume_claim(record).await.transpose() {
                finished.push(outcome.map_err(|error| (id, error)));
            }
        }
        Ok(finished)
    }

    async fn resume_claim(&self, record: ClaimRecord) -> Result<Option<Claimed>, WalletError> {
        let receiver = self.keys().identity().public_key().serialize().to_vec();
        let participant = Participant::ReceiverIdentityPublicKey(receiver);
        let coordinator = self.operators().coordinator();
        let Some(transfer) = self.transfer_at(coordinator, &record.transfer_id, participant).await? else {
            return Ok(None);
        };
        if transfer.status() == TransferStatus::Completed {
            match self.came(&record).await {
                Ok(true) => return self.finished(record).map(Some),
                Err(error @ (WalletError::Client(_) | WalletError::Chain(_) | WalletError::State(_))) => {
                    return Err(error);
                }
                Ok(false) | Err(_) => {}
            }
        }
        // "Completed" is one operator's word: what did not come is claimed, or the claim fails and stays open.
        self.claim(&transfer).await.map(Some)
    }

    /// Whether all leaves of a claim are this wallet's, as all operators say, or have left it again by its own send.
    async fn came(&self, record: &ClaimRecord) -> Result<bool, WalletError> {
        let left: BTreeSet<String> = self
            .state()
            .all::<SendRecord>()?
            .into_iter()
            .filter(|send| send.state == SendState::Done && send.created >= record.created)
            .flat_map(|send| send.leaves)
            .collect();
        let here: Vec<String> = record.leaves.iter().filter(|id| !left.contains(*id)).cloned().collect();
        if here.is_empty() {
            return Ok(!record.leaves.is_empty());
        }
        let nodes = self.agreed_nodes(&here).await?;
        for id in &here {
            let node = Node::parse(nodes.get(id).ok_or(WalletError::Answer("a leaf"))?)?;
            let own = self.keys().leaf(&node.id)?.public_key();
            if own.combine(&node.group_key) != Ok(node.verifying_key) {
                return Ok(false);
            }
            check_refunds(&node, &own)?;
            self.remember_agreed(&node, &nodes).await?;
        }
        Ok(true)
    }
}
