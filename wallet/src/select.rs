//! Which leaves make an amount. A leaf cannot be split without a service provider, so the sum must be exact.

use std::collections::HashMap;

/// Steps after which the search gives up.
const BUDGET: usize = 2_000_000;

/// No set of leaves makes the amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The leaves are worth less altogether.
    #[error("not enough: {available} sat available, {wanted} sat wanted")]
    Insufficient {
        /// Sum of all leaves.
        available: u64,
        /// Asked for.
        wanted: u64,
    },
    /// Enough money, but no subset has this sum.
    #[error("no set of leaves is worth exactly {wanted} sat; possible now, for instance: {below} sat")]
    NoExactSum {
        /// Asked for.
        wanted: u64,
        /// The largest sum below that was seen; 0 if there is none.
        below: u64,
    },
    /// Too many combinations.
    #[error("too many leaves to search for exactly {0} sat; name the leaves")]
    TooMany(u64),
}

/// Sums reachable with the leaves so far: fewest leaves, and the last leaf with the sum before it.
type Sums = HashMap<u64, (usize, Option<(usize, u64)>)>;

/// Positions of leaves whose values add up to exactly `wanted`, with as few leaves as possible.
pub fn exact(values: &[u64], wanted: u64) -> Result<Vec<usize>, SelectError> {
    let available: u64 = values.iter().fold(0, |sum, v| sum.saturating_add(*v));
    if wanted == 0 || available < wanted {
        return Err(SelectError::Insufficient { available, wanted });
    }
    let mut best: Sums = HashMap::from([(0, (0, None))]);
    let mut trail: Vec<Sums> = Vec::new();
    let mut steps = 0usize;
    for (position, value) in values.iter().enumerate() {
        if *value == 0 || *value > wanted {
            continue;
        }
        let mut added = Sums::new();
        for (sum, (count, _)) in &best {
            steps = steps.saturating_add(1);
            if steps > BUDGET {
                return Err(SelectError::TooMany(wanted));
            }
            let Some(next) = sum.checked_add(*value).filter(|s| *s <= wanted) else { continue };
            let count = count.saturating_add(1);
            if best.get(&next).is_none_or(|(fewest, _)| count < *fewest) {
                added.insert(next, (count, Some((position, *sum))));
            }
        }
        trail.push(added.clone());
        best.extend(added);
    }
    if !best.contains_key(&wanted) {
        let below = best.keys().copied().filter(|s| *s < wanted).max().unwrap_or(0);
        return Err(SelectError::NoExactSum { wanted, below });
    }
    // Backwards through the leaves, since a later leaf may have improved a sum an earlier path used.
    let mut chosen = Vec::new();
    let mut rest = wanted;
    let mut layer = trail.len();
    while rest > 0 {
        let found = trail.iter().take(layer).enumerate().rev().find_map(|(at, added)| {
            added.get(&rest).and_then(|(_, last)| last.map(|(position, before)| (at, position, before)))
        });
        let Some((at, position, before)) = found else { return Err(SelectError::TooMany(wanted)) };
        chosen.push(position);
        (rest, layer) = (before, at);
    }
    chosen.reverse();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_leaves_are_better() {
        assert_eq!(exact(&[1, 2, 3, 4, 10], 10), Ok(vec![4]));
        assert_eq!(exact(&[5, 5], 10), Ok(vec![0, 1]));
        assert_eq!(exact(&[5], 10), Err(SelectError::Insufficient { available: 5, wanted: 10 }));
        assert_eq!(exact(&[6, 7], 10), Err(SelectError::NoExactSum { wanted: 10, below: 7 }));
        assert!(exact(&[1], 0).is_err());
    }

    proptest! {
        #[test]
        fn finds_what_brute_force_finds(values in prop::collection::vec(1u64..30, 0..11), wanted in 1u64..120) {
            let fewest = (0u32..1 << values.len())
                .filter(|mask| {
                    let sum: u64 = values.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0).map(|(_, v)| v).sum();
                    sum == wanted
                })
                .map(u32::count_ones)
                .min();
            match exact(&values, wanted) {
                Ok(chosen) => {
                    let mut unique = chosen.clone();
                    unique.dedup();
                    prop_assert_eq!(unique.len(), chosen.len());
                    prop_assert_eq!(chosen.iter().map(|i| values[*i]).sum::<u64>(), wanted);
                    prop_assert_eq!(Some(chosen.len() as u32), fewest);
                }
                Err(_) => prop_assert_eq!(fewest, None),
            }
        }
    }
}
