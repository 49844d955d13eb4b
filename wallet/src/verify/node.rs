use bitcoin::{Transaction, consensus::encode, secp256k1::PublicKey};
use spark_proto::spark::TreeNode;
use spark_rules::{
    ids::LeafId,
    point,
    tx::{SequenceField, Spend, Timelock, p2tr_script},
};

use super::VerifyError;

/// Most bytes of a transaction from an operator; the largest root has less.
const MAX_TX: usize = 16 << 10;

/// A tree node as an operator describes it, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: LeafId,
    /// Node above; none for a root.
    pub parent: Option<LeafId>,
    /// Satoshis.
    pub value: u64,
    /// Output of the parent that it spends.
    pub vout: u32,
    /// P.
    pub verifying_key: PublicKey,
    /// S.
    pub group_key: PublicKey,
    /// Owner, where the operator says so.
    pub owner_identity: PublicKey,
    /// As the operator says.
    pub status: String,
    /// Signed.
    pub node_tx: Transaction,
    /// Node tx that pays its own fee.
    pub direct_tx: Option<Transaction>,
    /// Refund of the owner, signed.
    pub refund_tx: Option<Transaction>,
    /// Spends the direct node tx.
    pub direct_refund_tx: Option<Transaction>,
    /// Spends the node tx and pays its own fee.
    pub direct_from_cpfp_refund_tx: Option<Transaction>,
}

impl Node {
    /// Parses a node; signatures are not checked yet.
    pub fn parse(node: &TreeNode) -> Result<Self, VerifyError> {
        let keyshare = node.signing_keyshare.as_ref().ok_or(VerifyError::Field("signing_keyshare"))?;
        let parent = node.parent_node_id.as_deref().filter(|p| !p.is_empty());
        let this = Self {
            id: LeafId::parse(&node.id)?,
            parent: parent.map(LeafId::parse).transpose()?,
            value: node.value,
            vout: node.vout,
            verifying_key: point::parse("verifying_public_key", &node.verifying_public_key)?,
            group_key: point::parse("signing_keyshare.public_key", &keyshare.public_key)?,
            owner_identity: point::parse("owner_identity_public_key", &node.owner_identity_public_key)?,
            status: node.status.clone(),
            node_tx: transaction("node_tx", &node.node_tx)?.ok_or(VerifyError::Field("node_tx"))?,
            direct_tx: transaction("direct_tx", &node.direct_tx)?,
            refund_tx: transaction("refund_tx", &node.refund_tx)?,
            direct_refund_tx: transaction("direct_refund_tx", &node.direct_refund_tx)?,
            direct_from_cpfp_refund_tx: transaction(
                "direct_from_cpfp_refund_tx",
                &node.direct_from_cpfp_refund_tx,
            )?,
        };
        let output = this.spend()?.txout;
        if output.value.to_sat() != this.value || output.script_pubkey != p2tr_script(&this.verifying_key) {
            return Err(VerifyError::Value);
        }
        Ok(this)
    }

    /// Output 0 of the node tx.
    pub fn spend(&self) -> Result<Spend, VerifyError> {
        Spend::of(&self.node_tx, 0).ok_or(VerifyError::Field("node_tx"))
    }

    /// Output 0 of the direct node tx, where a direct refund spends it: never on a zero node.
    pub fn direct_spend(&self) -> Result<Option<Spend>, VerifyError> {
        match &self.direct_tx {
            Some(direct) if !self.is_zero()? => {
                Spend::of(direct, 0).map(Some).ok_or(VerifyError::Field("direct_tx"))
            }
            None if !self.is_zero()? => Err(VerifyError::Field("direct_tx")),
            _ => Ok(None),
        }
    }

    /// Timelock of the node tx.
    pub fn node_timelock(&self) -> Result<Timelock, VerifyError> {
        timelock("node_tx", &self.node_tx)
    }

    /// Timelock of the refund.
    pub fn refund_timelock(&self) -> Result<Timelock, VerifyError> {
        timelock("refund_tx", self.refund_tx.as_ref().ok_or(VerifyError::Field("refund_tx"))?)
    }

    /// The node tx needs no wait.
    pub fn is_zero(&self) -> Result<bool, VerifyError> {
        Ok(self.node_timelock()?.is_zero())
    }
}

/// An optional transaction from foreign bytes; empty is none.
pub(super) fn transaction(name: &'static str, bytes: &[u8]) -> Result<Option<Transaction>, VerifyError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() > MAX_TX {
        return Err(VerifyError::Field(name));
    }
    encode::deserialize(bytes).map(Some).map_err(|_| VerifyError::Field(name))
}

/// Timelock of input 0.
pub(super) fn timelock(name: &'static str, tx: &Transaction) -> Result<Timelock, VerifyError> {
    let input = tx.input.first().ok_or(VerifyError::Field(name))?;
    Ok(SequenceField::parse(input.sequence)?.timelock)
}

/// The transaction without signatures, as templates compare it.
pub(super) fn unsigned(tx: &Transaction) -> Vec<u8> {
    let mut tx = tx.clone();
    for input in &mut tx.input {
        input.witness.clear();
    }
    encode::serialize(&tx)
}
