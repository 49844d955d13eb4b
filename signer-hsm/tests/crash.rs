//! The vault on a real token and a real disk, killed at every step of a commit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use spark_rules::ids::Incarnation;
use spark_signer::vault::{
    CommitError, Destruction, DeviceId, OpenError, Position, SecretId, SecretKind, Step, Vault,
};
use spark_signer_hsm::store::RedbStore;
use spark_signer_hsm::token::Pkcs11Token;
use spark_softhsm::{TokenDir, isolated, passed, run_test};
use zeroize::Zeroizing;

const INCARNATION: Incarnation = Incarnation::from_bytes([5; 16]);
const CRASH: &str = "CRASH_AT";
const SIGABRT: i32 = 6;
const EXPECT: &str = "EXPECT";
const SPARE: &str = "SPARE";

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
        vault.set_fail_point(Box::new(move |step: Step| {
            if format!("{step:?}") == at {
                // SIGABRT: no destructor runs, nothing is flushed.
                std::process::abort();
            }
            true
        }));
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
        for (step, spare) in Step::ALL.into_iter().flat_map(|step| [(step, false), (step, true)]) {
            let at = format!("{step:?}");
            let mut environment = vec![(CRASH, at.as_str())];
            environment.extend(spare.then_some((SPARE, "1")));
            let crash = run_test("child_dies_within_a_commit", dir, &environment).unwrap();
            assert_eq!(crash.status.signal(), Some(SIGABRT), "{step:?}");
            let expected = if step >= Step::StoreCommitted { "new" } else { "old" };
            let check = run_test("child_recovers", dir, &[(EXPECT, expected)]).unwrap();
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
        std::fs::copy(&path, &copy).unwrap();
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
        std::fs::copy(&copy, &path).unwrap();
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
        drop(RedbStore::create(&path).unwrap());
        assert!(matches!(open(dir), Err(OpenError::StoreLost(_))));
    })
    .unwrap();
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}
