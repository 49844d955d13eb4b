//! Exits of what a preimage completes: by the preimage for the receiver, by time for the sender. Both stand on the same
//! refunds, which pay to an output that either takes.

use bitcoin::{Transaction, consensus::encode, secp256k1::PublicKey};
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use spark_proto::spark::Transfer;
use spark_rules::{
    point,
    tx::{HTLC_BLOCKS, Htlc, HtlcPath, SequenceField, Spend},
};
use zeroize::Zeroizing;

use super::offer::with_intermediate;
use crate::{
    Wallet, WalletError,
    state::{HtlcExit, Wire},
    verify::{Agreement, Lineage, Node, To, VerifyError, intermediate_refunds},
};

/// Virtual size of the last spend: one input by script, one output.
const SPEND_VSIZE: u64 = 170;

/// One transaction of such an exit, to be broadcast in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HtlcExitStep {
    /// "node", "refund" or "spend".
    pub kind: String,
    /// Blocks to wait after what it spends is confirmed.
    pub wait_blocks: u16,
    /// Hex. A node pays no fee: a child that spends its anchor does.
    pub tx: String,
}

impl Wallet {
    /// Stores what an exit of a pending transfer needs, leaf by leaf, with its refunds verified against `terms`.
    pub(super) async fn keep_htlc_exit(
        &self,
        transfer: &Transfer,
        terms: &Htlc,
        preimage: Option<&[u8; 32]>,
    ) -> Result<(), WalletError> {
        let ids: Vec<String> =
            transfer.leaves.iter().filter_map(|l| l.leaf.as_ref()).map(|l| l.id.clone()).collect();
        let mut nodes = self.nodes_by_id(self.operators().coordinator(), ids).await?;
        let mut exits = Vec::with_capacity(transfer.leaves.len());
        for leaf in &transfer.leaves {
            let node = with_intermediate(leaf).ok_or(WalletError::Answer("a leaf"))?;
            let parsed = Node::parse(&node)?;
            intermediate_refunds(&parsed, leaf, To::Htlc(terms))?;
            nodes.insert(node.id.clone(), node);
            let lineage = self.verified_lineage(&parsed.id, &nodes, &Agreement::All).await?.lineage;
            let lineage = lineage.nodes().iter().map(|n| nodes.get(&n.id.to_string()).map(Wire::of));
            let leaf_id = parsed.id.to_string();
            exits.push(HtlcExit {
                key: format!("{}/{leaf_id}", transfer.id),
                transfer_id: transfer.id.clone(),
                leaf_id,
                value: parsed.value,
                lineage: lineage.collect::<Option<_>>().ok_or(WalletError::Answer("a parent"))?,
                payment_hash: hex::encode(terms.payment_hash()),
                sender: terms.sender().to_string(),
                receiver: terms.receiver().to_string(),
                preimage: preimage.map(hex::encode),
            });
        }
        for exit in &exits {
            self.state().put(exit)?;
        }
        Ok(())
    }

    /// The leaves are this wallet's alone by now, or somebody else's.
    pub(super) fn forget_htlc_exits(&self, transfer_id: &str) -> Result<(), WalletError> {
        let exits = self.state().all::<HtlcExit>()?;
        let of_it: Vec<&str> = exits
            .iter()
            .filter(|exit| exit.transfer_id == transfer_id)
            .map(|exit| exit.key.as_str())
            .collect();
        Ok(self.state().remove_all::<HtlcExit>(&of_it)?)
    }

    /// The signed transactions by which this wallet leaves with what a preimage completes, leaf by leaf: as receiver with
    /// the preimage, as sender by time. No operator is asked.
    pub fn htlc_exit(
        &self,
        transfer_id: &str,
        destination: &str,
        fee_rate: u64,
    ) -> Result<Vec<Vec<HtlcExitStep>>, WalletError> {
        let exits = self.state().all::<HtlcExit>()?.into_iter();
        exits
            .filter(|exit| exit.transfer_id == transfer_id)
            .map(|exit| self.htlc_exit_of(&exit, destination, fee_rate))
            .collect()
    }

    fn htlc_exit_of(
        &self,
        exit: &HtlcExit,
        destination: &str,
        fee_rate: u64,
    ) -> Result<Vec<HtlcExitStep>, WalletError> {
        let stored = |_| WalletError::Answer("the stored exit");
        let nodes = exit.lineage.iter().map(Wire::decode).collect::<Result<Vec<_>, _>>().map_err(stored)?;
        let lineage = Lineage::from_nodes(&nodes)?;
        let leaf = lineage.leaf()?;
        let terms = Htlc::new(
            hex::FromHex::from_hex(&exit.payment_hash).map_err(|_| WalletError::Answer("the stored exit"))?,
            key(&exit.receiver)?,
            key(&exit.sender)?,
        );
        // It pays its own fee, so nothing but the spend needs another.
        let refund = leaf.direct_from_cpfp_refund_tx.as_ref().ok_or(VerifyError::Field("refund"))?;
        let money = Spend::of(refund, 0).ok_or(VerifyError::Field("refund"))?;
        let path = if exit.preimage.is_some() { HtlcPath::Preimage } else { HtlcPath::Timeout };
        let fee = bitcoin::Amount::from_sat(SPEND_VSIZE.saturating_mul(fee_rate));
        let unspendable = |_| WalletError::Refused("the refund cannot pay this fee".into());
        let mut spend = terms.spend(&money, path, self.script_of(destination)?, fee).map_err(unspendable)?;
        let sighash = terms.sighash(&spend, &money.txout, path).map_err(unspendable)?;
        let signature = self.keys().identity().sign_schnorr(sighash, &mut OsRng)?;
        let witness = match &exit.preimage {
            Some(preimage) => {
                let mut bytes = Zeroizing::new([0u8; 32]);
                hex::decode_to_slice(preimage, &mut *bytes)
                    .map_err(|_| WalletError::Answer("the stored exit"))?;
                terms.preimage_witness(signature, &*bytes)
            }
            None => terms.timeout_witness(signature),
        };
        for input in &mut spend.input {
            input.witness = witness.clone().map_err(unspendable)?;
        }
        let last = if path == HtlcPath::Timeout { HTLC_BLOCKS } else { 0 };
        let mut steps: Vec<_> =
            lineage.nodes().iter().rev().map(|node| step("node", &node.node_tx)).collect();
        steps.push(step("refund", refund));
        steps.push(HtlcExitStep { wait_blocks: last, ..step("spend", &spend) });
        Ok(steps)
    }
}

fn key(text: &str) -> Result<PublicKey, WalletError> {
    let bytes = hex::decode(text).map_err(|_| WalletError::Answer("the stored exit"))?;
    Ok(point::parse("identity", &bytes).map_err(VerifyError::from)?)
}

fn step(kind: &str, tx: &Transaction) -> HtlcExitStep {
    let field = tx.input.first().and_then(|input| SequenceField::parse(input.sequence).ok());
    HtlcExitStep {
        kind: kind.into(),
        wait_blocks: field.map_or(0, |field| field.timelock.blocks()),
        tx: encode::serialize_hex(tx),
    }
}
