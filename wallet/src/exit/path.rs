//! Which transactions an exit goes through: its own steps, or the twin that somebody else published in their place.

use bitcoin::Transaction;

use super::{ExitError, decode};
use crate::state::{ExitRecord, StoredStep};

/// A place in an exit's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Own step, by position: nodes from the root down, then the refund.
    Step(usize),
    /// Twin of the leaf's node tx.
    DirectNode,
    /// Refund of that twin.
    DirectRefund,
    /// Refund of the leaf's node tx that pays its own fee.
    FromCpfp,
}

impl Slot {
    pub(super) fn of(self, record: &ExitRecord) -> Option<&StoredStep> {
        match self {
            Self::Step(i) => record.steps.get(i),
            Self::DirectNode => record.direct.node.as_ref(),
            Self::DirectRefund => record.direct.refund.as_ref(),
            Self::FromCpfp => record.direct.from_cpfp.as_ref(),
        }
    }

    pub(super) fn of_mut(self, record: &mut ExitRecord) -> Option<&mut StoredStep> {
        match self {
            Self::Step(i) => record.steps.get_mut(i),
            Self::DirectNode => record.direct.node.as_mut(),
            Self::DirectRefund => record.direct.refund.as_mut(),
            Self::FromCpfp => record.direct.from_cpfp.as_mut(),
        }
    }

    /// Pays this wallet.
    pub(super) fn is_refund(self, record: &ExitRecord) -> bool {
        match self {
            Self::Step(i) => i.saturating_add(1) == record.steps.len(),
            Self::DirectNode => false,
            Self::DirectRefund | Self::FromCpfp => true,
        }
    }

    pub(super) fn kind(self, record: &ExitRecord) -> &'static str {
        match self {
            Self::DirectNode => "direct-node",
            Self::DirectRefund => "direct-refund",
            Self::FromCpfp => "direct-from-cpfp-refund",
            Self::Step(_) if self.is_refund(record) => "refund",
            Self::Step(_) => "node",
        }
    }
}

/// One transaction of the way that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) slot: Slot,
    pub(super) tx: Transaction,
    pub(super) child: Option<Transaction>,
    pub(super) fee_rate: u64,
    /// Confirmations; 0 in the mempool, none if unknown.
    pub(super) depth: Option<u32>,
}

impl Leg {
    pub(super) fn read(record: &ExitRecord, slot: Slot) -> Result<Option<Self>, ExitError> {
        let Some(step) = slot.of(record) else { return Ok(None) };
        let child = step.child.as_deref().map(decode).transpose()?;
        Ok(Some(Self { slot, tx: decode(&step.tx)?, child, fee_rate: step.fee_rate, depth: None }))
    }
}

/// Twins that may have taken the place of own steps, as the chain shows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Twins {
    pub(super) node: Option<Leg>,
    pub(super) refund: Option<Leg>,
    pub(super) from_cpfp: Option<Leg>,
}

/// The way from the root to this wallet's money: its own steps, unless a twin is known to the chain and the step is
/// not.
pub(super) fn choose(mut own: Vec<Leg>, twins: Twins) -> Vec<Leg> {
    let known = |leg: &Option<Leg>| leg.as_ref().is_some_and(|l| l.depth.is_some());
    let Some(refund) = own.pop() else { return own };
    if refund.depth.is_none() {
        if known(&twins.from_cpfp) {
            own.extend(twins.from_cpfp);
            return own;
        }
        let node_is_out = own.last().is_some_and(|node| node.depth.is_some());
        if !node_is_out && (known(&twins.node) || known(&twins.refund)) {
            own.pop();
            own.extend(twins.node);
            own.extend(twins.refund);
            return own;
        }
    }
    own.push(refund);
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{absolute::LockTime, transaction::Version};

    fn leg(slot: Slot, depth: Option<u32>) -> Leg {
        let tx = Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output: Vec::new(),
        };
        Leg { slot, tx, child: None, fee_rate: 0, depth }
    }

    fn way(own: [Option<u32>; 3], node: Option<u32>, refund: Option<u32>, from: Option<u32>) -> Vec<Slot> {
        let own = own.into_iter().enumerate().map(|(i, depth)| leg(Slot::Step(i), depth)).collect();
        let twins = Twins {
            node: Some(leg(Slot::DirectNode, node)),
            refund: Some(leg(Slot::DirectRefund, refund)),
            from_cpfp: Some(leg(Slot::FromCpfp, from)),
        };
        choose(own, twins).iter().map(|l| l.slot).collect()
    }

    #[test]
    fn a_published_twin_takes_the_place_of_its_step() {
        use Slot::{DirectNode, DirectRefund, FromCpfp, Step};
        let own = vec![Step(0), Step(1), Step(2)];
        assert_eq!(way([None; 3], None, None, None), own);
        assert_eq!(way([Some(5), Some(1), None], None, None, None), own);
        // Somebody else publishes the direct node, in the mempool or in a block.
        for depth in [0, 7] {
            let direct = vec![Step(0), DirectNode, DirectRefund];
            assert_eq!(way([Some(5), None, None], Some(depth), None, None), direct);
            assert_eq!(way([Some(5), None, None], None, Some(depth), None), direct);
        }
        // Or the refund that pays its own fee.
        assert_eq!(way([Some(9), Some(3), None], None, None, Some(0)), vec![Step(0), Step(1), FromCpfp]);
        // After a reorganisation own steps count again.
        assert_eq!(way([Some(5), Some(1), None], Some(1), None, None), own);
        assert_eq!(way([Some(9), Some(3), Some(1)], None, None, Some(1)), own);
    }

    #[test]
    fn a_zero_node_has_no_direct_refund() {
        let own = vec![leg(Slot::Step(0), None), leg(Slot::Step(1), None)];
        let twins = Twins { node: Some(leg(Slot::DirectNode, Some(1))), ..Twins::default() };
        let slots: Vec<Slot> = choose(own, twins).iter().map(|l| l.slot).collect();
        assert_eq!(slots, [Slot::DirectNode], "without a refund the exit reports a conflict");
    }
}
