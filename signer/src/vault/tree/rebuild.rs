//! A batch of changes: the pages it touches and the nodes above them, written anew under fresh keys.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    ByExtent, Inner, Kids, Leaf, MAX_LEVEL, OpenPages, Origin, Place, Top, Tree,
    inner::FAN_OUT,
    leaf::{self, SLOTS, Slot},
    sealing::{Press, press},
    space::{Draft, Placed},
    unsealable,
};
use crate::vault::{
    error::VaultError,
    id::SecretId,
    seal::{DataKey, KeySource},
    store::{Extent, SealedStore},
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

/// A tree after a batch that lies in the store, once the header leads to it.
pub(in crate::vault) struct Written {
    pub(super) pages: Vec<Extent>,
    pub(super) nodes: ByExtent<Inner>,
    /// What they supersede.
    pub(super) gone: Vec<Extent>,
    pub(in crate::vault) top: Option<Top>,
    pub(super) placed: Placed,
    pub(in crate::vault) len: u64,
}

impl Written {
    /// Slots of the store from here on were never written.
    pub(in crate::vault) const fn end(&self) -> u64 {
        self.placed.end
    }
}

impl Tree {
    /// Writes the tree after `changes`, which ascend by name, beside the present one, durably.
    pub(in crate::vault) fn rewrite(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        changes: &[Change],
    ) -> Result<Written, VaultError> {
        press(store, changes.len(), |press| {
            let mut batch = Batch {
                tree: self,
                store,
                open,
                keys: KeySource::new(),
                press,
                pages: Vec::new(),
                nodes: ByExtent::default(),
                gone: Vec::new(),
                draft: self.space.draft(),
                len: self.len,
            };
            let top = match &self.top {
                Some(top) if changes.is_empty() => {
                    DataKey::from_slice(top.key.expose()).map(|key| Top { level: top.level, at: top.at, key })
                }
                top => batch.rebuild_all(top.as_ref(), changes)?,
            };
            let Batch { pages, nodes, gone, draft, len, .. } = batch;
            Ok(Written { pages, nodes, gone, top, placed: draft.finish(), len })
        })
    }
}

struct Batch<'a> {
    tree: &'a Tree,
    store: &'a dyn SealedStore,
    open: &'a OpenPages,
    keys: KeySource,
    press: &'a mut Press,
    /// Where those lie that belong to the tree.
    pages: Vec<Extent>,
    nodes: ByExtent<Inner>,
    gone: Vec<Extent>,
    draft: Draft<'a>,
    len: u64,
}

impl Batch<'_> {
    fn rebuild_all(&mut self, top: Option<&Top>, changes: &[Change]) -> Result<Option<Top>, VaultError> {
        // As if a node stood above the top.
        let mut above = Kids::with_capacity(1);
        let mut level = 0;
        if let (Some(top), Some((first, _))) = (top, changes.first()) {
            above.push(*first, top.at, top.key.expose());
            level = top.level;
        }
        let mut kids = self.rebuild(level, &above, changes)?;
        while kids.len() > 1 {
            level = level.saturating_add(1);
            if level > MAX_LEVEL {
                return Err(VaultError::Damaged("tree is too high"));
            }
            let mut higher = Kids::with_capacity(kids.len() / lonely(FAN_OUT) + 1);
            self.seal_nodes(level, kids, &mut higher)?;
            kids = higher;
        }
        // A node with a single child is no use at the top.
        while level > 0
            && let Some((_, at, _)) = kids.get(0)
            && let Some(node) = self.nodes.get(&at)
            && node.kids().len() == 1
        {
            let mut lower = Kids::with_capacity(1);
            lower.extend(node.kids(), 0..1);
            self.nodes.remove(&at);
            self.pages.retain(|page| *page != at);
            (kids, level) = (lower, level.saturating_sub(1));
        }
        let top = kids.get(0).and_then(|(_, at, key)| Some((at, DataKey::from_slice(key)?)));
        Ok(top.map(|(at, key)| Top { level, at, key }))
    }

    /// Children of `kids`' level, after the changes.
    fn rebuild(&mut self, level: u8, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        if level == 0 { self.rebuild_pages(kids, changes) } else { self.rebuild_nodes(level, kids, changes) }
    }

    fn rebuild_nodes(&mut self, level: u8, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        let mut built: BTreeMap<usize, Kids> = BTreeMap::new();
        for (at, part) in by_child(kids, changes) {
            let (_, place, _) = kids.get(at).ok_or(MISSING)?;
            let node = self.tree.node(place)?;
            built.insert(at, self.rebuild(level.saturating_sub(1), node.kids(), part)?);
        }
        let few: Vec<usize> =
            built.iter().filter(|(_, kids)| kids.len() < lonely(FAN_OUT)).map(|(at, _)| *at).collect();
        for at in few.into_iter().filter_map(|at| neighbour(at, kids.len())) {
            if let Entry::Vacant(entry) = built.entry(at) {
                let (_, place, _) = kids.get(at).ok_or(MISSING)?;
                let node = self.tree.node(place)?.kids();
                let mut copy = Kids::with_capacity(node.len());
                copy.extend(node, 0..node.len());
                entry.insert(copy);
            }
        }
        let mut out = Kids::with_capacity(kids.len() + built.len());
        let mut at = 0;
        while at < kids.len() {
            if !built.contains_key(&at) {
                let next = built.range(at..).next().map_or(kids.len(), |(next, _)| *next);
                out.extend(kids, at..next);
                at = next;
                continue;
            }
            let mut run: Option<Kids> = None;
            while let Some(part) = built.remove(&at) {
                match &mut run {
                    Some(run) => run.extend(&part, 0..part.len()),
                    None => run = Some(part),
                }
                self.gone.extend(kids.get(at).map(|(_, place, _)| place));
                at += 1;
            }
            if let Some(run) = run {
                self.seal_nodes(level, run, &mut out)?;
            }
        }
        Ok(out)
    }

    fn rebuild_pages(&mut self, kids: &Kids, changes: &[Change]) -> Result<Kids, VaultError> {
        let parts: BTreeMap<usize, &[Change]> = by_child(kids, changes).collect();
        let mut open: BTreeMap<usize, Arc<Leaf>> = BTreeMap::new();
        let mut lonely_ones = BTreeSet::new();
        for (at, part) in &parts {
            let Some((_, place, key)) = kids.get(*at) else { continue };
            let page = self.tree.page(self.store, self.open, place, key)?;
            if weight_after(&page, part) < lonely(leaf::FULL) {
                lonely_ones.extend(neighbour(*at, kids.len()));
            }
            open.insert(*at, page);
        }
        for at in lonely_ones {
            if let Entry::Vacant(entry) = open.entry(at) {
                let (_, place, key) = kids.get(at).ok_or(MISSING)?;
                entry.insert(self.tree.page(self.store, self.open, place, key)?);
            }
        }
        let mut out = Kids::with_capacity(kids.len() + parts.len());
        if kids.is_empty() {
            let mut slots = Vec::with_capacity(changes.len());
            merge(std::iter::empty(), changes, &mut slots);
            self.count(0, slots.len())?;
            self.seal_pages(&slots, &mut out)?;
            return Ok(out);
        }
        let mut at = 0;
        let mut run: Vec<Slot<'_>> = Vec::with_capacity(2 * SLOTS);
        while at < kids.len() {
            if !open.contains_key(&at) {
                let next = open.range(at..).next().map_or(kids.len(), |(next, _)| *next);
                out.extend(kids, at..next);
                at = next;
                continue;
            }
            run.clear();
            let mut before = 0;
            while let Some(page) = open.get(&at) {
                merge(page.slots(), parts.get(&at).copied().unwrap_or_default(), &mut run);
                before += page.len();
                self.gone.extend(kids.get(at).map(|(_, place, _)| place));
                at += 1;
            }
            self.count(before, run.len())?;
            self.seal_pages(&run, &mut out)?;
        }
        Ok(out)
    }

    fn count(&mut self, before: usize, after: usize) -> Result<(), VaultError> {
        let len = self.len.saturating_add(after as u64).checked_sub(before as u64);
        self.len = len.ok_or(VaultError::Damaged("tree holds more secrets than it says"))?;
        Ok(())
    }

    /// Divides slots into pages, to be sealed.
    fn seal_pages(&mut self, slots: &[Slot<'_>], out: &mut Kids) -> Result<(), VaultError> {
        for range in divide(slots.iter().map(|(_, value)| leaf::weight(value)), leaf::FULL, SLOTS) {
            let part = slots.get(range).unwrap_or_default();
            let Some((first, _)) = part.first() else { continue };
            let place = self.place(0, Leaf::extent(part))?;
            let key = self.keys.draw();
            out.push(*first, place.at, key.expose());
            self.press.push(Leaf::unsealed(place, key, part).map_err(unsealable)?);
            self.pages.push(place.at);
        }
        Ok(())
    }

    /// Divides children into nodes of a level, to be sealed.
    fn seal_nodes(&mut self, level: u8, kids: Kids, out: &mut Kids) -> Result<(), VaultError> {
        let ranges = divide(std::iter::repeat_n(1, kids.len()), FAN_OUT, FAN_OUT);
        if ranges.len() == 1 {
            return self.seal_node(level, kids, out);
        }
        for range in ranges {
            let mut part = Kids::with_capacity(range.len());
            part.extend(&kids, range);
            self.seal_node(level, part, out)?;
        }
        Ok(())
    }

    fn seal_node(&mut self, level: u8, kids: Kids, out: &mut Kids) -> Result<(), VaultError> {
        let Some(first) = kids.first() else { return Ok(()) };
        let place = self.place(level, Inner::SLOTS)?;
        let key = self.keys.draw();
        out.push(first, place.at, key.expose());
        let node = Inner::new(kids);
        self.press.push(node.unsealed(place, key).map_err(unsealable)?);
        self.pages.push(place.at);
        self.nodes.insert(place.at, node);
        Ok(())
    }

    fn place(&mut self, level: u8, slots: u64) -> Result<Place, VaultError> {
        let origin: Origin = self.tree.origin;
        let at = self.draft.place(slots).ok_or(VaultError::Damaged("no slots left"))?;
        Ok(Place { origin, level, at })
    }
}

const MISSING: VaultError = VaultError::Damaged("node without children");

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

/// What a page weighs after its changes.
fn weight_after(page: &Leaf, changes: &[Change]) -> usize {
    let gone = |id| page.find(id).map_or(0, leaf::weight);
    let come = |value: &Option<Zeroizing<Vec<u8>>>| value.as_ref().map_or(0, |value| leaf::weight(value));
    changes.iter().fold(page.weight(), |sum, (id, value)| (sum + come(value)).saturating_sub(gone(id)))
}

/// Slots of a page after its changes; both ascend.
fn merge<'a>(slots: impl Iterator<Item = Slot<'a>>, changes: &'a [Change], merged: &mut Vec<Slot<'a>>) {
    let mut slots = slots.peekable();
    for (id, value) in changes {
        while let Some(kept) = slots.next_if(|(slot, _)| slot < id) {
            merged.push(kept);
        }
        let _replaced = slots.next_if(|(slot, _)| slot == id);
        merged.extend(value.as_ref().map(|value| (*id, value.as_slice())));
    }
    merged.extend(slots);
}

/// Divides a list evenly into parts of at most `most` weight, unless a single one is heavier, and `count` items.
/// A single part if possible; otherwise each has room for more.
fn divide(
    weights: impl ExactSizeIterator<Item = usize> + Clone,
    most: usize,
    count: usize,
) -> Vec<Range<usize>> {
    let (length, total) = (weights.len(), weights.clone().sum::<usize>());
    if length == 0 {
        return Vec::new();
    }
    if length <= count && total <= most {
        return std::iter::once(0..length).collect();
    }
    let parts = total.div_ceil(comfortable(most)).max(length.div_ceil(comfortable(count)));
    let (target, target_count) = (total.div_ceil(parts), length.div_ceil(parts));
    let mut ranges = Vec::with_capacity(parts);
    let (mut start, mut weight) = (0, 0);
    for (at, next) in weights.enumerate() {
        let full = weight + next > most || at - start >= count;
        let enough = weight >= target || at - start >= target_count;
        if at > start && (full || enough) {
            ranges.push(start..at);
            (start, weight) = (at, 0);
        }
        weight += next;
    }
    ranges.push(start..length);
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
            let parts = divide(weights.iter().copied(), leaf::FULL, SLOTS);
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
