use std::collections::BTreeSet;

use bitcoin::{OutPoint, ScriptBuf, Transaction, consensus::encode};
use spark_rules::{ids::LeafId, tx::Spend};

use super::{
    Child, ChildError, ExitError, ExitStatus, StepState, decode,
    look::Outlook,
    path::{Leg, Slot},
};
use crate::{
    Wallet, WalletError,
    chain::ChainError,
    keys::SigningKey,
    state::{ExitRecord, ExitState, LeafKeyKind, StoredStep},
    verify::VerifyError,
};

/// What the transactions of an exit pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeePolicy {
    /// bitcoind's estimate at the time of each step; what is in the mempool is left alone.
    Estimate,
    /// bitcoind's estimate, also for what is in the mempool when that pays less.
    Follow,
    /// This many sat/vB, also for what is in the mempool when that pays less.
    Rate(u64),
}

impl FeePolicy {
    const fn chosen(self) -> Option<u64> {
        match self {
            Self::Rate(rate) => Some(rate),
            Self::Estimate | Self::Follow => None,
        }
    }
}

impl Wallet {
    /// Where an exit stands. Nothing is sent.
    pub async fn exit_status(&self, leaf_id: &str) -> Result<ExitStatus, WalletError> {
        let record = self.exit_record(leaf_id)?;
        Ok(self.look(&record).await?.status)
    }

    /// Does what can be done now: broadcasts the next package whose time has come, replaces the child of the one in
    /// the mempool where `fee` says so, or takes the refund's output to the destination where no child did. Call it
    /// again after each block.
    pub async fn exit_advance(&self, leaf_id: &str, fee: FeePolicy) -> Result<ExitStatus, WalletError> {
        let mut record = self.exit_record(leaf_id)?;
        let outlook = self.look(&record).await?;
        let state = if outlook.status.done { ExitState::Done } else { ExitState::Active };
        if record.state != state {
            // Also back again: a reorganisation may take the last block away.
            record.state = state;
            self.state().put(&record)?;
        }
        if outlook.status.done {
            return Ok(outlook.status);
        }
        let acted = self.act(&mut record, &outlook, fee).await;
        match acted {
            Ok(false) => Ok(outlook.status),
            Ok(true) => Ok(self.look(&record).await?.status),
            // Nobody asked for this replacement; what is in the mempool stays.
            Err(error) if fee == FeePolicy::Follow && is_harmless(&error, &outlook) => {
                tracing::warn!(%error, "a higher fee is not possible");
                Ok(outlook.status)
            }
            Err(error) => Err(error),
        }
    }

    async fn act(
        &self,
        record: &mut ExitRecord,
        outlook: &Outlook,
        fee: FeePolicy,
    ) -> Result<bool, WalletError> {
        let steps = outlook.legs.iter().zip(&outlook.status.steps);
        let turn = steps
            .map(|(leg, view)| (leg, view.state))
            .find(|(_, state)| matches!(state, StepState::Ready | StepState::Mempool));
        let (leg, in_mempool) = match turn {
            Some((leg, state)) => (leg, state == StepState::Mempool),
            None => {
                let last = outlook.legs.last().ok_or(ExitError::Stored("no step"))?;
                return self.sweep(record, last, outlook.status.sweep_state, fee).await;
            }
        };
        let Some(rate) = self.next_rate(in_mempool, leg.fee_rate, fee).await? else { return Ok(false) };
        // Nobody's child pays for a direct node: it has no anchor, and its output is not this wallet's.
        if leg.slot == Slot::DirectNode {
            return Ok(false);
        }
        let child = match self.child(record, leg, rate).await {
            Err(WalletError::Exit(ExitError::Child(ChildError::TooSmall { .. })))
                if leg.slot == Slot::DirectRefund && !in_mempool =>
            {
                // It pays its own fee, if not this one.
                self.chain()?.broadcast(&leg.tx).await?;
                return Ok(true);
            }
            other => other?,
        };
        // Stored first: after a crash it is known which child may be out.
        if let Some(stored) = leg.slot.of_mut(record) {
            stored.child = Some(encode::serialize_hex(&child.tx));
            stored.fee_rate = rate;
        }
        self.state().put(record)?;
        self.chain()?.submit_package(&leg.tx, &child.tx).await?;
        Ok(true)
    }

    /// Rate of the next transaction; none where what is in the mempool stays.
    async fn next_rate(
        &self,
        in_mempool: bool,
        paid: u64,
        fee: FeePolicy,
    ) -> Result<Option<u64>, WalletError> {
        if in_mempool && fee == FeePolicy::Estimate {
            return Ok(None);
        }
        let rate = self.fee_rate(fee.chosen()).await?;
        if in_mempool { Ok(Some(rate).filter(|rate| *rate > paid)) } else { Ok(Some(rate.max(paid))) }
    }

    /// Anyone can spend a refund's anchor with a child of his own, and push this wallet's child out: then the
    /// refund confirms and its money still lies there.
    async fn sweep(
        &self,
        record: &mut ExitRecord,
        refund: &Leg,
        state: StepState,
        fee: FeePolicy,
    ) -> Result<bool, WalletError> {
        let in_mempool = state == StepState::Mempool;
        if !in_mempool && state != StepState::Ready {
            return Ok(false);
        }
        // What a child that was pushed out would have paid is no measure for another transaction.
        let paid = record.sweep.as_ref().map_or(if in_mempool { refund.fee_rate } else { 0 }, |s| s.fee_rate);
        let Some(rate) = self.next_rate(in_mempool, paid, fee).await? else { return Ok(false) };
        let money = Spend::of(&refund.tx, 0).ok_or(ExitError::Stored("the refund"))?;
        let (key, script) = (self.refund_key(record)?, self.script_of(&record.destination)?);
        let sweep = Child::sweep(&money, &key, script, rate).map_err(ExitError::from)?;
        let tx = encode::serialize_hex(&sweep.tx);
        record.sweep = Some(StoredStep { tx, child: None, fee_rate: rate });
        self.state().put(record)?;
        self.chain()?.broadcast(&sweep.tx).await?;
        Ok(true)
    }

    fn exit_record(&self, leaf_id: &str) -> Result<ExitRecord, WalletError> {
        Ok(self.state().get(leaf_id)?.ok_or_else(|| ExitError::NotStarted(leaf_id.to_owned()))?)
    }

    async fn child(&self, record: &ExitRecord, leg: &Leg, rate: u64) -> Result<Child, WalletError> {
        let parent = &leg.tx;
        if leg.slot.is_refund(record) {
            let money = Spend::of(parent, 0).ok_or(ExitError::Stored("the refund"))?;
            let key = self.refund_key(record)?;
            let script = self.script_of(&record.destination)?;
            let child = match leg.slot {
                Slot::Step(_) => Child::build(parent, &money, &key, script, rate),
                _ => Child::of_direct(parent, own_fee(record, leg)?, &money, &key, script, rate),
            };
            return Ok(child.map_err(ExitError::from)?);
        }
        let key = self.keys().exit_fee()?;
        let address = self.exit_fee_address()?;
        let taken = self.taken_by_others(&record.leaf_id)?;
        let needed = Child::needs(parent, rate);
        let money = self.chain()?.scan(&address).await?.into_iter();
        let money = money
            .filter(|u| !taken.contains(&u.outpoint) && u.txout.value.to_sat() >= needed)
            .max_by_key(|u| u.txout.value)
            .ok_or(ExitError::FeeMoney { address, needed })?;
        let script = money.txout.script_pubkey.clone();
        let money = Spend { outpoint: money.outpoint, txout: money.txout };
        Ok(Child::build(parent, &money, &key, script, rate).map_err(ExitError::from)?)
    }

    fn refund_key(&self, record: &ExitRecord) -> Result<SigningKey, WalletError> {
        let id = LeafId::parse(&record.leaf_id).map_err(VerifyError::from)?;
        match record.pays {
            LeafKeyKind::Leaf => Ok(self.keys().leaf(&id)?),
            LeafKeyKind::Identity => Ok(self.keys().identity_copy()?),
        }
    }

    /// Outputs of the fee address that children of other exits spend.
    fn taken_by_others(&self, leaf_id: &str) -> Result<BTreeSet<OutPoint>, WalletError> {
        let mut taken = BTreeSet::new();
        for record in self.state().all::<ExitRecord>()? {
            if record.leaf_id == leaf_id || record.state == ExitState::Done {
                continue;
            }
            for child in record.steps.iter().filter_map(|s| s.child.as_deref()) {
                taken.extend(decode(child)?.input.iter().map(|i| i.previous_output));
            }
        }
        Ok(taken)
    }

    pub(crate) fn script_of(&self, destination: &str) -> Result<ScriptBuf, ExitError> {
        destination
            .parse::<bitcoin::Address<_>>()
            .ok()
            .and_then(|a| a.require_network(self.config().network.bitcoin()).ok())
            .map(|a| a.script_pubkey())
            .ok_or_else(|| ExitError::Destination(destination.to_owned()))
    }
}

/// What a direct refund pays itself: the difference to the output that it spends, which is the leaf's node tx or
/// its twin.
fn own_fee(record: &ExitRecord, leg: &Leg) -> Result<u64, ExitError> {
    let spent = leg.tx.input.first().ok_or(ExitError::Stored("the refund"))?.previous_output;
    let steps = record.steps.iter().chain(record.direct.node.as_ref());
    let parents = steps.map(|s| decode(&s.tx)).collect::<Result<Vec<Transaction>, _>>()?;
    let parent = parents.iter().find(|tx| tx.compute_txid() == spent.txid);
    let value = |tx: &Transaction| tx.output.first().map_or(0, |o| o.value.to_sat());
    Ok(parent.map_or(0, value).saturating_sub(value(&leg.tx)))
}

/// Whether a step was only to be replaced, so that nothing is lost where that fails.
fn is_harmless(error: &WalletError, outlook: &Outlook) -> bool {
    let pending = outlook.status.sweep_state == StepState::Mempool
        || outlook.status.steps.iter().any(|s| s.state == StepState::Mempool);
    let refused = matches!(
        error,
        WalletError::Chain(ChainError::Refused { .. })
            | WalletError::Exit(ExitError::Child(_) | ExitError::FeeMoney { .. } | ExitError::FeeRate)
    );
    pending && refused
}
