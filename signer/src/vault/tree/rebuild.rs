//! A batch of changes: the pages it touches and the nodes above them, written anew under fresh keys.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    Inner, Kids, Leaf, MAX_LEVEL, OpenPages, Origin, Place, Top, Tree,
    inner::FAN_OUT,
    leaf::{self, SLOTS, Slot},
};
use crate::vault::{
    error::VaultError,
    id::SecretId,
    seal::{DataKey, SealBroken},
    store::SealedStore,
};

/// A secret's new value, or its end.
pub(in crate::vault) type Change = (SecretId, Option<Zeroizing<Vec<u8>>>);

/// What is left to each when too much is there for one: room for what comes.
const fn comfortable(most: usize) -> usize {
    most - most / 8
}

/// Below this much, a page or node is joined with its neighbour.
const fn lonely(most: usize) -> usize {
    most / 4
}

/// A tree after a batch, and what the store must be told for it.
pub(in crate::vault) struct Rewrite {
    /// Pages and nodes by number. `None` removes.
    pub(in crate::vault) pages: BTreeMap<u64, Option<Vec<u8>>>,
    pub(super) nodes: BTreeMap<u64, Option<Inner>>,
    pub(in crate::vault) top: Option<Top>,
    pub(in crate::vault) next: u64,
    pub(in crate::vault) len: u64,
}

impl Tree {
    /// The tree after `changes`, which ascend by name. Nothing happens yet.
    pub(in crate::vault) fn rewrite(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        changes: &[Change],
    ) -> Result<Rewrite, VaultError> {
        let mut batch = Batch {
            tree: self,
            store,
            open,
            pages: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next: self.next,
            len: self.len,
        };
        let top = match &self.top {
            Some(top) if changes.is_empty() => DataKey::from_slice(top.key.expose()).map(|key| Top {
                level: top.level,
                number: top.number,
                key,
            }),
            top => batch.rebuild_all(top.as_ref(), changes)?,
        };
        let Batch { pages, nodes, next, len, .. } = batch;
        Ok(Rewrite { pages, nodes, top, next, len })
    }
}

struct Batch<'a> {
    tree: &'a Tree,
    store: &'a dyn SealedStore,
    open: &'a OpenPages,
    pages: BTreeMap<u64, Option<Vec<u8>>>,
    nodes: BTreeMap<u64, Option<Inner>>,
    next: u64,
    len: u64,
}

impl Batch<'_> {
    fn rebuild_all(&mut self, top: Option<&Top>, changes: &[Change]) -> Result<Option<Top>, VaultError> {
        // As if a node stood above the top.
        let mut above = Kids::with_capacity(1);
        let mut level = 0;
        if let (Some(top), Some((first, _))) = (top, changes.first()) {
            above.push(*first, top.number, top.key.expose());
            level = top.level;
        }
        let mut kids = self.rebuild(level, &above, changes)?;
        while kids.len() > 1 {
            level = level.saturating_add(1);
            if level > MAX_LEVEL {
                return Err(VaultError::Damaged("tree is too high"));
            }
            let mut higher = Kids::with_capacity(kids.len() / lonely(FAN_OUT) + 1);
            self.seal_nodes(level, &kids, Vec::new(), &mut higher)?;
            kids = higher;
        }
        // A node with a single child is no use at the top.
        while level > 0
            && let Some((_, number, _)) = kids.get(0)
            && let Some(Some(node)) = self.nodes.get(&number)
            && node.kids().len() == 1
        {
            let mut lower = Kids::with_capacity(1);
            lower.extend(node.kids(), 0..1);
            self.remove(number);
            self.nodes.insert(number, None);
            (kids, level) = (lower, level.saturating_sub(1));
        }
        let top = kids.get(0).and_then(|(_, number, key)| Some((number, DataKey::from_slice(key)?)));
        Ok(top.map(|(number, key)| Top { level, number, key }))
    }

    /// Children of `kids`' level, after the changes.
    fn rebuild(&mut self, level: u8, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        if level == 0 { self.rebuild_pages(kids, changes) } else { self.rebuild_nodes(level, kids, changes) }
    }

    fn rebuild_nodes(&mut self, level: u8, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        let mut built: BTreeMap<usize, Kids> = BTreeMap::new();
        for (at, part) in by_child(kids, changes) {
            let (_, number, _) = kids.get(at).ok_or(MISSING)?;
            let node = self.tree.node(number)?;
            built.insert(at, self.rebuild(level.saturating_sub(1), node.kids(), part)?);
        }
        let few: Vec<usize> =
            built.iter().filter(|(_, kids)| kids.len() < lonely(FAN_OUT)).map(|(at, _)| *at).collect();
        for at in few.into_iter().filter_map(|at| neighbour(at, kids.len())) {
            if let Entry::Vacant(entry) = built.entry(at) {
                let (_, number, _) = kids.get(at).ok_or(MISSING)?;
                let node = self.tree.node(number)?.kids();
                let mut copy = Kids::with_capacity(node.len());
                copy.extend(node, 0..node.len());
                entry.insert(copy);
            }
        }
        let mut out = Kids::with_capacity(kids.len() + built.len());
        let mut at = 0;
        while at < kids.len() {
            if !built.contains_key(&at) {
                out.extend(kids, at..at + 1);
                at += 1;
                continue;
            }
            let mut run = Kids::with_capacity(FAN_OUT);
            let mut numbers = Vec::new();
            while let Some(part) = built.remove(&at) {
                run.extend(&part, 0..part.len());
                numbers.extend(kids.get(at).map(|(_, number, _)| number));
                at += 1;
            }
            self.seal_nodes(level, &run, numbers, &mut out)?;
        }
        Ok(out)
    }

    fn rebuild_pages(&mut self, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        let parts: BTreeMap<usize, &[Change]> = by_child(kids, changes).collect();
        let mut open: BTreeMap<usize, Arc<Leaf>> = BTreeMap::new();
        let mut lonely_ones = BTreeSet::new();
        for (at, part) in &parts {
            let Some((_, number, key)) = kids.get(*at) else { continue };
            let page = self.tree.page(self.store, self.open, number, key)?;
            let slots = merge(page.slots(), part);
            let weight: usize = slots.iter().map(|(_, value)| leaf::weight(value)).sum();
            if weight < lonely(leaf::FULL) {
                lonely_ones.extend(neighbour(*at, kids.len()));
            }
            open.insert(*at, page);
        }
        for at in lonely_ones {
            if let Entry::Vacant(entry) = open.entry(at) {
                let (_, number, key) = kids.get(at).ok_or(MISSING)?;
                entry.insert(self.tree.page(self.store, self.open, number, key)?);
            }
        }
        let mut out = Kids::with_capacity(kids.len() + parts.len());
        if kids.is_empty() {
            let slots = merge(std::iter::empty(), changes);
            self.count(0, slots.len())?;
            self.seal_pages(&slots, Vec::new(), &mut out)?;
            return Ok(out);
        }
        let mut at = 0;
        while at < kids.len() {
            if !open.contains_key(&at) {
                out.extend(kids, at..at + 1);
                at += 1;
                continue;
            }
            let mut run: Vec<Slot<'_>> = Vec::with_capacity(SLOTS);
            let mut numbers = Vec::new();
            let mut before = 0;
            while let Some(page) = open.get(&at) {
                run.extend(merge(page.slots(), parts.get(&at).copied().unwrap_or_default()));
                before += page.len();
                numbers.extend(kids.get(at).map(|(_, number, _)| number));
                at += 1;
            }
            self.count(before, run.len())?;
            self.seal_pages(&run, numbers, &mut out)?;
        }
        Ok(out)
    }

    fn count(&mut self, before: usize, after: usize) -> Result<(), VaultError> {
        let len = self.len.saturating_add(after as u64).checked_sub(before as u64);
        self.len = len.ok_or(VaultError::Damaged("tree holds more secrets than it says"))?;
        Ok(())
    }

    /// Divides slots into pages and seals them; numbers of pages that were there are used first.
    fn seal_pages(
        &mut self,
        slots: &[Slot<'_>],
        numbers: Vec<u64>,
        out: &mut Kids,
    ) -> Result<(), VaultError> {
        let mut numbers = numbers.into_iter();
        let weights: Vec<usize> = slots.iter().map(|(_, value)| leaf::weight(value)).collect();
        for range in divide(&weights, leaf::FULL, SLOTS) {
            let part = slots.get(range).unwrap_or_default();
            let Some((first, _)) = part.first() else { continue };
            let number = self.number(&mut numbers)?;
            let key = DataKey::random();
            let sealed = Leaf::seal(&self.place(0, number), key.expose(), part).map_err(unsealable)?;
            self.pages.insert(number, Some(sealed));
            out.push(*first, number, key.expose());
        }
        numbers.for_each(|number| self.remove(number));
        Ok(())
    }

    /// Divides children into nodes of a level and seals them.
    fn seal_nodes(
        &mut self,
        level: u8,
        kids: &Kids,
        numbers: Vec<u64>,
        out: &mut Kids,
    ) -> Result<(), VaultError> {
        let mut numbers = numbers.into_iter();
        for range in divide(&vec![1; kids.len()], FAN_OUT, FAN_OUT) {
            let mut part = Kids::with_capacity(range.len());
            part.extend(kids, range);
            let Some(first) = part.first() else { continue };
            let number = self.number(&mut numbers)?;
            let key = DataKey::random();
            let node = Inner::new(part);
            let sealed = node.seal(&self.place(level, number), key.expose()).map_err(unsealable)?;
            self.pages.insert(number, Some(sealed));
            self.nodes.insert(number, Some(node));
            out.push(first, number, key.expose());
        }
        for number in numbers {
            self.remove(number);
            self.nodes.insert(number, None);
        }
        Ok(())
    }

    fn place(&self, level: u8, number: u64) -> Place {
        let origin: Origin = self.tree.origin;
        Place { origin, level, number }
    }

    fn number(&mut self, used: &mut impl Iterator<Item = u64>) -> Result<u64, VaultError> {
        if let Some(number) = used.next() {
            return Ok(number);
        }
        let number = self.next;
        self.next = number.checked_add(1).ok_or(VaultError::Damaged("no page numbers left"))?;
        Ok(number)
    }

    /// A page that the store has disappears from it; one of this batch was never there.
    fn remove(&mut self, number: u64) {
        if number < self.tree.next {
            self.pages.insert(number, None);
        } else {
            self.pages.remove(&number);
        }
    }
}

const MISSING: VaultError = VaultError::Damaged("node without children");

fn unsealable(_: SealBroken) -> VaultError {
    VaultError::Damaged("content could not be sealed")
}

/// The child that one with too little is joined with.
const fn neighbour(at: usize, children: usize) -> Option<usize> {
    match at.checked_sub(1) {
        Some(before) => Some(before),
        None if children > 1 => Some(1),
        None => None,
    }
}

/// Changes by the child that they belong to.
fn by_child<'c>(kids: &Kids, mut changes: &'c [Change]) -> impl Iterator<Item = (usize, &'c [Change])> {
    std::iter::from_fn(move || {
        let (id, _) = changes.first()?;
        let at = kids.of(id);
        let next = kids.firsts().get(at.saturating_add(1));
        let end = next.map_or(changes.len(), |next| changes.partition_point(|(id, _)| id < next));
        let (part, rest) = changes.split_at_checked(end)?;
        changes = rest;
        Some((at, part))
    })
}

/// Slots of a page after its changes; both ascend.
fn merge<'a>(slots: impl Iterator<Item = (&'a SecretId, &'a [u8])>, changes: &'a [Change]) -> Vec<Slot<'a>> {
    let mut merged = Vec::with_capacity(SLOTS + changes.len());
    let mut slots = slots.peekable();
    for (id, value) in changes {
        while let Some((before, kept)) = slots.next_if(|(slot, _)| *slot < id) {
            merged.push((*before, kept));
        }
        let _replaced = slots.next_if(|(slot, _)| *slot == id);
        merged.extend(value.as_ref().map(|value| (*id, value.as_slice())));
    }
    merged.extend(slots.map(|(id, value)| (*id, value)));
    merged
}

/// Divides a list evenly into parts of at most `most` weight, unless a single one is heavier, and `count` items.
/// A single part if possible; otherwise each has room for more.
fn divide(weights: &[usize], most: usize, count: usize) -> Vec<Range<usize>> {
    if weights.is_empty() {
        return Vec::new();
    }
    let total: usize = weights.iter().sum();
    let parts = if weights.len() <= count && total <= most {
        1
    } else {
        total.div_ceil(comfortable(most)).max(weights.len().div_ceil(comfortable(count)))
    };
    let (target, target_count) = (total.div_ceil(parts), weights.len().div_ceil(parts));
    let mut ranges = Vec::with_capacity(parts);
    let (mut start, mut weight) = (0, 0);
    for (at, next) in weights.iter().enumerate() {
        let full = weight + next > most || at - start >= count;
        let enough = weight >= target || at - start >= target_count;
        if at > start && (full || enough) {
            ranges.push(start..at);
            (start, weight) = (at, 0);
        }
        weight += next;
    }
    ranges.push(start..weights.len());
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_whole_and_none_is_too_heavy(
            weights in proptest::collection::vec(prop_oneof![9 => Just(61usize), 1 => 30usize..9000], 0..400),
        ) {
            let parts = divide(&weights, leaf::FULL, SLOTS);
            let mut next = 0;
            for part in &parts {
                prop_assert_eq!(part.start, next);
                prop_assert!(!part.is_empty() && part.len() <= SLOTS);
                let weight: usize = weights[part.clone()].iter().sum();
                prop_assert!(weight <= leaf::FULL || part.len() == 1);
                next = part.end;
            }
            prop_assert_eq!(next, weights.len());
        }
    }
}
