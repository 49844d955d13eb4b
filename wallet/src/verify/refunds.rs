use bitcoin::{Transaction, TxOut, secp256k1::PublicKey};
use spark_proto::spark::TransferLeaf;
use spark_rules::tx::{Basis, Htlc, Plan, Purpose, RawSet, Source, Spend, Timelock, verify_input};

use super::{
    Node, VerifyError,
    node::{timelock, transaction, unsigned},
};

/// Checks a leaf's refunds: the complete set, of the template's shape, signed, paying `destination`.
///
/// Where a direct node tx is present under a timed node, the direct refund must be too (D5).
pub fn check_refunds(node: &Node, destination: &PublicKey) -> Result<Timelock, VerifyError> {
    let cpfp = node.refund_tx.as_ref().ok_or(VerifyError::Field("refund_tx"))?;
    check_set(
        node,
        To::Key(destination),
        cpfp,
        node.direct_refund_tx.as_ref(),
        node.direct_from_cpfp_refund_tx.as_ref(),
    )
}

/// What refunds pay.
#[derive(Debug, Clone, Copy)]
pub enum To<'a> {
    /// A key.
    Key(&'a PublicKey),
    /// Whoever has the preimage, or waits long enough.
    Htlc(&'a Htlc),
    /// A key, with a connector of an exit transaction. What the connector holds is not told, so that their signatures,
    /// which cover it, are not checked: they are no exit of this wallet.
    Connector(&'a PublicKey),
}

/// Checks the refunds of a transfer that is not claimed yet: they pay the receiver's identity key, or what a preimage
/// opens. Says the step that the claim goes down to.
pub fn intermediate_refunds(node: &Node, leaf: &TransferLeaf, to: To<'_>) -> Result<Timelock, VerifyError> {
    let cpfp = transaction("intermediate_refund_tx", &leaf.intermediate_refund_tx)?
        .ok_or(VerifyError::Field("intermediate_refund_tx"))?;
    let direct = transaction("intermediate_direct_refund_tx", &leaf.intermediate_direct_refund_tx)?;
    let from_cpfp = transaction(
        "intermediate_direct_from_cpfp_refund_tx",
        &leaf.intermediate_direct_from_cpfp_refund_tx,
    )?;
    check_set(node, to, &cpfp, direct.as_ref(), from_cpfp.as_ref())
}

/// Checks the refunds of a claimed leaf: they pay the new owner at `step`.
pub fn check_claimed(node: &Node, owner_key: &PublicKey, step: Timelock) -> Result<(), VerifyError> {
    if check_refunds(node, owner_key)? == step { Ok(()) } else { Err(VerifyError::Field("refund timelock")) }
}

fn check_set(
    node: &Node,
    to: To<'_>,
    cpfp: &Transaction,
    direct: Option<&Transaction>,
    from_cpfp: Option<&Transaction>,
) -> Result<Timelock, VerifyError> {
    let purposes = match to {
        To::Key(_) => [Purpose::Refund, Purpose::DirectRefund, Purpose::DirectFromCpfpRefund],
        To::Htlc(_) => [Purpose::HtlcRefund, Purpose::HtlcDirectRefund, Purpose::HtlcDirectFromCpfpRefund],
        To::Connector(_) => {
            [Purpose::ConnectorRefund, Purpose::ConnectorDirectRefund, Purpose::ConnectorDirectFromCpfpRefund]
        }
    };
    let step = match to {
        To::Key(_) | To::Connector(_) => timelock("refund_tx", cpfp)?,
        To::Htlc(_) => timelock("refund_tx", cpfp)?
            .without(Purpose::HtlcRefund.offset())
            .ok_or(VerifyError::Field("refund timelock"))?,
    };
    let basis = Basis { node: node.spend()?, direct_node: node.direct_spend()? };
    // A zero node's direct refund is neither required nor harmful: public wallets differ.
    let direct = direct.filter(|_| basis.direct_node.is_some());
    let [refund, direct_refund, direct_from_cpfp] = purposes;
    let signed = [(refund, Some(cpfp)), (direct_refund, direct), (direct_from_cpfp, from_cpfp)];
    let raws: Vec<(Purpose, Vec<u8>)> =
        signed.iter().filter_map(|(purpose, tx)| tx.map(|tx| (*purpose, unsigned(tx)))).collect();
    let mut set = RawSet::new();
    for (purpose, raw) in &raws {
        set = set.with(*purpose, raw)?;
    }
    let plan = match to {
        To::Key(destination) => Plan::refunds(Source::Check(set), &basis, destination, step)?,
        To::Htlc(htlc) => Plan::htlc(Source::Check(set), &basis, htlc, step)?,
        To::Connector(destination) => {
            let input = cpfp.input.get(1).ok_or(VerifyError::Field("intermediate_refund_tx"))?;
            let connector = Spend { outpoint: input.previous_output, txout: TxOut::NULL };
            Plan::exit(Source::Check(set), &basis, &connector, destination, step)?;
            return Ok(step);
        }
    };
    for (purpose, tx) in signed {
        if let (Some(tx), Some(planned)) = (tx, plan.get(purpose)) {
            verify_input(tx, &planned.template.prevouts(), 0)
                .map_err(|source| VerifyError::Signature { what: purpose.tag(), source })?;
        }
    }
    Ok(step)
}
