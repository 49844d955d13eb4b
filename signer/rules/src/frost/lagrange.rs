//! Lagrange coefficients for a set of operators: at zero for signing, at another operator's place for repair.

use std::collections::BTreeSet;

use k256::Scalar;

use crate::ids::OperatorIndex;

/// λ of every operator of a set, computed once per set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coefficients(Vec<(OperatorIndex, Scalar)>);

impl Coefficients {
    /// For the operators of one signing set.
    pub fn new(operators: &BTreeSet<OperatorIndex>) -> Self {
        Self::of(operators.iter().copied())
    }

    pub(super) fn of(operators: impl Iterator<Item = OperatorIndex> + Clone) -> Self {
        Self(operators.clone().map(|i| (i, coefficient(i, operators.clone(), 0))).collect())
    }

    /// For the share of `place`: f(place) = Σ λ·f(operator), of a polynomial f of a lower degree than there are
    /// operators (<https://eprint.iacr.org/2017/1155>). Zero for all others where `place` is one of them.
    pub fn at(operators: &BTreeSet<OperatorIndex>, place: OperatorIndex) -> Self {
        let place = i64::from(place.share_index());
        let all = operators.iter().copied();
        Self(all.clone().map(|i| (i, coefficient(i, all.clone(), place))).collect())
    }

    /// λ of one operator; none if it is not in the set.
    pub fn get(&self, index: OperatorIndex) -> Option<&Scalar> {
        self.0.binary_search_by_key(&index, |(i, _)| *i).ok().and_then(|at| self.0.get(at)).map(|(_, l)| l)
    }

    pub(super) fn covers(&self, operators: impl Iterator<Item = OperatorIndex>) -> bool {
        self.0.iter().map(|(index, _)| *index).eq(operators)
    }
}

fn coefficient(me: OperatorIndex, operators: impl Iterator<Item = OperatorIndex>, place: i64) -> Scalar {
    let x = i64::from(me.share_index());
    let (mut numerator, mut denominator, mut negative) = (Scalar::ONE, Scalar::ONE, false);
    for other in operators.filter(|o| *o != me) {
        let other = i64::from(other.share_index());
        let (distance, difference) = (other - place, other - x);
        negative ^= (distance < 0) ^ (difference < 0);
        numerator *= Scalar::from(distance.unsigned_abs());
        denominator *= Scalar::from(difference.unsigned_abs());
    }
    // Distinct identifiers below 2^16: the denominator is never zero.
    let inverse = Option::<Scalar>::from(denominator.invert()).unwrap_or(Scalar::ZERO);
    let value = numerator * inverse;
    if negative { -value } else { value }
}
