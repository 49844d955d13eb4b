//! The suite on the two tokens that we have.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{PIN, SO_PIN};
use serde_json::Value;
use spark_softhsm::{isolated, kryoptic};

fn pin_file(folder: &Path) -> PathBuf {
    let path = folder.join("pin");
    std::fs::write(&path, PIN).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn suite(module: &Path, token: &str, pin: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spark-signer"))
        .args(["conformance", "--token", token, "--runs", "5", "--objects", "8"])
        .args(more)
        .env("PKCS11_MODULE", module)
        .env("PKCS11_PIN_FILE", pin)
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn outcomes(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|f| (f["name"].as_str().unwrap(), f["outcome"].as_str().unwrap())).collect()
}

/// The best profile's name and the cells that were refuted.
fn best(report: &Value) -> (&str, Vec<&Value>) {
    let best = &report["fits"][0];
    let refuted =
        best["cells"].as_array().unwrap().iter().filter(|cell| cell["verdict"] == "refuted").collect();
    (best["profile"].as_str().unwrap(), refuted)
}

#[test]
fn softhsm_may_hold_all_and_keeps_nothing_of_the_suite() {
    isolated("softhsm_may_hold_all_and_keeps_nothing_of_the_suite", |dir| {
        dir.init_token("scratch", SO_PIN, PIN).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pin = pin_file(folder.path());
        let module = spark_softhsm::module_path().unwrap();
        let output = suite(module, "scratch", &pin, &["--json"]);
        let report = report(&output);
        assert!(output.status.success(), "{report:#}");
        for (name, outcome) in outcomes(&report) {
            let expected = if name == "unique-id" { "no" } else { "yes" };
            assert_eq!(outcome, expected, "{name}: {report:#}");
        }
        assert_eq!(best(&report), ("softhsm", vec![]));
        assert_eq!(report["latencies"].as_array().unwrap().len(), 2);
        assert_eq!(report["growth"]["objects"], 8);
        // What the suite made is gone; a folder without object files is an empty token.
        let objects = std::fs::read_dir(dir.tokens_path())
            .unwrap()
            .flat_map(|token| std::fs::read_dir(token.unwrap().path()).unwrap())
            .filter(|file| {
                let name = file.as_ref().unwrap().file_name();
                name.to_string_lossy().ends_with(".object") && name != "token.object"
            })
            .count();
        assert_eq!(objects, 0);
        let text = suite(module, "scratch", &pin, &["--purpose", "roots"]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("best fit: softhsm") && text.contains("may hold keys:  yes"), "{text}");
    })
    .unwrap();
}

#[test]
fn a_token_in_use_is_refused() {
    isolated("a_token_in_use_is_refused", |dir| {
        drop(common::token(dir));
        let folder = tempfile::tempdir().unwrap();
        let pin = pin_file(folder.path());
        for token in ["roots", "keys"] {
            let output = suite(spark_softhsm::module_path().unwrap(), token, &pin, &["--json"]);
            assert!(!output.status.success());
            assert!(String::from_utf8_lossy(&output.stderr).contains("use a scratch token"));
        }
    })
    .unwrap();
}

#[test]
fn kryoptic_may_hold_roots_only() {
    kryoptic::isolated("kryoptic_may_hold_roots_only", |_, dir| {
        dir.init_token("scratch", SO_PIN, PIN).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pin = pin_file(folder.path());
        let module = kryoptic::module_path().unwrap();
        let output = suite(&module, "scratch", &pin, &["--json", "--purpose", "roots"]);
        let report = report(&output);
        assert!(output.status.success(), "{report:#}");
        for (name, outcome) in outcomes(&report) {
            let lacks =
                ["ecdsa-secp256k1", "key-attributes", "ecdh-raw", "ecdh-der", "ed25519"].contains(&name);
            assert_eq!(outcome, if lacks { "no" } else { "yes" }, "{name}: {report:#}");
        }
        assert_eq!(best(&report), ("kryoptic", vec![]));
        assert!(!suite(&module, "scratch", &pin, &["--purpose", "keys", "--runs", "0"]).status.success());
    })
    .unwrap();
}
