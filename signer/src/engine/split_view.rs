//! Heads of another operator's log that others were shown (D16): an operator that shows different logs to different
//! witnesses is caught as soon as two of them compare.
//!
//! Two heads of one size need no more than a look. Of unequal ones the operator must prove that the longer log begins
//! with the shorter one; only it can. One that works and does not prove it is trusted no more, either: nobody can wait
//! for ever for what an honest operator gives at once. How long it was asked in vain counts only while it works, so that
//! an operator that is down is not suspected.

use std::collections::BTreeMap;

use spark_proto::signer::v1 as wire;
use spark_rules::{
    checkpoint::{Checkpoint, Contradiction, verify_consistency},
    ids::OperatorIndex,
};

use super::{EngineError, Shared, cosign};
use crate::vault::Txn;

/// An operator does not prove that its log only grew.
pub(super) const UNPROVEN: &str = "LOG_UNPROVEN";
/// Least time between two refusals that count.
const PAUSE_SECONDS: u64 = 30;
/// So many are too many: at least five minutes of work.
const PATIENCE: u32 = 10;
/// Longer proofs are of no tree.
const MAX_HASHES: usize = 128;

/// A head whose operator has yet to prove that it belongs to the log that this signer follows.
#[derive(Debug)]
struct Open {
    head: Checkpoint,
    /// The operator asked this signer for something since the last refusal that counted.
    acted: bool,
    refusals: u32,
    counted_at: u64,
}

/// At most one per operator, the first: until that is proven nothing newer says more. In memory only: what others were
/// shown is asked for again.
#[derive(Debug, Default)]
pub(super) struct Unproven(BTreeMap<OperatorIndex, Open>);

impl Unproven {
    /// The operator works.
    pub(super) fn acts(&mut self, operator: OperatorIndex) {
        if let Some(open) = self.0.get_mut(&operator) {
            open.acted = true;
        }
    }

    pub(super) fn forget(&mut self, operator: OperatorIndex) {
        self.0.remove(&operator);
    }

    /// `head` came without a proof that holds. True if that was once too often.
    fn refused(&mut self, operator: OperatorIndex, head: Checkpoint, now: u64) -> bool {
        let open =
            self.0.entry(operator).or_insert(Open { head, acted: false, refusals: 0, counted_at: now });
        if open.acted && now >= open.counted_at.saturating_add(PAUSE_SECONDS) {
            open.refusals = open.refusals.saturating_add(1);
            open.acted = false;
            open.counted_at = now;
        }
        open.refusals >= PATIENCE
    }

    fn proven(&mut self, operator: OperatorIndex, head: &Checkpoint) {
        if self.0.get(&operator).is_some_and(|open| open.head.signed == head.signed) {
            self.0.remove(&operator);
        }
    }
}

impl Shared {
    /// Compares a head that somebody else was shown with the one that this signer follows.
    pub(super) fn compare_log(
        &mut self,
        txn: &mut Txn<'_>,
        request: &wire::CompareLogRequest,
    ) -> Result<wire::CompareLogResponse, EngineError> {
        self.unlocked()?;
        let operator = OperatorIndex::from_wire(request.operator)?;
        if operator == self.me {
            return Err(EngineError::Malformed("operator"));
        }
        if request.hashes.len() > MAX_HASHES {
            return Err(EngineError::Malformed("hashes"));
        }
        let head = Checkpoint::verify(&request.checkpoint, &self.federation, operator)?;
        if let Some(evidence) = cosign::distrust(txn, operator)? {
            return Ok(refused(&evidence));
        }
        let watched = self.watched(txn, operator)?;
        // Nothing is followed yet: there is nothing to compare.
        let Some((note, known)) = watched.head else { return Ok(wire::CompareLogResponse::default()) };
        let (size, life) = (watched.frontier.size(), watched.life);
        let mut evidence = wire::Distrust {
            reason: String::new(),
            before: note,
            after: head.signed.clone(),
            entry: None,
            life,
        };
        if let Some(contradiction) = Contradiction::between(&known, &head) {
            contradiction.reason().clone_into(&mut evidence.reason);
            self.condemn(txn, operator, size, &evidence);
            return Ok(refused(&evidence));
        }
        let [old, new] = in_order(&known, &head);
        if old.0 == new.0 || verify_consistency(&request.hashes, old, new).is_ok() {
            self.unproven.proven(operator, &head);
        } else if self.unproven.refused(operator, head, self.now) {
            UNPROVEN.clone_into(&mut evidence.reason);
            self.condemn(txn, operator, size, &evidence);
            return Ok(refused(&evidence));
        }
        let Some(open) = self.unproven.0.get(&operator) else {
            return Ok(wire::CompareLogResponse::default());
        };
        let [old, new] = in_order(&known, &open.head);
        Ok(wire::CompareLogResponse {
            checkpoint: open.head.signed.clone(),
            old_size: old.0,
            new_size: new.0,
            ..wire::CompareLogResponse::default()
        })
    }
}

/// Size and root of both, the shorter log first.
fn in_order(one: &Checkpoint, other: &Checkpoint) -> [(u64, [u8; 32]); 2] {
    let [one, other] = [one, other].map(|head| (head.size, head.root));
    if one.0 <= other.0 { [one, other] } else { [other, one] }
}

fn refused(evidence: &wire::Distrust) -> wire::CompareLogResponse {
    wire::CompareLogResponse {
        distrust: evidence.reason.clone(),
        evidence: hex::encode(cosign::evidence_id(evidence)),
        ..wire::CompareLogResponse::default()
    }
}
