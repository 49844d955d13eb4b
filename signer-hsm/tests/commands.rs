//! `spark-signer` as a person uses it, on real tokens.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::{PIN, SO_PIN};
use serde_json::Value;
use spark_signer_hsm::ceremony::{SignedTranscript, Transcript, offline};
use spark_softhsm::{TokenDir, isolated, kryoptic};

fn signer(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spark-signer"))
        .current_dir(folder)
        .args(arguments)
        .env("SPARK_LOG", "error")
        .output()
        .unwrap()
}

/// Standard output of a command that must succeed.
fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = signer(folder, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Standard error of a command that must fail.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = signer(folder, arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(folder, arguments)).unwrap()
}

/// A folder with the tokens, PINs and configuration that `init` proposes.
fn set_up(dir: &TokenDir) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (token, file) in [("spark-roots", "roots.pin"), ("spark-keys", "keys.pin")] {
        dir.init_token(token, SO_PIN, PIN).unwrap();
        let path = folder.path().join(file);
        fs::write(&path, PIN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    ok(folder.path(), &["init", "--profile", "softhsm", "--operator", "2"]);
    let path = folder.path().join("signer.toml");
    let text = fs::read_to_string(&path).unwrap();
    let library = spark_softhsm::module_path().unwrap().display().to_string();
    fs::write(&path, text.replace("/usr/lib/softhsm/libsofthsm2.so", &library)).unwrap();
    folder
}

fn state(checks: &Value, name: &str) -> String {
    let checks = checks.as_array().unwrap();
    let check =
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {checks:#?}"));
    check["state"].as_str().unwrap().to_owned()
}

/// Alters a transcript.
type Lie = fn(&mut Transcript);

#[test]
fn a_ceremony_is_planned_run_and_verified() {
    isolated("a_ceremony_is_planned_run_and_verified", |dir| {
        let folder = set_up(dir);
        let at = folder.path();
        assert!(refused(at, &["init", "--profile", "luna", "--operator", "2"]).contains("not overwritten"));
        assert!(refused(at, &["init", "--profile", "abacus", "--operator", "2"]).contains("securosys"));

        let plan = json(at, &["ceremony", "plan", "--json"]);
        assert_eq!((&plan["operator"], &plan["store_exists"]), (&Value::from(2), &Value::from(false)));
        assert_eq!(plan["objects"].as_array().unwrap().len(), 4);

        fs::write(at.join("taken"), "").unwrap();
        assert!(refused(at, &["ceremony", "run", "--out", "taken"]).contains("not overwritten"));
        assert!(!at.join("signer.redb").exists());
        ok(at, &["ceremony", "run", "--out", "transcript.json"]);
        refused(at, &["ceremony", "run", "--out", "again.json"]);
        assert!(!at.join("again.json").exists());
        ok(at, &["ceremony", "verify", "transcript.json"]);
        let checks = json(at, &["ceremony", "verify", "transcript.json", "--tokens", "--json"]);
        assert!(checks.as_array().unwrap().iter().any(|check| check["name"] == "token-roots"));

        let text = fs::read_to_string(at.join("transcript.json")).unwrap();
        let transcript: Value = serde_json::from_str(&text).unwrap();
        assert!(transcript["transcript"].get("devices").is_none(), "one device, as it always was");
        let objects = transcript["transcript"]["objects"].as_array().unwrap();
        assert!(objects.iter().filter(|o| o["class"] != "public").all(|o| {
            o["attributes"]["CKA_NEVER_EXTRACTABLE"] == true && o["attributes"]["CKA_COPYABLE"] == false
        }));
        // Another word anywhere, a field more, or another signature: refused.
        for (old, new) in [
            ("\"operator\": 2", "\"operator\": 3"),
            ("\"delete_claim\": \"none\"", "\"delete_claim\": \"device\""),
            ("\"CKA_LOCAL\": true", "\"CKA_LOCAL\": false"),
            ("\"version\": 1", "\"version\": 1, \"extra\": 1"),
            ("\"signature\": \"", "\"signature\": \"00"),
        ] {
            assert!(text.contains(old), "{old}");
            fs::write(at.join("changed.json"), text.replacen(old, new, 1)).unwrap();
            refused(at, &["ceremony", "verify", "changed.json"]);
        }

        let list = json(at, &["token", "list", "--json"]);
        assert_eq!(list["objects"].as_array().unwrap().len(), 6);
        let info = ok(at, &["token", "info"]);
        assert!(info.contains("spark-roots") && info.contains("CKM_SHA256_HMAC"), "{info}");
    })
    .unwrap();
}

/// A device of another vendor, for `[token]`.
fn further(id: u8, label: &str) -> String {
    let module = kryoptic::module_path().unwrap();
    format!(
        "\n[[token.devices]]\nid = {id}\nmodule = {module:?}\nprofile = \"nshield\"\n\
         roots = {{ label = {label:?}, pin = {{ file = \"roots.pin\" }} }}\n"
    )
}

/// The names of what does not hold.
fn failing(transcript: &Transcript) -> Vec<&'static str> {
    offline(transcript).into_iter().filter(|check| !check.ok).map(|check| check.name).collect()
}

/// Two vendors whose devices claim different things of a deleted key, and a third device later: transcript and plan speak
/// of all.
#[test]
fn a_ceremony_with_several_devices_tells_of_all() {
    kryoptic::isolated("a_ceremony_with_several_devices_tells_of_all", |dir, other| {
        for label in ["second", "third"] {
            other.init_token(label, SO_PIN, PIN).unwrap();
        }
        let folder = set_up(dir);
        let at = folder.path();
        let path = at.join("signer.toml");
        let text = fs::read_to_string(&path)
            .unwrap()
            .replace("profile = \"softhsm\"", "profile = \"luna\"")
            .replace("[token.keys]", "[token.keys]\nprofile = \"softhsm\"")
            .replace("[token.facts]", "[token.facts]\nno_cloning = true\nno_backup = true\nha_off = true");
        fs::write(&path, text + &further(1, "second")).unwrap();

        let plan = json(at, &["ceremony", "plan", "--json"]);
        assert_eq!(plan["objects"].as_array().unwrap().len(), 6);
        let claims = ["device", "host-media"];
        for (device, claim) in plan["devices"].as_array().unwrap().iter().zip(claims) {
            assert_eq!(device["delete_claim"], claim);
        }
        assert_eq!(plan["delete_claim"], "host-media");
        let said = ok(at, &["ceremony", "plan"]);
        assert!(said.contains("profile nshield") && said.contains("token second: spark-sentinel"), "{said}");

        ok(at, &["ceremony", "run", "--out", "transcript.json"]);
        ok(at, &["ceremony", "verify", "transcript.json"]);
        ok(at, &["ceremony", "verify", "transcript.json", "--tokens"]);
        let text = fs::read_to_string(at.join("transcript.json")).unwrap();
        let made = SignedTranscript::parse(&text).unwrap().transcript;
        assert_eq!(made.delete_claim, "host-media");
        let [device] = &made.devices[..] else { panic!("{:?}", made.devices) };
        assert_eq!((device.made.id, device.made.token.label.as_str()), (1, "second"));
        assert_eq!(failing(&made), [""; 0]);
        // What the signature does not catch, because the signer itself would say it.
        let lies: [(&str, Lie); 6] = [
            ("delete-claim", |made| made.delete_claim = "device".into()),
            ("device-claim", |made| made.devices[0].delete_claim = "device".into()),
            ("device-objects", |made| drop(made.devices[0].made.objects.pop())),
            ("device-root", |made| {
                let objects = made.devices[0].made.objects.iter_mut();
                objects.filter(|object| object.label == "spark-root").for_each(|root| root.id.push('0'));
            }),
            ("device-attributes", |made| {
                made.devices[0].made.objects[0].attributes.insert("CKA_EXTRACTABLE".into(), true);
            }),
            ("devices", |made| made.devices.push(made.devices[0].clone())),
        ];
        for (name, lie) in lies {
            let mut lied = made.clone();
            lie(&mut lied);
            assert_eq!(failing(&lied), [name]);
        }

        // One more, later: the transcript lacks it, its supplement does not.
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, config + &further(2, "third")).unwrap();
        fs::write(at.join("taken"), "").unwrap();
        assert!(refused(at, &["device", "prepare", "2", "--out", "taken"]).contains("not overwritten"));
        ok(at, &["device", "prepare", "2", "--out", "device-2.json"]);
        refused(at, &["device", "prepare", "2", "--out", "again.json"]);
        refused(at, &["ceremony", "verify", "transcript.json", "--tokens"]);
        let verify = ["ceremony", "verify", "transcript.json", "--supplement"];
        ok(at, &[&verify[..], &["device-2.json", "--tokens"]].concat());
        let supplement = fs::read_to_string(at.join("device-2.json")).unwrap();
        for (old, new) in
            [("\"operator\": 2", "\"operator\": 1"), ("\"signature\": \"", "\"signature\": \"00")]
        {
            fs::write(at.join("changed.json"), supplement.replacen(old, new, 1)).unwrap();
            refused(at, &[&verify[..], &["changed.json"]].concat());
        }
    })
    .unwrap();
}

#[test]
fn doctor_says_what_to_do() {
    isolated("doctor_says_what_to_do", |dir| {
        let folder = set_up(dir);
        let at = folder.path();
        // Before the ceremony there is nothing to be well.
        let output = signer(at, &["doctor", "--json"]);
        assert!(!output.status.success());
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((state(&checks, "tokens"), state(&checks, "store")), ("fail".into(), "fail".into()));

        ok(at, &["ceremony", "run", "--out", "transcript.json"]);
        let output = signer(at, &["doctor", "--json"]);
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
        for name in
            ["tokens", "probe", "identity-key", "identity-ecdh", "federation-key", "store", "vault", "roots"]
        {
            assert_eq!(state(&checks, name), "ok", "{name}");
        }
        for name in ["config-file", "pin-roots", "pin-keys", "store-file", "clock"] {
            assert_eq!(state(&checks, name), "ok", "{name}");
        }
        assert_eq!(state(&checks, "federation-file"), "warn");
        assert_eq!(state(&checks, "delete-claim"), "warn");

        fs::set_permissions(at.join("keys.pin"), fs::Permissions::from_mode(0o644)).unwrap();
        let output = signer(at, &["doctor"]);
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("chmod 600 the file of the PIN"), "{text}");
        assert!(!text.contains(PIN));
    })
    .unwrap();
}

#[test]
fn a_backup_holds_what_is_public_and_nothing_else() {
    isolated("a_backup_holds_what_is_public_and_nothing_else", |dir| {
        let folder = set_up(dir);
        let at = folder.path();
        ok(at, &["ceremony", "run", "--out", "transcript.json"]);
        let text = fs::read_to_string(at.join("signer.toml")).unwrap();
        // An inline PIN must not leave.
        let inline = text.replace("{ file = \"roots.pin\" }", &format!("{{ inline = \"{PIN}\" }}"));
        assert_ne!(inline, text);
        fs::write(at.join("signer.toml"), inline).unwrap();
        ok(at, &["backup", "create", "--out", "backup.json", "--with", "transcript.json"]);
        refused(at, &["backup", "create", "--out", "backup.json"]);
        fs::write(at.join("some.key"), "-----BEGIN PRIVATE KEY-----\n").unwrap();
        for secret in ["keys.pin", "signer.redb", "signer.redb.pages", "some.key"] {
            refused(at, &["backup", "create", "--out", "other.json", "--with", secret]);
            assert!(!at.join("other.json").exists(), "{secret}");
        }

        let summary = json(at, &["backup", "verify", "backup.json"]);
        let names: Vec<_> = summary["files"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["signer.toml", "transcript.json"]);
        let key = summary["federation_public_key"].as_str().unwrap();
        ok(at, &["backup", "verify", "backup.json", "--key", key]);
        refused(at, &["backup", "verify", "backup.json", "--key", &"00".repeat(32)]);

        ok(at, &["backup", "restore", "backup.json", "--into", "new"]);
        let same =
            |name: &str| fs::read(at.join(name)).unwrap() == fs::read(at.join("new").join(name)).unwrap();
        assert!(same("transcript.json"));
        let config = fs::read_to_string(at.join("new/signer.toml")).unwrap();
        assert!(!config.contains(PIN) && config.contains("pin = \"prompt\""), "{config}");
        ok(at, &["--config", "new/signer.toml", "check"]);
        assert!(refused(at, &["backup", "restore", "backup.json", "--into", "new"]).contains("not empty"));

        let archive = fs::read_to_string(at.join("backup.json")).unwrap();
        for (old, new) in [("\"operator\": 2", "\"operator\": 1"), ("transcript.json", "../transcript.json")]
        {
            fs::write(at.join("changed.json"), archive.replacen(old, new, 1)).unwrap();
            refused(at, &["backup", "verify", "changed.json"]);
            refused(at, &["backup", "restore", "changed.json", "--into", "other"]);
            assert!(!at.join("other").exists());
        }
    })
    .unwrap();
}
