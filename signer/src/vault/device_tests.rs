//! Several devices: any one unlocks, nothing is destroyed before all have destroyed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use spark_rules::ids::Incarnation;
use zeroize::Zeroizing;

use super::memory::{Disk, Fault, MemoryStore, MemoryToken};
use super::*;

const ALL: [DeviceId; 3] = [DeviceId(0), DeviceId(1), DeviceId(2)];
const INCARNATION: Incarnation = Incarnation::from_bytes([8; 16]);

struct Site {
    tokens: Vec<MemoryToken>,
    store: MemoryStore,
}

impl Site {
    fn new(devices: u8) -> (Self, Vault) {
        let tokens = (1..=devices).map(MemoryToken::new).collect();
        let site = Self { tokens, store: MemoryStore::default() };
        let vault = Vault::create(site.devices(), Box::new(site.store.clone()), INCARNATION).unwrap();
        (site, vault)
    }

    fn devices(&self) -> Devices {
        let keys: Arc<dyn Token> = Arc::new(self.tokens[0].clone());
        (0..self.tokens.len()).fold(Devices::new(keys), |devices, at| {
            devices.with(DeviceId(at as u8), Arc::new(self.tokens[at].clone()))
        })
    }

    fn gone(&self) -> Vec<DeviceId> {
        let ids = 0..self.tokens.len();
        ids.filter(|at| self.tokens[*at].is_gone()).map(|at| DeviceId(at as u8)).collect()
    }

    fn open(&self) -> Result<Vault, OpenError> {
        let devices = self.devices().start_without(self.gone());
        Vault::open(devices, Box::new(self.store.clone()))
    }

    fn reopen(&self) -> Vault {
        let mut vault = self.open().unwrap();
        vault.confirm_witnessed().unwrap();
        vault
    }

    /// What opens with one device's roots alone, of all copies of the store: owner and value.
    fn readable(&self, copies: &[Disk]) -> BTreeSet<(u8, u8)> {
        let mut learned = BTreeSet::new();
        for (at, token) in self.tokens.iter().enumerate() {
            let awake = token.copy();
            for copy in copies {
                let store = MemoryStore::default();
                store.restore(copy.clone());
                let devices = Devices {
                    roots: vec![(DeviceId(at as u8), Arc::new(awake.clone()))],
                    ..Devices::new(Arc::new(awake.clone()))
                };
                if let Ok(vault) = Vault::open(devices, Box::new(store)) {
                    learned.extend((0..8).filter_map(|n| read(&vault, n).map(|value| (n, value))));
                }
            }
        }
        learned
    }

    /// Epoch before which no root is left on any member.
    fn destroyed_before(&self, vault: &Vault) -> u64 {
        let oldest = |(id, joined): (DeviceId, u64)| {
            let roots = self.tokens[usize::from(id.0)].snapshot();
            roots.keys().map(|root| root.epoch).min().unwrap_or(vault.epoch()).max(joined)
        };
        vault.members().unwrap().into_iter().map(oldest).min().unwrap()
    }
}

fn id(n: u8) -> SecretId {
    SecretId::new([n; 16], SecretKind::Keyshare, 0)
}

fn put(vault: &mut Vault, n: u8, value: u8) -> Result<Committed, CommitError> {
    let mut txn = vault.begin();
    txn.put_secret(id(n), Zeroizing::new(vec![value; 32])).unwrap();
    txn.commit()
}

fn read(vault: &Vault, n: u8) -> Option<u8> {
    vault.get_secret(&id(n)).unwrap().map(|value| value[0])
}

fn states(vault: &Vault) -> Vec<DeviceState> {
    vault.devices().into_iter().map(|device| device.state).collect()
}

use DeviceState::{Away, Retiring, Serving};

#[test]
fn any_one_device_unlocks() {
    let (site, mut vault) = Site::new(3);
    put(&mut vault, 1, 10).unwrap();
    put(&mut vault, 1, 11).unwrap();
    drop(vault);
    for alone in 0..3 {
        (0..3).filter(|at| *at != alone).for_each(|at| site.tokens[at].fail(Some(Fault::Gone)));
        let vault = site.open().unwrap();
        assert_eq!(read(&vault, 1), Some(11));
        assert_eq!(states(&vault).iter().filter(|state| **state == Serving).count(), 1);
        site.tokens.iter().for_each(|token| token.fail(None));
    }
    site.tokens.iter().for_each(|token| token.fail(Some(Fault::Gone)));
    assert!(matches!(site.open(), Err(OpenError::Token(TokenError::NoObjects))));
}

#[test]
fn a_root_is_destroyed_when_all_devices_have_destroyed_it() {
    let (site, mut vault) = Site::new(2);
    put(&mut vault, 1, 10).unwrap();
    let mut copies = vec![site.store.snapshot()];
    site.tokens[1].fail(Some(Fault::Gone));
    let committed = put(&mut vault, 1, 11).unwrap();
    assert_eq!(committed.destruction, Destruction::Pending, "the other one has the old root");
    assert_eq!(states(&vault), [Serving, Away]);
    assert!(matches!(vault.devices()[1].trouble, Some(TokenError::Unavailable(_))));
    copies.push(site.store.snapshot());
    assert!(site.readable(&copies).contains(&(1, 10)), "and with it the old share");
    assert_eq!(put(&mut vault, 1, 12).unwrap().destruction, Destruction::Pending);
    assert_eq!(site.destroyed_before(&vault), committed.epoch_before);

    assert!(!vault.heal(&ALL).unwrap(), "it is still gone");
    site.tokens[1].fail(None);
    assert!(vault.heal(&ALL).unwrap());
    assert_eq!(states(&vault), [Serving, Serving]);
    assert_eq!(site.readable(&copies), BTreeSet::new());
    assert_eq!(put(&mut vault, 1, 13).unwrap().destruction, Destruction::Reported);
    site.tokens[0].fail(Some(Fault::Gone));
    drop(vault);
    assert_eq!(read(&site.reopen(), 1), Some(13), "by the one that came back");
}

#[test]
fn a_store_goes_on_without_a_device_only_if_a_person_says_so() {
    let (site, mut vault) = Site::new(2);
    put(&mut vault, 1, 10).unwrap();
    drop(vault);
    site.tokens[0].fail(Some(Fault::Gone));
    let mut vault = Vault::open(site.devices(), Box::new(site.store.clone())).unwrap();
    assert!(matches!(vault.confirm_witnessed(), Err(TokenError::DeviceAway(DeviceId(0)))));
    assert!(matches!(put(&mut vault, 1, 11), Err(CommitError::Unwitnessed)));
    site.tokens[0].fail(None);
    // One that is not configured at all is not forgotten.
    let only = Devices::from(Arc::new(site.tokens[0].clone()));
    let mut vault = Vault::open(only, Box::new(site.store.clone())).unwrap();
    assert_eq!(states(&vault), [Serving, Away]);
    assert!(matches!(vault.confirm_witnessed(), Err(TokenError::DeviceAway(DeviceId(1)))));
}

#[test]
fn a_device_that_lost_the_root_it_needs_is_refused() {
    let (site, mut vault) = Site::new(2);
    let old = site.tokens[1].snapshot();
    put(&mut vault, 1, 10).unwrap();
    put(&mut vault, 1, 11).unwrap();
    drop(vault);
    let roots = site.tokens[1].snapshot();
    site.tokens[1].restore(old);
    assert!(matches!(site.open(), Err(OpenError::RootMissing { .. })));
    site.tokens[1].restore(BTreeMap::new());
    assert!(matches!(site.open(), Err(OpenError::RootMissing { .. })));
    site.tokens[1].restore(roots);
    site.open().unwrap();
}

#[test]
fn devices_join_retire_and_are_forgotten_while_the_store_is_in_use() {
    let (mut site, mut vault) = Site::new(1);
    put(&mut vault, 1, 10).unwrap();
    site.tokens.push(MemoryToken::new(9));
    vault.offer(DeviceId(1), Arc::new(site.tokens[1].clone()));
    assert_eq!(states(&vault), [Serving, Away]);
    assert_eq!(vault.members().unwrap(), [(DeviceId(0), 1)], "a stranger is no member");
    assert!(vault.heal(&ALL).unwrap());
    assert_eq!(put(&mut vault, 1, 11).unwrap().destruction, Destruction::Reported);
    assert_eq!(vault.members().unwrap(), [(DeviceId(0), 1), (DeviceId(1), 1)]);
    let copies = vec![site.store.snapshot()];

    vault.retire(DeviceId(0)).unwrap();
    assert!(vault.retire(DeviceId(1)).is_err(), "one must stay");
    assert_eq!(states(&vault), [Retiring, Serving]);
    assert!(!vault.forget(DeviceId(1)).unwrap(), "it serves");
    assert!(!site.tokens[0].snapshot().is_empty());
    vault.heal(&ALL).unwrap();
    assert_eq!(vault.devices()[0].trouble, None);
    assert!(site.tokens[0].snapshot().is_empty());
    assert_eq!(put(&mut vault, 1, 12).unwrap().destruction, Destruction::Pending, "nobody has confirmed it");
    assert!(vault.forget(DeviceId(0)).unwrap());
    assert_eq!(put(&mut vault, 1, 13).unwrap().destruction, Destruction::Reported);
    assert_eq!(site.readable(&copies), BTreeSet::new());
    assert_eq!(vault.members().unwrap(), [(DeviceId(1), 1)]);
    drop(vault);
    let devices = site.devices();
    let mut vault = Vault::open(devices, Box::new(site.store.clone())).unwrap();
    assert_eq!(states(&vault), [Away, Serving], "the first one is nobody now");
    vault.confirm_witnessed().unwrap();
    assert_eq!(read(&vault, 1), Some(13));
}

/// The number alone does not make a device: a new one in place of one that broke has destroyed nothing.
#[test]
fn another_device_does_not_take_over_a_number() {
    let (mut site, mut vault) = Site::new(2);
    put(&mut vault, 1, 10).unwrap();
    let copies = vec![site.store.snapshot()];
    let broken = site.tokens[1].clone();
    broken.fail(Some(Fault::Gone));
    put(&mut vault, 1, 11).unwrap();
    drop(vault);
    site.tokens[1] = MemoryToken::new(77);
    let mut vault = site.open().unwrap();
    assert!(matches!(vault.confirm_witnessed(), Err(TokenError::WrongAnswer(_))));
    let devices = site.devices().start_without([DeviceId(1)]);
    let mut vault = Vault::open(devices, Box::new(site.store.clone())).unwrap();
    vault.confirm_witnessed().unwrap();
    assert!(!vault.heal(&ALL).unwrap(), "not as a member either");
    assert_eq!(put(&mut vault, 1, 12).unwrap().destruction, Destruction::Pending);
    assert!(!broken.snapshot().is_empty() && site.tokens[1].snapshot().is_empty());
    site.tokens[1] = broken;
    assert!(site.readable(&copies).contains(&(1, 10)), "the broken one has it");
}

/// One device under two numbers would clear itself.
#[test]
fn one_device_has_one_number() {
    let (mut site, mut vault) = Site::new(1);
    put(&mut vault, 1, 10).unwrap();
    drop(vault);
    site.tokens.push(site.tokens[0].clone());
    let mut vault = site.reopen();
    assert!(!vault.heal(&ALL).unwrap());
    assert_eq!(put(&mut vault, 1, 11).unwrap().destruction, Destruction::Reported);
    vault.retire(DeviceId(1)).unwrap();
    vault.heal(&ALL).unwrap();
    drop(vault);
    assert_eq!(read(&site.reopen(), 1), Some(11));
    let two = site.devices();
    site.tokens[0].restore(BTreeMap::new());
    assert!(Vault::create(two, Box::new(MemoryStore::default()), INCARNATION).is_err());
}

/// A device retires only when no header opens by it: if none can be written, its root stays.
#[test]
fn a_retirement_that_fails_destroys_nothing() {
    let (site, mut vault) = Site::new(2);
    put(&mut vault, 1, 10).unwrap();
    site.tokens[0].fail(Some(Fault::Derive));
    assert!(vault.retire(DeviceId(1)).is_err());
    vault.heal(&ALL).unwrap_or_default();
    assert!(!site.tokens[1].snapshot().is_empty());
    drop(vault);
    site.tokens[0].fail(Some(Fault::Gone));
    assert_eq!(read(&site.reopen(), 1), Some(10), "by the one that was to retire");
}

/// A process that lost its store's devices to another copy makes no commit and destroys nothing of the other's.
#[test]
fn a_copy_that_was_overtaken_is_over() {
    let (site, mut stale) = Site::new(2);
    put(&mut stale, 1, 10).unwrap();
    let store = MemoryStore::default();
    store.restore(site.store.snapshot());
    site.tokens[1].fail(Some(Fault::Gone));
    let devices = site.devices().start_without([DeviceId(1)]);
    let mut copy = Vault::open(devices, Box::new(store)).unwrap();
    copy.confirm_witnessed().unwrap();
    copy.renew_root().unwrap();
    for value in 20..23 {
        put(&mut copy, 1, value).unwrap();
    }
    site.tokens[1].fail(None);
    let roots = site.tokens[0].snapshot();
    let mut txn = stale.begin();
    txn.put_record(b"vote", b"yes".to_vec());
    assert!(txn.commit().is_err());
    assert!(stale.must_reopen());
    assert!(!stale.heal(&ALL).unwrap());
    assert_eq!(site.tokens[0].snapshot(), roots);
    put(&mut copy, 1, 23).unwrap();
}

/// A device that goes away between opening and unlocking is not left behind unseen.
#[test]
fn unlocking_asks_every_device_again() {
    for fault in [Fault::Gone, Fault::Create] {
        let (site, mut vault) = Site::new(2);
        put(&mut vault, 1, 10).unwrap();
        drop(vault);
        let mut vault = Vault::open(site.devices(), Box::new(site.store.clone())).unwrap();
        site.tokens[1].fail(Some(fault));
        let unlocked = vault.confirm_witnessed().map_err(CommitError::from).and_then(|()| vault.renew_root());
        assert!(unlocked.is_err(), "{fault:?}");
        site.tokens[1].fail(None);
        vault.prepare_spare().unwrap();
        vault.confirm_witnessed().unwrap();
        vault.renew_root().unwrap();
    }
}

/// Two copies of a store, each with a device of its own, would be two signers.
#[test]
fn a_copy_cannot_go_on_by_a_device_that_was_behind() {
    let (site, mut vault) = Site::new(2);
    put(&mut vault, 1, 10).unwrap();
    let copy = site.store.snapshot();
    site.tokens[1].fail(Some(Fault::Gone));
    put(&mut vault, 1, 11).unwrap();
    drop(vault);
    site.tokens[1].fail(None);
    let mut first = site.open().unwrap();
    assert_eq!(states(&first), [Serving, Away]);
    first.confirm_witnessed().unwrap();
    assert!(site.tokens[1].snapshot().is_empty(), "what the copy needs is gone");
    let store = MemoryStore::default();
    store.restore(copy);
    assert!(Vault::open(site.devices(), Box::new(store)).is_err());
    assert!(first.heal(&ALL).unwrap());
    put(&mut first, 1, 12).unwrap();
}

#[test]
fn a_device_that_fails_while_it_joins_is_no_part_of_the_header() {
    for fault in [Fault::Create, Fault::Derive, Fault::Sync, Fault::Destroy] {
        let (site, mut vault) = Site::new(2);
        site.tokens[1].fail(Some(Fault::Gone));
        put(&mut vault, 1, 10).unwrap();
        put(&mut vault, 1, 11).unwrap();
        site.tokens[1].fail(Some(fault));
        let _ = vault.heal(&ALL).unwrap();
        assert_eq!(states(&vault), [Serving, Away], "{fault:?}");
        assert_eq!(put(&mut vault, 1, 12).unwrap().destruction, Destruction::Pending);
        site.tokens[1].fail(None);
        assert!(vault.heal(&ALL).unwrap());
        assert_eq!(put(&mut vault, 1, 13).unwrap().destruction, Destruction::Reported);
        for token in &site.tokens {
            assert_eq!(token.snapshot().into_keys().collect::<Vec<_>>(), [vault.root()]);
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Put(u8),
    Delete(u8),
    Fail(usize, Fault),
    Back(usize),
    Heal,
    Crash(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let fault = prop::sample::select(vec![
        Fault::Create,
        Fault::Derive,
        Fault::Destroy,
        Fault::Sync,
        Fault::Empty,
        Fault::Gone,
    ]);
    prop_oneof![
        6 => (0u8..8).prop_map(Act::Put),
        2 => (0u8..8).prop_map(Act::Delete),
        3 => (0usize..3, fault).prop_map(|(at, fault)| Act::Fail(at, fault)),
        3 => (0usize..3).prop_map(Act::Back),
        3 => Just(Act::Heal),
        3 => (0..Step::ALL.len() + 2).prop_map(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Devices come and go, batches are cut off: live secrets stay readable, and what was replaced in an epoch of which
    /// no member holds a root does not open, by any device and any copy of the store.
    #[test]
    fn devices_come_and_go(acts in prop::collection::vec(act(), 1..40)) {
        let (site, mut vault) = Site::new(3);
        let mut live: BTreeMap<u8, u8> = BTreeMap::new();
        let mut ended: Vec<(u64, u8, u8)> = Vec::new();
        let mut copies = vec![site.store.snapshot()];
        let mut value = 0u8;
        for act in acts {
            match act {
                Act::Put(n) | Act::Delete(n) => {
                    value = value.wrapping_add(1);
                    let mut txn = vault.begin();
                    let next = matches!(act, Act::Put(_)).then_some(value);
                    match next {
                        Some(value) => txn.put_secret(id(n), Zeroizing::new(vec![value; 32])).unwrap(),
                        None => drop(txn.delete_secret(&id(n)).unwrap()),
                    }
                    let committed = txn.commit().map(|c| c.epoch_before);
                    let before = match &committed {
                        Ok(epoch) => Some(*epoch),
                        Err(CommitError::CutOff(step)) => {
                            let durable = *step >= Step::StoreCommitted;
                            vault = match site.open() {
                                Ok(vault) => vault,
                                // No device is there that unlocks: all come back.
                                Err(_) => {
                                    site.tokens.iter().for_each(|token| token.fail(None));
                                    site.open().unwrap()
                                }
                            };
                            if vault.confirm_witnessed().is_err() {
                                site.tokens.iter().for_each(|token| token.fail(None));
                                vault = site.reopen();
                            }
                            durable.then(|| vault.epoch().saturating_sub(1))
                        }
                        Err(_) => None,
                    };
                    if let Some(epoch) = before {
                        ended.extend(live.remove(&n).map(|old| (epoch, n, old)));
                        live.extend(next.map(|value| (n, value)));
                    }
                    vault.set_fail_point(Box::new(|_| true));
                }
                Act::Fail(at, fault) => site.tokens[at].fail(Some(fault)),
                Act::Back(at) => site.tokens[at].fail(None),
                Act::Heal => drop(vault.heal(&ALL)),
                Act::Crash(at) => {
                    if let Some(at) = Step::ALL.get(at).copied() {
                        vault.set_fail_point(Box::new(move |step: Step| step != at));
                    }
                }
            }
            prop_assert!(!vault.must_reopen() || matches!(act, Act::Heal));
            if vault.must_reopen() {
                site.tokens.iter().for_each(|token| token.fail(None));
                vault = site.reopen();
            }
            for n in 0..8 {
                prop_assert_eq!(read(&vault, n), live.get(&n).copied());
            }
            copies.push(site.store.snapshot());
            let destroyed_before = site.destroyed_before(&vault);
            let readable = site.readable(&copies);
            for (epoch, n, old) in &ended {
                let gone = *epoch < destroyed_before;
                prop_assert!(!(gone && readable.contains(&(*n, *old))), "a destroyed secret opens");
            }
        }
        site.tokens.iter().for_each(|token| token.fail(None));
        vault.set_fail_point(Box::new(|_| true));
        vault.retry_destroy();
        vault.heal(&ALL).unwrap();
        vault.retry_destroy();
        put(&mut vault, 0, 0xff).unwrap();
        put(&mut vault, 0, 0xfe).unwrap();
        for token in &site.tokens {
            prop_assert_eq!(token.snapshot().into_keys().collect::<Vec<_>>(), vec![vault.root()]);
        }
        copies.push(site.store.snapshot());
        let readable = site.readable(&copies);
        prop_assert!(ended.iter().all(|(_, n, old)| !readable.contains(&(*n, *old))));
    }
}
