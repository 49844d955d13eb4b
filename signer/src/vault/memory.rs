//! A token and a store in memory whose states can be copied and put back: what an attacker does with
//! disks and devices, without the disks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::secp256k1::{Keypair, Message, PublicKey, SECP256K1, SecretKey, ecdh, ecdsa};
use ed25519_dalek::Signer as _;
use hmac::{Hmac, Mac as _};
use p256::ecdsa::signature::RandomizedSigner as _;
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};
use spark_rules::federation_key::{FederationKey, low_s};
use zeroize::Zeroizing;

use super::store::{Extent, SealedStore, StoreCommit, StoreError};
use super::token::{RootId, RootToken, Token, TokenError};

/// Which call of the token fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Create,
    Derive,
    Destroy,
    Sync,
    Empty,
    /// All of them.
    Gone,
}

pub(crate) type Roots = BTreeMap<RootId, [u8; 32]>;

#[derive(Clone)]
pub(crate) struct MemoryToken {
    roots: Arc<Mutex<Roots>>,
    fault: Arc<Mutex<Option<Fault>>>,
    identity: Keypair,
    federation: Federation,
}

/// A federation key of either kind.
#[derive(Clone)]
enum Federation {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::ecdsa::SigningKey),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}

impl MemoryToken {
    pub(crate) fn new(seed: u8) -> Self {
        let secret = SecretKey::from_slice(&[seed.max(1); 32]).expect("in range");
        Self {
            roots: Arc::default(),
            fault: Arc::default(),
            identity: Keypair::from_secret_key(SECP256K1, &secret),
            federation: Federation::Ed25519(ed25519_dalek::SigningKey::from_bytes(&[seed; 32])),
        }
    }

    /// A second device of the same operator: the identity key imported, its own federation key and no roots.
    pub(crate) fn spare(seed: u8) -> Self {
        let federation = ed25519_dalek::SigningKey::from_bytes(&[seed | 0x80; 32]);
        Self { federation: Federation::Ed25519(federation), ..Self::new(seed) }
    }

    /// An HSM without EdDSA, whose signatures over one message differ.
    pub(crate) fn p256(seed: u8) -> Self {
        let federation = p256::ecdsa::SigningKey::from_slice(&[seed.max(1); 32]).expect("in range");
        Self { federation: Federation::P256(federation), ..Self::new(seed) }
    }

    pub(crate) fn snapshot(&self) -> Roots {
        lock(&self.roots).clone()
    }

    pub(crate) fn restore(&self, roots: Roots) {
        *lock(&self.roots) = roots;
    }

    pub(crate) fn fail(&self, fault: Option<Fault>) {
        *lock(&self.fault) = fault;
    }

    /// The same device as it is now, in somebody else's hands: it fails no more, and changes nothing here.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self { roots: Arc::default(), fault: Arc::default(), ..self.clone() };
        copy.restore(self.snapshot());
        copy
    }

    /// Whether it answers nobody.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.fault).is_some()
    }

    fn check(&self, fault: Fault) -> Result<(), TokenError> {
        match *lock(&self.fault) {
            Some(now) if now == fault || now == Fault::Gone => {
                Err(TokenError::Unavailable(format!("{fault:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl RootToken for MemoryToken {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.check(Fault::Create)?;
        let key = rand::random();
        match lock(&self.roots).insert(*root, key) {
            None => Ok(()),
            Some(_) => Err(TokenError::RootExists(*root)),
        }
    }

    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.check(Fault::Empty).map_err(|_| TokenError::NoObjects)?;
        Ok(lock(&self.roots).keys().copied().collect())
    }

    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.check(Fault::Derive)?;
        let roots = lock(&self.roots);
        let key = roots.get(root).ok_or(TokenError::RootMissing(*root))?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
        mac.update(context);
        Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
    }

    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.check(Fault::Destroy).map_err(|_| TokenError::NotDestroyed(*root))?;
        lock(&self.roots).remove(root).map(|_| ()).ok_or(TokenError::RootMissing(*root))
    }

    fn sync(&self) -> Result<(), TokenError> {
        self.check(Fault::Sync)
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        self.check(Fault::Empty)?;
        Ok(Sha256::digest(self.federation_public_key()).into())
    }
}

impl Token for MemoryToken {
    fn identity_public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        Ok(SECP256K1.sign_ecdsa(&Message::from_digest(*digest), &self.identity.secret_key()))
    }

    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        let shared = Zeroizing::new(ecdh::shared_secret_point(point, &self.identity.secret_key()));
        let mut x = Zeroizing::new([0u8; 32]);
        x.copy_from_slice(&shared[..32]);
        Ok(x)
    }

    fn federation_public_key(&self) -> FederationKey {
        let key = match &self.federation {
            Federation::Ed25519(key) => key.verifying_key().to_bytes().to_vec(),
            Federation::P256(key) => key.verifying_key().to_encoded_point(true).as_bytes().to_vec(),
        };
        FederationKey::from_bytes(&key).expect("a key")
    }

    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        match &self.federation {
            Federation::Ed25519(key) => Ok(key.sign(message).to_bytes()),
            Federation::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_with_rng(&mut OsRng, message);
                low_s(&signature.to_bytes()).ok_or(TokenError::WrongAnswer("signature"))
            }
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) header: Option<Vec<u8>>,
    /// By first slot.
    pub(crate) pages: BTreeMap<u64, (u64, Vec<u8>)>,
    pub(crate) records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The write of so many pages succeeds, that of the next one stops in its middle; nothing is made durable.
    pub(crate) torn_after: Option<usize>,
}

impl Disk {
    fn write(&mut self, at: Extent, content: &[u8]) {
        let overlaps = |first: u64, slots: u64| first < at.end() && at.first() < first + slots;
        self.pages.retain(|first, (slots, _)| !overlaps(*first, *slots));
        self.pages.insert(at.first(), (at.slots(), content.to_vec()));
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStore(Arc<Mutex<Disk>>, Arc<AtomicUsize>);

impl MemoryStore {
    pub(crate) fn snapshot(&self) -> Disk {
        lock(&self.0).clone()
    }

    /// What its transactions made: header and records.
    pub(crate) fn committed(&self) -> Disk {
        Disk { pages: BTreeMap::new(), ..self.snapshot() }
    }

    pub(crate) fn restore(&self, disk: Disk) {
        *lock(&self.0) = disk;
    }

    /// How many records were read since the last question.
    pub(crate) fn reads(&self) -> usize {
        self.1.swap(0, Ordering::Relaxed)
    }

    /// What a disk does that is full, or whose computer loses power: see [`Disk::torn_after`].
    pub(crate) fn tear(&self, after: Option<usize>) {
        lock(&self.0).torn_after = after;
    }
}

impl SealedStore for MemoryStore {
    fn header(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.0).header.clone())
    }

    fn page(&self, at: Extent) -> Result<Option<Vec<u8>>, StoreError> {
        let found = lock(&self.0).pages.get(&at.first()).cloned();
        Ok(found.filter(|(slots, _)| *slots == at.slots()).map(|(_, page)| page))
    }

    fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(lock(&self.0).records.get(key).cloned())
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let disk = lock(&self.0);
        for (key, value) in disk.records.range(prefix.to_vec()..) {
            if !key.starts_with(prefix) {
                break;
            }
            if after.is_some_and(|after| key.as_slice() <= after) {
                continue;
            }
            self.1.fetch_add(1, Ordering::Relaxed);
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn write_pages(&self, pages: &[(Extent, &[u8])]) -> Result<(), StoreError> {
        let mut disk = lock(&self.0);
        for (at, page) in pages {
            assert!(page.len() + Extent::LENGTH_BYTES <= at.bytes());
            match &mut disk.torn_after {
                Some(0) => {
                    disk.write(*at, page.get(..page.len() / 2).unwrap_or_default());
                    return Err(StoreError::Failed("no space left on device".into()));
                }
                Some(more) => *more -= 1,
                None => {}
            }
            disk.write(*at, page);
        }
        Ok(())
    }

    fn sync_pages(&self) -> Result<(), StoreError> {
        match lock(&self.0).torn_after {
            Some(_) => Err(StoreError::Failed("sync failed".into())),
            None => Ok(()),
        }
    }

    fn apply(&self, commit: &StoreCommit) -> Result<(), StoreError> {
        let mut disk = lock(&self.0);
        disk.header = Some(commit.header.clone());
        for (key, value) in &commit.records {
            match value {
                Some(value) => disk.records.insert(key.clone(), value.clone()),
                None => disk.records.remove(key),
            };
        }
        Ok(())
    }
}
