//! Receipts, and what a log holds of them.

use secp256k1::{PublicKey, SECP256K1, SecretKey};
use serde_json::{Value, json};

use super::{Framed, Hash, sha};

/// The public point of a small scalar, hex.
pub(crate) fn point(scalar: u64) -> String {
    let mut bytes = [0; 32];
    bytes[24..].copy_from_slice(&scalar.to_be_bytes());
    hex::encode(PublicKey::from_secret_key(SECP256K1, &SecretKey::from_slice(&bytes).unwrap()).serialize())
}

/// A receipt as JSON has it.
pub(crate) type Receipt = serde_json::Map<String, Value>;

fn field<'a>(receipt: &'a Receipt, name: &str) -> &'a str {
    receipt.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(receipt: &Receipt, name: &str) -> u64 {
    receipt.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// The record of a receipt.
pub(crate) fn record(receipt: &Receipt) -> Hash {
    let mut framed = Framed::default();
    let bytes = |name| hex::decode(field(receipt, name)).unwrap();
    framed.bytes(b"spark/receipt/v1");
    framed.bytes(&bytes("incarnation"));
    framed.number(number(receipt, "sequence"));
    framed.bytes(&bytes("keyshare_id"));
    framed.bytes(field(receipt, "leaf_id").as_bytes());
    framed.bytes(&bytes("operation_id"));
    framed.bytes(field(receipt, "phase").as_bytes());
    framed.number(number(receipt, "retired_version"));
    framed.number(number(receipt, "new_version"));
    for name in ["retired_public_share", "new_public_share", "tweak_commitment"] {
        framed.bytes(&bytes(name));
    }
    framed.number(number(receipt, "root_epoch_before"));
    framed.number(number(receipt, "root_epoch_after"));
    framed.bytes(&bytes("root_id_before"));
    framed.bytes(field(receipt, "delete_claim").as_bytes());
    framed.bytes(field(receipt, "package_kind").as_bytes());
    framed.number(number(receipt, "unix_seconds"));
    let live = receipt.get("live_versions").and_then(Value::as_array).cloned().unwrap_or_default();
    framed.number(live.len() as u64);
    for version in live {
        framed.number(version.as_u64().unwrap());
    }
    if field(receipt, "phase") == "unused" {
        let keys = receipt["package_keys"].as_array().cloned().unwrap_or_default();
        framed.number(keys.len() as u64);
        for key in keys {
            framed.bytes(&hex::decode(key.as_str().unwrap()).unwrap());
        }
    }
    sha(&[&bytes("salt"), &sha(&[&framed.0])])
}

/// A keyshare's receipts before they have a place in a log.
pub(crate) fn receipt(
    keyshare: u64,
    phase: &str,
    retired: u64,
    new: u64,
    shares: (u64, u64),
    tweak: u64,
) -> Receipt {
    let opt = |scalar: u64| if scalar == 0 { String::new() } else { point(scalar) };
    let value = json!({
        "incarnation": "11".repeat(16),
        "keyshare_id": format!("{keyshare:032x}"),
        "leaf_id": format!("leaf-{keyshare}"),
        "operation_id": if phase == "dkg" { String::new() } else { "22".repeat(16) },
        "phase": phase,
        "retired_version": retired,
        "new_version": new,
        "retired_public_share": opt(shares.0),
        "new_public_share": opt(shares.1),
        "tweak_commitment": opt(tweak),
        "root_id_before": "33".repeat(16),
        "delete_claim": "device",
        "package_kind": if phase == "claim" { "identity" } else { "one-time" },
        "unix_seconds": 1_700_000_000,
        "live_versions": [new],
        "state": "pending",
    });
    let Value::Object(map) = value else { panic!("an object") };
    map
}

/// Package keys that died unused.
pub(crate) fn unused(keys: &[u64]) -> Receipt {
    let ids: Vec<String> = keys.iter().map(|key| format!("{key:032x}")).collect();
    let value = json!({
        "incarnation": "11".repeat(16),
        "phase": "unused",
        "root_id_before": "33".repeat(16),
        "delete_claim": "device",
        "package_kind": "one-time",
        "unix_seconds": 1_700_000_000,
        "live_versions": [],
        "package_keys": ids,
        "state": "pending",
    });
    let Value::Object(map) = value else { panic!("an object") };
    map
}

/// Keyshares one after the other, each made, sent, claimed, aborted and renewed: `count` receipts.
pub(crate) fn story(count: usize) -> Vec<Receipt> {
    let one = |keyshare: u64| {
        let base = keyshare * 100 + 1;
        [
            receipt(keyshare, "dkg", 0, 0, (0, base), 0),
            receipt(keyshare, "deposit", 0, 1, (base, base), 0),
            receipt(keyshare, "send", 1, 2, (base, base + 5), 5),
            receipt(keyshare, "claim", 2, 3, (base + 5, base + 12), 7),
            receipt(keyshare, "abort", 3, 3, (base + 12, base + 12), 9),
            receipt(keyshare, "renew", 3, 4, (base + 12, base + 12), 0),
        ]
    };
    let mut all: Vec<Receipt> = (0..).flat_map(one).take(count).collect();
    place(&mut all);
    all
}

/// Gives receipts their place, salt and root epochs: each that destroys something closes a batch.
pub(crate) fn place(receipts: &mut [Receipt]) {
    let mut epoch = 1u64;
    for (index, receipt) in (0u64..).zip(receipts) {
        receipt.insert("log_index".into(), index.into());
        receipt.insert("sequence".into(), (10 + index).into());
        receipt.insert("salt".into(), hex::encode(sha(&[b"salt", &index.to_be_bytes()])).into());
        receipt.insert("root_epoch_before".into(), epoch.into());
        epoch += u64::from(!["dkg", "repair"].contains(&field(receipt, "phase")));
        receipt.insert("root_epoch_after".into(), epoch.into());
    }
}
