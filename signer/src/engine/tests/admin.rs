//! What a person asks the running signer for.

use super::{Wallet, deposit, quorum::Quorum};
use crate::{
    engine::{Acknowledge, EngineError, Request},
    vault::{
        DeviceId, DeviceState, RootToken as _,
        memory::{Fault, MemoryToken},
    },
};

fn said(kind: &str, id: String) -> Acknowledge {
    Acknowledge { kind: kind.into(), id, operator: None, by: "carol".into(), uid: 7, reason: "seen".into() }
}

#[test]
fn a_root_rotates_once_for_each_epoch_that_is_named() {
    let mut quorum = Quorum::new(2, 3);
    deposit(&mut quorum, &Wallet::new(), 50_000);
    let member = &mut quorum.members[0];
    let epoch = member.engine.vault().epoch();
    let rotated = member.engine.rotate_root(epoch).unwrap();
    assert_eq!((rotated.before, rotated.after), (epoch, epoch + 1));
    assert_eq!(member.token.roots().unwrap(), [member.engine.vault().root()]);
    assert_eq!(member.engine.rotate_root(epoch).unwrap(), rotated, "a repeat changes nothing");
    assert_eq!(member.engine.vault().epoch(), epoch + 1);
    assert!(matches!(member.engine.rotate_root(epoch + 2), Err(EngineError::Malformed(_))));
    let marks = member.engine.marks().unwrap();
    assert_eq!((marks.position.root_epoch, marks.log_size), (epoch + 1, 1));
    assert!(!marks.checkpoint.is_empty());
    quorum.restart(0);
    assert!(matches!(quorum.members[0].engine.rotate_root(epoch + 1), Err(EngineError::Locked)));
}

#[test]
fn an_alarm_of_the_signers_own_lasts_until_a_person_acknowledges_it() {
    let mut quorum = Quorum::new(2, 3);
    let strange = || Request::ConfirmDestruction(DeviceId(0), [9; 32], Vec::new());
    quorum.call(0, strange()).unwrap_err();
    quorum.restart(0);
    quorum.witness(0).unwrap();
    let engine = &mut quorum.members[0].engine;
    let [alarm] = &engine.list_alarms().unwrap()[..] else { panic!() };
    assert_eq!((alarm.kind, alarm.acknowledgeable), ("confirmer_differs", true));
    let id = alarm.id.clone();
    for (kind, reason) in [("rebind", "ALARM_UNKNOWN"), ("no_alarm", "FIELD_INVALID")] {
        assert_eq!(engine.acknowledge(said(kind, id.clone()), 9).unwrap_err().reason(), reason);
    }
    let record = engine.acknowledge(said(alarm.kind, id.clone()), 9).unwrap();
    assert_eq!((record.by.as_str(), record.uid, record.unix_seconds), ("carol", 7, 9));
    assert_eq!(engine.acknowledge(said("confirmer_differs", id), 11).unwrap(), record);
    assert_eq!(engine.alarms().count(), 0);
    quorum.restart(0);
    let engine = &mut quorum.members[0].engine;
    assert_eq!(engine.alarms().count(), 0);
    assert_eq!(engine.acknowledged().collect::<Vec<_>>(), [("confirmer_differs", 1)]);
    assert_eq!(engine.acknowledgements().unwrap(), [record]);
    assert!(matches!(engine.acknowledge(said("rebind", "1".into()), 9), Err(EngineError::Locked)));
    // It can come again.
    quorum.witness(0).unwrap();
    quorum.call(0, strange()).unwrap_err();
    assert_eq!(quorum.members[0].engine.alarms().collect::<Vec<_>>(), ["confirmer_differs"]);
}

/// What a batch could not write down, the next one does.
#[test]
fn an_alarm_outlives_a_batch_that_fails() {
    let mut quorum = Quorum::new(2, 3);
    let strange = || Request::ConfirmDestruction(DeviceId(0), [9; 32], Vec::new());
    quorum.members[0].token.fail(Some(Fault::Gone));
    quorum.call(0, strange()).unwrap_err();
    assert!(quorum.members[0].engine.alarms().any(|alarm| alarm == "commit_failed"));
    quorum.members[0].token.fail(None);
    quorum.call(0, Request::GetStatus(Default::default())).unwrap();
    quorum.restart(0);
    assert_eq!(quorum.members[0].engine.alarms().collect::<Vec<_>>(), ["confirmer_differs"]);
}

/// A confirmation that was on its way while the vault was sealed and opened again is no failure of the store.
#[test]
fn a_confirmation_that_comes_too_early_is_asked_again() {
    let mut quorum = Quorum::new(2, 3);
    let member = &quorum.members[0];
    let (print, roots) = (member.token.fingerprint().unwrap(), member.token.roots().unwrap());
    let confirm = || Request::ConfirmDestruction(DeviceId(0), print, roots.clone());
    quorum.restart(0);
    assert!(matches!(quorum.call(0, confirm()), Err(EngineError::Locked)));
    assert_eq!(quorum.members[0].engine.alarms().count(), 0);
}

#[test]
fn a_device_joins_and_retires_while_the_signer_works() {
    let mut quorum = Quorum::new(2, 3);
    deposit(&mut quorum, &Wallet::new(), 50_000);
    let second = MemoryToken::spare(7);
    let engine = &mut quorum.members[0].engine;
    for (wrong, what) in [(1, "is not there"), (0, "is the last one")] {
        let refused = engine.retire_device(DeviceId(wrong)).unwrap_err();
        assert_eq!(refused.reason(), "DEVICE_STATE", "{what}");
    }
    // What receipts may claim is lowered before the device can serve: it may join later than it was offered.
    engine.set_delete_claim("device");
    second.fail(Some(Fault::Create));
    engine.add_device(DeviceId(1), std::sync::Arc::new(second.clone()), "host-media").unwrap();
    assert_eq!(engine.devices().unwrap().iter().filter(|of| of.member).count(), 1, "it did not join");
    assert_eq!(engine.shared.delete_claim, "host-media");
    second.fail(None);
    for _ in 0..2 {
        engine.add_device(DeviceId(1), std::sync::Arc::new(second.clone()), "none").unwrap();
    }
    let states: Vec<_> = engine.devices().unwrap().iter().map(|of| (of.status.state, of.member)).collect();
    assert_eq!(states, [(DeviceState::Serving, true); 2]);
    assert_eq!(second.roots().unwrap(), [engine.vault().root()]);
    let epoch = engine.vault().epoch();
    engine.rotate_root(epoch).unwrap();
    assert_eq!(second.roots().unwrap(), [engine.vault().root()]);

    engine.retire_device(DeviceId(1)).unwrap();
    engine.heal_devices(&[]).unwrap();
    assert_eq!(second.roots().unwrap(), []);
    let print = second.fingerprint().unwrap();
    quorum.call(0, Request::ConfirmDestruction(DeviceId(1), print, Vec::new())).unwrap();
    let engine = &mut quorum.members[0].engine;
    engine.heal_devices(&[]).unwrap();
    assert_eq!(engine.devices().unwrap().len(), 1, "forgotten");
    assert_eq!(engine.alarms().count(), 0);
    // It may come back, and only if it is asked for.
    engine.add_device(DeviceId(1), std::sync::Arc::new(second.clone()), "none").unwrap();
    assert_eq!(second.roots().unwrap(), [engine.vault().root()]);

    // The one that was first is no different: the keys that speak for the signer are not its roots.
    engine.retire_device(DeviceId(0)).unwrap();
    engine.heal_devices(&[]).unwrap();
    assert_eq!(engine.retire_device(DeviceId(1)).unwrap_err().reason(), "DEVICE_STATE", "the last one");
    let token = quorum.members[0].token.clone();
    assert_eq!(token.roots().unwrap(), []);
    let print = token.fingerprint().unwrap();
    quorum.call(0, Request::ConfirmDestruction(DeviceId(0), print, Vec::new())).unwrap();
    let engine = &mut quorum.members[0].engine;
    engine.heal_devices(&[]).unwrap();
    assert_eq!(engine.devices().unwrap().iter().map(|of| of.status.id).collect::<Vec<_>>(), [DeviceId(1)]);
    let epoch = engine.vault().epoch();
    engine.rotate_root(epoch).unwrap();
    assert_eq!(second.roots().unwrap(), [engine.vault().root()]);
}
