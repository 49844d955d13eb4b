//! The nonce book (rule S3): pairs live in memory only, are found by their commitments, and leave the book
//! before a share is computed. A restart voids all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use bitcoin::secp256k1::PublicKey;
use rand_core::{CryptoRng, RngCore};
use spark_rules::{frost::Commitment, ids::LeafId};

use crate::frost::NoncePair;

/// Seconds that an unused pair lives (D18).
pub const LIFETIME_SECONDS: u64 = 600;
/// Most open pairs of one session identity (D19). Beyond it, its own oldest goes.
pub const PER_IDENTITY: usize = 4096;
/// Most open pairs of one session identity for one leaf (D19). Beyond it, the oldest of them goes.
pub const PER_LEAF: usize = 64;
/// Most pairs in the book that have not expired; beyond it nobody gets more, and nobody's are evicted.
pub const CAPACITY: usize = 1 << 20;

/// Why there are no nonces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// The commitments are unknown: never issued, expired, or from before a restart.
    #[error("signing commitment is unknown or expired")]
    Unknown,
    /// Used before in this process: somebody tries to get a second answer under one nonce.
    #[error("signing commitment was used before")]
    Used,
    /// Issued for another leaf.
    #[error("signing commitment was issued for another leaf")]
    OtherLeaf,
    /// The book is full.
    #[error("too many open signing commitments")]
    Full,
}

type Key = [u8; 66];

struct Open {
    pair: NoncePair,
    leaf: Option<LeafId>,
    identity: [u8; 33],
    number: u64,
    expires: u64,
}

/// Open pairs of one owner, oldest first.
type Line = BTreeMap<u64, Key>;

/// Open pairs.
#[derive(Default)]
pub struct NonceBook {
    open: HashMap<Key, Open>,
    by_identity: HashMap<[u8; 33], Line>,
    by_leaf: HashMap<([u8; 33], LeafId), Line>,
    by_expiry: BTreeSet<(u64, Key)>,
    /// Until they would have expired: to tell a replay from a restart.
    used: HashMap<Key, u64>,
    issued: u64,
}

impl std::fmt::Debug for NonceBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NonceBook").field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl NonceBook {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of open pairs.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True if nothing is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Makes a pair for `identity`, bound to `leaf` or unbound, and returns its commitments.
    pub fn issue(
        &mut self,
        identity: &PublicKey,
        leaf: Option<LeafId>,
        now: u64,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Commitment, NonceError> {
        self.expire(now);
        if self.by_expiry.len() >= CAPACITY {
            return Err(NonceError::Full);
        }
        let pair = NoncePair::generate(rng, None);
        let commitment = *pair.commitment();
        let key = commitment.to_bytes();
        let identity = identity.serialize();
        let expires = now.saturating_add(LIFETIME_SECONDS);
        self.issued = self.issued.saturating_add(1);
        let number = self.issued;
        self.by_identity.entry(identity).or_default().insert(number, key);
        if let Some(leaf) = leaf {
            self.by_leaf.entry((identity, leaf)).or_default().insert(number, key);
        }
        self.by_expiry.insert((expires, key));
        self.open.insert(key, Open { pair, leaf, identity, number, expires });
        let of_leaf = leaf.and_then(|leaf| oldest_beyond(self.by_leaf.get(&(identity, leaf)), PER_LEAF));
        let evicted = of_leaf.or_else(|| oldest_beyond(self.by_identity.get(&identity), PER_IDENTITY));
        if let Some(evicted) = evicted
            && let Some(entry) = self.remove(&evicted)
        {
            self.by_expiry.remove(&(entry.expires, evicted));
        }
        Ok(commitment)
    }

    /// Takes a pair out: from here on it is gone, whatever becomes of the caller's work. A pair for another leaf
    /// is not taken.
    pub fn take(
        &mut self,
        commitment: &Commitment,
        leaf: &LeafId,
        now: u64,
    ) -> Result<NoncePair, NonceError> {
        self.expire(now);
        let key = commitment.to_bytes();
        if self.used.contains_key(&key) {
            return Err(NonceError::Used);
        }
        let bound = self.open.get(&key).ok_or(NonceError::Unknown)?.leaf;
        if bound.is_some_and(|bound| bound != *leaf) {
            return Err(NonceError::OtherLeaf);
        }
        let entry = self.remove(&key).ok_or(NonceError::Unknown)?;
        self.used.insert(key, entry.expires);
        Ok(entry.pair)
    }

    /// Whether a pair is open for the leaf, without taking it.
    pub fn has(&self, commitment: &Commitment, leaf: &LeafId, now: u64) -> bool {
        self.open
            .get(&commitment.to_bytes())
            .is_some_and(|e| e.expires > now && e.leaf.is_none_or(|bound| bound == *leaf))
    }

    /// Whether a pair with these commitments, hiding ‖ binding, was used in this process and would still be open.
    pub fn was_used(&self, hiding: &[u8], binding: &[u8]) -> bool {
        <[u8; 66]>::try_from([hiding, binding].concat()).is_ok_and(|key| self.used.contains_key(&key))
    }

    fn expire(&mut self, now: u64) {
        while let Some((expires, key)) = self.by_expiry.first().copied()
            && expires <= now
        {
            self.by_expiry.pop_first();
            self.used.remove(&key);
            self.remove(&key);
        }
    }

    /// Takes an open pair out of every list but that of expiry.
    fn remove(&mut self, key: &Key) -> Option<Open> {
        let entry = self.open.remove(key)?;
        leave(&mut self.by_identity, entry.identity, entry.number);
        if let Some(leaf) = entry.leaf {
            leave(&mut self.by_leaf, (entry.identity, leaf), entry.number);
        }
        Some(entry)
    }
}

fn oldest_beyond(line: Option<&Line>, most: usize) -> Option<Key> {
    line.filter(|line| line.len() > most).and_then(|line| line.first_key_value()).map(|(_, key)| *key)
}

fn leave<K: std::hash::Hash + Eq>(lines: &mut HashMap<K, Line>, owner: K, number: u64) {
    if let Entry::Occupied(mut line) = lines.entry(owner) {
        line.get_mut().remove(&number);
        if line.get().is_empty() {
            line.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::OsRng;

    use super::*;
    use crate::secret::SecretScalar;

    fn identity() -> PublicKey {
        SecretScalar::random(&mut OsRng).public_key()
    }

    #[test]
    fn a_pair_is_taken_once() {
        let mut book = NonceBook::new();
        let leaf = LeafId::derive("test", &[b"a"]);
        let commitment = book.issue(&identity(), None, 0, &mut OsRng).unwrap();
        let (hiding, binding) = (commitment.hiding.serialize(), commitment.binding.serialize());
        assert!(!book.was_used(&hiding, &binding));
        assert!(book.take(&commitment, &leaf, 1).is_ok());
        assert_eq!(book.take(&commitment, &leaf, 1).err(), Some(NonceError::Used));
        assert!(book.was_used(&hiding, &binding) && !book.was_used(&binding, &hiding));
        assert!(book.is_empty());
    }

    #[test]
    fn a_bound_pair_serves_its_leaf_only() {
        let mut book = NonceBook::new();
        let (a, b) = (LeafId::derive("test", &[b"a"]), LeafId::derive("test", &[b"b"]));
        let commitment = book.issue(&identity(), Some(a), 0, &mut OsRng).unwrap();
        assert_eq!(book.take(&commitment, &b, 1).err(), Some(NonceError::OtherLeaf));
        assert!(book.take(&commitment, &a, 1).is_ok());
    }

    #[test]
    fn pairs_expire() {
        let mut book = NonceBook::new();
        let leaf = LeafId::derive("test", &[b"a"]);
        let commitment = book.issue(&identity(), None, 5, &mut OsRng).unwrap();
        assert_eq!(book.take(&commitment, &leaf, 5 + LIFETIME_SECONDS).err(), Some(NonceError::Unknown));
        assert!(book.is_empty());
    }

    #[test]
    fn an_identity_evicts_its_own_oldest_only() {
        let mut book = NonceBook::new();
        let leaf = LeafId::derive("test", &[b"a"]);
        let other = book.issue(&identity(), None, 0, &mut OsRng).unwrap();
        let greedy = identity();
        let first = book.issue(&greedy, None, 0, &mut OsRng).unwrap();
        for _ in 0..PER_IDENTITY {
            book.issue(&greedy, None, 0, &mut OsRng).unwrap();
        }
        assert_eq!(book.take(&first, &leaf, 1).err(), Some(NonceError::Unknown));
        assert!(book.take(&other, &leaf, 1).is_ok());
        // What was evicted takes no room any more.
        assert_eq!(book.by_expiry.len(), PER_IDENTITY + 1);
    }

    #[test]
    fn one_leaf_does_not_starve_another() {
        let mut book = NonceBook::new();
        let (a, b) = (LeafId::derive("test", &[b"a"]), LeafId::derive("test", &[b"b"]));
        let owner = identity();
        let of_b = book.issue(&owner, Some(b), 0, &mut OsRng).unwrap();
        let first = book.issue(&owner, Some(a), 0, &mut OsRng).unwrap();
        for _ in 0..PER_LEAF {
            book.issue(&owner, Some(a), 0, &mut OsRng).unwrap();
        }
        assert_eq!(book.take(&first, &a, 1).err(), Some(NonceError::Unknown));
        assert!(book.take(&of_b, &b, 1).is_ok());
        assert_eq!(book.len(), PER_LEAF);
    }
}
