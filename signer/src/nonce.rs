//! The nonce book (rule S3): pairs live in memory only, are found by their commitments, and leave the book
//! before a share is computed. A restart voids all of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bitcoin::secp256k1::PublicKey;
use rand_core::{CryptoRng, RngCore};
use spark_rules::{frost::Commitment, ids::LeafId};

use crate::frost::NoncePair;

/// Seconds that an unused pair lives (D18).
pub const LIFETIME_SECONDS: u64 = 600;
/// Most open pairs of one session identity (D19). Beyond it, its own oldest goes.
pub const PER_IDENTITY: usize = 4096;
/// Most open pairs in the book; beyond it nobody gets more, and nobody's are evicted.
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

struct Entry {
    pair: NoncePair,
    leaf: Option<LeafId>,
    identity: [u8; 33],
    expires: u64,
}

/// Open pairs.
#[derive(Default)]
pub struct NonceBook {
    open: HashMap<[u8; 66], Entry>,
    by_identity: HashMap<[u8; 33], VecDeque<[u8; 66]>>,
    by_expiry: BTreeMap<u64, Vec<[u8; 66]>>,
    /// Until they would have expired: to tell a replay from a restart.
    used: HashSet<[u8; 66]>,
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
        if self.open.len() >= CAPACITY {
            return Err(NonceError::Full);
        }
        let pair = NoncePair::generate(rng, None);
        let commitment = *pair.commitment();
        let key = commitment.to_bytes();
        let identity = identity.serialize();
        let expires = now.saturating_add(LIFETIME_SECONDS);
        let mine = self.by_identity.entry(identity).or_default();
        mine.push_back(key);
        let evicted = if mine.len() > PER_IDENTITY { mine.pop_front() } else { None };
        if let Some(evicted) = evicted {
            self.open.remove(&evicted);
        }
        self.by_expiry.entry(expires).or_default().push(key);
        self.open.insert(key, Entry { pair, leaf, identity, expires });
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
        if self.used.contains(&key) {
            return Err(NonceError::Used);
        }
        let bound = self.open.get(&key).ok_or(NonceError::Unknown)?.leaf;
        if bound.is_some_and(|bound| bound != *leaf) {
            return Err(NonceError::OtherLeaf);
        }
        let entry = self.open.remove(&key).ok_or(NonceError::Unknown)?;
        self.used.insert(key);
        if let Some(mine) = self.by_identity.get_mut(&entry.identity) {
            mine.retain(|other| *other != key);
            if mine.is_empty() {
                self.by_identity.remove(&entry.identity);
            }
        }
        Ok(entry.pair)
    }

    /// Whether a pair is open for the leaf, without taking it.
    pub fn has(&self, commitment: &Commitment, leaf: &LeafId, now: u64) -> bool {
        self.open
            .get(&commitment.to_bytes())
            .is_some_and(|e| e.expires > now && e.leaf.is_none_or(|bound| bound == *leaf))
    }

    fn expire(&mut self, now: u64) {
        let live = self.by_expiry.split_off(&now.saturating_add(1));
        for key in std::mem::replace(&mut self.by_expiry, live).into_values().flatten() {
            self.used.remove(&key);
            if let Some(entry) = self.open.remove(&key)
                && let Some(mine) = self.by_identity.get_mut(&entry.identity)
            {
                mine.retain(|other| *other != key);
                if mine.is_empty() {
                    self.by_identity.remove(&entry.identity);
                }
            }
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
        assert!(book.take(&commitment, &leaf, 1).is_ok());
        assert_eq!(book.take(&commitment, &leaf, 1).err(), Some(NonceError::Used));
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
    }
}
