//! Where an exit stands, read from the chain each time.

use bitcoin::{OutPoint, Transaction};

use super::{
    ExitError, ExitStatus, StepState, StepView, decode,
    path::{Leg, Slot, Twins, choose},
    timelock,
};
use crate::{Wallet, WalletError, state::ExitRecord};

/// What an exit can do next follows from this.
#[derive(Debug, Clone)]
pub(super) struct Outlook {
    pub(super) legs: Vec<Leg>,
    pub(super) status: ExitStatus,
}

impl Wallet {
    /// Reads the state of every step from the chain.
    pub(super) async fn look(&self, record: &ExitRecord) -> Result<Outlook, WalletError> {
        let mut own = Vec::with_capacity(record.steps.len());
        for i in 0..record.steps.len() {
            own.extend(self.leg(record, Slot::Step(i)).await?);
        }
        carry_up(&mut own);
        let mut twins = Twins::default();
        if own.last().is_some_and(|refund| refund.depth.is_none()) {
            twins.from_cpfp = self.leg(record, Slot::FromCpfp).await?;
            twins.node = self.leg(record, Slot::DirectNode).await?;
            twins.refund = self.leg(record, Slot::DirectRefund).await?;
        }
        let mut legs = choose(own, twins);
        carry_up(&mut legs);
        let mut steps = Vec::with_capacity(legs.len());
        // The deposit is deep enough for every timelock.
        let mut before = Some(u32::MAX);
        for leg in &legs {
            let timelock = timelock(&leg.tx);
            let (state, blocks_left) = step_state(leg.depth, before, timelock);
            if state == StepState::Ready {
                self.must_be_free(&leg.tx).await?;
            }
            steps.push(StepView {
                kind: leg.slot.kind(record).into(),
                txid: leg.tx.compute_txid(),
                state,
                timelock,
                blocks_left,
                child_txid: leg.child.as_ref().map(Transaction::compute_txid),
                fee_rate: Some(leg.fee_rate).filter(|r| *r > 0),
            });
            before = leg.depth;
        }
        let last = legs.last().ok_or(ExitError::Stored("no step"))?;
        if !last.slot.is_refund(record) {
            return Err(ExitError::NoRefund { txid: last.tx.compute_txid() }.into());
        }
        let sweep_state = self.sweep_state(last).await?;
        let sweep = match &record.sweep {
            Some(sweep) => Some(decode(&sweep.tx)?),
            None => last.child.clone(),
        };
        let status = ExitStatus {
            leaf_id: record.leaf_id.clone(),
            destination: record.destination.clone(),
            done: sweep_state == StepState::Confirmed,
            amount_sats: sweep.as_ref().and_then(|tx| tx.output.first()).map(|o| o.value.to_sat()),
            blocks_left: steps.iter().fold(0, |sum, s| sum.saturating_add(s.blocks_left)),
            steps,
            sweep_state,
            sweep_txid: sweep.as_ref().map(Transaction::compute_txid),
        };
        Ok(Outlook { legs, status })
    }

    /// Whether the refund's output, which only this wallet's key spends, went to the destination.
    async fn sweep_state(&self, refund: &Leg) -> Result<StepState, WalletError> {
        let Some(depth) = refund.depth else { return Ok(StepState::Later) };
        let money = OutPoint { txid: refund.tx.compute_txid(), vout: 0 };
        if self.chain()?.unspent(&money).await?.is_some() {
            return Ok(if depth == 0 { StepState::Later } else { StepState::Ready });
        }
        let pending = depth == 0 || self.chain()?.unspent_in_blocks(&money).await?.is_some();
        Ok(if pending { StepState::Mempool } else { StepState::Confirmed })
    }

    async fn leg(&self, record: &ExitRecord, slot: Slot) -> Result<Option<Leg>, WalletError> {
        let Some(mut leg) = Leg::read(record, slot)? else { return Ok(None) };
        let sweep = match &record.sweep {
            Some(sweep) if slot.is_refund(record) => Some(decode(&sweep.tx)?),
            _ => None,
        };
        leg.depth = self.depth(&leg.tx).await?;
        // Without an index bitcoind knows a spent transaction only by what spends it.
        for heir in leg.child.iter().chain(&sweep) {
            let spends = heir.input.iter().any(|i| i.previous_output.txid == leg.tx.compute_txid());
            if leg.depth.is_none() && spends {
                let outpoint = OutPoint { txid: heir.compute_txid(), vout: 0 };
                leg.depth = self.chain()?.unspent(&outpoint).await?.map(|u| u.confirmations);
            }
        }
        Ok(Some(leg))
    }

    /// Confirmations; 0 in the mempool, none if unknown.
    async fn depth(&self, tx: &Transaction) -> Result<Option<u32>, WalletError> {
        let txid = tx.compute_txid();
        if let Some(unspent) = self.chain()?.unspent(&OutPoint { txid, vout: 0 }).await? {
            return Ok(Some(unspent.confirmations));
        }
        Ok(self.chain()?.confirmations(&txid).await?)
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
fn carry_up(legs: &mut [Leg]) {
    let mut below = false;
    for leg in legs.iter_mut().rev() {
        if below {
            leg.depth = Some(leg.depth.unwrap_or(1).max(1));
        }
        below |= leg.depth.is_some();
    }
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
    use bitcoin::{absolute::LockTime, transaction::Version};

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
        let carried = |depths: [Option<u32>; 3]| {
            let tx = Transaction {
                version: Version(3),
                lock_time: LockTime::ZERO,
                input: Vec::new(),
                output: Vec::new(),
            };
            let leg = |depth| Leg { slot: Slot::Step(0), tx: tx.clone(), child: None, fee_rate: 0, depth };
            let mut legs = depths.map(leg);
            carry_up(&mut legs);
            legs.map(|l| l.depth)
        };
        assert_eq!(carried([None, None, Some(0)]), [Some(1), Some(1), Some(0)]);
        assert_eq!(carried([Some(5), None, None]), [Some(5), None, None]);
        assert_eq!(carried([None, Some(7), None]), [Some(1), Some(7), None]);
    }
}
