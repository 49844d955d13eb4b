//! Which slots of the store the tree takes, and where a batch puts what it writes.
//!
//! A batch writes every page to slots that are free under the header of the last commit, and what it supersedes becomes
//! free with its own commit. So a crash within a batch leaves the last header's pages as they are.
//!
//! Long runs of free slots are worth more than the disk that they take: a disk writes one run of a hundred pages faster
//! than ten single ones. So the store has several times as many slots as are taken, and batches go round through all of
//! them: what lies just ahead was written longest ago, and most of it is free again.

use super::super::store::Extent;

/// The store grows while at least one slot in so many is taken.
const ROOMY: u64 = 3;
/// Below so many times what is taken, a batch does not go into gaps.
const MOST: u64 = 4;
/// Shorter runs are gaps.
const GAP: u64 = 4;

/// Which slots are taken.
pub(super) struct Space {
    /// A bit per slot.
    bits: Vec<u64>,
    taken: u64,
    /// Slots from here on were never written.
    end: u64,
    /// Where the next batch goes on.
    cursor: u64,
}

impl Space {
    pub(super) const fn empty() -> Self {
        Self::up_to(Extent::FIRST)
    }

    /// Nothing taken of so many slots.
    pub(super) const fn up_to(end: u64) -> Self {
        Self { bits: Vec::new(), taken: 0, end, cursor: Extent::FIRST }
    }

    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Takes slots that exist and are free, or says `false`.
    pub(super) fn take(&mut self, extent: Extent) -> bool {
        let slots = extent.first()..extent.end();
        if extent.end() > self.end || self.next(slots.start, slots.end, true) < slots.end {
            return false;
        }
        self.change(extent, true);
        true
    }

    fn change(&mut self, extent: Extent, take: bool) {
        for slot in extent.first()..extent.end() {
            let at = word(slot);
            if self.bits.len() <= at {
                self.bits.resize(at.saturating_add(1), 0);
            }
            if let Some(word) = self.bits.get_mut(at) {
                let bit = 1 << (slot % 64);
                if (*word & bit != 0) != take {
                    *word ^= bit;
                    self.taken =
                        if take { self.taken.saturating_add(1) } else { self.taken.saturating_sub(1) };
                }
            }
        }
    }

    /// The first slot of a range that is taken, or that is not; the range's end if there is none.
    fn next(&self, from: u64, to: u64, taken: bool) -> u64 {
        let mut slot = from;
        while slot < to {
            let word = self.bits.get(word(slot)).copied().unwrap_or(0);
            let sought = if taken { word } else { !word } >> (slot % 64);
            if sought != 0 {
                return slot.saturating_add(u64::from(sought.trailing_zeros())).min(to);
            }
            slot = (slot / 64).saturating_add(1).saturating_mul(64);
        }
        to
    }

    /// What a batch may write to. Nothing is taken yet.
    pub(super) const fn draft(&self) -> Draft<'_> {
        let crowded = self.taken.saturating_mul(ROOMY) >= self.end;
        let picky = self.end < self.taken.saturating_mul(MOST);
        let start = if crowded { self.end } else { self.cursor };
        Draft {
            space: self,
            run: (start, start),
            limit: self.end,
            wrapped: crowded,
            shortest: if picky { GAP } else { 1 },
        }
    }

    /// After a commit: what it wrote is taken, what it superseded is free.
    pub(super) fn adopt(&mut self, placed: Placed, written: impl Iterator<Item = Extent>, gone: &[Extent]) {
        self.end = placed.end;
        self.cursor = placed.cursor;
        gone.iter().for_each(|extent| self.change(*extent, false));
        written.for_each(|extent| self.change(extent, true));
    }
}

fn word(slot: u64) -> usize {
    usize::try_from(slot / 64).unwrap_or(usize::MAX)
}

/// How a batch leaves the space.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) end: u64,
    cursor: u64,
}

/// Slots for what a batch writes.
pub(super) struct Draft<'a> {
    space: &'a Space,
    /// Free slots that are given away now.
    run: (u64, u64),
    /// Where the search ends.
    limit: u64,
    wrapped: bool,
    shortest: u64,
}

impl Draft<'_> {
    /// The next free slots for a page that takes so many.
    pub(super) fn place(&mut self, slots: u64) -> Option<Extent> {
        loop {
            let (start, end) = self.run;
            if end.saturating_sub(start) >= slots {
                self.run.0 = start.saturating_add(slots);
                return Extent::new(start, slots);
            }
            if end == u64::MAX {
                return None;
            }
            self.run = self.next_run(end);
        }
    }

    fn next_run(&mut self, from: u64) -> (u64, u64) {
        let mut from = from;
        loop {
            let start = self.space.next(from, self.limit, false);
            if start < self.limit {
                let end = self.space.next(start, self.limit, true);
                if end.saturating_sub(start) >= self.shortest {
                    return (start, end);
                }
                from = end;
            } else if self.wrapped {
                return (self.space.end, u64::MAX);
            } else {
                self.wrapped = true;
                self.limit = self.space.cursor;
                from = Extent::FIRST;
            }
        }
    }

    pub(super) fn finish(&self) -> Placed {
        let (next, end) = self.run;
        Placed { end: if end == u64::MAX { next.max(self.space.end) } else { self.space.end }, cursor: next }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn commit(space: &mut Space, sizes: &[u64], gone: &[Extent]) -> Vec<Extent> {
        let mut draft = space.draft();
        let written: Vec<Extent> = sizes.iter().map(|slots| draft.place(*slots).unwrap()).collect();
        let placed = draft.finish();
        space.adopt(placed, written.iter().copied(), gone);
        written
    }

    proptest! {
        /// Batches that replace some pages each: no slot has two pages, what a batch frees is not written by it, and
        /// the space stays in proportion.
        #[test]
        fn what_lives_is_never_given_away(
            batches in prop::collection::vec(
                (prop::collection::vec(prop_oneof![9 => Just(1u64), 1 => 2u64..18], 0..40), any::<u64>()), 1..60)
        ) {
            let mut space = Space::empty();
            let mut live: Vec<Extent> = Vec::new();
            let mut most = 0;
            for (sizes, seed) in batches {
                let (gone, kept): (Vec<_>, Vec<_>) =
                    live.iter().enumerate().partition(|(at, _)| (seed >> (at % 64)) & 1 == 1);
                let gone: Vec<Extent> = gone.into_iter().map(|(_, extent)| *extent).collect();
                let before: BTreeSet<u64> = live.iter().flat_map(|extent| extent.first()..extent.end()).collect();
                let written = commit(&mut space, &sizes, &gone);
                prop_assert!(written.iter().zip(&sizes).all(|(extent, slots)| extent.slots() == *slots));
                let mut slots = BTreeSet::new();
                for slot in written.iter().flat_map(|extent| extent.first()..extent.end()) {
                    prop_assert!(slot >= Extent::FIRST && slot < space.end());
                    prop_assert!(!before.contains(&slot) && slots.insert(slot));
                }
                live = kept.into_iter().map(|(_, extent)| *extent).chain(written).collect();
                most = most.max(space.taken() + slots.len() as u64);
                let taken: u64 = live.iter().map(|extent| extent.slots()).sum();
                prop_assert_eq!(space.taken(), taken);
                // A fresh look at the same pages, as at a start, comes to the same.
                let mut again = Space::up_to(space.end());
                prop_assert!(live.iter().all(|extent| again.take(*extent)));
                prop_assert!(live.iter().all(|extent| !again.take(*extent)));
                prop_assert_eq!(again.taken(), taken);
            }
            prop_assert!(space.end() <= 8 * most + 64, "{} slots, {} taken at most", space.end(), most);
        }
    }

    #[test]
    fn batches_go_round_in_long_runs() {
        use rand::{Rng as _, SeedableRng as _};
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let mut space = Space::empty();
        let mut live = commit(&mut space, &[1; 20_000], &[]);
        let mut runs = 0;
        let (batches, size) = (1_000, 256);
        for batch in 0..batches {
            let gone: Vec<Extent> =
                (0..size).map(|_| live.swap_remove(rng.gen_range(0..live.len()))).collect();
            let written = commit(&mut space, &[1; 256], &gone);
            if batch >= batches / 2 {
                runs += 1 + written.windows(2).filter(|pair| pair[0].end() != pair[1].first()).count();
            }
            live.extend(written);
        }
        assert!(space.end() < 20_000 * 4, "{} slots", space.end());
        assert!(runs < batches / 2 * 40, "{runs} runs in {} batches", batches / 2);
    }
}
