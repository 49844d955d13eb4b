//! What an exit needs, kept by a rule that no single operator can turn back: a leaf comes and goes, the wallet's key
//! for it stays the same, and so an old state of it verifies as well as the present one.

use spark_rules::tx::Timelock;

use super::query::Nodes;
use crate::{
    Wallet, WalletError,
    exit::parse_lineage,
    state::{LeafKeyKind, SendRecord, SendState, StoredLeaf, Wire},
    verify::{Agreement, Lineage, Node, VerifyError},
    wallet::now,
};

/// What becomes of the stored exit data of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The new data replaces it.
    Replace,
    /// It stays.
    Stay,
}

/// Which of two verified states of one leaf an exit must use.
///
/// Timelocks of refunds on one node only ever fall (S4), so the lower one is the later. Which of two nodes is the
/// later cannot be seen from them: there every operator must agree.
fn decide(
    stored: Option<(&Node, LeafKeyKind)>,
    new: (&Node, LeafKeyKind),
    agreement: &Agreement,
) -> Result<Keep, VerifyError> {
    if let Agreement::Dispute(_) = agreement {
        return Ok(Keep::Stay);
    }
    let Some((old, old_pays)) = stored else { return Ok(Keep::Replace) };
    let (new, pays) = new;
    if old.node_tx.compute_txid() != new.node_tx.compute_txid() {
        return Ok(if *agreement == Agreement::All { Keep::Replace } else { Keep::Stay });
    }
    let (before, after): (Timelock, Timelock) = (old.refund_timelock()?, new.refund_timelock()?);
    let fewer = |old: &Option<_>, new: &Option<_>| old.is_some() && new.is_none();
    Ok(if after < before {
        Keep::Replace
    } else if after > before
        || (old_pays == LeafKeyKind::Leaf && pays == LeafKeyKind::Identity)
        // Direct variants are optional on some nodes: what is there already is not given up.
        || (old_pays == pays
            && (fewer(&old.direct_tx, &new.direct_tx) || fewer(&old.direct_refund_tx, &new.direct_refund_tx)))
    {
        Keep::Stay
    } else {
        Keep::Replace
    })
}

impl Wallet {
    /// Stores a verified leaf with its parents: all that an exit needs. What is stored and later stays.
    pub(super) fn remember(
        &self,
        lineage: &Lineage,
        nodes: &Nodes,
        pays: LeafKeyKind,
        agreement: &Agreement,
    ) -> Result<(), WalletError> {
        let leaf = lineage.leaf()?;
        let leaf_id = leaf.id.to_string();
        let stored = self.state().get::<StoredLeaf>(&leaf_id)?;
        // What cannot be read any more is worth nothing.
        let old = stored.as_ref().and_then(|s| Some((parse_lineage(s).ok()?.leaf().ok()?.clone(), s.pays)));
        if decide(old.as_ref().map(|(n, p)| (n, *p)), (leaf, pays), agreement)? == Keep::Stay {
            return Ok(());
        }
        let same = old
            .as_ref()
            .is_some_and(|(old, p)| (old.refund_tx.as_ref(), *p) == (leaf.refund_tx.as_ref(), pays));
        let was_sent = stored.is_some_and(|s| s.sent);
        let lineage = lineage
            .nodes()
            .iter()
            .map(|n| nodes.get(&n.id.to_string()).map(Wire::of).ok_or(WalletError::Answer("a parent")))
            .collect::<Result<_, _>>()?;
        self.state().put(&StoredLeaf {
            leaf_id,
            value: leaf.value,
            status: leaf.status.clone(),
            lineage,
            pays,
            verified: now(),
            // The very refund that was given away comes back only if all operators say so.
            sent: was_sent && same && *agreement != Agreement::All,
        })?;
        Ok(())
    }

    /// Marks leaves that left: exits with what is stored of them would be an old owner's, and packages that were
    /// refused can move them no more.
    pub(super) fn forget_sent(&self, send: &SendRecord) -> Result<(), WalletError> {
        if send.state != SendState::Done {
            return Ok(());
        }
        for id in &send.leaves {
            if let Some(mut leaf) = self.state().get::<StoredLeaf>(id)? {
                leaf.sent = true;
                self.state().put(&leaf)?;
            }
        }
        for mut other in self.state().all::<SendRecord>()? {
            if other.state == SendState::Doubtful && other.leaves.iter().any(|id| send.leaves.contains(id)) {
                other.state = SendState::Failed;
                self.state().put(&other)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use spark_proto::spark::TreeNode;

    use super::*;
    use crate::testing::{LEAF_ID, Operators, keys, wallet};

    struct Case {
        wallet: Wallet,
        _dir: tempfile::TempDir,
    }

    impl Case {
        fn remember(&self, node: &TreeNode, pays: LeafKeyKind, agreement: &Agreement) {
            let lineage = Lineage::from_nodes(std::slice::from_ref(node)).unwrap();
            let nodes = BTreeMap::from([(node.id.clone(), node.clone())]);
            self.wallet.remember(&lineage, &nodes, pays, agreement).unwrap();
        }

        fn stored(&self) -> (u16, LeafKeyKind, bool) {
            let stored = self.wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap().unwrap();
            let lineage = parse_lineage(&stored).unwrap();
            (lineage.leaf().unwrap().refund_timelock().unwrap().blocks(), stored.pays, stored.sent)
        }
    }

    fn case() -> Case {
        let (wallet, dir) = wallet(Vec::new());
        Case { wallet, _dir: dir }
    }

    fn silence() -> Agreement {
        Agreement::Silence("operator 1 is silent".into())
    }

    #[test]
    fn an_old_state_never_replaces_a_later_one() {
        use LeafKeyKind::{Identity, Leaf};
        let (operators, keys, case) = (Operators::new(), keys(), case());
        let first = operators.deposit(&keys, &[50_000]);
        let later = operators.at(&first, &keys, 1800, false);
        let incoming = operators.at(&first, &keys, 1800, true);
        let lower = operators.at(&first, &keys, 1600, true);
        case.remember(&first, Leaf, &Agreement::Dispute("operator 1 says otherwise".into()));
        assert_eq!(case.wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap(), None, "disputed");
        case.remember(&first, Leaf, &silence());
        assert_eq!(case.stored(), (2000, Leaf, false));
        case.remember(&later, Leaf, &silence());
        assert_eq!(case.stored(), (1800, Leaf, false));
        for agreement in [Agreement::All, silence(), Agreement::Dispute(String::new())] {
            // The coordinator shows the leaf as it was when this wallet first had it.
            case.remember(&first, Leaf, &agreement);
            assert_eq!(case.stored(), (1800, Leaf, false), "{agreement:?}");
            // Or lists the old transfer as pending again.
            case.remember(&incoming, Identity, &agreement);
            assert_eq!(case.stored(), (1800, Leaf, false), "{agreement:?}");
        }
        case.remember(&lower, Identity, &Agreement::Dispute(String::new()));
        assert_eq!(case.stored(), (1800, Leaf, false), "disputed");
        case.remember(&lower, Identity, &silence());
        assert_eq!(case.stored(), (1600, Identity, false), "it really comes back");
        case.remember(&operators.at(&first, &keys, 1600, false), Leaf, &silence());
        assert_eq!(case.stored(), (1600, Leaf, false), "claimed");
    }

    #[test]
    fn another_node_needs_every_operator() {
        use LeafKeyKind::Leaf;
        let (operators, keys, case) = (Operators::new(), keys(), case());
        let one = operators.deposit(&keys, &[50_000]);
        let two = operators.deposit(&keys, &[40_000]);
        let value = |case: &Case| case.wallet.state().get::<StoredLeaf>(LEAF_ID).unwrap().unwrap().value;
        case.remember(&one, Leaf, &silence());
        case.remember(&two, Leaf, &silence());
        assert_eq!(value(&case), 50_000);
        case.remember(&two, Leaf, &Agreement::All);
        assert_eq!(value(&case), 40_000);
    }

    #[test]
    fn direct_variants_are_not_given_up() {
        use LeafKeyKind::Leaf;
        let (operators, keys) = (Operators::new(), keys());
        let bare = operators.deposit(&keys, &[50_000]);
        let with = TreeNode { direct_tx: bare.node_tx.clone(), ..bare.clone() };
        let node = |n: &TreeNode| Node::parse(n).unwrap();
        let keep = |old: &TreeNode, new: &TreeNode| {
            decide(Some((&node(old), Leaf)), (&node(new), Leaf), &Agreement::All).unwrap()
        };
        assert_eq!(keep(&with, &bare), Keep::Stay);
        assert_eq!(keep(&bare, &with), Keep::Replace);
    }

    #[test]
    fn what_was_sent_stays_marked() {
        use LeafKeyKind::Leaf;
        let (operators, keys, case) = (Operators::new(), keys(), case());
        let node = operators.deposit(&keys, &[50_000]);
        case.remember(&node, Leaf, &Agreement::All);
        let mut send = crate::testing::send(&[LEAF_ID]);
        case.wallet.forget_sent(&send).unwrap();
        assert!(!case.stored().2, "not done yet");
        send.state = SendState::Done;
        case.wallet.forget_sent(&send).unwrap();
        assert!(case.stored().2);
        case.remember(&node, Leaf, &silence());
        assert!(case.stored().2, "the coordinator's word alone");
        case.remember(&operators.at(&node, &keys, 1900, false), Leaf, &silence());
        assert!(!case.stored().2, "it came back with a later refund");
    }
}
