//! The key tree: secrets in pages, ordered by name; each page under a key of its own, which lies in its parent, up to
//! the top, whose key lies in the header.
//!
//! A B+ tree that is written anew along every path it changes: a batch seals the touched pages, and the nodes above
//! them, under fresh keys. What was there before is ciphertext under keys that only the old header leads to. The nodes
//! are kept open in memory, the pages are not: reading a secret costs one read of the store and one decryption.
//!
//! Presence and absence are both authenticated: names are bound into the seals, and which page a name belongs to is
//! said by sealed nodes.

mod inner;
mod leaf;
mod rebuild;
mod sealing;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use self::{
    inner::{Inner, Kids},
    leaf::Leaf,
};
use super::{
    cores,
    error::VaultError,
    id::{SecretId, SecretKind},
    seal::{DataKey, SealBroken},
    store::{SealedStore, StoreError},
    token::TreeId,
};

pub(super) use rebuild::{Change, Rewrite};

/// Most levels of nodes that a tree can have; with sixteen children each it would hold 2⁶⁴ pages.
const MAX_LEVEL: u8 = 16;

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
    number: u64,
}

impl Place {
    /// Gives `with` what every seal of this place is bound to, and then `clear`, the page's part in the clear.
    fn bind<T>(&self, clear: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
        const DOMAIN: &[u8] = b"spark/vault/tree/v1";
        const FIXED: usize = DOMAIN.len() + 8 + 16 + 1 + 8;
        let fixed = || {
            let level = std::slice::from_ref(&self.level);
            let number = self.number.to_be_bytes();
            let parts: [&[u8]; 5] =
                [DOMAIN, &self.origin.tree.0, self.origin.incarnation.as_bytes(), level, &number];
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
    pub(super) number: u64,
    pub(super) key: DataKey,
}

/// Why stored content is not a tree.
#[derive(Debug)]
pub(super) enum TreeError {
    /// The store failed.
    Store(StoreError),
    /// This page or node is missing, or is not the one that its parent names.
    Broken(u64),
    /// The store holds more, or fewer, pages than the tree.
    Count,
}

impl From<StoreError> for TreeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Pages that a batch has opened: it looks at each several times before it writes it anew. Wiped with the batch.
pub(super) struct OpenPages {
    pages: RefCell<HashMap<u64, Arc<Leaf>>>,
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

    fn get(&self, number: u64) -> Option<Arc<Leaf>> {
        self.pages.borrow().get(&number).map(Arc::clone)
    }

    fn keep(&self, number: u64, page: &Arc<Leaf>) {
        let mut pages = self.pages.borrow_mut();
        if pages.len() < self.most {
            pages.insert(number, Arc::clone(page));
        }
    }
}

/// Number and key of a page, and the first name of the page after it.
type Location<'a> = (u64, &'a [u8; 32], Option<SecretId>);

/// The page that a name belongs to, and the first name of the page after it.
type Sought = (Arc<Leaf>, Option<SecretId>);

/// An open tree.
pub(super) struct Tree {
    origin: Origin,
    top: Option<Top>,
    nodes: HashMap<u64, Inner>,
    /// Numbers from here on were never used.
    next: u64,
    /// Number of secrets.
    len: u64,
}

impl Tree {
    /// A tree without secrets.
    pub(super) fn empty(origin: Origin) -> Self {
        Self { origin, top: None, nodes: HashMap::new(), next: 0, len: 0 }
    }

    /// Reads everything once: nodes stay open, and every page must be the one that its parent names.
    pub(super) fn open(
        origin: Origin,
        top: Option<Top>,
        next: u64,
        len: u64,
        store: &dyn SealedStore,
    ) -> Result<Self, TreeError> {
        let mut tree = Self { origin, top: None, nodes: HashMap::new(), next, len };
        let mut found = Found::default();
        if let Some(top) = &top {
            let key = top.key.expose();
            tree.read(store, Place { origin, level: top.level, number: top.number }, key, None, &mut found)?;
        }
        found.check_pages()?;
        tree.top = top;
        if found.secrets != len || found.pages != store.page_count()? {
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
        let broken = || TreeError::Broken(place.number);
        if place.number >= self.next || place.level > MAX_LEVEL {
            return Err(broken());
        }
        let stored = store.page(place.number)?.ok_or_else(broken)?;
        found.pages = found.pages.saturating_add(1);
        if place.level == 0 {
            let key = DataKey::from_slice(key).ok_or_else(broken)?;
            found.waiting.push(Closed { place, key, stored, first, leaf: None });
            return if found.waiting.len() < Found::AT_ONCE { Ok(()) } else { found.check_pages() };
        }
        let node = Inner::open(&place, key, &stored).map_err(|SealBroken| broken())?;
        if node.kids().is_empty() || first.is_some_and(|first| node.kids().first() != Some(first)) {
            return Err(broken());
        }
        for kid in 0..node.kids().len() {
            let (first, number, key) = node.kids().get(kid).ok_or_else(broken)?;
            let below = Place { level: place.level.saturating_sub(1), number, ..place };
            self.read(store, below, key, Some(first), found)?;
        }
        if self.nodes.insert(place.number, node).is_some() {
            return Err(broken());
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn node(&self, number: u64) -> Result<&Inner, VaultError> {
        self.nodes.get(&number).ok_or(VaultError::Damaged("node is not open"))
    }

    fn page(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        number: u64,
        key: &[u8; 32],
    ) -> Result<Arc<Leaf>, VaultError> {
        if let Some(page) = open.get(number) {
            return Ok(page);
        }
        let stored = store.page(number)?.ok_or(VaultError::Damaged("page is missing"))?;
        let page = Leaf::open(&Place { origin: self.origin, level: 0, number }, key, stored)
            .map_err(|SealBroken| VaultError::Damaged("page does not open"))?;
        let page = Arc::new(page);
        open.keep(number, &page);
        Ok(page)
    }

    /// Number and key of the page that a name belongs to, and the first name of the page after it.
    fn locate(&self, id: &SecretId) -> Result<Option<Location<'_>>, VaultError> {
        let Some(top) = &self.top else { return Ok(None) };
        let (mut level, mut number, mut key, mut after) = (top.level, top.number, top.key.expose(), None);
        while level > 0 {
            let kids = self.node(number)?.kids();
            let at = kids.of(id);
            let next = kids.get(at.saturating_add(1)).map(|(first, ..)| first);
            let (_, kid, kid_key) = kids.get(at).ok_or(VaultError::Damaged("node without children"))?;
            (level, number, key, after) = (level.saturating_sub(1), kid, kid_key, next.or(after));
        }
        Ok(Some((number, key, after)))
    }

    /// Where a name belongs.
    fn seek(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        id: &SecretId,
    ) -> Result<Option<Sought>, VaultError> {
        let Some((number, key, after)) = self.locate(id)? else { return Ok(None) };
        Ok(Some((self.page(store, open, number, key)?, after)))
    }

    /// Opens the pages that these names belong to, as far as a batch keeps them. What is wrong with one shows when it
    /// is needed.
    pub(super) fn open_ahead(
        &self,
        store: &dyn SealedStore,
        open: &OpenPages,
        ids: &mut dyn Iterator<Item = SecretId>,
    ) -> Result<(), VaultError> {
        let mut sought: BTreeMap<u64, &[u8; 32]> = BTreeMap::new();
        for id in ids {
            if let Some((number, key, _)) = self.locate(&id)?
                && open.get(number).is_none()
            {
                sought.insert(number, key);
            }
        }
        let mut pages = Vec::with_capacity(sought.len());
        for (number, key) in sought.into_iter().take(open.most) {
            let place = Place { origin: self.origin, level: 0, number };
            if let (Some(stored), Some(key)) = (store.page(number)?, DataKey::from_slice(key)) {
                pages.push(Closed { place, key, stored, first: None, leaf: None });
            }
        }
        cores::each(&mut pages, Closed::open);
        for page in pages {
            if let Some(leaf) = page.leaf {
                open.keep(page.place.number, &Arc::new(leaf));
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

    /// Takes over what [`Self::rewrite`] prepared, once the store has it.
    pub(super) fn adopt(&mut self, rewrite: Rewrite) {
        for (number, node) in rewrite.nodes {
            match node {
                Some(node) => self.nodes.insert(number, node),
                None => self.nodes.remove(&number),
            };
        }
        self.top = rewrite.top;
        self.next = rewrite.next;
        self.len = rewrite.len;
    }
}

/// A page that is not open yet.
struct Closed {
    place: Place,
    key: DataKey,
    stored: Vec<u8>,
    /// The name that it begins with, as its parent says.
    first: Option<SecretId>,
    leaf: Option<Leaf>,
}

impl Closed {
    fn open(&mut self) {
        let stored = std::mem::take(&mut self.stored);
        self.leaf = Leaf::open(&self.place, self.key.expose(), stored).ok();
    }
}

/// What was read of a tree.
#[derive(Default)]
struct Found {
    pages: u64,
    secrets: u64,
    last: Option<SecretId>,
    /// Pages in order, to be opened together.
    waiting: Vec<Closed>,
}

impl Found {
    const AT_ONCE: usize = 1024;

    fn check_pages(&mut self) -> Result<(), TreeError> {
        cores::each(&mut self.waiting, Closed::open);
        for page in self.waiting.drain(..) {
            let broken = || TreeError::Broken(page.place.number);
            let leaf = page.leaf.as_ref().ok_or_else(broken)?;
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
