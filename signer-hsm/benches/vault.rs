//! `./ops/bench vault`: what a deletion costs, on a real token and a real disk.
//!
//! Shares lie at random places; a batch replaces some of them by their next version, as an apply does: the old one is
//! destroyed. The root is rotated with every batch, the store commits in two phases. A deletion counts when the process
//! that confirms has seen that its root is gone. At the end a fresh process opens the store and looks for a sample of
//! what must be there and of what must not, and tries a copy of the store from before.
//!
//! The token's directory is on a memory file system, the store on the disk that holds the temporary directory
//! (`TMPDIR`). Programs of two roles are this one, started again: `run`, `check`.
//!
//! `cpu_us_*` is processor time per deletion, of all threads: on a machine that does other things as well it says more
//! than the rate. The parts of a deletion's time on the clock: `lookup_us_*` (finding and opening its page), `pages_us_*`
//! (laying pages and nodes out anew, sealing, writing and syncing them); at the same time `token_us_*` (the next root made
//! and used); then `store_us_*` (the transaction with header and records), `destroy_us_*`
//! (of the former root) and `confirm_us_*` (the other process's look).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed benchmark must stop")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bitcoin::secp256k1::{PublicKey, ecdsa};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use spark_rules::{federation_key::FederationKey, ids::Incarnation};
use spark_signer::vault::{
    DeviceId, OpenError, RootId, RootToken, SecretId, SecretKind, Step, Token, TokenError, Vault,
};
use spark_signer_hsm::{
    confirmer::Confirmer,
    store::{RedbStore, pages_path},
    token::{IdentitySource, Pkcs11Token, generate_keys},
};
use spark_softhsm::TokenDir;
use zeroize::Zeroizing;

const SHARE_BYTES: usize = 32;
const SAMPLE: usize = 1_000;
const BATCHES: [usize; 4] = [1, 16, 256, 4096];

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    match arguments.get(1).map(String::as_str) {
        Some("run") => {
            run(Path::new(&arguments[2]), arguments[3].parse().unwrap(), arguments[4].parse().unwrap())
        }
        Some("check") => check(Path::new(&arguments[2]), &arguments[3]),
        small => {
            // One number of shares instead of the usual two, for a quick look.
            let sizes: Vec<(u64, &str)> = match small {
                Some(shares) => vec![(shares.parse().unwrap(), "")],
                None => vec![(1_000_000, ""), (10_000_000, "_10m")],
            };
            for (shares, suffix) in sizes {
                measure(shares, suffix);
            }
        }
    }
}

/// One size, in processes of its own.
fn measure(shares: u64, suffix: &str) {
    let work = tempfile::tempdir().unwrap();
    let memory = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { work.path() };
    let token_home = tempfile::tempdir_in(memory).unwrap();
    let token = TokenDir::create(token_home.path()).unwrap();
    let (name, value) = token.env();
    let program = std::env::current_exe().unwrap();
    let role = |arguments: &[&str]| {
        let status = Command::new(&program).args(arguments).env(name, value).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let dir = work.path().display().to_string();
    common::config(&token);
    std::fs::write(config_path(work.path()), config_text()).unwrap();
    let seconds = if shares >= 1_000_000 { "6" } else { "1" };
    role(&["run", &dir, &shares.to_string(), seconds]);
    role(&["check", &dir, suffix]);
    let results = std::fs::read_to_string(work.path().join("results")).unwrap();
    for line in results.lines() {
        let (key, value) = line.split_once('=').unwrap();
        println!("{key}{suffix}={value}");
    }
}

fn config_path(dir: &Path) -> PathBuf {
    dir.join("signer.toml")
}

fn config_text() -> String {
    let module = spark_softhsm::module_path().unwrap().display().to_string();
    format!(
        "profile = \"development\"\noperator = 0\nstore = \"none\"\n\
         [token]\nmodule = {module:?}\nprofile = \"softhsm\"\n\
         roots = {{ label = \"roots\", pin = \"prompt\" }}\nkeys = {{ label = \"keys\", pin = \"prompt\" }}\n"
    )
}

/// A token whose calls are counted.
struct Counted {
    token: Pkcs11Token,
    calls: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self) -> &Pkcs11Token {
        self.calls.fetch_add(1, Ordering::Relaxed);
        &self.token
    }
}

impl RootToken for Counted {
    fn create_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.count().create_root(root)
    }
    fn roots(&self) -> Result<Vec<RootId>, TokenError> {
        self.count().roots()
    }
    fn derive(&self, root: &RootId, context: &[u8]) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.count().derive(root, context)
    }
    fn destroy_root(&self, root: &RootId) -> Result<(), TokenError> {
        self.count().destroy_root(root)
    }
    fn sync(&self) -> Result<(), TokenError> {
        self.token.sync()
    }

    fn fingerprint(&self) -> Result<[u8; 32], TokenError> {
        self.token.fingerprint()
    }
}

impl Token for Counted {
    fn identity_public_key(&self) -> PublicKey {
        self.token.identity_public_key()
    }
    fn sign_identity(&self, digest: &[u8; 32]) -> Result<ecdsa::Signature, TokenError> {
        self.count().sign_identity(digest)
    }
    fn identity_ecdh_x(&self, point: &PublicKey) -> Result<Zeroizing<[u8; 32]>, TokenError> {
        self.count().identity_ecdh_x(point)
    }
    fn federation_public_key(&self) -> FederationKey {
        self.token.federation_public_key()
    }
    fn sign_federation(&self, message: &[u8]) -> Result<[u8; 64], TokenError> {
        self.count().sign_federation(message)
    }
}

/// The share of a key at a version: what a later process can compute again.
fn value(owner: [u8; 16], version: u64) -> Zeroizing<Vec<u8>> {
    let mut seed = [0u8; 32];
    seed[..16].copy_from_slice(&owner);
    seed[16..24].copy_from_slice(&version.to_be_bytes());
    let mut bytes = Zeroizing::new(vec![0u8; SHARE_BYTES]);
    StdRng::from_seed(seed).fill(bytes.as_mut_slice());
    bytes
}

fn owner(index: u64) -> [u8; 16] {
    StdRng::seed_from_u64(index).r#gen()
}

fn share(index: u64, version: u64) -> SecretId {
    SecretId::new(owner(index), SecretKind::Keyshare, version)
}

/// Fills the vault as growth does, in rounds over all names, so that pages are as full as splits leave them.
fn fill(vault: &mut Vault, shares: u64) {
    const ROUNDS: u64 = 4;
    const CHUNK: usize = 200_000;
    for round in 0..ROUNDS {
        let mut names: Vec<([u8; 16], u64)> =
            (round..shares).step_by(ROUNDS as usize).map(|index| (owner(index), index)).collect();
        names.sort_unstable();
        for chunk in names.chunks(CHUNK) {
            let mut txn = vault.begin();
            for (owner, _) in chunk {
                txn.put_secret(SecretId::new(*owner, SecretKind::Keyshare, 0), value(*owner, 0)).unwrap();
            }
            txn.commit().unwrap();
        }
    }
}

/// Where a commit's time goes, by its steps. Two lines are gone at the same time; the longer one is what the batch takes.
#[derive(Default)]
struct Parts {
    /// Of each line, when its last step was passed.
    last: [Option<Instant>; 2],
    pages: Duration,
    store: Duration,
    token: Duration,
    destroy: Duration,
}

impl Parts {
    fn reached(&mut self, step: Step) {
        let now = Instant::now();
        let line = usize::from(Step::DEVICES.contains(&step));
        if matches!(step, Step::Start | Step::Sealed) {
            self.last = [Some(now); 2];
        }
        let spent = self.last[line].replace(now).map_or(Duration::ZERO, |last| now - last);
        match step {
            Step::Start | Step::DevicesAsked | Step::PagesBegun | Step::Sealed => {}
            Step::RootCreated | Step::KeyDerived | Step::TokenSynced => self.token += spent,
            Step::PagesWritten => self.pages += spent,
            Step::StoreCommitted => self.store += spent,
            Step::RootDestroyed => self.destroy += spent,
        }
    }
}

/// Processor time of this process, in ticks of 10 ms.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn run(dir: &Path, shares: u64, seconds: u64) {
    let calls = Arc::new(AtomicU64::new(0));
    let token = generate_keys(&common::existing(), &IdentitySource::Generate).unwrap();
    let token = Arc::new(Counted { token, calls: Arc::clone(&calls) });
    let path = dir.join("vault.redb");
    let store = Box::new(RedbStore::create(&path).unwrap());
    let mut vault = Vault::create(token, store, Incarnation::from_bytes([5; 16])).unwrap();
    let start = Instant::now();
    fill(&mut vault, shares);
    eprintln!("{shares} shares in {:.1} s", start.elapsed().as_secs_f64());
    // A thief's copy, as large as it may be.
    std::fs::copy(&path, dir.join("old.redb")).unwrap();
    std::fs::copy(pages_path(&path), pages_path(&dir.join("old.redb"))).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_spark-signer"));
    let pin = Zeroizing::new(common::PIN.to_owned());
    let mut confirmer =
        runtime.block_on(Confirmer::start(program, &config_path(dir), &[(DeviceId(0), pin)])).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut versions: HashMap<u64, u64> = HashMap::new();
    let mut results = String::new();
    let mut line = |key: &str, value: f64| {
        results.push_str(&format!("{key}={value:.3}\n"));
        eprintln!("{key}={value:.3}");
    };
    let parts = Arc::new(Mutex::new(Parts::default()));
    let hook = Arc::clone(&parts);
    vault.set_fail_point(Box::new(move |step: Step| {
        hook.lock().unwrap().reached(step);
        true
    }));
    let mut one_by_one = 0.0;
    for size in BATCHES {
        *parts.lock().unwrap() = Parts::default();
        let (calls_before, processor_before) = (calls.load(Ordering::Relaxed), processor_time());
        let (mut batches, mut deleted) = (0u64, 0u64);
        let (mut elapsed, mut lookup, mut making_processor) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        while elapsed < Duration::from_secs(seconds) {
            // Making up shares is not the vault's work.
            let before = processor_time();
            let mut batch: HashMap<u64, (SecretId, SecretId, Zeroizing<Vec<u8>>)> =
                HashMap::with_capacity(size);
            while batch.len() < size {
                let index = rng.gen_range(0..shares);
                batch.entry(index).or_insert_with(|| {
                    let version = versions.entry(index).or_insert(0);
                    *version += 1;
                    let owner = owner(index);
                    let name = |version| SecretId::new(owner, SecretKind::Keyshare, version);
                    (name(*version - 1), name(*version), value(owner, *version))
                });
            }
            making_processor += processor_time() - before;
            let start = Instant::now();
            let mut txn = vault.begin();
            txn.open_ahead(batch.values().map(|(old, ..)| *old)).unwrap();
            for (old, new, value) in batch.into_values() {
                assert!(txn.delete_secret(&old).unwrap());
                txn.put_secret(new, value).unwrap();
            }
            lookup += start.elapsed();
            let committed = txn.commit().unwrap();
            assert!(committed.epoch_after > committed.epoch_before);
            // The next batch waits already, so the signer makes no root ahead.
            elapsed += start.elapsed();
            batches += 1;
            deleted += size as u64;
        }
        // Confirmed: another process sees none of the roots of before.
        let start = Instant::now();
        let (_, seen) = runtime.block_on(confirmer.roots(DeviceId(0))).unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|root| *root >= vault.root()), "{seen:?}");
        let confirm = start.elapsed();
        elapsed += confirm;
        let rate = deleted as f64 / elapsed.as_secs_f64();
        line(&format!("deletions_per_s_{size}"), rate);
        if size == 1 {
            one_by_one = rate;
        } else {
            line(&format!("times_one_by_one_{size}"), rate / one_by_one);
        }
        let processor = processor_time() - processor_before - making_processor;
        let parts = parts.lock().unwrap();
        for (name, time) in [
            ("cpu", processor),
            ("lookup", lookup),
            ("pages", parts.pages),
            ("token", parts.token),
            ("store", parts.store),
            ("destroy", parts.destroy),
            ("confirm", confirm),
        ] {
            line(&format!("{name}_us_{size}"), time.as_secs_f64() * 1e6 / deleted as f64);
        }
        if size == 256 {
            let spent = calls.load(Ordering::Relaxed) - calls_before;
            line("hsm_calls_per_batch", spent as f64 / batches as f64);
        }
    }
    let reads = 20_000;
    let names: Vec<SecretId> = (0..reads)
        .map(|_| {
            let index = rng.gen_range(0..shares);
            share(index, versions.get(&index).copied().unwrap_or(0))
        })
        .collect();
    let before = calls.load(Ordering::Relaxed);
    let start = Instant::now();
    for name in &names {
        assert_eq!(vault.get_secret(name).unwrap().unwrap().len(), SHARE_BYTES);
    }
    line("share_read_us", start.elapsed().as_secs_f64() * 1e6 / f64::from(reads));
    assert_eq!(calls.load(Ordering::Relaxed), before, "a read asked the token");
    line("hsm_objects", vault.roots_on(DeviceId(0)).unwrap().len() as f64);
    let bytes = [path.clone(), pages_path(&path)].map(|path| std::fs::metadata(path).unwrap().len());
    line("bytes_per_share", bytes.iter().sum::<u64>() as f64 / shares as f64);
    std::fs::write(dir.join("results"), results).unwrap();

    // What the fresh process will look for: live shares, and versions that are gone.
    let mut sample = String::new();
    let mut changed: Vec<(u64, u64)> = versions.into_iter().collect();
    changed.sort_unstable();
    for at in rand::seq::index::sample(&mut rng, changed.len(), SAMPLE.min(changed.len())) {
        let (index, version) = changed[at];
        sample.push_str(&format!("{index} {version}\n"));
    }
    std::fs::write(dir.join("sample"), sample).unwrap();
}

fn check(dir: &Path, suffix: &str) {
    let token = || Arc::new(Pkcs11Token::open(&common::existing()).unwrap());
    let open = |name: &str| Vault::open(token(), Box::new(RedbStore::open(&dir.join(name)).unwrap()));
    let start = Instant::now();
    let vault = open("vault.redb").unwrap();
    let opened = start.elapsed();
    let mut checked = 0;
    for line in std::fs::read_to_string(dir.join("sample")).unwrap().lines() {
        let (index, version) = line.split_once(' ').unwrap();
        let (index, version): (u64, u64) = (index.parse().unwrap(), version.parse().unwrap());
        let live = vault.get_secret(&share(index, version)).unwrap();
        assert_eq!(live.as_deref(), Some(&*value(owner(index), version)), "a live share is gone");
        for old in 0..version {
            assert!(!vault.has_secret(&share(index, old)).unwrap(), "a deleted share opens");
            checked += 1;
        }
    }
    assert!(checked > 0);
    // The copy from before holds all of them, and does not open.
    assert!(matches!(open("old.redb"), Err(OpenError::RootMissing { .. })));
    eprintln!("{checked} deleted versions do not open");
    let name = if suffix == "_10m" { "start_ms" } else { "start_ms_1m" };
    let memory = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = memory.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    eprintln!("opened in {} ms, peak memory {peak}", opened.as_millis());
    let mut results = std::fs::read_to_string(dir.join("results")).unwrap();
    results.push_str(&format!("{name}={}\n", opened.as_millis()));
    std::fs::write(dir.join("results"), results).unwrap();
}
