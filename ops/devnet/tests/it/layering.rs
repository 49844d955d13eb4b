//! The direction of dependencies (DESIGN section 3), read from cargo itself.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Which of our crates a crate may use outside of tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("spark-proto", &[]),
    ("spark-rules", &["spark-proto"]),
    ("spark-signer", &["spark-proto", "spark-rules"]),
    ("spark-signer-hsm", &["spark-proto", "spark-rules", "spark-signer"]),
    ("spark-operator", &["spark-proto", "spark-rules"]),
    ("spark-wallet", &["spark-proto", "spark-rules", "spark-signer"]),
    ("spark-softhsm", &[]),
    ("spark-devnet", &["spark-proto", "spark-rules", "spark-softhsm"]),
    // Independent of what it verifies.
    ("spark-verify", &[]),
];

/// What the pure crates may never pull in.
const IMPURE: &[&str] = &["tokio", "tonic", "sqlx", "cryptoki", "redb", "rustls", "hyper", "axum"];

fn packages() -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(metadata.get("packages").and_then(Value::as_array).context("packages")?.clone())
}

/// Normal dependencies by package.
fn normal() -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for package in packages()? {
        let name = package["name"].as_str().context("name")?.to_owned();
        let dependencies = package["dependencies"].as_array().context("dependencies")?;
        let list = dependencies
            .iter()
            .filter(|d| d["kind"].is_null() && d["optional"] == Value::Bool(false))
            .filter_map(|d| d["name"].as_str().map(str::to_owned))
            .collect();
        found.insert(name, list);
    }
    Ok(found)
}

#[test]
fn crates_depend_downwards_only() -> Result<()> {
    let found = normal()?;
    assert_eq!(found.len(), ALLOWED.len(), "a new crate needs a place here");
    for (name, allowed) in ALLOWED {
        let ours: Vec<_> =
            found.get(*name).context(*name)?.iter().filter(|d| d.starts_with("spark-")).cloned().collect();
        for dependency in &ours {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not use {dependency}");
        }
    }
    Ok(())
}

#[test]
fn the_signers_core_is_pure() -> Result<()> {
    let found = normal()?;
    for name in ["spark-rules", "spark-signer"] {
        for dependency in found.get(name).context(name)? {
            assert!(!IMPURE.contains(&dependency.as_str()), "{name} must not use {dependency}");
        }
    }
    Ok(())
}

/// Who is woken by an alarm finds it in the runbook.
#[test]
fn every_alarm_is_in_the_runbook() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("ops/runbooks/alarms.md"))?;
    let mut listed: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    listed.sort_unstable();
    anyhow::ensure!(listed == spark_signer::engine::ALARMS, "{listed:?}");
    Ok(())
}
