use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Sequence numbers are given out before their transactions commit: a missing number is waited for this long.
const SETTLE: Duration = Duration::from_secs(60);
/// Missing numbers remembered; the oldest are given up first.
const MAX_GAPS: usize = 1024;

/// Where the reader of the table is: the newest row seen, and the numbers below it that may still appear.
#[derive(Debug)]
pub(super) struct Cursor {
    newest: i64,
    gaps: BTreeMap<i64, Instant>,
}

impl Cursor {
    /// Behind which rows the reader starts when `head` is the newest: numbers right below it may be uncommitted yet.
    pub(super) fn before(head: i64) -> Self {
        Self { newest: head.saturating_sub(MAX_GAPS as i64).max(0), gaps: BTreeMap::new() }
    }

    pub(super) const fn newest(&self) -> i64 {
        self.newest
    }

    /// Up to where nothing can appear any more.
    pub(super) fn settled(&self) -> i64 {
        self.gaps.first_key_value().map_or(self.newest, |(missing, _)| missing.saturating_sub(1))
    }

    pub(super) fn gaps(&self) -> Vec<i64> {
        self.gaps.keys().copied().collect()
    }

    /// Takes note of a row; false if it was seen before.
    pub(super) fn take(&mut self, seq: i64, now: Instant) -> bool {
        if seq <= self.newest {
            return self.gaps.remove(&seq).is_some();
        }
        let from = self.newest.saturating_add(1).max(seq.saturating_sub(MAX_GAPS as i64));
        self.gaps.extend((from..seq).map(|missing| (missing, now)));
        while self.gaps.len() > MAX_GAPS {
            self.gaps.pop_first();
        }
        self.newest = seq;
        true
    }

    /// Gives up numbers that have been missing for long: their transactions were rolled back.
    pub(super) fn settle(&mut self, now: Instant) {
        self.gaps.retain(|_, since| now.duration_since(*since) < SETTLE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_that_commits_late_is_delivered_once() {
        let now = Instant::now();
        let mut cursor = Cursor::before(0);
        assert!(cursor.take(1, now));
        assert!(cursor.take(4, now));
        assert_eq!((cursor.gaps(), cursor.settled()), (vec![2, 3], 1));
        assert!(cursor.take(3, now));
        assert!(!cursor.take(3, now));
        assert!(!cursor.take(4, now));
        cursor.settle(now + SETTLE);
        assert!(cursor.gaps().is_empty());
        assert!(!cursor.take(2, now), "given up");
        assert_eq!((cursor.newest(), cursor.settled()), (4, 4));
    }

    #[test]
    fn gaps_are_bounded() {
        let mut cursor = Cursor::before(0);
        assert!(cursor.take(i64::MAX, Instant::now()));
        assert!(cursor.gaps().len() <= MAX_GAPS);
    }

    proptest! {
        /// Whatever order rows commit in, each is delivered exactly once.
        #[test]
        fn every_row_once(order in Just((1i64..80).collect::<Vec<_>>()).prop_shuffle()) {
            let now = Instant::now();
            let mut cursor = Cursor::before(0);
            let mut visible = std::collections::BTreeSet::new();
            let mut delivered = Vec::new();
            for seq in order {
                visible.insert(seq);
                let gaps = cursor.gaps();
                let newest = cursor.newest();
                for row in visible.iter().copied().filter(|s| *s > newest || gaps.contains(s)) {
                    if cursor.take(row, now) {
                        delivered.push(row);
                    }
                }
            }
            delivered.sort_unstable();
            prop_assert_eq!(delivered, (1i64..80).collect::<Vec<_>>());
        }
    }
}
