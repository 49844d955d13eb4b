//! Two devices of different make under one vault: any one unlocks, both must forget.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::killer::{Death, Killer};
use spark_rules::ids::Incarnation;
use spark_signer::vault::{
    CommitError, Destruction, DeviceId, DeviceState, Devices, OpenError, RootToken as _, SecretId,
    SecretKind, Vault,
};
use spark_signer_hsm::store::{RedbStore, pages_path};
use spark_signer_hsm::token::{
    DeviceConfig, Facts, IdentitySource, PinSource, Pkcs11Token, Profile, RootDevice, Security, TokenRef,
    generate_keys, prepare_device,
};
use spark_softhsm::kryoptic::{self, KryopticDir};
use spark_softhsm::{TokenDir, passed, run_test};
use zeroize::Zeroizing;

const INCARNATION: Incarnation = Incarnation::from_bytes([6; 16]);
const KRYOPTIC: DeviceId = DeviceId(1);
const SIGABRT: i32 = 6;
const CRASH: &str = "DEVICES_CRASH_AT";
const EXPECT: &str = "DEVICES_EXPECT";
const ALONE: &str = "DEVICES_ALONE";
const SPARE: &str = "DEVICES_SPARE";
const COPY: &str = "DEVICES_COPY";

fn second() -> DeviceConfig {
    DeviceConfig {
        id: KRYOPTIC.0,
        module: kryoptic::module_path().unwrap(),
        profile: Profile::KRYOPTIC,
        roots: TokenRef { label: "second".into(), serial: None, pin: PinSource::Inline(common::PIN.into()) },
        facts: Facts::default(),
        root_mechanism: None,
        retire: false,
    }
}

fn store_path(dir: &TokenDir) -> PathBuf {
    dir.conf_path().with_file_name("vault.redb")
}

fn id(n: u8) -> SecretId {
    SecretId::new([n; 16], SecretKind::Keyshare, 1)
}

fn device() -> Arc<RootDevice> {
    Arc::new(RootDevice::load(&second(), Security::Development).unwrap())
}

/// Both devices, or the second one instead of the first.
fn devices(token: Pkcs11Token, second: Arc<RootDevice>, alone: bool) -> Devices {
    let devices = Devices::from(Arc::new(token));
    if alone { devices.with(DeviceId(0), second) } else { devices.with(KRYOPTIC, second) }
}

fn create(dir: &TokenDir, other: &KryopticDir, alone: bool) -> Vault {
    other.init_token("second", common::SO_PIN, common::PIN).unwrap();
    prepare_device(&second(), Security::Development).unwrap();
    assert!(prepare_device(&second(), Security::Development).is_err(), "once only");
    let token = generate_keys(&common::config(dir), &IdentitySource::Generate).unwrap();
    let store = RedbStore::create(&store_path(dir)).unwrap();
    let mut vault = Vault::create(devices(token, device(), alone), Box::new(store), INCARNATION).unwrap();
    put(&mut vault, 1, b"old");
    put(&mut vault, 2, b"keep");
    vault
}

fn open(dir: &TokenDir, alone: bool) -> Result<Vault, OpenError> {
    open_at(&store_path(dir), alone)
}

fn open_at(store: &Path, alone: bool) -> Result<Vault, OpenError> {
    let token = Pkcs11Token::open(&common::existing()).unwrap();
    Vault::open(devices(token, device(), alone), Box::new(RedbStore::open(store).unwrap()))
}

fn put(vault: &mut Vault, n: u8, value: &[u8]) -> Destruction {
    let mut txn = vault.begin();
    txn.put_secret(id(n), Zeroizing::new(value.to_vec())).unwrap();
    txn.commit().unwrap().destruction
}

fn read(vault: &Vault, n: u8) -> Option<Vec<u8>> {
    vault.get_secret(&id(n)).unwrap().map(|value| value.to_vec())
}

fn states(vault: &Vault) -> Vec<DeviceState> {
    vault.devices().into_iter().map(|device| device.state).collect()
}

#[test]
fn a_device_goes_and_comes_back_while_the_vault_is_in_use() {
    kryoptic::isolated("a_device_goes_and_comes_back_while_the_vault_is_in_use", |dir, other| {
        let mut vault = create(dir, other, false);
        let second = device();
        assert_eq!(put(&mut vault, 1, b"one"), Destruction::Reported);
        assert_eq!(second.roots().unwrap(), [vault.root()]);

        // The first one, SoftHSM, goes.
        let aside = dir.tokens_path().with_extension("aside");
        std::fs::rename(dir.tokens_path(), &aside).unwrap();
        let before = vault.root();
        assert_eq!(put(&mut vault, 1, b"two"), Destruction::Pending);
        assert_eq!(states(&vault), [DeviceState::Away, DeviceState::Serving]);
        assert_eq!(read(&vault, 1).as_deref(), Some(b"two".as_slice()));
        assert!(!vault.heal(&[DeviceId(0)]).unwrap());

        std::fs::rename(&aside, dir.tokens_path()).unwrap();
        let first = Pkcs11Token::open(&common::existing());
        // The library must be started anew before it finds its token again.
        let first = match first {
            Ok(token) => token.device(),
            Err(_) => Arc::new(RootDevice::load(&first_device(), Security::Development).unwrap()),
        };
        first.revive().unwrap();
        assert_eq!(first.roots().unwrap(), [before], "it still has what the other one destroyed");
        assert!(vault.heal(&[DeviceId(0)]).unwrap());
        assert_eq!(first.roots().unwrap(), [vault.root()]);
        assert_eq!(put(&mut vault, 1, b"three"), Destruction::Reported);
        for roots in [first.roots().unwrap(), second.roots().unwrap()] {
            assert_eq!(roots, [vault.root()]);
        }
    })
    .unwrap();
}

fn first_device() -> DeviceConfig {
    common::existing().devices.remove(0)
}

/// Not a test by itself: the process that dies at the step named in the environment.
#[test]
fn child_dies_with_two_devices() {
    let Ok(at) = std::env::var(CRASH) else { return };
    let alone = std::env::var(ALONE).is_ok();
    spark_softhsm::isolated("child_dies_with_two_devices", |dir| {
        let mut vault = open(dir, alone).unwrap();
        vault.confirm_witnessed().unwrap();
        if std::env::var(SPARE).is_ok() {
            vault.prepare_spare().unwrap();
        }
        vault.set_fail_point(Killer::new(&at));
        put(&mut vault, 1, b"new");
    })
    .unwrap();
}

/// Not a test by itself: opens after the crash and finds the state named in the environment.
#[test]
fn child_recovers_with_two_devices() {
    let Ok(expected) = std::env::var(EXPECT) else { return };
    let alone = std::env::var(ALONE).is_ok();
    spark_softhsm::isolated("child_recovers_with_two_devices", |dir| {
        let mut vault = open(dir, alone).unwrap();
        vault.confirm_witnessed().unwrap();
        assert!(states(&vault).iter().all(|state| *state == DeviceState::Serving));
        if expected == "new"
            && let Ok(copy) = std::env::var(COPY)
        {
            // What was replaced is in the files of before, and no device opens them.
            assert!(matches!(open_at(copy.as_ref(), alone), Err(OpenError::RootMissing { .. })));
        }
        assert_eq!(read(&vault, 1).as_deref(), Some(expected.as_bytes()));
        assert_eq!(read(&vault, 2).as_deref(), Some(b"keep".as_slice()));
        assert_eq!(device().roots().unwrap(), [vault.root()]);
        if !alone {
            assert_eq!(vault.roots_on(DeviceId(0)).unwrap(), [vault.root()]);
        }
        assert_eq!(put(&mut vault, 1, b"old"), Destruction::Reported);
        vault.probe().unwrap();
    })
    .unwrap();
}

fn kill_everywhere(test: &str, alone: bool) {
    kryoptic::isolated(test, |dir, other| {
        drop(create(dir, other, alone));
        let path = store_path(dir);
        let copy = path.with_extension("copy");
        let deaths = Death::all(if alone { 1 } else { 2 });
        for (death, spare) in deaths.into_iter().flat_map(|death| [(death, false), (death, true)]) {
            // With two devices the spare root changes nothing that these steps do not show.
            if spare && !alone {
                continue;
            }
            let at = death.text();
            let mut environment = vec![(CRASH, at.as_str())];
            environment.extend(alone.then_some((ALONE, "1")));
            environment.extend(spare.then_some((SPARE, "1")));
            copy_store(&path, &copy);
            let crash = run_test("child_dies_with_two_devices", dir, &environment).unwrap();
            assert_eq!(crash.status.signal(), Some(SIGABRT), "{at}");
            let expected = if death.is_late() { "new" } else { "old" };
            let mut environment = vec![(EXPECT, expected), (COPY, copy.to_str().unwrap())];
            environment.extend(alone.then_some((ALONE, "1")));
            let check = run_test("child_recovers_with_two_devices", dir, &environment).unwrap();
            passed(&check).unwrap();
        }
    })
    .unwrap();
}

#[test]
fn a_kill_at_any_step_with_two_devices_loses_and_keeps_nothing() {
    kill_everywhere("a_kill_at_any_step_with_two_devices_loses_and_keeps_nothing", false);
}

#[test]
fn a_kill_at_any_step_on_kryoptic_loses_and_keeps_nothing() {
    kill_everywhere("a_kill_at_any_step_on_kryoptic_loses_and_keeps_nothing", true);
}

/// Not a test by itself: kryoptic's token, its store, or both are those of before.
#[test]
fn child_sees_a_rolled_back_device() {
    let Ok(expected) = std::env::var(EXPECT) else { return };
    spark_softhsm::isolated("child_sees_a_rolled_back_device", |dir| match open(dir, true) {
        Err(OpenError::RootMissing { .. }) => assert_eq!(expected, "refused"),
        Ok(mut vault) => {
            assert_eq!(expected, "opens");
            assert_eq!(read(&vault, 1).as_deref(), Some(b"old".as_slice()));
            let mut txn = vault.begin();
            txn.put_secret(id(1), Zeroizing::new(b"new".to_vec())).unwrap();
            assert!(matches!(txn.commit(), Err(CommitError::Unwitnessed)));
        }
        Err(other) => panic!("{other}"),
    })
    .unwrap();
}

#[test]
fn old_copies_do_not_open_on_kryoptic() {
    kryoptic::isolated("old_copies_do_not_open_on_kryoptic", |dir, other| {
        let mut vault = create(dir, other, true);
        let path = store_path(dir);
        let copy = path.with_extension("copy");
        copy_store(&path, &copy);
        let now = other.databases_path();
        let then = now.with_extension("copy");
        copy_tree(now, &then);
        assert_eq!(put(&mut vault, 1, b"new"), Destruction::Reported);
        drop(vault);
        assert!(matches!(open_at(&copy, true), Err(OpenError::RootMissing { .. })));

        // The token put back, then both.
        let newer = now.with_extension("newer");
        std::fs::rename(now, &newer).unwrap();
        std::fs::rename(&then, now).unwrap();
        let sees = |expected| {
            let child = run_test("child_sees_a_rolled_back_device", dir, &[(EXPECT, expected)]).unwrap();
            passed(&child).unwrap();
        };
        sees("refused");
        copy_store(&copy, &path);
        sees("opens");
        std::fs::remove_dir_all(&newer).unwrap();
    })
    .unwrap();
}

fn copy_store(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
    std::fs::copy(pages_path(from), pages_path(to)).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}
