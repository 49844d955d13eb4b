//! What a person asks for, and the leaves that do it.

use std::collections::BTreeSet;

use spark_proto::spark::StartTransferRequest;
use spark_rules::operation::MAX_LEAVES;

use super::{
    certain::{Standing, doubtful_until},
    sync::LeafView,
};
use crate::{
    Wallet, WalletError, select,
    state::{ExitTerms, HtlcTerms, SendRecord, SendShare, SendState, Wire},
    wallet::now,
};

/// Whom to pay.
pub(super) struct Order {
    /// Receivers, as hex, with their satoshis.
    pub(super) payees: Vec<(String, u64)>,
    /// Text of the invoice that is paid, or empty.
    pub(super) invoice: String,
    /// What completes it, where a preimage does.
    pub(super) htlc: Option<HtlcTerms>,
    /// What completes it, where a payment on chain does.
    pub(super) exit: Option<ExitTerms>,
}

impl Order {
    /// Whether a stored send is this one. A repeat may name another expiry: the first one counts.
    pub(super) fn is_of(&self, record: &SendRecord) -> bool {
        let hash = |terms: &Option<HtlcTerms>| terms.as_ref().map(|terms| terms.payment_hash.clone());
        let paid = |terms: &Option<ExitTerms>| {
            terms.as_ref().map(|t| (t.exit_txid.clone(), t.connector_tx.clone(), t.destination.clone()))
        };
        record.payees() == self.payees
            && record.invoice == self.invoice
            && hash(&record.htlc) == hash(&self.htlc)
            && paid(&record.exit) == paid(&self.exit)
    }

    /// The record of a send with these leaves; its request is still to be built.
    pub(super) fn record(
        self,
        transfer_id: String,
        parts: Vec<SendShare>,
    ) -> Result<SendRecord, WalletError> {
        let first = parts.first().ok_or(WalletError::Answer("a receiver"))?;
        let receiver = first.receiver.clone();
        let several = parts.len() > 1;
        Ok(SendRecord {
            transfer_id,
            receiver,
            amount: parts.iter().fold(0, |sum, part| sum.saturating_add(part.amount)),
            leaves: parts.iter().flat_map(|part| part.leaves.clone()).collect(),
            shares: if several { parts } else { Vec::new() },
            invoice: self.invoice,
            request: Wire::of(&StartTransferRequest::default()),
            many: None,
            htlc: self.htlc,
            swap: None,
            exit: self.exit,
            coop: None,
            attempt: 0,
            state: SendState::Pending,
            created: now(),
            built: now(),
            step_over: false,
            ended: false,
        })
    }
}

impl Wallet {
    /// The leaves of an earlier payment that may still happen, for the same payment again: at most one of the two
    /// can take them.
    pub(super) async fn same_leaves(
        &self,
        earlier: SendRecord,
        payees: &[(String, u64)],
    ) -> Result<Vec<SendShare>, WalletError> {
        if earlier.payees() == payees && self.standing(&earlier.leaves).await == Standing::Ours {
            return Ok(earlier.parts());
        }
        Err(WalletError::Refused(format!(
            "transfer {} of the same amount to the same receiver was refused, but may still happen until unix time {}",
            earlier.transfer_id,
            doubtful_until(&earlier)
        )))
    }

    /// Leaves for every payee, none twice: the largest amounts choose first.
    pub(super) async fn choose(&self, payees: &[(String, u64)]) -> Result<Vec<SendShare>, WalletError> {
        let busy = self.busy_leaves()?;
        let mut views: Vec<LeafView> = self
            .sync()
            .await?
            .into_iter()
            .filter(|v| v.is_spendable() && !busy.contains(&v.leaf_id))
            .collect();
        let mut parts: Vec<SendShare> = payees
            .iter()
            .map(|(receiver, amount)| SendShare {
                receiver: receiver.clone(),
                amount: *amount,
                leaves: Vec::new(),
            })
            .collect();
        let mut turns: Vec<&mut SendShare> = parts.iter_mut().collect();
        turns.sort_by_key(|part| std::cmp::Reverse(part.amount));
        let mut leaves = 0usize;
        for part in turns {
            let values: Vec<u64> = views.iter().map(|v| v.value_sats).collect();
            let chosen: BTreeSet<usize> = select::exact(&values, part.amount)?.into_iter().collect();
            leaves = leaves.saturating_add(chosen.len());
            // Operators would refuse it, whenever it comes.
            if leaves > MAX_LEAVES {
                return Err(WalletError::Refused(format!(
                    "it takes {leaves} leaves, and one transfer has {MAX_LEAVES} at most: send it in parts"
                )));
            }
            let mut rest = Vec::with_capacity(views.len());
            for (position, view) in views.into_iter().enumerate() {
                if !chosen.contains(&position) {
                    rest.push(view);
                    continue;
                }
                if view.needs_renewal() {
                    self.renew(&view.leaf_id).await?;
                }
                part.leaves.push(view.leaf_id);
            }
            views = rest;
        }
        Ok(parts)
    }
}
