//! Logs of many sizes, and what is wrong with checkpoints, signatures, bundles and tiles.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;

use common::{OPERATOR, Said, World, record, run, story};
use ed25519_dalek::{Signer as _, SigningKey};
use spark_verify::{Error, Reason};

#[test]
fn logs_of_all_sizes_hold() {
    let world = World::new();
    for size in [0, 1, 2, 255, 256, 257, 1000] {
        let receipts = story(size);
        world.publish(&receipts, &Said::default());
        let report = world.verify();
        assert_eq!(report.failures, [], "{size}");
        assert!(report.holds);
        let tree = report.tree.unwrap();
        let bundles = size.div_ceil(256);
        let upper = usize::from(size >= 256);
        assert_eq!((tree.records, tree.bundles, tree.rebuilt), (size as u64, bundles as u64, true));
        assert_eq!(tree.tiles, (bundles + upper) as u64, "{size}");
        let entries = report.entries.unwrap();
        assert_eq!((entries.read, entries.keyshares), (size as u64, size.div_ceil(6) as u64));
        assert_eq!(entries.confirmed + entries.pending, size as u64);
        let witnesses = report.witnesses.unwrap();
        assert_eq!((witnesses.needed, witnesses.distinct, witnesses.ignored), (3, 3, 0));
        let seen: Vec<_> = witnesses.cosignatures.iter().map(|c| (c.operator, c.unix_seconds)).collect();
        assert_eq!(seen, [(0, 1_700_000_001), (2, 1_700_000_002), (4, 1_700_000_003)]);
    }
}

#[test]
fn a_full_tile_stands_for_a_partial_one_that_is_gone() {
    let world = World::new();
    world.publish(&story(300), &Said::default());
    // The log grew to a full tile and dropped the partial ones; an old head is still served.
    let records: Vec<_> = story(600).iter().map(record).collect();
    let old = fs::read(world.path("log/checkpoint")).unwrap();
    world.publish_records(&records, &Said::default());
    world.write("log/checkpoint", old);
    fs::write(
        world.path("log/tile/1/000.p/1"),
        fs::read(world.path("log/tile/1/000.p/2")).unwrap().split_at(32).0,
    )
    .unwrap();
    assert_eq!(world.reasons(), []);
    // What is too short is no full tile.
    world.bend("log/tile/0/001", |bytes| bytes.truncate(32 * 255));
    assert_eq!(world.reasons(), [Reason::TileDiffers]);
}

#[test]
fn a_tampered_tile_is_found_at_every_level() {
    let world = World::new();
    for tile in ["log/tile/0/000", "log/tile/0/003.p/232", "log/tile/1/000.p/3"] {
        world.publish(&story(1000), &Said::default());
        world.bend(tile, |bytes| bytes[40] ^= 1);
        let report = world.verify();
        assert_eq!(common::reasons(&report), [Reason::TileDiffers], "{tile}");
        assert!(report.failures[0].detail.starts_with(&tile["log/".len()..]), "it is named");
        assert_eq!(report.proves, ["nothing: not everything holds"]);
    }
}

#[test]
fn a_missing_tile_or_bundle_is_found() {
    let world = World::new();
    for (gone, reason) in [
        ("log/tile/0/000", Reason::TileMissing),
        ("log/tile/1/000.p/3", Reason::TileMissing),
        ("log/tile/entries/002", Reason::BundleMissing),
        ("log/tile/entries/003.p/232", Reason::BundleMissing),
        ("log/checkpoint", Reason::CheckpointMissing),
    ] {
        world.publish(&story(1000), &Said::default());
        fs::remove_file(world.path(gone)).unwrap();
        assert_eq!(world.reasons(), [reason], "{gone}");
    }
}

#[test]
fn a_log_without_files_is_not_read_to_its_end() {
    let world = World::new();
    world.publish_records(
        &(0..70_000u64).map(|i| [i.to_be_bytes(); 4].concat().try_into().unwrap()).collect::<Vec<_>>(),
        &Said::default(),
    );
    fs::remove_dir_all(world.path("log/tile")).unwrap();
    let report = world.verify();
    assert_eq!(common::reasons(&report), [Reason::BundleMissing, Reason::TileMissing]);
    assert!(report.tree.unwrap().bundles < 40);
}

#[test]
fn a_tampered_bundle_is_found() {
    let world = World::new();
    world.publish(&story(600), &Said::default());
    world.bend("log/tile/entries/001", |bytes| bytes[100] ^= 1);
    let report = world.verify();
    assert_eq!(common::reasons(&report), [Reason::BundleDiffers]);
    assert!(report.failures[0].detail.contains("tile/entries/001"));
    assert!(!report.tree.unwrap().rebuilt);
}

#[test]
fn swapped_records_are_found() {
    let world = World::new();
    world.publish(&story(10), &Said::default());
    world.bend("log/tile/entries/000.p/10", |bytes| bytes[..68].rotate_left(34));
    assert_eq!(world.reasons(), [Reason::BundleDiffers]);
}

#[test]
fn a_dropped_record_is_found() {
    let world = World::new();
    world.publish(&story(10), &Said::default());
    world.bend("log/tile/entries/000.p/10", |bytes| drop(bytes.drain(34..68)));
    assert_eq!(world.reasons(), [Reason::BundleMalformed]);
    // Dropped everywhere, under the head that was signed with it.
    let mut receipts = story(10);
    let signed = {
        world.publish(&receipts, &Said::default());
        fs::read(world.path("log/checkpoint")).unwrap()
    };
    receipts[4] = receipts[5].clone();
    receipts[5].insert("salt".into(), "77".repeat(32).into());
    world.publish(&receipts, &Said::default());
    world.write("log/checkpoint", signed);
    assert_eq!(world.reasons(), [Reason::RootDiffers]);
}

#[test]
fn a_record_that_stands_twice_is_found_without_entries() {
    let world = World::new();
    let mut records: Vec<_> = story(9).iter().map(record).collect();
    records.push(records[3]);
    world.publish_records(&records, &Said::default());
    assert_eq!(world.reasons(), [Reason::RecordRepeated]);
}

#[test]
fn a_checkpoint_by_another_key_is_refused() {
    let world = World::new();
    let receipts = story(3);
    world.publish(&receipts, &Said::default());
    let note = fs::read_to_string(world.path("log/checkpoint")).unwrap();
    let (text, _) = note.split_once("\n\n").unwrap();
    let text = format!("{text}\n");
    let name = world.name(&OPERATOR.to_string());
    let put = |line: String| world.write("log/checkpoint", format!("{text}\n{line}"));
    // Another member's key, and a stranger's.
    for key in [&world.keys[2][0], &SigningKey::from_bytes(&[9; 32])] {
        put(world.signed_by(&text, &name, key));
        assert_eq!(world.reasons(), [Reason::CheckpointUnsigned]);
    }
    // The operator's key under another name.
    put(world.signed_by(&text, "elsewhere", &world.keys[1][0]));
    assert_eq!(world.reasons(), [Reason::CheckpointUnsigned]);
    // The operator's name and key id, another's signature.
    put(World::line(&name, 1, &world.keys[1][0], &world.keys[2][0].sign(text.as_bytes()).to_bytes()));
    assert_eq!(world.reasons(), [Reason::CheckpointSignature]);
    // A cosignature is no signature of the log, even by its operator.
    put(World::line(&name, 4, &world.keys[1][0], &world.keys[1][0].sign(text.as_bytes()).to_bytes()));
    assert_eq!(world.reasons(), [Reason::CheckpointUnsigned]);
    // A byte that is not what was signed.
    world.write("log/checkpoint", note.replace("destroyed-before 4", "destroyed-before 9"));
    assert_eq!(world.reasons(), [Reason::CheckpointSignature]);
    // Either of the operator's two keys is good.
    for key in &world.keys[1] {
        let cosigned: String = [0u16, 2, 3]
            .iter()
            .map(|w| world.cosigned(&text, *w, &world.keys[usize::from(*w)][0], 5))
            .collect();
        put(world.signed_by(&text, &name, key) + &cosigned);
        assert_eq!(world.reasons(), []);
    }
}

#[test]
fn a_checkpoint_of_another_log_is_refused() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    let mut options = world.options();
    options.operator = 2;
    assert_eq!(common::reasons(&run(&options).unwrap()), [Reason::CheckpointOrigin]);
    options.operator = 5;
    assert!(matches!(run(&options), Err(Error::Usage(_))));
}

#[test]
fn a_malformed_checkpoint_is_refused() {
    let world = World::new();
    for extra in ["spark/position 1 1\n", "spark/destroyed-before 4\n", "spark/log-size 3\n", "\n"] {
        world.publish(&story(3), &Said { extra: extra.into(), ..Said::default() });
        assert_eq!(world.reasons(), [Reason::CheckpointMalformed], "{extra:?}");
    }
    world.publish(&story(3), &Said { log_size: Some(2), ..Said::default() });
    assert_eq!(world.reasons(), [Reason::CheckpointMalformed]);
    world.publish(&story(3), &Said { log_size: Some(9), extra: "other/line 1\n".into(), ..Said::default() });
    assert_eq!(world.reasons(), [], "an earlier head, and lines of others");
}

#[test]
fn roots_that_were_not_made_are_not_destroyed() {
    let world = World::new();
    world.publish(&story(3), &Said { position: (3, 9), destroyed_before: 4, ..Said::default() });
    assert_eq!(world.reasons(), [Reason::DestroyedBeforeAhead]);
    world.publish(&story(3), &Said { position: (4, 9), destroyed_before: 4, ..Said::default() });
    assert_eq!(world.reasons(), []);
}

#[test]
fn only_cosignatures_of_distinct_others_count() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    let note = fs::read_to_string(world.path("log/checkpoint")).unwrap();
    let (text, _) = note.split_once("\n\n").unwrap();
    let text = format!("{text}\n");
    let signed = format!("{text}\n{}", world.signed_by(&text, &world.name("1"), &world.keys[1][0]));
    let good = |w: u16, time| world.cosigned(&text, w, &world.keys[usize::from(w)][0], time);
    let found = |lines: &[String]| {
        world.write("log/checkpoint", format!("{signed}{}", lines.concat()));
        let report = world.verify();
        let witnesses = report.witnesses.clone().unwrap();
        (common::reasons(&report), witnesses.distinct, witnesses.ignored)
    };
    let few = vec![Reason::WitnessesTooFew];
    assert_eq!(found(&[good(0, 5), good(2, 5), good(3, 5)]), (vec![], 3, 0));
    assert_eq!(found(&[good(0, 5), good(2, 5)]), (few.clone(), 2, 0));
    assert_eq!(found(&[good(0, 5), good(2, 5), good(2, 6)]), (few.clone(), 2, 0), "one witness twice");
    // The log's own operator is no witness of itself.
    assert_eq!(found(&[good(0, 5), good(2, 5), good(1, 5)]), (few.clone(), 2, 1));
    // A foreign key, and another member's, under a witness's name.
    let foreign = world.cosigned(&text, 3, &SigningKey::from_bytes(&[9; 32]), 5);
    let other = world.cosigned(&text, 4, &world.keys[0][0], 5);
    assert_eq!(found(&[good(0, 5), good(2, 5), foreign, other]), (few.clone(), 2, 2));
    // A plain signature, which has no time, under the witness's name.
    let plain = world.signed_by(&text, &world.name("witness/3"), &world.keys[3][0]);
    assert_eq!(found(&[good(0, 5), good(2, 5), plain]), (few.clone(), 2, 1));
    // Over another text, with another time, with a time that cannot be, too short.
    let invalid = (vec![Reason::CosignatureInvalid, Reason::WitnessesTooFew], 2, 0);
    let name = world.name("witness/3");
    let key = &world.keys[3][0];
    let cosign = |said: &str, time: u64, shown: u64| {
        let signature = key.sign(format!("cosignature/v1\ntime {time}\n{said}").as_bytes()).to_bytes();
        World::line(&name, 4, key, &[shown.to_be_bytes().as_slice(), &signature].concat())
    };
    for bad in [
        cosign("another\n", 5, 5),
        cosign(&text, 5, 6),
        cosign(&text, u64::MAX, u64::MAX),
        World::line(&name, 4, key, &[0; 20]),
    ] {
        assert_eq!(found(&[good(0, 5), good(2, 5), bad]), invalid);
    }
    // The caller may ask for fewer, but not for more than there are.
    world.write("log/checkpoint", format!("{signed}{}", good(0, 5)));
    let mut options = world.options();
    options.witnesses = Some(1);
    let report = run(&options).unwrap();
    assert!(report.holds);
    assert!(
        report
            .does_not_prove
            .iter()
            .any(|l| l.contains("forks need the witnesses, 3 of them, and here are 1"))
    );
    options.witnesses = Some(5);
    assert!(matches!(run(&options), Err(Error::Usage(_))));
}

#[test]
fn a_federation_file_must_be_signed_by_all_and_safe() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    let good = fs::read_to_string(world.path("federation.json")).unwrap();
    let reasons = |text: String| {
        world.write("federation.json", text);
        let report = world.verify();
        assert!(report.checkpoint.is_none(), "nothing else is looked at");
        common::reasons(&report)
    };
    assert_eq!(reasons(good.replace("operator-3:1", "operator-3:7")), [Reason::FederationUnsigned]);
    assert_eq!(reasons(good.replace("\"epoch\":7", "\"epoch\":8")), [Reason::FederationUnsigned]);
    let mut file: serde_json::Value = serde_json::from_str(&good).unwrap();
    file["signatures"].as_array_mut().unwrap().pop();
    assert_eq!(reasons(file.to_string()), [Reason::FederationUnsigned]);
    for (from, to) in
        [("\"threshold\":3", "\"threshold\":5"), ("\"threshold\":3", "\"threshold\":3,\"quorum\":3")]
    {
        assert_eq!(reasons(good.replace(from, to)), [Reason::FederationUnsafe], "{to}");
    }
    let mut file: serde_json::Value = serde_json::from_str(&good).unwrap();
    file["federation"]["members"][2] = file["federation"]["members"][3].clone();
    assert_eq!(reasons(file.to_string()), [Reason::FederationUnsafe], "two seats of one member");
    for bad in ["{", "{}", &good.replace("\"epoch\"", "\"epok\"")] {
        world.write("federation.json", bad);
        assert!(matches!(run(&world.options()), Err(Error::Federation(_))), "{bad}");
    }
}

#[test]
fn what_is_too_long_is_an_error() {
    let world = World::new();
    world.publish(&story(3), &Said::default());
    world.bend("log/tile/0/000.p/3", |bytes| bytes.resize(10_000, 0));
    let error = run(&world.options()).unwrap_err();
    assert_eq!(error.reason(), "TOO_LONG");
    let folder = world.path("log/tile/0/000.p/3");
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    assert_eq!(run(&world.options()).unwrap_err().reason(), "LOG_UNREACHABLE");
}

#[test]
fn the_writer_of_these_tests_repeats_no_record() {
    let receipts = story(600);
    let all: std::collections::BTreeSet<_> = receipts.iter().map(record).collect();
    assert_eq!(all.len(), 600);
}

#[test]
fn operators_without_eddsa_sign_and_cosign_with_p256() {
    let key = |n: u8| p256::ecdsa::SigningKey::from_slice(&[n; 32]).unwrap();
    let (own, witness, stranger) = (key(1), key(2), key(3));
    let mut world = World::new();
    world.rekey(&[(1, &own), (3, &witness)]);
    world.publish(&story(3), &Said::default());
    let note = fs::read_to_string(world.path("log/checkpoint")).unwrap();
    let text = format!("{}\n", note.split_once("\n\n").unwrap().0);
    let name = world.name("1");
    let found = |lines: &[String]| {
        world.write("log/checkpoint", format!("{text}\n{}", lines.concat()));
        let report = world.verify();
        (common::reasons(&report), report.witnesses.map_or(0, |witnesses| witnesses.distinct))
    };
    let signed = World::signed_by_p256(&text, &name, &own);
    let good = |w: u16| world.cosigned(&text, w, &world.keys[usize::from(w)][0], 5);
    let cosigned = world.cosigned_by_p256(&text, 3, &witness, 5);
    assert_eq!(found(&[signed.clone(), good(0), good(2), cosigned.clone()]), (vec![], 3));
    // Another key, and the Ed25519 key that the file does not name any more.
    for wrong in [world.cosigned_by_p256(&text, 3, &stranger, 5), good(3)] {
        assert_eq!(found(&[signed.clone(), good(0), good(2), wrong]), (vec![Reason::WitnessesTooFew], 2));
    }
    assert_eq!(found(&[World::signed_by_p256(&text, &name, &stranger)]).0, vec![Reason::CheckpointUnsigned]);
    let other = World::signed_by_p256("another\n", &name, &own);
    assert_eq!(found(&[other]).0, vec![Reason::CheckpointSignature]);
    // The other s is valid ECDSA, and no second form of this signature.
    let twisted = twist(&signed);
    assert_ne!(twisted, signed);
    assert_eq!(found(&[twisted, good(0), good(2), cosigned]).0, vec![Reason::CheckpointSignature]);
}

/// A line with s replaced by n - s.
fn twist(line: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let (head, blob) = line.trim_end().rsplit_once(' ').unwrap();
    let blob = STANDARD.decode(blob).unwrap();
    let signature = p256::ecdsa::Signature::from_der(&blob[4..]).unwrap();
    let (r, s) = signature.split_scalars();
    let twisted = p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
    format!("{head} {}\n", STANDARD.encode([&blob[..4], twisted.to_der().as_bytes()].concat()))
}
