//! The command as scripts see it: exit codes, and one JSON object on standard output.

#![expect(clippy::unwrap_used, reason = "helpers of tests count as code outside tests")]

use std::{path::Path, process::Command};

fn run(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_spark-wallet"))
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .env_remove("SPARK_WALLET_DIR")
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn mistakes_have_their_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["send", "sparkrt1x", "1000"]).0, 2, "amount without unit");
    assert_eq!(run(dir.path(), &["fly"]).0, 2);
    let (code, out) = run(dir.path(), &["--json", "balance"]);
    assert_eq!(code, 1);
    let failure: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(failure["class"], "failed");
    assert!(failure["error"].as_str().unwrap().contains("wallet.toml"));
}

#[test]
fn doctor_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out) = run(dir.path(), &["doctor", "--json"]);
    assert_eq!(code, 4);
    let health: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(health["ok"], false);
    assert_eq!(health["checks"][0]["name"], "configuration");
}

#[test]
fn no_seed_without_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["create"]).0, 1);
    assert!(!dir.path().join("seed").exists());
}
