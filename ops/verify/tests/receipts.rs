//! Entries against records, and the histories of keyshares that they tell.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Receipt, Said, World, place, point, receipt, run, story, unused};
use serde_json::{Value, json};
use spark_verify::{Error, Reason};

/// What is found in a log of these receipts, which the operator signed.
fn judged(mut receipts: Vec<Receipt>) -> Vec<Reason> {
    place(&mut receipts);
    told(&receipts)
}

fn told(receipts: &[Receipt]) -> Vec<Reason> {
    let world = World::new();
    world.publish(receipts, &Said::default());
    world.reasons()
}

/// What is found if these entries are shown for a log of the story.
fn shown(change: impl FnOnce(&mut Vec<Receipt>)) -> Vec<Reason> {
    let world = World::new();
    let mut receipts = story(12);
    world.publish(&receipts, &Said::default());
    change(&mut receipts);
    world.write_entries(&receipts);
    world.reasons()
}

#[test]
fn the_totals_are_told() {
    let world = World::new();
    world.publish(&story(12), &Said { destroyed_before: 4, ..Said::default() });
    let report = world.verify();
    let entries = report.entries.clone().unwrap();
    assert_eq!((entries.read, entries.keyshares, entries.beyond, entries.long_lived_claims), (12, 2, 0, 2));
    assert!(
        ["dkg", "deposit", "send", "claim", "abort", "renew"].iter().all(|phase| entries.phases[*phase] == 2)
    );
    // Entries 0 to 5 end in epochs 1, 2, 3, 4, 5, 6 and retire, but for the first, under 1, 2, 3, 4, 5.
    assert_eq!((entries.confirmed, entries.pending), (4, 8));
    assert_eq!(entries.delete_claims["device"], 12);
    let text = report.to_string();
    for part in ["4 confirmed, 8 pending", "delete_claim: device 12", "This proves:", "This does not prove:"]
    {
        assert!(text.contains(part), "{part}");
    }
    let proves = report.proves.join("\n");
    assert!(proves.contains("from epoch 4 on") && proves.contains("no root copies existed"));
    let not = report.does_not_prove.join("\n");
    for part in
        ["does not exist any more", "delete_claim seen: device", "does not lie", "2 claims", "8 destructions"]
    {
        assert!(not.contains(part), "{part}");
    }
}

#[test]
fn what_is_made_needs_no_root_to_be_confirmed() {
    // The making of a key retires nothing: its batch may end in the epoch in which it began.
    let world = World::new();
    let mut receipts = story(2);
    for (receipt, epochs) in receipts.iter_mut().zip([(4, 4), (4, 5)]) {
        receipt.insert("root_epoch_before".into(), epochs.0.into());
        receipt.insert("root_epoch_after".into(), epochs.1.into());
    }
    world.publish(&receipts, &Said { destroyed_before: 4, ..Said::default() });
    let entries = world.verify().entries.unwrap();
    assert_eq!((entries.confirmed, entries.pending), (1, 1));
}

#[test]
fn a_forged_receipt_is_found_whatever_field_is_changed() {
    let fields: [(&str, Value); 18] = [
        ("incarnation", json!("12".repeat(16))),
        ("sequence", json!(99)),
        ("keyshare_id", json!("77".repeat(16))),
        ("leaf_id", json!("leaf-x")),
        ("operation_id", json!("77".repeat(16))),
        ("phase", json!("claim")),
        ("retired_version", json!(7)),
        ("new_version", json!(7)),
        ("retired_public_share", json!(point(77))),
        ("new_public_share", json!(point(77))),
        ("tweak_commitment", json!(point(77))),
        ("root_epoch_before", json!(77)),
        ("root_epoch_after", json!(77)),
        ("root_id_before", json!("77".repeat(16))),
        ("delete_claim", json!("none")),
        ("package_kind", json!("other")),
        ("unix_seconds", json!(77)),
        ("live_versions", json!([2, 1])),
    ];
    for (name, value) in fields {
        let reasons = shown(|receipts| drop(receipts[2].insert(name.into(), value)));
        assert_eq!(reasons, [Reason::EntryDiffers], "{name}");
    }
    assert_eq!(shown(|r| drop(r[2].insert("salt".into(), "77".repeat(32).into()))), [Reason::EntryDiffers]);
    assert_eq!(shown(|r| drop(r[2].insert("state".into(), "confirmed".into()))), [], "signed by nobody");
}

#[test]
fn package_keys_that_died_unused_are_counted_once() {
    let with = |entries: &[Receipt]| [story(6), entries.to_vec()].concat();
    let world = World::new();
    let mut receipts = with(&[unused(&[1, 2]), unused(&[3])]);
    place(&mut receipts);
    world.publish(&receipts, &Said::default());
    let report = world.verify();
    assert!(report.holds);
    assert!(report.to_string().contains("3 package keys that died unused"));
    let entries = report.entries.unwrap();
    assert_eq!((entries.read, entries.keyshares, entries.unused_package_keys), (8, 1, 3));

    // Another key than the one in the log.
    receipts[6].insert("package_keys".into(), json!(["77".repeat(16), "78".repeat(16)]));
    world.write_entries(&receipts);
    assert_eq!(world.reasons(), [Reason::EntryDiffers]);
    assert_eq!(judged(with(&[unused(&[1, 2]), unused(&[2])])), [Reason::PackageKeyRepeated]);
    assert_eq!(judged(with(&[unused(&[])])), [Reason::EntryMalformed]);
    assert_eq!(judged(with(&[unused(&[2, 1])])), [Reason::EntryMalformed]);
    assert_eq!(judged(with(&[unused(&(1..=257).collect::<Vec<_>>())])), [Reason::EntryMalformed]);
    for (name, value) in [
        ("keyshare_id", json!("77".repeat(16))),
        ("operation_id", json!("77".repeat(16))),
        ("retired_public_share", json!(point(1))),
        ("new_public_share", json!(point(1))),
        ("tweak_commitment", json!(point(1))),
        ("new_version", json!(1)),
        ("package_keys", json!(["77".repeat(15)])),
    ] {
        let mut more = unused(&[1]);
        more.insert(name.into(), value);
        assert_eq!(judged(with(&[more])), [Reason::EntryMalformed], "{name}");
    }
}

#[test]
fn dropped_swapped_and_missing_entries_are_found() {
    assert_eq!(shown(|_| ()), []);
    assert_eq!(shown(|r| drop(r.remove(4))), [Reason::EntryIndex]);
    assert_eq!(shown(|r| r.swap(3, 4)), [Reason::EntryIndex]);
    assert_eq!(shown(|r| r.insert(5, r[4].clone())), [Reason::EntryIndex], "the same receipt twice");
    assert_eq!(shown(|r| r.truncate(11)), [Reason::EntriesMissing]);
    assert_eq!(shown(Vec::clear), [Reason::EntriesMissing]);
    // In the place of another, with its number.
    let renumbered = |r: &mut Vec<Receipt>| {
        r.swap(3, 4);
        r[3].insert("log_index".into(), 3.into());
        r[4].insert("log_index".into(), 4.into());
    };
    assert_eq!(shown(renumbered), [Reason::EntryDiffers]);
}

#[test]
fn entries_beyond_the_checkpoint_prove_nothing() {
    let world = World::new();
    world.publish(&story(7), &Said::default());
    world.write_entries(&story(12));
    let report = world.verify();
    assert!(report.holds);
    let entries = report.entries.unwrap();
    assert_eq!((entries.read, entries.beyond, entries.keyshares), (7, 5, 2));
}

#[test]
fn a_salt_has_32_bytes() {
    let mut receipts = story(3);
    receipts[1].insert("salt".into(), "00".into());
    assert_eq!(told(&receipts), [Reason::EntryMalformed]);
}

#[test]
fn lines_that_cannot_be_read_are_an_error() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    let good = std::fs::read_to_string(world.path("entries.jsonl")).unwrap();
    let second = |line: &str| {
        let mut lines: Vec<_> = good.lines().collect();
        lines[1] = line;
        lines.join("\n")
    };
    let line = good.lines().nth(1).unwrap();
    for bad in [
        "{".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        String::new(),
        line.replace("\"log_index\":1", "\"log_index\":\"1\""),
        line.replace("\"salt\":\"", "\"salt\":\"g"),
        line.replace("\"incarnation\":\"11", "\"incarnation\":\"AA"),
        line.replace("{", "{\"sequence\":1,"),
        format!("{line}{}", " ".repeat(70_000)),
    ] {
        world.write("entries.jsonl", second(&bad));
        let error = run(&world.options()).unwrap_err();
        assert!(matches!(error, Error::Entries { line: 2, .. }), "{bad}: {error}");
    }
    world.write("entries.jsonl", good.trim_end());
    assert_eq!(world.reasons(), [], "the last line needs no end");
}

#[test]
fn a_replayed_receipt_is_found() {
    // Under a salt of its own, so that its record is a new one.
    let mut receipts = story(6);
    receipts.push(receipts[2].clone());
    assert_eq!(judged(receipts.clone()), [Reason::VersionRepeated]);
    receipts.pop();
    receipts.push(receipts[0].clone());
    assert_eq!(judged(receipts), [Reason::KeyshareRestarted]);
}

#[test]
fn a_version_gap_is_found() {
    let mut receipts = story(6);
    receipts.remove(2);
    // Told once: what follows continues from there. The abort in between still names the live version.
    assert_eq!(judged(receipts), [Reason::VersionGap]);
    let mut jump = story(2);
    jump[1].insert("new_version".into(), 2.into());
    jump[1].insert("live_versions".into(), json!([2]));
    assert_eq!(judged(jump), [Reason::VersionGap]);
}

#[test]
fn a_keyshare_begins_with_its_making() {
    assert_eq!(judged(story(6).split_off(1)), [Reason::KeyshareBegin]);
    assert_eq!(judged(vec![receipt(1, "abort", 3, 3, (5, 5), 2)]), [Reason::KeyshareBegin]);
    assert_eq!(judged(vec![receipt(1, "dkg", 0, 1, (0, 5), 0)]), [Reason::KeyshareBegin]);
    assert_eq!(judged(vec![receipt(1, "dkg", 0, 0, (0, 0), 0)]), [Reason::EntryMalformed]);
}

#[test]
fn d12_a_repaired_log_begins_late_and_does_not_hide_it() {
    let repaired = || receipt(1, "repair", 4, 4, (0, 5), 0);
    let world = World::new();
    let mut receipts = vec![repaired(), receipt(1, "send", 4, 5, (5, 12), 7)];
    place(&mut receipts);
    world.publish(&receipts, &Said::default());
    let report = world.verify();
    assert_eq!(report.entries.as_ref().unwrap().repaired, 1);
    assert!(report.does_not_prove.join("\n").contains("1 keyshares: they came back by repair"));
    assert_eq!(judged(vec![repaired(), repaired()]), [Reason::KeyshareRestarted]);
    assert_eq!(judged(vec![receipt(1, "repair", 3, 4, (0, 5), 0)]), [Reason::VersionGap]);
    assert_eq!(judged(vec![receipt(1, "repair", 4, 4, (0, 0), 0)]), [Reason::EntryMalformed]);
}

#[test]
fn d12_a_refresh_is_told_once_it_is_confirmed() {
    let mut receipts = vec![receipt(1, "repair", 4, 4, (0, 5), 0), receipt(1, "refresh", 4, 5, (5, 12), 7)];
    place(&mut receipts);
    for (destroyed_before, told) in [(1, 0), (2, 1)] {
        let world = World::new();
        world.publish(&receipts, &Said { destroyed_before, ..Said::default() });
        let report = world.verify();
        let entries = report.entries.clone().unwrap();
        assert!(report.holds);
        assert_eq!((entries.repaired_keyshares.len(), entries.refreshes.len()), (1, told));
        let not = report.does_not_prove.join("\n");
        assert!(not.contains("1 keyshares: they came back by repair"));
        assert_eq!(not.contains("shares lost of 1 of them"), told == 1);
    }
    let made = || receipt(1, "dkg", 0, 0, (0, 5), 0);
    assert_eq!(judged(vec![made(), receipt(1, "refresh", 0, 1, (5, 13), 7)]), [Reason::ShareSum]);
    assert_eq!(judged(vec![made(), receipt(1, "refresh", 0, 1, (5, 5), 0)]), [Reason::ShareSum]);
    assert_eq!(judged(vec![made(), receipt(1, "refresh", 0, 2, (5, 12), 7)]), [Reason::VersionGap]);
}

#[test]
fn only_the_newest_version_lives() {
    for live in [json!([1, 2]), json!([]), json!([1]), json!([2, 2])] {
        let mut receipts = story(6);
        receipts[2].insert("live_versions".into(), live.clone());
        assert_eq!(judged(receipts), [Reason::VersionLive], "{live}");
    }
}

#[test]
fn shares_must_add_up() {
    let made = || receipt(1, "dkg", 0, 0, (0, 5), 0);
    for (next, reasons) in [
        (receipt(1, "send", 0, 1, (5, 12), 7), &[][..]),
        (receipt(1, "retire", 0, 1, (5, 12), 7), &[]),
        (receipt(1, "renew", 0, 1, (5, 12), 7), &[]),
        (receipt(1, "renew", 0, 1, (5, 5), 0), &[]),
        (receipt(1, "deposit", 0, 1, (5, 5), 0), &[]),
        (receipt(1, "send", 0, 1, (5, 13), 7), &[Reason::ShareSum]),
        (receipt(1, "send", 0, 1, (5, 5), 0), &[Reason::ShareSum]),
        (receipt(1, "claim", 0, 1, (5, 5), 0), &[Reason::ShareSum]),
        (receipt(1, "renew", 0, 1, (5, 6), 0), &[Reason::ShareSum]),
        (receipt(1, "send", 0, 1, (6, 13), 7), &[Reason::ShareBroken]),
        (receipt(1, "send", 0, 1, (5, 0), 7), &[Reason::ShareSum]),
        (receipt(1, "burn", 0, 1, (5, 12), 7), &[Reason::PhaseUnknown]),
    ] {
        assert_eq!(judged(vec![made(), next.clone()]), reasons, "{next:?}");
    }
    // The opposite point: the sum is none.
    let mut opposite = receipt(1, "send", 0, 1, (5, 5), 5);
    let negated = match point(5).strip_prefix("02") {
        Some(x) => format!("03{x}"),
        None => point(5).replacen("03", "02", 1),
    };
    opposite.insert("tweak_commitment".into(), negated.into());
    assert_eq!(judged(vec![made(), opposite]), [Reason::ShareSum]);
}

#[test]
fn an_abort_changes_nothing() {
    let made = || receipt(1, "dkg", 0, 0, (0, 5), 0);
    assert_eq!(judged(vec![made(), receipt(1, "abort", 0, 0, (5, 5), 2)]), []);
    for bad in [
        receipt(1, "abort", 0, 1, (5, 5), 2),
        receipt(1, "abort", 1, 1, (5, 5), 2),
        receipt(1, "abort", 0, 0, (5, 7), 2),
        receipt(1, "abort", 0, 0, (7, 7), 2),
    ] {
        assert_eq!(judged(vec![made(), bad.clone()]), [Reason::AbortChanges], "{bad:?}");
    }
    // The next step starts from what was live.
    let after = [made(), receipt(1, "abort", 0, 0, (5, 5), 2), receipt(1, "send", 0, 1, (5, 7), 2)];
    assert_eq!(judged(after.to_vec()), []);
}

#[test]
fn root_epochs_do_not_go_back() {
    for (before, after) in [(1, 9), (3, 2), (9, 8), (2, 3)] {
        let mut receipts = story(8);
        receipts[6].insert("root_epoch_before".into(), before.into());
        receipts[6].insert("root_epoch_after".into(), after.into());
        receipts.truncate(7);
        assert_eq!(told(&receipts), [Reason::EpochBack], "{before} {after}");
    }
}

/// What a root sealed dies with that root: not without any, nor with an earlier one.
#[test]
fn root_epochs_rise_where_a_phase_destroys() {
    let bent = |index: usize, before: u64, after: u64| {
        let mut receipts = story(index + 1);
        receipts[index].insert("root_epoch_before".into(), before.into());
        receipts[index].insert("root_epoch_after".into(), after.into());
        told(&receipts)
    };
    for (index, phase) in [(1, "deposit"), (2, "send"), (3, "claim"), (5, "renew")] {
        let epoch = index as u64;
        assert_eq!(bent(index, epoch, epoch + 1), [], "{phase}");
        assert_eq!(bent(index, epoch, epoch + 4), [], "{phase}: one that comes later");
        assert_eq!(bent(index, epoch, epoch), [Reason::EpochBack], "{phase}: without a new root");
    }
    // One batch for two versions of one key: the second was sealed by the root that the batch made.
    assert_eq!(bent(2, 1, 2), [Reason::EpochBack]);
    assert_eq!(bent(3, 2, 4), [Reason::EpochBack]);
    // Making a key destroys nothing, nor does an aborted attempt by itself.
    assert_eq!((bent(0, 1, 1), bent(4, 4, 4)), (vec![], vec![]));
    let with_unused = |after: u64| {
        let mut receipts = [story(6), vec![unused(&[1])]].concat();
        place(&mut receipts);
        receipts[6].insert("root_epoch_after".into(), after.into());
        told(&receipts)
    };
    assert_eq!((with_unused(7), with_unused(6)), (vec![], vec![Reason::EpochBack]));
    // Two keys may well change in one batch.
    let mut receipts = [story(2), story(2)].concat();
    for receipt in &mut receipts[2..] {
        receipt.insert("keyshare_id".into(), "77".repeat(16).into());
    }
    place(&mut receipts);
    for (receipt, (before, after)) in receipts.iter_mut().zip([(1, 1), (1, 2), (1, 2), (2, 3)]) {
        receipt.insert("root_epoch_before".into(), before.into());
        receipt.insert("root_epoch_after".into(), after.into());
    }
    receipts.swap(1, 2);
    for (index, receipt) in (0u64..).zip(&mut receipts) {
        receipt.insert("log_index".into(), index.into());
    }
    assert_eq!(told(&receipts), []);
}
