//! What waits for this wallet's claim: the exits that stand already, and who vouches for them.

use spark_proto::spark::{Transfer, TransferLeaf, TransferStatus, TreeNode, transfer_filter::Participant};

use crate::{
    Wallet, WalletError,
    state::LeafKeyKind,
    verify::{Agreement, Node, To, Verdict, intermediate_refunds},
};

impl Wallet {
    /// Stores the exits that stand before the claim: refunds to the identity key.
    pub(super) async fn keep_exit(&self, transfer: &Transfer) -> Result<(), WalletError> {
        let ids: Vec<String> =
            transfer.leaves.iter().filter_map(|l| l.leaf.as_ref()).map(|l| l.id.clone()).collect();
        let mut nodes = self.nodes_by_id(self.operators().coordinator(), ids).await?;
        let agreement = self.transfer_agreement(transfer).await;
        for leaf in &transfer.leaves {
            let Some(node) = with_intermediate(leaf) else { continue };
            let parsed = Node::parse(&node)?;
            intermediate_refunds(&parsed, leaf, To::Key(&self.keys().identity().public_key()))?;
            nodes.insert(node.id.clone(), node);
            let verified = self.verified_lineage(&parsed.id, &nodes, &agreement).await?;
            self.remember(&verified.lineage, &nodes, LeafKeyKind::Identity, &agreement)?;
        }
        Ok(())
    }

    /// Whether all operators list this transfer, with the same leaves and the same refunds.
    async fn transfer_agreement(&self, transfer: &Transfer) -> Agreement {
        let receiver = self.keys().identity().public_key().serialize().to_vec();
        let participant = Participant::ReceiverIdentityPublicKey(receiver);
        let coordinator = self.operators().coordinator().index();
        let answers = self.transfer_everywhere(&transfer.id, &participant).await;
        let others = answers.iter().filter(|(index, _)| *index != coordinator);
        others.fold(Agreement::All, |agreement, (index, answer)| {
            agreement.and(match answer {
                Err(error) => Verdict::Silent(error.to_string()),
                // Operators apply a transfer one after the other.
                Ok(None) => Verdict::Silent(format!("operator {} does not list the transfer", index.get())),
                Ok(Some(other)) if is_open(other) && same_offer(transfer, other) => Verdict::Same,
                Ok(Some(_)) => Verdict::Other(format!("operator {} lists another transfer", index.get())),
            })
        })
    }
}

/// Whether a transfer still waits for its receiver: what was claimed is history, and its refunds are too.
fn is_open(transfer: &Transfer) -> bool {
    !matches!(
        transfer.status(),
        TransferStatus::Completed | TransferStatus::Expired | TransferStatus::Returned
    )
}

/// Whether two operators show the same secrets for the receiver, with the sender's signatures.
pub(super) fn same_secrets(a: &Transfer, b: &Transfer) -> bool {
    let secrets = |t: &Transfer| {
        t.leaves.iter().map(|l| (l.secret_cipher.clone(), l.signature.clone())).collect::<Vec<_>>()
    };
    secrets(a) == secrets(b)
}

/// Whether two operators offer the same to the receiver.
pub(super) fn same_offer(a: &Transfer, b: &Transfer) -> bool {
    let terms = |t: &Transfer| {
        t.leaves
            .iter()
            .map(|l| {
                let node = l.leaf.as_ref().map(|n| {
                    let key = n.signing_keyshare.as_ref().map(|k| k.public_key.clone());
                    (
                        n.id.clone(),
                        n.node_tx.clone(),
                        n.direct_tx.clone(),
                        n.verifying_public_key.clone(),
                        key,
                    )
                });
                let refunds = (
                    l.intermediate_refund_tx.clone(),
                    l.intermediate_direct_refund_tx.clone(),
                    l.intermediate_direct_from_cpfp_refund_tx.clone(),
                );
                (node, refunds)
            })
            .collect::<Vec<_>>()
    };
    a.sender_identity_public_key == b.sender_identity_public_key && terms(a) == terms(b)
}

/// The node with the refunds that the transfer carries.
pub(super) fn with_intermediate(leaf: &TransferLeaf) -> Option<TreeNode> {
    let mut node = leaf.leaf.clone()?;
    node.refund_tx.clone_from(&leaf.intermediate_refund_tx);
    node.direct_refund_tx.clone_from(&leaf.intermediate_direct_refund_tx);
    node.direct_from_cpfp_refund_tx.clone_from(&leaf.intermediate_direct_from_cpfp_refund_tx);
    Some(node)
}
