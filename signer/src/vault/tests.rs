//! The vault against a plain map, cut off everywhere, and against whoever holds old copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::memory::{Disk, Fault, MemoryStore, MemoryToken, Roots};
use super::*;

const INCARNATION: Incarnation = Incarnation::from_bytes([7; 16]);

struct Site {
    token: MemoryToken,
    store: MemoryStore,
}

impl Site {
    fn new() -> (Self, Vault) {
        let site = Self { token: MemoryToken::new(1), store: MemoryStore::default() };
        let vault =
            Vault::create(Arc::new(site.token.clone()), Box::new(site.store.clone()), INCARNATION).unwrap();
        (site, vault)
    }

    fn open(&self) -> Result<Vault, OpenError> {
        Vault::open(Arc::new(self.token.clone()), Box::new(self.store.clone()))
    }

    fn reopen(&self) -> Vault {
        let mut vault = self.open().unwrap();
        vault.confirm_witnessed().unwrap();
        vault
    }

    fn copy(&self) -> (Roots, Disk) {
        (self.token.snapshot(), self.store.snapshot())
    }
}

fn id(n: u8) -> SecretId {
    SecretId::new([n; 16], SecretKind::Keyshare, u64::from(n))
}

fn secret(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

fn put(vault: &mut Vault, n: u8, value: &[u8]) -> Committed {
    let mut txn = vault.begin();
    txn.put_secret(id(n), secret(value)).unwrap();
    txn.commit().unwrap()
}

fn read(vault: &Vault, n: u8) -> Option<Vec<u8>> {
    vault.get_secret(&id(n)).unwrap().map(|value| value.to_vec())
}

#[test]
fn create_and_open_refuse_what_is_not_theirs() {
    let (site, vault) = Site::new();
    assert_eq!(vault.position(), Position { epoch: 1, sequence: 1 });
    drop(vault);
    let again = Vault::create(Arc::new(site.token.clone()), Box::new(site.store.clone()), INCARNATION);
    assert!(matches!(again, Err(CreateError::StoreNotEmpty)));
    let elsewhere =
        Vault::create(Arc::new(site.token.clone()), Box::new(MemoryStore::default()), INCARNATION);
    assert!(matches!(elsewhere, Err(CreateError::RootsExist(_))));

    let (roots, disk) = site.copy();
    site.store.restore(Disk::default());
    assert!(matches!(site.open(), Err(OpenError::StoreLost(_))));
    site.token.restore(Roots::new());
    assert!(matches!(site.open(), Err(OpenError::NotCreated)));
    site.store.restore(disk);
    assert!(matches!(site.open(), Err(OpenError::RootMissing { .. })));
    site.token.fail(Some(Fault::Empty));
    assert!(matches!(site.open(), Err(OpenError::Token(TokenError::NoObjects))));
    site.token.fail(None);
    site.token.restore(roots.clone());
    site.open().unwrap();

    let mut stranger = roots;
    stranger.insert(RootId { tree: TreeId([9; 8]), epoch: 1 }, [0; 32]);
    site.token.restore(stranger);
    assert!(matches!(site.open(), Err(OpenError::ForeignRoots(_))));
}

#[test]
fn only_destroying_batches_move_the_epoch() {
    let (site, mut vault) = Site::new();
    let first = put(&mut vault, 1, b"one");
    assert_eq!((first.epoch_before, first.epoch_after, first.sequence), (1, 1, 2));
    assert_eq!(first.destruction, Destruction::None);
    let mut txn = vault.begin();
    txn.put_record(b"vote/1", b"yes".to_vec());
    assert_eq!(txn.epoch_after(), 1);
    let point = txn.savepoint();
    assert!(txn.delete_secret(&id(1)).unwrap());
    assert_eq!(txn.position_after(), Position { epoch: 2, sequence: 3 });
    txn.rollback_to(point);
    assert_eq!(txn.epoch_after(), 1);
    txn.put_secret(id(1), secret(b"uno")).unwrap();
    assert_eq!(txn.epoch_after(), 2);
    let second = txn.commit().unwrap();
    assert_eq!((second.epoch_after, second.sequence, second.destruction), (2, 3, Destruction::Reported));
    assert_ne!(second.root_before, second.root_after);
    assert_eq!(site.token.snapshot().keys().copied().collect::<Vec<_>>(), vec![second.root_after]);
    assert_eq!(read(&vault, 1).as_deref(), Some(b"uno".as_slice()));
    drop(vault);
    let vault = site.reopen();
    assert_eq!(read(&vault, 1).as_deref(), Some(b"uno".as_slice()));
    assert_eq!(vault.record(b"vote/1").unwrap().as_deref(), Some(b"yes".as_slice()));
    assert_eq!(vault.position(), Position { epoch: 2, sequence: 3 });
    vault.probe().unwrap();
}

#[test]
fn an_unwitnessed_vault_is_read_only() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"one");
    drop(vault);
    let mut vault = site.open().unwrap();
    assert_eq!(read(&vault, 1).as_deref(), Some(b"one".as_slice()));
    let mut txn = vault.begin();
    txn.put_record(b"k", b"v".to_vec());
    assert!(matches!(txn.commit(), Err(CommitError::Unwitnessed)));
    vault.confirm_witnessed().unwrap();
    put(&mut vault, 2, b"two");
}

#[test]
fn rollbacks_are_refused_unless_joint() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"old");
    let (old_roots, old_disk) = site.copy();
    let at = vault.position();
    put(&mut vault, 1, b"new");
    drop(vault);
    let (roots, disk) = site.copy();

    site.store.restore(old_disk.clone());
    assert!(matches!(site.open(), Err(OpenError::RootMissing { .. })));
    site.store.restore(disk);
    site.token.restore(old_roots.clone());
    assert!(matches!(site.open(), Err(OpenError::RootMissing { .. })));
    // Both at once look like the past: only the peers' memory can tell (D11).
    site.store.restore(old_disk);
    site.token.restore(old_roots);
    assert_eq!(site.open().unwrap().position(), at);
    site.token.restore(roots);
}

#[test]
fn every_edit_of_the_store_is_refused() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"one");
    let mut txn = vault.begin();
    txn.put_record(b"a", b"1".to_vec());
    txn.put_record(b"b", b"2".to_vec());
    txn.commit().unwrap();
    let before = site.store.snapshot();
    put(&mut vault, 2, b"two");
    let mut txn = vault.begin();
    txn.put_record(b"a", b"3".to_vec());
    txn.commit().unwrap();
    drop(vault);
    let disk = site.store.snapshot();
    let refused = |change: &dyn Fn(&mut Disk)| {
        let mut edited = disk.clone();
        change(&mut edited);
        assert_ne!(edited, disk);
        site.store.restore(edited);
        site.open().map(|_| ()).unwrap_err()
    };
    use OpenError::{Format, HeaderBroken, PageBroken, RecordsBroken};
    let (at, stale) = (2, 1);
    assert_eq!(disk.pages.keys().copied().collect::<Vec<_>>(), [stale, at]);
    assert!(matches!(refused(&|d| d.records = before.records.clone()), RecordsBroken));
    assert!(matches!(refused(&|d| drop(d.records.remove(b"b".as_slice()))), RecordsBroken));
    assert!(matches!(refused(&|d| drop(d.records.insert(b"c".to_vec(), vec![]))), RecordsBroken));
    let swap = |d: &mut Disk| {
        d.records.insert(b"a".to_vec(), b"2".to_vec());
        d.records.insert(b"b".to_vec(), b"3".to_vec());
    };
    assert!(matches!(refused(&swap), RecordsBroken));
    assert!(matches!(refused(&|d| d.pages = before.pages.clone()), PageBroken(2)));
    assert!(matches!(refused(&|d| d.pages.clear()), PageBroken(2)));
    assert!(matches!(refused(&|d| drop(d.pages.insert(at, d.pages[&stale].clone()))), PageBroken(2)));
    let bytes = disk.pages[&at].1.len();
    for byte in 0..bytes {
        assert!(matches!(refused(&|d| d.pages.get_mut(&at).unwrap().1[byte] ^= 1), PageBroken(2)));
        assert!(matches!(refused(&|d| d.pages.get_mut(&at).unwrap().1.truncate(byte)), PageBroken(2)));
    }
    // What lies where nothing leads to is nothing.
    let mut more = disk.clone();
    more.pages.remove(&stale);
    more.pages.insert(5, (1, vec![1]));
    site.store.restore(more);
    site.open().unwrap();
    for at in 0..disk.header.as_ref().unwrap().len() {
        let error = refused(&|d| d.header.as_mut().unwrap()[at] ^= 1);
        assert!(matches!(
            error,
            Format
                | HeaderBroken
                | OpenError::NoDevice(_)
                | OpenError::RootMissing { .. }
                | OpenError::ForeignRoots(_)
        ));
    }
    // An older header of the same epoch does not fit newer content.
    assert!(matches!(refused(&|d| d.header.clone_from(&before.header)), PageBroken(_) | RecordsBroken));
}

#[test]
fn token_failures_before_the_commit_point_change_nothing() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"one");
    for fault in [Fault::Create, Fault::Derive, Fault::Sync, Fault::Empty] {
        let committed = site.store.committed();
        site.token.fail(Some(fault));
        let mut txn = vault.begin();
        txn.put_secret(id(1), secret(b"new")).unwrap();
        let result = txn.commit();
        site.token.fail(None);
        if fault == Fault::Empty {
            // Listing is only needed when something is to be swept.
            result.unwrap();
            continue;
        }
        assert!(matches!(result, Err(CommitError::Token(_))), "{fault:?}");
        // Pages may have been written meanwhile: nothing leads to them.
        assert_eq!(site.store.committed(), committed);
        for vault in [&vault, &site.open().unwrap()] {
            assert_eq!(read(vault, 1).as_deref(), Some(b"one".as_slice()));
        }
    }
    assert_eq!(put(&mut vault, 1, b"two").destruction, Destruction::Reported);
    assert_eq!(site.token.snapshot().len(), 1);
}

/// A disk that is full, or fails, while pages are written: nothing has happened, and the same batch goes through later.
#[test]
fn a_disk_that_fails_under_the_pages_changes_nothing() {
    let (site, mut vault) = Site::new();
    let many = |vault: &mut Vault, value: u8| {
        let mut txn = vault.begin();
        for version in 0..500 {
            txn.put_secret(SecretId::new([3; 16], SecretKind::Keyshare, version), secret(&[value; 32]))
                .unwrap();
        }
        txn.put_record(b"vote/1", vec![value]);
        txn.commit()
    };
    many(&mut vault, 1).unwrap();
    let value = |vault: &Vault| {
        vault.get_secret(&SecretId::new([3; 16], SecretKind::Keyshare, 77)).unwrap().unwrap()[0]
    };
    for round in 2..12 {
        let at = vault.position();
        for after in [0, 1, 5, 1000] {
            site.store.tear(Some(after));
            assert!(matches!(many(&mut vault, round), Err(CommitError::Vault(VaultError::Store(_)))));
            assert!(!vault.must_reopen());
            assert_eq!((vault.position(), value(&vault)), (at, round - 1));
            assert_eq!(site.token.snapshot().into_keys().collect::<Vec<_>>(), vec![vault.root()]);
            let stopped = site.open().unwrap();
            assert_eq!((stopped.position(), value(&stopped)), (at, round - 1));
            assert_eq!(stopped.record(b"vote/1").unwrap(), Some(vec![round - 1]));
        }
        site.store.tear(None);
        assert_eq!(many(&mut vault, round).unwrap().destruction, Destruction::Reported);
        assert_eq!((value(&vault), value(&site.open().unwrap())), (round, round));
    }
}

#[test]
fn a_failed_destruction_is_never_claimed() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"one");
    site.token.fail(Some(Fault::Destroy));
    let committed = put(&mut vault, 1, b"two");
    assert_eq!(committed.destruction, Destruction::Pending);
    assert_eq!(vault.destroy_pending(), [committed.root_before]);
    site.token.fail(None);
    assert_eq!(put(&mut vault, 1, b"three").destruction, Destruction::Pending);
    drop(vault);
    let mut vault = site.open().unwrap();
    assert_eq!(vault.stray_roots(), [committed.root_before]);
    vault.confirm_witnessed().unwrap();
    assert!(vault.destroy_pending().is_empty());
    assert_eq!(put(&mut vault, 1, b"four").destruction, Destruction::Reported);
}

#[test]
fn large_secrets_and_many_secrets_fit() {
    let (site, mut vault) = Site::new();
    let mut txn = vault.begin();
    let long = vec![0xAB; MAX_SECRET_BYTES];
    txn.put_secret(id(1), secret(&long)).unwrap();
    assert!(matches!(
        txn.put_secret(id(2), secret(&vec![0; MAX_SECRET_BYTES + 1])),
        Err(VaultError::SecretTooLong)
    ));
    for version in 0..1000 {
        let name = SecretId::new([9; 16], SecretKind::SignatureShares, version);
        txn.put_secret(name, secret(&version.to_be_bytes())).unwrap();
    }
    txn.commit().unwrap();
    assert!(site.store.snapshot().pages.len() >= 1000 / 64);
    drop(vault);
    let mut vault = site.reopen();
    assert_eq!(read(&vault, 1).as_deref(), Some(long.as_slice()));
    let names: Vec<SecretId> = vault.secrets_of(&[9; 16]).unwrap();
    assert_eq!(names.len(), 1000);
    let mut txn = vault.begin();
    for name in &names {
        assert!(txn.delete_secret(name).unwrap());
    }
    assert!(!txn.delete_secret(&id(77)).unwrap());
    txn.commit().unwrap();
    assert_eq!(vault.secret_count(), 1);
    assert_eq!(vault.slots().0, Extent::slots_for(MAX_SECRET_BYTES));
    assert!(vault.secrets_of(&[9; 16]).unwrap().is_empty());
}

/// Two copies of a store over one token: at most one can commit (a copied disk, started on another machine).
#[test]
fn a_second_copy_ends_the_first_even_if_that_has_a_spare_root() {
    for spare in [false, true] {
        let (site, mut first) = Site::new();
        put(&mut first, 1, b"one");
        if spare {
            first.prepare_spare().unwrap();
            assert_eq!(site.token.snapshot().len(), 2);
        }
        let elsewhere = MemoryStore::default();
        elsewhere.restore(site.store.snapshot());
        let mut second = Vault::open(Arc::new(site.token.clone()), Box::new(elsewhere)).unwrap();
        second.confirm_witnessed().unwrap();
        second.renew_root().unwrap();
        let before = site.store.committed();
        for attempt in 0..3 {
            // Nor does a token that fails for a moment make it sweep what is the other's.
            site.token.fail((attempt == 0).then_some(Fault::Derive));
            let mut txn = first.begin();
            // Either the read or the commit fails: this copy is over.
            let _ = txn.put_secret(id(1), secret(b"late"));
            txn.commit().unwrap_err();
        }
        site.token.fail(None);
        assert_eq!(site.store.committed(), before);
        assert_eq!(site.token.snapshot().into_keys().collect::<Vec<_>>(), vec![second.root()]);
        put(&mut second, 1, b"two");
    }
}

#[test]
fn a_spare_root_serves_one_batch_and_a_restart_ends_it() {
    let (site, mut vault) = Site::new();
    put(&mut vault, 1, b"one");
    for round in 0u8..3 {
        vault.prepare_spare().unwrap();
        vault.prepare_spare().unwrap();
        // A batch that destroys nothing leaves it alone.
        put(&mut vault, 100 + round, b"more");
        assert_eq!(site.token.snapshot().len(), 2);
        let committed = put(&mut vault, 1, &[round]);
        assert_eq!(committed.root_after.epoch, committed.root_before.epoch + 1);
        assert_eq!(site.token.snapshot().into_keys().collect::<Vec<_>>(), vec![committed.root_after]);
    }
    vault.prepare_spare().unwrap();
    drop(vault);
    let vault = site.reopen();
    assert_eq!(site.token.snapshot().into_keys().collect::<Vec<_>>(), vec![vault.root()]);
    assert_eq!(read(&vault, 1).as_deref(), Some([2u8].as_slice()));
}

/// A deep tree: it grows, is churned, and shrinks to nothing; at each stage it opens again, holds what the map holds,
/// and refuses every older page in place of the present one.
#[test]
fn a_deep_tree_holds_what_a_map_holds() {
    use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let (site, mut vault) = Site::new();
    let mut model: BTreeMap<SecretId, Vec<u8>> = BTreeMap::new();
    let mut older = site.store.snapshot();
    let mut most = 0;
    let stages: [(usize, usize, usize); 9] = [
        (12_000, 0, 0),
        (8_000, 500, 300),
        (1, 1, 1),
        (0, 4_000, 0),
        (0, 0, 6_000),
        (300, 10, 12_000),
        (0, 0, 2_000),
        (5, 0, 290),
        (0, 0, usize::MAX),
    ];
    for (puts, replaced, deleted) in stages {
        let mut names: Vec<SecretId> = model.keys().copied().collect();
        names.shuffle(&mut rng);
        let mut txn = vault.begin();
        let fresh = (0..puts).map(|_| {
            // Few owners with many secrets each, and many with one.
            let owner = if rng.r#gen() { [rng.gen_range(0..3); 16] } else { rng.r#gen() };
            SecretId::new(owner, SecretKind::Keyshare, rng.gen_range(0..1 << 40))
        });
        let fresh: Vec<SecretId> = fresh.collect();
        let replaced = names.iter().take(replaced).copied();
        for name in fresh.into_iter().chain(replaced) {
            let length = if rng.gen_bool(0.01) { rng.gen_range(0..9_000) } else { 32 };
            let value = vec![rng.r#gen(); length];
            txn.put_secret(name, secret(&value)).unwrap();
            model.insert(name, value);
        }
        for name in names.iter().rev().take(deleted) {
            assert_eq!(txn.delete_secret(name).unwrap(), model.remove(name).is_some());
        }
        txn.commit().unwrap();
        drop(vault);
        let disk = site.store.snapshot();
        // What was there before the last batch, in place of what it wrote: an edit like any other.
        let fresh =
            disk.pages.iter().filter(|(at, page)| older.pages.get(at) != Some(page)).map(|(at, _)| *at);
        for at in fresh.take(5) {
            let mut mixed = disk.clone();
            match older.pages.get(&at) {
                Some(page) => mixed.pages.insert(at, page.clone()),
                None => mixed.pages.remove(&at),
            };
            site.store.restore(mixed);
            assert!(matches!(site.open(), Err(OpenError::PageBroken(broken)) if broken == at));
        }
        site.store.restore(disk.clone());
        older = disk;
        vault = site.reopen();
        assert_eq!(vault.secret_count(), model.len() as u64);
        for (name, value) in &model {
            assert_eq!(vault.get_secret(name).unwrap().as_deref(), Some(value));
        }
        for name in names.iter().filter(|name| !model.contains_key(name)) {
            assert!(!vault.has_secret(name).unwrap());
        }
        for owner in 0..3 {
            let own: Vec<SecretId> = model.keys().filter(|id| id.owner == [owner; 16]).copied().collect();
            assert_eq!(vault.secrets_of(&[owner; 16]).unwrap(), own);
        }
        // Pages are neither crowded nor empty: the store does not grow without need.
        let (taken, all) = vault.slots();
        assert!(taken <= model.len() as u64 / 10 + 8, "{taken} slots for {} secrets", model.len());
        most = most.max(taken);
        assert!(all <= 5 * most, "{all} slots, and {most} were in use at most");
    }
    assert!(model.is_empty() && vault.slots().0 == 0);
}

#[derive(Debug, Clone)]
enum Change {
    Put(u8, Vec<u8>),
    Delete(u8),
    Record(u8, Option<Vec<u8>>),
    /// The changes within happen and are undone.
    Undone(Vec<(u8, Vec<u8>)>),
}

fn change() -> impl Strategy<Value = Change> {
    let value = || prop::collection::vec(any::<u8>(), 24..200);
    prop_oneof![
        4 => (0u8..12, value()).prop_map(|(n, v)| Change::Put(n, v)),
        2 => (0u8..12).prop_map(Change::Delete),
        2 => (0u8..6, prop::option::of(value())).prop_map(|(n, v)| Change::Record(n, v)),
        1 => prop::collection::vec((0u8..12, value()), 1..3).prop_map(Change::Undone),
    ]
}

#[derive(Clone, Default)]
struct Model {
    secrets: BTreeMap<u8, Vec<u8>>,
    records: BTreeMap<u8, Vec<u8>>,
}

fn apply(txn: &mut Txn<'_>, model: &mut Model, change: &Change) {
    match change {
        Change::Put(n, value) => {
            txn.put_secret(id(*n), secret(value)).unwrap();
            model.secrets.insert(*n, value.clone());
        }
        Change::Delete(n) => {
            assert_eq!(txn.delete_secret(&id(*n)).unwrap(), model.secrets.remove(n).is_some());
        }
        Change::Record(n, Some(value)) => {
            txn.put_record(&[*n], value.clone());
            model.records.insert(*n, value.clone());
        }
        Change::Record(n, None) => {
            txn.delete_record(&[*n]);
            model.records.remove(n);
        }
        Change::Undone(puts) => {
            let point = txn.savepoint();
            for (n, value) in puts {
                txn.put_secret(id(*n), secret(value)).unwrap();
                txn.put_record(&[*n], value.clone());
                txn.delete_secret(&id(n.wrapping_add(1) % 12)).unwrap();
            }
            txn.rollback_to(point);
        }
    }
    for n in 0..12 {
        let found = txn.get_secret(&id(n)).unwrap().map(|value| value.to_vec());
        assert_eq!(found.as_ref(), model.secrets.get(&n));
    }
}

fn check(vault: &Vault, model: &Model) {
    for n in 0..12 {
        assert_eq!(read(vault, n).as_ref(), model.secrets.get(&n));
    }
    assert_eq!(vault.secret_count(), model.secrets.len() as u64);
    let records: BTreeMap<u8, Vec<u8>> = vault
        .scan_records(&[], None, usize::MAX)
        .unwrap()
        .into_iter()
        .filter(|(key, _)| key.len() == 1)
        .map(|(key, value)| (key[0], value))
        .collect();
    assert_eq!(records, model.records);
}

/// What somebody learns who kept every store there ever was and now holds the token.
fn readable_with(token: &MemoryToken, copies: &[Disk]) -> Vec<(SecretId, Vec<u8>)> {
    let mut learned = Vec::new();
    for copy in copies {
        let store = MemoryStore::default();
        store.restore(copy.clone());
        if let Ok(vault) = Vault::open(Arc::new(token.clone()), Box::new(store)) {
            for n in 0..12 {
                learned.extend(read(&vault, n).map(|value| (id(n), value)));
            }
        }
    }
    learned
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn crashes_lose_nothing_and_keep_nothing(
        batches in prop::collection::vec(
            (prop::collection::vec(change(), 1..6), 0..Step::ALL.len() + 5, any::<bool>()), 1..10)
    ) {
        let (site, mut vault) = Site::new();
        let mut model = Model::default();
        let mut copies = vec![site.store.snapshot()];
        for (changes, crash, alone) in batches {
            // Beyond the steps: the disk fails after so many pages.
            let torn = crash.checked_sub(Step::ALL.len()).filter(|after| *after < 4);
            site.store.tear(torn);
            let crash = Step::ALL.get(crash).copied();
            if let Some(at) = crash {
                // What is done at the same time is through by then, or does not begin.
                let cut = move |step: Step| step == at || alone && at.beside().contains(&step);
                vault.set_fail_point(Box::new(move |step: Step| !cut(step)));
            }
            let mut after = model.clone();
            let mut txn = vault.begin();
            for change in &changes {
                apply(&mut txn, &mut after, change);
            }
            let predicted = txn.position_after();
            let start = txn.committed().position();
            match txn.commit() {
                Ok(committed) => {
                    prop_assert_eq!(committed.epoch_after, predicted.epoch);
                    prop_assert_eq!(vault.position(), predicted);
                    model = after;
                }
                Err(CommitError::CutOff(step)) => {
                    let at = crash.unwrap();
                    prop_assert!(step == at || alone && at.beside().contains(&step));
                    prop_assert!(matches!(vault.record(&[0]), Err(VaultError::MustReopen)));
                    if step >= Step::StoreCommitted {
                        model = after;
                    }
                    vault = site.open().unwrap();
                    prop_assert_eq!(
                        vault.position(),
                        if step >= Step::StoreCommitted { predicted } else { start }
                    );
                    check(&vault, &model);
                    vault.confirm_witnessed().unwrap();
                }
                Err(CommitError::Vault(VaultError::Store(_))) if torn.is_some() => {
                    prop_assert_eq!(vault.position(), start);
                    site.store.tear(None);
                    // It goes on as if nothing had been, and so does a process that starts now.
                    check(&vault, &model);
                    if torn.is_some_and(|after| after % 2 == 1) {
                        vault = site.reopen();
                    }
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
            site.store.tear(None);
            vault.set_fail_point(Box::new(|_| true));
            check(&vault, &model);
            prop_assert_eq!(site.token.snapshot().into_keys().collect::<Vec<_>>(), vec![vault.root()]);
            copies.push(site.store.snapshot());
            for (name, value) in readable_with(&site.token, &copies) {
                let live = model.secrets.get(&name.owner[0]);
                prop_assert_eq!(Some(&value), live, "a destroyed secret is still readable");
            }
        }
    }
}
