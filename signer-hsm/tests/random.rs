//! A random life on real tokens: batches as they come, killed wherever it happens, again and again. What was committed is
//! there, what was not is not, and files of before open nowhere once something in them was deleted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use spark_rules::ids::Incarnation;
use spark_signer::vault::{DeviceId, Devices, OpenError, SecretId, SecretKind, Step, Vault};
use spark_signer_hsm::{
    store::{RedbStore, pages_path},
    token::{
        DeviceConfig, Facts, IdentitySource, PinSource, Pkcs11Token, Profile, RootDevice, Security, TokenRef,
        generate_keys, prepare_device,
    },
};
use spark_softhsm::{
    TokenDir, isolated,
    kryoptic::{self, KryopticDir},
    passed, run_test,
};
use zeroize::Zeroizing;

const SEED: &str = "RANDOM_SEED";
const KRYOPTIC: &str = "RANDOM_KRYOPTIC";
const SIGABRT: i32 = 6;
/// Kills, on each kind of token.
const LIVES: u64 = 14;
const NAMES: u8 = 10;

/// All that a vault holds: secrets and records by number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    secrets: BTreeMap<u8, Vec<u8>>,
    records: BTreeMap<u8, Vec<u8>>,
}

/// What the test knows, beside the vault.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Model {
    state: State,
    /// After the batch that was being committed.
    pending: Option<State>,
    /// Epoch of the copy, if there is one.
    copied: Option<u64>,
}

fn beside(dir: &TokenDir, name: &str) -> PathBuf {
    dir.conf_path().with_file_name(name)
}

fn id(n: u8) -> SecretId {
    SecretId::new([n; 16], SecretKind::Keyshare, 1)
}

fn record(n: u8) -> Vec<u8> {
    vec![b'r', n]
}

fn second() -> DeviceConfig {
    DeviceConfig {
        id: 0,
        module: kryoptic::module_path().unwrap(),
        profile: Profile::KRYOPTIC,
        roots: TokenRef { label: "second".into(), serial: None, pin: PinSource::Inline(common::PIN.into()) },
        facts: Facts::default(),
        root_mechanism: None,
        retire: false,
    }
}

fn devices(token: Pkcs11Token, on_kryoptic: bool) -> Devices {
    let devices = Devices::from(Arc::new(token));
    if !on_kryoptic {
        return devices;
    }
    let second = RootDevice::load(&second(), Security::Development).unwrap();
    devices.with(DeviceId(0), Arc::new(second))
}

fn open(store: &Path, on_kryoptic: bool) -> Result<Vault, OpenError> {
    let token = Pkcs11Token::open(&common::existing()).unwrap();
    Vault::open(devices(token, on_kryoptic), Box::new(RedbStore::open(store).unwrap()))
}

fn state(vault: &Vault) -> State {
    let secret = |n| Some((n, vault.get_secret(&id(n)).unwrap()?.to_vec()));
    let written = |n| Some((n, vault.record(&record(n)).unwrap()?));
    State {
        secrets: (0..NAMES).filter_map(secret).collect(),
        records: (0..NAMES).filter_map(written).collect(),
    }
}

/// One batch: some of everything, at least one change.
fn batch(random: &mut StdRng, vault: &mut Vault, model: &mut Model, file: &Path) {
    let mut next = model.state.clone();
    let mut txn = vault.begin();
    for _ in 0..random.gen_range(1..4) {
        let (n, value) = (random.gen_range(0..NAMES), vec![random.r#gen(); random.gen_range(1..200)]);
        match random.gen_range(0..4) {
            0 | 1 => {
                txn.put_secret(id(n), Zeroizing::new(value.clone())).unwrap();
                next.secrets.insert(n, value);
            }
            2 => {
                let there = txn.delete_secret(&id(n)).unwrap();
                assert_eq!(there, next.secrets.remove(&n).is_some());
            }
            _ => {
                txn.put_record(&record(n), value.clone());
                next.records.insert(n, value);
            }
        }
    }
    model.pending = Some(next.clone());
    fs::write(file, serde_json::to_vec(model).unwrap()).unwrap();
    txn.commit().unwrap();
    (model.state, model.pending) = (next, None);
    fs::write(file, serde_json::to_vec(model).unwrap()).unwrap();
}

/// Not a test by itself: opens, checks what it finds, and lives until it dies.
#[test]
fn child_lives_a_random_life() {
    let Some(seed) = std::env::var(SEED).ok().map(|seed| seed.parse().unwrap()) else { return };
    let on_kryoptic = std::env::var(KRYOPTIC).is_ok();
    isolated("child_lives_a_random_life", |dir| {
        let mut random = StdRng::seed_from_u64(seed);
        let (store, copy, file) = (beside(dir, "vault.redb"), beside(dir, "copy.redb"), beside(dir, "model"));
        let mut model: Model = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mut vault = open(&store, on_kryoptic).unwrap();
        vault.confirm_witnessed().unwrap();
        let found = state(&vault);
        assert!(found == model.state || Some(&found) == model.pending.as_ref(), "{found:?}\n{model:?}");
        assert_eq!(vault.roots_on(DeviceId(0)).unwrap(), [vault.root()]);
        if model.copied.is_some_and(|epoch| epoch < vault.epoch()) {
            assert!(matches!(open(&copy, on_kryoptic), Err(OpenError::RootMissing { .. })));
        }
        (model.state, model.pending, model.copied) = (found, None, Some(vault.epoch()));
        // As a thief or a snapshot would.
        fs::copy(&store, &copy).unwrap();
        fs::copy(pages_path(&store), pages_path(&copy)).unwrap();

        let last = random.gen_range(0..4 * Step::ALL.len());
        let passed = AtomicUsize::new(0);
        vault.set_fail_point(Box::new(move |_| {
            if passed.fetch_add(1, Ordering::SeqCst) == last {
                std::process::abort();
            }
            true
        }));
        for _ in 0..6 {
            if random.r#gen() {
                vault.prepare_spare().unwrap();
            }
            batch(&mut random, &mut vault, &mut model, &file);
        }
    })
    .unwrap();
}

fn lives(test: &str, on_kryoptic: bool) {
    kryoptic::isolated(test, |dir, other| {
        let token = generate(dir, other, on_kryoptic);
        let store = RedbStore::create(&beside(dir, "vault.redb")).unwrap();
        let incarnation = Incarnation::from_bytes([8; 16]);
        drop(Vault::create(devices(token, on_kryoptic), Box::new(store), incarnation).unwrap());
        fs::write(beside(dir, "model"), serde_json::to_vec(&Model::default()).unwrap()).unwrap();
        let mut killed = 0;
        // Said, so that a failure can be had again.
        let first: u64 = rand::random::<u32>().into();
        println!("seeds from {first}");
        for seed in first..first + LIVES {
            let text = seed.to_string();
            let mut environment = vec![(SEED, text.as_str())];
            environment.extend(on_kryoptic.then_some((KRYOPTIC, "1")));
            let life = run_test("child_lives_a_random_life", dir, &environment).unwrap();
            match life.status.signal() {
                Some(SIGABRT) => killed += 1,
                _ => passed(&life).unwrap(),
            }
        }
        assert!(killed > 0, "nobody was killed");
    })
    .unwrap();
}

fn generate(dir: &TokenDir, other: &KryopticDir, on_kryoptic: bool) -> Pkcs11Token {
    if on_kryoptic {
        other.init_token("second", common::SO_PIN, common::PIN).unwrap();
        prepare_device(&second(), Security::Development).unwrap();
    }
    generate_keys(&common::config(dir), &IdentitySource::Generate).unwrap()
}

#[test]
fn random_lives_on_softhsm_lose_and_keep_nothing() {
    lives("random_lives_on_softhsm_lose_and_keep_nothing", false);
}

#[test]
fn random_lives_on_kryoptic_lose_and_keep_nothing() {
    lives("random_lives_on_kryoptic_lose_and_keep_nothing", true);
}
