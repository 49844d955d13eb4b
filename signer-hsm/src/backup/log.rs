//! The deletion log and the marks in an archive: taken from the running signer, checked against its signed head.
//!
//! The head is taken first; what the log had then never changes, so entries that are read later fit it.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use spark_proto::{admin::signer::v1 as wire, peer::v1::Receipt};
use spark_rules::{
    checkpoint::Checkpoint,
    federation::{Federation, FederationFile},
    federation_key::FederationKey,
    ids::OperatorIndex,
    receipt,
    witness::Frontier,
};

use super::Content;
use crate::admin::AdminClient;

/// The signed head.
const HEAD: &str = "log-checkpoint.txt";
/// The marks.
const MARKS: &str = "marks.json";
/// Entries of one file.
const PER_FILE: usize = 1 << 16;
/// Most entries of an archive; larger logs are exported by the operator.
const MOST: u64 = 1 << 20;

/// Where the signer stood: numbers that only grow, so whoever shows smaller ones shows an older state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    /// Index of the operator.
    pub operator: u32,
    /// Since the last ceremony, 16 bytes hex.
    pub incarnation: String,
    /// Root epoch.
    pub epoch: u64,
    /// Number of the last commit.
    pub sequence: u64,
    /// Last entry of the journal.
    pub journal: u64,
    /// Every root of an earlier epoch is confirmed to be destroyed.
    pub destroyed_before: u64,
    /// Entries of the log.
    pub log_size: u64,
    /// The highest statements of peers that were seen.
    pub seen: Vec<Seen>,
}

/// The highest statement of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Index of the peer.
    pub operator: u32,
    /// 16 bytes hex.
    pub incarnation: String,
    /// Root epoch.
    pub epoch: u64,
    /// Number of the commit.
    pub sequence: u64,
}

/// A log that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedLog {
    /// Entries.
    pub size: u64,
    /// RFC 6962 root, hex: computed from the entries, and the signed one.
    pub root: String,
    /// Where the signer stood.
    pub marks: Marks,
}

fn entries_name(number: usize) -> String {
    format!("log-{number:06}.entries")
}

/// Reads it from the running signer.
pub fn take(signer: &mut AdminClient) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let wire::Marks {
        operator,
        incarnation,
        epoch,
        sequence,
        journal,
        destroyed_before,
        log_size,
        checkpoint,
        seen,
    } = signer.get_marks(wire::GetMarksRequest {})?;
    ensure!(log_size <= MOST, "the log has {log_size} entries: archive `spark-operator log export` instead");
    let seen = seen
        .into_iter()
        .map(|wire::Seen { operator, incarnation, epoch, sequence }| Seen {
            operator,
            incarnation,
            epoch,
            sequence,
        })
        .collect();
    let marks = Marks { operator, incarnation, epoch, sequence, journal, destroyed_before, log_size, seen };
    let mut files = BTreeMap::new();
    files.insert(HEAD.to_owned(), checkpoint.into_bytes());
    files.insert(MARKS.to_owned(), serde_json::to_vec_pretty(&marks)?);
    let mut entries: Vec<Vec<u8>> = Vec::new();
    while (entries.len() as u64) < log_size {
        let from = entries.len() as u64;
        let page = signer.read_log(wire::ReadLogRequest { from, until: log_size })?.entries;
        ensure!(!page.is_empty(), "the log ends at {from}, before its head");
        entries.extend(page);
    }
    for (number, part) in entries.chunks(PER_FILE).enumerate() {
        let mut file = Vec::new();
        for entry in part {
            file.extend_from_slice(&u32::try_from(entry.len())?.to_be_bytes());
            file.extend_from_slice(entry);
        }
        files.insert(entries_name(number), file);
    }
    Ok(files)
}

fn file(content: &Content, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let file = content.files.get(name).map(hex::decode).transpose();
    file.with_context(|| format!("archive's {name} is malformed"))
}

/// The federation files among the files, each signed by all its members.
fn federations(content: &Content) -> impl Iterator<Item = Federation> {
    content
        .files
        .values()
        .filter_map(|file| FederationFile::parse(&String::from_utf8(hex::decode(file).ok()?).ok()?).ok())
        .filter_map(|file| file.verify(None).ok())
}

/// The head, verified by the federation file that it was signed under: an archive may hold earlier ones, too.
fn head_of(content: &Content, note: &str) -> anyhow::Result<Checkpoint> {
    let operator = OperatorIndex::new(content.operator);
    let key = content.federation_public_key.parse::<FederationKey>().context("archive's key is malformed")?;
    let verify = |federation: &Federation| {
        let member =
            federation.member(operator).context("archive's operator is not in its federation file")?;
        ensure!(member.federation_keys.contains(&key), "archive's key is not the federation file's");
        Ok(Checkpoint::verify(note, federation, operator)?)
    };
    let mut refused = None;
    for federation in federations(content) {
        match verify(&federation) {
            Ok(head) => return Ok(head),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.context("archive has a log and no federation file to check it with")?)
}

/// Checks the log of an archive, if it has one: the entries lead to the root that the operator signed, and head and
/// marks speak of one moment.
pub(super) fn check(content: &Content) -> anyhow::Result<Option<CheckedLog>> {
    let (Some(head), Some(marks)) = (file(content, HEAD)?, file(content, MARKS)?) else {
        let part = |name: &String| name == HEAD || name == MARKS || name.ends_with(".entries");
        ensure!(!content.files.keys().any(part), "archive holds a part of a log");
        return Ok(None);
    };
    let head = head_of(content, std::str::from_utf8(&head)?)?;
    let marks: Marks = serde_json::from_slice(&marks).context("archive's marks")?;
    ensure!(
        marks.operator == u32::from(content.operator)
            && marks.log_size == head.size
            && marks.epoch == head.extension.position.root_epoch
            && marks.sequence == head.extension.position.sequence
            && marks.destroyed_before == head.extension.destroyed_before,
        "archive's marks are not those of its signed head"
    );
    let names: Vec<_> = content.files.keys().filter(|name| name.ends_with(".entries")).collect();
    ensure!(
        names.iter().enumerate().all(|(number, name)| **name == entries_name(number)),
        "archive's files of entries are not numbered one after the other"
    );
    let mut frontier = Frontier::default();
    let mut incarnation_differs = false;
    for name in names {
        let Some(entries) = file(content, name)? else { break };
        let mut rest = entries.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length))?;
            let (entry, after) = after.split_at_checked(length).context("archive's log is cut off")?;
            let entry = Receipt::decode(entry).context("archive's log")?;
            incarnation_differs |= hex::encode(&entry.incarnation) != marks.incarnation;
            frontier.push(&receipt::leaf(&entry));
            rest = after;
        }
        ensure!(rest.is_empty(), "archive's log is cut off");
    }
    ensure!(frontier.size() == head.size, "archive has {} of {} entries", frontier.size(), head.size);
    ensure!(frontier.root() == head.root, "archive's entries do not lead to the root that was signed");
    ensure!(!incarnation_differs, "archive's entries are of another life of the signer");
    Ok(Some(CheckedLog { size: head.size, root: hex::encode(head.root), marks }))
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{SECP256K1, SecretKey};
    use ed25519_dalek::{Signer as _, SigningKey};
    use spark_rules::{
        checkpoint::{self, Extension, SignedAt},
        federation::{FederationEntry, MemberEntry},
    };

    use super::*;

    fn key(index: u8) -> SigningKey {
        SigningKey::from_bytes(&[index + 1; 32])
    }

    fn federation_file() -> String {
        federation_file_of(1)
    }

    fn federation_file_of(epoch: u64) -> String {
        let members = (0..3u8)
            .map(|index| MemberEntry {
                identity_public_key: hex::encode(
                    SecretKey::from_slice(&[index + 1; 32]).unwrap().public_key(SECP256K1).serialize(),
                ),
                federation_public_keys: vec![hex::encode(key(index).verifying_key().to_bytes())],
                tls_spki_sha256: vec![hex::encode([index; 32])],
                peer_address: format!("peer{index}:1"),
                public_address: format!("https://peer{index}:2"),
            })
            .collect();
        let federation = FederationEntry {
            epoch,
            network: "regtest".into(),
            threshold: 2,
            quorum: None,
            faults: None,
            members,
        };
        let message = federation.signing_message();
        let signatures = (0..3).map(|index| hex::encode(key(index).sign(&message).to_bytes())).collect();
        serde_json::to_string(&FederationFile { federation, signatures }).unwrap()
    }

    fn entry(index: u64) -> Receipt {
        Receipt {
            log_index: index,
            incarnation: vec![9; 16],
            salt: vec![index as u8; 32],
            ..Receipt::default()
        }
    }

    fn packed(entries: &[Receipt]) -> String {
        let pack = |entry: &Receipt| {
            let entry = entry.encode_to_vec();
            [(entry.len() as u32).to_be_bytes().as_slice(), &entry].concat()
        };
        hex::encode(entries.iter().flat_map(pack).collect::<Vec<u8>>())
    }

    /// An archive of operator 0 with three entries.
    fn content() -> Content {
        let file = federation_file();
        let federation = FederationFile::parse(&file).unwrap().verify(None).unwrap();
        let entries = [entry(0), entry(1), entry(2)];
        let mut frontier = Frontier::default();
        entries.iter().for_each(|entry| frontier.push(&receipt::leaf(entry)));
        let position = SignedAt { root_epoch: 7, sequence: 20 };
        let extension = Extension { position, destroyed_before: 6, log_size: 3 };
        let origin = checkpoint::origin(&federation, OperatorIndex::new(0));
        let root = tlog_tiles::Hash(frontier.root());
        let text = tlog_tiles::Checkpoint::new(&origin, 3, root, &extension.to_lines()).unwrap().to_bytes();
        let public = key(0).verifying_key().to_bytes();
        let id = signed_note::key_id(&origin, &[[1u8].as_slice(), &public].concat());
        let signature = key(0).sign(&text).to_bytes().to_vec();
        let signature = signed_note::Signature::new(origin, id, signature).unwrap();
        let note = signed_note::Note::new(&text, &[signature]).unwrap().to_bytes();
        let marks = Marks {
            operator: 0,
            incarnation: "09".repeat(16),
            epoch: 7,
            sequence: 20,
            journal: 11,
            destroyed_before: 6,
            log_size: 3,
            seen: Vec::new(),
        };
        let files = BTreeMap::from([
            ("federation.json".to_owned(), hex::encode(file)),
            (HEAD.to_owned(), hex::encode(note)),
            (MARKS.to_owned(), hex::encode(serde_json::to_vec(&marks).unwrap())),
            (entries_name(0), packed(&entries[..2])),
            (entries_name(1), packed(&entries[2..])),
        ]);
        Content {
            version: 1,
            operator: 0,
            unix_seconds: 1,
            federation_public_key: hex::encode(public),
            identity_public_key: String::new(),
            delete_claim: "none".into(),
            files,
        }
    }

    fn refused(what: &str, change: impl FnOnce(&mut Content)) {
        let mut content = content();
        change(&mut content);
        assert!(check(&content).is_err(), "{what}");
    }

    #[test]
    fn a_log_leads_to_its_signed_head_or_is_refused() {
        let checked = check(&content()).unwrap().unwrap();
        assert_eq!((checked.size, checked.marks.journal), (3, 11));
        // Beside the federation file that counts an earlier one, whatever their names.
        for name in ["a.json", "z.json"] {
            let mut two = content();
            two.files.insert(name.into(), hex::encode(federation_file_of(2)));
            assert_eq!(check(&two).unwrap().unwrap(), checked);
        }
        let mut without = content();
        without.files.retain(|name, _| name == "federation.json");
        assert_eq!(check(&without).unwrap(), None);

        refused("no head", |c| drop(c.files.remove(HEAD)));
        refused("no marks", |c| drop(c.files.remove(MARKS)));
        refused("no federation", |c| drop(c.files.remove("federation.json")));
        refused("an entry less", |c| drop(c.files.remove(&entries_name(1))));
        refused("an entry more", |c| drop(c.files.insert(entries_name(2), packed(&[entry(3)]))));
        refused("a file after a gap", |c| drop(c.files.insert(entries_name(3), packed(&[entry(3)]))));
        refused("a file of another name", |c| drop(c.files.insert("x.entries".into(), packed(&[entry(3)]))));
        refused("other entries", |c| drop(c.files.insert(entries_name(1), packed(&[entry(4)]))));
        refused("cut off", |c| {
            let file = c.files.get_mut(&entries_name(1)).unwrap();
            file.truncate(file.len() - 2);
        });
        let life = |index| Receipt { incarnation: vec![8; 16], ..entry(index) };
        refused("another life", |c| drop(c.files.insert(entries_name(1), packed(&[life(2)]))));
        refused("another operator", |c| c.operator = 1);
        refused("another key", |c| {
            c.federation_public_key = hex::encode(key(1).verifying_key().to_bytes());
        });
        for (old, new) in [("\"epoch\":7", "\"epoch\":8"), ("\"log_size\":3", "\"log_size\":2")] {
            refused(new, |c| {
                let marks = String::from_utf8(hex::decode(&c.files[MARKS]).unwrap()).unwrap();
                assert!(marks.contains(old));
                c.files.insert(MARKS.to_owned(), hex::encode(marks.replace(old, new)));
            });
        }
    }
}
