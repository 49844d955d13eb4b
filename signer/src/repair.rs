//! Repair of a lost share, pure: t helpers make the share of another member from theirs, and none of them learns it
//! (<https://eprint.iacr.org/2017/1155>; value for value what frost-core's `keys::repairable` computes).
//!
//! Helper i's *part* is λᵢ·sᵢ, its share weighted for the lost member's place; all parts add up to the lost share. Each
//! helper splits its part into one random *delta* per helper, each sums the deltas that it received, and the sums add
//! up to the lost share. To the stock scheme every delta comes with its public point: these must add up to the
//! public part, so whoever sends a wrong delta or a wrong sum is named.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::{PublicKey, SECP256K1};
use k256::Scalar;
use rand_core::{CryptoRng, RngCore};
use spark_rules::{
    frost::{Coefficients, to_secp},
    ids::OperatorIndex,
};
use zeroize::Zeroizing;

use crate::secret::SecretScalar;

/// A repair that gives no share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// Helpers are fewer than the threshold, or the lost member is one of them, or this member is none.
    #[error("helpers of the repair do not fit")]
    Helpers,
    /// A message lacks a helper's value.
    #[error("messages of the repair are not complete")]
    Messages,
    /// The points of a helper do not add up to its public part.
    #[error("operator {} committed to another share than its own", culprit.get())]
    Commitment {
        /// Who.
        culprit: OperatorIndex,
    },
    /// A delta is not what its sender committed to.
    #[error("operator {} sent a delta that is not the one it committed to", culprit.get())]
    Delta {
        /// Who.
        culprit: OperatorIndex,
    },
    /// A sum is not that of the deltas.
    #[error("operator {} sent a sum that is not that of its deltas", culprit.get())]
    Sum {
        /// Who.
        culprit: OperatorIndex,
    },
    /// All values fit each other, and not the recorded public share.
    #[error("the repaired share is not the recorded one")]
    Share,
}

/// Public points of one helper's deltas, by receiving helper.
pub type Commitments = BTreeMap<OperatorIndex, PublicKey>;

/// Who takes part: exactly t helpers and the member whose share is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helpers {
    operators: BTreeSet<OperatorIndex>,
    lost: OperatorIndex,
    weights: Coefficients,
}

/// One helper's part, split.
#[expect(missing_debug_implementations, reason = "secrets are never printed")]
pub struct Split {
    /// By receiving helper, the splitting one included; each goes to that one only.
    pub deltas: BTreeMap<OperatorIndex, SecretScalar>,
    /// Their public points, for everybody.
    pub commitments: Commitments,
}

impl Helpers {
    /// `operators` are `threshold` members of a federation; the lost one is none of them.
    pub fn new(
        operators: BTreeSet<OperatorIndex>,
        lost: OperatorIndex,
        threshold: u16,
    ) -> Result<Self, RepairError> {
        if operators.is_empty() || operators.len() != usize::from(threshold) || operators.contains(&lost) {
            return Err(RepairError::Helpers);
        }
        let weights = Coefficients::at(&operators, lost);
        Ok(Self { operators, lost, weights })
    }

    /// The helpers.
    pub const fn operators(&self) -> &BTreeSet<OperatorIndex> {
        &self.operators
    }

    /// Whose share is repaired.
    pub const fn lost(&self) -> OperatorIndex {
        self.lost
    }

    /// Splits `me`'s weighted share into one random delta per helper.
    pub fn split(
        &self,
        me: OperatorIndex,
        share: &SecretScalar,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Split, RepairError> {
        let weight = self.weights.get(me).ok_or(RepairError::Helpers)?;
        loop {
            let mut rest = Zeroizing::new(weight * share.scalar());
            let mut deltas = BTreeMap::new();
            for helper in self.operators.iter().filter(|helper| **helper != me) {
                let delta = SecretScalar::random(rng);
                *rest -= delta.scalar();
                deltas.insert(*helper, delta);
            }
            // A rest of zero (probability 2⁻²⁵⁶) is not representable: take other values.
            let Ok(own) = SecretScalar::from_scalar(*rest) else { continue };
            deltas.insert(me, own);
            let commitments = deltas.iter().map(|(helper, delta)| (*helper, delta.public_key())).collect();
            return Ok(Split { deltas, commitments });
        }
    }

    /// Checks what one helper committed to against its recorded public share.
    pub fn check_commitments(
        &self,
        helper: OperatorIndex,
        public_share: &PublicKey,
        commitments: &Commitments,
    ) -> Result<(), RepairError> {
        let weight = self.weights.get(helper).ok_or(RepairError::Helpers)?;
        let wrong = RepairError::Commitment { culprit: helper };
        if !commitments.keys().eq(&self.operators) {
            return Err(wrong);
        }
        let points: Vec<&PublicKey> = commitments.values().collect();
        let sum = PublicKey::combine_keys(&points).map_err(|_| wrong)?;
        let part = public_share.mul_tweak(SECP256K1, &to_secp(weight)).map_err(|_| wrong)?;
        if sum == part { Ok(()) } else { Err(wrong) }
    }

    /// Takes the deltas that `me` received, its own included, checks each against its sender's commitments (checked
    /// before) and adds them up.
    pub fn sum(
        &self,
        me: OperatorIndex,
        deltas: &BTreeMap<OperatorIndex, SecretScalar>,
        commitments: &BTreeMap<OperatorIndex, Commitments>,
    ) -> Result<SecretScalar, RepairError> {
        let mut sum = Zeroizing::new(Scalar::ZERO);
        for sender in &self.operators {
            let delta = deltas.get(sender).ok_or(RepairError::Messages)?;
            let point = commitments.get(sender).and_then(|c| c.get(&me)).ok_or(RepairError::Messages)?;
            if delta.public_key() != *point {
                return Err(RepairError::Delta { culprit: *sender });
            }
            *sum += delta.scalar();
        }
        // Deltas of honest helpers are uniform: a sum of zero is either chance of 2⁻²⁵⁶ or no honest helper.
        SecretScalar::from_scalar(*sum).map_err(|_| RepairError::Share)
    }

    /// Adds up the helpers' sums, each checked against the commitments (checked before), and checks the share that
    /// they make against the recorded one.
    pub fn repair(
        &self,
        sums: &BTreeMap<OperatorIndex, SecretScalar>,
        commitments: &BTreeMap<OperatorIndex, Commitments>,
        public_share: &PublicKey,
    ) -> Result<SecretScalar, RepairError> {
        let mut share = Zeroizing::new(Scalar::ZERO);
        for helper in &self.operators {
            let sum = sums.get(helper).ok_or(RepairError::Messages)?;
            let points = self.operators.iter().map(|sender| commitments.get(sender)?.get(helper));
            let points = points.collect::<Option<Vec<_>>>().ok_or(RepairError::Messages)?;
            let expected = PublicKey::combine_keys(&points);
            if expected != Ok(sum.public_key()) {
                return Err(RepairError::Sum { culprit: *helper });
            }
            *share += sum.scalar();
        }
        let share = SecretScalar::from_scalar(*share).map_err(|_| RepairError::Share)?;
        if share.public_key() == *public_share { Ok(share) } else { Err(RepairError::Share) }
    }
}
