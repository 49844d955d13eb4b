use spark_proto::spark::TreeNode;

/// In what two operators differ about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// One does not know the node.
    #[error("does not know the leaf")]
    Missing,
    /// State.
    #[error("reports another status")]
    Status,
    /// S: one of them has not applied a tweak.
    #[error("holds another key")]
    Key,
    /// A transaction, signatures included.
    #[error("holds another {0}")]
    Transaction(&'static str),
    /// Value, parent or verifying key.
    #[error("describes another leaf")]
    Leaf,
    /// Owner.
    #[error("names another owner")]
    Owner,
}

/// Whether another operator says the same of a node: status, operators' key, and every transaction to the byte.
pub fn compare(reference: &TreeNode, other: Option<&TreeNode>) -> Result<(), Disagreement> {
    let other = other.ok_or(Disagreement::Missing)?;
    let key = |n: &TreeNode| n.signing_keyshare.as_ref().map(|k| k.public_key.clone());
    if key(reference) != key(other) {
        return Err(Disagreement::Key);
    }
    if reference.owner_identity_public_key != other.owner_identity_public_key {
        return Err(Disagreement::Owner);
    }
    if (&reference.id, reference.value, &reference.parent_node_id, &reference.verifying_public_key)
        != (&other.id, other.value, &other.parent_node_id, &other.verifying_public_key)
    {
        return Err(Disagreement::Leaf);
    }
    for (name, a, b) in [
        ("node_tx", &reference.node_tx, &other.node_tx),
        ("refund_tx", &reference.refund_tx, &other.refund_tx),
        ("direct_tx", &reference.direct_tx, &other.direct_tx),
        ("direct_refund_tx", &reference.direct_refund_tx, &other.direct_refund_tx),
        (
            "direct_from_cpfp_refund_tx",
            &reference.direct_from_cpfp_refund_tx,
            &other.direct_from_cpfp_refund_tx,
        ),
    ] {
        if a != b {
            return Err(Disagreement::Transaction(name));
        }
    }
    // Last: operators see blocks at different times, so this alone is no other leaf.
    if reference.status == other.status { Ok(()) } else { Err(Disagreement::Status) }
}

/// What the other operators make of one operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// Every operator says the same.
    All,
    /// Nobody says otherwise, but not everybody answered.
    Silence(String),
    /// Somebody says otherwise.
    Dispute(String),
}

impl Agreement {
    /// Weighs one more operator's verdict: the same, no answer, or something else.
    #[must_use]
    pub fn and(self, verdict: Verdict) -> Self {
        match (self, verdict) {
            (this @ Self::Dispute(_), _) | (this, Verdict::Same) => this,
            (_, Verdict::Other(reason)) => Self::Dispute(reason),
            (this @ Self::Silence(_), Verdict::Silent(_)) => this,
            (Self::All, Verdict::Silent(reason)) => Self::Silence(reason),
        }
    }

    /// Why not all agree, if so.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Silence(reason) | Self::Dispute(reason) => Some(reason),
        }
    }
}

/// One operator's part of an [`Agreement`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It says the same.
    Same,
    /// It gives no answer.
    Silent(String),
    /// It says otherwise.
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use spark_proto::spark::SigningKeyshare;

    #[test]
    fn one_voice_against_outweighs_silence() {
        let silent = || Verdict::Silent("silent".into());
        let other = || Verdict::Other("other".into());
        assert_eq!(Agreement::All.and(Verdict::Same), Agreement::All);
        assert_eq!(Agreement::All.and(silent()).and(Verdict::Same), Agreement::Silence("silent".into()));
        assert_eq!(Agreement::All.and(silent()).and(other()), Agreement::Dispute("other".into()));
        assert_eq!(Agreement::All.and(other()).and(silent()), Agreement::Dispute("other".into()));
    }

    #[test]
    fn every_difference_has_its_name() {
        let node = TreeNode {
            id: "a".into(),
            status: "AVAILABLE".into(),
            signing_keyshare: Some(SigningKeyshare { public_key: vec![2], ..Default::default() }),
            node_tx: vec![1],
            refund_tx: vec![2],
            ..Default::default()
        };
        let with = |change: &dyn Fn(&mut TreeNode)| {
            let mut other = node.clone();
            change(&mut other);
            compare(&node, Some(&other))
        };
        assert_eq!(compare(&node, Some(&node)), Ok(()));
        assert_eq!(compare(&node, None), Err(Disagreement::Missing));
        assert_eq!(with(&|n| n.status = "TRANSFER_LOCKED".into()), Err(Disagreement::Status));
        let both = |n: &mut TreeNode| (n.status, n.refund_tx) = ("TRANSFER_LOCKED".into(), vec![9]);
        assert_eq!(with(&both), Err(Disagreement::Transaction("refund_tx")));
        assert_eq!(with(&|n| n.signing_keyshare = None), Err(Disagreement::Key));
        assert_eq!(with(&|n| n.owner_identity_public_key = vec![3]), Err(Disagreement::Owner));
        assert_eq!(with(&|n| n.value = 1), Err(Disagreement::Leaf));
        assert_eq!(with(&|n| n.node_tx = vec![9]), Err(Disagreement::Transaction("node_tx")));
        assert_eq!(with(&|n| n.refund_tx = vec![9]), Err(Disagreement::Transaction("refund_tx")));
        assert_eq!(with(&|n| n.direct_tx = vec![9]), Err(Disagreement::Transaction("direct_tx")));
        // Times and lists of operators may differ.
        assert_eq!(with(&|n| n.updated_time = Some(prost_types::Timestamp::default())), Ok(()));
    }
}
