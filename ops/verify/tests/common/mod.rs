//! A log of an operator, written by code of its own: nothing here calls what is tested.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

mod receipts;

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use spark_verify::{Error, Location, Options, Reason, Report};
use tempfile::TempDir;

pub(crate) use receipts::{Receipt, place, point, receipt, record, story, unused};

pub(crate) type Hash = [u8; 32];

/// Whose log it is in all tests.
pub(crate) const OPERATOR: u16 = 1;

fn sha(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Parts with their lengths, as text of bytes.
#[derive(Default)]
struct Framed(Vec<u8>);

impl Framed {
    fn bytes(&mut self, part: &[u8]) {
        self.0.extend((part.len() as u64).to_be_bytes());
        self.0.extend(part);
    }

    fn number(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }
}

/// With the lower s.
fn ecdsa(key: &p256::ecdsa::SigningKey, message: &[u8]) -> p256::ecdsa::Signature {
    let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(key, message);
    signature.normalize_s().unwrap_or(signature)
}

/// The definition of RFC 6962 over leaf hashes.
pub(crate) fn root(leaves: &[Hash]) -> Hash {
    match leaves.len() {
        0 => sha(&[]),
        1 => leaves[0],
        n => {
            let mut k = 1;
            while k * 2 < n {
                k *= 2;
            }
            sha(&[&[1], &root(&leaves[..k]), &root(&leaves[k..])])
        }
    }
}

/// Five operators, threshold 3; operator 1 has two keys.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) keys: Vec<Vec<SigningKey>>,
    pub(crate) content: Value,
    hash: Hash,
}

/// What a checkpoint says besides size and root.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) position: (u64, u64),
    pub(crate) destroyed_before: u64,
    pub(crate) log_size: Option<u64>,
    pub(crate) extra: String,
}

impl Default for Said {
    fn default() -> Self {
        Self { position: (100_000, 500_000), destroyed_before: 4, log_size: None, extra: String::new() }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let key =
            |operator: usize, device: u8| SigningKey::from_bytes(&sha(&[b"key", &[operator as u8, device]]));
        let keys: Vec<Vec<SigningKey>> =
            (0..5).map(|i| (0..if i == 1 { 2 } else { 1 }).map(|d| key(i, d)).collect()).collect();
        let members: Vec<Value> = keys
            .iter()
            .enumerate()
            .map(|(i, keys)| {
                let public: Vec<_> = keys.iter().map(|k| hex::encode(k.verifying_key().as_bytes())).collect();
                json!({
                    "identity_public_key": point(1000 + i as u64),
                    "federation_public_keys": public,
                    "tls_spki_sha256": [hex::encode(sha(&[b"tls", &[i as u8]]))],
                    "peer_address": format!("operator-{i}:1"),
                    "public_address": format!("https://operator-{i}:2"),
                })
            })
            .collect();
        let content = json!({ "epoch": 7, "network": "regtest", "threshold": 3, "members": members });
        let mut world = Self { folder: TempDir::new().unwrap(), hash: [0; 32], keys, content };
        world.sign_federation(&[]);
        world
    }

    /// Gives operators P-256 keys instead of their others, by index.
    pub(crate) fn rekey(&mut self, keys: &[(u16, &p256::ecdsa::SigningKey)]) {
        for (operator, key) in keys {
            let point = key.verifying_key().to_encoded_point(true);
            self.content["members"][usize::from(*operator)]["federation_public_keys"] =
                json!([hex::encode(point.as_bytes())]);
        }
        self.sign_federation(keys);
    }

    fn sign_federation(&mut self, others: &[(u16, &p256::ecdsa::SigningKey)]) {
        let world = self;
        world.hash = federation_hash(&world.content);
        let message = [b"spark/federation/sign/v1".as_slice(), &world.hash].concat();
        let mut signatures: Vec<_> =
            world.keys.iter().map(|keys| hex::encode(keys[0].sign(&message).to_bytes())).collect();
        for (operator, key) in others {
            signatures[usize::from(*operator)] = hex::encode(ecdsa(key, &message).to_bytes());
        }
        world.write(
            "federation.json",
            json!({ "federation": world.content, "signatures": signatures }).to_string(),
        );
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Bends the file by a function.
    pub(crate) fn bend(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        self.write(name, bytes);
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("spark-operator.invalid/{}/{rest}", hex::encode(&self.hash[..8]))
    }

    /// A signature line.
    pub(crate) fn line(name: &str, kind: u8, key: &SigningKey, blob: &[u8]) -> String {
        let id = sha(&[name.as_bytes(), b"\n", &[kind], key.verifying_key().as_bytes()]);
        format!("\u{2014} {name} {}\n", STANDARD.encode([&id[..4], blob].concat()))
    }

    pub(crate) fn signed_by(&self, text: &str, name: &str, key: &SigningKey) -> String {
        Self::line(name, 1, key, &key.sign(text.as_bytes()).to_bytes())
    }

    pub(crate) fn cosigned(&self, text: &str, witness: u16, key: &SigningKey, time: u64) -> String {
        let message = format!("cosignature/v1\ntime {time}\n{text}");
        let blob = [time.to_be_bytes().as_slice(), &key.sign(message.as_bytes()).to_bytes()].concat();
        Self::line(&self.name(&format!("witness/{witness}")), 4, key, &blob)
    }

    /// The same by a P-256 key: DER in a plain line, an id of a type of ours in a cosignature's.
    pub(crate) fn signed_by_p256(text: &str, name: &str, key: &p256::ecdsa::SigningKey) -> String {
        let spki = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
        let id = sha(&[&spki, key.verifying_key().to_encoded_point(false).as_bytes()]);
        let blob = ecdsa(key, text.as_bytes()).to_der();
        format!("\u{2014} {name} {}\n", STANDARD.encode([&id[..4], blob.as_bytes()].concat()))
    }

    pub(crate) fn cosigned_by_p256(
        &self,
        text: &str,
        witness: u16,
        key: &p256::ecdsa::SigningKey,
        time: u64,
    ) -> String {
        let name = self.name(&format!("witness/{witness}"));
        let kind = b"\xffspark/cosignature/ecdsa-p256/v1";
        let id = sha(&[name.as_bytes(), b"\n", kind, key.verifying_key().to_encoded_point(true).as_bytes()]);
        let signature = ecdsa(key, format!("cosignature/v1\ntime {time}\n{text}").as_bytes()).to_bytes();
        let blob = [&id[..4], &time.to_be_bytes(), &signature].concat();
        format!("\u{2014} {name} {}\n", STANDARD.encode(blob))
    }

    /// The text of a checkpoint.
    pub(crate) fn text(&self, leaves: &[Hash], said: &Said) -> String {
        let (epoch, sequence) = said.position;
        format!(
            "{}\n{}\n{}\nspark/position {epoch} {sequence}\nspark/destroyed-before {}\nspark/log-size {}\n{}",
            self.name(&OPERATOR.to_string()),
            leaves.len(),
            STANDARD.encode(root(leaves)),
            said.destroyed_before,
            said.log_size.unwrap_or(leaves.len() as u64),
            said.extra,
        )
    }

    /// A note with the operator's signature and cosignatures of three others.
    pub(crate) fn note(&self, text: &str) -> String {
        let mut note = format!("{text}\n{}", self.signed_by(text, &self.name("1"), &self.keys[1][1]));
        for (witness, time) in [(0u16, 1_700_000_001), (2, 1_700_000_002), (4, 1_700_000_003)] {
            note += &self.cosigned(text, witness, &self.keys[usize::from(witness)][0], time);
        }
        note
    }

    pub(crate) fn checkpoint(&self, leaves: &[Hash], said: &Said) -> String {
        self.note(&self.text(leaves, said))
    }

    /// Writes a log of these records in folder `log`: bundles, tiles of all levels, checkpoint.
    pub(crate) fn publish_records(&self, records: &[Hash], said: &Said) {
        let _ = fs::remove_dir_all(self.path("log"));
        let leaves: Vec<Hash> = records.iter().map(|r| sha(&[&[0], r])).collect();
        let mut item = Vec::new();
        for (index, chunk) in records.chunks(256).enumerate() {
            item.clear();
            for record in chunk {
                item.extend([0, 32]);
                item.extend(record);
            }
            self.write(&place_of("entries", index, chunk.len()), &item);
        }
        let mut level = leaves.clone();
        for number in 0.. {
            if level.is_empty() {
                break;
            }
            for (index, chunk) in level.chunks(256).enumerate() {
                self.write(&place_of(&number.to_string(), index, chunk.len()), chunk.concat());
            }
            level = level.chunks_exact(256).map(root).collect();
        }
        self.write("log/checkpoint", self.checkpoint(&leaves, said));
    }

    /// Writes log and entries.
    pub(crate) fn publish(&self, receipts: &[Receipt], said: &Said) {
        self.publish_records(&receipts.iter().map(record).collect::<Vec<_>>(), said);
        self.write_entries(receipts);
    }

    pub(crate) fn write_entries(&self, receipts: &[Receipt]) {
        let lines: String = receipts.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
        self.write("entries.jsonl", lines);
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            federation: self.path("federation.json"),
            operator: OPERATOR,
            location: Location::Directory(self.path("log")),
            entries: self.path("entries.jsonl").exists().then(|| self.path("entries.jsonl")),
            since: self.path("since").exists().then(|| self.path("since")),
            witnesses: None,
            save: None,
        }
    }

    pub(crate) fn verify(&self) -> Report {
        run(&self.options()).unwrap()
    }

    /// The reasons of all findings, each once.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        reasons(&self.verify())
    }
}

pub(crate) fn reasons(report: &Report) -> Vec<Reason> {
    let mut reasons: Vec<_> = report.failures.iter().map(|f| f.reason).collect();
    assert_eq!(report.holds, reasons.is_empty());
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

pub(crate) fn run(options: &Options) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(spark_verify::verify(options))
}

/// Path of a tile for indices below 1000, which suffices here.
fn place_of(level: &str, index: usize, width: usize) -> String {
    let partial = if width < 256 { format!(".p/{width}") } else { String::new() };
    format!("log/tile/{level}/{index:03}{partial}")
}

pub(crate) fn federation_hash(content: &Value) -> Hash {
    let mut framed = Framed::default();
    framed.bytes(b"spark/federation/v1");
    framed.number(content["epoch"].as_u64().unwrap());
    framed.bytes(content["network"].as_str().unwrap().as_bytes());
    for name in ["threshold", "quorum", "faults"] {
        framed.number(content.get(name).and_then(Value::as_u64).unwrap_or(0));
    }
    let members = content["members"].as_array().unwrap();
    framed.number(members.len() as u64);
    for member in members {
        framed.bytes(member["identity_public_key"].as_str().unwrap().as_bytes());
        for list in ["federation_public_keys", "tls_spki_sha256"] {
            let list = member[list].as_array().unwrap();
            framed.number(list.len() as u64);
            for item in list {
                framed.bytes(item.as_str().unwrap().as_bytes());
            }
        }
        framed.bytes(member["peer_address"].as_str().unwrap().as_bytes());
        framed.bytes(member["public_address"].as_str().unwrap().as_bytes());
    }
    sha(&[&framed.0])
}
