use bitcoin::{Transaction, consensus::encode};

use super::{ExitError, transactions};
use crate::{
    Wallet, WalletError,
    state::{DirectSteps, ExitRecord, ExitState, LeafKeyKind, StoredLeaf, StoredStep},
    verify::{Lineage, VerifyError, check_refunds},
    wallet::now,
};

impl Wallet {
    /// Begins an exit of `leaf_id` to `destination`, or finds the one that is under way. Nothing is sent yet:
    /// [`Wallet::exit_advance`] does that. `force` is for leaves that fees eat, and for leaves that were sent away.
    pub async fn exit_start(
        &self,
        leaf_id: &str,
        destination: &str,
        fee_rate: Option<u64>,
        force: bool,
    ) -> Result<ExitRecord, WalletError> {
        self.script_of(destination)?;
        if let Some(record) = self.state().get::<ExitRecord>(leaf_id)? {
            if record.destination != destination {
                return Err(
                    ExitError::Other { leaf: leaf_id.to_owned(), destination: record.destination }.into()
                );
            }
            return Ok(record);
        }
        let (stored, lineage) = self.stored_leaf(leaf_id)?;
        self.check_stored(&stored, &lineage).await?;
        if stored.sent && !force {
            return Err(ExitError::Sent(leaf_id.to_owned()).into());
        }
        let plan = self.exit_plan(leaf_id, fee_rate).await?;
        if !plan.economic && !force {
            let fees = plan.node_fees_sats.saturating_add(plan.refund_fee_sats);
            return Err(ExitError::Uneconomic { fees, value: plan.value_sats }.into());
        }
        let record = ExitRecord {
            leaf_id: leaf_id.to_owned(),
            destination: destination.to_owned(),
            steps: transactions(&lineage)?.iter().map(step).collect(),
            pays: stored.pays,
            state: ExitState::Active,
            created: now(),
            direct: direct(&lineage)?,
            sweep: None,
        };
        self.state().put(&record)?;
        Ok(record)
    }

    /// Checks what is stored of a leaf again, whoever put it there: every signature, and that its refunds are this
    /// wallet's.
    async fn check_stored(&self, stored: &StoredLeaf, lineage: &Lineage) -> Result<(), WalletError> {
        let leaf = lineage.leaf()?;
        let key = match stored.pays {
            LeafKeyKind::Leaf => self.keys().leaf(&leaf.id)?.public_key(),
            LeafKeyKind::Identity => self.keys().identity().public_key(),
        };
        check_refunds(leaf, &key)?;
        let (deposits, inputs) = (self.deposits_of(lineage).await?, lineage.deposit_outpoints().len());
        if inputs > 1 && deposits.len() < inputs {
            // bitcoind shows no outputs that are spent: then the root is on the chain, or it will be refused there.
            lineage.check_below_root()?;
        } else {
            lineage.check(&deposits)?;
        }
        Ok(())
    }
}

fn step(tx: &Transaction) -> StoredStep {
    StoredStep { tx: encode::serialize_hex(tx), child: None, fee_rate: 0 }
}

/// What somebody else may publish in place of the last steps.
fn direct(lineage: &Lineage) -> Result<DirectSteps, VerifyError> {
    let leaf = lineage.leaf()?;
    // On a zero node a direct refund would spend nothing that templates know; it was not verified.
    let refund = if leaf.is_zero()? { None } else { leaf.direct_refund_tx.as_ref() };
    Ok(DirectSteps {
        node: leaf.direct_tx.as_ref().map(step),
        refund: refund.map(step),
        from_cpfp: leaf.direct_from_cpfp_refund_tx.as_ref().map(step),
    })
}

#[cfg(test)]
mod tests {
    use bitcoin::consensus::encode::{deserialize, serialize};
    use spark_proto::spark::TreeNode;

    use super::*;
    use crate::{
        chain::ChainError,
        state::Wire,
        testing::{LEAF_ID, Operators, keys, wallet_of},
    };

    #[tokio::test]
    async fn what_was_sent_or_does_not_verify_is_not_started() {
        let (operators, keys) = (Operators::new(), keys());
        let node = operators.deposit(&keys, &[50_000]);
        let (wallet, _dir) = wallet_of(&operators, keys, Vec::new(), std::time::Duration::from_secs(1));
        let to = wallet.exit_fee_address().unwrap();
        let store = |node: &TreeNode, sent| {
            let leaf = StoredLeaf {
                leaf_id: LEAF_ID.into(),
                value: 50_000,
                status: "AVAILABLE".into(),
                lineage: vec![Wire::of(node)],
                pays: LeafKeyKind::Leaf,
                verified: 1,
                sent,
            };
            wallet.state().put(&leaf).unwrap();
        };
        store(&node, true);
        let refused = wallet.exit_start(LEAF_ID, &to, None, false).await;
        assert!(matches!(refused, Err(WalletError::Exit(ExitError::Sent(_)))), "{refused:?}");
        // Forced, or never sent: on to the plan, which needs a bitcoind.
        for (sent, force) in [(true, true), (false, false)] {
            store(&node, sent);
            let planned = wallet.exit_start(LEAF_ID, &to, None, force).await;
            assert!(matches!(planned, Err(WalletError::Chain(ChainError::NotConfigured))), "{planned:?}");
        }
        let mut root: Transaction = deserialize(&node.node_tx).unwrap();
        root.input[0].witness.clear();
        store(&TreeNode { node_tx: serialize(&root), ..node.clone() }, false);
        let unsigned = wallet.exit_start(LEAF_ID, &to, None, true).await;
        assert!(matches!(unsigned, Err(WalletError::Verify(_))), "{unsigned:?}");
    }
}
