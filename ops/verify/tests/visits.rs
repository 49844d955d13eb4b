//! A log compared with a checkpoint that was seen before.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;

use common::{Receipt, Said, World, record, run, story};
use spark_verify::{Error, Reason};

fn at(position: (u64, u64), destroyed_before: u64) -> Said {
    Said { position, destroyed_before, ..Said::default() }
}

/// A world that saw a log of `size` records at position (5, 50).
fn seen(size: usize) -> (World, Vec<Receipt>) {
    let world = World::new();
    let receipts = story(size);
    world.publish(&receipts, &at((5, 50), 4));
    fs::copy(world.path("log/checkpoint"), world.path("since")).unwrap();
    (world, receipts)
}

#[test]
fn a_log_that_grew_holds() {
    for (before, now) in [(0, 0), (0, 3), (1, 2), (255, 257), (256, 700), (300, 300)] {
        let (world, _) = seen(before);
        world.publish(&story(now), &at((6, 60), 5));
        let report = world.verify();
        assert_eq!(report.failures, [], "{before} {now}");
        assert!(report.since.unwrap().continued);
        assert!(report.proves.iter().any(|line| line.contains("the log only grew")));
    }
}

#[test]
fn a_forked_log_is_evidence() {
    for now in [300, 700] {
        let (world, _) = seen(300);
        let mut records: Vec<_> = story(now).iter().map(record).collect();
        records[17] = [1; 32];
        fs::remove_file(world.path("entries.jsonl")).unwrap();
        world.publish_records(&records, &at((6, 60), 5));
        let report = world.verify();
        assert_eq!(common::reasons(&report), [Reason::LogForked], "{now}");
        let notes = &report.failures[0].notes;
        assert_eq!(notes[0], fs::read_to_string(world.path("since")).unwrap());
        assert_eq!(notes[1], fs::read_to_string(world.path("log/checkpoint")).unwrap());
        let shown = report.to_string();
        assert!(
            shown.contains("FAILED LOG_FORKED") && notes.iter().all(|note| shown.contains(note.as_str()))
        );
    }
}

#[test]
fn a_fork_of_the_same_size_shows_without_tiles() {
    let (world, _) = seen(3);
    let mut records: Vec<_> = story(3).iter().map(record).collect();
    records[1] = [1; 32];
    world.publish_records(&records, &at((6, 60), 5));
    fs::remove_dir_all(world.path("log/tile")).unwrap();
    assert!(world.reasons().contains(&Reason::LogForked));
}

#[test]
fn a_shrunk_log_is_evidence() {
    let (world, mut receipts) = seen(300);
    receipts.truncate(299);
    world.publish(&receipts, &at((5, 51), 4));
    let report = world.verify();
    assert_eq!(common::reasons(&report), [Reason::LogShrunk]);
    assert_eq!(report.failures[0].notes.len(), 2);
    // By its own word shorter, although the head is no smaller.
    let (world, receipts) = seen(300);
    let said = Said { log_size: Some(320), ..at((5, 50), 4) };
    world.publish(&receipts, &said);
    fs::copy(world.path("log/checkpoint"), world.path("since")).unwrap();
    world.publish(&receipts, &Said { log_size: Some(310), ..at((6, 60), 4) });
    assert_eq!(world.reasons(), [Reason::LogShrunk]);
}

#[test]
fn an_older_checkpoint_is_no_evidence() {
    // An earlier position; the same position, within which a head may be signed twice; an earlier head of a log that
    // is not shorter.
    for said in [at((5, 49), 4), at((5, 50), 4), Said { log_size: Some(400), ..at((6, 60), 4) }] {
        let (world, mut receipts) = seen(300);
        receipts.truncate(299);
        world.publish(&receipts, &said);
        assert_eq!(world.reasons(), [Reason::CheckpointOlder]);
    }
}

#[test]
fn epoch_and_position_do_not_go_back() {
    for (said, reason) in [
        (at((4, 60), 4), Reason::PositionBack),
        (at((6, 49), 4), Reason::PositionBack),
        (at((6, 60), 3), Reason::DestroyedBeforeBack),
    ] {
        let (world, _) = seen(300);
        world.publish(&story(301), &said);
        assert_eq!(world.reasons(), [reason]);
    }
}

#[test]
fn an_earlier_checkpoint_must_be_the_operators() {
    let (world, receipts) = seen(3);
    let since = fs::read_to_string(world.path("since")).unwrap();
    let (text, _) = since.split_once("\n\n").unwrap();
    let text = format!("{text}\n");
    world.write("since", format!("{text}\n{}", world.signed_by(&text, &world.name("1"), &world.keys[0][0])));
    world.publish(&receipts, &at((6, 60), 5));
    assert_eq!(world.reasons(), [Reason::SinceUnsigned]);
    let other = text.replace(&world.name("1"), &world.name("2"));
    for bad in [
        String::new(),
        text.clone(),
        format!("{other}\n{}", world.signed_by(&other, &world.name("2"), &world.keys[2][0])),
    ] {
        world.write("since", bad);
        assert!(matches!(run(&world.options()), Err(Error::Since(_))));
    }
}

#[test]
fn only_what_holds_is_saved() {
    let (world, mut receipts) = seen(300);
    let before = fs::read(world.path("since")).unwrap();
    let mut options = world.options();
    options.save = Some(world.path("since"));
    receipts.truncate(299);
    world.publish(&receipts, &at((6, 60), 4));
    assert!(!run(&options).unwrap().saved);
    assert_eq!(fs::read(world.path("since")).unwrap(), before, "evidence is not overwritten");
    world.publish(&story(400), &at((7, 70), 5));
    assert!(run(&options).unwrap().saved);
    assert_eq!(fs::read(world.path("since")).unwrap(), fs::read(world.path("log/checkpoint")).unwrap());
}
