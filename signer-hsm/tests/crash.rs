//! The vault on a real token and a real disk, killed at every step of a commit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use common::killer::{Death, Killer};
use spark_rules::ids::Incarnation;
use spark_signer::vault::{
    CommitError, Destruction, DeviceId, MAX_SECRET_BYTES, OpenError, Position, SecretId, SecretKind,
    StoreError, Vault, VaultError,
};
use spark_signer_hsm::store::{RedbStore, pages_path};
use spark_signer_hsm::token::Pkcs11Token;
use spark_softhsm::{TokenDir, isolated, passed, run_test};
use zeroize::Zeroizing;

const INCARNATION: Incarnation = Incarnation::from_bytes([5; 16]);
const CRASH: &str = "CRASH_AT";
const SIGABRT: i32 = 6;
const EXPECT: &str = "EXPECT";
const COPY: &str = "COPY";
const SPARE: &str = "SPARE";
const LIMIT: &str = "LIMIT";
const SIGXFSZ: i32 = 25;

fn store_path(dir: &TokenDir) -> PathBuf {
    dir.conf_path().with_file_name("vault.redb")
}

fn id(n: u8) -> SecretId {
    SecretId::new([n; 16], SecretKind::Keyshare, 1)
}

fn open(dir: &TokenDir) -> Result<Vault, OpenError> {
    let token = Pkcs11Token::open(&common::existing()).unwrap();
    Vault::open(Arc::new(token), Box::new(RedbStore::open(&store_path(dir)).unwrap()))
}

fn read(vault: &Vault, n: u8) -> Option<Vec<u8>> {
    vault.get_secret(&id(n)).unwrap().map(|value| value.to_vec())
}

fn create(dir: &TokenDir) -> Vault {
    let token = common::token(dir);
    let store = RedbStore::create(&store_path(dir)).unwrap();
    let mut vault = Vault::create(Arc::new(token), Box::new(store), INCARNATION).unwrap();
    let mut txn = vault.begin();
    txn.put_secret(id(1), Zeroizing::new(b"old".to_vec())).unwrap();
    txn.put_secret(id(2), Zeroizing::new(b"keep".to_vec())).unwrap();
    txn.put_record(b"vote/1", b"yes".to_vec());
    txn.commit().unwrap();
    vault
}

/// Not a test by itself: the process that dies at the step named in the environment.
#[test]
fn child_dies_within_a_commit() {
    let Ok(at) = std::env::var(CRASH) else { return };
    isolated("child_dies_within_a_commit", |dir| {
        let mut vault = open(dir).unwrap();
        vault.confirm_witnessed().unwrap();
        if std::env::var(SPARE).is_ok() {
            vault.prepare_spare().unwrap();
        }
        vault.set_fail_point(Killer::new(&at));
        let mut txn = vault.begin();
        txn.put_secret(id(1), Zeroizing::new(b"new".to_vec())).unwrap();
        txn.put_record(b"vote/2", b"no".to_vec());
        txn.commit().unwrap();
    })
    .unwrap();
}

/// Not a test by itself: opens after the crash and finds the state named in the environment.
#[test]
fn child_recovers() {
    let Ok(expected) = std::env::var(EXPECT) else { return };
    isolated("child_recovers", |dir| {
        let mut vault = open(dir).unwrap();
        let before = vault.roots_on(DeviceId(0)).unwrap();
        assert_eq!(before.len(), 1 + vault.stray_roots().len());
        vault.confirm_witnessed().unwrap();
        assert_eq!(vault.roots_on(DeviceId(0)).unwrap(), vec![vault.root()]);
        if expected == "new"
            && let Ok(copy) = std::env::var(COPY)
        {
            // What was replaced is in the files of before, and no device opens them.
            let token = Arc::new(Pkcs11Token::open(&common::existing()).unwrap());
            let old = Vault::open(token, Box::new(RedbStore::open(copy.as_ref()).unwrap()));
            assert!(matches!(old, Err(OpenError::RootMissing { .. })));
        }
        assert_eq!(read(&vault, 1).as_deref(), Some(expected.as_bytes()));
        assert_eq!(read(&vault, 2).as_deref(), Some(b"keep".as_slice()));
        assert_eq!(vault.record(b"vote/1").unwrap().as_deref(), Some(b"yes".as_slice()));
        assert_eq!(vault.record(b"vote/2").unwrap().is_some(), expected == "new");
        let mut txn = vault.begin();
        txn.put_secret(id(1), Zeroizing::new(b"old".to_vec())).unwrap();
        txn.delete_record(b"vote/2");
        assert_eq!(txn.commit().unwrap().destruction, Destruction::Reported);
        vault.probe().unwrap();
    })
    .unwrap();
}

#[test]
fn a_kill_at_any_step_loses_and_keeps_nothing() {
    isolated("a_kill_at_any_step_loses_and_keeps_nothing", |dir| {
        drop(create(dir));
        for (death, spare) in Death::all(1).into_iter().flat_map(|death| [(death, false), (death, true)]) {
            let at = death.text();
            let path = store_path(dir);
            let copy = path.with_extension("copy");
            copy_store(&path, &copy);
            let mut environment = vec![(CRASH, at.as_str())];
            environment.extend(spare.then_some((SPARE, "1")));
            let crash = run_test("child_dies_within_a_commit", dir, &environment).unwrap();
            assert_eq!(crash.status.signal(), Some(SIGABRT), "{at}");
            let expected = if death.is_late() { "new" } else { "old" };
            let environment = [(EXPECT, expected), (COPY, copy.to_str().unwrap())];
            let check = run_test("child_recovers", dir, &environment).unwrap();
            passed(&check).unwrap();
        }
    })
    .unwrap();
}

#[test]
fn old_copies_do_not_open() {
    isolated("old_copies_do_not_open", |dir| {
        let mut vault = create(dir);
        let token = Arc::new(Pkcs11Token::open(&common::existing()).unwrap());
        let path = store_path(dir);
        // Copied while open, as a thief or a snapshot would.
        let copy = path.with_extension("copy");
        copy_store(&path, &copy);
        let tokens_copy = dir.tokens_path().with_extension("copy");
        copy_tree(dir.tokens_path(), &tokens_copy);
        let at = vault.position();

        let mut txn = vault.begin();
        assert!(txn.delete_secret(&id(1)).unwrap());
        let committed = txn.commit().unwrap();
        assert_eq!(committed.destruction, Destruction::Reported);
        assert_eq!(vault.position(), Position { epoch: at.epoch + 1, sequence: at.sequence + 1 });
        drop(vault);

        let old = RedbStore::open(&copy).unwrap();
        assert!(matches!(Vault::open(Arc::clone(&token), Box::new(old)), Err(OpenError::RootMissing { .. })));

        // The token restored from its copy does not open the newer store.
        let newer = dir.tokens_path().with_extension("newer");
        std::fs::rename(dir.tokens_path(), &newer).unwrap();
        std::fs::rename(&tokens_copy, dir.tokens_path()).unwrap();
        let check = run_test("child_sees_a_rolled_back_token", dir, &[(EXPECT, "refused")]).unwrap();
        passed(&check).unwrap();
        // Both restored together open: only peers can tell.
        copy_store(&copy, &path);
        let check = run_test("child_sees_a_rolled_back_token", dir, &[(EXPECT, "opens")]).unwrap();
        passed(&check).unwrap();
        std::fs::remove_dir_all(&newer).unwrap();
    })
    .unwrap();
}

/// Not a test by itself.
#[test]
fn child_sees_a_rolled_back_token() {
    let Ok(expected) = std::env::var(EXPECT) else { return };
    isolated("child_sees_a_rolled_back_token", |dir| match open(dir) {
        Err(OpenError::RootMissing { .. }) => assert_eq!(expected, "refused"),
        Ok(mut vault) => {
            assert_eq!(expected, "opens");
            assert_eq!(read(&vault, 1).as_deref(), Some(b"old".as_slice()));
            let mut txn = vault.begin();
            txn.put_record(b"vote/1", b"no".to_vec());
            assert!(matches!(txn.commit(), Err(CommitError::Unwitnessed)));
        }
        Err(other) => panic!("{other}"),
    })
    .unwrap();
}

#[test]
fn a_store_that_was_edited_is_refused() {
    isolated("a_store_that_was_edited_is_refused", |dir| {
        drop(create(dir));
        open(dir).unwrap();
        let path = store_path(dir);
        {
            let database = redb::Database::open(&path).unwrap();
            let table: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("records");
            let txn = database.begin_write().unwrap();
            txn.open_table(table).unwrap().insert(b"vote/1".as_slice(), b"no".as_slice()).unwrap();
            txn.commit().unwrap();
        }
        assert!(matches!(open(dir), Err(OpenError::RecordsBroken)));
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(pages_path(&path)).unwrap();
        drop(RedbStore::create(&path).unwrap());
        assert!(matches!(open(dir), Err(OpenError::StoreLost(_))));
    })
    .unwrap();
}

/// The file with the pages, in whatever state but the one that the database beside it was committed with.
#[test]
fn a_page_file_that_is_not_the_present_one_is_refused() {
    isolated("a_page_file_that_is_not_the_present_one_is_refused", |dir| {
        let mut vault = create(dir);
        let path = store_path(dir);
        let pages = pages_path(&path);
        let older = std::fs::read(&pages).unwrap();
        let mut txn = vault.begin();
        for n in 10..200 {
            txn.put_secret(id(n), Zeroizing::new(vec![n; 32])).unwrap();
        }
        txn.commit().unwrap();
        drop(vault);
        let present = std::fs::read(&pages).unwrap();
        assert!(older.len() < present.len());
        let broken = |content: &[u8]| {
            std::fs::write(&pages, content).unwrap();
            assert!(matches!(open(dir), Err(OpenError::PageBroken(_))));
        };
        broken(&older);
        broken(&present[..present.len() - 1]);
        broken(&present[..older.len()]);
        broken(&present[..4096]);
        let mut torn = present.clone();
        let last = torn.len() - 4096;
        torn[last + 512..].fill(0);
        broken(&torn);
        torn.clone_from(&present);
        torn[last] ^= 1;
        broken(&torn);
        torn[last..].fill(0xff);
        broken(&torn);

        let refused = |expected: StoreError| assert_eq!(RedbStore::open(&path).unwrap_err(), expected);
        std::fs::write(&pages, &present[..4095]).unwrap();
        refused(StoreError::PagesMissing);
        std::fs::remove_file(&pages).unwrap();
        refused(StoreError::PagesMissing);
        let other = path.with_extension("other");
        drop(RedbStore::create(&other).unwrap());
        std::fs::copy(pages_path(&other), &pages).unwrap();
        refused(StoreError::PagesForeign);
        std::fs::write(&pages, &present).unwrap();
        assert_eq!(read(&open(dir).unwrap(), 77), Some(vec![77; 32]));
    })
    .unwrap();
}

/// Not a test by itself: files may grow a little and no more, as named in the environment. Either the kernel kills this
/// process in the middle of its pages, or the write fails and later succeeds.
#[test]
fn child_finds_no_space() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let Ok(how) = std::env::var(LIMIT) else { return };
    isolated("child_finds_no_space", |dir| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let handled = (how == "fails").then(|| {
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(SIGXFSZ)).unwrap()
        });
        let mut vault = open(dir).unwrap();
        vault.confirm_witnessed().unwrap();
        let at = vault.position();
        let unlimited = getrlimit(Resource::Fsize);
        let size = std::fs::metadata(pages_path(&store_path(dir))).unwrap().len();
        let mut limit = unlimited;
        limit.current = Some(size + 10_000);
        setrlimit(Resource::Fsize, limit).unwrap();
        let result = replace(&mut vault, b"new");
        assert!(
            matches!(result, Err(CommitError::Vault(VaultError::Store(StoreError::Failed(_))))),
            "{result:?}"
        );
        assert!(!vault.must_reopen() && vault.position() == at);
        assert_eq!(read(&vault, 1).as_deref(), Some(b"old".as_slice()));
        assert_eq!(vault.roots_on(DeviceId(0)).unwrap(), vec![vault.root()]);
        setrlimit(Resource::Fsize, unlimited).unwrap();
        assert_eq!(replace(&mut vault, b"new").unwrap().destruction, Destruction::Reported);
        drop(handled);
    })
    .unwrap();
}

/// Many large pages, and one small secret.
fn replace(vault: &mut Vault, value: &[u8]) -> Result<spark_signer::vault::Committed, CommitError> {
    let mut txn = vault.begin();
    for version in 0..64 {
        let name = SecretId::new([9; 16], SecretKind::SignatureShares, version);
        txn.put_secret(name, Zeroizing::new(vec![value[0]; MAX_SECRET_BYTES])).unwrap();
    }
    txn.put_secret(id(1), Zeroizing::new(value.to_vec())).unwrap();
    txn.commit()
}

#[test]
fn a_kill_between_pages_and_a_full_disk_change_nothing() {
    isolated("a_kill_between_pages_and_a_full_disk_change_nothing", |dir| {
        let mut vault = create(dir);
        replace(&mut vault, b"old").unwrap();
        drop(vault);
        let killed = run_test("child_finds_no_space", dir, &[(LIMIT, "kills")]).unwrap();
        assert_eq!(killed.status.signal(), Some(SIGXFSZ), "{killed:?}");
        passed(&run_test("child_recovers", dir, &[(EXPECT, "old")]).unwrap()).unwrap();
        passed(&run_test("child_finds_no_space", dir, &[(LIMIT, "fails")]).unwrap()).unwrap();
        let vault = open(dir).unwrap();
        assert_eq!(read(&vault, 1).as_deref(), Some(b"new".as_slice()));
        let last = SecretId::new([9; 16], SecretKind::SignatureShares, 63);
        assert_eq!(vault.get_secret(&last).unwrap().unwrap()[..], [b'n'; MAX_SECRET_BYTES]);
    })
    .unwrap();
}

fn copy_store(from: &std::path::Path, to: &std::path::Path) {
    std::fs::copy(from, to).unwrap();
    std::fs::copy(pages_path(from), pages_path(to)).unwrap();
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}
