//! A captured log, made by a program in another language: every byte format that is read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use spark_verify::{Location, Options, verify};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sample").join(name)
}

#[tokio::test]
async fn the_captured_log_holds() {
    let options = Options {
        federation: sample("federation.json"),
        operator: 0,
        location: Location::Directory(sample("log")),
        entries: Some(sample("entries.jsonl")),
        since: Some(sample("log/checkpoint")),
        witnesses: None,
        save: None,
    };
    let report = verify(&options).await.unwrap();
    assert_eq!(report.failures, []);
    assert!(report.holds);
    let federation = report.federation.unwrap();
    assert_eq!(federation.hash, "59d23b062e990e06b88f75a84dd6041174509554fb61b3c9d84fd61eab91a51c");
    let head = report.checkpoint.unwrap();
    assert_eq!(head.root, "ec8118feef5f756af5a6e272523c24ba8e1b4e014c4751f887b48ee4913b95c1");
    assert_eq!((head.size, head.destroyed_before, head.log_size), (3, 2, 3));
    let witnesses = report.witnesses.unwrap();
    assert_eq!((witnesses.needed, witnesses.distinct, witnesses.ignored), (2, 2, 0));
    assert_eq!(witnesses.cosignatures[1].unix_seconds, 1_790_000_102);
    let entries = report.entries.unwrap();
    assert_eq!((entries.read, entries.keyshares, entries.confirmed, entries.pending), (3, 1, 2, 1));
    assert_eq!(entries.long_lived_claims, 0);
    assert!(report.since.unwrap().continued);
}
