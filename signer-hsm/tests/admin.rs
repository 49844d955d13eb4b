//! The running signer as a person on its host administers it: the real program, confined, over real tokens. The test has
//! the keys of the two other operators' signers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use bitcoin::secp256k1::{SECP256K1, SecretKey};
use ed25519_dalek::{Signer as _, SigningKey};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Pid, Signal, Uid, kill_process};
use serde_json::Value;
use spark_proto::{
    signer::v1::{self as wire, signer_client::SignerClient},
    transport::{ClientTls, Deadlines, Identity, TrustRoots, channel, install_crypto_provider},
};
use spark_rules::{
    checkpoint::{self, Extension, SignedAt},
    federation::{Federation, FederationEntry, FederationFile, MemberEntry},
    ids::{Incarnation, OperatorIndex},
    vote::Position,
};
use spark_signer::vault::StoreError;
use spark_signer_hsm::{devices::KeysStuck, service::REASON, store::RedbStore};
use spark_softhsm::{TokenDir, isolated};
use tonic::transport::Channel;

struct World {
    folder: PathBuf,
    federation: Federation,
    client: Identity,
    runtime: tokio::runtime::Runtime,
}

fn peer(index: u16) -> SigningKey {
    SigningKey::from_bytes(&[index as u8; 32])
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spark-signer"));
    command.arg("--config").arg(config).env("SPARK_LOG", "warn");
    command
}

fn success(output: Output) -> Vec<u8> {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    output.stdout
}

/// A running signer. It ends with this value.
struct Running {
    child: Child,
    address: String,
    http: String,
}

impl Running {
    /// Its exit code, once it has ended by itself.
    fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// A signer after its ceremony, in a federation with two others.
    fn new(dir: &TokenDir) -> Self {
        install_crypto_provider();
        common::config(dir);
        let folder = dir.conf_path().parent().unwrap().to_owned();
        fs::write(folder.join("pin"), common::PIN).unwrap();
        fs::set_permissions(folder.join("pin"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        for name in ["signer", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem())
                .unwrap();
            fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        let client = Identity::from_pem_files(folder.join("client.pem"), folder.join("client.key")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let path = folder.join("signer.toml");
        fs::write(&path, configuration(&folder, &client, "")).unwrap();
        let transcript = success(command(&path).arg("ceremony").stdin(Stdio::null()).output().unwrap());
        let transcript: Value = serde_json::from_slice(&transcript).unwrap();
        let text = |name: &str| transcript[name].as_str().unwrap().to_owned();
        let members = (0..3u16)
            .map(|index| {
                let secret = SecretKey::from_slice(&[index as u8 + 10; 32]).unwrap();
                let (identity, federation) = if index == 0 {
                    (text("identity_public_key"), text("federation_public_key"))
                } else {
                    let key = peer(index).verifying_key().to_bytes();
                    (hex::encode(secret.public_key(SECP256K1).serialize()), hex::encode(key))
                };
                MemberEntry {
                    identity_public_key: identity,
                    federation_public_keys: vec![federation],
                    tls_spki_sha256: vec![hex::encode([index as u8; 32])],
                    peer_address: format!("peer{index}:1"),
                    public_address: format!("https://peer{index}:2"),
                }
            })
            .collect();
        let entry = FederationEntry {
            epoch: 1,
            network: "regtest".into(),
            threshold: 2,
            quorum: None,
            faults: None,
            members,
        };
        let message = entry.signing_message();
        let sign = |index| hex::encode(peer(index).sign(&message).to_bytes());
        let file = FederationFile { federation: entry, signatures: vec![String::new(), sign(1), sign(2)] };
        let federation = folder.join("federation.json");
        fs::write(&federation, serde_json::to_string(&file).unwrap()).unwrap();
        success(command(&path).args(["federation", "sign"]).arg(&federation).output().unwrap());
        let federation =
            FederationFile::parse(&fs::read_to_string(&federation).unwrap()).unwrap().verify(None).unwrap();
        Self { folder, federation, client, runtime }
    }

    fn config(&self) -> PathBuf {
        self.folder.join("signer.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("signer.sock")
    }

    /// Writes the configuration with these lines more in `[token]`.
    fn configure(&self, token: &str) {
        fs::write(self.config(), configuration(&self.folder, &self.client, token)).unwrap();
    }

    fn start(&self) -> Running {
        let mut child = command(&self.config()).arg("start").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it does not start"));
        let at = |what: &str| told[what].as_str().unwrap().to_owned();
        Running { child, address: at("listen"), http: at("http") }
    }

    fn signer(&self, running: &Running) -> SignerClient<Channel> {
        let tls = ClientTls {
            roots: TrustRoots::from_pem_file(self.folder.join("ca.pem")).unwrap(),
            identity: Some(self.client.clone()),
            server_name: "localhost".into(),
            pinned: None,
        };
        let deadlines = Deadlines { connect: Duration::from_secs(30), request: Duration::from_secs(30) };
        let _guard = self.runtime.enter();
        SignerClient::new(channel(&running.address, &tls, deadlines).unwrap())
    }

    /// What operator and peers do at a start: the peers answer that they never heard of this signer.
    fn unlock(&self, running: &Running) {
        let mut signer = self.signer(running);
        self.runtime.block_on(async {
            let question = signer.ask_witness(wire::AskWitnessRequest {}).await.unwrap().into_inner();
            let answers = [1u16, 2].map(|index| {
                let position = Position {
                    federation_epoch: 1,
                    signer: OperatorIndex::new(index),
                    incarnation: Incarnation::from_bytes([index as u8; 16]),
                    root_epoch: 1,
                    sequence: 1,
                };
                let payload = [0u16.to_be_bytes().as_slice(), &question.nonce, &[0, 0]].concat();
                let statement = position.statement(&self.federation, "witness-answer/v2", &payload);
                wire::WitnessAnswer {
                    witness: index.into(),
                    nonce: question.nonce.clone(),
                    seen: None,
                    repair: false,
                    position: Some(position.to_wire()),
                    signature: peer(index).sign(&statement).to_bytes().to_vec(),
                }
            });
            let request = wire::AcceptWitnessRequest { answers: answers.into() };
            assert!(!signer.accept_witness(request).await.unwrap().into_inner().locked);
        });
    }

    /// What operator 1's signer says of its empty log; returns the evidence against it.
    fn told(&self, running: &Running, epoch: u64, sequence: u64) -> String {
        let operator = OperatorIndex::new(1);
        let origin = checkpoint::origin(&self.federation, operator);
        let extension = Extension {
            position: SignedAt { root_epoch: epoch, sequence },
            destroyed_before: epoch,
            log_size: 0,
        };
        let text = tlog_tiles::Checkpoint::new(&origin, 0, tlog_tiles::EMPTY_HASH, &extension.to_lines());
        let text = text.unwrap().to_bytes();
        let public = peer(1).verifying_key().to_bytes();
        let id = signed_note::key_id(&origin, &[[1u8].as_slice(), &public].concat());
        let signature = peer(1).sign(&text).to_bytes().to_vec();
        let signature = signed_note::Signature::new(origin, id, signature).unwrap();
        let note = signed_note::Note::new(&text, &[signature]).unwrap().to_bytes();
        let request = wire::CosignLogRequest {
            operator: 1,
            from: 0,
            entries: Vec::new(),
            checkpoint: String::from_utf8(note).unwrap(),
        };
        let mut signer = self.signer(running);
        let reply = self.runtime.block_on(signer.cosign_log(request)).unwrap().into_inner();
        assert_eq!(reply.cosignature.is_empty(), !reply.evidence.is_empty());
        reply.evidence
    }

    fn run(&self, arguments: &[&str]) -> Output {
        command(&self.config()).args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&success(self.run(&[arguments, &["--json"]].concat()))).unwrap()
    }

    /// Standard error of a command that must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn refused_for(&self, arguments: &[&str], reason: &str) {
        let said = self.refused(arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

/// How the configuration names device 0.
const FIRST: &str = "roots = { label = \"roots\", ";

fn configuration(folder: &Path, client: &Identity, token: &str) -> String {
    let at = |name: &str| folder.join(name);
    let federation = match at("federation.json") {
        file if file.exists() => format!("federation = {file:?}\n"),
        _ => String::new(),
    };
    let pin = at("pin");
    format!(
        "profile = \"development\"\noperator = 0\nstore = {:?}\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n{federation}\
         [tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\nallow = [\"{}\"]\n\
         [hardening]\nfilesystem = \"enforce\"\nnetwork = \"enforce\"\nsyscalls = \"enforce\"\nmemory = \"off\"\n\
         [token]\nmodule = {:?}\nprofile = \"softhsm\"\n\
         {FIRST}pin = {{ file = {pin:?} }} }}\n\
         keys = {{ label = \"keys\", pin = {{ file = {pin:?} }} }}\n{token}\n",
        at("signer.redb"),
        at("signer.pem"),
        at("signer.key"),
        at("ca.pem"),
        client.spki().unwrap(),
        spark_softhsm::module_path().unwrap(),
    )
}

fn device(folder: &Path, id: u8, module: &Path, label: &str) -> String {
    let pin = folder.join("pin");
    format!(
        "[[token.devices]]\nid = {id}\nmodule = {module:?}\nprofile = \"softhsm\"\n\
         roots = {{ label = {label:?}, pin = {{ file = {pin:?} }} }}\n"
    )
}

/// What the devices' list says of one.
fn state(list: &Value, id: u64) -> Option<&str> {
    list["devices"].as_array()?.iter().find(|device| device["id"] == id)?["state"].as_str()
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..600 {
        if check() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not in a minute: {what}");
}

/// SoftHSM under the profile of a device whose flash wears: what destroys waits for more, and all of it takes one root.
#[test]
fn what_destroys_shares_a_root_where_the_profile_asks_for_it() {
    isolated("what_destroys_shares_a_root_where_the_profile_asks_for_it", |dir| {
        let world = World::new(dir);
        world.configure("");
        let slow = fs::read_to_string(world.config())
            .unwrap()
            .replace("profile = \"softhsm\"\nroots", "profile = \"yubihsm2\"\nroots")
            .replace("keys = { label", "keys = { profile = \"softhsm\", label")
            .replace(
                "filesystem = \"enforce\"\nnetwork = \"enforce\"",
                "filesystem = \"off\"\nnetwork = \"off\"",
            );
        fs::write(world.config(), slow).unwrap();
        let running = world.start();
        world.unlock(&running);
        let epoch = || {
            let status = world.json(&["status"]);
            assert_eq!(status["min_batch_ms"], 2000);
            status["epoch"].as_u64().unwrap()
        };
        let signer = world.signer(&running);
        let issue = |count, discard| {
            let (mut signer, request_id) = (signer.clone(), rand::random::<[u8; 16]>().to_vec());
            async move {
                let request = wire::IssuePackageKeysRequest { request_id, count, discard };
                signer.issue_package_keys(request).await.unwrap().into_inner()
            }
        };
        let keys = world.runtime.block_on(issue(9, Vec::new())).keys;
        let mut names = keys.into_iter().map(|key| key.key_id);
        let alone = names.next().unwrap();
        let before = epoch();
        let together: Vec<_> = names.map(|name| world.runtime.spawn(issue(0, vec![name]))).collect();
        for one in together {
            assert_eq!(world.runtime.block_on(one).unwrap().destroyed, 1);
        }
        assert_eq!(epoch(), before + 1);
        assert_eq!(world.runtime.block_on(issue(0, vec![alone])).destroyed, 1);
        assert_eq!(epoch(), before + 2);
    })
    .unwrap();
}

#[test]
fn a_person_rotates_seals_and_acknowledges() {
    isolated("a_person_rotates_seals_and_acknowledges", |dir| {
        let world = World::new(dir);
        world.configure("");
        world.refused_for(&["status"], "no signer answers");
        let mut running = world.start();
        assert_eq!(fs::metadata(world.socket()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(world.refused(&["start"]).contains("another signer serves it"));

        // Before the peers were heard it says where it is, and changes nothing.
        let status = world.json(&["status"]);
        assert_eq!((&status["locked"], &status["sealed"]), (&Value::from(true), &Value::from(false)));
        assert_eq!(status["min_batch_ms"], 0, "nothing waits");
        world.refused_for(&["root", "rotate"], "SIGNER_LOCKED");
        world.unlock(&running);

        let before = world.json(&["status"])["epoch"].as_u64().unwrap();
        let rotated = world.json(&["root", "rotate"]);
        assert_eq!(
            (rotated["epoch_before"].as_u64(), rotated["epoch_after"].as_u64()),
            (Some(before), Some(before + 1))
        );
        assert_eq!(rotated["confirmed"], true);
        assert_eq!(rotated["devices"][0]["destroyed_before"].as_u64(), Some(before + 1));

        // Operator 1's log goes back: that ends with a person's word, not before.
        assert!(world.told(&running, 5, 10).is_empty());
        let evidence = world.told(&running, 4, 11);
        let list = world.json(&["alarms", "list"]);
        let alarm = &list["active"][0];
        assert_eq!(
            (alarm["kind"].as_str(), alarm["operator"].as_u64(), alarm["id"].as_str()),
            (Some("log_distrusted"), Some(1), Some(evidence.as_str()))
        );
        assert_eq!(alarm["statements"].as_array().unwrap().len(), 2);
        let settle = ["alarms", "acknowledge", "log_distrusted", "--by", "carol", "--reason", "repaired"];
        world.refused(&settle);
        world.refused(&[settle.as_slice(), &["--operator", "2"]].concat());
        world.refused_for(&[settle.as_slice(), &["--operator", "1", "--id", "00"]].concat(), "ALARM_UNKNOWN");
        assert_eq!(world.told(&running, 5, 12), evidence);
        let settle = [settle.as_slice(), &["--operator", "1", "--id", &evidence]].concat();
        let record = world.json(&settle);
        assert_eq!((record["by"].as_str(), record["reason"].as_str()), (Some("carol"), Some("repaired")));
        assert_eq!(record["uid"].as_u64(), Some(rustix::process::getuid().as_raw().into()));
        assert_eq!(world.json(&settle), record, "a repeat changes nothing");
        assert!(world.told(&running, 5, 13).is_empty());

        // Sealed, it lets its file go and refuses everything.
        assert_eq!(RedbStore::open(&world.folder.join("signer.redb")).unwrap_err(), StoreError::InUse);
        for _ in 0..2 {
            assert_eq!(world.json(&["seal"])["sealed"], true);
        }
        drop(RedbStore::open(&world.folder.join("signer.redb")).unwrap());
        let mut signer = world.signer(&running);
        let refused = world.runtime.block_on(signer.get_status(wire::GetStatusRequest {})).unwrap_err();
        assert_eq!(refused.metadata().get(REASON).unwrap(), "SIGNER_SEALED");
        for arguments in [&["root", "rotate"][..], &["alarms", "list"], &["device", "list"]] {
            world.refused_for(arguments, "SIGNER_SEALED");
        }
        // What it cannot open stays closed.
        fs::rename(world.folder.join("signer.redb"), world.folder.join("aside")).unwrap();
        world.refused_for(&["unseal"], "UNSEAL_FAILED");
        assert_eq!(world.json(&["status"])["sealed"], true);
        fs::rename(world.folder.join("aside"), world.folder.join("signer.redb")).unwrap();
        world.refused_for(&["unseal", "--wait", "0"], "peers");
        world.refused_for(&["root", "rotate"], "SIGNER_LOCKED");
        world.unlock(&running);
        let status = world.json(&["unseal"]);
        assert_eq!((&status["locked"], &status["sealed"]), (&Value::from(false), &Value::from(false)));
        assert_eq!(world.json(&["root", "rotate"])["confirmed"], true);
        assert_eq!(world.json(&["alarms", "list"])["acknowledged"], Value::from(vec![record]));

        // Log and marks of one moment, checked when they are archived and when they are read.
        success(world.run(&[
            "backup",
            "create",
            "--out",
            &world.folder.join("b.json").display().to_string(),
        ]));
        let summary: Value = serde_json::from_slice(&success(world.run(&[
            "backup",
            "verify",
            &world.folder.join("b.json").display().to_string(),
        ])))
        .unwrap();
        assert_eq!(summary["log"]["marks"]["epoch"], world.json(&["status"])["epoch"]);
        assert_eq!(summary["log"]["size"].as_u64(), Some(0));

        // Nobody else comes in, whatever the file's mode.
        if rustix::process::getuid().is_root() {
            fs::set_permissions(&world.folder, fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(world.socket(), fs::Permissions::from_mode(0o777)).unwrap();
            let socket = world.socket();
            let stranger = std::thread::spawn(move || {
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                UnixStream::connect(socket).unwrap().read(&mut [0; 9]).unwrap_or(0)
            });
            assert_eq!(stranger.join().unwrap(), 0);
        }

        // It stops when it is told to, also while somebody is connected.
        let _idle = UnixStream::connect(world.socket()).unwrap();
        kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
        assert!(running.child.wait().unwrap().success());
    })
    .unwrap();
}

#[test]
fn devices_come_and_go_without_a_restart() {
    isolated("devices_come_and_go_without_a_restart", |dir| {
        let world = World::new(dir);
        let softhsm = spark_softhsm::module_path().unwrap().to_owned();
        let gone = Path::new("/nonexistent/library.so");
        let missing = device(&world.folder, 7, gone, "seventh");
        world.configure(&missing);
        world.refused_for(&["start"], "DEVICE_MODULE: device 7");
        let without_pin = missing.replace(&gone.display().to_string(), &softhsm.display().to_string());
        let without_pin = without_pin.replace("/pin\"", "/no-pin\"");
        world.configure(&without_pin);
        world.refused_for(&["start"], "DEVICE_PIN: device 7");
        let token = |more: &str| world.configure(&format!("start_without = [7]\n{missing}{more}"));
        token("");
        let running = world.start();
        world.unlock(&running);

        let second = device(&world.folder, 1, &softhsm, "second");
        world.refused_for(&["device", "add", "1"], "DEVICE_UNKNOWN");
        world.refused_for(&["device", "add", "7"], "DEVICE_MODULE");
        world.refused_for(&["device", "retire", "0"], "DEVICE_STATE");
        token(&second);
        world.refused_for(&["device", "add", "1"], "DEVICE_AWAY");
        // Its token is made while the signer runs.
        dir.init_token("second", common::SO_PIN, common::PIN).unwrap();
        success(world.run(&["device", "prepare", "1"]));
        for _ in 0..2 {
            assert_eq!(state(&world.json(&["device", "add", "1"]), 1), Some("serving"));
        }
        token(&second.replace("\"second\"", "\"third\""));
        world.refused_for(&["device", "add", "1"], "DEVICE_CHANGED");
        token(&second);
        let rotated = world.json(&["root", "rotate", "--wait", "120"]);
        assert_eq!(rotated["confirmed"], true);
        let after = rotated["epoch_after"].as_u64();
        let epochs: Vec<_> =
            rotated["devices"].as_array().unwrap().iter().map(|d| d["destroyed_before"].as_u64()).collect();
        assert_eq!(epochs, [after, after]);

        // A device that hangs, as this lock on its file makes it, is left behind: the other one goes on.
        let lock = common::hang(dir, "second");
        let epoch = rotated["epoch_after"].as_u64().unwrap();
        world.refused_for(&["root", "rotate", "--wait", "1"], "not confirmed");
        let list = world.json(&["device", "list"]);
        assert_eq!((state(&list, 0), state(&list, 1)), (Some("serving"), Some("away")));
        assert!(world.json(&["status"])["epoch"].as_u64() > Some(epoch));
        assert_eq!(world.json(&["alarms", "list"])["active"][0]["kind"], "device_away");
        world.refused_for(
            &["alarms", "acknowledge", "device_away", "--by", "x", "--reason", "x"],
            "ALARM_LASTS",
        );
        drop(lock);
        eventually("it is back", || state(&world.json(&["device", "list"]), 1) == Some("serving"));
        assert_eq!(world.json(&["root", "rotate", "--wait", "120"])["confirmed"], true);

        let list = world.json(&["device", "retire", "1"]);
        assert_eq!((state(&list, 0), state(&list, 1)), (Some("serving"), Some("retiring")));
        eventually("it is forgotten", || state(&world.json(&["device", "list"]), 1).is_none());
        assert_eq!(world.json(&["alarms", "list"])["active"], Value::from(Vec::<Value>::new()));
        let shown = world.run(&["alarms", "list"]);
        assert!(shown.stdout.is_empty() && String::from_utf8_lossy(&shown.stderr).contains("none is active"));
        // An entry that is left in the configuration does not bring it back at a restart; a person does.
        token(&second);
        drop(running);
        let running = world.start();
        world.unlock(&running);
        let list = world.json(&["device", "list"]);
        assert_eq!(state(&list, 1), Some("away"));
        assert_eq!(list["devices"][1]["retired"], true);
        assert_eq!(state(&world.json(&["device", "add", "1"]), 1), Some("serving"));

        // The first one is no different: it may hang, and it may go.
        let lock = common::hang(dir, "roots");
        world.refused_for(&["root", "rotate", "--wait", "1"], "not confirmed");
        let list = world.json(&["device", "list"]);
        assert_eq!((state(&list, 0), state(&list, 1)), (Some("away"), Some("serving")));
        assert!(http(&running, "/readyz").starts_with("HTTP/1.1 200"), "the other one serves");
        drop(lock);
        eventually("it is back", || state(&world.json(&["device", "list"]), 0) == Some("serving"));
        let list = world.json(&["device", "retire", "0"]);
        assert_eq!((state(&list, 0), state(&list, 1)), (Some("retiring"), Some("serving")));
        eventually("it is forgotten", || state(&world.json(&["device", "list"]), 0).is_none());
        world.refused_for(&["device", "retire", "1"], "DEVICE_STATE");
        drop(running);
        token(&second);
        let text = fs::read_to_string(world.config()).unwrap();
        let without: String = text
            .lines()
            .filter(|line| !line.starts_with(FIRST))
            .fold(String::new(), |all, line| all + line + "\n");
        assert_ne!(text, without);
        fs::write(world.config(), without).unwrap();
        let running = world.start();
        world.unlock(&running);
        assert_eq!(world.json(&["root", "rotate", "--wait", "120"])["confirmed"], true);
        assert_eq!(state(&world.json(&["device", "list"]), 0), None);
    })
    .unwrap();
}

/// What the signer's own HTTP listener says.
fn http(running: &Running, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(&running.http).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_keys_token_that_hangs_holds_nobody_up_and_is_seen() {
    isolated("a_keys_token_that_hangs_holds_nobody_up_and_is_seen", |dir| {
        let world = World::new(dir);
        world.configure("");
        let running = world.start();
        world.unlock(&running);
        let ready = || http(&running, "/readyz").starts_with("HTTP/1.1 200");
        let up = |value: u8| {
            http(&running, "/metrics")
                .lines()
                .any(|line| line == format!("spark_signer_keys_token_up {value}"))
        };
        assert!(ready() && up(1));

        // Its votes and receipts need these keys: nothing takes their place. Calls end all the same.
        let lock = common::hang(dir, "keys");
        let mut signer = world.signer(&running);
        let ask = || wire::SignAbortRequest { operation_id: vec![7; 16], attempt: 1, aborts: Vec::new() };
        let refused = world.runtime.block_on(signer.sign_abort(ask())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        assert!(!ready() && up(0));
        // Roots are elsewhere, so administration goes on.
        assert_eq!(world.json(&["status"])["locked"], false);
        let again = world.runtime.block_on(signer.sign_abort(ask())).unwrap_err();
        assert!(format!("{again:?}").contains("HSM_UNAVAILABLE"), "{again:?}");

        drop(lock);
        eventually("it answers again", || ready() && up(1));
        world.runtime.block_on(signer.sign_abort(ask())).unwrap();

        // Only another process can ask a token that keeps every thread of this one.
        let said = http(&running, "/metrics");
        assert!(said.contains("spark_signer_keys_token_stuck_seconds 0\n"), "{said}");
        drop(running);
        let text = fs::read_to_string(world.config()).unwrap();
        let keys = "keys = { label = \"keys\", ";
        assert!(text.contains(keys));
        let short = text.replace(keys, &format!("{keys}end_after_seconds = 1, "));
        fs::write(world.config(), short).unwrap();
        let mut running = world.start();
        world.unlock(&running);
        let mut signer = world.signer(&running);
        let lock = common::hang(dir, "keys");
        // What it has signed before it only repeats.
        let ask = || wire::SignAbortRequest { operation_id: vec![8; 16], attempt: 1, aborts: Vec::new() };
        eventually("the process ends", || {
            let _ = world.runtime.block_on(signer.sign_abort(ask()));
            running.ended().is_some()
        });
        assert_eq!(running.ended(), Some(i32::from(KeysStuck::EXIT)));
        drop(lock);
        let running = world.start();
        world.unlock(&running);
        world.runtime.block_on(world.signer(&running).sign_abort(ask())).unwrap();
    })
    .unwrap();
}
