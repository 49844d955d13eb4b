use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What was handed over this long ago on a connection that lives was heard: a dead one would have been found by its
/// unanswered pings (20 s, and 20 s for the answer).
const CERTAIN: Duration = Duration::from_secs(45);

/// Up to where a stream was certainly heard.
#[derive(Debug)]
pub(super) struct Marks {
    heard: i64,
    handed_over: VecDeque<(Instant, i64)>,
}

impl Marks {
    pub(super) fn from(heard: i64) -> Self {
        Self { heard, handed_over: VecDeque::new() }
    }

    /// Everything up to `seq` is handed over now.
    pub(super) fn handed_over(&mut self, seq: i64, now: Instant) {
        if self.handed_over.back().is_none_or(|(_, last)| *last < seq) && self.heard < seq {
            self.handed_over.push_back((now, seq));
        }
    }

    /// Up to where it was heard.
    pub(super) fn heard(&mut self, now: Instant) -> i64 {
        while let Some((at, seq)) = self.handed_over.front().copied()
            && now.duration_since(at) >= CERTAIN
        {
            self.heard = seq;
            self.handed_over.pop_front();
        }
        self.heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_lately_is_not_certain() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut marks = Marks::from(7);
        marks.handed_over(7, start);
        marks.handed_over(9, start);
        marks.handed_over(9, after(40));
        marks.handed_over(12, after(40));
        assert_eq!(marks.heard(after(44)), 7);
        assert_eq!(marks.heard(after(45)), 9, "the first time counts");
        assert_eq!(marks.heard(after(84)), 9);
        assert_eq!(marks.heard(after(85)), 12);
        assert_eq!(marks.heard(after(1000)), 12);
    }
}
