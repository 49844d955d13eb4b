//! The key tree: secrets in pages, ordered by name; each page under a key of its own, which lies in its parent, up to
//! the top, whose key lies in the header.
//!
//! A B+ tree that is written anew along every path it changes: a batch seals the touched pages, and the nodes above
//! them, under fresh keys and to free slots of the store; a parent says where its children lie. What was there before is
//! ciphertext under keys that only the old header leads to, until something is written over it. The nodes
//! are kept open in memory, the pages are not: reading a secret costs one read of the store and one decryption.
//!
//! Presence and absence are both authenticated: names are bound into the seals, and which page a name belongs to is
//! said by sealed nodes.

mod inner;
mod leaf;
mod rebuild;
mod sealing;
mod space;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use self::{
    inner::{Inner, Kids},
    leaf::Leaf,
    space::Space,
};
use super::{
    cores,
    error::VaultError,
    id::{SecretId, SecretKind},
    seal::{DataKey, SealBroken},
    store::{Extent, SealedStore, StoreError},
    token::TreeId,
};

pub(super) use rebuild::{Change, Written};

/// Most levels of nodes that a tree can have; with sixteen children each it would hold 2⁶⁴ pages.
const MAX_LEVEL: u8 = 16;

/// Where a slot's number leads in a table: consecutive ones far apart. Nobody but us gives them out.
#[derive(Default)]
struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // By the golden ratio, then the high bits, which are the good ones, to both ends.
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

type ByExtent<T> = HashMap<Extent, T, BuildHasherDefault<SlotHasher>>;

/// Whose tree it is; bound into every seal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) tree: TreeId,
    pub(super) incarnation: Incarnation,
}

/// Where a page or node lies. Pages have level 0.
#[derive(Debug, Clone, Copy)]
struct Place {
    origin: Origin,
    level: u8,
    at: Extent,
}

impl Place {
    /// Gives `with` what every seal of this place is bound to, and then `clear`, the page's part in the clear.
    fn bind<T>(&self, clear: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
        const DOMAIN: &[u8] = b"spark/vault/tree/v2";
        const FIXED: usize = DOMAIN.len() + 8 + 16 + 1 + 8;
        let fixed = || {
            let level = std::slice::from_ref(&self.level);
            let at = self.at.number().to_be_bytes();
            let parts: [&[u8]; 5] =
                [DOMAIN, &self.origin.tree.0, self.origin.incarnation.as_bytes(), level, &at];
            let mut context = [0u8; FIXED];
            let places = context.iter_mut();
            parts.into_iter().flatten().zip(places).for_each(|(byte, place)| *place = *byte);
            context
        };
        // On the stack: this is done for every page of a batch, and pages are small.
        let mut context = [0u8; FIXED + leaf::MOST_CLEAR];
        match context.get_mut(..FIXED.saturating_add(clear.len())) {
            Some(context) => {
                let (head, rest) = context.split_at_mut(FIXED);
                head.copy_from_slice(&fixed());
                rest.copy_from_slice(clear);
                with(context)
            }
            None => with(&[fixed().as_slice(), clear].concat()),
        }
    }
}

/// The page or node that everything hangs from.
pub(super) struct Top {
    pub(super) level: u8,
    pub(super) at: Extent,
    pub(super) key: DataKey,
}

/// Why stored content is not a tree.
#[derive(Debug)]
pub(super) enum TreeError {
    /// The store failed.
    Store(StoreError),
    /// What begins in this slot is missing, or is not the page or node that its parent names.
    Broken(u64),
    /// The tree does not hold as many secrets as it says.
    Count,
}

impl From<StoreError> for TreeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Pages that a batch has opened: it looks at each several times before it writes it anew. Wiped with the batch.
pub(super) struct OpenPages {
    pages: RefCell<ByExtent<Arc<Leaf>>>,
    most: usize,
}

impl OpenPages {
    /// Some 6 kB each.
    const OF_A_BATCH: usize = 8192;

    /// Keeps what a batch of usual size touches.
    pub(super) fn of_a_batch() -> Self {
        Self { pages: RefCell::default(), most: Self::OF_A_BATCH }
    }

    /// Keeps nothing.
    pub(super) fn none() -> Self {
        Self { pages: RefCell::default(), most: 0 }
    }

    fn get(&self, at: Extent) -> Option<Arc<Leaf>> {
        self.pages.borrow().get(&at).map(Arc::clone)
    }

    fn keep(&self, at: Extent, page: &Arc<Leaf>) {
        let mut pages = self.pages.borrow_mut();
        if pages.len() < self.most {
            pages.insert(at, Arc::clone(page));
        }
    }
}

/// Where a page lies, its key, and the first name of the page after it.
type Location<'a> = (Extent, &'a [u8; 32], Option<SecretId>);

/// The page that a name belongs to, and the first name of the page after it.
type Sought = (Arc<Leaf>, Option<SecretId>);

/// An open tree.
pub(super) struct Tree {
    origin: Origin,
    top: Option<Top>,
    nodes: ByExtent<Inner>,
    space: Space,
    /// Number of secrets.
    len: u64,
}

impl Tree {
    /// A tree without secrets.
    pub(super) fn empty(origin: Origin) -> Self {
        Self { origin, top: None, nodes: ByExtent::default(), space: Space::empty(), len: 0 }
    }

    /// Reads everything once: nodes stay open, and every page must be the one that its parent names.
    pub(super) fn open(
        origin: Origin,
        top: Option<Top>,
        end: u64,
        len: u64,
        store: &dyn SealedStore,
    ) -> Result<Self, TreeError> {
        let mut tree = Self { origin, top: None, nodes: ByExtent::default(), space: Space::up_to(end), len };
        let mut found = Found::default();
        if let Some(top) = &top {
            let key = top.key.expose();
            tree.read(store, Place { origin, level: top.level, at: top.at }, key, None, &mut found)?;
        }
        found.check_pages(store)?;
        tree.top = top;
        if found.secrets != len {
            return Err(TreeError::Count);
        }
        Ok(tree)
    }

    fn read(
        &mut self,
        store: &dyn SealedStore,
        place: Place,
        key: &[u8; 32],
        first: Option<SecretId>,
        found: &mut Found,
    ) -> Result<(), TreeError> {
        let broken = || TreeError::Broken(place.at.first());
        if place.level > MAX_LEVEL || !self.space.take(place.at) {
            return Err(broken());
        }
        if place.level == 0 {
            let key = DataKey::from_slice(key).ok_or_else(broken)?;
            found.waiting.push(Closed::new(place, key, first));
            return if found.waiting.len() < Found::AT_ONCE { Ok(()) } else { found.check_pages(store) };
        }
        let stored = store.page(place.at)?.ok_or_else(broken)?;
        let node = Inner::open(&place, key, &stored).map_err(|SealBroken| broken())?;
        if node.kids().is_empty() || first.is_some_and(|first| node.kids().first() != Some(first)) {
            return Err(broken());
        }
        for kid in 0..node.kids().len() {
            let (first, at, key) = node.kids().get(kid).ok_or_else(broken)?;
            let below = Place { level: place.level.saturating_sub(1), at, ..place };
            self.read(store, below, key, Some(first), found)?;
        }
        if self.nodes.insert(place.at, node).is_some() {
            return Err(broken());
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Slots of the store that are in use, and how many it has.
    pub(super) const fn slots(&self) -> (u64, u64) {
        (self.space.taken(), self.space.end())
    }

    pub(super) const fn end(&self) -> u64 {
        self.space.end()
    }

    fn node(&self, at: Extent) -> Result<&Inner, VaultError> {
        self.nodes.get(&at).ok_or(VaultError::Damaged("node is not open"))
    }

    fn page(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        at: Extent,
        key: &[u8; 32],
    ) -> Result<Arc<Leaf>, VaultError> {
        if let Some(page) = open.get(at) {
            return Ok(page);
        }
        let stored = store.page(at)?.ok_or(VaultError::Damaged("page is missing"))?;
        let page = Leaf::open(&Place { origin: self.origin, level: 0, at }, key, stored)
            .map_err(|SealBroken| VaultError::Damaged("page does not open"))?;
        let page = Arc::new(page);
        open.keep(at, &page);
        Ok(page)
    }

    /// Where the page lies that a name belongs to, its key, and the first name of the page after it.
    fn locate(&self, id: &SecretId) -> Result<Option<Location<'_>>, VaultError> {
        let Some(top) = &self.top else { return Ok(None) };
        let (mut level, mut place, mut key, mut after) = (top.level, top.at, top.key.expose(), None);
        while level > 0 {
            let kids = self.node(place)?.kids();
            let at = kids.of(id);
            let next = kids.get(at.saturating_add(1)).map(|(first, ..)| first);
            let (_, kid, kid_key) = kids.get(at).ok_or(VaultError::Damaged("node without children"))?;
            (level, place, key, after) = (level.saturating_sub(1), kid, kid_key, next.or(after));
        }
        Ok(Some((place, key, after)))
    }

    /// Where a name belongs.
    fn seek(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        id: &SecretId,
    ) -> Result<Option<Sought>, VaultError> {
        let Some((at, key, after)) = self.locate(id)? else { return Ok(None) };
        Ok(Some((self.page(store, open, at, key)?, after)))
    }

    /// Opens the pages that these names belong to, as far as a batch keeps them. What is wrong with one shows when it
    /// is needed.
    pub(super) fn open_ahead(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        ids: &mut dyn Iterator<Item = SecretId>,
    ) -> Result<(), VaultError> {
        let mut sought: BTreeMap<Extent, &[u8; 32]> = BTreeMap::new();
        for id in ids {
            if let Some((at, key, _)) = self.locate(&id)?
                && open.get(at).is_none()
            {
                sought.insert(at, key);
            }
        }
        let mut pages = Vec::with_capacity(sought.len());
        for (at, key) in sought.into_iter().take(open.most) {
            let place = Place { origin: self.origin, level: 0, at };
            pages.extend(DataKey::from_slice(key).map(|key| Closed::new(place, key, None)));
        }
        cores::each(&mut pages, |page| page.open(store));
        for page in pages {
            if let Ok(Some(leaf)) = page.leaf {
                open.keep(page.place.at, &Arc::new(leaf));
            }
        }
        Ok(())
    }

    /// A secret.
    pub(super) fn get(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        id: &SecretId,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let Some((page, _)) = self.seek(store, open, id)? else { return Ok(None) };
        Ok(page.find(id).map(|value| Zeroizing::new(value.to_vec())))
    }

    /// Whether a secret exists.
    pub(super) fn contains(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        id: &SecretId,
    ) -> Result<bool, VaultError> {
        Ok(self.seek(store, open, id)?.is_some_and(|(page, _)| page.find(id).is_some()))
    }

    /// Names of an owner's secrets, ascending.
    pub(super) fn of_owner(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        owner: &[u8; 16],
    ) -> Result<Vec<SecretId>, VaultError> {
        let mut found = Vec::new();
        let mut from = Some(SecretId::new(*owner, SecretKind::Keyshare, 0));
        while let Some(id) = from {
            let Some((page, after)) = self.seek(store, open, &id)? else { break };
            found.extend(page.slots().map(|(id, _)| id).filter(|id| id.owner == *owner));
            from = after.filter(|after| after.owner == *owner);
        }
        Ok(found)
    }

    /// Takes over what was written, once the header leads to it.
    pub(super) fn adopt(&mut self, written: Written) {
        for at in &written.gone {
            self.nodes.remove(at);
        }
        self.nodes.extend(written.nodes);
        self.space.adopt(written.placed, written.pages.into_iter(), &written.gone);
        self.top = written.top;
        self.len = written.len;
    }
}

fn unsealable(_: SealBroken) -> VaultError {
    VaultError::Damaged("content could not be sealed")
}

/// A page that is not open yet.
struct Closed {
    place: Place,
    key: DataKey,
    /// The name that it begins with, as its parent says.
    first: Option<SecretId>,
    /// Once it was read; none if it is not what was sealed.
    leaf: Result<Option<Leaf>, StoreError>,
}

impl Closed {
    const fn new(place: Place, key: DataKey, first: Option<SecretId>) -> Self {
        Self { place, key, first, leaf: Ok(None) }
    }

    fn open(&mut self, store: &dyn SealedStore) {
        let open = |stored| Leaf::open(&self.place, self.key.expose(), stored).ok();
        self.leaf = store.page(self.place.at).map(|stored| stored.and_then(open));
    }
}

/// What was read of a tree.
#[derive(Default)]
struct Found {
    secrets: u64,
    last: Option<SecretId>,
    /// Pages in order, to be opened together.
    waiting: Vec<Closed>,
}

impl Found {
    const AT_ONCE: usize = 1024;

    fn check_pages(&mut self, store: &dyn SealedStore) -> Result<(), TreeError> {
        cores::each(&mut self.waiting, |page| page.open(store));
        for page in self.waiting.drain(..) {
            let broken = || TreeError::Broken(page.place.at.first());
            let leaf = page.leaf?.ok_or_else(broken)?;
            for (id, _) in leaf.slots() {
                // Names ascend over the whole tree, and a page begins with the name that its parent says.
                if self.last.is_some_and(|last| last >= id) {
                    return Err(broken());
                }
                self.last = Some(id);
            }
            if leaf.is_empty() || page.first.is_some_and(|first| leaf.first() != Some(first)) {
                return Err(broken());
            }
            self.secrets = self.secrets.saturating_add(leaf.len() as u64);
        }
        Ok(())
    }
}
