use std::collections::BTreeSet;

use bitcoin::{OutPoint, ScriptBuf, Transaction, consensus::encode};
use spark_rules::{ids::LeafId, tx::Spend};

use super::{Child, ExitError, ExitStatus, StepState, StepView, decode, kind, timelock, transactions};
use crate::{
    Wallet, WalletError,
    keys::SigningKey,
    state::{ExitRecord, ExitState, LeafKeyKind, StoredStep},
    verify::VerifyError,
    wallet::now,
};

impl Wallet {
    /// Begins an exit of `leaf_id` to `destination`, or finds the one that is under way. Nothing is sent yet:
    /// [`Wallet::exit_advance`] does that.
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
        let plan = self.exit_plan(leaf_id, fee_rate).await?;
        if !plan.economic && !force {
            let fees = plan.node_fees_sats.saturating_add(plan.refund_fee_sats);
            return Err(ExitError::Uneconomic { fees, value: plan.value_sats }.into());
        }
        let (stored, lineage) = self.stored_leaf(leaf_id)?;
        let steps = transactions(&lineage)?
            .iter()
            .map(|tx| StoredStep { tx: encode::serialize_hex(tx), child: None, fee_rate: 0 })
            .collect();
        let record = ExitRecord {
            leaf_id: leaf_id.to_owned(),
            destination: destination.to_owned(),
            steps,
            pays: stored.pays,
            state: ExitState::Active,
            created: now(),
        };
        self.state().put(&record)?;
        Ok(record)
    }

    /// Where an exit stands. Nothing is sent.
    pub async fn exit_status(&self, leaf_id: &str) -> Result<ExitStatus, WalletError> {
        let record = self.exit_record(leaf_id)?;
        self.look(&record).await
    }

    /// Does what can be done now: broadcasts the next package whose time has come, or replaces the child of the
    /// one in the mempool when `fee_rate` is higher than what it pays. Call it again after each block.
    pub async fn exit_advance(
        &self,
        leaf_id: &str,
        fee_rate: Option<u64>,
    ) -> Result<ExitStatus, WalletError> {
        let mut record = self.exit_record(leaf_id)?;
        let status = self.look(&record).await?;
        if status.done {
            record.state = ExitState::Done;
            self.state().put(&record)?;
            return Ok(status);
        }
        let turn = status.steps.iter().position(|s| matches!(s.state, StepState::Ready | StepState::Mempool));
        let Some(turn) = turn else { return Ok(status) };
        let step = record.steps.get(turn).cloned().ok_or(ExitError::Stored("a step"))?;
        let in_mempool = status.steps.get(turn).is_some_and(|s| s.state == StepState::Mempool);
        // What is in the mempool is only touched when the user pays more.
        let rate = match (in_mempool, fee_rate) {
            (true, Some(rate)) if rate > step.fee_rate => self.fee_rate(Some(rate)).await?,
            (true, _) => return Ok(status),
            (false, chosen) => self.fee_rate(chosen).await?.max(step.fee_rate),
        };
        let parent = decode(&step.tx)?;
        let child = self.child(&record, turn, &parent, rate).await?;
        // Stored first: after a crash it is known which child may be out.
        if let Some(stored) = record.steps.get_mut(turn) {
            stored.child = Some(encode::serialize_hex(&child.tx));
            stored.fee_rate = rate;
        }
        self.state().put(&record)?;
        self.chain()?.submit_package(&parent, &child.tx).await?;
        self.look(&record).await
    }

    fn exit_record(&self, leaf_id: &str) -> Result<ExitRecord, WalletError> {
        Ok(self.state().get(leaf_id)?.ok_or_else(|| ExitError::NotStarted(leaf_id.to_owned()))?)
    }

    async fn child(
        &self,
        record: &ExitRecord,
        turn: usize,
        parent: &Transaction,
        rate: u64,
    ) -> Result<Child, WalletError> {
        if turn.saturating_add(1) == record.steps.len() {
            let money = Spend::of(parent, 0).ok_or(ExitError::Stored("the refund"))?;
            let key = self.refund_key(record)?;
            let script = self.script_of(&record.destination)?;
            return Ok(Child::build(parent, &money, &key, script, rate).map_err(ExitError::from)?);
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

    fn script_of(&self, destination: &str) -> Result<ScriptBuf, ExitError> {
        destination
            .parse::<bitcoin::Address<_>>()
            .ok()
            .and_then(|a| a.require_network(self.config().network.bitcoin()).ok())
            .map(|a| a.script_pubkey())
            .ok_or_else(|| ExitError::Destination(destination.to_owned()))
    }

    /// Reads the state of every step from the chain.
    async fn look(&self, record: &ExitRecord) -> Result<ExitStatus, WalletError> {
        let count = record.steps.len();
        let mut depths = Vec::with_capacity(count);
        let mut txs = Vec::with_capacity(count);
        for step in &record.steps {
            let tx = decode(&step.tx)?;
            let child = step.child.as_deref().map(decode).transpose()?;
            depths.push(self.depth(&tx, child.as_ref()).await?);
            txs.push((tx, child));
        }
        let depths = carry_up(depths);
        let mut steps = Vec::with_capacity(count);
        // The deposit is deep enough for every timelock.
        let mut before = Some(u32::MAX);
        for (i, ((tx, child), depth)) in txs.iter().zip(&depths).enumerate() {
            let timelock = timelock(tx);
            let (state, blocks_left) = step_state(*depth, before, timelock);
            if state == StepState::Ready {
                self.must_be_free(tx).await?;
            }
            steps.push(StepView {
                kind: kind(i, count),
                txid: tx.compute_txid(),
                state,
                timelock,
                blocks_left,
                child_txid: child.as_ref().map(Transaction::compute_txid),
                fee_rate: record.steps.get(i).map(|s| s.fee_rate).filter(|r| *r > 0),
            });
            before = *depth;
        }
        let sweep = txs.last().and_then(|(_, child)| child.as_ref()).and_then(|c| c.output.first());
        Ok(ExitStatus {
            leaf_id: record.leaf_id.clone(),
            destination: record.destination.clone(),
            done: steps.last().is_some_and(|s| s.state == StepState::Confirmed),
            amount_sats: sweep.map(|o| o.value.to_sat()),
            blocks_left: steps.iter().fold(0, |sum, s| sum.saturating_add(s.blocks_left)),
            steps,
        })
    }

    /// Confirmations; 0 in the mempool, none if unknown.
    async fn depth(&self, tx: &Transaction, child: Option<&Transaction>) -> Result<Option<u32>, WalletError> {
        let txid = tx.compute_txid();
        if let Some(unspent) = self.chain()?.unspent(&OutPoint { txid, vout: 0 }).await? {
            return Ok(Some(unspent.confirmations));
        }
        if let Some(confirmations) = self.chain()?.confirmations(&txid).await? {
            return Ok(Some(confirmations));
        }
        // Without an index bitcoind knows a spent transaction only by what spends it.
        let Some(child) = child else { return Ok(None) };
        let outpoint = OutPoint { txid: child.compute_txid(), vout: 0 };
        Ok(self.chain()?.unspent(&outpoint).await?.map(|u| u.confirmations))
    }

    async fn must_be_free(&self, tx: &Transaction) -> Result<(), WalletError> {
        for input in &tx.input {
            if self.chain()?.unspent(&input.previous_output).await?.is_none() {
                return Err(ExitError::Conflict { txid: tx.compute_txid() }.into());
            }
        }
        Ok(())
    }
}

/// What a known step stands on is confirmed, even where bitcoind cannot show a spent output any more.
fn carry_up(mut depths: Vec<Option<u32>>) -> Vec<Option<u32>> {
    let mut below = false;
    for depth in depths.iter_mut().rev() {
        if below {
            *depth = Some(depth.unwrap_or(1).max(1));
        }
        below |= depth.is_some();
    }
    depths
}

/// State, and blocks still to wait for the timelock. A transaction with timelock T may enter the mempool when
/// what it spends has T confirmations (BIP 68).
fn step_state(depth: Option<u32>, before: Option<u32>, timelock: u16) -> (StepState, u32) {
    match (depth, before) {
        (Some(0), _) => (StepState::Mempool, 0),
        (Some(_), _) => (StepState::Confirmed, 0),
        (None, None | Some(0)) => (StepState::Later, timelock.into()),
        (None, Some(before)) => match u32::from(timelock).saturating_sub(before) {
            0 => (StepState::Ready, 0),
            left => (StepState::Timelock, left),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_chain() {
        assert_eq!(step_state(None, Some(u32::MAX), 2000), (StepState::Ready, 0));
        assert_eq!(step_state(None, None, 2000), (StepState::Later, 2000));
        assert_eq!(step_state(None, Some(0), 2000), (StepState::Later, 2000));
        assert_eq!(step_state(None, Some(1), 2000), (StepState::Timelock, 1999));
        assert_eq!(step_state(None, Some(2000), 2000), (StepState::Ready, 0));
        assert_eq!(step_state(Some(0), Some(2000), 2000), (StepState::Mempool, 0));
        assert_eq!(step_state(Some(3), None, 2000), (StepState::Confirmed, 0));
    }

    #[test]
    fn spent_parents_count_as_confirmed() {
        assert_eq!(carry_up(vec![None, None, Some(0)]), vec![Some(1), Some(1), Some(0)]);
        assert_eq!(carry_up(vec![Some(5), None, None]), vec![Some(5), None, None]);
        assert_eq!(carry_up(vec![None, Some(7), None]), vec![Some(1), Some(7), None]);
    }
}
